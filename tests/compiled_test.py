"""Compiled programs are kept where they should be, within bounds, and never in the way."""

import os
import pathlib
import subprocess
import sys
import zlib

import jax
import pytest

from prompt_tuning import compiled

ROOT = pathlib.Path(__file__).parents[1]
NAMES = ('jax_enable_compilation_cache', 'jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')


@pytest.fixture
def home(tmp_path, monkeypatch):
  """The user's cache folder, and JAX as it starts."""
  before = {name: getattr(jax.config, name) for name in NAMES}
  jax.config.update('jax_compilation_cache_dir', None)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  yield tmp_path
  for name, value in before.items():
    jax.config.update(name, value)


def write(folder, name, data, age=0):
  """A file of the cache that is so many seconds old."""
  path = folder / f'{name}-cache'
  path.write_bytes(data)
  now = path.stat().st_mtime
  os.utime(path, (now - age, now - age))
  return path


def test_the_folder_is_the_users(home, monkeypatch):
  assert compiled.keep() == home / 'prompt_tuning' / 'xla' == pathlib.Path(jax.config.jax_compilation_cache_dir)
  assert (home / 'prompt_tuning' / 'xla').stat().st_mode & 0o777 == 0o700
  assert jax.config.jax_persistent_cache_min_compile_time_secs == compiled.MIN_COMPILE_SECONDS
  monkeypatch.setenv('XDG_CACHE_HOME', '')
  monkeypatch.setenv('HOME', '/somebody')
  assert compiled.folder() == pathlib.Path('/somebody/.cache/prompt_tuning/xla')


@pytest.mark.parametrize(('name', 'value'), [
    ('jax_enable_compilation_cache', False), ('jax_compilation_cache_dir', 'elsewhere')])
def test_what_the_user_says_wins(home, name, value):
  jax.config.update(name, value)
  assert compiled.keep() is None
  assert getattr(jax.config, name) == value
  assert list(home.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_no_error(home, monkeypatch):
  (home / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(home / 'file'))
  assert compiled.keep() is None
  assert jax.config.jax_compilation_cache_dir is None


def test_the_least_recently_used_go_first(tmp_path):
  files = [write(tmp_path, f'program{age}', zlib.compress(os.urandom(1000)), age) for age in (50, 30, 10)]
  size = files[0].stat().st_size
  os.utime(files[0])  # JAX has read the oldest
  compiled.tidy(tmp_path, 3 * size + 100)
  assert all(file.exists() for file in files)
  compiled.tidy(tmp_path, 2 * size + 100)
  assert [file.exists() for file in files] == [True, False, True]


def test_what_was_cut_off_is_deleted(tmp_path):
  data = zlib.compress(os.urandom(1000))
  whole, cut, empty, other = (
      write(tmp_path, name, content) for name, content in (
          ('whole', data), ('cut', data[:500]), ('empty', b''), ('other', b'\x28\xb5\x2f\xfd of zstd')))
  compiled.tidy(tmp_path, compiled.MAX_BYTES)
  assert [file.exists() for file in (whole, cut, empty, other)] == [True, False, False, True]


def test_a_second_start_reads_what_the_first_compiled(home):
  """And says nothing; nor does one that finds the folder's programs cut off."""
  code = ("from prompt_tuning import compiled; compiled.MIN_COMPILE_SECONDS = 0; compiled.keep(); import jax\n"
          "from jax import monitoring; hits = []\n"
          "monitoring.register_event_listener(lambda name, **_: hits.append(1) if 'cache_hits' in name else None)\n"
          "print(float(jax.jit(lambda x: jax.numpy.sin(x) @ x)(jax.numpy.arange(9.0))), len(hits))")

  def start() -> str:
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stderr) == (0, '')
    return done.stdout.split()

  value, hits = start()
  assert hits == '0'
  again, hits = start()
  assert again == value
  assert int(hits) > 0
  for file in (home / 'prompt_tuning' / 'xla').glob('*-cache'):
    file.write_bytes(file.read_bytes()[:100])
  assert start() == [value, '0']
