"""Every command of the README and the pages is one that runs: configurations and flags parse, scripts are there."""

import csv
import importlib
import pathlib
import re
import shlex

import numpy as np
import pytest

from prompt_tuning import cli, score
from prompt_tuning.checkpoints import tuned
from prompt_tuning.metrics import suites
from prompt_tuning.reproduce import command, results, runner
from prompt_tuning.tasks import catalogue, import_data
from tests import models

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def commands():
  """(page, command) of each line in a bash block, continued lines joined."""
  for page in PAGES:
    for block in re.findall(r'```bash\n(.*?)```', page.read_text(), re.DOTALL):
      for line in block.replace('\\\n', ' ').splitlines():
        if words := shlex.split(line, comments=True):
          yield pytest.param(words, id=f'{page.stem}: {" ".join(words[:4])}')


@pytest.mark.parametrize('words', list(commands()))
def test_command(words, capsys):
  if words[:2] == ['prompt-tuning', 'score']:
    flags = score.parser().parse_args(words[2:])
    assert suites.select(flags.suite, flags.metrics and flags.metrics.split(','))
  elif words[:2] == ['prompt-tuning', 'reproduce']:
    shown = command.load(words[2]) if words[2] in command.tables() else None
    assert command.parser().parse_args(words[2:])
    assert shown is None or shown.parts
  elif words[:2] == ['prompt-tuning', 'tasks']:
    assert catalogue.parser().parse_args(words[2:])
  elif words[:2] == ['prompt-tuning', 'import-data']:
    assert import_data.parser().parse_args(words[2:])
  elif launcher := [word for word in words if re.fullmatch(r'scripts/launch_\w+\.sh', word)]:
    assert words[0] in ('bash', 'sbatch', 'DEVICES_PER_PROCESS=4')
    assert (ROOT / launcher[0]).is_file()
    name = next(word for word in words if word in cli.COMMANDS)
    assert cli.run(name, [*words[words.index(name) + 1:], '--dry_run']) == 0
  elif words[0] == 'prompt-tuning':
    assert cli.run(words[1], [*words[2:], '--dry_run']) == 0
    assert re.search('^(MODEL|INITIAL_CHECKPOINT_PATH)', capsys.readouterr().out, re.MULTILINE)
  else:
    assert words[0] in ('bash', 'python')
    assert (ROOT / words[1]).is_file()


def test_commands_of_the_checkpoints_page_run(tmp_path, monkeypatch):
  """In their order, on small stand-ins of the quick start's model and run."""
  (tmp_path / 'models').mkdir()
  (tmp_path / 'models' / 'quickstart_t5').symlink_to(models.GOLDENS / 'hf/t5_v1_1')
  prompt = tuned.Tuned('prompt', {tuned.PROMPT: np.ones((3, 32), np.float32)})
  tuned.save_safetensors(tmp_path / 'runs/quickstart/prompts/best.safetensors', prompt)
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(ROOT / 'scripts')
  text = (ROOT / 'docs' / 'convert.md').read_text()
  lines = re.findall(r'^python scripts/((?:convert|inspect|diff)_checkpoints?)\.py (.*)$', text, re.MULTILINE)
  assert len(lines) >= 9
  for script, arguments in lines:
    assert importlib.import_module(script).main(shlex.split(arguments)) == 0, arguments


@pytest.mark.parametrize('page', sorted((ROOT / 'docs/results').glob('*/table.md')), ids=lambda page: page.parent.name)
def test_a_table_of_results_is_made_by_its_command(page):
  """The rows and columns of what is committed are those that its command writes."""
  words = shlex.split(page.read_text().rsplit('```', 2)[1])
  assert words[:2] == ['prompt-tuning', 'reproduce']
  shown = command.load(words[2])
  cells = results.cells(shown, runner.Runner(pathlib.Path('nothing')))
  with open(page.with_name('table.csv'), newline='') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == len(cells)
  heads = [*shown.rows]
  assert {tuple(row[head] for head in heads) for row in rows} == {cell.row for cell in cells}
  assert f'# {shown.title}' in page.read_text()


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_and_paths_exist(page):
  text = page.read_text()
  for target in re.findall(r'\]\((?!https://)([^)#]+)\)', text):  # others' pages are not looked up
    assert (page.parent / target).exists(), target
  for path in re.findall(r'`((?:configs|tasks|scripts|tests|prompt_tuning)/[\w./]+)`', text):
    assert (ROOT / path).exists(), path
