"""Readers of XSum: documents (JSONL, or the extracted BBC pages), the official split and the topics. No TensorFlow.

A topic is read off the page's address: `sport` for bbc.co.uk/sport/..., `news/<word>` for bbc.co.uk/news/<word>-...
(so `news/uk` and `news/world` hold all their regions, `news/science` is science-environment), `news` where an address
has no section, and `other` elsewhere. Li & Liang 2021 (sec. 6.4) name topics and no rule.
"""

from collections.abc import Iterator, Mapping
import json
import os
import re

from etils import epath

from prompt_tuning.tasks import table_files

SPLIT_FILE = 'XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json'
URL_FILE = 'XSum-WebArxiveUrls.txt'
# Buttons and notes of the pages, which the extraction has kept as lines of the text.
_BOILERPLATE = frozenset({
    'Share this with', 'Email', 'Facebook', 'Messenger', 'Twitter', 'Pinterest', 'WhatsApp', 'LinkedIn', 'Linkedin',
    'Copy this link', 'These are external links and will open in a new window',
})
_SECTION = re.compile(r'\[(?:XSUM|SN)\]([A-Z-]+)\[(?:XSUM|SN)\]')
_ADDRESS = re.compile(r'bbc\.(?:co\.uk|com)(?::\d+)?/([^?#\s]*)')


def topic(url: str) -> str:
  """The topic that a BBC address tells, see above."""
  found = _ADDRESS.search(url)
  first, _, rest = found[1].partition('/') if found else ('', '', '')
  if re.fullmatch(r'sport\d?', first):
    return 'sport'
  if first != 'news':
    return 'other'
  section = re.match(r'(uk|world|[a-z][a-z-]*?)(?:-|\d|/|$)', rest)
  return f'news/{section[1]}' if section else 'news'


def read_split(path: str | os.PathLike) -> Mapping[str, list[str]]:
  """The official split, `{'train': [BBC ids], 'validation': [...], 'test': [...]}`."""
  split = table_files.read_json(path)
  if not isinstance(split, dict) or not {'train', 'validation', 'test'} <= set(split):
    raise ValueError(f'{path}: expected lists of ids called train, validation and test.')
  return split


def read_topics(path: str | os.PathLike) -> dict[str, str]:
  """Topics by BBC id, from a list of addresses, one a line; an id and a tab may stand in front.

  Raises:
    ValueError: a line has no id (file and line are named).
  """
  topics = {}
  for number, line in enumerate(table_files.read_text(path).splitlines(), start=1):
    if line.strip():
      key, _, url = line.strip().rpartition('\t')
      if not (key or (key := bbc_id(url))):
        raise ValueError(f'{path}, line {number}: {line!r} ends in no BBC id; expected an address, or id<TAB>address.')
      topics[key] = topic(url)
  return topics


def bbc_id(url: str) -> str:
  """The article's number, which ends its address; '' if there is none."""
  found = re.search(r'(\d+)(?:\.stm)?/?$', url)
  return found[1] if found else ''


def read_jsonl(path: str | os.PathLike) -> Iterator[tuple[str, str, str, str]]:
  """(id, document, summary, topic or '') of each line `{"id": ..., "document": ..., "summary": ..., "url": ...}`.

  Raises:
    ValueError: a line is no JSON object with id, document and summary as text (file and line are named).
  """
  with epath.Path(path).open('r', encoding='utf-8') as lines:
    for number, line in enumerate(lines, start=1):
      if not line.strip():
        continue
      try:
        row = json.loads(line)
        key, document, summary = (row[name].strip() for name in ('id', 'document', 'summary'))
      except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{path}, line {number}: expected an object with "id", "document" and "summary" as text '
                         f'({type(error).__name__}: {error}); found {line.strip()[:120]}') from error
      yield key, document, summary, topic(row['url']) if row.get('url') else ''


def read_page(path: str | os.PathLike) -> tuple[str, str, str, str]:
  """The same four of an extracted page, `<id>.summary` or `<id>.data` (its parts are marked [SN] or [XSUM])."""
  _, *parts = _SECTION.split(table_files.read_text(path))
  sections = dict(zip(parts[::2], parts[1::2], strict=True))
  summary = sections.get('FIRST-SENTENCE', sections.get('INTRODUCTION'))
  if summary is None or 'RESTBODY' not in sections:
    raise ValueError(f'{path}: expected the parts URL, FIRST-SENTENCE or INTRODUCTION, and RESTBODY, each marked as '
                     f'[SN]URL[SN] or [XSUM]URL[XSUM]; found {", ".join(sections) or "none"}.')
  lines = (line.strip() for line in sections['RESTBODY'].splitlines())
  document = '\n'.join(line for line in lines if line and line not in _BOILERPLATE)
  url = sections.get('URL', '').strip()
  return os.path.splitext(os.path.basename(path))[0], document, summary.strip(), topic(url) if url else ''
