"""The comparison script: its jobs are ones that can be begun, and what they leave becomes one table."""

import argparse
import json
import pathlib

import numpy as np
import pytest

from prompt_tuning import cli
from prompt_tuning.checkpoints import tuned
from scripts import compare_methods


@pytest.mark.parametrize('method', compare_methods.METHODS)
def test_every_method_is_a_job(method, capsys):
  flags = argparse.Namespace(base='models/t5', gin_file=[], steps=7, bindings=['--gin.BATCH_SIZE=4'])
  job = compare_methods.command(method, flags, pathlib.Path('runs') / method)
  assert job[1:3] == ['-m', 'prompt_tuning.train']
  assert cli.run('train', [*job[3:], '--dry_run']) == 0
  configuration = capsys.readouterr().out
  for line in ('TRAIN_STEPS = 7', 'BATCH_SIZE = 4', f"MODEL_DIR = 'runs/{method}'",
               f'LEARNING_RATE = {compare_methods.METHODS[method]["LEARNING_RATE"]}'):
    assert line in configuration.splitlines()


def test_the_table(tmp_path, monkeypatch, capsys):
  """Of jobs that are not run: each leaves a summary, and 6 numbers of the 8 that it has trained."""

  def run(job, check):
    assert check
    given = dict(flag.removeprefix('--gin.').split('=', 1) for flag in job if flag.startswith('--gin.'))
    folder = pathlib.Path(given['MODEL_DIR'])
    before = {'e2e': {'bleu': 0.25}} if given['EVAL_INITIAL'] == 'True' else None
    (folder / 'prompts').mkdir(parents=True)
    (folder / 'summary.json').write_text(json.dumps({
        'metrics_before': before, 'metrics': {'e2e': {'bleu': 0.75}}, 'trainable_bytes': 32, 'train_seconds': 1.6}))
    tuned.save_safetensors(
        folder / 'prompts' / 'best.safetensors', tuned.Tuned('prompt', {tuned.PROMPT: np.ones((2, 3), np.float32)}))

  monkeypatch.setattr(compare_methods.subprocess, 'run', run)
  arguments = ['--base', 'models/t5', '--out', str(tmp_path), '--methods', 'prompt', 'full', '--gin.BATCH_SIZE=4']
  assert compare_methods.main(arguments) == 0
  *table, last = capsys.readouterr().out.splitlines()
  tuned_row = {'trained': 8, 'kept': 6, 'seconds': 2, 'bleu': 0.75}
  untuned = {'trained': 0, 'kept': 0, 'seconds': 0, 'bleu': 0.25}
  assert json.loads(last) == {'prompt': tuned_row, 'untuned': untuned, 'full': tuned_row}
  assert [line.split() for line in table] == [
      ['trained', 'kept', 'seconds', 'bleu'], ['prompt', '8', '6', '2', '0.7500'],
      ['untuned', '0', '0', '0', '0.2500'], ['full', '8', '6', '2', '0.7500']]


def test_a_flag_that_there_is_not(capsys):
  with pytest.raises(SystemExit):
    compare_methods.main(['--base', 'models/t5', '--rate=1'])
  assert 'unknown: --rate=1; besides the flags, only --gin.NAME=VALUE' in capsys.readouterr().err
