"""Shows what is in a checkpoint: names, shapes, types, bytes, and the fingerprint that prompts refer to.

PATH may be a model (Hugging Face folder, T5X checkpoint_<step>) or a prompt or prefix (.npy, .safetensors, PEFT
folder, run folder).
"""
import argparse
import collections
import json
import sys

import numpy as np

from prompt_tuning import loading
from prompt_tuning.checkpoints import base, compare, tuned
from prompt_tuning.checkpoints.source import Source, TensorInfo


def print_table(rows: list[tuple[str, TensorInfo]]) -> None:
  width = max((len(name) for name, _ in rows), default=0)
  for name, info in rows:
    print(f'{name:<{width}}  {info.dtype.name:<9} {info.nbytes:>14,}  {list(info.shape)}')


def total(infos) -> str:
  infos = list(infos)
  types = collections.Counter(info.dtype.name for info in infos)
  size = sum(int(np.prod(info.shape)) for info in infos)
  return (f'{len(infos)} arrays, {size:,} numbers, {sum(info.nbytes for info in infos):,} bytes '
          f'({", ".join(f"{n} {name}" for name, n in types.items())})')


def inspect_model(path: str, stored: bool, with_fingerprint: bool) -> None:
  source: Source = base.open_base(path)
  leaves = source.tensors if stored else {name: leaf.info for name, leaf in compare.parameters(source).items()}
  print_table(sorted(leaves.items()))
  print(f'\nformat       {source.kind}\nmodel        {total(leaves.values())}')
  if left_out := [name for name in source.tensors if source.ignored(name)]:
    print(f'not needed   {", ".join(left_out)}')
  try:
    state = base.open_t5x(path, 'state')
  except FileNotFoundError as error:
    print(f'optimizer    not whole: {error}')
  else:
    if state is not None:
      step = int(state.read('step', ())) if 'step' in state.tensors else 'unknown'
      print(f'step         {step}\noptimizer    {total(state.tensors.values())}')
  if source.config is None:
    print('dimensions   not of a model that is known here')
  else:
    print(f'dimensions   {source.config}')
    if with_fingerprint:
      size = sum(info.nbytes for info in source.tensors.values())
      print(f'fingerprint  {compare.fingerprint(source, loading.megabytes(size))}')


def inspect_tuned(path: str) -> None:
  thing = tuned.load(path)
  print_table([(name, TensorInfo(x.shape, x.dtype)) for name, x in sorted(thing.tensors.items())])
  print(f'\n{"method":<17}{thing.method}')
  for name, x in sorted(thing.tensors.items()):
    norms = np.linalg.norm(x.reshape(-1, x.shape[-1]), axis=-1)
    print(f'{"norms":<17}{name}: from {norms.min():.4g} to {norms.max():.4g}, mean {norms.mean():.4g}')
  for key, value in thing.about.items():
    print(f'{key:<17}{value if isinstance(value, str) else json.dumps(value)}')


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('path', metavar='PATH')
  parser.add_argument('--stored', action='store_true', help="the checkpoint's own names, not those of our parameters")
  parser.add_argument('--no_fingerprint', action='store_true', help='do not read the values')
  args = parser.parse_args(argv)
  try:
    if base.is_model(args.path):
      inspect_model(args.path, args.stored, not args.no_fingerprint)
    else:
      inspect_tuned(args.path)
  except (ValueError, OSError) as error:
    print(f'inspect_checkpoint.py: {error}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
