"""Every method on every backbone, as gin wires them: trains sharded over 8 devices, is saved, restored, and decodes."""

import dataclasses
import functools

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import gin_utils, partitioning, trees
from prompt_tuning.checkpoints import tuned
from prompt_tuning.methods import finished, readouts
from prompt_tuning.prompted import Prompted
from prompt_tuning.train import losses, optim, step
from tests import models
from tests.methods.prefix_test import base_of

MODELS = {'t5': 't5_1_1_tiny', 'gpt2': 'gpt2_tiny', 'bart': 'bart_tiny', 'roberta': 'roberta_tiny'}
METHODS = {  # gin file -> bindings
    'prompt': ['PROMPT_LENGTH = 3', 'INITIALIZER = None'],
    'prefix': ['PREFIX_LENGTH = 3', 'MLP_HIDDEN = 8'],
    'p_tuning': [],
    'p_tuning_v2': ['PREFIX_LENGTH = 3'],
    'adapter': ['BOTTLENECK = 3'],
    'bitfit': [],
    'top_k': ['TOP_LAYERS = 1'],
    'full': [],
}
RUN = ["MODEL_DIR = 'run'", 'TRAIN_STEPS = 1',
       "INITIAL_CHECKPOINT_PATH = 'base'", "MIXTURE_OR_TASK_NAME = 'sst2_sample'",
       "TASK_FEATURE_LENGTHS = {'inputs': 8, 'targets': 4}", "LABELS = ('negative', 'positive')"]


@pytest.fixture(autouse=True)
def no_configuration():
  gin.clear_config()
  yield
  gin.clear_config()


@functools.cache
def base(model: str):
  """(backbone, frozen) of a random base."""
  model, frozen, _ = models.tiny(size=MODELS[model], scan=True, dropout_rate=0.1)
  return model.backbone, frozen


def cell(model: str, method: str) -> Prompted:
  """What the three gin files make, on a tiny base without a tokenizer."""
  gin_utils.parse([f'models/{model}.gin', f'methods/{method}.gin', 'runs/train.gin'], [*RUN, *METHODS[method]], '')
  chosen = gin_utils.macro('METHOD').scoped_configurable_fn()
  readout = gin_utils.macro('READOUT').scoped_configurable_fn()
  if isinstance(readout, readouts.Verbalizer):
    readout = readout.clone(seed=0)  # words of a vocabulary that there is not
  backbone, _ = base(model)
  return Prompted(backbone, chosen.bind(backbone.config, None), readout.bind(backbone.config, None))


def batch_of(model: Prompted, rows: int = 8):
  """Text with everything in place, and a target."""
  config, length = model.backbone.config, model.readout.length
  batch = models.tiny_batch(rows=rows, config=config)
  sources = [model.place(np.asarray(row[row != config.source_pad_id]), config.vocab_size)
             for row in np.asarray(batch['encoder_input_tokens'])]
  tokens = np.full((rows, max(map(len, sources))), config.source_pad_id, np.int32)
  for row, source in zip(tokens, sources, strict=True):
    row[:len(source)] = source
  batch['encoder_input_tokens'] = jnp.asarray(tokens)
  if length is not None:
    classes = jnp.arange(rows)[:, None] % 2
    batch |= {'decoder_input_tokens': batch['decoder_input_tokens'][:, :length], 'decoder_target_tokens': classes,
              'decoder_loss_weights': jnp.ones((rows, length))}
  return batch


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('model', MODELS)
def test_cell(model, method, tmp_path):
  prompted, (_, frozen) = cell(model, method), base(model)
  trainable = prompted.init(jax.random.key(5), base_of(prompted, frozen))
  batch = batch_of(prompted)

  # It trains on 4 x 2 devices, two microbatches: the loss is that of one device, all trainables move, nothing else.
  partitioner = partitioning.Partitioner(2)
  spread = jax.tree.map(jax.device_put, frozen, partitioner.shardings(prompted.abstract_frozen()))
  optimizer = optim.adamw(max_grad_norm=1.0)(optim.constant(1e-2))
  laid_out = dataclasses.replace(prompted, constraints=partitioner.constraints)
  run = step.make_train_step(laid_out, optimizer, losses.compute, dropout_seed=None, microbatches=2)
  state = partitioner.replicate(step.init_state(jax.tree.map(jnp.copy, trainable), optimizer))
  state, metrics = run(state, spread, partitioner.place_batch(batch))
  for path, change in trees.flatten(jax.tree.map(lambda x, y: np.abs(x - y).max(), state.trainable, trainable)).items():
    still = 'position_embedder' in path or 'mlm_head' in path or 'logits_dense' in path
    assert change > 0 or still, path
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(spread), jax.device_get(frozen))
  both = jax.jit(lambda trainable, frozen, batch: (
      prompted.logits(trainable, frozen, batch), prompted.generate(trainable, frozen, batch, 3)))
  logits, decoded = both(trainable, frozen, batch)
  loss = losses.compute(logits, batch)
  np.testing.assert_allclose(metrics['loss'], loss.total / loss.normalizer, rtol=1e-4)

  # It decodes what it reads.
  assert decoded.tokens.shape == (8, 1, prompted.readout.length or 3)
  forced = prompted.backbone.config.forced_bos_id is not None
  assert forced or (decoded.tokens[:, 0, 0] == logits[:, 0].argmax(-1)).all()

  # What it leaves is it.
  trainable = jax.device_get(state.trainable)
  tensors = jax.device_get(prompted.export(trainable))
  about = {'settings': prompted.method.settings() or None, 'readout': prompted.readout.settings()}
  name = tuned.method_of(tensors)
  tuned.save_safetensors(tmp_path / f'{name}_1.safetensors', tuned.Tuned(name, tensors, about))
  kept, readout = finished.load(tmp_path), finished.readout(tmp_path)
  config = prompted.backbone.config
  again = dataclasses.replace(prompted, method=kept.bind(config, None), readout=readout.bind(config, None))
  restored = again.init(jax.random.key(9), base_of(again, frozen))
  for one, other in ((again.method, prompted.method), (again.readout, prompted.readout)):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6),
                 one.apply(restored).sites, other.apply(trainable).sites)
    overlays = [trees.overlay(frozen, method.apply(variables).overlay) for method, variables in (
        (one, restored), (other, trainable))]
    jax.tree.map(np.testing.assert_array_equal, *overlays)
  text = np.arange(7, 12)
  np.testing.assert_array_equal(again.place(text, models.VOCAB), prompted.place(text, models.VOCAB))


@pytest.mark.parametrize(('model', 'method', 'bindings', 'message'), [
    ('roberta', 'prefix', ["PREFIX_SITES = ('decoder/attn_kv',)"], "PREFIX_SITES=.*on a roberta; expected some of"),
    ('gpt2', 'p_tuning', ["TEMPLATE = '<p> {text} {mask}'"], 'this gpt2 has no mask token'),
    ('t5', 'top_k', ['TOP_LAYERS = 9'], 'TOP_LAYERS=9'),
    ('t5', 'adapter', ['BOTTLENECK = None', 'BUDGET = 0.000001'], 'BUDGET'),
    ('gpt2', 'prompt', ['READOUT = @readouts.Span()', 'PROMPT_LENGTH = 2', 'INITIALIZER = None'], 'reads spans'),
])
def test_a_cell_that_makes_no_sense_says_so(model, method, bindings, message):
  backbone, frozen = base(model)
  gin_utils.parse([f'models/{model}.gin', f'methods/{method}.gin', 'runs/train.gin'], [*RUN, *bindings], '')

  def begin():
    chosen = gin_utils.macro('METHOD').scoped_configurable_fn()
    readout = gin_utils.macro('READOUT').scoped_configurable_fn().bind(backbone.config, Words())
    prompted = Prompted(backbone, chosen.bind(backbone.config, None), readout)
    prompted.init(jax.random.key(0), base_of(prompted, frozen))

  with pytest.raises(ValueError, match=message):
    begin()


class Words:
  """A tokenizer that knows every word."""

  unk_id = 0

  def encode(self, text: str) -> list[int]:
    return [7 + sum(map(ord, text)) % 200]
