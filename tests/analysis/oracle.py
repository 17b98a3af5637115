"""Small random models with a prompt, labelled batches, and all their FFN activations in float64 by plain NumPy."""

import dataclasses
import functools

import jax
import numpy as np

from prompt_tuning.analysis import record
from prompt_tuning.prompted import Prompted
from tests import models
from tests.checkpoints import numpy_models

ROWS, BATCH, PROMPT = 22, 8, 3
LABELS = np.random.default_rng(5).integers(0, 2, ROWS)


@dataclasses.dataclass(frozen=True)
class Case:
  """A model and a prompt; `batches` are those of `LABELS`, the last one filled up with rows of padding."""

  model: Prompted
  frozen: dict
  trainable: dict
  tokens: np.ndarray  # [ROWS, S]
  starts: np.ndarray  # [ROWS, 1]

  @property
  def config(self):
    return self.model.backbone.config

  def batches(self, labels=LABELS, size=BATCH):
    """(batch, labels) of `size` rows each."""
    for first in range(0, ROWS, size):
      fill = lambda x, value, first=first: np.concatenate(
          [x[first:first + size], np.full((max(first + size - ROWS, 0), *x.shape[1:]), value, x.dtype)])
      batch = {'encoder_input_tokens': fill(self.tokens, self.config.source_pad_id),
               'decoder_input_tokens': fill(self.starts, self.config.start_id)}
      yield batch, fill(labels, -1)

  @functools.cached_property
  def read(self):
    return self.reader(models.one_device())

  def reader(self, partitioner):
    return record.reader(self.model, self.trainable, self.frozen, partitioner)


@functools.cache
def case(size, **kwargs):
  """Three virtual tokens in front of each text, behind a mask token where the model has one."""
  model, frozen, trainable = models.tiny(PROMPT, size=size, **kwargs)
  config = model.backbone.config
  tokens = np.asarray(models.tiny_batch(ROWS, PROMPT, config=config)['encoder_input_tokens'])
  if config.mask_id is not None:
    tokens = np.insert(tokens, 0, config.mask_id, axis=1)
  return Case(model, frozen, trainable, tokens, np.full((ROWS, 1), config.start_id, np.int32))


def activations(case):
  """float64 {site: [L, N, S, F]} of BART or RoBERTa on all rows."""
  kept, original = [], numpy_models.mlp

  def mlp(p, x, config):
    kept.append(numpy_models._ACTIVATIONS[config.mlp_activations[0]](numpy_models.dense(p['wi'], x)))
    return original(p, x, config)

  table = np.concatenate([case.frozen['token_embedder']['embedding'], case.trainable['prompt']['embedding']])
  params = jax.device_get({**case.frozen, 'token_embedder': {'embedding': table}})
  config = dataclasses.replace(case.config, mlm_head=False, logits_bias=False)  # of V rows, and now there are more
  mask = case.tokens != config.pad_id
  numpy_models.mlp = mlp
  try:
    if config.decoder_layers:
      numpy_models.bart(params, config, case.tokens, mask, case.starts)
    else:
      numpy_models.bert(params, config, case.tokens, mask)
  finally:
    numpy_models.mlp = original
  n = config.encoder_layers
  return {site: np.stack(x) for site, x in (('encoder/mlp_act', kept[:n]), ('decoder/mlp_act', kept[n:])) if x}
