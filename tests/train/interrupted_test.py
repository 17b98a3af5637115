"""Runs that are killed, preempted, or out of disk, as processes of their own: what is left can be continued."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from prompt_tuning.checkpoints import run as run_checkpoints

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 40


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  return tmp_path_factory.mktemp('runs')


def start(folder, *, steps=STEPS, limit: int | None = None) -> subprocess.Popen:
  """A training process on one device, a checkpoint every 5 steps and a line of metrics every step.

  No file that it writes may be larger than `limit` kB.
  """
  environment = {
      **os.environ, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu',
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5', 'JAX_COMPILATION_CACHE_DIR': str(folder.parent / 'compiled')}
  command = [
      sys.executable, '-m', 'prompt_tuning.train', '--gin_file=models/t5.gin', '--gin_file=methods/prompt.gin',
      '--gin_file=runs/train.gin', '--gin_file=papers/lester2021/recipe.gin', f'--gin.MODEL_DIR={folder}',
      '--gin.INITIAL_CHECKPOINT_PATH=None', '--gin.MODEL_SIZE=t5_1_1_tiny', '--gin.MIXTURE_OR_TASK_NAME=sst2_sample',
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 24, 'targets': 4}", f'--gin.TRAIN_STEPS={steps}', '--gin.BATCH_SIZE=8',
      '--gin.PROMPT_LENGTH=100', '--gin.SAVE_PERIOD=5', '--gin.LOG_PERIOD=1', '--gin.loop.train.eval_datasets=[]']
  if limit is not None:  # Python ignores SIGXFSZ: writing fails, as on a full disk
    command = ['bash', '-c', f'ulimit -f {limit}; exec "$@"', 'bash', *command]
  return subprocess.Popen(
      command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process) -> tuple[int, str]:
  """(exit code, stderr)"""
  try:
    _, err = process.communicate(timeout=150)
  except subprocess.TimeoutExpired:
    process.kill()
    process.communicate()
    raise
  return process.returncode, err


def losses(folder) -> dict[int, float]:
  """Loss by step; a line that is being written is left out."""
  found = {}
  path = folder / 'metrics.jsonl'
  for line in path.read_text().splitlines() if path.exists() else []:
    with contextlib.suppress(json.JSONDecodeError):
      found[json.loads(line)['step']] = json.loads(line)['loss']
  return found


def wait_for(process, folder, step):
  """Returns when `step` is done."""
  until = time.monotonic() + 150
  while max(losses(folder), default=0) < step:
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < until, 'no progress'
    time.sleep(0.02)


@pytest.fixture(scope='module')
def uninterrupted(runs):
  folder = runs / 'uninterrupted'
  code, err = finish(start(folder))
  assert code == 0, err
  assert (folder / 'config.gin').read_text().count('TRAIN_STEPS = ') == 1
  assert sorted(losses(folder)) == list(range(1, STEPS + 1))
  return folder


def test_sigterm_then_kill_then_the_end_is_the_same_run(runs, uninterrupted):
  folder = runs / 'interrupted'
  process = start(folder)
  wait_for(process, folder, 7)
  process.send_signal(signal.SIGTERM)
  code, err = finish(process)
  assert code == 0, err
  assert 'SIGTERM: stopped after step' in err
  stopped = max(losses(folder))
  assert 7 <= stopped < STEPS
  with contextlib.closing(run_checkpoints.RunCheckpoints(str(folder))) as checkpoints:
    assert checkpoints.latest == stopped

  process = start(folder)
  wait_for(process, folder, min(stopped + 8, STEPS - 2))  # past another checkpoint
  process.kill()
  code, err = finish(process)
  assert code == -signal.SIGKILL
  assert f'resuming {folder} at step {stopped}' in err

  code, err = finish(start(folder))
  assert code == 0, err
  assert 'resuming' in err
  assert losses(folder) == losses(uninterrupted)  # bit for bit
  prompts = [np.load(f / 'prompts' / f'prompt_{STEPS}.npy', allow_pickle=False) for f in (folder, uninterrupted)]
  np.testing.assert_array_equal(*prompts)


def test_a_full_disk_is_one_message_and_the_last_checkpoint_stays(runs, uninterrupted):
  # A prompt of 100 x 64 has 25 kB; files may have 16.
  code, err = finish(start(uninterrupted, steps=STEPS + 10, limit=16))
  assert code == 1, err
  said = err.splitlines()[-1]  # TensorStore's own threads may have said something before
  assert said.startswith(f'prompt-tuning train: The checkpoint of step {STEPS + 5}')
  assert 'could not be written' in said
  assert f'that of step {STEPS} is whole' in said
  with contextlib.closing(run_checkpoints.RunCheckpoints(str(uninterrupted))) as checkpoints:
    assert checkpoints.latest == STEPS
    assert checkpoints.about(STEPS)['position']
  code, err = finish(start(uninterrupted, steps=STEPS + 1))
  assert code == 0, err
  assert f'resuming {uninterrupted} at step {STEPS}' in err
