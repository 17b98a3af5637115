"""Bytes that a device moves between its memory and its cores in a compiled program, read from the text of its HLO.

As XLA's own count, with two differences: what is in a loop counts as often as the loop runs, and what a TPU keeps in
its fast memory on the chip costs nothing. An instruction reads its operands and writes its result; of what is sliced or
updated in place, the slice counts.
"""

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
  return _fusion(inside, one.shape, operands)


def _fusion(inside, result: str, operands: list[str]) -> int:
  """Of a fusion: its operands as far as they are used, and its result as far as it is written."""
  total = _written(inside, result)
  for one in inside.instructions.values():
    if one.opcode == 'parameter' and (number := int(one.inside)) < len(operands):
      total += min(_size(operands[number]), _used(inside, one.name) if _size(operands[number]) else 0)
  return total


def _used(inside, name: str) -> float:
  """Bytes of a parameter that a fusion reads: slices of it if it does nothing else with it."""
  total = 0.0
  for one in inside.instructions.values():
    if name not in one.operands:
      continue
    if one.opcode in _SLICES and one.operands[0] == name:
      total += _size(one.shape, everywhere=True)
    elif one.opcode == 'dynamic-update-slice' and one.operands[0] == name:
      pass  # in place
    elif one.opcode == 'bitcast':
      total += _used(inside, one.name)
    else:
      return float('inf')
  return total


def _written(inside, result: str) -> int:
  root = inside.root
  while root.opcode == 'bitcast':
    root = inside.instructions[root.operands[0]]
  if root.opcode == 'dynamic-update-slice':
    return _size(inside.instructions[root.operands[1]].shape, everywhere=True)
  return _size(result)


def _size(shape: str, everywhere: bool = False) -> int:
  """Bytes of a shape, without what is kept in fast memory: `S(1)` in its layout."""
  return sum(hlo.nbytes(array) for array, layout in _SHAPE.findall(shape)
             if everywhere or not re.search(r'S\([1-9]', layout))
