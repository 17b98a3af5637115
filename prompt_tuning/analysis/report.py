"""One HTML file that holds a whole probe: text, tables, word lists and pictures, nothing loaded from elsewhere."""

import base64
from collections.abc import Mapping, Sequence
import dataclasses
import html
import numbers
import os
import pathlib

from prompt_tuning.analysis.plots import write_bytes

_STYLE = '''
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
img { max-width: 100%; display: block; }
figure { margin: 1rem 0; }
figcaption { color: #555; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border: 1px solid #ccc; padding: .2rem .6rem; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
'''


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of cells under column names; floats are shown with four digits."""

  columns: Sequence[str]
  rows: Sequence[Sequence[object]]


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the report.

  Attributes:
    title: its heading.
    text: paragraphs, plain text, parted by empty lines.
    figures: caption -> path of a PNG.
    tables: caption -> table.
    words: caption -> (word, score) in order.
  """

  title: str
  text: str = ''
  figures: Mapping[str, str | os.PathLike] = dataclasses.field(default_factory=dict)
  tables: Mapping[str, Table] = dataclasses.field(default_factory=dict)
  words: Mapping[str, Sequence[tuple[str, float]]] = dataclasses.field(default_factory=dict)


def write(path: str | os.PathLike, title: str, sections: Sequence[Section]) -> None:
  """Writes the report.

  Raises:
    FileNotFoundError: a picture is not there.
  """
  name = html.escape(title)
  body = '\n'.join(map(_section, sections))
  page = (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{name}</title>\n'
          f'<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n{body}\n</body>\n</html>\n')
  write_bytes(path, page.encode(errors='replace'))


def _section(section: Section) -> str:
  parts = [f'<h2>{html.escape(section.title)}</h2>']
  parts += [f'<p>{html.escape(p.strip())}</p>' for p in section.text.split('\n\n') if p.strip()]
  parts += [_table(caption, table) for caption, table in section.tables.items()]
  parts += [_words(caption, words) for caption, words in section.words.items()]
  parts += [_figure(caption, path) for caption, path in section.figures.items()]
  return '\n'.join(parts)


def _table(caption: str, table: Table) -> str:
  head = ''.join(f'<th>{html.escape(c)}</th>' for c in table.columns)
  rows = '\n'.join(f'<tr>{"".join(map(_cell, row))}</tr>' for row in table.rows)
  return f'<table>\n<caption>{html.escape(caption)}</caption>\n<tr>{head}</tr>\n{rows}\n</table>'


def _cell(value: object) -> str:
  number = isinstance(value, numbers.Real)
  text = f'{value:.4f}' if number and not isinstance(value, numbers.Integral) else str(value)
  return f'<td class="number">{text}</td>' if number else f'<td>{html.escape(text)}</td>'


def _words(caption: str, words: Sequence[tuple[str, float]]) -> str:
  listed = ', '.join(f'{html.escape(word)} ({score:.3f})' for word, score in words)
  return f'<p><strong>{html.escape(caption)}:</strong> {listed}</p>'


def _figure(caption: str, path: str | os.PathLike) -> str:
  data = base64.b64encode(pathlib.Path(path).read_bytes()).decode()
  alt = html.escape(caption)
  return f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"><figcaption>{alt}</figcaption></figure>'
