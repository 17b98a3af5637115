"""Two real processes over loopback: the same numbers as one, killed, preempted and started again."""

import contextlib
import json
import os
import pathlib
import re
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
STEPS = 16


def flags(folder, *more: str) -> list[str]:
  return [
      '--gin_file=models/t5.gin', '--gin_file=methods/prompt.gin', '--gin_file=runs/train.gin',
      '--gin_file=papers/lester2021/recipe.gin', f'--gin.MODEL_DIR={folder}', '--gin.INITIAL_CHECKPOINT_PATH=None',
      '--gin.MODEL_SIZE=t5_1_1_tiny', '--gin.MIXTURE_OR_TASK_NAME=sst2_sample', '--gin.BATCH_SIZE=16',
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 24, 'targets': 4}", f'--gin.TRAIN_STEPS={STEPS}', '--gin.PROMPT_LENGTH=8',
      '--gin.SAVE_PERIOD=3', '--gin.LOG_PERIOD=1', '--gin.TRAIN_LIMIT=100', '--gin.loop.train.eval_datasets=[]', *more]


MODEL = ('--gin.NUM_PARTITIONS=2', '--gin.TRAIN_STEPS=6', '--gin.DROPOUT_RATE=0.0')  # masks depend on the mesh
SHARDS = ('--gin.DATA_SHARDS=2', '--gin.TRAIN_STEPS=8')  # 50 rows each: goes past an epoch
VARIANTS = {'data': (), 'model': MODEL, 'shards': SHARDS}

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
    return [(process.returncode, err) for process in both for _, err in [process.communicate(timeout=900)]]
  finally:
    for process in both:
      process.kill()
      process.communicate()


def train(folder) -> list[subprocess.Popen]:
  return processes(['-m', 'prompt_tuning.train', *flags(folder, '--gin.TRAIN_STEPS=2000')])  # will not get there


def losses(folder) -> list[float]:
  """In their order, a line that is being written left out."""
  found = {}
  path = folder / 'metrics.jsonl'
  for line in path.read_text().splitlines() if path.exists() else []:
    with contextlib.suppress(json.JSONDecodeError):
      found[json.loads(line)['step']] = json.loads(line)['loss']
  return [found[step] for step in sorted(found)]


def wait_for(both, folder, step):
  """Until there is a line of that step, and a checkpoint, which is written behind the steps."""
  until = time.monotonic() + 900
  while len(losses(folder)) < step or not any(path.name.isdigit() for path in (folder / 'checkpoints').glob('*')):
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


def position(folder):
  with contextlib.closing(run_checkpoints.RunCheckpoints(str(folder))) as checkpoints:
    return checkpoints.latest, checkpoints.about(checkpoints.latest)['position']


def test_two_processes_are_one(uninterrupted, root):
  assert cli.run('train', flags(root / 'one_data')) == 0
  assert len(losses(root / 'one_data')) == STEPS
  np.testing.assert_allclose(losses(root / 'two_data'), losses(root / 'one_data'), rtol=1e-5)
  assert position(root / 'two_data') == position(root / 'one_data')


def test_two_processes_with_a_model_axis_are_one_device(uninterrupted, root, monkeypatch):
  devices = jax.devices()[:1]
  monkeypatch.setattr(jax, 'devices', lambda: devices)
  assert cli.run('train', flags(root / 'device', '--gin.TRAIN_STEPS=6', '--gin.DROPOUT_RATE=0.0')) == 0
  assert len(losses(root / 'device')) == 6
  np.testing.assert_allclose(losses(root / 'two_model'), losses(root / 'device'), rtol=1e-5)


def test_each_host_its_shard_and_then_another_number_of_processes(uninterrupted, root):
  longer = (*SHARDS, '--gin.TRAIN_STEPS=10')
  assert position(root / 'two_shards') == (8, {'shards': [{'epoch': 1, 'offset': 14}] * 2})
  assert cli.run('train', flags(root / 'two_shards', *longer)) == 0  # goes on
  assert cli.run('train', flags(root / 'one_shards', *longer)) == 0
  assert len(losses(root / 'one_shards')) == 10
  np.testing.assert_allclose(losses(root / 'two_shards'), losses(root / 'one_shards'), rtol=1e-5)
  assert position(root / 'two_shards') == position(root / 'one_shards')


def test_killed_started_again_and_preempted_is_the_same_run(uninterrupted, root):
  folder = root / 'interrupted'
  both = train(folder)
  wait_for(both, folder, 4)  # past a checkpoint
  both[1].kill()
  began = time.monotonic()
  (code, err), (killed, _) = finish(both)
  assert (code, killed) == (1, -signal.SIGKILL), err
  assert time.monotonic() - began < 60
  said = err.splitlines()[-1]
  assert 'prompt-tuning: Process 1 of 2 (' in said
  assert 'is gone' in said
  assert f'The last checkpoint in {folder} is of step' in said

  both = train(folder)
  wait_for(both, folder, len(losses(folder)) + 1)
  both[1].send_signal(signal.SIGTERM)  # to one alone
  (code, err), (other, _) = finish(both)
  assert (code, other) == (0, 0), err
  resumed = int(re.search(rf'resuming {folder} at step (\d+)', err)[1])
  stopped = len(losses(folder))
  assert f'SIGTERM: stopped after step {stopped}' in err
  summary = json.loads((folder / 'summary.json').read_text())
  assert (summary['step'], summary['interrupted']) == (stopped, True)
  assert position(folder)[0] == stopped
  both = min(stopped, STEPS)
  assert both > resumed
  assert losses(folder)[:both] == losses(root / 'two_data')[:both]  # bit for bit
