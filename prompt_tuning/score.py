"""`prompt-tuning score`: metrics of outputs against references, both from files, as a table and as JSON."""

import argparse
from collections.abc import Sequence
import csv
import json
import pathlib
import re
import sys

from prompt_tuning.metrics import suites

_ABOUT = """Metrics of generated text, as the official scripts define them.

References are one of
  a text file, one reference a line;
  a text file with a group of references for each output, a blank line between groups (E2E);
  a .csv or .tsv table with a header that names a column of sources (mr, source) and one of references (ref, target,
    reference): consecutive rows of equal source are one output's (E2E);
  several text files, the n-th line of each for the n-th output, blank where there is none (WebNLG, DART)."""

_SOURCE_COLUMNS = ('mr', 'src', 'source', 'inputs')
_REFERENCE_COLUMNS = ('ref', 'reference', 'human_ref', 'trg', 'tgt', 'target', 'targets')
_MOJIBAKE = (('\u0141', '\u00a3'), ('\u00c2\u00a3', '\u00a3'), ('\u00c3\u00a9', '\u00e9'), ('\u00e3\u00a9', '\u00e9'))


def parser() -> argparse.ArgumentParser:
  names = {suite: ', '.join(metrics) for suite, metrics in suites.SUITES.items()}
  result = argparse.ArgumentParser(
      prog='prompt-tuning score', description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter,
      epilog='suites:\n' + '\n'.join(f'  {suite}: {metrics}' for suite, metrics in names.items()))
  result.add_argument('--outputs', required=True, metavar='FILE',
                      help='text, one output a line, or the .jsonl of `prompt-tuning eval` or `infer`')
  result.add_argument('--references', action='append', default=[], metavar='FILE',
                      help='see above; may be repeated, and left out where the .jsonl has targets')
  result.add_argument('--suite', metavar='NAME', help='the metrics of a data set: ' + ', '.join(suites.SUITES))
  result.add_argument('--metrics', metavar='A,B', help='only these metrics')
  result.add_argument('--model', action='append', default=[], metavar='METRIC=FOLDER',
                      help="a local folder with the model of bertscore or bleurt; may be repeated")
  result.add_argument('--json', metavar='FILE', help='also write the values and definitions here')
  result.add_argument('--percent', action='store_true', help='print fractions times 100, as papers do')
  return result


def score(argv: Sequence[str]) -> int:
  """The command; returns 1 if every metric asked for by name had to be skipped, else 0.

  Raises:
    ValueError, OSError: bad flags or files; the message names the flag, file or line.
  """
  flags = parser().parse_args(argv)
  names = [name.strip() for name in flags.metrics.split(',')] if flags.metrics else None
  metrics = suites.select(flags.suite, names)
  models = _models(flags.model, metrics)
  outputs, targets = read_outputs(flags.outputs)
  references = read_references(flags.references, len(outputs)) if flags.references else targets
  if references is None:
    raise ValueError(f'{flags.outputs} holds no targets: name the references with --references.')
  if len(references) != len(outputs):
    raise ValueError(f'{flags.outputs} has {len(outputs)} outputs but {" ".join(flags.references)} has references for '
                     f'{len(references)}; they must be as many, in the same order.')
  values, skipped = suites.compute(metrics, outputs, references, models)
  print(_table(metrics, values, skipped, flags.percent), flush=True)
  if flags.json:
    from prompt_tuning.train import writers
    writers.write_json(pathlib.Path(flags.json), {
        'outputs': flags.outputs, 'references': flags.references, 'examples': len(outputs),
        'metrics': {name: {'value': value, 'definition': metrics[name].definition} for name, value in values.items()},
        'skipped': skipped})
  return 1 if names and not values else 0


def _table(metrics, values, skipped, percent: bool) -> str:
  rows = [('metric', 'value', 'definition')]
  for name, metric in metrics.items():
    if name in values:
      scaled = percent and metric.fraction
      rows.append((name, f'{values[name] * 100:.2f}' if scaled else f'{values[name]:.4f}', metric.definition))
    else:
      rows.append((name, 'skipped', skipped[name]))
  widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:2]]
  return '\n'.join(f'{name:{widths[0]}}  {value:>{widths[1]}}  {text}' for name, value, text in rows)


def _models(flags: Sequence[str], metrics) -> dict[str, str]:
  models = dict(flag.split('=', 1) if '=' in flag else (flag, '') for flag in flags)
  able = [name for name, metric in metrics.items() if metric.needs_model]
  for name, folder in models.items():
    if name not in able or not folder:
      raise ValueError(f'--model {name}={folder}: expected METRIC=FOLDER with one of the metrics asked for that have a '
                       f'model ({", ".join(able) or "none of them has"}).')
  return models


def read_lines(path: str) -> list[str]:
  """Lines of a UTF-8 text without their ends; a blank last line is a line.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a line is not UTF-8, or there is none.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise FileNotFoundError(f'{path}: no such file.')
  lines = file.read_bytes().removeprefix(b'\xef\xbb\xbf').split(b'\n')  # not splitlines: texts may hold other breaks
  if not lines[-1]:
    del lines[-1]
  texts = []
  for number, line in enumerate(lines, 1):
    try:
      texts.append(line.decode('utf-8').rstrip('\r'))
    except UnicodeDecodeError as error:
      raise ValueError(f'{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start}).') from error
  if not texts:
    raise ValueError(f'{path} is empty.')
  return texts


def read_outputs(path: str) -> tuple[list[str], list[list[str]] | None]:
  """Outputs, and their references if the file is a .jsonl that has them in every row (`target` or `targets`).

  Raises:
    ValueError: a malformed line.
  """
  lines = read_lines(path)
  if pathlib.Path(path).suffix != '.jsonl':
    return lines, None
  outputs, targets = [], []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
    except json.JSONDecodeError as error:
      raise ValueError(f'{path}, line {number}: not JSON ({error.msg}).') from error
    if not isinstance(row, dict) or not isinstance(row.get('prediction'), str):
      raise ValueError(f'{path}, line {number}: no "prediction" text; expected {{"prediction": "...", ...}}.')
    outputs.append(row['prediction'])
    target = row.get('target', row.get('targets'))
    target = [target] if isinstance(target, str) else target
    if target is not None and not (isinstance(target, list) and all(isinstance(text, str) for text in target)):
      raise ValueError(f'{path}, line {number}: "target" is neither a text nor a list of texts.')
    targets.append(target)
  return outputs, None if None in targets else targets


def read_references(paths: Sequence[str], outputs: int) -> list[list[str]]:
  """References of each output, from one file or several.

  A file with as many lines as there are outputs is read a line each; otherwise blank lines stand between groups.

  Raises:
    ValueError: a malformed table, or files of different lengths.
  """
  if len(paths) > 1:
    columns = [read_lines(path) for path in paths]
    if len(set(map(len, columns))) > 1:
      raise ValueError('Reference files differ in length: ' + ', '.join(
          f'{path} has {len(lines)} lines' for path, lines in zip(paths, columns, strict=True)) + '.')
    return [list(texts) for texts in zip(*columns, strict=True)]
  lines = read_lines(paths[0])
  if pathlib.Path(paths[0]).suffix in ('.csv', '.tsv'):
    return _read_table(paths[0], lines)
  if len(lines) == outputs or all(line.strip() for line in lines):
    return [[line] for line in lines]
  groups = re.split(r'\n(?:\s*\n)+', '\n'.join(lines).strip())
  return [group.split('\n') for group in groups]


def _read_table(path: str, lines: Sequence[str]) -> list[list[str]]:
  """Rows of equal source that follow each other are one group; mistaken characters mended as E2E's script does."""
  reader = csv.reader((f'{line}\n' for line in lines), delimiter='\t' if '\t' in lines[0] else ',', strict=True)
  try:
    header = [name.strip().lower() for name in next(reader)]
    source, reference = (_column(path, header, names) for names in (_SOURCE_COLUMNS, _REFERENCE_COLUMNS))
    groups, last = [], None
    for row in reader:
      if not row:
        continue
      if len(row) != len(header):
        raise ValueError(f'{path}, line {reader.line_num}: {len(row)} columns where the header has {len(header)}.')
      if row[source] != last:
        groups.append([])
        last = row[source]
      text = row[reference]
      for wrong, right in _MOJIBAKE:
        text = text.replace(wrong, right)
      groups[-1].append(text)
  except csv.Error as error:
    raise ValueError(f'{path}, line {reader.line_num}: {error}.') from error
  return groups


def _column(path: str, header: Sequence[str], names: Sequence[str]) -> int:
  found = [i for i, name in enumerate(header) if name in names]
  if len(found) != 1:
    raise ValueError(f'{path}, line 1: expected one column named {" or ".join(names)}; it has {", ".join(header)}.')
  return found[0]


if __name__ == '__main__':
  sys.exit(score(sys.argv[1:]))
