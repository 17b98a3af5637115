"""`prompt-tuning score`: forms of references, the table, the JSON, and bad input."""

import json
import pathlib
import re
import shlex

import pytest

from prompt_tuning import cli, score
from prompt_tuning.metrics import suites
from tests.metrics import examples

FAST = ['--suite', 'e2e', '--metrics', 'bleu,nist,rouge_l,cider']


def write(path: pathlib.Path, *lines: str) -> str:
  path.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')
  return str(path)


def test_table_and_json(tmp_path, capsys):
  path = tmp_path / 'scores.json'
  files = ['--outputs', str(examples.OUTPUTS), '--references', str(examples.REFERENCES)]
  assert cli.main(['score', *files, *FAST, '--json', str(path)]) == 0
  table = capsys.readouterr().out.splitlines()
  assert [line.split()[:2] for line in table] == [
      ['metric', 'value'], ['bleu', '0.7203'], ['nist', '7.8212'], ['rouge_l', '0.7910'], ['cider', '2.3039']]
  assert 'mteval-v13a' in table[1]
  written = json.loads(path.read_text())
  assert written['examples'] == 10
  assert written['metrics']['nist']['value'] == pytest.approx(7.8212, abs=5e-5)
  assert written['metrics']['cider']['definition'] == 'COCO CIDEr (CIDEr-D)'
  assert cli.main(['score', *files, *FAST, '--percent']) == 0
  values = [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]]
  assert values == ['72.03', '7.8212', '79.10', '2.3039']


def test_forms_of_references(tmp_path):
  expected = [['a', 'b'], ['c']]
  groups = write(tmp_path / 'groups.txt', 'a', 'b', '', '', 'c', '')
  table = write(tmp_path / 'table.csv', '\ufeff"mr","ref"', '"x, y","a"', '"x, y","b"', '"z","c"')
  tabs = write(tmp_path / 'table.tsv', 'id\tMR\treference', '1\tx\ta', '2\tx\tb', '3\tz\tc')
  for path in (groups, table, tabs):
    assert score.read_references([path], 2) == expected
  columns = [write(tmp_path / f'reference{i}', *lines) for i, lines in enumerate([('a', 'c'), ('b', '')])]
  assert score.read_references(columns, 2) == [['a', 'b'], ['c', '']]
  assert score.read_references([write(tmp_path / 'lines', 'a', 'b\u2028c')], 2) == [['a'], ['b\u2028c']]
  mended = write(tmp_path / 'mended.csv', 'mr,ref', 'x,"Ł20 in the cafÃ©, Â£"')
  assert score.read_references([mended], 1) == [['£20 in the café, £']]


def test_our_own_predictions(tmp_path, capsys):
  rows = [{'prediction': 'a b c d', 'target': ['a b c d', 'x']}, {'prediction': '', 'targets': 'e'}]
  path = write(tmp_path / 'task.jsonl', *map(json.dumps, rows))
  assert score.read_outputs(path) == (['a b c d', ''], [['a b c d', 'x'], ['e']])
  assert cli.main(['score', '--outputs', path, *FAST]) == 0
  path = write(tmp_path / 'other.jsonl', json.dumps({'prediction': 'a'}))
  assert cli.main(['score', '--outputs', path, *FAST]) == 1
  assert 'holds no targets' in capsys.readouterr().err


@pytest.mark.parametrize('suite', suites.SUITES)
def test_outputs_may_all_be_empty(suite, tmp_path, capsys):
  """With METEOR where Java is: once, as it takes seconds to start."""
  outputs, references = write(tmp_path / 'outputs', '', ''), write(tmp_path / 'references', 'one cat', '"')
  names = [name for name, metric in suites.SUITES[suite].items()
           if not metric.needs_model and (suite == 'e2e' or name != 'meteor')]
  flags = ['--suite', suite, '--metrics', ','.join(names)]
  assert cli.main(['score', '--outputs', outputs, '--references', references, *flags]) == 0
  for line in capsys.readouterr().out.splitlines()[1:]:
    name, value, *_ = line.split()
    assert value == ('1.0000' if name == 'ter' else '0.0000') or (name, value) == ('meteor', 'skipped'), line


def test_bad_input(tmp_path, capsys):
  two, three = write(tmp_path / 'two', 'a', 'b'), write(tmp_path / 'three', 'a', 'b', 'c')
  blank = write(tmp_path / 'blank', '', '')
  (tmp_path / 'latin').write_bytes(b'a\ncaf\xe9\n')
  (tmp_path / 'empty').touch()
  wide = write(tmp_path / 'wide.csv', 'mr,ref', 'x,a', 'y,b,c')
  headless = write(tmp_path / 'headless.csv', 'x,a', 'y,b')
  open_quote = write(tmp_path / 'quote.csv', 'mr,ref', 'x,"a')
  rows = [write(tmp_path / f'{i}.jsonl', '{"prediction": "a"}', line) for i, line in enumerate([
      '{', '{"text": "b"}', '{"prediction": "b", "target": 3}'])]
  for arguments, message in [
      ([two, three], '2 outputs but .*three has references for 3'),
      ([three, two, two, three], 'two has 2 lines, .*three has 3 lines'),
      ([two, blank], 'All references are empty'),
      ([two, 'nowhere'], 'nowhere: no such file'),
      ([str(tmp_path / 'latin'), two], 'latin, line 2: not UTF-8'),
      ([str(tmp_path / 'empty'), two], 'empty is empty'),
      ([two, wide], 'wide.csv, line 3: 3 columns where the header has 2'),
      ([two, headless], 'headless.csv, line 1: expected one column named mr'),
      ([two, open_quote], 'quote.csv, line 2: '),
      ([rows[0], two], '0.jsonl, line 2: not JSON'),
      ([rows[1], two], '1.jsonl, line 2: no "prediction"'),
      ([rows[2], two], '2.jsonl, line 2: "target"'),
      ([two, two, '--model', 'bleu=x'], '--model bleu=x: expected METRIC=FOLDER'),
      ([two, two, '--metrics', 'blue'], "no metric 'blue' in suite e2e"),
      ([two, two, '--suite', 'e2f'], "no suite 'e2f'"),
  ]:
    outputs, *others = arguments
    flags = others[others.index(next((a for a in others if a.startswith('--')), None)):] if any(
        a.startswith('--') for a in others) else []
    references = [flag for path in others[:len(others) - len(flags)] for flag in ('--references', path)]
    assert cli.main(['score', '--outputs', outputs, *references, *FAST, *flags]) == 1, arguments
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert 'Traceback' not in error


def test_skipped_metrics_are_told_and_fail_only_when_named(tmp_path, capsys):
  path = write(tmp_path / 'one', 'a b c d e')
  files = ['--outputs', path, '--references', path]
  assert cli.main(['score', *files, '--metrics', 'rouge_l,bertscore']) == 0
  assert re.search(r'bertscore +skipped +needs a model.*bertscore=FOLDER', capsys.readouterr().out)
  assert cli.main(['score', *files, '--metrics', 'bertscore']) == 1


def test_commands_of_the_page_parse():
  page = (pathlib.Path(__file__).parents[1] / 'docs' / 'score.md').read_text().replace('\\\n', ' ')
  commands = re.findall(r'^prompt-tuning score (.*)', page, re.MULTILINE)
  assert len(commands) >= 3
  for command in commands:
    assert score.parser().parse_args(shlex.split(command)).outputs
