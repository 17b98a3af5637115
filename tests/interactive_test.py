"""Text in, text out, on a folder as Hugging Face writes it (random weights, T5's vocabulary)."""

from flax import linen as nn
import jax
import numpy as np
import pytest

from prompt_tuning import loading, trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import huggingface, tuned
from prompt_tuning.checkpoints.source import TensorInfo
from prompt_tuning.interactive import PromptedModel
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.prompted import Prompted
from prompt_tuning.tokenizer import T5_VOCABULARY
from tests import models

CONFIG = config_lib.from_size('t5_1_1_tiny')
TEXTS = ['sentence: a gorgeous , witty , seductive movie .', 'hello', 'sentence: bad .',
         'one two three four five six seven eight nine ten eleven twelve thirteen fourteen', 'sentence: so so .']
TARGETS = ['positive', 'a', 'negative', 'several words here', 'negative']


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A random T5 as a Hugging Face folder."""
  abstract = Prompted(loading.Backbone().module(CONFIG), Prompt()).abstract_frozen()
  params = trees.flatten(models.random_params(nn.meta.unbox(abstract)))
  infos = {path: TensorInfo(x.shape, x.dtype) for path, x in params.items()}
  folder = tmp_path_factory.mktemp('base') / 't5'
  with huggingface.writing(folder, CONFIG, infos, T5_VOCABULARY) as writer:
    for path, x in params.items():
      writer.write(path, np.asarray(x))
  return str(folder)


def saved(folder, prompt, name='prompt.npy') -> str:
  np.save(folder / name, prompt)
  return str(folder / name)


@pytest.fixture(scope='module')
def prompt(tmp_path_factory):
  return saved(tmp_path_factory.mktemp('prompt'), np.random.default_rng(1).standard_normal((3, 64), np.float32))


@pytest.fixture(scope='module')
def model(base, prompt):
  return PromptedModel.load(base, prompt, partitioner=models.one_device(), batch_size=2)


@pytest.fixture(scope='module')
def predicted(model):
  return predictions(model, TEXTS)


def predictions(model, texts) -> tuple[list[str], list[float]]:
  both = [(best.text, best.log_prob) for best, *_ in model.decode(texts, 6)]
  return tuple(map(list, zip(*both, strict=True)))


def by_hand(model, text, target) -> float:
  """The sum of teacher-forced log-probabilities of one example alone, without padding."""
  loaded = model._loaded
  ids = lambda words: [*loaded.tokenizer.encode(words), 1]
  source = loaded.model.method.place(np.array(ids(text), np.int32), CONFIG.vocab_size)
  answer = np.array(ids(target), np.int32)
  logits = loaded.model.logits(model.trainable, loaded.frozen, {
      'encoder_input_tokens': source[None], 'decoder_input_tokens': np.pad(answer, (1, 0))[None, :-1]})
  return float(sum(jax.nn.log_softmax(logits[0])[i, token] for i, token in enumerate(answer)))


def test_scores_are_teacher_forced_log_probabilities(model):
  scores = model.score(TEXTS, TARGETS)
  assert len(scores) == len(TEXTS)
  for i in (1, 3):
    np.testing.assert_allclose(scores[i], by_hand(model, TEXTS[i], TARGETS[i]), rtol=1e-4)


def test_predictions_do_not_depend_on_order(model, predicted):
  words, scores = predicted
  again, scores_again = predictions(model, TEXTS[::-1])
  assert again[::-1] == words
  np.testing.assert_allclose(scores_again[::-1], scores, rtol=1e-4)
  assert all(score < 0 for score in scores)
  assert len(set(map(tuple, np.round(scores, 3).reshape(-1, 1)))) == len(TEXTS)


def test_predictions_do_not_depend_on_the_batch(model, predicted):
  assert [model.predict([text], 6)[0] for text in TEXTS[:3]] == predicted[0][:3]


def test_no_texts_no_predictions(model):
  assert model.predict([]) == []


def test_as_many_targets_as_texts(model):
  with pytest.raises(ValueError, match='2 texts but 1 targets'):
    model.score(['a', 'b'], ['c'])


def test_nearest_words(base, model, tmp_path):
  table = np.asarray(model._loaded.frozen['token_embedder']['embedding'])
  ids = [model._loaded.tokenizer.encode(word)[0] for word in ('good', 'movie')]
  path = saved(tmp_path, 2.0 * table[ids])  # cosine: length does not matter
  nearest = PromptedModel.load(base, path, partitioner=models.one_device()).nearest_words(3)
  assert [row[0][0] for row in nearest] == [' good', ' movie']
  assert [len(row) for row in nearest] == [3, 3]
  for row in nearest:
    np.testing.assert_allclose(row[0][1], 1.0, rtol=1e-5)
    assert row[0][1] > row[1][1] >= row[2][1]


@pytest.mark.parametrize(('prompt', 'message'), [
    (np.zeros((3, 32), np.float32), r'should be \[3, 64\].*made \[3, 32\].*made for this base'),
    (np.full((3, 64), np.nan, np.float32), 'prompt.npy: 192 of 192 values are NaN or infinite'),
    (np.zeros((64,), np.float32), r'prompt.npy: expected one float array \[P, D\], found \(64,\)'),
    (np.zeros((3, 64), np.int32), r'expected one float array \[P, D\]'),
    (np.array([{'a': 1}], dtype=object), 'prompt.npy: not a plain .npy array'),
])
def test_a_prompt_that_does_not_fit(base, tmp_path, prompt, message):
  with pytest.raises(ValueError, match=message):
    PromptedModel.load(base, saved(tmp_path, prompt), partitioner=models.one_device())


def test_a_prompt_that_is_not_there(base, tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no prompts/best.\* and no prompts/prompt_<step>.\* in this folder'):
    PromptedModel.load(base, str(tmp_path))
  with pytest.raises(FileNotFoundError, match='there is no such prompt; expected a .npy file'):
    PromptedModel.load(base, str(tmp_path / 'nowhere.npy'))
  (tmp_path / 'cut.npy').write_bytes(b'\x93NUMPY')
  with pytest.raises(ValueError, match='cut.npy: not a plain .npy array'):
    PromptedModel.load(base, str(tmp_path / 'cut.npy'))


def trained_on(fingerprint: str, folder, rows) -> str:
  """A prompt file that says which base it was trained on."""
  about = {'base_fingerprint': fingerprint, 'base_path': 'models/t5'}
  tuned.save_safetensors(folder / 'a.safetensors', tuned.Tuned('prompt', {tuned.PROMPT: rows}, about))
  return str(folder / 'a.safetensors')


def test_a_prompt_of_this_base_and_one_of_another(base, model, tmp_path):
  """Whatever is warned of is an error here, so that the first says nothing."""
  rows = np.asarray(model.trainable['prompt']['embedding'])
  load = lambda fingerprint: PromptedModel.load(
      base, trained_on(fingerprint, tmp_path, rows), partitioner=models.one_device())
  np.testing.assert_array_equal(load(model._loaded.fingerprint()).trainable['prompt']['embedding'], rows)
  with pytest.warns(tuned.OtherBaseWarning, match=(
      rf'a.safetensors was trained on models/t5 \(fingerprint 0000\) but is used on {base} \(fingerprint \w+\): ')):
    other = load('0000')
  np.testing.assert_array_equal(other.trainable['prompt']['embedding'], rows)


def test_a_prefix(base, model, tmp_path):
  prefix = {f'prefix/decoder/attn_kv/{name}': np.ones((2, 5, 4, 16)) for name in ('key', 'value')}
  tuned.save_safetensors(tmp_path / 'a', tuned.Tuned('prefix', prefix))
  prefixed = PromptedModel.load(base, str(tmp_path / 'a'), partitioner=models.one_device())
  scores = prefixed.score(TEXTS[:2], TARGETS[:2])
  assert np.abs(np.subtract(scores, model.score(TEXTS[:2], TARGETS[:2]))).min() > 1e-3
  with pytest.raises(ValueError, match='Nearest words are those of a prompt; this is a prefix'):
    prefixed.nearest_words()


def test_the_batch_must_divide_over_the_devices(base, prompt):
  with pytest.raises(ValueError, match='batch_size=12 does not divide over the 8 data-parallel devices'):
    PromptedModel.load(base, prompt, batch_size=12)
