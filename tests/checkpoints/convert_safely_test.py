"""Conversion that fails leaves nothing, overwrites nothing, and does not need the memory of a model."""
import dataclasses
import os
import resource
import tracemalloc

import numpy as np
import pytest

from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import base, convert, keys, source
from prompt_tuning.checkpoints.families import t5
from tests.checkpoints.folders import run

NATIVE, SCANNED = 't5x/t5x_native/checkpoint_0', 't5x/t5x_native_scan/checkpoint_0'
FORMS = [('hf/t5_v1_1', 'huggingface'), (NATIVE, 't5x'), (SCANNED, 't5x_scan'), (NATIVE, 'huggingface')]


@pytest.mark.parametrize(('name', 'form'), FORMS)
@pytest.mark.parametrize('error', [OSError('disk on fire'), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_nothing(goldens, tmp_path, name, form, error):
  opened = base.open_base(goldens / name)
  left = len(opened.tensors) // 2

  def read(name, index):
    nonlocal left
    left -= 1
    if left < 0:
      assert list(tmp_path.glob('*.tmp-*')), 'nothing was begun'
      raise error
    return opened.read(name, index)

  with pytest.raises(type(error)):
    convert.convert(dataclasses.replace(opened, read=read), tmp_path / 'checkpoint_1', form)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('name', 'form'), FORMS)
def test_a_full_disk_leaves_nothing(goldens, tmp_path, name, form):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # writing fails as on a full disk
  try:
    with pytest.raises((ValueError, OSError), match='File too large.*checkpoint_1|checkpoint_1.*File too large'):
      run(goldens / name, tmp_path / 'checkpoint_1', form)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert not list(tmp_path.iterdir())


def test_what_a_killed_conversion_left_is_named(goldens, tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'getpid', lambda: 7)  # the same number again, as in containers
  (tmp_path / 'checkpoint_1.tmp-7').mkdir()
  with pytest.raises(FileExistsError, match='checkpoint_1.tmp-7 is in the way, left by a process that was killed'):
    run(goldens / NATIVE, tmp_path / 'checkpoint_1', 't5x')
  assert [path.name for path in tmp_path.iterdir()] == ['checkpoint_1.tmp-7']


@pytest.mark.parametrize(('name', 'form'), FORMS)
def test_what_exists_is_not_written_over(goldens, tmp_path, name, form):
  to = tmp_path / 'checkpoint_1'
  to.mkdir()
  (to / 'notes').write_text('mine')
  with pytest.raises(FileExistsError, match='checkpoint_1 already holds something: remove it, or name another'):
    run(goldens / name, to, form)
  assert [(f.name, f.read_text()) for f in to.iterdir()] == [('notes', 'mine')]
  (to / 'notes').unlink()
  run(goldens / name, to, form)  # an empty folder will do
  assert [f.name for f in tmp_path.iterdir()] == ['checkpoint_1']


# --- memory ---


def made_up(config, form):
  """A checkpoint whose tensors are made when they are read."""
  table_of = {'huggingface': t5.key_table, 't5x': t5.t5x_key_table, 't5x_scan': t5.t5x_scanned_key_table}[form]
  table = table_of(config)
  shapes = keys.shapes(config, table)
  tensors = {name: source.TensorInfo(entry.stored_shape(shapes[path]), np.dtype(np.float32))
             for path, entry in table.items() for name in entry.names}
  read = lambda name, index: np.ones([s.stop - s.start for s in index], np.float32)
  return source.Source('made up', form, tensors, config, read, table_of, lambda name: False)


@pytest.mark.parametrize(('origin', 'form', 'dtype'), [
    ('huggingface', 't5x', None), ('t5x', 'huggingface', 'bfloat16'), ('t5x', 't5x_scan', None)])
def test_few_tensors_are_held_at_once(tmp_path, origin, form, dtype):
  config = config_lib.BackboneConfig(
      family='t5', vocab_size=2000, d_model=128, num_heads=4, head_dim=32, d_ff=2000, encoder_layers=5,
      decoder_layers=5)
  opened = made_up(config, origin)
  sizes = [info.nbytes for info in opened.tensors.values()]
  ticks = []
  tracemalloc.start()
  convert.convert(opened, tmp_path / 'checkpoint_1', form, dtype=dtype, tick=ticks.append)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert sum(sizes) > 30 * max(sizes)
  assert peak < 4 * max(sizes) + 2_000_000
  assert sum(ticks) >= sum(sizes)
