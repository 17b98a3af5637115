"""A table from its gin file to Markdown: what is run, what is reused, what is refused, and what a cell says."""

import json
import re

import gin
import numpy as np
import pytest

from prompt_tuning import cli, gin_utils
from prompt_tuning.reproduce import command, results, runner, table
from tests import models

BASE = models.GOLDENS / 'tiny/gpt2'
TABLE = """
from __gin__ import dynamic_registration

from prompt_tuning.reproduce import table

TRAIN_ARGS = (
    'models/gpt2.gin', 'methods/prompt.gin', 'runs/train.gin', 'papers/lester2021/recipe.gin', 'TRAIN_STEPS = 2',
    'BATCH_SIZE = 8', 'EVAL_LIMIT = 8', 'EVAL_PERIOD = 1', 'DROPOUT_RATE = 0.0', "INITIAL_CHECKPOINT_PATH = '{base}'",
    'INITIALIZER = @initializers.sampled_vocabulary()', "TASK_FEATURE_LENGTHS = {{'inputs': 8, 'targets': 4}}",
    "MIXTURE_OR_TASK_NAME = 'sst2_sample'")
single/table.Part:
  axes = {{'length': {{'1': ('PROMPT_LENGTH = 1',), '2': ('PROMPT_LENGTH = 2',)}}}}
  jobs = {{'train': {{'command': 'train', 'args': %TRAIN_ARGS}}, 'test': {{'command': 'eval', 'args': (
      'models/gpt2.gin', 'runs/eval.gin', "INITIAL_CHECKPOINT_PATH = '{base}'", 'CHECKPOINT_PATH = {{train}}',
      'EVAL_LIMIT = 8', "TASK_FEATURE_LENGTHS = {{'inputs': 8, 'targets': 4}}",
      "MIXTURE_OR_TASK_NAME = 'sst2_sample'")}}}}
  measures = {{'accuracy': ('test', 'accuracy', 100), 'steps': ('train', 'steps')}}
  defaults = {{'length': '1'}}
vote/table.Part:
  axes = {{'group': {{'all': ()}}}}
  labels = {{'length': 'vote'}}
  defaults = {{'group': 'all'}}
  jobs = {{'train': {{'command': 'train', 'args': (%TRAIN_ARGS, 'PROMPT_LENGTH = 1'), 'over': ('seed',)}}, 'vote': {{
      'command': 'ensemble', 'over': ('group',), 'args': (
          'models/gpt2.gin', 'runs/ensemble.gin', "INITIAL_CHECKPOINT_PATH = '{base}'", 'CHECKPOINT_PATHS = {{train}}',
          'EVAL_LIMIT = 8', "TASK_FEATURE_LENGTHS = {{'inputs': 8, 'targets': 4}}",
          "MIXTURE_OR_TASK_NAME = 'sst2_sample'")}}}}
  measures = {{'accuracy': ('vote', 'accuracy', 100)}}
table.Table:
  title = 'Lengths'
  source = 'a test'
  parts = [@single/table.Part(){more}]
  rows = ('length',)
  seeds = (0, 1)
  paper = {{'1/accuracy': ('71.8', 'V:LO')}}
  figure = {{'x': 'length'}}
"""


@pytest.fixture(autouse=True)
def no_configuration():
  gin.clear_config()
  yield
  gin.clear_config()


def write(folder, more=''):
  path = folder / 'lengths.gin'
  path.write_text(TABLE.format(base=BASE, more=more))
  return str(path)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """(the table's file, the folder of everything), run once."""
  folder = tmp_path_factory.mktemp('table')
  gin.clear_config()
  file = write(folder)
  assert cli.main(['reproduce', file, '--out', str(folder / 'out')]) == 0
  return file, folder / 'out'


def test_a_table_has_the_mean_of_its_seeds_beside_the_papers_figure(finished):
  _, out = finished
  text = (out / 'tables/own/lengths/table.md').read_text()
  got = [json.loads((out / f'runs/own/{run}/test/metrics.json').read_text())['sst2_sample']['accuracy']
         for run in ('seed0', 'seed1')]
  assert f'{100 * np.mean(got):.1f} ± {100 * np.std(got, ddof=1):.1f} (n=2)' in text
  assert '71.8' in text
  assert 'V:LO' in text
  assert 'reproduce' in text  # the command
  for suffix in ('csv', 'tex'):
    assert (out / f'tables/own/lengths/table.{suffix}').stat().st_size
  assert (out / 'tables/own/lengths/plot.png').read_bytes().startswith(b'\x89PNG')


def test_seeds_are_trained_as_one_population_and_have_folders_of_their_own(finished):
  _, out = finished
  for run in ('seed0', 'seed1', 'length2-seed0', 'length2-seed1'):
    done = json.loads((out / f'runs/own/{run}/train.done.json').read_text())
    assert done['result']['population'] == 2
    assert done['result']['seed'] == int(run[-1])
    assert (out / f'runs/own/{run}/train/prompts/best.safetensors').exists()
  assert not np.array_equal(*(np.load(out / f'runs/own/seed{i}/train/prompts/best.npy', allow_pickle=False)
                              for i in (0, 1)))


def test_what_is_done_is_not_run_again(finished, capsys, monkeypatch):
  file, out = finished
  monkeypatch.setattr(runner, '_call', lambda command: pytest.fail(f'{command} is run again'))
  assert cli.main(['reproduce', file, '--out', str(out)]) == 0
  assert '8 runs, 8 of them done before' in capsys.readouterr().err


def test_a_command_finds_no_folder_of_its_own(tmp_path, monkeypatch):
  """A probe, and a base that is pruned, refuse a folder with something in it; also when tried again."""
  found = []

  def fails(command):
    found.append((tmp_path / 'out/runs/own/seed0/train').exists())
    raise ValueError('no')

  monkeypatch.setattr(runner, '_call', fails)
  for _ in range(2):
    cli.main(['reproduce', write(tmp_path), '--out', str(tmp_path / 'out'), '--subset', 'length=1', '--seeds', '1'])
  assert found == [False, False]


def test_a_step_can_be_run_alone(finished, capsys):
  _, out = finished
  file = out / 'runs/own/seed0/test.gin'
  assert cli.main(['eval', f'--gin_file={file}', '--dry_run']) == 0
  assert "MIXTURE_OR_TASK_NAME = 'sst2_sample'" in capsys.readouterr().out


def test_other_settings_are_refused_with_both_sides(finished, capsys):
  file, out = finished
  assert cli.main(['reproduce', file, '--out', str(out), '--gin.TRAIN_STEPS=3']) == 1
  err = capsys.readouterr().err
  assert 'seed0/train holds a run with other settings' in err
  assert '- there' in err
  assert re.search(r'^  -TRAIN_STEPS = 2$', err, re.MULTILINE)
  assert re.search(r'^  \+TRAIN_STEPS = 3$', err, re.MULTILINE)


def test_a_dry_run_shows_costs_and_runs_nothing(tmp_path, capsys):
  file = write(tmp_path)
  assert cli.main(['reproduce', file, '--out', str(tmp_path / 'out'), '--dry_run', '--subset', 'length=2']) == 0
  out = capsys.readouterr().out
  assert 'length2-seed0/train' in out
  assert '\nseed0/train' not in out
  assert '4 runs, 0 of them done' in out
  assert 'device hours' in out
  assert not (tmp_path / 'out').exists()


def test_the_vote_of_a_tables_seeds_and_runs_that_are_shared(finished, tmp_path_factory):
  """The second table finds the first's prompts."""
  _, out = finished
  folder = tmp_path_factory.mktemp('vote')
  before = (out / 'runs/own/seed0/train.done.json').stat().st_mtime_ns
  file = write(folder, ', @vote/table.Part()')
  assert cli.main(['reproduce', file, '--out', str(out), '--subset', 'length=1']) == 0
  text = (out / 'tables/own/lengths/table.md').read_text()
  accuracy = json.loads((out / 'runs/own/default/vote/metrics.json').read_text())['sst2_sample']['accuracy']
  assert re.search(rf'vote.*{100 * accuracy:.1f}', text)
  assert (out / 'runs/own/seed0/train.done.json').stat().st_mtime_ns == before


def test_a_cell_that_could_not_be_run_says_why(tmp_path, capsys):
  file = write(tmp_path)
  flags = ['reproduce', file, '--out', str(tmp_path / 'out'), '--subset', 'length=1', '--seeds', '4,']
  assert cli.main([*flags, "--gin.MIXTURE_OR_TASK_NAME='no_such_task'"]) == 1
  captured = capsys.readouterr()
  assert "There is no task or mixture 'no_such_task'" in captured.err
  assert '2 of the runs could not be run' in captured.err
  text = (tmp_path / 'out/tables/own/lengths/table.md').read_text()
  assert "There is no task or mixture 'no\\_such\\_task'" in text or "'no_such_task'" in text
  assert 'needs seed4/train, which is not done' in text


def test_what_sigterm_stopped_is_resumed(tmp_path, monkeypatch):
  file = write(tmp_path)
  flags = ['reproduce', file, '--out', str(tmp_path / 'out'), '--subset', 'length=1', '--seeds', '1', '--one_by_one']
  calls = []

  def interrupted(command):
    calls.append(command)
    return {'interrupted': True, 'step': 1}

  with monkeypatch.context() as patch:
    patch.setattr(cli, 'function', lambda path: lambda: interrupted(path))
    patch.setattr(gin_utils, 'configured', lambda f: f if not isinstance(f, type) else gin.get_configurable(f))
    with pytest.raises(runner.Interrupted):
      command.reproduce(flags[1:])
  assert len(calls) == 1
  folder = tmp_path / 'out/runs/own/seed0'
  assert (folder / 'train.gin').exists()
  assert not (folder / 'train.done.json').exists()
  assert cli.main(flags) == 0
  assert (folder / 'train.done.json').exists()


@pytest.mark.parametrize(('flags', 'message'), [
    (['lester2021/figure3aa'], 'Nearest: lester2021/figure3a'),
    ([], 'No table'),
    (['nothing.gin'], 'nothing.gin: no such file'),
    (['small/prompt_length', '--subset', 'length'], 'expected AXIS=LABEL'),
    (['small/prompt_length', '--subset', 'width=1'], "no axis 'width'; it has length, seed"),
    (['small/prompt_length', '--subset', 'length=7'], 'There is no length 7 in this table; there are 1, 5, 20, 100'),
    (['small/prompt_length', '--seeds', 'three'], 'expected how many'),
])
def test_mistakes_are_one_message(flags, message, capsys):
  assert cli.main(['reproduce', *flags]) == 1
  err = capsys.readouterr().err
  assert message in err
  assert 'Traceback' not in err


def test_every_shard_has_its_share_and_what_follows_from_it():
  step = lambda folder, *needs: table.Step('job', 'train', {}, folder, (), (), needs)
  units = [runner.Unit((step(f't{i}'),), f't{i}') for i in range(5)]
  units += [runner.Unit((step(f'e{i}', f't{i}'),), f'e{i}') for i in range(5)]
  shares = [{unit.folder for unit in runner.shard(units, f'{i}/2')} for i in (1, 2)]
  assert shares == [{'t0', 't2', 't4', 'e0', 'e2', 'e4'}, {'t1', 't3', 'e1', 'e3'}]
  for wrong in ('0/2', '3/2', '1', 'a/b'):
    with pytest.raises(ValueError, match='expected i/n'):
      runner.shard(units, wrong)


def test_numbers_of_a_training_are_those_of_its_best_evaluation(tmp_path):
  rows = [{'step': 1, 'split': 'train', 'loss': 2.0}]
  for step, accuracy, f1 in ((10, 0.80, 0.4), (20, 0.895, 0.5), (30, 0.9, 0.5), (40, 0.7, 0.5)):
    rows.append({'step': step, 'split': 'inference_eval/cb', 'accuracy': accuracy, 'mean_3class_f1': f1,
                 'legal_label_rate': 1.0})
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  (tmp_path / 'inference_eval').mkdir()
  (tmp_path / 'inference_eval/cb-30.jsonl').write_text('{"input": "a", "prediction": "b"}\n' * 9)
  found = results.read(tmp_path, 'train', {
      'step': 40, 'best_step': 30, 'train_seconds': 80.0, 'trainable_bytes': 4, 'frozen_bytes': 8})
  assert found['accuracy'] == 0.9
  assert found['score'] == pytest.approx(0.7)  # the mean of two metrics; the rate of legal labels is none
  assert (found['steps_to_1%'], found['seconds_to_1%']) == (20, 40.0)
  assert (found['sample/0/input'], found['sample/2/prediction']) == ('a', 'b')
  assert 'sample/3/input' not in found


def test_a_text_is_a_cell(tmp_path, monkeypatch):
  part = table.Part(jobs={'probe': {'command': 'probe'}}, measures={'words': ('probe', 'words/1')}, seeds=False)
  shown = table.Table('Words', 'a test', [part], rows=('task',))
  (tmp_path / 'default').mkdir()
  (tmp_path / 'default/probe.done.json').write_text(json.dumps({'result': {'words': ['good fine', 'bad | worse']}}))
  (cell,) = results.cells(shown, runner.Runner(tmp_path))
  assert (cell.text, cell.values, cell.missing) == ('bad | worse', (), '')
