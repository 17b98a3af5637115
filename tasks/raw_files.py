"""Readers of raw data files, record by record: JSON lines, JSON, TSV, CSV, text. No TensorFlow.

A record that cannot be read does not end the file: it is yielded with the error as its value, so that the caller
may skip it. Files may be compressed (`.gz`) and remote (`gs://...`); a byte order mark is dropped.
"""

from collections.abc import Iterable, Iterator, Sequence
import csv
import dataclasses
import gzip
import json
import re
from typing import Any
import zlib

from etils import epath

# Lines between documents of a text corpus.
_MARK = re.compile(r'<\|endoftext\|>')
_TITLE = re.compile(r' ?= [^=]+ = ?')  # lower headings have more signs
_EMPTY = re.compile(r'\s*')


@dataclasses.dataclass(frozen=True)
class Record:
  """A record of a file.

  Attributes:
    where: the file and the line, for messages.
    index: its number in the file, from 0 and without a header, broken ones counted.
    value: what was read, mostly a dictionary by column; or the ValueError that says why it cannot be read.
  """

  where: str
  index: int
  value: Any


def read_lines(path: epath.Path) -> Iterator[Record]:
  """Lines, without their ends; also empty ones.

  Raises:
    ValueError: a compressed file is damaged.
  """
  index = -1
  try:
    with path.open('rb') as raw:
      for index, line in enumerate(gzip.open(raw) if path.suffix == '.gz' else raw):
        try:
          value = line.removeprefix(b'\xef\xbb\xbf' if index == 0 else b'').rstrip(b'\r\n').decode()
        except UnicodeDecodeError as error:
          value = ValueError(f'not UTF-8 text ({error})')
        yield Record(f'{path}, line {index + 1}', index, value)
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise ValueError(f'{path}: damaged after line {index + 1} ({error}). Get the file anew.') from error


def read_jsonl(path: epath.Path) -> Iterator[Record]:
  """Objects, one a line; empty lines are passed over."""
  return _number(_parsed(line, _object) for line in read_lines(path) if line.value != '')


def read_json_table(path: epath.Path) -> Iterator[Record]:
  """Objects of a `.json`, which is a list of them or an object of them by any key.

  Raises:
    ValueError: the file is no such JSON.
  """
  content = read_json(path)
  rows = content.items() if isinstance(content, dict) else enumerate(content)
  for index, (key, row) in enumerate(rows):
    yield Record(f'{path}, row {key}', index, row if isinstance(row, dict) else ValueError('expected an object'))


def read_json(path: epath.Path) -> Any:
  """The content of a JSON file that is one object or list.

  Raises:
    ValueError: the file is not; no record of it can be read.
  """
  try:
    content = json.loads(path.read_bytes())
  except ValueError as error:
    raise ValueError(f'{path}: malformed JSON ({error}). No record of it can be read, so none can be skipped.'
                     ) from error
  if not isinstance(content, dict | list):
    raise ValueError(f'{path}: expected a list or an object of objects; found {str(content)[:80]}')
  return content


def read_tsv(path: epath.Path) -> Iterator[Record]:
  """Rows by the columns that the first line names; quotes are text."""
  return _table(read_lines(path), lambda line: line.split('\t'))


def read_csv(path: epath.Path, header: Sequence[str] | None = None) -> Iterator[Record]:
  """Rows by column, each on one line; of `header`, or of the columns that the first line names."""
  return _table(read_lines(path), _csv_fields, header)


def read_table(path: epath.Path) -> Iterator[Record]:
  """A `.json` as `read_json_table`, other files as `read_tsv`."""
  return read_json_table(path) if path.suffix == '.json' else read_tsv(path)


def read_text_tab_label(path: epath.Path) -> Iterator[Record]:
  """`{'text', 'label'}` of lines of text, tab and label; the text may have tabs too."""
  def parse(line):
    text, tab, label = line.rpartition('\t')
    if not tab:
      raise ValueError('expected text, tab, label')
    return {'text': text, 'label': label}
  return (_parsed(line, parse) for line in read_lines(path))


def read_groups(path: epath.Path, names: Sequence[str]) -> Iterator[Record]:
  """`{name: line}` of groups of as many lines, with empty lines between."""
  group: list[Record] = []
  index = 0
  for line in [*read_lines(path), Record(str(path), -1, '')]:
    if line.value != '':
      group.append(line)
    elif group:
      broken = next((r.value for r in group if isinstance(r.value, ValueError)), None)
      if not broken and len(group) != len(names):
        broken = ValueError(f'{len(group)} lines; expected {len(names)} and an empty one: {", ".join(names)}')
      yield Record(group[0].where, index, broken or {n: r.value.strip() for n, r in zip(names, group, strict=True)})
      group, index = [], index + 1


def read_documents(path: epath.Path) -> Iterator[Record]:
  """`{'text'}` of the documents of a text corpus.

  A `.jsonl` or `.json` holds one a line, as `{"text": ...}`. In other files documents are parted by lines
  `<|endoftext|>`, or begin at titles ` = Title = ` (WikiText), or, in files without either, are parted by empty lines.
  """
  if re.search(r'\.jsonl?(\.gz)?$', path.name):
    yield from read_jsonl(path)
    return
  lines = [line.value for line in read_lines(path) if not isinstance(line.value, ValueError)]
  border = next((kind for kind in (_MARK, _TITLE) if any(map(kind.fullmatch, lines))), _EMPTY)
  document: list[Record] = []
  index = 0
  for line in [*read_lines(path), None]:
    if line and isinstance(line.value, ValueError):
      yield line
    elif line is None or border.fullmatch(line.value) and (
        border is not _TITLE or not document or not document[-1].value.strip()):  # else it is a formula
      if text := '\n'.join(r.value for r in document).strip():
        yield Record(document[0].where, index, {'text': text})
        index += 1
      document = [line] if border is _TITLE else []
    else:
      document.append(line)


def _csv_fields(line: str) -> list[str]:
  try:
    return next(csv.reader([line], strict=True), [])
  except csv.Error as error:
    raise ValueError(f'malformed CSV ({error})') from error


def _object(line: str) -> dict:
  value = json.loads(line)
  if not isinstance(value, dict):
    raise ValueError('expected a JSON object')
  return value


def _parsed(line: Record, parse) -> Record:
  if isinstance(line.value, ValueError):
    return line
  try:
    return dataclasses.replace(line, value=parse(line.value))
  except ValueError as error:
    kind = 'malformed JSON, ' if isinstance(error, json.JSONDecodeError) else ''
    return dataclasses.replace(line, value=ValueError(f'{kind}{error}; found {line.value[:120]!r}'))


def _table(lines: Iterator[Record], split, header: Sequence[str] | None = None) -> Iterator[Record]:
  if header is None:
    first = next(lines, None)
    if first is None:
      return
    if isinstance(first.value, ValueError):
      raise ValueError(f'{first.where}: {first.value}')
    header = split(first.value)

  def parse(line):
    fields = split(line)
    if len(fields) != len(header):
      raise ValueError(f'{len(fields)} columns; expected {len(header)}, {", ".join(header)[:200]}')
    return dict(zip(header, fields, strict=True))

  yield from _number(_parsed(line, parse) for line in lines)


def _number(records: Iterable[Record]) -> Iterator[Record]:
  return (dataclasses.replace(record, index=index) for index, record in enumerate(records))
