"""The command line: `prompt-tuning train|eval|infer`, the same as `python -m prompt_tuning.train|evaluate|infer`.

The commands of `PLAIN` have plain flags and no configuration of their own.
"""

import argparse
from collections.abc import Callable, Sequence
import importlib
import itertools
import os
import pathlib
import re
import sys
import traceback

from prompt_tuning import hosts

COMMANDS = {
    'train': ('prompt_tuning.train.loop:train', 'runs/train.gin', 'tune a method on a frozen base'),
    'eval': ('prompt_tuning.train.evaluate:evaluate', 'runs/eval.gin', 'score a tuned prompt on tasks'),
    'ensemble': (
        'prompt_tuning.train.evaluate:evaluate_ensemble', 'runs/ensemble.gin', 'score the vote of several on tasks'),
    'infer': ('prompt_tuning.train.infer:infer', 'runs/infer.gin', 'predict for a task, a JSONL or a text file'),
    'population': (
        'prompt_tuning.train.population:train', 'runs/population.gin', 'train many prompts at once on one frozen base'),
    'interpret': ('prompt_tuning.analysis.interpret:interpret', 'runs/interpret.gin', 'the words nearest to a prompt'),
    'probe': ('prompt_tuning.probe:probe', 'runs/probe.gin', 'find the skill neurons of a tuned prompt'),
    'prune': ('prompt_tuning.analysis.prune_base:prune_base', 'runs/prune.gin', 'a smaller base of its skill neurons'),
    'params': ('prompt_tuning.params:params', 'runs/params.gin', 'count what a method trains, without weights'),
}
ON_HOSTS = ('train', 'eval', 'ensemble', 'infer', 'population')  # which may be jobs of several processes
PLAIN = {  # functions of the command line, which give the exit code
    'score': ('prompt_tuning.score:score', 'metrics of outputs against references'),
    'tasks': ('prompt_tuning.tasks.catalogue:catalogue', 'list tasks, their sizes, lengths and licences'),
    'import-data': ('prompt_tuning.tasks.import_data:import_data', 'raw files into the form that tasks read'),
    'plan': ('prompt_tuning.plan.command:plan', 'memory, speed and fit of a job on devices that are not here'),
    'reproduce': ('prompt_tuning.reproduce.command:reproduce', 'run the table of a paper'),
}


def _parser(command: str) -> argparse.ArgumentParser:
  from prompt_tuning import gin_utils

  _, example, about = COMMANDS[command]
  parser = argparse.ArgumentParser(
      prog=f'prompt-tuning {command}', description=about.capitalize() + '.',
      formatter_class=argparse.RawDescriptionHelpFormatter,
      epilog=f'Begin with --gin_file={example}; the macros to set are listed at its top:\n'
      f'  {gin_utils.config_folder() / example}')
  gin_utils.add_flags(parser)
  if command in ON_HOSTS:
    hosts.add_flags(parser)
  parser.add_argument('--dry_run', action='store_true', help='read the configuration, print it and stop')
  return parser


def run(command: str, argv: Sequence[str]) -> int:
  """Runs one command; returns the exit code. Errors of the user's making are one message."""
  try:
    code = _run(command, argv)
    hosts.finish()
    return code
  except Exception as error:
    hosts.settle(error)
    if not ours(error):
      if hosts.several():
        traceback.print_exc()
      hosts.fail(repr(error))
      raise
    message = re.split(r'\n\s*In call to configurable', str(error))[0]  # gin adds where it was called from
    print(f'prompt-tuning {command}: {message}', file=sys.stderr, flush=True)
    hosts.fail(message)
    return 1


def _run(command: str, argv: Sequence[str]) -> int:
  if command in PLAIN:
    return function(PLAIN[command][0])(argv)
  import gin

  from prompt_tuning import compiled, gin_utils
  others, bindings = gin_utils.split_bindings(argv)
  flags = _parser(command).parse_args(others)
  if flags.tfds_data_dir:
    os.environ['TFDS_DATA_DIR'] = flags.tfds_data_dir
  if flags.seqio_additional_cache_dirs:
    os.environ['SEQIO_ADDITIONAL_CACHE_DIRS'] = flags.seqio_additional_cache_dirs
  if command in ON_HOSTS and not flags.dry_run:
    hosts.start(flags, stops=command in ('train', 'population'))
  gin.clear_config()
  gin_utils.parse(flags.gin_file, [*flags.gin_bindings, *bindings], flags.gin_search_paths)
  if flags.dry_run:
    print(gin.config_str())
    return 0
  compiled.keep()
  hosts.agree(lambda: {'configuration': gin.config_str(), 'versions': hosts.versions()})
  job = gin.get_configurable(function(COMMANDS[command][0]))
  if command in ('train', 'population'):
    job(on_start=lambda: save_config(gin_utils.macro('MODEL_DIR')) if hosts.is_first() else None)
  else:
    job()
  return 0


def function(path: str) -> Callable:
  """What 'module:name' names."""
  module, name = path.split(':')
  return getattr(importlib.import_module(module), name)


def save_config(model_dir: str) -> None:
  """Writes what of the configuration is in use to MODEL_DIR/config.gin; an earlier one is kept beside it."""
  import gin

  from prompt_tuning.train import writers
  path, text = pathlib.Path(model_dir) / 'config.gin', gin.operative_config_str()
  if path.exists() and path.read_text() != text + '\n':
    number = next(n for n in itertools.count(1) if not path.with_name(f'config.{n}.gin').exists())
    path.rename(path.with_name(f'config.{number}.gin'))
  writers.write_lines(path, [text])


def ours(error: Exception) -> bool:
  """Whether an error was raised by this package's own code, hence speaks to the user."""
  last = traceback.extract_tb(error.__traceback__)[-1].filename
  here = str(pathlib.Path(__file__).parent)
  return last.startswith((here, str(pathlib.Path(here).parent / 'tasks'))) and isinstance(
      error, ValueError | OSError | FloatingPointError)


def main(argv: Sequence[str] | None = None) -> int:
  """Entry point of the console script."""
  argv = list(sys.argv[1:] if argv is None else argv)
  if argv and argv[0] in (*COMMANDS, *PLAIN):
    return run(argv[0], argv[1:])
  parser = argparse.ArgumentParser(
      prog='prompt-tuning', description='Small trainables on large frozen language models.')
  commands = parser.add_subparsers(metavar='COMMAND', required=True)
  for name, (*_, about) in {**COMMANDS, **PLAIN}.items():
    commands.add_parser(name, help=f'{about}; see `prompt-tuning {name} --help`')
  parser.parse_args(argv)
  return 0


if __name__ == '__main__':
  sys.exit(main())
