"""Readers of labelled text: the original files of classification corpora, and samples of them in other forms.

Every reader gives (text, class number) row by row; pairs of texts become one, with a space between. No TensorFlow.
"""

from collections.abc import Iterable, Iterator, Sequence
import csv
import os

from etils import epath

from prompt_tuning.tasks import table_files

Row = tuple[str, int]


def read_table(
    path: str | os.PathLike, columns: Sequence[Sequence[str]], classes: Sequence[str], first: int = 0,
    header: Sequence[str] | None = None) -> Iterator[Row]:
  """Rows of a `.tsv` (quotes are text), a `.csv` or a `.json` of objects, as a list or by any key.

  Args:
    path: the file.
    columns: the columns that a file may have, text first and the label last; the first that it has are read.
    classes: names of the classes; a label is one of them or its number.
    first: number of the first class.
    header: the columns' names, where the file does not begin with them.

  Raises:
    ValueError: there are no such columns, a text is empty or a label unknown (file and row are named).
  """
  suffix = os.path.splitext(path)[1]
  if suffix == '.json':
    objects = table_files.read_json(path)
    rows = list(objects.values()) if isinstance(objects, dict) else objects
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
      raise ValueError(f'{path}: expected a list of objects, or an object of them.')
    return _select(path, rows, columns, classes, first)
  form = {'delimiter': '\t', 'quoting': csv.QUOTE_NONE} if suffix == '.tsv' else {'strict': True}
  return _select(path, csv.DictReader(_lines(path), header, **form), columns, classes, first)


def _select(path, rows, columns, classes, first):
  wanted = None
  try:
    for number, row in enumerate(rows, start=1):
      wanted = wanted or next((names for names in columns if set(names) <= set(row)), None)
      if wanted is None or None in row or any(row[name] is None for name in wanted):  # None: surplus, missing
        expected = ' or '.join(', '.join(names) for names in columns)
        raise ValueError(f'{path}, row {number}: expected the columns {expected}; found {str(dict(row))[:200]}')
      *texts, label = (str(row[name]) for name in wanted)
      yield _row(texts, label, classes, first, f'{path}, row {number}')
  except csv.Error as error:
    raise ValueError(f'{path}: malformed CSV, {error}.') from error


def read_text_tab_label(path: str | os.PathLike, classes: Sequence[str]) -> Iterator[Row]:
  """Lines of text, tab and label, where a text may have tabs too; a line that ends in `label` is a header.

  Raises:
    ValueError: as `read_table`.
  """
  for number, line in enumerate(_lines(path), start=1):
    text, _, label = line.rstrip('\r\n').rpartition('\t')
    if label != 'label' or number > 1:
      yield _row([text.replace('\t', ' ')], label, classes, 0, f'{path}, line {number}')


def read_aligned(
    texts: str | os.PathLike, labels: str | os.PathLike, classes: Sequence[str]) -> Iterator[Row]:
  """Texts and labels in two files, a line each.

  Raises:
    ValueError: there are not as many of one as of the other, or as `read_table`.
  """
  both = [table_files.read_text(path).removesuffix('\n').split('\n') for path in (texts, labels)]
  if len(both[0]) != len(both[1]):
    raise ValueError(f'{texts} has {len(both[0])} lines and {labels} {len(both[1])}; expected a label a line.')
  for number, (text, label) in enumerate(zip(*both, strict=True), start=1):
    yield _row([text], label.strip(), classes, 0, f'{texts}, line {number}')


def read_whole(path: str | os.PathLike, classes: Sequence[str]) -> Row:
  """A file that is one text, in a folder that is called as its class.

  Raises:
    ValueError: as `read_table`.
  """
  return _row([table_files.read_text(path)], epath.Path(path).parent.name, classes, 0, str(path))


def _lines(path) -> Iterable[str]:
  try:
    with epath.Path(path).open('r', encoding='utf-8') as lines:
      yield from lines
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: not UTF-8 text ({error}). Is it the original file?') from error


def _row(texts, label, classes, first, where) -> Row:
  text = ' '.join(text.strip() for text in texts).strip()
  if not text:
    raise ValueError(f'{where}: the text is empty. Remove the row.')
  numbers = [str(i + first) for i in range(len(classes))]
  if label not in (*classes, *numbers):
    raise ValueError(f'{where}: label {label!r}; expected one of {list(classes)} or {numbers[0]} to {numbers[-1]}.')
  return text, classes.index(label) if label in classes else numbers.index(label)
