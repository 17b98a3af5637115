"""The benchmark runs and reports what it promises. No time is ever asserted: it would be the machine's."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

from prompt_tuning import trees
from prompt_tuning.backbones import t5
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.prompted import Prompted
from tests import models

BENCH = pathlib.Path(__file__).parents[1] / 'scripts' / 'bench'


@pytest.fixture
def train_step(monkeypatch):
  """The script as a module."""
  monkeypatch.syspath_prepend(BENCH)
  import train_step
  yield train_step
  for name in ('train_step', 'decode', 'probe', 'workers'):
    sys.modules.pop(name, None)


def run(*flags: str, script: str = 'train_step.py') -> subprocess.CompletedProcess:
  return subprocess.run(
      [sys.executable, str(BENCH / script), *flags], capture_output=True, text=True, check=False)


def test_one_row():
  done = run('--rows=tiny', '--steps=2', '--param_dtype=bfloat16')
  assert done.returncode == 0, done.stderr
  *text, last = done.stdout.splitlines()
  assert text[0].startswith('row   contender  median s')
  assert text[1].startswith('tiny  ours ')
  report = json.loads(last)
  assert report.keys() == {
      'benchmark', 'cpu', 'load_average_before', 'allocator', 'gemm', 'steps', 'dropout', 'rows'}
  row = report['rows']['tiny']
  ours = row['contenders']['ours']
  assert ours.keys() == {
      'platform', 'dtype', 'param_dtype', 'scan', 'versions', 'trainable_parameters', 'frozen_parameters',
      'frozen_bytes', 'build_seconds',
      'lower_seconds', 'compile_seconds', 'flops_xla', 'loss_first', 'losses', 'step_seconds',
      'step_seconds_median', 'step_seconds_min', 'peak_memory_gb', 'flops_per_second',
      'gemm_flops_per_second', 'utilisation', 'ratio', 'paired_ratio'}
  assert len(ours['step_seconds']) == len(ours['losses']) == 2
  assert ours['trainable_parameters'] == row['P'] * models.TINY.d_model
  assert ours['frozen_bytes'] == 2 * ours['frozen_parameters']
  assert 1.0 < ours['flops_xla'] / row['flops_analytic'] < 1.2  # XLA sees attention scores too


def test_analytic_flops_are_those_of_every_kernel(train_step):
  row = train_step.Row('t5_1_1_tiny', B=1, S=1, P=0, T=1)  # every parameter sees one token
  for config in (models.TINY, dataclasses.replace(models.TINY, tied_embeddings=True)):
    kernels = trees.flatten(Prompted(t5.T5(config), Prompt()).abstract_frozen())
    size = sum(x.value.size for path, x in kernels.items() if path.endswith('/kernel'))
    if config.tied_embeddings:
      size += config.vocab_size * config.d_model
    assert train_step.analytic_flops(config, row) == 4 * size


@pytest.mark.parametrize(('change', 'message'), [
    ({'losses': [float('nan')]}, 'The loss of peft is not finite'),
    ({'platform': 'gpu'}, 'set JAX_PLATFORMS=cpu'),
    ({'trainable_parameters': 5}, 'expected P x D = 6'),
    ({'frozen_parameters': 8}, 'must be the same model')])
def test_contenders_that_do_other_work_are_refused(train_step, change, message):
  sound = {
      'losses': [1.0], 'loss_first': 1.0, 'platform': 'cpu', 'trainable_parameters': 6,
      'frozen_parameters': 7}
  train_step._check({'ours': sound, 'peft': sound}, 6)
  with pytest.raises(RuntimeError, match=message):
    train_step._check({'ours': sound, 'peft': {**sound, **change}}, 6)


def test_a_worker_that_cannot_start_or_ends_is_named(train_step):
  with pytest.raises(RuntimeError, match="Cannot start the worker 'peft float32' with 'no/such/python'"):
    train_step.Worker('peft float32', ['no/such/python'])
  with train_step.Worker('ours', [sys.executable, '-c', 'raise SystemExit(3)']) as worker:
    with pytest.raises(RuntimeError, match="'ours' ended with exit code 3 when asked to build"):
      worker.ask('build', {})


def test_prints_of_a_worker_do_not_reach_its_replies(train_step):
  code = (f'import sys; sys.path.insert(0, {str(BENCH)!r}); import workers\n'
          'def build(settings):\n'
          '  print("noise")\n'
          '  return workers.Contender(lambda: 2.5, None, {"given": settings})\n'
          'workers.serve(build)')
  with train_step.Worker('fake', [sys.executable, '-c', code]) as worker:
    built = worker.ask('build', {'a': 1})
    assert built['given'] == {'a': 1}
    assert built['loss_first'] == 2.5
    reply = worker.ask('step', 3)
    assert reply['losses'] == [2.5] * 3
    assert len(reply['seconds']) == 3
    assert reply['peak_memory_gb'] > 0


def test_a_wrong_row_lists_the_rows():
  done = run('--rows=huge')
  assert done.returncode == 2
  assert "there is no 'huge'; choose of small20, small100, base100, tiny, small20_prefix" in done.stderr


def test_interchange(tmp_path):
  done = subprocess.run(
      [sys.executable, str(BENCH / 'interchange.py'), '--size=t5_1_1_tiny', '--dtype=bfloat16', '--repeat=1',
       f'--folder={tmp_path}'], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  *text, last = done.stdout.splitlines()
  assert [line.split('  ')[0] for line in text[1:-1]] == [
      'disk huggingface', 'load huggingface', 'disk t5x', 'load t5x', 'convert huggingface t5x',
      'convert t5x huggingface']
  report = json.loads(last)
  assert report['bytes'] == 2 * report['parameters']
  loaded = report['load huggingface']
  assert loaded['of_disk'] == pytest.approx(report['disk huggingface']['seconds'] / loaded['seconds'])
  run_ = loaded['runs'][0]
  assert run_['result_mb'] >= report['bytes'] / 1e6  # norms are whole on each of the devices
  assert loaded['beyond_result_mb'] == pytest.approx(run_['peak_mb'] - run_['result_mb'])
  assert list(tmp_path.iterdir()) == []


def test_decode():
  done = run('--rows=tiny', '--turns=2', script='decode.py')
  assert done.returncode == 0, done.stderr
  *text, last = done.stdout.splitlines()
  assert text[0].split()[:2] == ['row', 'contender']
  assert text[1].split()[:2] == ['tiny', 'ours']
  row = json.loads(last)['rows']['tiny']
  ours = row['contenders']['ours']
  assert ours['tokens'] == row['B'] * row['T']
  assert ours['tokens_per_second'] == ours['tokens'] / min(ours['seconds'])
  assert len(ours['seconds']) == 2
  assert ours['speed_up'] == ours['paired'] == 1.0


@pytest.mark.parametrize(('change', 'message'), [
    ({'tokens': 7}, 'other made 7 tokens; expected B x T = 128'),
    ({'frozen_parameters': 8}, 'frozen_parameters: 8 of other, 5 of ours')])
def test_decoders_that_do_other_work_are_refused(train_step, monkeypatch, change, message):
  import decode
  monkeypatch.setattr(decode, 'PAUSE', 0)

  class Fake:
    """A worker that answers at once."""

    def __init__(self, name, command):
      del command
      self.other = change if name == 'other' else {}

    def ask(self, request, value):
      del value
      known = {'tokens': 128, 'frozen_parameters': 5, **self.other}
      if request == 'build':
        return {'platform': 'cpu', 'frozen_parameters': known['frozen_parameters']}
      return {'seconds': [1.0], 'losses': [known['tokens']], 'peak_memory_gb': 1.0}

    def __enter__(self):
      return self

    def __exit__(self, *_):
      pass

  monkeypatch.setattr(decode, 'Worker', Fake)
  row = decode.Row('gpt2_tiny', B=2, beams=1)
  assert decode.measure(row, {'ours': []}, 1)['contenders']['ours']['tokens_per_second'] == 128
  with pytest.raises(RuntimeError, match=message):
    decode.measure(row, {'ours': [], 'other': []}, 1)


def test_prefix_cost():
  done = run('--rows=tiny_gradient,tiny_step', '--turns=2', script='prefix_cost.py')
  assert done.returncode == 0, done.stderr
  *text, last = done.stdout.splitlines()
  assert [line.split()[0] for line in text] == ['row', 'tiny_gradient', 'tiny_step']
  rows = json.loads(last)['rows']
  gradient, step = rows['tiny_gradient'], rows['tiny_step']
  assert gradient['ratio'] == gradient['with'] / gradient['without']
  assert gradient['with'] == min(with_ for with_, _ in gradient['seconds'])
  many, one, *_ = map(min, zip(*step['seconds'], strict=True))
  assert step['with'] == pytest.approx((many - one) / (step['T'] - 1))


def test_population():
  done = run('--rows=trial', '--turns=2', script='population.py')
  assert done.returncode == 0, done.stderr
  *text, last = done.stdout.splitlines()
  assert [line.split()[0] for line in text] == ['row', 'trial']
  row = json.loads(last)['rows']['trial']
  assert [row['together'], row['in_turn']] == [min(side) for side in zip(*row['seconds'], strict=True)]
  assert row['gain'] == row['in_turn'] / row['together']


def test_probe():
  done = run('--quick', '--turns=2', '--batches=3', script='probe.py')
  assert done.returncode == 0, done.stderr
  *text, last = done.stdout.splitlines()
  assert [line.split()[:2] for line in text] == [['pass', 'contender'], ['baseline', 'ours'], ['accuracy', 'ours']]
  report = json.loads(last)
  ours = report['contenders']['ours']
  for passed in ('baseline', 'accuracy'):
    x = ours[passed]
    assert len(x['seconds']) == len(x['cpu_seconds']) == 2
    assert x['examples_per_second'] == pytest.approx(3 * report['B'] / (sum(x['seconds']) / 2))
    assert x['ratio'] == x['paired'] == x['cpu_ratio'] == 1.0


def test_profile_step():
  done = run('--row=tiny', script='profile_step.py')
  assert done.returncode == 0, done.stderr
  *text, last = done.stdout.splitlines()
  assert text[0].startswith('tiny: ')
  report = json.loads(last)
  assert sum(report['shares'].values()) == pytest.approx(1)
  assert text[1].split() == [f'{report["shares"][next(iter(report["shares"]))]:.1%}', next(iter(report['shares']))]
  assert any('dot' in name or 'ynn' in name for name in report['shares'])
  assert report['utilisation'] == pytest.approx(
      report['flops_analytic'] / report['cpu_seconds'] / report['gemm_flops_per_cpu_second'])


def test_gpu(tmp_path, monkeypatch):
  """On whatever there is, where neither of these is installed."""
  for package in ('tensorflow', 'seqio', 'gin', 'sentencepiece'):
    (tmp_path / f'{package}.py').write_text('raise ImportError("not here")')
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  output = tmp_path / 'gpu.json'
  done = run('--rows=tiny_int8,tiny_decode', '--attention=xla', '--steps=2', f'--output={output}', script='gpu.py')
  assert done.returncode == 0, done.stderr
  *text, last = done.stdout.splitlines()
  assert [line.split()[:2] for line in text] == [['row', 'attention'], ['tiny_int8', 'xla'], ['tiny_decode', 'einsum']]
  assert output.read_text() == last + '\n'
  step, decode = json.loads(last)['rows']
  assert step['gemm_share'] == step['flops'] / step['step_seconds_median'] / step['gemm_flops_per_second']
  assert step['frozen_bytes'] < step['planned_bytes']
  assert decode['tokens_per_second'] == decode['B'] * decode['T'] / decode['step_seconds_median']
  assert step['mfu'] is None  # a CPU has no such peak


def test_gpu_says_what_could_not_be_measured():
  done = run('--rows=tiny_prompt', '--attention=cudnn', '--steps=1', script='gpu.py')
  assert done.returncode == 1
  assert 'tiny_prompt  cudnn      exit code 1: ' in done.stdout


@pytest.mark.parametrize(('change', 'message'), [
    ({'platform': 'gpu'}, 'set JAX_PLATFORMS=cpu'),
    ({'baseline': {'largest_difference': 0.1}}, 'The baselines of hooks are up to 0.1 away from ours'),
    ({'baseline': {'largest_difference': float('nan')}}, 'are up to nan away')])
def test_probes_that_do_other_work_are_refused(train_step, change, message):
  import probe
  found = {'largest_difference': 0.0, 'seconds': [1.0], 'cpu_seconds': [1.0]}
  ours = {'platform': 'cpu', 'baseline': found, 'accuracy': found}
  with pytest.raises(RuntimeError, match=message):
    probe._compare('hooks', {**ours, **change}, ours, 4)


def test_padding():
  done = run('--rows=tiny', '--batches=2', '--rounds=1', script='padding.py')
  assert done.returncode == 0, done.stderr
  *text, last = done.stdout.splitlines()
  assert [line.split()[:2] for line in text[1:]] == [['tiny', name] for name in (
      'padded', 'bucketed', 'window', 'packed')]
  row = json.loads(last)['rows']['tiny']
  padded, bucketed, window, packed = row['contenders'].values()
  assert padded['shapes'] == [[4, 52, 4]]
  assert padded['encoder_slots'] == 2 * 4 * 52
  assert max(bucketed['padding'], packed['padding']) < padded['padding']
  assert window['padding'] <= bucketed['padding']
  for figures in (bucketed, window, packed):  # dropout is on, so losses are near, not the same
    assert figures['losses_first'][0] == pytest.approx(padded['losses_first'][0], rel=0.2)
    assert len(figures['step_seconds']) == 2
