"""Who may import whom (DESIGN.md, section 3), read from the source; and that `import prompt_tuning` is light."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = 'prompt_tuning'


def module_name(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix('').parts
  parts = (PACKAGE, *parts) if parts[0] == 'tasks' else parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


SOURCES = {
    module_name(path): path for folder in (PACKAGE, 'tasks') for path in sorted((ROOT / folder).rglob('*.py'))}


def imports(path: pathlib.Path) -> set[str]:
  """Full names of what a file imports, also inside functions: modules, and `module.name` of from-imports."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      found |= {f'{node.module}.{alias.name}' for alias in node.names}
  return found


def ours(path: pathlib.Path) -> set[str]:
  """The modules of this package that a file imports."""
  names = {name for name in imports(path) if name.split('.')[0] == PACKAGE}
  return {max((m for m in SOURCES if name == m or name.startswith(f'{m}.')), key=len) for name in names}


def within(module: str, *rooms: str) -> bool:
  return any(module == f'{PACKAGE}.{room}' or module.startswith(f'{PACKAGE}.{room}.') for room in rooms)


MAY_IMPORT = {  # room -> the rooms it may import, besides itself
    'types': (),
    'trees': ('types',),
    'quantized': ('types', 'trees'),
    'backbones': ('types', 'trees', 'quantized'),
    'methods': ('types', 'trees', 'backbones.sites', 'backbones.config',
                'checkpoints.tuned'),  # a trained prompt as a file, whatever its form: a method may begin from one
    'decoding': ('types', 'trees', 'backbones'),
    'prompted': ('types', 'trees', 'backbones', 'decoding', 'methods.base', 'methods.readouts'),
    'batching': (),
    'features': ('types', 'trees', 'batching'),
    'tokenizer': (),
    'progress': ('hosts',),
    'link': (),
    'hosts': ('link',),
    'compiled': (),
    'metrics': (),
    'score': ('metrics', 'train.writers'),
    'partitioning': ('types', 'trees'),
    'hlo': (),
    'checkpoints': ('types', 'trees', 'quantized', 'backbones.config'),
    'loading': ('types', 'trees', 'quantized', 'backbones', 'checkpoints', 'methods', 'partitioning', 'progress',
                'prompted', 'tokenizer'),
    # No data are read: what a job's configuration imports of them is imported by gin.
    'plan': ('types', 'trees', 'backbones', 'methods', 'decoding', 'prompted', 'features', 'partitioning', 'loading',
             'hlo', 'gin_utils', 'reproduce.cost', 'train.step', 'train.losses', 'train.writers'),
    'analysis': ('types', 'trees', 'quantized', 'backbones', 'methods', 'checkpoints', 'decoding', 'prompted',
                 'features', 'tokenizer', 'partitioning', 'loading'),
}


@pytest.mark.parametrize('room', MAY_IMPORT)
def test_rooms_import_only_what_lies_below_them(room):
  modules = [module for module in SOURCES if within(module, room)]
  assert modules or room == 'analysis'
  for module in modules:
    wrong = sorted(m for m in ours(SOURCES[module]) if not within(m, room, *MAY_IMPORT[room]))
    assert not wrong, f'{module} imports {wrong}'


CONFINED = {  # package -> who may import it
    'tensorflow': ('tasks', 'train.data'),
    'tensorflow_datasets': ('tasks', 'train.data'),
    'seqio': ('tasks', 'train.data'),
    'gin': ('cli', 'gin_utils'),
    'torch': (),
    'transformers': (),
}


@pytest.mark.parametrize('package', CONFINED)
def test_packages_are_imported_only_where_they_belong(package):
  users = [module for module, path in SOURCES.items() if any(n.split('.')[0] == package for n in imports(path))]
  assert [module for module in users if not within(module, *CONFINED[package])] == []


def test_torch_only_in_benchmarks():
  users = {path for path in (ROOT / 'scripts').rglob('*.py') if any(n.split('.')[0] == 'torch' for n in imports(path))}
  assert {path.parent.name for path in users} <= {'bench'}


def test_nobody_unpickles():
  for path in [*SOURCES.values(), *(ROOT / 'scripts').rglob('*.py')]:
    text = path.read_text()
    assert not {name.split('.')[0] for name in imports(path)} & {'pickle', 'dill', 'cloudpickle'}, path
    assert 'allow_pickle=True' not in text, path
    assert text.count('np.load(') <= text.count('allow_pickle=False'), f'{path}: np.load without allow_pickle=False'


def test_importing_the_package_leaves_tensorflow_out():
  code = ('import sys, prompt_tuning, prompt_tuning.interactive, prompt_tuning.loading, prompt_tuning.cli; '
          'print([m for m in ("tensorflow", "seqio", "tensorflow_datasets", "gin", "torch") if m in sys.modules])')
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, timeout=120)
  assert done.stdout.strip() == '[]', done.stderr
