"""A damaged checkpoint: the one before is used, that is said, and nothing is lost on the way."""

import contextlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.checkpoints import run as run_checkpoints
from prompt_tuning.checkpoints import tuned

VALUES = np.random.default_rng(0).standard_normal((100, 64), np.float32)
NOW = {'base_fingerprint': 'f', 'base_path': 'b', 'optimizer': 'adamw', 'seed': 0}


def state(step):
  return {'trainable': {'prompt': {'embedding': jnp.array(VALUES) + step}},
          'opt_state': ({'m': jnp.array(VALUES) * step}, ()), 'step': jnp.int32(step)}


def about(step):
  return {**NOW, 'state': run_checkpoints.description(state(step)), 'position': {'epoch': 0, 'offset': step}}


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory):
  """Checkpoints of steps 3 and 6, the latter the better; tests damage a copy."""
  folder = tmp_path_factory.mktemp('run')
  with contextlib.closing(run_checkpoints.RunCheckpoints(str(folder))) as checkpoints:
    for step in (3, 6):
      finished = tuned.Tuned('prompt', {'prompt/embedding': VALUES + step}, {'step': step})
      checkpoints.save(step, state(step), about(step), finished, metric=float(step))
  return folder


@pytest.fixture
def copy(two_steps, tmp_path):
  return shutil.copytree(two_steps, tmp_path / 'run')


def resume(folder):
  """(what is gone on from, what was said)"""
  said = []
  with contextlib.closing(run_checkpoints.RunCheckpoints(str(folder))) as checkpoints:
    return checkpoints.resume(about(0), state(0), said.append), said


def largest(folder):
  """The file that holds most of the values."""
  return max((folder / 'state').glob('ocdbt.process_0/d/*'), key=lambda file: file.stat().st_size)


def truncated(file):
  file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])


def zeroed(file):
  file.write_bytes(bytes(file.stat().st_size))


def one_bit(file):
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def other_type(folder):
  """The same shapes in half precision."""
  half = {**state(6), 'trainable': {'prompt': {'embedding': jnp.array(VALUES + 6).astype(jnp.bfloat16)}}}
  other = folder.parent.parent / 'other'
  with contextlib.closing(run_checkpoints.RunCheckpoints(str(other))) as checkpoints:
    checkpoints.save(6, half, about(6))
  shutil.rmtree(folder / 'state')
  shutil.move(other / 'checkpoints' / '6' / 'state', folder / 'state')


DAMAGES = {
    'values cut off': lambda folder: truncated(largest(folder)),
    'values are zero': lambda folder: zeroed(largest(folder)),
    'one bit of the values': lambda folder: one_bit(largest(folder)),
    'values missing': lambda folder: largest(folder).unlink(),
    'index cut off': lambda folder: truncated(folder / 'state' / 'manifest.ocdbt'),
    'tree of names is no JSON': lambda folder: zeroed(folder / 'state' / '_METADATA'),
    'tree of names missing': lambda folder: (folder / 'state' / '_METADATA').unlink(),
    'values missing altogether': lambda folder: shutil.rmtree(folder / 'state'),
    'values of another type': other_type,
    'facts cut off': lambda folder: truncated(folder / 'about' / 'metadata'),
    'facts missing': lambda folder: (folder / 'about' / 'metadata').unlink(),
    'other facts': lambda folder: (folder / 'about' / 'metadata').write_text(
        (folder / 'about' / 'metadata').read_text().replace('"offset": 6', '"offset": 7')),
    'facts are another JSON': lambda folder: (folder / 'about' / 'metadata').write_text('[]'),
    'empty folder': lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_the_checkpoint_before_is_used(copy, damage):
  DAMAGES[damage](copy / 'checkpoints' / '6')
  found, said = resume(copy)
  assert found.step == 3
  assert found.about['position'] == {'epoch': 0, 'offset': 3}
  np.testing.assert_array_equal(found.state['trainable']['prompt']['embedding'], VALUES + 3)
  [line] = said
  assert line.startswith(f'The checkpoint {copy}/checkpoints/6 is damaged (')
  assert line.endswith(f'It is now {copy}/damaged/6; going on from step 3.')
  assert '\n' not in line
  assert [path.name for path in (copy / 'checkpoints').iterdir()] == ['3']
  assert tuned.load(copy).about['step'] == 3  # also the best
  assert sorted(path.name for path in (copy / 'prompts').iterdir()) == [
      'best.npy', 'best.safetensors', 'prompt_3.npy', 'prompt_3.safetensors']
  with contextlib.closing(run_checkpoints.RunCheckpoints(str(copy))) as checkpoints:
    checkpoints.save(6, state(6), about(6), metric=1.0)  # the same step once more
  assert resume(copy)[0].step == 6
  assert resume(copy)[1] == []


@pytest.mark.parametrize('what', ['facts cut off', 'one bit of the values'])
def test_with_none_left_it_says_what_to_delete(copy, what):
  for step in ('3', '6'):
    DAMAGES[what](copy / 'checkpoints' / step)
  with pytest.raises(run_checkpoints.DamagedError) as error:
    resume(copy)
  message = str(error.value)
  for step in ('3', '6'):
    assert f'The checkpoint {copy}/checkpoints/{step} is damaged (' in message
    assert (copy / 'checkpoints' / step).exists()
  assert f'or delete {copy}/checkpoints to begin anew' in message


def test_an_older_checkpoint_whose_facts_are_damaged_is_put_aside(copy):
  DAMAGES['facts cut off'](copy / 'checkpoints' / '3')
  found, [line] = resume(copy)
  assert found.step == 6
  assert f'now {copy}/damaged/3; going on from step 6' in line
  assert resume(copy)[1] == []


def test_checkpoints_without_checksums_are_read(two_steps, tmp_path, monkeypatch):
  """Those of earlier versions."""
  with contextlib.closing(run_checkpoints.RunCheckpoints(str(tmp_path))) as checkpoints:
    monkeypatch.setattr(run_checkpoints, '_STATE_SUM', 'x')
    monkeypatch.setattr(run_checkpoints, '_SUM', 'y')
    checkpoints.save(3, state(3), about(3))
    checkpoints.finish()
    monkeypatch.undo()
    assert 'checksum' not in checkpoints.about(3)
    assert checkpoints.resume(about(0), state(0), pytest.fail).step == 3


def test_nothing_to_go_on_from(tmp_path):
  assert resume(tmp_path) == (None, [])
