"""Reading GPT-2, BART, RoBERTa and BERT folders: what their tensors mean, the ways they are saved, refusals."""
import dataclasses
import json
import shutil

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning import loading, trees
from prompt_tuning.checkpoints import base, convert
from prompt_tuning.methods.prompt import Prompt
from tests.checkpoints import numpy_models
from tests.checkpoints.folders import CONFIGS, FAMILIES, load, raw, rewrite, shapes


@pytest.fixture
def copy(goldens, tmp_path):
  """Family -> a writable copy of its folder."""
  return lambda family: shutil.copytree(goldens / 'hf' / family, tmp_path / family)


# --- what the tensors mean ---


def logits(family, params, config, inputs):
  tokens, mask = inputs['input_ids'], inputs['attention_mask']
  if family == 'gpt2':
    return numpy_models.gpt2(params, config, tokens, mask)
  if family == 'bart':
    return numpy_models.bart(params, config, tokens, mask, inputs['decoder_input_ids'])
  return numpy_models.bert(params, config, tokens, mask, inputs.get('token_type_ids'))


def reference(folder):
  with np.load(folder / 'reference.npz', allow_pickle=False) as file:
    return dict(file)


@pytest.mark.parametrize('family', FAMILIES)
def test_config(goldens, family):
  assert base.open_base(goldens / 'hf' / family).config == CONFIGS[family]


@pytest.mark.parametrize('family', FAMILIES)
def test_logits_are_hugging_faces(goldens, family):
  config, params = load(goldens / 'hf' / family)
  inputs = reference(goldens / 'hf' / family)
  ours = logits(family, params, config, inputs)
  if family == 'bart':  # its float32 logits are 2e-4 from those in float64, which are the better reference
    np.testing.assert_allclose(ours, inputs['logits_float64'], rtol=0, atol=1e-9)
  np.testing.assert_allclose(ours, inputs['logits'], rtol=0, atol=4e-4 if family == 'bart' else 2e-5)


def adapter(folder):
  return safetensors.numpy.load_file(folder / 'adapter_model.safetensors')['prompt_embeddings']


@pytest.mark.parametrize('method', ['prompt', 'prefix'])
def test_gpt2_with_an_adapter_of_peft(goldens, method):
  config, params = load(goldens / 'hf/gpt2')
  folder = goldens / f'hf/peft_gpt2_{method}'
  inputs, rows = reference(folder), adapter(folder)
  n = len(inputs['logits'])
  if method == 'prompt':
    extra = {'prompt': rows}
  else:  # of each position, layer by layer: key, then value
    rows = rows.reshape(len(rows), -1, config.num_heads, config.head_dim).swapaxes(0, 1)
    extra = {'prefix': (rows[0::2], rows[1::2])}
  ours = numpy_models.gpt2(params, config, inputs['input_ids'][:n], inputs['attention_mask'][:n], **extra)
  np.testing.assert_allclose(ours, inputs['logits'], rtol=0, atol=1e-4)


@pytest.mark.parametrize('family', FAMILIES)
def test_sharded_equals_unsharded(goldens, family):
  """Layers over two devices, the last axis over four: GPT-2's query, key and value are parts of joined tensors."""
  mesh = jax.make_mesh((2, 4), ('data', 'model'), axis_types=(jax.sharding.AxisType.Auto,) * 2)

  def sharding(x):
    axes = ['data' if len(x.shape) == 3 else None, None, None][:len(x.shape)]
    axes[-1] = 'model' if x.shape[-1] % 4 == 0 else None
    return NamedSharding(mesh, PartitionSpec(*axes))

  source = base.open_base(goldens / 'hf' / family)
  abstract = shapes(source)
  params = base.load_params(source, abstract, jax.tree.map(sharding, abstract))
  jax.tree.map(np.testing.assert_array_equal, params, load(goldens / 'hf' / family)[1])
  kernels = [x for path, x in trees.flatten(params).items() if path.endswith('query/kernel')]
  assert all(x.addressable_shards[0].data.shape == (1, 32, 8) for x in kernels)


# --- the ways in which they are saved ---


def without(prefix, tensors):
  return {name.removeprefix(prefix): x for name, x in tensors.items()}


def test_gpt2_as_first_released(goldens, copy):
  folder = copy('gpt2')
  tensors = without('transformer.', raw(folder))
  tensors |= {f'h.{i}.attn.bias': np.tri(64, dtype=np.float32)[None, None] for i in range(2)}
  tensors |= {f'h.{i}.attn.masked_bias': np.full((), -1e4, np.float32) for i in range(2)}
  rewrite(folder, tensors | {'lm_head.weight': tensors['wte.weight']})
  check_same(folder, goldens / 'hf/gpt2')


@pytest.mark.parametrize('kept', ['shared', 'encoder.embed_tokens', 'decoder.embed_tokens'])
def test_bart_with_aliases(goldens, copy, kept):
  folder = copy('bart')
  tensors = without('model.', raw(folder))
  aliases = ('shared.weight', 'encoder.embed_tokens.weight', 'decoder.embed_tokens.weight', 'lm_head.weight')
  embedding = tensors['shared.weight']
  rewrite(folder, {**tensors, **dict.fromkeys(aliases, embedding)})
  check_same(folder, goldens / 'hf/bart')
  del tensors['shared.weight']
  rewrite(folder, {**tensors, f'{kept}.weight': embedding})
  check_same(folder, goldens / 'hf/bart')


def test_bart_without_a_bias_on_the_logits(goldens, copy, tmp_path):
  folder = copy('bart')
  tensors = raw(folder)
  bias = tensors.pop('final_logits_bias')
  rewrite(folder, tensors)
  config, params = load(folder)
  assert config == dataclasses.replace(CONFIGS['bart'], logits_bias=False)
  assert 'logits_bias' not in params['decoder']
  inputs = reference(folder)
  ours = logits('bart', params, config, inputs)
  np.testing.assert_allclose(ours + bias, inputs['logits_float64'], rtol=0, atol=1e-9)
  convert.convert(base.open_base(folder), tmp_path / 'written', 'huggingface')
  assert raw(tmp_path / 'written').keys() == tensors.keys()


@pytest.mark.parametrize('old_names', [False, True])
def test_bert_for_pretraining(goldens, copy, old_names):
  folder = copy('bert')
  tensors, noise = raw(folder), np.ones((32, 32), np.float32)
  if old_names:
    tensors = {name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'): x
               for name, x in tensors.items()}
    assert 'cls.predictions.transform.LayerNorm.gamma' in tensors
  rewrite(folder, tensors | {
      'bert.pooler.dense.weight': noise, 'bert.pooler.dense.bias': noise[0],
      'cls.seq_relationship.weight': noise[:2], 'cls.seq_relationship.bias': noise[0, :2],
      'bert.embeddings.position_ids': np.arange(64)[None],
      'cls.predictions.decoder.weight': tensors['bert.embeddings.word_embeddings.weight']})
  check_same(folder, goldens / 'hf/bert')


@pytest.mark.parametrize('biases', [('lm_head.bias', 'lm_head.decoder.bias'), ('lm_head.decoder.bias',)])
def test_roberta_with_aliases(goldens, copy, biases):
  folder = copy('roberta')
  tensors = raw(folder)
  bias = tensors.pop('lm_head.bias')
  rewrite(folder, {
      **tensors, **dict.fromkeys(biases, bias), 'roberta.embeddings.position_ids': np.arange(66)[None],
      'lm_head.decoder.weight': tensors['roberta.embeddings.word_embeddings.weight']})
  check_same(folder, goldens / 'hf/roberta')


def check_same(folder, original):
  source = base.open_base(folder)
  params = base.load_params(source, shapes(source))
  config, expected = load(original)
  assert source.config == config
  assert base.fingerprint(params) == base.fingerprint(expected)


@pytest.mark.parametrize(('family', 'head'), [('roberta', 'lm_head.'), ('bert', 'cls.')])
def test_an_encoder_without_a_head(goldens, copy, tmp_path, family, head):
  folder = copy(family)
  encoder = {name: x for name, x in raw(folder).items() if not name.startswith(head)}
  pooler = np.ones((32, 32), np.float32)
  rewrite(folder, without(f'{family}.', encoder) | {'pooler.dense.weight': pooler, 'pooler.dense.bias': pooler[0]})
  config, params = load(folder)
  assert config == dataclasses.replace(CONFIGS[family], mlm_head=False)
  whole = trees.flatten(load(goldens / 'hf' / family)[1])
  for path, x in trees.flatten(params).items():
    np.testing.assert_array_equal(x, whole.pop(path), err_msg=path)
  assert {path.partition('/')[0] for path in whole} == {'mlm_head'}
  convert.convert(base.open_base(folder), tmp_path / 'written', 'huggingface')
  written = raw(tmp_path / 'written')
  assert written.keys() == encoder.keys()
  assert base.open_base(tmp_path / 'written').config == config
  architecture = json.loads((tmp_path / 'written/config.json').read_text())['architectures']
  assert architecture == [{'roberta': 'RobertaModel', 'bert': 'BertModel'}[family]]


def test_keys_that_old_configs_lack(copy):
  """transformers' own defaults for them."""
  lacking = {
      'gpt2': ('n_inner', 'activation_function', 'eos_token_id', 'bos_token_id', 'pad_token_id', 'tie_word_embeddings',
               'layer_norm_epsilon'),
      'bart': ('activation_function', 'scale_embedding', 'pad_token_id', 'bos_token_id', 'eos_token_id',
               'decoder_start_token_id', 'forced_eos_token_id'),
      'roberta': ('type_vocab_size', 'layer_norm_eps', 'hidden_act', 'pad_token_id', 'bos_token_id', 'eos_token_id'),
      'bert': ('type_vocab_size', 'layer_norm_eps', 'hidden_act', 'pad_token_id'),
  }
  expected = {
      'gpt2': {'eos_id': 50256, 'bos_id': 50256, 'pad_id': 50256},
      'bart': {},
      'roberta': {'token_types': 2, 'layer_norm_epsilon': 1e-12},
      'bert': {},
  }
  for family in FAMILIES:
    folder = copy(family)
    rewrite(folder, **dict.fromkeys(lacking[family], ...))
    (folder / 'generation_config.json').unlink(missing_ok=True)
    assert base.open_base(folder).config == dataclasses.replace(CONFIGS[family], **expected[family])


# --- refusals ---


@pytest.mark.parametrize(('family', 'settings', 'message'), [
    ('gpt2', {'model_type': 'gpt_neo'}, "model_type is 'gpt_neo'; expected one of t5, mt5, gpt2, bart, roberta, bert"),
    ('gpt2', {'activation_function': 'silu'}, "activation_function is 'silu'; expected one of gelu_new, "),
    ('bart', {'activation_function': 'swish'}, "activation_function is 'swish'; expected one of gelu_new, "),
    ('bert', {'hidden_act': ['gelu']}, r"hidden_act is \['gelu'\]; expected one of gelu_new, "),
    ('gpt2', {'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx is True; the backbone '),
    ('gpt2', {'scale_attn_weights': False}, 'scale_attn_weights is False; the backbone computes only'),
    ('gpt2', {'add_cross_attention': True}, 'add_cross_attention is True; the backbone computes only'),
    ('gpt2', {'n_embd': 33}, 'the width 33 does not divide over 4 attention heads'),
    ('gpt2', {'n_head': 0}, 'the width 32 does not divide over 0 attention heads'),
    ('gpt2', {'n_layer': None}, 'n_layer is None; expected a whole number'),
    ('gpt2', {'eos_token_id': [1, 2]}, r'eos_token_id is \[1, 2\]; expected a whole number'),
    ('gpt2', {'layer_norm_epsilon': 0}, 'layer_norm_epsilon is 0; expected a positive number'),
    ('gpt2', {'tie_word_embeddings': False}, 'tie_word_embeddings is false and lm_head.weight is not in the file'),
    ('bart', {'decoder_attention_heads': 2}, 'encoder_attention_heads is 4 and decoder_attention_heads 2; they must'),
    ('bart', {'decoder_ffn_dim': 64}, 'encoder_ffn_dim is 48 and decoder_ffn_dim 64; they must be equal'),
    ('bart', {'scale_embedding': 'yes'}, "scale_embedding is 'yes'; expected true or false"),
    ('bart', {'forced_eos_token_id': [2]}, r'forced_eos_token_id is \[2\]; expected one token id or null'),
    ('bart', {'is_encoder_decoder': False}, 'is_encoder_decoder is False; the backbone computes only'),
    ('roberta', {'is_decoder': True}, 'is_decoder is True; the backbone computes only is_decoder False'),
    ('bert', {'position_embedding_type': 'relative_key'}, "position_embedding_type is 'relative_key'; the backbone"),
])
def test_configs_that_are_refused(copy, family, settings, message):
  folder = copy(family)
  rewrite(folder, **settings)
  with pytest.raises(ValueError, match=f'config.json: {message}'):
    base.open_base(folder)


@pytest.mark.parametrize(('family', 'name', 'of'), [
    ('gpt2', 'lm_head.weight', 'transformer.wte.weight'),
    ('bart', 'lm_head.weight', 'model.shared.weight'),
    ('bart', 'model.encoder.embed_tokens.weight', 'model.shared.weight'),
    ('roberta', 'lm_head.decoder.weight', 'roberta.embeddings.word_embeddings.weight'),
    ('roberta', 'lm_head.decoder.bias', 'lm_head.bias'),
    ('bert', 'cls.predictions.decoder.weight', 'bert.embeddings.word_embeddings.weight'),
])
def test_a_copy_that_is_none_is_refused(copy, family, name, of):
  folder = copy(family)
  tensors = raw(folder)
  other = tensors[of].copy()
  other[-1] += 1
  rewrite(folder, {**tensors, name: other})
  with pytest.raises(ValueError, match=f'{name} is not equal to {of}; the backbone has one parameter for both'):
    base.open_base(folder)


@pytest.mark.parametrize(('family', 'lost', 'line'), [
    ('gpt2', 'transformer.h.1.attn.c_attn.bias',
     '- transformer.h.1.attn.c_attn.bias  (a layer of decoder/layers/self_attention/query/bias, not in the '),
    ('bart', 'model.shared.weight', '- token_embedder/embedding [256, 32]  (expected by the model, '),
    ('roberta', 'lm_head.dense.weight', '- mlm_head/dense/kernel [32, 32]  (expected by the model, '),
    ('bert', 'bert.embeddings.LayerNorm.weight', '- encoder/embedding_norm/scale [32]  (expected by the model, '),
])
def test_lost_unknown_and_resized_tensors(goldens, copy, family, lost, line):
  abstract = shapes(base.open_base(goldens / 'hf' / family))
  folder = copy(family)
  tensors = raw(folder)
  resized = {'gpt2': 'transformer.ln_f.bias', 'bart': 'model.decoder.embed_positions.weight',
             'roberta': 'lm_head.layer_norm.bias', 'bert': 'cls.predictions.bias'}[family]
  del tensors[lost]
  rewrite(folder, {**tensors, resized: tensors[resized][:-1], 'adapter.weight': tensors[resized]})
  with pytest.raises(base.CheckpointMismatchError) as error:
    base.load_params(base.open_base(folder), abstract)
  lines = str(error.value).split('\n')
  assert any(line in found for found in lines)
  shape = tensors[resized].shape
  assert f'+ adapter.weight {list(shape)}  (in the checkpoint, unknown to the model)' in lines
  assert sum(f'the checkpoint {[shape[0] - 1, *shape[1:]]}' in found for found in lines) == 1


def test_a_family_without_a_backbone_says_so(goldens, monkeypatch):
  monkeypatch.delitem(loading.BACKBONES, 'gpt2', raising=False)
  with pytest.raises(ValueError, match="There is no backbone for models of the family 'gpt2' yet"):
    loading.load(str(goldens / 'hf/gpt2'), Prompt(length=1))
