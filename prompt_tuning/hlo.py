"""What crosses the network in a compiled program, read from the text of its HLO (`compiled.as_text()`).

The text is that of any of XLA's compilers; it names what a device does, in computations that call each other. What is
in the body of a loop counts as often as the loop runs. How often that is the compiler says itself, or it is derived
from the loop's condition where this compares a counter with a constant; else it stays unknown.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import itertools
import math
import re

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'ragged-all-to-all', 'collective-permute',
         'collective-broadcast')
_DTYPE_BITS = {'pred': 8, 'token': 0, 'opaque': 0, 'c64': 64, 'c128': 128}
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+)(?: \(.*)? \{\s*$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_CALLED = re.compile(r'\b(calls|body|condition|to_apply|branch_computations|true_computation|false_computation|'
                     r'called_computations)=(\{[^}]*\}|%?[\w.\-]+)')
_PASSED_ON = ('copy', 'bitcast', 'convert', 'reshape', 'broadcast', 'copy-start', 'copy-done', 'optimization-barrier')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation of a program, as a device takes part in it.

  Attributes:
    kind: one of `KINDS`.
    bytes: of one execution: what the group reduces, gathers (the result) or scatters (before it is reduced), or what
      a device sends.
    times: how often it is executed; None: as often as a loop runs of which this is not known.
    groups: places of the devices, in the order of the mesh, that exchange data; of a permutation pairs (from, to).
    name: of the instruction.
    origin: where it comes from in the traced program, '' if the compiler does not say.
  """

  kind: str
  bytes: int
  times: int | None
  groups: tuple[tuple[int, ...], ...]
  name: str
  origin: str = ''

  @property
  def group_size(self) -> int:
    return max(map(len, self.groups))

  def over(self, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of a mesh {axis: size} that it goes along."""
    places = list(itertools.product(*map(range, mesh.values())))
    along = {axis for group in self.groups for i, axis in enumerate(mesh) if len({places[d][i] for d in group}) > 1}
    return tuple(axis for axis in mesh if axis in along)


def bytes_on_wire(collective: Collective) -> float:
  """What a device sends in one execution, with the devices of a group in a ring."""
  n = collective.group_size
  if collective.kind in ('collective-permute', 'collective-broadcast'):
    return float(collective.bytes)
  return (2 if collective.kind == 'all-reduce' else 1) * (n - 1) / n * collective.bytes


def total(found: Iterable[Collective], unknown: int = 1, wire: bool = False) -> float:
  """Bytes of all executions, a loop of unknown length taken to run `unknown` times."""
  return sum((bytes_on_wire(c) if wire else c.bytes) * (unknown if c.times is None else c.times) for c in found)


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  inside: str  # of the parentheses
  rest: str  # behind them: attributes

  def attribute(self, pattern: str) -> str | None:
    found = re.search(pattern, self.rest)
    return found and found[1]


@dataclasses.dataclass(frozen=True)
class _Computation:
  instructions: Mapping[str, _Instruction]
  root: _Instruction


def collectives(hlo_text: str, unknown: int | None = None) -> list[Collective]:
  """The collectives of a program, in order; one that goes nowhere (groups of one device) is none.

  Both branches of a condition are counted. Of an operation in two parts (`-start` and `-done`, and the TPU
  compiler's fusions of a collective with what is computed meanwhile) the first part is counted.

  Args:
    unknown: how often a loop runs of which this is not known, so that what it holds has `times` all the same.

  Raises:
    ValueError: the text has no entry computation, or an unknown form of a collective.
  """
  computations, entry = parse(hlo_text)
  if entry is None:
    raise ValueError('No ENTRY computation in the HLO text; expected what compiled.as_text() returns.')
  devices = re.search(r'\b(?:num_partitions|replica_count)=([2-9]|\d\d+)\b', hlo_text.partition('\n')[0])
  devices = int(devices[1]) if devices else 1
  return list(_walk(computations, entry, 1, devices, set(), unknown))


def executed(
    computations: Mapping[str, _Computation], name: str, unknown: int,
    times: int = 1) -> Iterator[tuple[_Computation, _Instruction, int]]:
  """Every instruction that a computation of `parse` runs, with where it stands and how often it runs.

  What is inside a fusion is not told apart from it. Both branches of a condition are counted.

  Args:
    unknown: how often a loop runs of which this is not known.
  """
  for one in computations[name].instructions.values():
    yield computations[name], one, times
    if one.opcode in ('while', 'call', 'conditional'):
      trips = _trip_count(computations, name, one) if one.opcode == 'while' else 1
      for role, called in _called(one, computations):
        again = times * (unknown if trips is None else trips) + (role == 'condition') * times
        yield from executed(computations, called, unknown, again)


def fused(one: _Instruction, computations: Mapping[str, _Computation]) -> _Computation | None:
  """What a fusion does, if that is what the instruction is."""
  return next((computations[name] for _, name in _called(one, computations)), None) if one.opcode == 'fusion' else None


def _walk(computations, name: str, times: int | None, devices: int, chains: set[str],
          unknown: int | None) -> Iterator[Collective]:
  """Collectives of a computation run `times` times; `chains`: parts already counted, of those in fusions."""
  own = set()
  for one in computations[name].instructions.values():
    kind = one.opcode.removesuffix('-start')
    if kind in KINDS:
      groups = _groups(one, devices)
      chain = one.attribute(r'chain_id="(\w+)"')
      key = chain and f'{kind} {one.attribute(r"channel_id=([0-9]+)")} {chain}'
      if max(map(len, groups)) > 1 and key not in chains:
        kind = 'reduce-scatter' if kind == 'all-reduce' and 'all-reduce-scatter' in name else kind
        yield Collective(kind, _payload(one, kind, groups), times, groups, one.name,
                         one.attribute(r'op_name="([^"]*)"') or '')
      if key:
        chains.add(key)
    elif not one.opcode.endswith(('-done', '-update')):
      for role, called in _called(one, computations):
        again = times
        if role in ('body', 'condition'):
          trips = _trip_count(computations, name, one)
          trips = unknown if trips is None else trips
          again = None if trips is None or times is None else times * (trips + (role == 'condition'))
        yield from _walk(computations, called, again, devices, chains if one.opcode == 'fusion' else own, unknown)


def _called(one: _Instruction, computations) -> Iterator[tuple[str, str]]:
  for role, names in _CALLED.findall(one.rest):
    for name in re.findall(r'[\w.\-]+', names):
      if name in computations:
        yield role, name


def _payload(one: _Instruction, kind: str, groups: Sequence[Sequence[int]]) -> int:
  shape = one.shape
  if one.opcode.endswith('-start') and kind != 'all-reduce' and shape.startswith('('):
    shape = _parts(shape[1:-1])[1]  # (what goes in, what comes out, ...)
  return nbytes(shape) * (len(groups[0]) if one.opcode.startswith('reduce-scatter') else 1)


def nbytes(shape: str) -> int:
  """Of 'f32[2,3]{1,0}' or a tuple of such: 24."""
  size = 0
  for dtype, dims in re.findall(r'\b([a-z]\w*)\[([\d,<=]*)\]', re.sub(r'\{[^{}]*\}', '', shape)):
    if dtype not in _DTYPE_BITS and not re.search(r'\d', dtype):
      raise ValueError(f'{shape}: unknown type {dtype!r}.')
    bits = _DTYPE_BITS[dtype] if dtype in _DTYPE_BITS else int(re.search(r'\d+', dtype)[0])
    size += -(-bits * math.prod(int(d.removeprefix('<=')) for d in dims.split(',') if d) // 8)
  return size


def _groups(one: _Instruction, devices: int) -> tuple[tuple[int, ...], ...]:
  """From `{{0,1},{2,3}}`, `[2,2]<=[2,2]T(1,0)` or `mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a':(1)2}`."""
  numbers = lambda text: [int(n) for n in re.findall(r'\d+', text or '')]
  iota = r'\[([\d,]+)\](?:T\(([\d,]+)\))?'
  if found := re.search(r'(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}', one.rest):
    groups = tuple(tuple(numbers(group)) for group in found[1].split('},{'))
    return groups if found[1] else (tuple(range(devices)),)
  if found := re.search(rf'replica_groups=\[([\d,]+)\]<={iota}', one.rest):
    flat, size = _iota(numbers(found[2]), numbers(found[3])), numbers(found[1])[-1]
    return tuple(tuple(flat[i:i + size]) for i in range(0, len(flat), size))
  if found := re.search(rf"replica_groups=mesh\[([^\]]*)\](?:, ?device_ids=\({iota}\))? ?\{{([^{{}}]*)\}}", one.rest):
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
    ids = _iota(numbers(found[2]) or [math.prod(sizes.values())], numbers(found[3]))
    along = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", found[4])  # an axis, or a part of it: 'a':(before)size
    groups: dict[tuple[int, ...], list[int]] = {}
    for device, place in zip(ids, itertools.product(*map(range, sizes.values())), strict=True):
      place = dict(zip(sizes, place, strict=True))
      for axis, before, size in along:
        part = int(size or sizes[axis])
        stride = sizes[axis] // (int(before or 1) * part)
        place[axis] -= place[axis] // stride % part * stride
      groups.setdefault(tuple(place.values()), []).append(device)
    return tuple(map(tuple, groups.values()))
  raise ValueError(f'{one.opcode} {one.name}: cannot read its groups of devices from {one.rest[:200]!r}.')


def _iota(dims: Sequence[int], order: Sequence[int]) -> list[int]:
  """0, 1, ... as an array of `dims`, flat after its axes were put in `order` (empty: as they are)."""
  order = order or range(len(dims))
  strides = [math.prod(dims[i + 1:]) for i in range(len(dims))]
  return [sum(i * strides[a] for i, a in zip(index, order, strict=True))
          for index in itertools.product(*(range(dims[a]) for a in order))]


def _trip_count(computations, caller: str, loop: _Instruction) -> int | None:
  """How often the body of a `while` runs."""
  known = loop.attribute(r'known_trip_count\D*(\d+)')
  if known:
    return int(known)
  called = dict(_called(loop, computations))
  condition, body = computations[called['condition']], computations[called['body']]
  test = condition.root
  while test.opcode in _PASSED_ON:
    test = condition.instructions[test.operands[0]]
  counter = test.operands and condition.instructions.get(test.operands[0])
  direction = test.attribute(r'direction=(LT|LE)')
  if test.opcode != 'compare' or direction is None or counter.opcode != 'get-tuple-element':
    return None
  index = int(counter.attribute(r'index=(\d+)'))
  start = _constant(computations[caller], loop.operands[0], index)
  step = body.root.opcode == 'tuple' and _source(body, body.root.operands[index])
  by = step and step.opcode == 'add' and _constant(body, step.operands[1])
  end = _constant(condition, test.operands[1])
  if start is None or end is None or not by:
    return None
  return max(0, -(-(end + (direction == 'LE') - start) // by))


def _source(computation: _Computation, name: str, index: int | None = None) -> _Instruction | None:
  """The instruction that makes a value (element `index` of it), behind copies and tuples."""
  one = computation.instructions.get(name)
  while one is not None and (one.opcode in _PASSED_ON or one.opcode == 'tuple' and index is not None):
    one, index = (computation.instructions.get(one.operands[index]), None) if one.opcode == 'tuple' else (
        computation.instructions.get(one.operands[0]), index)
  return one


def _constant(computation: _Computation, name: str, index: int | None = None) -> int | None:
  one = _source(computation, name, index)
  return int(one.inside) if one is not None and one.opcode == 'constant' and one.inside.isdigit() else None


def parse(text: str) -> tuple[dict[str, _Computation], str | None]:
  """Computations by name, and the name of the entry."""
  computations, entry, name = {}, None, None
  for line in text.splitlines():
    if name is None:
      if header := _HEADER.match(line):
        name, instructions, root = header[2], {}, None
        entry = name if header[1] else entry
    elif line.startswith('}'):
      computations[name], name = _Computation(instructions, root), None
    elif found := _INSTRUCTION.match(line):
      one = _instruction(found[2], found[3])
      instructions[one.name] = one
      root = one if found[1] else root
  return computations, entry


def _instruction(name: str, text: str) -> _Instruction:
  end = _closing(text, 0) if text.startswith('(') else text.index(' ')
  shape, text = text[:end], text[end:].lstrip()
  opening = text.index('(')
  closing = _closing(text, opening)
  inside = text[opening + 1:closing - 1]
  uncommented = re.sub(r'/\*.*?\*/', '', inside)  # /*index=5*/
  operands = tuple(part.split()[-1].lstrip('%') for part in _parts(uncommented) if part)
  return _Instruction(name, shape, text[:opening], operands, inside, text[closing:])


def _closing(text: str, start: int) -> int:
  """Just behind the parenthesis that closes the one at `start`."""
  depth = 0
  for found in re.compile(r'[()]').finditer(text, start):
    depth += 1 if found[0] == '(' else -1
    if not depth:
      return found.end()
  raise ValueError(f'Unbalanced parentheses in the HLO text: {text[:200]!r}.')


def _parts(text: str) -> list[str]:
  """At the commas that are in no parentheses, brackets or braces."""
  parts, depth, first = [], 0, 0
  for found in re.compile(r'[()\[\]{},]').finditer(text):
    depth += (found[0] in '([{') - (found[0] in ')]}')
    if found[0] == ',' and not depth:
      parts.append(text[first:found.start()])
      first = found.end()
  return [part.strip() for part in [*parts, text[first:]]]
