"""Select, overlay and compare parameter trees by path ('encoder/layers/mlp/wo/kernel')."""

from collections.abc import Iterable, Mapping
import re

from flax import traverse_util
import jax
import numpy as np

from prompt_tuning.types import PyTree


def flatten(tree: PyTree) -> dict[str, object]:
  """Nested dicts to one dict keyed by '/'-joined path."""
  return traverse_util.flatten_dict(tree, sep='/')


def unflatten(flat: Mapping[str, object]) -> PyTree:
  """Inverse of `flatten`."""
  return traverse_util.unflatten_dict(dict(flat), sep='/')


def select(tree: PyTree, pattern: str) -> dict[str, object]:
  """Leaves whose whole path matches the regular expression `pattern`, keyed by path.

  Raises:
    ValueError: nothing matches; the message lists the paths there are.
  """
  flat = flatten(tree)
  chosen = {path: leaf for path, leaf in flat.items() if re.fullmatch(pattern, path)}
  if not chosen:
    raise ValueError(f'The pattern {pattern!r} matches none of {len(flat)} parameters:\n  ' + shorten(flat))
  return chosen


def overlay(tree: PyTree, replacements: Mapping[str, object]) -> PyTree:
  """`tree` with the leaves at the paths of `replacements` exchanged.

  Args:
    replacements: new leaves by path, or what makes one of the old leaf, a function.

  Raises:
    ValueError: a path that is not in `tree`; the message lists those there are.
  """
  if not replacements:
    return tree
  flat = flatten(tree)
  if unknown := sorted(set(replacements) - set(flat)):
    raise ValueError(f'No parameter {", ".join(unknown)} among:\n  ' + shorten(flat))
  return unflatten({**flat, **{path: new(flat[path]) if callable(new) else new for path, new in replacements.items()}})


def shorten(lines: Iterable[str], most: int = 20, sep: str = '\n  ') -> str:
  """The first `most` lines joined, then how many more there are."""
  lines = list(lines)
  more = [f'... and {len(lines) - most} more'] if len(lines) > most else []
  return sep.join(lines[:most] + more)


def diff(expected: PyTree, found: PyTree) -> list[str]:
  """Differences of two trees of arrays (or shapes) as lines.

  `- path [shape]` is expected and absent, `+ path [shape]` is found and not expected, and a path of two
  shapes yields both lines.
  """
  expected, found = flatten(expected), flatten(found)
  lines = []
  for path in sorted({**expected, **found}):
    want, have = (
        list(np.shape(t[path])) if path in t else None for t in (expected, found))
    if want != have:
      lines += [f'- {path} {want}'] * (want is not None) + [f'+ {path} {have}'] * (have is not None)
  return lines


def size(tree: PyTree) -> int:
  """Number of scalars in all leaves."""
  return sum(int(np.prod(np.shape(leaf))) for leaf in jax.tree.leaves(tree))


def nbytes(tree: PyTree) -> int:
  """Bytes of all leaves (of their global shapes)."""
  return sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
