"""The tokenizers give the ids of seqio (SentencePiece) and of Hugging Face (the others), and say what is wrong."""

import json
import os
import pathlib
import shutil

import pytest

from prompt_tuning import tokenizer
from prompt_tuning.tasks import features

TEXTS = ['sentence: a gorgeous , witty , seductive movie .', '', ' two  spaces ', 'Grüße, 你好 ∑', 'hello</s>world',
         'positive', 'premise: It was 3.14 % — really?\ttab']


@pytest.fixture(scope='module')
def ours():
  return tokenizer.Tokenizer()


def test_ids_and_text_equal_seqios(ours):
  for text in TEXTS:
    ids = ours.encode(text)
    assert ids == list(features.VOCABULARY.encode(text)), text
    assert ours.decode([*ids, 1, 0, 0]) == features.VOCABULARY.decode([*ids, 1, 0, 0]), text


def test_decoding_stops_at_the_end_and_skips_what_is_no_piece(ours):
  good, movie = ours.encode('good movie')
  assert ours.decode([good, 1, movie]) == 'good'
  assert ours.decode([0, good, 32_099, 32_128 + 5, movie]) == 'good movie'


def test_names_of_pieces(ours):
  assert len(ours) == 32_000
  assert ours.piece(ours.encode('good')[0]) == ' good'
  assert ours.piece(32_099) == '<extra_id_0>'
  assert ours.piece(32_000) == '<extra_id_99>'
  assert ours.piece(32_100) == '<32100>'


def test_errors_name_the_file(tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere: no such tokenizer'):
    tokenizer.Tokenizer(tmp_path / 'nowhere')
  (tmp_path / 'bad.model').write_bytes(b'not a model')
  with pytest.raises(ValueError, match='bad.model: not a SentencePiece model'):
    tokenizer.Tokenizer(tmp_path / 'bad.model')


# --- byte-level BPE and WordPiece ---

GOLDENS = pathlib.Path(__file__).parent / 'goldens' / 'tokenizers'
IDS = json.loads((GOLDENS / 'ids.json').read_text())
FAMILIES = ('gpt2', 'bart', 'bert')
ORIGINALS = 'PROMPT_TUNING_TOKENIZERS'  # a folder with the released vocabularies in gpt2/, bart/ and bert/
SPECIAL = '<|endoftext|> </s> <s> <pad> [SEP] [CLS] [PAD]'


@pytest.fixture(scope='module', params=FAMILIES)
def subword(request):
  return tokenizer.open_tokenizer(GOLDENS / request.param, request.param)


def changed(tmp_path, family, name, content) -> pathlib.Path:
  """A copy of a golden folder with one file written (None: removed)."""
  folder = pathlib.Path(shutil.copytree(GOLDENS / family, tmp_path / family))
  (folder / name).unlink() if content is None else (folder / name).write_text(content)
  return folder


@pytest.mark.parametrize('family', FAMILIES)
def test_ids_equal_hugging_faces(family):
  ours = tokenizer.open_tokenizer(GOLDENS / family, family)
  for text, ids in zip(IDS['texts'], IDS['small'][family], strict=True):
    assert ours.encode(text) == ids, text


@pytest.mark.skipif(ORIGINALS not in os.environ, reason=f'{ORIGINALS} names no folder with released vocabularies')
@pytest.mark.parametrize('family', FAMILIES)
def test_ids_of_the_released_vocabularies(family):
  ours = tokenizer.open_tokenizer(pathlib.Path(os.environ[ORIGINALS]) / family, family)
  for text, ids in zip(IDS['texts'], IDS['original'][family], strict=True):
    assert ours.encode(text) == ids, text


@pytest.mark.parametrize('family', ['gpt2', 'bart'])
def test_bytes_come_back_as_they_were(family):
  ours = tokenizer.open_tokenizer(GOLDENS / family, family)
  for text in [*IDS['texts'], SPECIAL]:
    ids = ours.encode(text)
    assert ours.decode(ids) == text
    assert ours.decode([ours.eos_id, ours.bos_id, *ids, ours.eos_id, ours.eos_id, *ids]) == text


def test_special_tokens_in_a_text_are_text(subword):
  ids = subword.encode(SPECIAL)
  assert not {subword.bos_id, subword.eos_id, subword.pad_id} & set(ids)
  assert '<|endoftext|>' in subword.decode(ids).replace(' ', '')


def test_word_pieces_are_lower_cased_and_joined():
  bert = tokenizer.open_tokenizer(GOLDENS / 'bert' / 'vocab.txt', 'bert')
  assert bert.encode('The Riverside') == bert.encode('the riverside')
  assert bert.decode([2, *bert.encode('The Riverside.'), 3, 0, 0]) == 'the riverside.'
  assert bert.piece(bert.encode('the')[0]) == ' the'
  assert bert.piece(4) == '[MASK]'


def test_special_ids_and_pieces():
  gpt2, bart = (tokenizer.open_tokenizer(GOLDENS / family, family) for family in ('gpt2', 'bart'))
  assert (len(gpt2), gpt2.bos_id, gpt2.eos_id, gpt2.pad_id, gpt2.unk_id) == (1000, 0, 0, None, None)
  assert (len(bart), bart.bos_id, bart.pad_id, bart.eos_id, bart.unk_id, bart.mask_id) == (1005, 0, 1, 2, 3, 1004)
  for ours in (gpt2, bart):
    (the,) = ours.encode(' the')
    assert ours.piece(the) == ' the'
    assert ours.piece(2000) == '<2000>'
    assert ours.decode([the, -1, 2000, the]) == ' the the'
  assert bart.piece(1004) == '<mask>'


def test_what_is_in_a_folder_does_not_matter(tmp_path):
  """The same tokenizer as OpenAI's files, as Hugging Face's files and as one file of the `tokenizers` library."""
  by_files = tokenizer.open_tokenizer(GOLDENS / 'gpt2', 'gpt2')
  (tmp_path / 'old').mkdir()
  for old, new in (('vocab.json', 'encoder.json'), ('merges.txt', 'vocab.bpe')):
    shutil.copy(GOLDENS / 'gpt2' / old, tmp_path / 'old' / new)
  old = tokenizer.open_tokenizer(tmp_path / 'old', 'gpt2')

  content = json.loads(by_files._backend.to_str())
  content |= {
      'added_tokens': [{'id': 0, 'content': '<|endoftext|>', 'special': True, 'single_word': False, 'lstrip': False,
                        'rstrip': False, 'normalized': False}],
      'post_processor': {'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': False, 'use_regex': True},
      'truncation': {'max_length': 4, 'stride': 0, 'strategy': 'LongestFirst', 'direction': 'Right'}}
  (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
  one_file = tokenizer.open_tokenizer(tmp_path / 'tokenizer.json', 'gpt2')
  assert by_files.fingerprint == old.fingerprint == one_file.fingerprint
  assert one_file.encode(SPECIAL) == by_files.encode(SPECIAL)
  assert len({tokenizer.open_tokenizer(GOLDENS / family, family).fingerprint for family in FAMILIES}) == 3


def test_options_of_tokenizer_config(tmp_path):
  folder = changed(tmp_path, 'bert', 'tokenizer_config.json', '{"do_lower_case": false}')
  cased = tokenizer.open_tokenizer(folder, 'bert')
  assert cased.unk_id in cased.encode('Zz')
  spaced = changed(tmp_path, 'gpt2', 'tokenizer_config.json', '{"add_prefix_space": true}')
  assert tokenizer.open_tokenizer(spaced, 'gpt2').encode('the') == tokenizer.open_tokenizer(
      GOLDENS / 'gpt2', 'gpt2').encode(' the')


def test_text_that_is_none(ours, subword):
  for each in (ours, subword):
    with pytest.raises(ValueError, match="'a\\\\ud800' is no Unicode text: half a surrogate pair at character 1"):
      each.encode('a\ud800')


@pytest.mark.parametrize(('family', 'name', 'content', 'message'), [
    ('gpt2', 'merges.txt', None, r'merges.txt: no such file, which the tokenizer needs'),
    ('gpt2', 'vocab.json', None, r'vocab.json: no such file'),
    ('gpt2', 'vocab.json', '{"a": 0', r'vocab.json: not valid JSON .*download it again'),
    ('gpt2', 'vocab.json', '["a"]', r'vocab.json: expected a JSON object'),
    ('gpt2', 'vocab.json', '{"a": "b"}', r'vocab.json: expected a JSON object of tokens and their ids'),
    ('gpt2', 'vocab.json', '{"a": 0, "b": 0}', r'vocab.json: several tokens have the same id'),
    ('gpt2', 'vocab.json', '{"a": 0, "b": 1}', r'the vocabulary lacks 254 of the 256 bytes'),
    ('gpt2', 'merges.txt', '#version: 0.2\nt h\nthe\n', r"merges.txt, line 3: expected two tokens, found 'the'"),
    ('gpt2', 'merges.txt', 't 你', r'merges.txt and the vocabulary do not belong together'),
    ('gpt2', 'tokenizer.json', '{"model": {"type": "WordPiece", "vocab": {}}}', r'tokenizer.json: no BPE vocabulary'),
    ('gpt2', 'tokenizer.json', '{"model": {"type": "BPE", "vocab": {}}}', r'tokenizer.json: its BPE is not byte-level'),
    ('gpt2', 'tokenizer.json', '{"model": {"type": "BPE", "vocab": {}}, "pre_tokenizer": "ByteLevel"}',
     r'tokenizer.json: not a tokenizer'),
    ('gpt2', 'tokenizer.json', '{"model": {"type": "BPE", "vocab": {}}, "pre_tokenizer": "ByteLevel", '
     '"added_tokens": [7]}', r'tokenizer.json: not a tokenizer .*int'),
    ('bart', 'dict.txt', '5 10\n6 9\n10 x\n', r"dict.txt, line 3: expected a token id of GPT-2 and a count"),
    ('bart', 'encoder.json', None, r'encoder.json: no such file'),
    ('bert', 'vocab.txt', 'a\nb\n', r'vocab.txt: has no \[UNK\]'),
    ('bert', 'vocab.txt', '[UNK]\nb\n', r'vocab.txt: the vocabulary has no \[SEP\]'),
    ('bert', 'vocab.txt', None, r'bert: no tokenizer of a bert model; expected tokenizer.json or vocab.txt'),
    ('bert', 'tokenizer_config.json', '[', r'tokenizer_config.json: not valid JSON'),
])
def test_files_that_are_missing_or_broken(tmp_path, family, name, content, message):
  with pytest.raises((FileNotFoundError, ValueError), match=message):
    tokenizer.open_tokenizer(changed(tmp_path, family, name, content), family)


def test_what_cannot_be_opened(tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere: no such tokenizer; expected a folder with tokenizer.json, '):
    tokenizer.open_tokenizer(tmp_path / 'nowhere', 'roberta')
  with pytest.raises(ValueError, match="family 'llama'; expected one of t5, gpt2"):
    tokenizer.open_tokenizer(tmp_path, 'llama')
  with pytest.raises(ValueError, match='the vocabulary has no </s>, as that of bart models'):
    tokenizer.open_tokenizer(GOLDENS / 'gpt2', 'bart')
  with pytest.raises(FileNotFoundError, match='spiece.model: no such tokenizer'):
    tokenizer.open_tokenizer(tmp_path, 't5')
  (tmp_path / 'vocab.txt').write_bytes(b'\xff\xfe')
  with pytest.raises(ValueError, match='vocab.txt: not UTF-8 text'):
    tokenizer.open_tokenizer(tmp_path, 'bert')


def test_fingerprints_of_sentencepiece_do_not_count_seqios_extra_ids(ours):
  vocabulary = features.VOCABULARY
  assert vocabulary.extra_ids == 100
  assert tokenizer.sentencepiece_fingerprint(vocabulary.tokenizer, vocabulary.extra_ids) == ours.fingerprint
  assert tokenizer.sentencepiece_fingerprint(vocabulary.tokenizer) != ours.fingerprint
