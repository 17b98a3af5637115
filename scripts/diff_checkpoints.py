"""Compares two checkpoints, parameter by parameter, whatever their formats; prints a diff.

Both may be models (Hugging Face folder, T5X checkpoint_<step>), or both prompts or prefixes (.npy, .safetensors,
PEFT folder, run folder). Lines: `-` only in A, `+` only in B (both: another shape), `~` other values.
The exit code is 0 if they are equal, 1 if they differ, and 2 if they cannot be compared.
"""
import argparse
import sys

from prompt_tuning import loading
from prompt_tuning.checkpoints import base, compare, tuned


def read(path: str):
  """All parameters of a model or of something trained."""
  if base.is_model(path):
    return compare.parameters(base.open_base(path))
  return compare.in_memory(tuned.load(path).tensors)


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('a', metavar='A')
  parser.add_argument('b', metavar='B')
  parser.add_argument('--atol', type=float, default=0.0, help='values may differ by this much (default: 0)')
  args = parser.parse_args(argv)
  count = 0
  try:
    if base.is_model(args.a) != base.is_model(args.b):
      raise ValueError(f'One of {args.a} and {args.b} is a model, the other a prompt or prefix; name two of a kind.')
    first, second = read(args.a), read(args.b)
    tick = loading.megabytes(sum(leaf.info.nbytes for leaf in first.values()))
    for difference in compare.differences(first, second, args.atol, tick):
      count += 1
      print('\n'.join(difference.lines()), flush=True)
  except (ValueError, OSError) as error:
    print(f'diff_checkpoints.py: {error}', file=sys.stderr)
    return 2
  equal = len(set(first) & set(second)) - count
  print(f'{count} of {len({**first, **second})} parameters differ' if count else f'equal: {equal} parameters')
  return 1 if count else 0


if __name__ == '__main__':
  sys.exit(main())
