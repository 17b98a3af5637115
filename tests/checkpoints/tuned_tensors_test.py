"""What a file of any method holds, and what it may not."""

import json

import numpy as np
import pytest
import safetensors

from prompt_tuning.checkpoints import tuned
from tests.checkpoints.tuned_test import LAYERS, PREFIX, PROMPT, ROWS

HEAD = {'head/kernel': ROWS, 'head/bias': ROWS[0]}
ONE = LAYERS[0, :, 0]  # any [., ., .]
ADAPTER = {
    f'adapter/{site}/{name}': ONE if name.endswith('kernel') else ONE[0]
    for site in ('decoder/mlp_out', 'encoder/attn_out')
    for name in ('down/kernel', 'down/bias', 'up/kernel', 'up/bias')}
NORM = {f'adapter/decoder/mlp_out/norm/{name}': ONE[0] for name in ('scale', 'bias')}
OTHERS = {
    'prompt+head': {**PROMPT.tensors, **HEAD},
    'prompt+prefix': {**PROMPT.tensors, **PREFIX.tensors},
    'adapter': ADAPTER | NORM,
    'adapter+head': {**ADAPTER, 'adapter/norms/decoder/decoder_norm/scale': ONE[0, 0], 'head/kernel': ROWS},
    'bias': {'bias/params/decoder/layers/mlp/wi/bias': ONE[0], 'bias/params/decoder/logits_bias': ONE[:1, 0]},
    'bias+head': {'bias/sites/encoder/attn_out': ONE[0], **HEAD},
    'top': {'top/decoder/layers/mlp/wi/kernel': ONE, 'top/decoder/decoder_norm/scale': ONE[0, 0]},
    'prompt+full': {**PROMPT.tensors, 'full/token_embedder/embedding': ROWS, 'full/a/b/c': LAYERS},
    'head': HEAD}


@pytest.mark.parametrize('name', OTHERS)
def test_everything_that_is_trained_together_is_one_file(tmp_path, name):
  assert tuned.method_of(dict(sorted(OTHERS[name].items()))) == name
  about = {'settings': {'a': [1]}, 'readout': {'kind': 'Head', 'labels': ['a', 'b']}}
  tuned.save_safetensors(tmp_path / f'{name}_12.safetensors', tuned.Tuned(name, OTHERS[name], about))
  assert [step for step, _ in tuned.step_files(tmp_path)] == [12]
  again = tuned.load(tmp_path, name.split('+')[0])
  assert (again.method, again.about) == (name, about)
  assert again.tensors.keys() == OTHERS[name].keys()
  for path, x in OTHERS[name].items():
    np.testing.assert_array_equal(again.tensors[path], x)


@pytest.mark.parametrize(('name', 'settings', 'expected'), [
    ('prompt+head', {}, {'count': 3, 'place': 'front of inputs'}),
    ('prompt+head', {'template': '<p*3> {text}'}, {'count': 3, 'place': 'template'}),
    ('prompt+prefix', {}, {'count': 3, 'place': 'front of inputs'}),
    ('adapter', {}, {'count': 0})])
def test_virtual_tokens_in_the_metadata(tmp_path, name, settings, expected):
  tuned.save_safetensors(tmp_path / 'a', tuned.Tuned(name, OTHERS[name], {'settings': settings}))
  with safetensors.safe_open(tmp_path / 'a', framework='numpy') as file:
    assert json.loads(file.metadata()['virtual_tokens']) == expected
  assert tuned.load(tmp_path / 'a').about == {'settings': settings}


def without(name: str) -> dict[str, np.ndarray]:
  """Tensors of an adapter but those that end so."""
  return {path: x for path, x in ADAPTER.items() if not path.endswith(name)}


REFUSED = {
    'no adapter': ('adapter', {}, '(?s)- adapter/decoder/mlp_out/down/bias'),
    'half an adapter': ('adapter', without('up/kernel'),
                        '(?s)- adapter/decoder/mlp_out/up/kernel.*- adapter/encoder/attn_out/up/kernel'),
    'half a norm': ('adapter', {**ADAPTER, 'adapter/decoder/mlp_out/norm/scale': ROWS},
                    r'(?s)expected \(- missing, \+ unknown\):\s+- adapter/decoder/mlp_out/norm/bias$'),
    'axes of an adapter': ('adapter', {**ADAPTER, 'adapter/decoder/mlp_out/up/kernel': ROWS},
                           r'adapter/decoder/mlp_out/up/kernel: a float array \[L, in, out\], found \(3, 4\)'),
    'an adapter elsewhere': ('adapter', {**ADAPTER, 'adapter/a': ROWS}, r'(?s)\+ adapter/a$'),
    'axes of a bias': ('bias', {'bias/sites/a': ROWS[0]}, r'bias/sites/a: a float array \[L, D\], found \(4,\)'),
    'a bias elsewhere': ('bias', {'bias/a': ROWS}, r'(?s)- bias/params/<path of the base>.*\+ bias/a'),
    'nothing of a model': ('full', {}, '(?s)- full/<path of the base>'),
    'no axes': ('top', {'top/a': np.float32(1)}, r'top/a: a float array \[...\], found \(\)'),
    'axes of a head': ('head', {'head/kernel': ROWS[0]}, r'head/kernel: a float array \[D, C\], found \(4,\)'),
    'half a head': ('head', {'head/bias': ROWS[0]}, '- head/kernel'),
    'more than its name says': ('prompt', OTHERS['prompt+head'], r'(?s)\+ head/bias.*\+ head/kernel'),
    'less than its name says': ('prompt+head', PROMPT.tensors, '(?s)- head/kernel'),
    'not finite': ('top', {'top/a': ROWS * np.inf}, '12 of 12 values are NaN or infinite; use an earlier top'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_is_refused(name):
  method, tensors, message = REFUSED[name]
  with pytest.raises(ValueError, match=message) as error:
    tuned.checked('some/file', method, tensors)
  assert str(error.value).startswith('some/file: ')
