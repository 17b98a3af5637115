"""Text <-> token ids without TensorFlow, for everything outside `tasks/`: SentencePiece, byte-level BPE, WordPiece.

Text is text: '<|endoftext|>', '</s>' or '[SEP]' inside it become the ordinary tokens of those characters, never the
special id, other than in Hugging Face's tokenizers. Special ids are put around a text by its layout (`features.py`).
Nothing but tables is read from a folder: no code, no pickles.
"""

from collections.abc import Iterable, Mapping
import functools
import hashlib
import json
import pathlib
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

T5_VOCABULARY = pathlib.Path(__file__).parent / 'assets' / 't5.spiece.model'
"""T5's vocabulary: 32,000 pieces. Models round it up with 100 sentinels (`<extra_id_0>` = 32099) and padding."""


class Tokenizer:
  """A SentencePiece model file. Ids outside its pieces decode to nothing.

  Attributes:
    bos_id, eos_id, pad_id, unk_id: special ids; None: it has none.
    fingerprint: of the pieces and their scores; the same for tokenizers that give the same ids.
  """

  def __init__(self, path: str | pathlib.Path = T5_VOCABULARY):
    """Raises FileNotFoundError or ValueError if `path` is no SentencePiece model."""
    if not pathlib.Path(path).is_file():
      raise FileNotFoundError(f'{path}: no such tokenizer; expected a SentencePiece model (spiece.model).')
    try:
      self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except RuntimeError as error:
      raise ValueError(f'{path}: not a SentencePiece model ({error}).') from error
    known = lambda i: None if i < 0 else i
    self.bos_id, self.eos_id = known(self._model.bos_id()), known(self._model.eos_id())
    self.pad_id, self.unk_id = known(self._model.pad_id()), known(self._model.unk_id())

  def __len__(self) -> int:
    return self._model.get_piece_size()

  @functools.cached_property
  def fingerprint(self) -> str:
    return sentencepiece_fingerprint(self._model)

  def encode(self, text: str) -> list[int]:
    """Token ids, without end of sequence.

    Raises:
      ValueError: `text` is no Unicode text.
    """
    return self._model.encode(_unicode(text))

  def decode(self, ids: Iterable[int]) -> str:
    """Text up to the first end of sequence; padding and ids beyond the pieces are left out."""
    pieces = []
    for i in map(int, ids):
      if i == self.eos_id:
        break
      if 0 < i < len(self):
        pieces.append(i)
    return self._model.decode(pieces)

  def piece(self, i: int) -> str:
    """The piece of one id as a word: '▁good' -> ' good'; '<extra_id_k>' or '<i>' beyond the pieces."""
    if i < len(self):
      return self._model.id_to_piece(i).replace('▁', ' ')
    return f'<extra_id_{len(self) + 99 - i}>' if i < len(self) + 100 else f'<{i}>'


def sentencepiece_fingerprint(model: sentencepiece.SentencePieceProcessor, extra_ids: int = 0) -> str:
  """Of the pieces and their scores, without the `extra_ids` that seqio adds behind them."""
  ids = list(range(model.get_piece_size() - extra_ids))
  return _digest([model.id_to_piece(ids), model.get_score(ids)])


_GPT2 = {'bos': '<|endoftext|>', 'eos': '<|endoftext|>'}
_BART = {'bos': '<s>', 'pad': '<pad>', 'eos': '</s>', 'unk': '<unk>', 'mask': '<mask>'}
_BERT = {'bos': '[CLS]', 'pad': '[PAD]', 'eos': '[SEP]', 'unk': '[UNK]', 'mask': '[MASK]'}
_SPECIAL = {'gpt2': _GPT2, 'bart': _BART, 'roberta': _BART, 'bert': _BERT}  # family -> its special tokens
_EXPECTED = {
    't5': 'spiece.model',
    'gpt2': 'tokenizer.json, vocab.json with merges.txt, or encoder.json with vocab.bpe',
    'bart': 'tokenizer.json, vocab.json with merges.txt, or dict.txt with encoder.json and vocab.bpe',
    'bert': 'tokenizer.json or vocab.txt',
}
_EXPECTED['roberta'] = _EXPECTED['bart']


class SubwordTokenizer:
  """Byte-level BPE (GPT-2, BART, RoBERTa) or WordPiece (BERT). Ids of no token decode to nothing.

  Attributes:
    bos_id, eos_id, pad_id, unk_id, mask_id: special ids ([CLS] and [SEP] for BERT); None: it has none.
    fingerprint: of what maps text to ids; the same for tokenizers that give the same ids, whatever their files.
  """

  def __init__(self, backend: tokenizers.Tokenizer, special: Mapping[str, int]):
    """`open_tokenizer` is the usual way here. `special`: 'bos', 'eos', 'pad', 'unk', 'mask' -> id."""
    self._backend, self._special = backend, frozenset(special.values())
    self.bos_id, self.eos_id, self.pad_id, self.unk_id, self.mask_id = map(
        special.get, ('bos', 'eos', 'pad', 'unk', 'mask'))
    self._size = 1 + max(*self._special, *backend.get_vocab().values())

  def __len__(self) -> int:
    """One more than the highest id."""
    return self._size

  @functools.cached_property
  def fingerprint(self) -> str:
    parts = json.loads(self._backend.to_str())
    model, splitter = parts['model'], parts['pre_tokenizer']
    return _digest([sorted(model['vocab'].items()), model.get('merges'), parts['normalizer'],
                    {name: value for name, value in splitter.items() if name != 'trim_offsets'}])

  def encode(self, text: str) -> list[int]:
    """Token ids, without special ones.

    Raises:
      ValueError: `text` is no Unicode text.
    """
    return self._backend.encode(_unicode(text)).ids

  def decode(self, ids: Iterable[int]) -> str:
    """Text without special tokens, up to the first end of sequence behind those that begin the ids.

    A decoder's ids may begin with a start token that is its end of sequence too (GPT-2, BART).
    """
    tokens: list[int] = []
    begun = False
    for i in map(int, ids):
      if begun and i == self.eos_id:
        break
      begun = begun or i not in self._special
      if 0 <= i < len(self) and i not in self._special:
        tokens.append(i)
    return self._backend.decode(tokens, skip_special_tokens=False)

  def piece(self, i: int) -> str:
    """The piece of one id as a word: 'Ġgood' or 'good' -> ' good', '##ing' -> 'ing'; '<i>' where there is none."""
    token = self._backend.id_to_token(i) if 0 <= i < len(self) else None
    if token is None or i in self._special:
      return token or f'<{i}>'
    if isinstance(self._backend.model, models.WordPiece):
      return token[2:] if token.startswith('##') else f' {token}'
    return self._backend.decode([i], skip_special_tokens=False)


AnyTokenizer = Tokenizer | SubwordTokenizer


def open_tokenizer(path: str | pathlib.Path, family: str) -> AnyTokenizer:
  """The tokenizer of a model folder, or of one of its files.

  Of what a folder holds, `tokenizer.json` comes first. A `vocab.txt` is lower-cased unless `tokenizer_config.json`
  beside it says otherwise, as Hugging Face has it.

  Args:
    path: a folder with the files of the family (`dict.txt` is fairseq's), or one of those files.
    family: `BackboneConfig.family`.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a file is broken, or of a tokenizer of another kind.
  """
  if family not in _EXPECTED:
    raise ValueError(f'There is no tokenizer for models of the family {family!r}; expected one of '
                     f'{", ".join(_EXPECTED)}.')
  path = pathlib.Path(path)
  if family == 't5':
    return Tokenizer(path / 'spiece.model' if path.is_dir() else path)
  if not path.exists():
    raise FileNotFoundError(f'{path}: no such tokenizer; expected a folder with {_EXPECTED[family]}.')
  folder = path if path.is_dir() else path.parent
  found = lambda name: (folder / name).is_file() if path.is_dir() else path.name == name
  if found('tokenizer.json'):
    return _from_json(folder / 'tokenizer.json', family)
  if family == 'bert' and found('vocab.txt'):
    return _word_piece(folder / 'vocab.txt')
  if family != 'bert':
    if found('dict.txt'):
      return _byte_level(folder, _fairseq_vocabulary(folder), 'vocab.bpe', family)
    for vocabulary, merges in (('vocab.json', 'merges.txt'), ('encoder.json', 'vocab.bpe')):
      if found(vocabulary) or found(merges):
        return _byte_level(folder, _vocabulary(folder / vocabulary), merges, family)
  raise FileNotFoundError(f'{path}: no tokenizer of a {family} model; expected {_EXPECTED[family]}: copy them there '
                          'from where the model comes from.')


def _from_json(file: pathlib.Path, family: str) -> SubwordTokenizer:
  """The `tokenizers` library's own file, without what it does to special tokens in a text and around it."""
  parts = _json(file)
  model, splitter = parts.get('model'), parts.get('pre_tokenizer')
  kind = 'WordPiece' if family == 'bert' else 'BPE'
  if not isinstance(model, dict) or model.get('type', kind) != kind or not isinstance(model.get('vocab'), dict):
    raise ValueError(f'{file}: no {kind} vocabulary in it, which {family} models have; use the file of such a model.')
  if kind == 'BPE' and 'ByteLevel' not in json.dumps(splitter):
    raise ValueError(f'{file}: its BPE is not byte-level, as that of {family} models; use the file of such a model.')
  try:
    added = {token['content']: int(token['id']) for token in parts.get('added_tokens') or ()}
    parts |= {'added_tokens': [], 'post_processor': None, 'truncation': None, 'padding': None}
    backend = tokenizers.Tokenizer.from_str(json.dumps(parts))
  except Exception as error:  # the library raises nothing more specific
    raise ValueError(f'{file}: not a tokenizer ({error!r}); {_AGAIN}') from error
  return _with_special(backend, model['vocab'] | added, family, file)


def _byte_level(folder: pathlib.Path, vocabulary: dict[str, int], merges: str, family: str) -> SubwordTokenizer:
  if missing := set(pre_tokenizers.ByteLevel.alphabet()) - set(vocabulary):
    raise ValueError(f'{folder}: the vocabulary lacks {len(missing)} of the 256 bytes, so that some text has no '
                     f'tokens; {_AGAIN}')
  try:
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=_merges(folder / merges)))
  except Exception as error:
    raise ValueError(f'{folder}: {merges} and the vocabulary do not belong together ({error}); {_AGAIN}') from error
  space = bool(_options(folder).get('add_prefix_space', False))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
  backend.decoder = decoders.ByteLevel()
  return _with_special(backend, vocabulary, family, folder)


def _word_piece(file: pathlib.Path) -> SubwordTokenizer:
  tokens = _text(file).split('\n')
  vocabulary = {token.rstrip('\r'): i for i, token in enumerate(tokens[:-1] if tokens[-1] == '' else tokens)}
  options, unknown = _options(file.parent), _BERT['unk']
  if unknown not in vocabulary:
    raise ValueError(f'{file}: has no {unknown}; expected a WordPiece vocabulary, one token a line; {_AGAIN}')
  backend = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=unknown, max_input_chars_per_word=100))
  backend.normalizer = normalizers.BertNormalizer(
      lowercase=options.get('do_lower_case', True) is not False,
      handle_chinese_chars=options.get('tokenize_chinese_chars', True) is not False,
      strip_accents=options.get('strip_accents'))
  backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  backend.decoder = decoders.WordPiece()
  return _with_special(backend, vocabulary, 'bert', file)


def _with_special(backend, vocabulary: Mapping[str, int], family: str, where: pathlib.Path) -> SubwordTokenizer:
  special = {name: vocabulary[token] for name, token in _SPECIAL[family].items() if token in vocabulary}
  if 'eos' not in special:
    raise ValueError(f'{where}: the vocabulary has no {_SPECIAL[family]["eos"]}, as that of {family} models; use the '
                     'files of such a model.')
  return SubwordTokenizer(backend, special)


# --- files ---

_AGAIN = 'download it again.'


def _vocabulary(file: pathlib.Path) -> dict[str, int]:
  """Token -> id."""
  vocabulary = _json(file)
  if not all(isinstance(i, int) and 0 <= i < 2**31 for i in vocabulary.values()):
    raise ValueError(f'{file}: expected a JSON object of tokens and their ids; {_AGAIN}')
  if len(set(vocabulary.values())) < len(vocabulary):
    raise ValueError(f'{file}: several tokens have the same id; {_AGAIN}')
  return vocabulary


def _fairseq_vocabulary(folder: pathlib.Path) -> dict[str, int]:
  """Token -> id of BART and RoBERTa in fairseq's files, whose dictionary lists GPT-2's ids by frequency."""
  token_of = {str(i): token for token, i in _vocabulary(folder / 'encoder.json').items()}
  file, tokens = folder / 'dict.txt', ['<s>', '<pad>', '</s>', '<unk>']
  for number, line in enumerate(_text(file).splitlines(), 1):
    word, _, count = line.rpartition(' ')
    if not (word in token_of or word.startswith('madeupword')) or not count.isdigit():
      raise ValueError(
          f'{file}, line {number}: expected a token id of GPT-2 and a count, found {line[:40]!r}; {_AGAIN}')
    tokens.append(token_of.get(word, word))
  return {token: i for i, token in enumerate([*tokens, '<mask>'])}


def _merges(file: pathlib.Path) -> list[tuple[str, str]]:
  """The pairs of a `merges.txt`, which may begin with a '#version' line."""
  pairs = []
  for number, line in enumerate(_text(file).split('\n'), 1):
    if not line.strip() or (number == 1 and line.startswith('#version')):
      continue
    pair = line.rstrip('\r').split(' ')
    if len(pair) != 2 or not all(pair):
      raise ValueError(f'{file}, line {number}: expected two tokens, found {line[:40]!r}; {_AGAIN}')
    pairs.append(tuple(pair))
  return pairs


def _options(folder: pathlib.Path) -> dict[str, Any]:
  """Hugging Face's `tokenizer_config.json`, if there is one."""
  file = folder / 'tokenizer_config.json'
  return _json(file) if file.is_file() else {}


def _json(file: pathlib.Path) -> dict[str, Any]:
  try:
    content = json.loads(_text(file))
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{file}: not valid JSON ({error}); {_AGAIN}') from error
  if not isinstance(content, dict):
    raise ValueError(f'{file}: expected a JSON object; {_AGAIN}')
  return content


def _text(file: pathlib.Path) -> str:
  if not file.is_file():
    raise FileNotFoundError(f'{file}: no such file, which the tokenizer needs beside the others; copy it there from '
                            'where the model comes from.')
  try:
    return file.read_bytes().decode('utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'{file}: not UTF-8 text ({error}); {_AGAIN}') from error


def _unicode(text: str) -> str:
  """The text, if it is one: JSON can hold half a surrogate pair, which no tokenizer takes."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(f'The text {text[:40]!r} is no Unicode text: half a surrogate pair at character {error.start}; '
                     'repair the file that it comes from.') from error
  return text


def _digest(content: Any) -> str:
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()
