"""The command line: help, dry runs, and an error that says what to do for every mistake in a configuration."""

import gin
import pytest

from prompt_tuning import cli, gin_utils

FILES = ['--gin_file=models/t5.gin', '--gin_file=methods/prompt.gin', '--gin_file=runs/train.gin']
MACROS = {
    'MODEL_DIR': 'runs/a', 'INITIAL_CHECKPOINT_PATH': 'None', 'MODEL_SIZE': 't5_1_1_tiny',
    'MIXTURE_OR_TASK_NAME': 'sst2_sample', 'TASK_FEATURE_LENGTHS': "{'inputs': 8, 'targets': 4}", 'TRAIN_STEPS': '2'}


@pytest.fixture(autouse=True)
def no_configuration():
  gin.clear_config()
  yield
  gin.clear_config()


def arguments(without=(), **macros) -> list[str]:
  given = {name: value for name, value in {**MACROS, **macros}.items() if name not in without}
  return [*FILES, *(f'--gin.{name}={value}' for name, value in given.items())]


def failure(capsys, *argv, command='train') -> str:
  """Runs a command that must fail with exit code 1 and one message, no traceback; returns the message."""
  assert cli.main([command, *argv]) == 1
  err = capsys.readouterr().err
  assert 'Traceback' not in err
  return err


@pytest.mark.parametrize('command', [None, *cli.COMMANDS])
def test_help(capsys, command):
  with pytest.raises(SystemExit) as stop:
    cli.main([*([command] if command else []), '--help'])
  assert stop.value.code == 0
  out = capsys.readouterr().out
  wanted = ['--gin_file', '--gin.NAME', '--gin_bindings', '--gin_search_paths', '--tfds_data_dir', '--dry_run']
  for word in wanted if command else cli.COMMANDS:
    assert word in out
  if command:
    assert cli.COMMANDS[command][1] in out


def test_an_unknown_command(capsys):
  with pytest.raises(SystemExit) as stop:
    cli.main(['tune'])
  assert stop.value.code == 2
  assert 'train' in capsys.readouterr().err


def test_dry_run_prints_the_configuration(capsys):
  assert cli.main(['train', *arguments(), '--gin_bindings=BATCH_SIZE = 24', '--dry_run']) == 0
  out = capsys.readouterr().out
  assert "MODEL_DIR = 'runs/a'" in out  # a value that is no literal is text
  assert 'INITIAL_CHECKPOINT_PATH = None' in out
  assert 'BATCH_SIZE = 24' in out


@pytest.mark.parametrize(('extra', 'messages'), [
    (['--gin.BATCHSIZE=3'], ['BATCHSIZE is set but nothing uses it', 'BATCH_SIZE']),
    (['--gin.optim.adamw.beta1=0.9'], ['adamw', 'beta1']),
    (['--gin.loop.trian.train_steps=3'], ['loop.trian']),
    (['--gin_bindings=EVAL_PERIOD ='], ['EVAL_PERIOD']),
    (['--gin.BATCH_SIZE'], ['--gin.BATCH_SIZE', '--gin.NAME=VALUE']),
    (['--gin_file=runs/trian.gin'], ['runs/trian.gin', 'runs/train.gin', 'methods/prompt.gin']),
])
def test_mistakes_are_named(capsys, extra, messages):
  said = failure(capsys, *arguments(), *extra, '--dry_run')
  for message in messages:
    assert message in said


def test_an_unknown_parameter_suggests_near_ones(capsys):
  said = failure(capsys, *arguments(), '--gin.loop.train.train_step=3', '--dry_run')
  assert 'Did you mean' in said
  assert 'train.train_steps' in said


@pytest.mark.parametrize('name', ['MODEL_DIR', 'TASK_FEATURE_LENGTHS', 'TRAIN_STEPS'])
def test_a_missing_macro_is_named(capsys, name):
  said = failure(capsys, *arguments(without=[name]), '--dry_run')
  assert f'No value for {name}.' in said
  assert f'--gin.{name}=VALUE' in said


def test_no_gin_file_lists_those_to_begin_with(capsys):
  said = failure(capsys)
  for file in ('runs/train.gin', 'runs/eval.gin', 'runs/infer.gin'):
    assert file in said


def test_search_paths_come_before_our_own(capsys, tmp_path):
  (tmp_path / 'mine.gin').write_text('BATCH_SIZE = 17\n')
  argv = [*arguments(), '--gin_file=mine.gin', f'--gin_search_paths={tmp_path}', '--dry_run']
  assert cli.main(['train', *argv]) == 0
  assert 'BATCH_SIZE = 17' in capsys.readouterr().out


def test_a_model_dir_that_cannot_be_written(capsys, tmp_path):
  (tmp_path / 'file').write_text('')
  said = failure(capsys, *arguments(MODEL_DIR=str(tmp_path / 'file' / 'run')))
  assert 'MODEL_DIR' in said
  assert 'choose another folder' in said


def test_a_base_that_is_not_there(capsys, tmp_path):
  said = failure(capsys, *arguments(
      MODEL_DIR=str(tmp_path), INITIAL_CHECKPOINT_PATH=str(tmp_path / 'nowhere'), BATCH_SIZE='8', EVAL_BATCH_SIZE='8'))
  assert 'nowhere does not exist' in said


def test_the_configuration_in_use_is_saved_and_an_earlier_one_kept(tmp_path):
  gin_utils.parse(['models/t5.gin'], [], '')
  cli.save_config(str(tmp_path))
  first = (tmp_path / 'config.gin').read_text()
  cli.save_config(str(tmp_path))
  assert [path.name for path in tmp_path.iterdir()] == ['config.gin']  # nothing changed, nothing kept
  (tmp_path / 'config.gin').write_text('# another\n')
  cli.save_config(str(tmp_path))
  assert (tmp_path / 'config.gin').read_text() == first
  (tmp_path / 'config.gin').write_text('# a third\n')
  cli.save_config(str(tmp_path))  # within the same second
  kept = {path.name: path.read_text() for path in tmp_path.iterdir() if path.name != 'config.gin'}
  assert kept == {'config.1.gin': '# another\n', 'config.2.gin': '# a third\n'}
