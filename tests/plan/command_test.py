"""`prompt-tuning plan` as a user runs it: a process with as many simulated devices as asked for."""

import json

import pytest

from prompt_tuning import cli

FLAGS = ['--gin_file=models/t5.gin', '--gin_file=methods/prompt.gin', '--gin_file=runs/train.gin',
         '--gin.MODEL_SIZE=t5_1_1_tiny', "--gin.TASK_FEATURE_LENGTHS={'inputs': 12, 'targets': 4}",
         '--gin.BATCH_SIZE=6']


def test_a_plan(tmp_path, capfd):
  file = tmp_path / 'plan.json'
  assert cli.run('plan', [*FLAGS, '--devices=cpu:3', f'--output={file}']) == 0
  output = capfd.readouterr().out
  found = json.loads(output.splitlines()[-1])
  assert found == json.loads(file.read_text())
  assert found['mesh'] == {'data': 3, 'model': 1}
  assert set(found) == {'job', 'devices', 'count', 'mesh', 'dtype', 'fits', 'programs', 'suggestions'}
  (step,) = found['programs']
  assert {'memory', 'peak', 'usable', 'fits', 'flops', 'traffic', 'collectives', 'times', 'bound', 'seconds',
          'utilisation', 'examples_per_second', 'checkpoint', 'compile_seconds'} <= set(step)
  assert 'train step, per device' in output


@pytest.mark.parametrize(('flags', 'message'), [
    (['--devices=v9:4'], 'Kinds: v4, v5e'),
    (['--gin.BATCH_SIZ=6'], 'BATCH_SIZ is set but nothing uses it. Did you mean BATCH_SIZE')])
def test_bad_flags(flags, message, capfd):
  assert cli.run('plan', [*FLAGS, '--dry_run', *flags]) == 1
  *_, last = capfd.readouterr().err.splitlines()  # behind what importing TensorFlow may say
  assert last.startswith('prompt-tuning plan: ')
  assert message in last


def test_dry_run_shows_the_configuration_with_what_a_plan_does_not_need_filled_in(capfd):
  assert cli.run('plan', [*FLAGS, '--dry_run']) == 0
  assert "MODEL_DIR = 'plan'" in capfd.readouterr().out
