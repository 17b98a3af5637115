"""What the tests of checkpoint reading share."""
import pathlib

import jax
import jax.numpy as jnp
import pytest

from prompt_tuning import trees


@pytest.fixture(scope='session')
def goldens() -> pathlib.Path:
  return pathlib.Path(__file__).parents[1] / 'goldens'


@pytest.fixture(scope='session')
def abstract_t5():
  """(config, dtype) -> the parameter tree of a T5 as shapes, written out from the layout's description."""

  def attention(name, c, layers, stack):
    joined = c.num_heads * c.head_dim
    kernels = {f'{stack}/layers/{name}/{k}/kernel': (layers, c.d_model, joined) for k in ('query', 'key', 'value')}
    return {**kernels, f'{stack}/layers/{name}/out/kernel': (layers, joined, c.d_model)}

  def stack(c, name, layers, attentions, norms):
    branches = ('wi_0', 'wi_1') if len(c.mlp_activations) == 2 else ('wi',)
    shapes = {f'{name}/relpos_bias/rel_embedding': (c.num_heads, c.relpos_buckets)}
    for attention_name in attentions:
      shapes |= attention(attention_name, c, layers, name)
    shapes |= {f'{name}/layers/mlp/{branch}/kernel': (layers, c.d_model, c.d_ff) for branch in branches}
    shapes |= {f'{name}/layers/mlp/wo/kernel': (layers, c.d_ff, c.d_model)}
    shapes |= {f'{name}/layers/{norm}/scale': (layers, c.d_model) for norm in norms}
    return {**shapes, f'{name}/{name}_norm/scale': (c.d_model,)}

  def build(c, dtype=jnp.float32):
    shapes = {'token_embedder/embedding': (c.vocab_size, c.d_model)}
    shapes |= stack(c, 'encoder', c.encoder_layers, ('attention',), ('pre_attention_layer_norm', 'pre_mlp_layer_norm'))
    shapes |= stack(
        c, 'decoder', c.decoder_layers, ('self_attention', 'encoder_decoder_attention'),
        ('pre_self_attention_layer_norm', 'pre_cross_attention_layer_norm', 'pre_mlp_layer_norm'))
    if not c.tied_embeddings:
      shapes['decoder/logits_dense/kernel'] = (c.d_model, c.vocab_size)
    return trees.unflatten({path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes.items()})

  return build
