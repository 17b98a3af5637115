"""Examples as the stock TFDS builders make them, with their keys, from the records of the raw files.

The keys are the builders' own because TFDS orders examples by them: what is imported has the order of what TFDS
itself would have prepared. A function here takes a record's value and index and the split, and yields (key, example);
a label is the number of its class, or -1 in a `test` split that has none.

Unlike the stock builders every function refuses what does not fit, with a ValueError that tells the field.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
from typing import Any

from tensorflow_datasets.text import super_glue as stock

Keyed = tuple[str | int, dict[str, Any]]
Convert = Callable[[Any, int, str], Iterator[Keyed]]
_TYPES = {str: 'text', int: 'a whole number', list: 'a list', dict: 'an object'}
FALSE_TRUE = ('False', 'True')


def field(row: Mapping, name: str, kind: type = str) -> Any:
  """`row[name]`, which has to be of that type."""
  value = row.get(name)
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise ValueError(f'expected {name!r} as {_TYPES[kind]}; found ' + (
        f'{str(value)[:80]!r}' if name in row else f'only {", ".join(map(str, row))[:200]}'))
  return value


def class_number(row: Mapping, name: str, names: Sequence[str], split: str) -> int:
  """The class of `row[name]`: a name of one, its number (from 0), or a truth value.

  Raises:
    ValueError: it is none of these, or it is missing in a split other than `test`.
  """
  label = row.get(name)
  if label is None or label in (-1, '-1'):
    if split.startswith('test'):
      return -1
    raise ValueError(f'no label {name!r}; expected one of {", ".join(names)}')
  if isinstance(label, bool):
    label = str(label) if str(label) in names else int(label)
  if str(label) in names:
    return list(names).index(str(label))
  if str(label) in map(str, range(len(names))):
    return int(label)
  raise ValueError(f'label {label!r}; expected one of {", ".join(names)} or 0 to {len(names) - 1}')


def superglue(texts: Sequence[str], names: Sequence[str], numbers: Sequence[str] = ()) -> Convert:
  """The SuperGLUE tasks whose lines are examples."""
  def convert(row, index, split):
    idx = field(row, 'idx', int)
    yield idx, {**{name: field(row, name) for name in texts}, **{name: field(row, name, int) for name in numbers},
                'label': class_number(row, 'label', names, split), 'idx': idx}
  return convert


def wsc(row, index, split, fixed: bool = False) -> Iterator[Keyed]:
  """WSC, whose line has the spans in an object of their own; `fixed`: spans as they are in the text."""
  flat = {**row, **field(row, 'target', dict)}
  for key, example in superglue(
      ('text', 'span1_text', 'span2_text'), FALSE_TRUE, ('span1_index', 'span2_index'))(flat, index, split):
    if fixed:
      try:
        stock._fix_wst(example)  # in place
      except (AssertionError, IndexError) as error:
        raise ValueError(f'a span is not in the text: {example["span1_text"]!r}, {example["span2_text"]!r}') from error
    yield key, example


wsc_fixed: Convert = functools.partial(wsc, fixed=True)


def multirc(row, index, split) -> Iterator[Keyed]:
  """MultiRC: an example an answer."""
  passage, paragraph = field(row, 'passage', dict), field(row, 'idx', int)
  for question in field(passage, 'questions', list):
    for answer in field(question, 'answers', list):
      idx = {'paragraph': paragraph, 'question': field(question, 'idx', int), 'answer': field(answer, 'idx', int)}
      yield '_'.join(map(str, idx.values())), {
          'paragraph': field(passage, 'text'), 'question': field(question, 'question'), 'answer': field(answer, 'text'),
          'label': class_number(answer, 'label', FALSE_TRUE, split), 'idx': idx}


def record(row, index, split) -> Iterator[Keyed]:
  """ReCoRD: an example a query, with the distinct entities and answers in alphabetical order."""
  passage = field(row, 'passage', dict)
  text = field(passage, 'text')
  entities = {text[field(e, 'start', int):field(e, 'end', int) + 1] for e in field(passage, 'entities', list)}
  for query in field(row, 'qas', list):
    answers = field(query, 'answers', list) if 'answers' in query or not split.startswith('test') else []
    yield field(query, 'idx', int), {
        'passage': text, 'query': field(query, 'query'), 'entities': sorted(entities),
        'answers': sorted({field(answer, 'text') for answer in answers}),
        'idx': {'passage': field(row, 'idx', int), 'query': query['idx']}}


def glue(columns: Sequence[Mapping[str, str]], names: Sequence[str]) -> Convert:
  """A GLUE task.

  Args:
    columns: what a file may call the features, {feature: column}, of which the first that fits is taken.
    names: the classes.
  """
  def convert(row, index, split):
    found = next((c for c in columns if {v for k, v in c.items() if k != 'label'} <= set(row)), columns[0])
    yield index, {**{name: field(row, column) for name, column in found.items() if name != 'label'},
                  'label': class_number(row, found['label'], names, split), 'idx': index}
  return convert


def mrpc_test(convert: Convert) -> Convert:
  """MRPC, whose test split is unlabelled in TFDS although Microsoft's file has its labels."""
  def unlabelled(row, index, split):
    return convert({**row, 'Quality': None} if split == 'test' else row, index, split)
  return unlabelled


def squad(row, index, split) -> Iterator[Keyed]:
  """SQuAD 1.1, of a question with its `title` and `context`."""
  answers = field(row, 'answers', list)
  yield field(row, 'id'), {
      'id': row['id'], 'title': row.get('title', ''), 'context': field(row, 'context'),
      'question': field(row, 'question'),
      'answers': {'answer_start': [field(answer, 'answer_start', int) for answer in answers],
                  'text': [field(answer, 'text') for answer in answers]}}


def mrqa(row, index, split) -> Iterator[Keyed]:
  """MRQA: an example a question, of a context with its `subset`."""
  spans = lambda pairs: [{'start': start, 'end': end} for start, end in pairs]
  tokens = lambda pairs: [{'tokens': token, 'offsets': offset} for token, offset in pairs]
  for question in field(row, 'qas', list):
    qid = field(question, 'qid')
    yield f'{split}+{row["subset"]}_{qid}', {
        'subset': row['subset'], 'context': field(row, 'context').strip(),
        'context_tokens': tokens(field(row, 'context_tokens', list)), 'qid': qid,
        'question': field(question, 'question').strip(),
        'question_tokens': tokens(field(question, 'question_tokens', list)),
        'detected_answers': [
            {'text': field(answer, 'text').strip(), 'char_spans': spans(field(answer, 'char_spans', list)),
             'token_spans': spans(field(answer, 'token_spans', list))}
            for answer in field(question, 'detected_answers', list)],
        'answers': field(question, 'answers', list)}


def pronoun(row, index, split) -> Iterator[Keyed]:
  """Definite pronoun resolution."""
  candidates = [candidate.strip() for candidate in row['candidates'].split(',')]
  if len(candidates) != 2 or row['correct'] not in candidates:
    raise ValueError(f'candidates {candidates}, correct {row["correct"]!r}; expected one of two')
  yield index, {'sentence': row['sentence'], 'pronoun': row['pronoun'], 'candidates': candidates,
                'label': candidates.index(row['correct'])}


def ag_news(names: Sequence[str]) -> Convert:
  """AG News; the classes of the CSV are counted from 1. A sample without titles has empty ones."""
  def convert(row, index, split):
    if 'class' in row:
      if row['class'] not in map(str, range(1, len(names) + 1)):
        raise ValueError(f'class {row["class"]!r}; expected 1 to {len(names)}')
      yield index, {'label': int(row['class']) - 1, 'title': row['title'], 'description': row['description']}
    elif not (index == 0 and row['label'] == 'label'):
      yield index, {'label': class_number(row, 'label', names, split), 'title': '', 'description': row['text']}
  return convert


def imdb(row, index, split) -> Iterator[Keyed]:
  """IMDB, of aclImdb's files or of the samples of PowerfulPromptFT, whose class 0 praises and 1 blames."""
  if 'path' in row:
    yield row['path'], {'text': row['text'].strip(), 'label': {'neg': 0, 'pos': 1, 'unsup': -1}[row['folder']]}
  else:
    yield index, {'text': field(row, 'ori').strip(), 'label': 1 - class_number(row, 'label', ('neg', 'pos'), 'train')}


def c4(row, index, split) -> Iterator[Keyed]:
  """A document of C4's files, which lack two of the features."""
  yield index, {'text': field(row, 'text'), 'url': row.get('url', ''), 'timestamp': row.get('timestamp', ''),
                'content-type': '', 'content-length': str(len(row['text'].encode()))}


def document(row, index, split) -> Iterator[Keyed]:
  """A document of a text corpus."""
  yield index, {'text': field(row, 'text')}
