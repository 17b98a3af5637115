"""What a compiled program needs of a device and how long it would take at least: the figures of a plan."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from prompt_tuning import hlo
from prompt_tuning.plan.compiling import Compiled
from prompt_tuning.plan.devices import Device
from prompt_tuning.plan.programs import Program, bytes_per_device


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Of one program, per device unless it says otherwise; bytes, FLOPs and seconds.

  Attributes:
    memory: bytes of 'frozen', 'trainable', 'optimizer' and 'batch', 'cache' (of `temporaries`, spread evenly),
      'temporaries', 'outputs' and 'code'.
    peak: bytes in use at most, by the compiler; None: it is not known, but more than there are.
    usable: bytes that a program can have of the device.
    fits: `peak` is no more than that.
    flops: of one call, all devices' evenly spread, as `reproduce/cost.py` counts them: of matrix products.
    traffic: bytes to and from memory.
    collectives: kind -> (how many are executed, bytes a device sends).
    times: seconds that 'compute', 'memory' and 'network' would take at their peaks; the longest one is `bound`.
    seconds: of a call, if the three go on at once: a lower bound.
    utilisation: of the peak FLOP/s, at that time (MFU).
    examples_per_second: on all devices together.
    checkpoint: bytes of the run's checkpoint and of the file of what is trained; None: nothing is saved.
    compile_seconds, compile_cpu_seconds: here.
    note: what the compiler said, where the program does not fit.
  """

  program: str
  memory: Mapping[str, int]
  peak: int
  usable: int
  fits: bool
  flops: float
  traffic: int
  collectives: Mapping[str, tuple[int, float]]
  times: Mapping[str, float]
  bound: str
  seconds: float
  utilisation: float
  examples_per_second: float
  checkpoint: tuple[int, int] | None
  compile_seconds: float
  compile_cpu_seconds: float
  note: str = ''

  def json(self) -> dict[str, Any]:
    """Plain values."""
    return dataclasses.asdict(self)


def estimate(program: Program, compiled: Compiled, device: Device, devices: int, dtype: str) -> Estimate:
  """Puts together what is known of a program.

  Args:
    devices: how many there are.
    dtype: of activations, of which the peak FLOP/s are.
  """
  memory = {name: bytes_per_device(tree) for name, tree in program.parts.items()}
  memory |= {'temporaries': compiled.temporaries, 'outputs': compiled.outputs, 'code': compiled.code}
  if program.cache:
    memory['cache'] = program.cache // devices
  flops = program.flops / devices
  sent = hlo.total(compiled.collectives, program.trips, wire=True)
  times = {'compute': flops / device.flops[dtype], 'memory': compiled.traffic / device.bandwidth,
           'network': sent / device.link}
  bound = max(times, key=times.__getitem__)
  usable = round(device.memory * device.usable)
  known = not compiled.exceeded
  return Estimate(
      program=program.name, memory=memory, peak=compiled.peak, usable=usable, fits=known and compiled.peak <= usable,
      flops=flops, traffic=compiled.traffic, collectives=_by_kind(compiled, program.trips), times=times, bound=bound,
      seconds=times[bound], utilisation=times['compute'] / times[bound],
      examples_per_second=program.rows / times[bound] if times[bound] else math.inf, checkpoint=program.saved,
      compile_seconds=compiled.seconds, compile_cpu_seconds=compiled.cpu_seconds, note=compiled.exceeded)


def _by_kind(compiled: Compiled, trips: int) -> dict[str, tuple[int, float]]:
  found: dict[str, tuple[int, float]] = {}
  for one in compiled.collectives:
    times = trips if one.times is None else one.times
    count, sent = found.get(one.kind, (0, 0.0))
    found[one.kind] = count + times, sent + times * hlo.bytes_on_wire(one)
  return found
