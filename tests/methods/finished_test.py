"""What was trained before, as a method, whatever it is."""

import jax
import numpy as np
import pytest

from prompt_tuning.checkpoints import tuned
from prompt_tuning.methods import finished
from prompt_tuning.methods.infix import Infix
from prompt_tuning.methods.prefix import Prefix
from prompt_tuning.methods.prompt import Prompt
from tests.methods.prefix_test import base_of, made

METHODS = {
    'prompt': Prompt(3), 'prefix': Prefix(3, reparameterization=None), 'infix': Infix(3, reparameterization=None)}


@pytest.fixture(params=METHODS)
def saved(request, tmp_path):
  """(base, trainable, file) of each method."""
  model, frozen, trainable = made('gpt2_tiny', METHODS[request.param])
  base = base_of(model, frozen)
  about = {'base_fingerprint': base.fingerprint(), 'base_path': 'models/a'}
  file = tmp_path / 'a.safetensors'
  tuned.save_safetensors(file, tuned.Tuned(request.param, jax.device_get(model.method.export(trainable)), about))
  return base, trainable, file


def test_it_is_what_was_saved(saved):
  base, trainable, file = saved
  method = finished.load(file)
  again = method.init({method.collection: jax.random.key(9)}, base)
  jax.tree.map(np.testing.assert_array_equal, again, trainable)


def test_another_base_is_one_warning(saved):
  _, _, file = saved
  model, frozen, _ = made('gpt2_tiny', Prefix(0))
  other = base_of(model, jax.tree.map(lambda x: x + 1, frozen))
  method = finished.load(file)
  with pytest.warns(tuned.OtherBaseWarning, match=r'trained on models/a \(.*used on a tiny base') as warned:
    method.init({method.collection: jax.random.key(9)}, other)
  assert len(warned) == 1


def test_of_another_family(saved):
  """Prompts and prefixes of the same dimensions run, with a warning; an infix has no offsets for an encoder."""
  _, trainable, file = saved
  model, frozen, _ = made('bart_tiny', Prefix(0))
  method = finished.load(file)
  init = lambda: method.init({method.collection: jax.random.key(0)}, base_of(model, frozen))
  if 'infix' in trainable:
    with pytest.raises(ValueError, match='keys and values for decoder/attn_kv, none for encoder/attn_kv'):
      init()
    return
  with pytest.warns(tuned.OtherBaseWarning):
    again = init()
  jax.tree.map(np.testing.assert_array_equal, again, trainable)


def test_a_place_that_does_not_exist(tmp_path):
  with pytest.raises(FileNotFoundError, match='there is no such prompt; expected a .npy file'):
    finished.load(tmp_path / 'nowhere')
