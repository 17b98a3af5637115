"""Two real processes over loopback: the same numbers as one, killed, preempted and started again."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from prompt_tuning import cli
from prompt_tuning.checkpoints import run as run_checkpoints
from tests import hosts_test

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 14


def flags(folder, *more: str) -> list[str]:
  return [
      '--gin_file=models/t5.gin', '--gin_file=methods/prompt.gin', '--gin_file=runs/train.gin',
      '--gin_file=papers/lester2021/recipe.gin', f'--gin.MODEL_DIR={folder}', '--gin.INITIAL_CHECKPOINT_PATH=None',
      '--gin.MODEL_SIZE=t5_1_1_tiny', '--gin.MIXTURE_OR_TASK_NAME=sst2_sample', '--gin.BATCH_SIZE=16',
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 24, 'targets': 4}", f'--gin.TRAIN_STEPS={STEPS}', '--gin.PROMPT_LENGTH=8',
      '--gin.SAVE_PERIOD=3', '--gin.LOG_PERIOD=1', '--gin.TRAIN_LIMIT=100', '--gin.loop.train.eval_datasets=[]', *more]


VARIANTS = {  # name -> flags; each is trained by two processes and by one
    'data': (),
    'model': ('--gin.NUM_PARTITIONS=2', '--gin.TRAIN_STEPS=6', '--gin.DROPOUT_RATE=0.0'),
    'shards': ('--gin.DATA_SHARDS=2', '--gin.TRAIN_STEPS=8'),  # 50 rows each: goes past an epoch
}

WORKER = """
import json, sys
from prompt_tuning import cli, hosts
runs, *job = sys.argv[1:]
for flags in json.loads(runs):
  assert cli._run('train', [*job, *flags]) == 0
hosts.finish()
"""


def processes(arguments) -> list[subprocess.Popen]:
  """Two processes of one job with four simulated devices each."""
  address = f'127.0.0.1:{hosts_test.free_port()}'
  devices = os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=4')
  environment = {**os.environ, 'XLA_FLAGS': devices, 'PYTHONPATH': str(ROOT)}
  return [subprocess.Popen(
      [sys.executable, *arguments, f'--coordinator_address={address}', '--process_count=2', f'--process_index={i}'],
      cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for i in range(2)]


def finish(both) -> list[tuple[int, str]]:
  """(exit code, stderr) of each."""
  try:
    return [(process.returncode, err) for process in both for _, err in [process.communicate(timeout=400)]]
  finally:
    for process in both:
      process.kill()
      process.communicate()


def train(folder) -> list[subprocess.Popen]:
  return processes(['-m', 'prompt_tuning.train', *flags(folder)])


def losses(folder) -> list[float]:
  """In their order, a line that is being written left out."""
  found = {}
  path = folder / 'metrics.jsonl'
  for line in path.read_text().splitlines() if path.exists() else []:
    with contextlib.suppress(json.JSONDecodeError):
      found[json.loads(line)['step']] = json.loads(line)['loss']
  return [found[step] for step in sorted(found)]


def wait_for(both, folder, step):
  until = time.monotonic() + 400
  while len(losses(folder)) < step:
    assert all(process.poll() is None for process in both), [process.communicate() for process in both]
    assert time.monotonic() < until, 'no progress'
    time.sleep(0.05)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tmp_path_factory.mktemp('multihost')


@pytest.fixture(scope='module')
def uninterrupted(root):
  """Every variant by the same two processes; its folder."""
  runs = json.dumps([flags(root / f'two_{name}', *more) for name, more in VARIANTS.items()])
  for returned, err in finish(processes(['-c', WORKER, runs])):
    assert returned == 0, err
  return root


@pytest.mark.parametrize('name', VARIANTS)
def test_two_processes_are_one(uninterrupted, root, name):
  assert cli.run('train', flags(root / f'one_{name}', *VARIANTS[name])) == 0
  one, two = losses(root / f'one_{name}'), losses(root / f'two_{name}')
  assert len(one) >= 6
  np.testing.assert_allclose(two, one, rtol=1e-5)
  positions = []
  for which in ('one', 'two'):
    with contextlib.closing(run_checkpoints.RunCheckpoints(str(root / f'{which}_{name}'))) as checkpoints:
      positions.append(checkpoints.about(checkpoints.latest)['position'])
  assert positions[0] == positions[1]


def test_two_processes_are_one_device(uninterrupted, root, monkeypatch):
  devices = jax.devices()[:1]
  monkeypatch.setattr(jax, 'devices', lambda: devices)
  assert cli.run('train', flags(root / 'device', '--gin.TRAIN_STEPS=6', '--gin.DROPOUT_RATE=0.0')) == 0
  np.testing.assert_allclose(losses(root / 'two_model'), losses(root / 'device'), rtol=1e-5)


def test_a_run_goes_on_with_another_number_of_processes(uninterrupted, root):
  more = (*VARIANTS['shards'], '--gin.TRAIN_STEPS=10')
  assert cli.run('train', flags(root / 'two_shards', *more)) == 0
  assert cli.run('train', flags(root / 'one_longer', *more)) == 0
  assert len(losses(root / 'one_longer')) == 10
  np.testing.assert_allclose(losses(root / 'two_shards'), losses(root / 'one_longer'), rtol=1e-5)


def test_preempted_killed_and_started_again_is_the_same_run(uninterrupted, root):
  folder = root / 'interrupted'
  both = train(folder)
  wait_for(both, folder, 2)
  both[1].send_signal(signal.SIGTERM)  # to one alone
  for code, err in finish(both):
    assert code == 0, err
  stopped = len(losses(folder))
  assert 2 <= stopped < STEPS
  summary = json.loads((folder / 'summary.json').read_text())
  assert (summary['step'], summary['interrupted']) == (stopped, True)
  with contextlib.closing(run_checkpoints.RunCheckpoints(str(folder))) as checkpoints:
    assert checkpoints.latest == stopped

  both = train(folder)
  wait_for(both, folder, stopped + 2)
  both[1].kill()
  began = time.monotonic()
  (code, err), (killed, _) = finish(both)
  assert (code, killed) == (1, -signal.SIGKILL), err
  assert time.monotonic() - began < 60
  assert f'resuming {folder} at step {stopped}' in err
  said = err.splitlines()[-1]
  assert 'prompt-tuning: Process 1 of 2 (' in said
  assert 'is gone' in said
  assert f'The last checkpoint in {folder} is of step' in said

  for code, err in finish(train(folder)):
    assert code == 0, err
  assert losses(folder) == losses(root / 'two_data')  # bit for bit
  finished = [np.load(f / 'prompts' / f'prompt_{STEPS}.npy', allow_pickle=False) for f in (folder, root / 'two_data')]
  np.testing.assert_array_equal(*finished)
