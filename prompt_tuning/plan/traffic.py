"""Bytes that a device moves between its memory and its cores in a compiled program, read from the text of its HLO.

As XLA's own count, with two differences: what is in a loop counts as often as the loop runs, and what a TPU keeps in
its fast memory on the chip costs nothing. An instruction reads its operands and writes its result; of what is sliced or
updated in place, the slice counts.
"""

import math
import re

from prompt_tuning import hlo

_FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call', 'after-all',
         'optimization-barrier', 'partition-id', 'replica-id', 'iota', 'opt-barrier')
_SLICES = ('dynamic-slice', 'slice', 'gather')
_SHAPE = re.compile(r'\b([a-z]\w*\[[\d,<=]*\])(\{[^{}]*\})?')


def traffic(hlo_text: str, unknown: int = 1) -> int:
  """Bytes of one run of the program on one device.

  Args:
    unknown: how often a loop runs of which the text does not say it.
  """
  computations, entry = hlo.parse(hlo_text)
  return sum(times * _bytes(one, where, computations)
             for where, one, times in hlo.executed(computations, entry, unknown))


def _bytes(one, where, computations) -> int:
  if one.opcode in _FREE or one.opcode.endswith(('-done', '-update')):
    return 0
  operands = [where.instructions[name].shape for name in one.operands if name in where.instructions]
  if one.opcode in _SLICES:
    return 2 * _size(one.shape)
  if one.opcode == 'dynamic-update-slice':
    return 2 * _size(operands[1])
  if one.opcode.endswith('-start'):  # its result holds the operands too
    return 2 * sum(map(_size, operands))
  inside = hlo.fused(one, computations)
  if inside is None:
    return _size(one.shape) + sum(map(_size, operands))
  total = _written(inside, one.shape)
  for number, operand in enumerate(map(_size, operands)):
    total += min(operand, _used(inside, number, computations)) if operand else 0
  return total


def _used(inside, number: int, computations) -> float:
  """Bytes that a fusion reads of a parameter: slices of it if it does nothing else with it."""
  names = {one.name for one in inside.instructions.values() if one.opcode == 'parameter' and int(one.inside) == number}
  total = 0.0
  for one in inside.instructions.values():  # in the order in which they are computed
    for place, name in enumerate(one.operands):
      if name not in names:
        continue
      if one.opcode == 'bitcast':
        names.add(one.name)
      elif one.opcode in _SLICES and place == 0:
        total += _size(one.shape, everywhere=True)
      elif nested := hlo.fused(one, computations):
        total += _used(nested, place, computations)
      elif one.opcode != 'dynamic-update-slice' or place != 0:  # which is done in place
        return math.inf
  return total


def _written(inside, result: str) -> int:
  """Bytes that a fusion writes: of what is updated in place, the update."""
  results, roots = [result], [inside.root]
  arrays = [''.join(array) for array in _SHAPE.findall(result)]
  if inside.root.opcode == 'tuple' and len(arrays) == len(inside.root.operands):  # not a tuple of tuples
    results, roots = arrays, [inside.instructions[name] for name in inside.root.operands]
  total = 0
  for shape, root in zip(results, roots, strict=True):
    while root.opcode == 'bitcast':
      root = inside.instructions[root.operands[0]]
    if root.opcode == 'dynamic-update-slice' and _size(shape):
      total += _size(inside.instructions[root.operands[1]].shape, everywhere=True)
    else:
      total += _size(shape)
  return total


def _size(shape: str, everywhere: bool = False) -> int:
  """Bytes of a shape, without what is kept in fast memory: `S(1)` in its layout."""
  return sum(hlo.nbytes(array) for array, layout in _SHAPE.findall(shape)
             if everywhere or not re.search(r'S\([1-9]', layout))
