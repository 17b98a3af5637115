"""What was trained before, as a method and a readout, whatever it is."""

import jax
import numpy as np
import pytest

from prompt_tuning.checkpoints import tuned
from prompt_tuning.methods import finished, readouts
from prompt_tuning.methods.adapter import Adapter
from prompt_tuning.methods.bias import Bias
from prompt_tuning.methods.full import Full
from prompt_tuning.methods.infix import Infix
from prompt_tuning.methods.p_tuning import PTuning
from prompt_tuning.methods.prefix import Prefix
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.methods.together import Together
from prompt_tuning.methods.top import Top
from prompt_tuning.prompted import Prompted
from tests.methods.prefix_test import base_of, batch_of, jitted, made

METHODS = {
    'prompt': Prompt(3), 'prefix': Prefix(3, reparameterization=None), 'infix': Infix(3, reparameterization=None),
    'adapter': Adapter('lin', 3), 'bias': Bias(), 'top': Top(1), 'full': Full(),
    'prefix+adapter': Together((Adapter('lin', 3), Prefix(3, reparameterization=None)))}
SEVERAL_FAMILIES = ('prompt', 'prefix')  # what fits any model of the same dimensions
HEAD = {'head/kernel': np.ones((64, 2), np.float32), 'head/bias': np.arange(2, dtype=np.float32)}
LABELS = ('bad', 'good')


@pytest.fixture(params=METHODS)
def saved(request, tmp_path):
  """(base, trainable, file) of each method."""
  model, frozen, trainable = made('gpt2_tiny', METHODS[request.param])
  base = base_of(model, frozen)
  about = {'base_fingerprint': base.fingerprint(), 'base_path': 'models/a', 'settings': model.method.settings()}
  file = tmp_path / 'a.safetensors'
  tuned.save_safetensors(file, tuned.Tuned(request.param, jax.device_get(model.method.export(trainable)), about))
  return base, trainable, file


def init(method, base):
  return method.init({name: jax.random.key(9) for name in method.collections}, base)


def test_it_is_what_was_saved(saved):
  base, trainable, file = saved
  again = init(finished.load(file), base)
  jax.tree.map(np.testing.assert_array_equal, again, trainable)


def test_another_base_is_one_warning(saved):
  _, _, file = saved
  model, frozen, _ = made('gpt2_tiny', Prefix(0))
  other = base_of(model, jax.tree.map(lambda x: x + 1, frozen))
  method = finished.load(file)
  with pytest.warns(tuned.OtherBaseWarning, match=r'trained on models/a \(.*used on a tiny base') as warned:
    init(method, other)
  assert len(warned) == 1


@pytest.mark.filterwarnings('ignore::prompt_tuning.checkpoints.tuned.OtherBaseWarning')
def test_of_another_family(saved):
  """Prompts and prefixes of the same dimensions run, with a warning; all else is of one architecture."""
  _, trainable, file = saved
  model, frozen, _ = made('bart_tiny', Prefix(0))
  method, base = finished.load(file), base_of(model, frozen)
  if not set(trainable) <= {*SEVERAL_FAMILIES}:
    with pytest.raises(ValueError, match=r'keys and values for decoder/attn_kv, none for encoder/attn_kv|'
                       r'(?s:a tiny base: what was trained before \(\w+\) does not fit this bart.* [-+] )'):
      init(method, base)
    return
  jax.tree.map(np.testing.assert_array_equal, init(method, base), trainable)


def test_a_place_that_does_not_exist(tmp_path):
  with pytest.raises(FileNotFoundError, match='there is no such prompt; expected a .npy file'):
    finished.load(tmp_path / 'nowhere')


def test_a_template_is_kept(tmp_path):
  method = PTuning('<p*2> {text} {mask} <p>', reparameterization=None)
  model, frozen, _ = made('roberta_tiny', Prefix(0))
  base, method = base_of(model, frozen), method.bind(model.backbone.config, None)
  trainable = init(method, base)
  tensors = jax.device_get(method.export(trainable))
  tuned.save_safetensors(tmp_path / 'a', tuned.Tuned('prompt', tensors, {'settings': method.settings()}))
  kept = finished.load(tmp_path / 'a').bind(model.backbone.config, None)
  tokens = np.array([0, 9, 2])
  np.testing.assert_array_equal(kept.place(tokens, 256), method.place(tokens, 256))
  jax.tree.map(np.testing.assert_array_equal, init(kept, base), trainable)


# --- readouts ---


@pytest.mark.parametrize(('method', 'readout'), [
    (Adapter('lin', 3), readouts.Head(LABELS)), (Together(), readouts.Head(LABELS)),
    (Prefix(2, reparameterization=None), readouts.Head(LABELS, use_bias=False))])
def test_a_head_is_kept(method, readout, tmp_path):
  model, frozen, _ = made('gpt2_tiny', Prefix(0))
  model, base = Prompted(model.backbone, method, readout), base_of(model, frozen)
  trainable = model.init(jax.random.key(0), base)
  tensors = jax.device_get(model.export(trainable))
  name = tuned.method_of(tensors)
  assert name == {'adapter': 'adapter+head', 'prefix': 'prefix+head', '': 'head'}[method.collection]
  about = {'settings': method.settings(), 'readout': readout.settings()}
  tuned.save_safetensors(tmp_path / f'{name}_1.safetensors', tuned.Tuned(name, tensors, about))
  kept = Prompted(model.backbone, finished.load(tmp_path), finished.readout(tmp_path))
  again = kept.init(jax.random.key(9), base)
  jax.tree.map(np.testing.assert_array_equal, again, dict(trainable))
  batch = batch_of(model)
  np.testing.assert_array_equal(
      jax.jit(kept.logits)(again, frozen, batch), jitted(model)(trainable, frozen, batch))


def test_words_are_kept(tmp_path):
  readout = readouts.Verbalizer(LABELS, words=('terrible', 'great'), mask=False)
  about = {'readout': readout.settings()}
  tuned.save_safetensors(tmp_path / 'a', tuned.Tuned('prompt', {tuned.PROMPT: np.ones((3, 64))}, about))
  assert finished.readout(tmp_path / 'a') == readout


def test_a_file_that_does_not_say_is_read_as_text(tmp_path):
  tuned.save_npy(tmp_path / 'a', tuned.Tuned('prompt', {tuned.PROMPT: np.ones((3, 64))}))
  assert finished.readout(tmp_path / 'a') == readouts.TextToText()
  assert finished.readout(tmp_path / 'a', readouts.Head(LABELS)) == readouts.Head(LABELS)


# --- refusals ---


@pytest.mark.parametrize(('name', 'about', 'message'), [
    ('head', {}, 'holds a head but no `readout` in its metadata'),
    ('head', {'readout': ['Head']}, "readout in its metadata is .'Head'.; expected a JSON object"),
    ('head', {'readout': {'kind': 'Tail'}}, "'kind': 'Tail'.*is of no kind that is known here"),
    ('head', {'readout': {'kind': 'Head', 'size': 2}}, 'is of no kind that is known here'),
    ('head', {'readout': {'kind': ['Head']}}, 'file: '),
])
def test_readouts_that_are_none(tmp_path, name, about, message):
  tuned.save_safetensors(tmp_path / 'file', tuned.Tuned(name, HEAD, about))
  with pytest.raises(ValueError, match=f'file: .*{message}|{message}'):
    finished.readout(tmp_path / 'file')


@pytest.mark.parametrize(('settings', 'message'), [
    ({}, "settings {} in its metadata are of no adapter: Design.activation=None; expected one of relu"),
    ({'adapter_activation': ['relu']}, 'are of no adapter'),
    ([1], r'settings in its metadata is \[1\]; expected a JSON')])
def test_settings_that_are_none(tmp_path, settings, message):
  model, _, trainable = made('gpt2_tiny', METHODS['adapter'])
  tensors = jax.device_get(model.method.export(trainable))
  tuned.save_safetensors(tmp_path / 'file', tuned.Tuned('adapter', tensors, {'settings': settings}))
  with pytest.raises(ValueError, match=f'file: .*{message}'):
    finished.load(tmp_path / 'file')
