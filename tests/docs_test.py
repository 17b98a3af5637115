"""Every command of the README and the pages is one that runs: configurations parse, scripts are there."""

import pathlib
import re
import shlex

import pytest

from prompt_tuning import cli

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
  if words[0] == 'prompt-tuning':
    assert cli.run(words[1], [*words[2:], '--dry_run']) == 0
    assert 'MODEL' in capsys.readouterr().out
  else:
    assert words[0] in ('bash', 'python')
    assert (ROOT / words[1]).is_file()


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_and_paths_exist(page):
  text = page.read_text()
  for target in re.findall(r'\]\(([^)#]+)\)', text):
    assert (page.parent / target).exists(), target
  for path in re.findall(r'`((?:configs|tasks|scripts|tests|prompt_tuning)/[\w./]+)`', text):
    assert (ROOT / path).exists(), path
