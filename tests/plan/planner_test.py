"""Plans of small models on simulated devices: memory, collectives, what is suggested, and what cannot be planned."""

import dataclasses
import json

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import params, trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.plan import compiling, devices, planner, programs, suggest, table
from prompt_tuning.reproduce import cost

TRAIN = ['models/t5.gin', 'methods/prompt.gin', 'runs/train.gin', 'papers/lester2021/recipe.gin']
TINY = ["MODEL_SIZE = 't5_1_1_tiny'", "TASK_FEATURE_LENGTHS = {'inputs': 12, 'targets': 4}", 'PROMPT_LENGTH = 5',
        'BATCH_SIZE = 16', 'DROPOUT_RATE = 0.0']
DEVICE = devices.Device('cpu', 2.0**30, {'float32': 1e10, 'bfloat16': 1e10}, 1e10, 1e9)
CPUS = devices.parse('cpu:8')


@pytest.fixture(autouse=True)
def no_configuration():
  gin.clear_config()
  yield
  gin.clear_config()


@pytest.fixture(scope='module')
def training() -> planner.Plan:
  return planner.planned(planner.Configuration(TRAIN, TINY), CPUS, None, DEVICE)


def on(plan: planner.Plan, memory: float) -> planner.Plan:
  """The plan on devices with another size of memory."""
  one = plan.programs[0]
  smaller = dataclasses.replace(one, usable=round(memory), fits=one.peak <= memory)
  return dataclasses.replace(plan, programs=(smaller,))


def test_a_training(training):
  plan = training
  (step,) = plan.programs
  config = config_lib.from_size('t5_1_1_tiny')
  prompt = 4 * 5 * config.d_model
  assert (plan.job, plan.mesh, step.program, step.fits) == ('train', {'data': 8, 'model': 1}, 'train step', True)
  assert step.memory['trainable'] == prompt == step.memory['optimizer'] - 2 * 4  # Adafactor's, and two step counters
  assert step.memory['frozen'] == 4 * params.count(config, Prompt(length=5)).base
  assert step.memory['batch'] == 16 // 8 * ((12 + 5) + 3 * 4) * 4
  assert step.peak >= sum(step.memory[name] for name in ('frozen', 'trainable', 'optimizer', 'batch', 'temporaries'))
  # Nothing but the gradients and the sums of the loss crosses the network: the encoder's part of the gradient and the
  # decoder's, which the compilers of TPUs and GPUs add up first.
  assert set(step.collectives) == {'all-reduce'}
  assert step.collectives['all-reduce'][1] == pytest.approx(2 * 7 / 8 * (2 * prompt), rel=0.02)
  expected = cost.flops(config, batch=16, encoder_length=12, decoder_length=4, virtual_tokens=5) / 8
  assert step.flops == expected
  assert step.times['compute'] == expected / 1e10
  assert step.seconds == max(step.times.values()) == step.times[step.bound]
  assert step.examples_per_second == 16 / step.seconds
  assert 0 < step.utilisation <= 1
  assert step.checkpoint == (2 * prompt + 8, prompt)
  assert step.compile_cpu_seconds > 0


def test_an_evaluation_of_what_is_trained():
  plan = planner.planned(planner.Configuration(TRAIN, TINY), CPUS, 'eval', DEVICE)
  assert [one.program for one in plan.programs] == ['generate', 'score']
  generate, score = plan.programs
  config = config_lib.from_size('t5_1_1_tiny')
  slots = 1 + 4 + 12 + 5  # start, targets; source with its prompt
  assert generate.memory['cache'] == 2 * config.decoder_layers * 16 * config.d_model * slots * 4 // 8
  assert 'cache' not in score.memory
  assert 'optimizer' not in generate.memory
  assert json.loads(json.dumps(plan.json()))['programs'][0]['program'] == 'generate'
  text = planner.text(plan)
  assert 'eval on cpu:8 (mesh data 8 x model 1)' in text
  assert 'of which decoding keeps' in text
  assert text.count('fits in 1 GiB') == 2


def test_what_does_not_fit_gets_settings_with_which_it_does(training, monkeypatch):
  monkeypatch.setattr(planner, 'SUGGESTIONS', 1)
  tight = dataclasses.replace(DEVICE, memory=0.8 * training.programs[0].peak)
  plan = on(training, tight.memory)
  assert not plan.fits
  assert 'DOES NOT FIT' in planner.text(plan)
  ((flags, peak),) = planner.suggestions(planner.Configuration(TRAIN, TINY), plan, tight)
  assert peak <= tight.memory
  assert all(flag.startswith('--gin.') for flag in flags.split())


def test_nothing_is_suggested_where_nothing_helps(training):
  assert planner.suggestions(planner.Configuration(TRAIN, TINY), on(training, 1e4), DEVICE) == []


def test_the_ladder_begins_with_what_costs_least():
  macros = {'MICROBATCHES': 1, 'REMAT': 'none', 'PARAMETER_DTYPE': 'float32', 'ACTIVATION_DTYPE': 'float32',
            'NUM_PARTITIONS': 1}
  rungs = list(suggest.rungs('train', macros, rows=32, heads=12, devices=8))
  assert rungs[0].flags() == '--gin.MICROBATCHES=2'
  assert {rung.macros.get('NUM_PARTITIONS') for rung in rungs} == {None, 2, 4}  # 8 does not share 12 heads
  assert {rung.macros.get('MICROBATCHES') for rung in rungs} == {None, 2, 4}  # of 4 examples a device
  assert {rung.macros.get('PARAMETER_DTYPE') for rung in rungs} == {None, 'bfloat16', 'int8'}
  smaller = list(suggest.rungs('eval', {'EVAL_BATCH_SIZE': 32}, rows=32, heads=12, devices=8))
  assert [rung.macros for rung in smaller] == [{'EVAL_BATCH_SIZE': 16}, {'EVAL_BATCH_SIZE': 8}]


@pytest.mark.parametrize(('files', 'bindings', 'job', 'message'), [
    (TRAIN, TINY[1:], None, 'MODEL_SIZE must say what it is'),
    (TRAIN, [*TINY, 'INITIAL_CHECKPOINT_PATH = "gs://b/t5"', 'MODEL_SIZE = None'], None, 'gs://b/t5.*MODEL_SIZE'),
    (TRAIN, [*TINY, 'BATCH_SIZE = 9'], None, 'BATCH_SIZE=9 does not divide'),
    (TRAIN, [*TINY, 'MICROBATCHES = 4'], None, 'MICROBATCHES=4'),
    (TRAIN, [*TINY, 'NUM_PARTITIONS = 3'], None, 'NUM_PARTITIONS=3 does not divide the 8 devices'),
    (['models/t5.gin', 'methods/prompt.gin', 'runs/params.gin'], ["MODEL_SIZES = ('t5_1_1_tiny',)"], None,
     'Nothing to plan is configured')])
def test_what_cannot_be_planned(files, bindings, job, message):
  with pytest.raises(ValueError, match=message):
    planner.Configuration(files, bindings).job(CPUS, job)


@pytest.mark.parametrize(('files', 'bindings', 'names'), [
    (['models/gpt2.gin', 'methods/prefix.gin', 'runs/train.gin', 'papers/li2021/recipe.gin', 'papers/li2021/e2e.gin',
      'papers/li2021/decode.gin'], ["MODEL_SIZE = 'gpt2_tiny'", 'BATCH_SIZE = 8'], ['generate', 'score']),
    (['models/roberta.gin', 'methods/prompt.gin', 'runs/train.gin', 'papers/wang2022/recipe.gin',
      'papers/wang2022/sst2.gin'], ["MODEL_SIZE = 'roberta_tiny'"], ['generate', 'score'])])
def test_other_models_and_methods_become_programs(files, bindings, names):
  """Words and checkpoints that are not there are not needed, nor is anything compiled to build them."""
  configuration = planner.Configuration(files, bindings)
  (step,) = configuration.job(CPUS).programs
  assert trees.size(step.parts['trainable']) > 0
  found = configuration.job(CPUS, 'eval').programs
  assert [one.name for one in found] == names
  assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(found[0].arguments))


def test_bytes_of_shards():
  job = planner.Configuration(TRAIN, [*TINY, 'NUM_PARTITIONS = 4']).job(CPUS)
  frozen = job.programs[0].parts['frozen']
  assert programs.bytes_per_device(frozen) < trees.nbytes(frozen) / 2
  assert programs.bytes_per_device(jax.ShapeDtypeStruct((3,), jnp.int32)) == 12
  assert programs.bytes_per_device(np.zeros(5, np.int8)) == 5


def test_a_tpu_compiler_that_runs_out_of_memory_says_how_much_it_needs():
  message = ('RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 46.50G '
             'of 15.75G hbm. Exceeded hbm capacity by 30.75G.')
  assert compiling.out_of_memory(message) == 46.5 * 2**30
  message = ('RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (184.20G) '
             'exceeds available HBM (15.75G).')
  assert compiling.out_of_memory(message) == round(184.2 * 2**30)
  assert compiling.out_of_memory('INTERNAL: something else') is None


@pytest.mark.parametrize(('nbytes', 'text'), [
    (12, '12 B'), (1023, '1023 B'), (1536, '1.5 KiB'), (1020 * 2**20, '1020 MiB'), (2**30, '1 GiB'),
    (5.5678 * 2**30, '5.57 GiB'), (2**41, '2048 GiB')])
def test_bytes_in_few_digits(nbytes, text):
  assert table.size(nbytes) == text
