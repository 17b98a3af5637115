"""Model folders: what is in those of GPT-2, BART, RoBERTa and BERT, how to change a copy of one, and to convert it."""
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from prompt_tuning import trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import base, convert

FAMILIES = ('gpt2', 'bart', 'roberta', 'bert')
CONFIGS = {
    'gpt2': config_lib.BackboneConfig(
        family='gpt2', vocab_size=256, d_model=32, num_heads=4, head_dim=8, d_ff=128, encoder_layers=0,
        decoder_layers=2, mlp_activations=('gelu',), layer_norm_epsilon=1e-5, tied_embeddings=True, max_positions=64,
        pad_id=1, eos_id=1, bos_id=0),
    'bart': config_lib.BackboneConfig(
        family='bart', vocab_size=256, d_model=32, num_heads=4, head_dim=8, d_ff=48, encoder_layers=2,
        decoder_layers=2, mlp_activations=('gelu_exact',), layer_norm_epsilon=1e-5, tied_embeddings=True,
        max_positions=64, position_offset=2, logits_bias=True, pad_id=1, eos_id=2, bos_id=0, decoder_start_id=2,
        forced_eos_id=2),
    'roberta': config_lib.BackboneConfig(
        family='roberta', vocab_size=256, d_model=32, num_heads=4, head_dim=8, d_ff=48, encoder_layers=2,
        decoder_layers=0, mlp_activations=('gelu_exact',), layer_norm_epsilon=1e-5, tied_embeddings=True,
        max_positions=64, position_offset=2, token_types=1, mlm_head=True, pad_id=1, eos_id=2, bos_id=0),
    'bert': config_lib.BackboneConfig(
        family='bert', vocab_size=256, d_model=32, num_heads=4, head_dim=8, d_ff=48, encoder_layers=2,
        decoder_layers=0, mlp_activations=('gelu_exact',), layer_norm_epsilon=1e-12, tied_embeddings=True,
        max_positions=64, token_types=2, mlm_head=True, pad_id=0, eos_id=None),
}


def shapes(source, dtype=jnp.float32):
  """The parameter tree of an opened model as shapes."""
  table = source.key_table(source.config)
  return trees.unflatten({
      path: jax.ShapeDtypeStruct(entry.our_shape(source.tensors[entry.names[0]].shape), dtype)
      for path, entry in table.items()})


@functools.cache
def load(folder, dtype=jnp.float32):
  """(config, parameters) of a model folder that does not change."""
  source = base.open_base(folder)
  return source.config, base.load_params(source, shapes(source, dtype))


def raw(folder):
  return safetensors.numpy.load_file(folder / 'model.safetensors')


def rewrite(folder, tensors=None, **settings):
  """Replaces tensors, and keys of the config (...: removes them)."""
  if tensors is not None:
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / 'model.safetensors')
  config = {**json.loads((folder / 'config.json').read_text()), **settings}
  (folder / 'config.json').write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def run(origin, to, form, **kwargs):
  """Converts a folder, as the script does but for the optimizer's state; returns `to`."""
  opened = base.open_base(origin)
  convert.convert(opened, to, form, **kwargs)
  return to
