"""The inference and evaluation jobs, on a random base: files in, files out, and they agree with the trainer."""

import json

import gin
import numpy as np
import pytest

from prompt_tuning import cli, decoding, loading
from prompt_tuning.interactive import PromptedModel
from prompt_tuning.methods import finished
from prompt_tuning.methods.prefix import Prefix
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.train import data, evaluate, infer
from tests import models

pytestmark = pytest.mark.usefixtures('compile_once')

BACKBONE = loading.Backbone('t5_1_1_tiny')
LENGTHS = {'inputs': 32, 'targets': 4}
DATASET = data.Dataset('sst2_sample', LENGTHS, 'validation', batch_size=4, shuffle=False, limit=6)


@pytest.fixture(scope='module')
def prompt(tmp_path_factory):
  path = tmp_path_factory.mktemp('prompt') / 'prompt.npy'
  np.save(path, np.random.default_rng(0).standard_normal((3, 64), np.float32))
  return str(path)


def job(folder, prompt, **kwargs):
  """Runs the job; the rows it wrote."""
  given = dict(
      output_dir=str(folder / 'out'), initial_checkpoint_path=None, backbone=BACKBONE,
      method=None if prompt is None else finished.load(prompt),
      partitioner=models.one_device(), batch_size=2, max_length=4)
  return infer.infer(**{**given, **kwargs})


def rows(folder, name) -> list[dict]:
  return [json.loads(line) for line in (folder / 'out' / f'{name}-predict.jsonl').read_text().splitlines()]


def test_a_text_file(tmp_path, prompt):
  (tmp_path / 'a.txt').write_text('first line\n\nsecond, a longer line\nthird\n')
  assert job(tmp_path, prompt, input_file=str(tmp_path / 'a.txt')) == {'predictions': 3}
  found = rows(tmp_path, 'a')
  assert [row['inputs'] for row in found] == ['first line', 'second, a longer line', 'third']
  assert all(row.keys() == {'inputs', 'prediction', 'score'} for row in found)
  assert all(row['score'] < 0 for row in found)


def test_jsonl_keeps_other_fields_and_scores_targets(tmp_path, prompt):
  lines = [{'inputs': 'one', 'id': 7, 'targets': 'positive'}, {'inputs': 'two', 'note': 'ü'},
           {'inputs': 'three', 'targets': 'negative'}]
  path = tmp_path / 'b.jsonl'
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  job(tmp_path, prompt, input_file=str(path))
  found = rows(tmp_path, 'b')
  assert [{k: row[k] for k in line} for row, line in zip(found, lines, strict=True)] == lines
  assert [('target_score' in row) for row in found] == [True, False, True]
  assert found[0]['target_score'] < 0


@pytest.mark.parametrize(('line', 'message'), [
    ('{"inputs": "x"', r'c.jsonl, line 3: not JSON'),
    ('{"input": "x"}', r'c.jsonl, line 3: no "inputs" text'),
    ('["x"]', r'c.jsonl, line 3: no "inputs" text'),
])
def test_a_malformed_line_is_named_and_the_good_ones_are_kept(tmp_path, prompt, line, message):
  path = tmp_path / 'c.jsonl'
  path.write_text('{"inputs": "one"}\n{"inputs": "two"}\n' + line + '\n{"inputs": "four"}\n')
  with pytest.raises(infer.InputError, match=message):
    job(tmp_path, prompt, input_file=str(path))
  assert [row['inputs'] for row in rows(tmp_path, 'c')] == ['one', 'two']


GPT2 = dict(
    method=Prefix(length=2), max_length=4,
    backbone=loading.Backbone('gpt2_tiny', tokenizer=str(models.GOLDENS / 'tokenizers' / 'gpt2')))


@pytest.mark.parametrize(('text', 'message'), [
    (' ', r'e.jsonl, line 2: it is empty'),
    ('name ' * 300, r'e.jsonl, line 2: it has \d+ tokens, but the model has positions for 250 if 4 are to be decoded'),
])
def test_a_source_that_cannot_be_read_is_named_and_what_was_decoded_is_kept(tmp_path, text, message):
  path = tmp_path / 'e.jsonl'
  path.write_text('{"inputs": "one"}\n' + json.dumps({'inputs': text}) + '\n')
  with pytest.raises(infer.InputError, match=message):
    job(tmp_path, None, input_file=str(path), **GPT2)
  assert [row['inputs'] for row in rows(tmp_path, 'e')] == ['one']


def test_results_are_on_disk_before_the_end(tmp_path, prompt, monkeypatch):
  """Batches that are done are kept when the next one breaks the job."""
  path = tmp_path / 'f.txt'
  path.write_text('\n'.join(f'sentence {i}' for i in range(40)))
  decode = PromptedModel.decode

  def breaks(self, texts, *args, first=0, **kwargs):
    if first:
      raise RuntimeError('the machine is gone')
    return decode(self, texts, *args, first=first, **kwargs)

  monkeypatch.setattr(PromptedModel, 'decode', breaks)
  with pytest.raises(RuntimeError, match='gone'):
    job(tmp_path, prompt, input_file=str(path))
  partial = tmp_path / 'out' / 'f-predict.jsonl.partial'
  assert [json.loads(line)['inputs'] for line in partial.read_text().splitlines()] == [
      f'sentence {i}' for i in range(16)]


def test_samples_depend_on_nothing_but_their_number(tmp_path):
  sampling = decoding.Sampling(samples=3, top_k=50)
  lines = [f'name : {word}' for word in ('one', 'a longer name of a place', 'two')]
  (tmp_path / 'g.txt').write_text('\n'.join(lines))
  job(tmp_path, None, input_file=str(tmp_path / 'g.txt'), decoder=sampling, **GPT2)
  found = rows(tmp_path, 'g')
  assert all(len(row['predictions']) == len(row['scores']) == 3 for row in found)
  assert len({text for row in found for text in row['predictions']}) > 3
  job(tmp_path, None, input_file=str(tmp_path / 'g.txt'), decoder=sampling, **{**GPT2, 'batch_size': 4})
  again = rows(tmp_path, 'g')
  assert [row['predictions'] for row in again] == [row['predictions'] for row in found]


def test_a_malformed_line_is_exit_code_1(tmp_path, prompt, capsys):
  path = tmp_path / 'd.jsonl'
  path.write_text('{"inputs": "one"}\nnot json\n')
  gin.clear_config()
  code = cli.main([
      'infer', '--gin_file=models/t5.gin', '--gin_file=runs/infer.gin', '--gin.INITIAL_CHECKPOINT_PATH=None',
      '--gin.MODEL_SIZE=t5_1_1_tiny', f'--gin.CHECKPOINT_PATH={prompt}', f'--gin.INPUT_FILE={path}',
      f'--gin.INFER_OUTPUT_DIR={tmp_path / "out"}', '--gin.BATCH_SIZE=8', '--gin.MAX_DECODE_LENGTH=4'])
  gin.clear_config()
  assert code == 1
  err = capsys.readouterr().err
  assert 'd.jsonl, line 2: not JSON' in err
  assert 'Traceback' not in err
  assert len(rows(tmp_path, 'd')) == 1


def test_what_to_read_is_one_thing(tmp_path, prompt):
  with pytest.raises(ValueError, match='either INPUT_FILE or MIXTURE_OR_TASK_NAME'):
    job(tmp_path, prompt)
  with pytest.raises(ValueError, match='either INPUT_FILE or MIXTURE_OR_TASK_NAME'):
    job(tmp_path, prompt, input_file='a', dataset=DATASET)


def test_no_such_file(tmp_path, prompt):
  with pytest.raises(FileNotFoundError, match='INPUT_FILE=nowhere.txt: no such file'):
    job(tmp_path, prompt, input_file='nowhere.txt')


def test_a_task_and_the_evaluation_job_agree_with_the_trainers_evaluator(tmp_path, prompt):
  job(tmp_path, prompt, dataset=DATASET)
  predicted = rows(tmp_path, 'sst2_sample')
  assert len(predicted) == 6
  assert {row['targets'] for row in predicted} <= {'positive', 'negative'}

  metrics = evaluate.evaluate(
      output_dir=str(tmp_path / 'eval'), initial_checkpoint_path=None, method=finished.load(prompt),
      eval_datasets=[DATASET], backbone=BACKBONE, partitioner=models.one_device())
  written = json.loads((tmp_path / 'eval' / 'metrics.json').read_text())
  assert written['sst2_sample'] == metrics['sst2_sample']
  lines = [json.loads(line) for line in (tmp_path / 'eval' / 'sst2_sample.jsonl').read_text().splitlines()]
  assert [line['input'] for line in lines] == [row['inputs'] for row in predicted]
  assert [line['target'] for line in lines] == [row['targets'] for row in predicted]

  # What the trainer does, with the prompt as its trainable.
  method = Prompt(length=3)
  loaded = loading.load(None, method, BACKBONE, models.one_device())
  trainable = {'prompt': {'embedding': np.load(prompt, allow_pickle=False)}}
  by_trainer, _ = evaluate.Evaluator(loaded, DATASET)(trainable)
  assert by_trainer == metrics['sst2_sample']
