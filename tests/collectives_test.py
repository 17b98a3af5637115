"""What crosses the network in a training step, read from the compiled program: of the base, nothing.

The compiler is XLA:CPU's; those of TPUs and GPUs join some of what is counted here and split some.
"""

import functools

from flax import linen as nn
import jax
import numpy as np
import pytest

from prompt_tuning import hlo, loading, trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.methods.adapter import Adapter
from prompt_tuning.methods.bias import Bias
from prompt_tuning.methods.prefix import Prefix
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompted import Prompted
from prompt_tuning.train import losses, optim, step

ROWS, SOURCE, TARGET = 16, 13, 5
OPTIMIZER = optim.adamw(max_grad_norm=1.0)(optim.constant(1e-2))
METHODS = {'prompt': Prompt(length=5), 'prefix': Prefix(length=5), 'adapter': Adapter(), 'bitfit': Bias()}
SCALARS = 64  # bytes: sums of the loss, norms


@functools.cache
def step_of(size: str, method: str, microbatches: int = 1, **mesh):
  """(collectives of a step, bytes of the method's gradient, the base as shapes, its configuration)."""
  partitioner, config = Partitioner(**mesh), config_lib.from_size(size)
  model = Prompted(loading.Backbone().module(config), METHODS[method].bind(config, None),
                   constraints=partitioner.constraints)
  boxed, trainable = model.abstract_frozen(), model.abstract_trainable()
  place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  frozen = jax.tree.map(place, nn.meta.unbox(boxed), partitioner.shardings(boxed))
  state = jax.eval_shape(functools.partial(step.init_state, optimizer=OPTIMIZER), trainable)
  rows = lambda length, dtype: jax.ShapeDtypeStruct((ROWS, length), dtype, sharding=partitioner.rows)
  batch = {'encoder_input_tokens': rows(SOURCE, np.int32), 'decoder_input_tokens': rows(TARGET, np.int32),
           'decoder_target_tokens': rows(TARGET, np.int32), 'decoder_loss_weights': rows(TARGET, np.float32)}
  run = step.make_train_step(model, OPTIMIZER, losses.compute, dropout_seed=0, microbatches=microbatches)
  state = jax.tree.map(lambda x: place(x, partitioner.replicated), state)
  compiled = run.lower(state, frozen, batch).compile()
  # A prefix is reduced before the MLP that makes it, which is larger. T5's two stacks each return a prompt's gradient.
  gradient = trees.nbytes(jax.eval_shape(model.export, trainable))
  gradient *= 2 if method == 'prompt' and config.family == 't5' else 1
  return hlo.collectives(compiled.as_text()), gradient, frozen, config


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('size', ['t5_1_1_tiny', 'gpt2_tiny'])
def test_data_parallel_steps_move_the_gradient_of_what_is_trained_and_nothing_else(size, method):
  found, gradient, base, _ = step_of(size, method)
  assert {(c.kind, c.over({'data': 8, 'model': 1})) for c in found} == {('all-reduce', ('data',))}
  assert None not in {c.times for c in found}
  assert gradient <= hlo.total(found) <= gradient + SCALARS < trees.nbytes(base) / 2


@pytest.mark.parametrize('mesh', [{}, {'num_partitions': 2}, {'parameter_partitioning_dims': 2}])
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('size', ['t5_1_1_tiny', 'gpt2_tiny'])
def test_microbatches_reduce_their_gradients_once_when_all_are_done(size, method, mesh):
  found, gradient, *_ = step_of(size, method, microbatches=2, **mesh)
  gradient //= 2 if (size, method) == ('t5_1_1_tiny', 'prompt') else 1  # the two stacks' are added up before
  axes = {'data': 8 // mesh.get('num_partitions', 1), 'model': mesh.get('num_partitions', 1)}
  reduced = [c for c in found if c.kind in ('all-reduce', 'reduce-scatter') and 'data' in c.over(axes)]
  assert {(c.kind, c.times) for c in reduced} == {('all-reduce', 1)}
  assert len([c for c in reduced if c.bytes > SCALARS]) == 1
  assert gradient / axes['model'] <= hlo.total(reduced) <= gradient + SCALARS


@pytest.mark.parametrize('size', ['t5_1_1_tiny', 'gpt2_tiny'])
def test_model_parallel_steps_move_activations(size):
  found, gradient, _, config = step_of(size, 'prompt', num_partitions=2)
  mesh = {'data': 4, 'model': 2}
  assert gradient <= hlo.total(c for c in found if 'data' in c.over(mesh)) <= gradient + SCALARS
  states = ROWS // 4 * (SOURCE + TARGET) * config.d_model * 4
  along = [c for c in found if 'data' not in c.over(mesh)]
  assert max(c.bytes for c in along) <= 3 * states  # queries, keys and values at once
  assert {c.kind for c in along if c.bytes > SCALARS * 4} == {'all-reduce'}


@pytest.mark.parametrize('size', ['t5_1_1_tiny', 'gpt2_tiny'])
def test_fsdp_steps_gather_the_base_a_layer_at_a_time_and_reduce_no_gradient_of_it(size):
  found, gradient, base, config = step_of(size, 'prompt', parameter_partitioning_dims=2)
  reduced = [c for c in found if c.kind in ('all-reduce', 'reduce-scatter')]
  assert hlo.total(reduced) <= gradient + SCALARS
  gathered, size = [c for c in found if c.kind == 'all-gather'], trees.nbytes(base)
  assert size / 2 <= hlo.total(gathered) <= 2 * size  # to go forward, and to go back
  inside, outside = (
      {path: x.size * 4 for path, x in trees.flatten(base).items() if ('/layers/' in path) is within}
      for within in (True, False))
  largest = max(sum(n for path, n in inside.items() if path.startswith(stack)) for stack in ('encoder', 'decoder'))
  alone = {c.bytes for c in gathered if c.bytes > largest / config.decoder_layers}
  assert alone <= set(outside.values())  # tables and heads, which are in no layer
