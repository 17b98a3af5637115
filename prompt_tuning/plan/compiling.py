"""Compiling a program ahead of time, and what its compiler says of memory and of what crosses the network."""

from collections.abc import Mapping
import dataclasses
import re
import time

import jax

from prompt_tuning import hlo
from prompt_tuning.plan.programs import Program, bytes_per_device
from prompt_tuning.plan.targets import COMPILER_OPTIONS
from prompt_tuning.plan.traffic import traffic

QUICK = {'exec_time_optimization_effort': -1.0, 'memory_fitting_effort': -1.0}
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """Of one device.

  Attributes:
    peak: bytes in use at most.
    temporaries: of these, what is neither an argument nor a result: activations, gradients, copies.
    outputs: results that take the place of no argument.
    code: of the program.
    traffic: bytes to and from memory.
    collectives: of `hlo.py`.
    seconds, cpu_seconds: that tracing and compiling took here.
    exceeded: what the compiler said where the program does not fit the device; then nothing but `peak` is known.
  """

  peak: int
  temporaries: int = 0
  outputs: int = 0
  code: int = 0
  traffic: int = 0
  collectives: tuple[hlo.Collective, ...] = ()
  seconds: float = 0.0
  cpu_seconds: float = 0.0
  exceeded: str = ''


def compile_program(program: Program, platform: str, quick: bool = False) -> Compiled:
  """Compiles for the devices that the shapes of the arguments are placed on.

  Args:
    platform: 'tpu', 'gpu' or 'cpu'.
    quick: with the least effort that a TPU's compiler knows, in a third of the time.
  """
  options: Mapping[str, object] = {**COMPILER_OPTIONS[platform], **(QUICK if quick and platform == 'tpu' else {})}
  began, cpu = time.monotonic(), time.process_time()
  try:
    compiled = program.function.lower(*program.arguments).compile(dict(options))
  except jax.errors.JaxRuntimeError as error:
    needed = out_of_memory(str(error))
    if needed is None:
      raise
    if 'HLO temporaries' in str(error):
      needed += sum(map(bytes_per_device, program.parts.values()))
    return Compiled(peak=needed, seconds=time.monotonic() - began, cpu_seconds=time.process_time() - cpu,
                    exceeded=str(error).partition('RESOURCE_EXHAUSTED: ')[2].splitlines()[0])
  seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu
  memory, text = compiled.memory_analysis(), compiled.as_text()
  outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
  code = memory.generated_code_size_in_bytes
  peak = memory.argument_size_in_bytes + outputs + memory.temp_size_in_bytes + code
  return Compiled(
      peak, memory.temp_size_in_bytes, outputs, code, traffic(text, program.trips),
      tuple(hlo.collectives(text, program.trips)), seconds, cpu_seconds)


def out_of_memory(message: str) -> int | None:
  """The bytes that a TPU's compiler says it would need, where it says that they are too many; None: another error."""
  found = re.search(r'(?:Used |HLO temporaries \()([\d.]+)([KMGT]?)', message)
  if 'RESOURCE_EXHAUSTED' not in message or not found:
    return None
  return round(float(found[1]) * _UNITS[found[2]])
