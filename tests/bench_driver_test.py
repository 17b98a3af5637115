"""The driver of the benchmarks: what it keeps, what it writes, and what becomes of a benchmark that fails."""

import importlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
BENCH = ROOT / 'scripts' / 'bench'


@pytest.fixture
def driver(monkeypatch):
  """The script as a module, with a section of each fate: the fast ones are files of their own."""
  monkeypatch.syspath_prepend(BENCH)
  module = importlib.import_module('all')
  yield module
  for name in ('all', 'workers'):
    sys.modules.pop(name, None)


def script(folder, code) -> str:
  """A benchmark that is only this."""
  path = folder / f'bench{len(list(folder.glob("bench*")))}.py'
  path.write_text(code)
  return str(path)


def test_sections_that_fail_lose_no_others(driver, tmp_path, monkeypatch, capsys):
  sound = script(tmp_path, 'import sys; print("a table", *sys.argv[1:]); print(\'{"benchmark": "x"}\')')
  broken = script(tmp_path, 'import sys; sys.exit("ERROR: the loss is not finite")')
  endless = script(tmp_path, 'import time; time.sleep(100)')
  monkeypatch.setattr(driver, 'SECTIONS', {
      'sound': driver.Section('Sound', 'About it.', sound, ('--all',), ('--few',), ('--peer={python}',)),
      'broken': driver.Section('Broken', '', broken), 'endless': driver.Section('Endless', '', endless)})
  folder = tmp_path / 'out'
  flags = ['--quick', '--peer_python=some/python', '--limit=3', f'--out={folder}']
  assert driver.main(flags) == 1
  said = capsys.readouterr().err
  assert '[1/3] sound' in said
  assert 'broken, endless failed' in said
  text = (folder / 'benchmarks.md').read_text()
  assert f'python {sound} --few --peer=ENV/bin/python\n' in text
  assert '```text\na table --few --peer=some/python\n```' in text
  assert 'Not measured: ERROR: the loss is not finite' in text
  assert 'Not measured: not done after 3 s (--limit)' in text
  assert json.loads((folder / 'benchmarks' / 'sound.json').read_text())['report'] == {'benchmark': 'x'}

  assert driver.main([*flags, '--resume', '--only=sound']) == 0  # is not run again
  assert '[1/1]' not in capsys.readouterr().err
  assert driver.main([f'--out={folder}', '--resume', '--only=sound']) == 0  # with other flags it is
  assert 'a table --all\n' in (folder / 'benchmarks.md').read_text()
  (folder / 'benchmarks.md').write_text('')
  assert driver.main(['--page', f'--out={folder}']) == 0
  assert 'a table --all\n' in (folder / 'benchmarks.md').read_text()


def test_a_section_is_run(tmp_path):
  """A real one, as tiny as they are."""
  code = (f'import sys; sys.path.insert(0, {str(BENCH)!r}); import all as driver\n'
          "driver.SECTIONS = {'step': driver.Section('Step', 'A step.', 'bench/train_step.py', "
          "('--rows=tiny,tiny_full', '--steps=1'))}\n"
          f"sys.exit(driver.main(['--out={tmp_path}']))")
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  kept = json.loads((tmp_path / 'benchmarks' / 'step.json').read_text())
  rows = kept['report']['rows']
  prompt, full = (rows[name]['contenders']['ours'] for name in ('tiny', 'tiny_full'))
  assert full['trainable_parameters'] == full['frozen_parameters'] == prompt['frozen_parameters']
  assert np.isfinite(full['losses']).all()
  assert '\n'.join(kept['table']) in (tmp_path / 'benchmarks.md').read_text()


def test_every_section_has_its_script(driver):
  for section in driver.SECTIONS.values():
    assert (ROOT / section.command(True, None)[0]).is_file()


def test_the_page_is_made_of_what_was_measured(driver):
  folder = ROOT / 'docs' / 'benchmarks'
  if not folder.is_dir():
    pytest.skip('nothing was measured')
  assert (ROOT / 'docs' / 'benchmarks.md').read_text().strip() == driver.page(driver.measured(folder)).strip()


def run(name: str, *flags: str) -> tuple[list[str], dict]:
  """(table, report) of a benchmark."""
  done = subprocess.run([sys.executable, str(BENCH / name), *flags], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  *text, last = done.stdout.splitlines()
  return text, json.loads(last)


def test_checkpoint():
  text, report = run('checkpoint.py', '--rows=tiny', '--turns=2')
  assert text[1].split()[:2] == ['tiny', 'ours']
  ours = report['rows']['tiny']['contenders']['ours']
  assert ours['trained'] == 100 * 64
  assert ours['bytes'] >= 4 * 4 * ours['trained']  # values, two moments, and what is finished
  assert [len(ours[part]) for part in ('save', 'behind', 'restore')] == [2, 2, 2]


def test_startup():
  text, report = run('startup.py', '--rows=tiny', '--turns=1')
  assert [line.split()[:2] for line in text[1:]] == [['tiny', 'first'], ['tiny', 'again']]
  row = report['rows']['tiny']
  assert row['kept_bytes'] > 10_000  # the step was kept
  for seconds in (row['first'], *row['again']):
    assert 0 < seconds['imports'] + seconds['base'] + seconds['first step'] < seconds['in all']
