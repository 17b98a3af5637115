"""Reading a file with one of this package's readers, which stop at a broken record, and going on after it.

The file is cut into records; halves of it are read, and halves of those that fail, down to single records.
"""

from collections.abc import Callable, Iterable, Sequence
import json
import re
import tempfile
from typing import Any
import xml.etree.ElementTree as ET

from etils import epath

from prompt_tuning.tasks import table_files


def read(
    reader: Callable[..., Iterable[Any]], paths: Sequence[epath.Path], broken: Callable[[str], None],
    header: bool = False) -> list[Any]:
  """The rows that `reader(*paths)` gives, without broken records.

  Args:
    reader: reads one file, or several that are aligned line by line; raises a ValueError at a broken record.
    paths: the files; of aligned ones messages name the last.
    broken: is told, where there is one, which it is and what is wrong.
    header: a table's first line names its columns.

  Raises:
    ValueError: the file is broken as a whole, or `broken` raises it.
  """
  try:
    return list(reader(*paths))
  except ValueError as error:
    if paths[0].suffix not in ('.csv', '.tsv', '.jsonl', '.json', '.xml') and len(paths) == 1:  # one text a file
      broken(str(error))
      return []
    kind, records, join = _cut(paths, header, error)
  with tempfile.TemporaryDirectory() as folder:
    copies = [epath.Path(folder) / path.name for path in paths]

    def attempt(part):
      for copy, text in zip(copies, join([record for _, record in part]), strict=True):
        copy.write_text(text, encoding='utf-8')
      return list(reader(*copies))

    def good(part):
      try:
        attempt(part)
        return part
      except ValueError as error:
        if len(part) == 1:
          begin = '|'.join(re.escape(str(copy)) for copy in copies)
          reason = re.sub(rf'^({begin})(, (line|row|entry|element) \d+[^:]*)?: ', '', str(error))
          broken(f'{paths[-1]}, {kind} {part[0][0]}: {reason}')
          return []
        half = len(part) // 2
        return good(part[:half]) + good(part[half:])

    kept = good(list(enumerate(records, start=1 + header)))
    return attempt(kept) if kept else []


def _cut(paths, header, error):
  """What the records are called, the records, and the function that makes files' texts of some."""
  path, suffix = paths[0], paths[0].suffix
  texts = [table_files.read_text(path) for path in paths]
  if suffix == '.json':
    elements = table_files.read_json(path)
    if not isinstance(elements, list):
      raise error
    return 'element', elements, lambda part: [json.dumps(part)]
  if suffix == '.xml':
    try:
      root = ET.fromstring(texts[0])
    except ET.ParseError:
      raise error from None
    entries = root.findall('entries/entry')

    def document(part):
      new = ET.Element(root.tag)
      ET.SubElement(new, 'entries').extend(part)
      return [ET.tostring(new, encoding='unicode')]
    return 'entry', entries, document
  columns = [text.removesuffix('\n').split('\n') for text in texts]
  if len({len(lines) for lines in columns}) > 1:
    raise error
  rows = list(zip(*columns, strict=True))
  head = rows[:header]
  return 'line', rows[header:], lambda part: ['\n'.join(lines) + '\n' for lines in zip(*head, *part, strict=True)]
