"""What a prompt looks like: neighbours, clusters and labels by hand, and the command's files."""

import json

import numpy as np
import pytest

from prompt_tuning.analysis import interpret
from prompt_tuning.checkpoints import base as base_checkpoints
from prompt_tuning.checkpoints import tuned
from prompt_tuning.tokenizer import open_tokenizer
from tests import models

WORDS = [' good', ' Good', ' goods', ' bad', ' entailment']
TABLE = np.array([[1, 0, 0], [0.9, 0.1, 0], [0.9, 0, 0.2], [0, 1, 0], [0, 0.1, 1]], np.float32)


def test_nearest_by_cosine():
  prompt = np.array([[5, 0, 0.1], [0, -1, 0.2]], np.float32)
  ids, cosines = interpret.nearest(prompt, TABLE, 5)
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  by_hand = unit(prompt) @ unit(TABLE).T
  assert ids[0].tolist() == np.argsort(-by_hand[0]).tolist()
  assert ids[1, 0] == 4
  assert ids[1, -1] == 3  # bad is the farthest of its opposite
  np.testing.assert_allclose(cosines, -np.sort(-by_hand, axis=1), rtol=1e-6)
  assert interpret.words(ids[:, :1], cosines[:, :1], WORDS.__getitem__)[0][0][0] == ' good'


def test_cohesion_is_the_mean_cosine_of_pairs():
  unit = TABLE / np.linalg.norm(TABLE, axis=1, keepdims=True)
  pairs = [unit[a] @ unit[b] for a, b in ((0, 1), (0, 3), (1, 3))]
  found = interpret.cohesion(np.array([[0, 1, 3], [2, 2, 2]]), TABLE)
  np.testing.assert_allclose(found, [np.mean(pairs), 1], rtol=1e-6)
  assert np.isnan(interpret.cohesion(np.array([[0]]), TABLE)).all()


def test_clusters_share_neighbours_also_through_others():
  ids = np.array([[0, 1], [5, 6], [1, 2], [7, 8], [2, 3], [8, 9]])
  assert interpret.clusters(ids) == [[0, 2, 4], [3, 5]]
  assert interpret.clusters(ids[:2]) == []


def test_forms_of_a_word_and_labels():
  assert interpret.forms([' good', 'Good', ' goods', ' bad']) == 3
  assert interpret.forms([' good', ' bad']) == 0
  rows = [[' good', ' Bad'], [' goods'], ['BAD']]
  assert interpret.recurrence(rows, ['bad', 'ugly']) == {'bad': [0, 2], 'ugly': []}


def test_a_prompt_of_words_is_tighter_than_random_vectors():
  """On a table in which words of one kind lie together, as those of a trained model do."""
  rng = np.random.default_rng(0)
  kinds = rng.standard_normal((20, 32))
  table = (np.repeat(kinds, 5, axis=0) + 0.2 * rng.standard_normal((100, 32))).astype(np.float32)
  found = interpret.describe(table[::5][:6], table, lambda i: f' w{i}', class_labels=['w0', 'w99'], top_k=5)
  assert found['cohesion']['prompt'] > found['cohesion']['random'] + 0.2
  assert found['clusters'] == []
  assert found['class_labels'] == {'w0': {'tokens': [0], 'share': 1 / 6}, 'w99': {'tokens': [], 'share': 0.0}}
  twice = interpret.describe(table[[0, 1, 50]], table, lambda i: f' w{i}')
  assert [c['tokens'] for c in twice['clusters']] == [[0, 1]]
  assert len(twice['repeated']) == 5
  text = interpret.text_of(twice)
  assert 'share neighbours:\n  0, 1: w' in text
  assert 'class label' not in text


@pytest.fixture
def prompt(tmp_path):
  """A prompt of words of the tiny GPT-2, a hundred times as long."""
  base = str(models.GOLDENS / 'tiny' / 'gpt2')
  tokenizer = open_tokenizer(base_checkpoints.open_base(base).tokenizer_path, 'gpt2')
  ids = [tokenizer.encode(word)[0] for word in (' food', ' the')]
  table = 100 * interpret.loading.base_of(base).embeddings(ids)
  tuned.save_npy(tmp_path / 'a.npy', tuned.Tuned('prompt', {tuned.PROMPT: table}))
  return base, str(tmp_path / 'a.npy'), [tokenizer.piece(i).strip() for i in ids]


def test_the_files_of_the_command(prompt, tmp_path, capsys):
  base, file, words = prompt
  found = interpret.interpret(
      checkpoint_path=file, initial_checkpoint_path=base, output_dir=str(tmp_path / 'out'), class_labels=[words[1]],
      top_k=3)
  assert [token['neighbours'][0][0].strip() for token in found['tokens']] == words
  assert found['class_labels'][words[1]]['tokens'][-1] == 1
  assert json.loads((tmp_path / 'out' / 'interpret.json').read_text()) == found
  text = (tmp_path / 'out' / 'interpret.txt').read_text()
  assert text == capsys.readouterr().out
  assert words[0] in text
  png = (tmp_path / 'out' / 'interpret.png').read_bytes()
  assert png.startswith(b'\x89PNG')
  assert len(png) > 3000
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
      'interpret.json', 'interpret.png', 'interpret.txt']


def test_refusals(prompt, tmp_path):
  base, file, _ = prompt
  run = lambda **kwargs: interpret.interpret(**{
      'checkpoint_path': file, 'initial_checkpoint_path': base, 'output_dir': str(tmp_path / 'out'), **kwargs})
  with pytest.raises(ValueError, match='TOP_K=0; expected 1 to'):
    run(top_k=0)
  np.save(tmp_path / 'b.npy', np.zeros((2, 32), np.float32))
  with pytest.raises(ValueError, match='prompt is 32 wide but the embedding table 64'):
    run(checkpoint_path=str(tmp_path / 'b.npy'))
  prefix = {f'prefix/decoder/attn_kv/{name}': np.ones((2, 5, 4, 16)) for name in ('key', 'value')}
  tuned.save_safetensors(tmp_path / 'c.safetensors', tuned.Tuned('prefix', prefix))
  with pytest.raises(ValueError, match='has no prompt to interpret .*name a run of prompt tuning or P-tuning'):
    run(checkpoint_path=str(tmp_path / 'c.safetensors'))
  assert not (tmp_path / 'out').exists()
