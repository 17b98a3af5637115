"""gin for the entry points: T5X's flags, search paths through the package, and errors that say what to do."""

import argparse
from collections.abc import Callable, Mapping, Sequence
import copy
import difflib
import os
import pathlib
import re
from typing import Any

import gin

_PACKAGE = pathlib.Path(__file__).parent
_MACRO = re.compile(r'^\s*([A-Z][A-Z0-9_]*)\s*=', re.MULTILINE)


class ConfigError(ValueError):
  """A configuration that cannot be run; the message names flag or key and what to do."""


def config_folder() -> pathlib.Path:
  """The `configs` folder: inside an installed package, beside it in the repository."""
  inside = _PACKAGE / 'configs'
  return inside if inside.is_dir() else _PACKAGE.parent / 'configs'


def add_flags(parser: argparse.ArgumentParser) -> None:
  """T5X's gin flags."""
  group = parser.add_argument_group('configuration (as in T5X)')
  group.add_argument(
      '--gin_file', action='append', default=[], metavar='FILE',
      help='gin file, relative to a search path; repeat for several, later ones win')
  group.add_argument(
      '--gin.NAME', dest='gin_example', metavar='VALUE',
      help="set a macro or a parameter, such as --gin.BATCH_SIZE=32 or --gin.MODEL_DIR=\"'runs/a'\"; a value that is "
      'no Python literal is taken as text')
  group.add_argument(
      '--gin_bindings', action='append', default=[], metavar='BINDING', help="the same as 'NAME = VALUE'")
  group.add_argument(
      '--gin_search_paths', default='', metavar='PATHS',
      help='comma-separated folders of gin files, looked in after the working directory, before our own configs')
  group.add_argument('--tfds_data_dir', metavar='FOLDER', help='where TensorFlow Datasets are or go')
  group.add_argument('--seqio_additional_cache_dirs', metavar='FOLDERS',
                     help='comma-separated folders that seqio_cache_tasks has written to, for USE_CACHED_TASKS = True')


def split_bindings(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Separates `--gin.NAME=VALUE` arguments from the others: (others, 'NAME = VALUE' bindings)."""
  others, bindings = [], []
  for argument in argv:
    if not argument.startswith('--gin.'):
      others.append(argument)
      continue
    name, equals, value = argument.removeprefix('--gin.').partition('=')
    if not equals:
      raise ConfigError(f'{argument}: expected --gin.NAME=VALUE, such as --gin.BATCH_SIZE=32.')
    bindings.append(f'{name} = {_literal(value)}')
  return others, bindings


def _literal(value: str) -> str:
  """`value` if gin can read it, else `value` as a string: a shell takes quotes away."""
  try:
    gin.config.parse_value(value)
  except SyntaxError:
    return repr(value)
  except ValueError:  # a reference (@x, %X) to what is not defined yet
    return value
  return value


def parse(files: Sequence[str], bindings: Sequence[str], search_paths: str, strict: bool = True,
          stand_ins: Mapping[str, object] | None = None) -> None:
  """Reads gin files and bindings into gin's global configuration.

  Args:
    files, bindings, search_paths: as of the flags.
    strict: a binding of a macro that nothing uses is an error.
    stand_ins: values of required macros that are not given, for those who do not need them.

  Raises:
    ConfigError: a missing file, an unknown name (with near ones) or a macro without a value.
  """
  if not files:
    raise ConfigError('No --gin_file. Begin with one of: ' + ', '.join(_available('runs')))
  # gin would also take 'runs/train.gin' for a resource of a Python package `runs`, and fails on a plain folder.
  gin.config._FILE_READERS[:] = [(open, os.path.isfile)]
  for folder in (*filter(None, search_paths.split(',')), config_folder()):
    gin.add_config_file_search_path(str(folder))
  try:
    gin.parse_config_files_and_bindings(list(files), None, finalize_config=False)
  except OSError as error:
    raise ConfigError(f'{error}\nLooked in: {", ".join(gin.config._LOCATION_PREFIXES)}.\n'
                      'Configurations of the package: ' + ', '.join(_available('.'))) from error
  except (ValueError, AttributeError, NameError, SyntaxError, ImportError) as error:
    raise ConfigError(f'{error}{_near(str(error))}') from error
  # A binding may name whatever the files have imported, such as @optim.linear().
  imports = {statement.format() for statement in gin.config._IMPORTS}
  header = sorted(imports, key=lambda line: (not line.startswith('from __gin__'), line))
  for binding in bindings:
    try:
      gin.parse_config([*header, binding])
    except (ValueError, AttributeError, NameError, SyntaxError, ImportError) as error:
      raise ConfigError(f'{binding}: {error}{_near(str(error))}') from error
  for name, value in (stand_ins or {}).items():
    if repr(macros().get(name)) == '%gin.REQUIRED':
      gin.bind_parameter(f'{name}/gin.macro.value', value)
  _check_macros(bindings if strict else ())
  gin.finalize()


def _available(below: str) -> list[str]:
  root = config_folder()
  return sorted(str(path.relative_to(root)) for path in (root / below).rglob('*.gin'))


def macros() -> dict[str, object]:
  """Macros with their values, as far as they are given."""
  return {scope: values['value'] for (scope, selector), values in gin.config._CONFIG.items()
          if selector == 'gin.macro'}


def text(files: Sequence[str], bindings: Sequence[str], strict: bool = False) -> str:
  """Reads a configuration in place of what was read before; returns it as one gin file that needs no other."""
  gin.clear_config()
  parse(files, bindings, '', strict)
  return re.sub(r'(?m)^# =+$', '# ' + '=' * 78, gin.config_str(max_line_length=10**6))  # lines are never broken


def read(files: Sequence[str], bindings: Sequence[str], search_paths: str, stand_ins: Mapping[str, object]) -> None:
  """`parse` in place of what was read before."""
  gin.clear_config()
  parse(files, bindings, search_paths, stand_ins=stand_ins)


def shown() -> str:
  """The configuration as gin shows it."""
  return gin.config_str()


def sets(selector: str) -> bool:
  """Whether the configuration sets something of the function `selector`, such as 'loop.train'."""
  return any(name.endswith(f'.{selector}') for _, name in gin.config._CONFIG)


def settings(selector: str, more: Mapping[str, Mapping[str, object]]) -> dict[str, Any]:
  """What a function would be called with, references made into what they stand for.

  Args:
    more: parameter -> further arguments of what it refers to, {'partitioner': {'devices': ...}}.
  """
  found = gin.get_bindings(selector, resolve_references=False)
  return {name: value.scoped_configurable_fn(**more[name]) if name in more else copy.deepcopy(value)
          for name, value in found.items()}


def configured(function: Callable[..., Any]) -> Callable[..., Any]:
  """`function` with its parameters from the configuration."""
  return gin.get_configurable(function)


def macro(name: str) -> object:
  """The value of a macro."""
  return gin.query_parameter(f'{name}/gin.macro.value')


def _check_macros(bindings: Sequence[str]) -> None:
  given = macros()
  text = gin.config_str()
  used = set(re.findall(r'%([A-Z][A-Z0-9_]*)', text))
  for name in _MACRO.findall('\n'.join(bindings)):
    if name not in used:
      raise ConfigError(f'{name} is set but nothing uses it.{_near(name, used)}')
  missing = [name for name in sorted(used) if name not in given or repr(given[name]) == '%gin.REQUIRED']
  if missing:
    raise ConfigError(
        f'No value for {", ".join(missing)}. Set it in a gin file or as --gin.{missing[0]}=VALUE.')


def _near(message: str, names=()) -> str:
  """' Did you mean ...?' for the names a message speaks of, where something is near."""
  known = set(names) or {
      f'{selector.split(".")[-1]}.{parameter}' for (_, selector), values in gin.config._CONFIG.items()
      for parameter in values} | set(macros())
  words = re.findall(r"[\w.]+", message)
  close = {match for word in words for match in difflib.get_close_matches(word, sorted(known), n=2, cutoff=0.75)}
  return f' Did you mean {" or ".join(sorted(close - set(words)))}?' if close - set(words) else ''
