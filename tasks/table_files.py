"""Readers of the original table-to-text files: E2E (CSV), WebNLG and DART (XML), DART (JSON). No TensorFlow.

Every reader gives the file's tables in their order, each with all its references. A table is what the official
scorers count: an `<entry>` (XML) or element (JSON), even where two of them have the same triples, as 938 of DART's
5,097 test entries have; E2E's files have one line a reference, so there it is a distinct meaning representation.
"""

from collections.abc import Callable, Iterable, Sequence
import csv
import dataclasses
import io
import json
import os
import xml.etree.ElementTree as ET

from etils import epath

from prompt_tuning.tasks import linearize


@dataclasses.dataclass(frozen=True)
class Row:
  """One source text with its references, at least one; `group` is WebNLG's category or XSum's topic."""

  source: str
  references: tuple[str, ...]
  group: str = ''


def pairs(rows: Iterable[Row]) -> list[Row]:
  """One row a reference, as training wants them."""
  return [dataclasses.replace(row, references=(reference,)) for row in rows for reference in row.references]


def read_e2e(path: str | os.PathLike) -> list[Row]:
  """Reads E2E's `mr,ref` CSV; lines of one MR become one row, in the order of first appearance.

  Raises:
    ValueError: the header is another, or a line is malformed or lacks a reference (file and line are named).
  """
  lines = csv.reader(io.StringIO(read_text(path)), strict=True)
  by_mr: dict[str, tuple[str, list[str]]] = {}
  try:
    header = next(lines, [])
    if header != ['mr', 'ref']:
      raise ValueError(f'the header is {header}; expected mr,ref (testset_w_refs.csv, not testset.csv)')
    for fields in lines:
      if len(fields) != 2:
        raise ValueError(f'{len(fields)} columns; expected two, mr,ref')
      mr, reference = (field.strip() for field in fields)
      if mr not in by_mr:
        by_mr[mr] = linearize.linearize_e2e(mr), []
      if not reference:
        raise ValueError('the reference is empty')
      by_mr[mr][1].append(reference)
  except (ValueError, csv.Error) as error:
    raise ValueError(f'{path}, line {lines.line_num}: {error}') from error
  return [Row(source, tuple(references)) for source, references in by_mr.values()]


def read_xml(
    path: str | os.PathLike, linear: Callable[[Sequence[linearize.Triple]], str], only_good: bool = False) -> list[Row]:
  """Reads the `<benchmark>` XML of WebNLG and DART: modified triples, references, category.

  Args:
    path: the file.
    linear: makes the source text of the triples.
    only_good: leave out references not marked `good`, and entries that have no other.

  Raises:
    ValueError: the file is no such XML, or an entry lacks triples or references (file and entry are named).
  """
  try:
    entries = ET.fromstring(read_text(path)).findall('entries/entry')
  except ET.ParseError as error:
    raise ValueError(f'{path}: malformed XML, {error}.') from error
  if not entries:
    raise ValueError(f'{path}: no <entry> in <entries>. Expected the XML of WebNLG or DART.')
  rows = []
  for number, entry in enumerate(entries, start=1):
    where = f'{path}, entry {number} (eid {entry.get("eid")})'
    triples = [_triple((t.text or '').split(' | '), where) for t in entry.findall('modifiedtripleset/mtriple')]
    texts = [((lex.text or '').strip(), lex.get('comment')) for lex in entry.findall('lex')]
    row = _row(linear(triples), [text for text, _ in texts], where, entry.get('category', ''))
    good = tuple(text for text, comment in texts if text and (comment == 'good' or not only_good))
    if good:
      rows.append(dataclasses.replace(row, references=good))
  return rows


def read_dart_json(path: str | os.PathLike) -> list[Row]:
  """Reads DART's JSON: a list of `{"tripleset": [[s, r, o], ...], "annotations": [{"text": ...}, ...]}`.

  Raises:
    ValueError: the file is no such JSON (file and element are named).
  """
  elements = read_json(path)
  if not isinstance(elements, list) or not elements:
    raise ValueError(f'{path}: expected a list of tables with "tripleset" and "annotations".')
  rows = []
  for number, element in enumerate(elements, start=1):
    where = f'{path}, element {number}'
    try:
      triples = [_triple(triple, where) for triple in element['tripleset']]
      texts = [annotation['text'].strip() for annotation in element['annotations']]
    except (KeyError, TypeError, AttributeError) as error:
      raise ValueError(f'{where}: expected "tripleset", a list of triples, and "annotations", a list of '
                       f'{{"text": ...}}; found {json.dumps(element)[:120]}') from error
    rows.append(_row(linearize.linearize_dart(triples), texts, where))
  return rows


def read_text(path: str | os.PathLike) -> str:
  """The text of a file, which may be remote (`gs://...`); a byte order mark is dropped."""
  try:
    return epath.Path(path).read_text(encoding='utf-8').removeprefix('\ufeff')
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: not UTF-8 text ({error}). Is it the original file?') from error


def read_json(path: str | os.PathLike):
  """The content of a JSON file."""
  try:
    return json.loads(read_text(path))
  except json.JSONDecodeError as error:
    raise ValueError(f'{path}: malformed JSON, {error}.') from error


def _triple(parts: Sequence[str], where: str) -> linearize.Triple:
  if len(parts) != 3 or not all(isinstance(part, str) for part in parts):
    raise ValueError(f'{where}: {parts} is no triple; expected subject, relation and object.')
  return tuple(part.strip() for part in parts)


def _row(source: str, references: Sequence[str], where: str, group: str = '') -> Row:
  if not source.strip():
    raise ValueError(f'{where}: the table is empty; expected at least one triple.')
  if not any(references):
    raise ValueError(f'{where}: no reference text; expected at least one (the files "with_lex" have them).')
  return Row(source, tuple(text for text in references if text), group)
