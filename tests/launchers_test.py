"""The launchers of scripts/: what they start, with stand-ins for gcloud, srun and the job itself."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

SCRIPTS = pathlib.Path(__file__).parent.parent / 'scripts'
LAUNCHERS = sorted(SCRIPTS.glob('launch_*.sh'))
RECORD = 'printf "%s\\n" "$(basename "$0")" "$@" >> "$RECORDS"\n'
FLAGS = ['train', "--gin.TASK_FEATURE_LENGTHS={'inputs': 24, 'targets': 4}", '--gin.MODEL_DIR=a b']


@pytest.fixture
def stage(tmp_path):
  """`make(name, script)` puts a program on the PATH; RECORD in it notes what it was started with."""
  environment = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'RECORDS': str(tmp_path / 'records')}

  class Stage:
    folder = tmp_path

    def make(self, name, script):
      (tmp_path / name).write_text(f'#!/usr/bin/env bash\n{script}')
      (tmp_path / name).chmod(0o755)

    def start(self, launcher, *arguments, **more):
      return subprocess.Popen(
          ['bash', SCRIPTS / f'launch_{launcher}.sh', *arguments], env={**environment, **more}, cwd=tmp_path,
          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, launcher, *arguments, **more):
      process = self.start(launcher, *arguments, **more)
      out, err = process.communicate(timeout=60)
      return process.returncode, out, err

    @property
    def records(self):
      return (tmp_path / 'records').read_text().splitlines() if (tmp_path / 'records').exists() else []

    def wait_for(self, text, times=1):
      until = time.monotonic() + 30
      while self.records.count(text) < times:
        assert time.monotonic() < until, self.records
        time.sleep(0.05)

  return Stage()


@pytest.mark.parametrize('launcher', LAUNCHERS, ids=lambda path: path.stem)
def test_help_and_syntax(launcher):
  assert subprocess.run(['bash', '-n', launcher], check=False).returncode == 0
  shown = subprocess.run(['bash', launcher, '--help'], check=False, capture_output=True, text=True)
  assert shown.returncode == 0
  assert f'{launcher.name} ' in shown.stdout
  assert 'COMMAND [FLAGS...]' in shown.stdout
  assert subprocess.run(['bash', launcher], check=False, capture_output=True).returncode == 2


def test_tpu_pod(stage):
  stage.make('gcloud', RECORD)
  stage.make('prompt-tuning', RECORD)
  assert stage.run('tpu_pod', 'pod', 'zone-a', *FLAGS, SETUP='. venv/bin/activate', REMOTE_DIR='a folder')[0] == 0
  *given, remote = stage.records
  assert given == ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'pod', '--zone=zone-a', '--worker=all']
  assert remote.startswith('--command=cd a\\ folder && . venv/bin/activate && exec prompt-tuning train ')
  (stage.folder / 'records').unlink()
  (stage.folder / 'a folder/venv/bin').mkdir(parents=True)
  (stage.folder / 'a folder/venv/bin/activate').touch()
  environment = {**os.environ, 'PATH': f'{stage.folder}:{os.environ["PATH"]}', 'RECORDS': str(stage.folder / 'records')}
  subprocess.run(['bash', '-c', remote.removeprefix('--command=')], check=True, env=environment, cwd=stage.folder)
  assert stage.records == ['prompt-tuning', *FLAGS, '--multiprocess']  # quoted for the shell over there


def test_slurm_starts_a_process_a_gpu_and_is_queued_again_when_preempted(stage):
  stage.make('srun', RECORD + 'while [ "$1" != bash ]; do shift; done; exec "$@"\n')
  stage.make('scontrol', RECORD)
  stage.make('prompt-tuning', RECORD + 'exit "${CODE:-0}"\n')
  assert stage.run('slurm', *FLAGS, SLURM_JOB_ID='7', SLURM_GPUS_ON_NODE='4', CODE='3')[0] == 3
  assert stage.records[:4] == ['srun', '--ntasks-per-node=4', '--kill-on-bad-exit=1', 'bash']
  assert stage.records[-5:] == ['prompt-tuning', *FLAGS, '--multiprocess']
  assert 'scontrol' not in stage.records
  code, _, err = stage.run('slurm', *FLAGS)
  assert code != 0
  assert 'start this with sbatch' in err

  stage.make('prompt-tuning', "trap 'echo stopped >> \"$RECORDS\"; exit 0' TERM\necho ready >> $RECORDS\n"
             'while true; do sleep 0.05; done\n')
  process = stage.start('slurm', *FLAGS, SLURM_JOB_ID='7')
  stage.wait_for('ready')
  process.send_signal(signal.SIGTERM)  # as --signal=B:TERM@120 does
  process.communicate(timeout=30)
  assert process.returncode == 0
  assert stage.records[-4:] == ['stopped', 'scontrol', 'requeue', '7']


def test_a_gpu_node_starts_again_what_was_killed_and_stops_when_told(stage):
  job = RECORD + 'n=$(grep -c ^prompt-tuning "$RECORDS"); '
  stage.make('prompt-tuning', job + '[ $n -gt 2 ] || kill -ABRT $$; exit 5\n')
  code, _, err = stage.run('gpu_node', *FLAGS)
  assert code == 5  # an error of its own is not tried again
  assert stage.records == ['prompt-tuning', *FLAGS] * 3
  assert 'killed by signal 6; starting again (2 of 3)' in err
  (stage.folder / 'records').unlink()
  stage.make('prompt-tuning', RECORD + 'kill -KILL $$\n')
  assert stage.run('gpu_node', 'train', RETRIES='1')[0] == 137
  assert stage.records == ['prompt-tuning', 'train'] * 2
  stage.make('prompt-tuning', "trap 'exit 0' TERM\necho ready >> $RECORDS\nwhile true; do sleep 0.05; done\n")
  process = stage.start('gpu_node', 'train')
  stage.wait_for('ready')
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=30)
  assert process.returncode == 0
  assert stage.records.count('ready') == 1


def interpreter(stage, job):
  """What launch_local.sh takes for Python: the real one for -c, else `job` with the number of the process in $i."""
  stage.make('python', f'[ "$1" != -c ] || exec {sys.executable} "$@"\n' + RECORD
             + 'i="${@: -1}"; i="${i#--process_index=}"; echo "at work $XLA_FLAGS $JAX_PLATFORMS"\n' + job)


def test_local_processes_are_told_from_each_other(stage):
  interpreter(stage, 'echo "to err" >&2\n')
  code, out, err = stage.run('local', '2', *FLAGS, DEVICES_PER_PROCESS='3', XLA_FLAGS='', JAX_PLATFORMS='')
  assert code == 0
  assert sorted(out.splitlines()) == [
      f'[{i}] at work  --xla_force_host_platform_device_count=3 cpu' for i in range(2)]
  assert sorted(err.splitlines()) == ['[0] to err', '[1] to err']
  lines = stage.records
  addresses = {line for line in lines if line.startswith('--coordinator_address=127.0.0.1:')}
  assert len(addresses) == 1
  assert lines.count('--process_count=2') == 2
  assert {'--process_index=0', '--process_index=1', *FLAGS} < set(lines)
  assert stage.run('local', 'two', *FLAGS)[0] == 2


def test_local_processes_end_together(stage):
  interpreter(stage, '[ $i = 1 ] && exit 9; exec sleep 600\n')
  began = time.monotonic()
  code, _, err = stage.run('local', '3', 'train', GRACE='1')
  assert code == 9
  assert 'launch_local.sh: process 1 ended with code 9' in err
  assert time.monotonic() - began < 30
  interpreter(stage, "trap 'echo told >> $RECORDS; exit 0' TERM; echo ready >> $RECORDS\n"
              'while true; do sleep 0.05; done\n')
  process = stage.start('local', '2', 'train')
  stage.wait_for('ready', 2)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=30)
  assert process.returncode == 0
  assert stage.records.count('told') == 2
