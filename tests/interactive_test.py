"""Text in, text out, on a folder as Hugging Face writes it (random weights, T5's vocabulary)."""

from flax import linen as nn
import jax
import numpy as np
import pytest

from prompt_tuning import loading, trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import huggingface, t5_keys
from prompt_tuning.interactive import PromptedModel
from prompt_tuning.methods import initializers
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

  def tensors():
    for path, entry in t5_keys.huggingface(CONFIG).items():
      value = np.asarray(params[path])
      for name, x in zip(entry.names, value if entry.stacked else [value], strict=True):
        yield name, np.ascontiguousarray(x.swapaxes(-1, -2) if entry.transpose else x)

  folder = tmp_path_factory.mktemp('base') / 't5'
  huggingface.write_folder(folder, CONFIG, tensors(), T5_VOCABULARY)
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
  return model.predict_with_scores(TEXTS, 6)


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
  again, scores_again = model.predict_with_scores(TEXTS[::-1], 6)
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
  with pytest.raises(FileNotFoundError, match='no prompts/best.npy and no prompts/prompt_<step>.npy'):
    PromptedModel.load(base, str(tmp_path))
  with pytest.raises(FileNotFoundError, match='there is no such prompt; expected a .npy file'):
    PromptedModel.load(base, str(tmp_path / 'nowhere.npy'))
  (tmp_path / 'cut.npy').write_bytes(b'\x93NUMPY')
  with pytest.raises(ValueError, match='cut.npy: not a plain .npy array'):
    PromptedModel.load(base, str(tmp_path / 'cut.npy'))


def test_a_run_folder_stands_for_its_best_else_newest_prompt(tmp_path):
  folder = tmp_path / 'prompts'
  folder.mkdir()
  for value in (9, 10):
    saved(folder, np.full((2, 4), value, np.float32), f'prompt_{value}.npy')
  assert initializers.load_prompt(str(tmp_path))[0, 0] == 10
  saved(folder, np.full((2, 4), 1, np.float32), 'best.npy')
  assert initializers.load_prompt(str(tmp_path))[0, 0] == 1


def test_the_batch_must_divide_over_the_devices(base, prompt):
  with pytest.raises(ValueError, match='batch_size=12 does not divide over the 8 data-parallel devices'):
    PromptedModel.load(base, prompt, batch_size=12)
