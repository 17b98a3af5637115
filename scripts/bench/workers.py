"""What the benchmarks share: contenders in processes of their own, times, and flags.

Imports nothing but the standard library: a peer's interpreter may have no JAX.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import time
from typing import Any, NamedTuple

ALLOCATOR = {  # keep freed memory, in large pages: without it both contenders spend much of a step in page faults
    'MALLOC_ARENA_MAX': '1', 'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': '68719476736',
    'MALLOC_TOP_PAD_': '268435456', 'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
GEMM = (2848, 768, 2048)  # [m, k] x [k, n]: an encoder MLP product of the row `base100`
PAUSE = 0.1  # seconds between two contenders' turns, for the threads of the one before to fall asleep


class Contender(NamedTuple):
  """One way to do the step.

  Attributes:
    step: does one, waits for it and returns its loss.
    gemm: (m, k, n) -> a function that does that matrix product once and waits for it.
    figures: what is known once it is built.
  """

  step: Callable[[], float]
  gemm: Callable[[int, int, int], Callable[[], object]]
  figures: dict[str, Any]


def serve(build: Callable[[dict[str, Any]], Contender]) -> None:
  """Answers requests, a line of JSON {name: value} on stdin each, with a line of JSON on stdout, until EOF.

  {"build": settings} -> the contender's figures, after one step to warm up;
  {"step": n} -> {"seconds": [...], "losses": [...], "peak_memory_gb": x};
  {"gemm": s} -> FLOP/s of each product done within s seconds, at least one.
  """
  replies = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # whatever a library prints must not end up among the replies
  contender = None
  for line in sys.stdin:
    [(request, value)] = json.loads(line).items()
    if request == 'build':
      began = time.perf_counter()
      contender = build(value)
      loss = contender.step()
      reply = {**contender.figures, 'build_seconds': time.perf_counter() - began, 'loss_first': loss}
    elif request == 'step':
      seconds, losses = zip(*(timed(contender.step) for _ in range(value)), strict=True)
      reply = {'seconds': seconds, 'losses': losses, 'peak_memory_gb': peak_memory() / 1e9}
    elif request == 'gemm':
      product = contender.gemm(*GEMM)
      product()
      reply, until = [], time.perf_counter() + value
      while not reply or time.perf_counter() < until:
        reply.append(2 * math.prod(GEMM) / timed(product)[0])
    else:
      raise ValueError(f'Unknown request {request!r}; expected build, step or gemm.')
    print(json.dumps(reply), file=replies, flush=True)


def timed(function):
  """(seconds, result)."""
  began = time.perf_counter()
  result = function()
  return time.perf_counter() - began, result


def cpu() -> dict[str, Any]:
  """What of the processor decides the times; bfloat16 without its instructions is a hundred times slower."""
  lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  known = {key.strip(): value.strip() for key, _, value in (line.partition(':') for line in lines)}
  flags = known.get('flags', known.get('Features', '')).split()
  return {
      'name': known.get('model name', 'unknown'), 'cores': len(os.sched_getaffinity(0)),
      'bfloat16': [flag for flag in flags if 'bf16' in flag]}


def peak_memory() -> int:
  """Bytes: the most this process has had in memory at once (VmHWM of Linux)."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith('VmHWM:'):
      return int(line.split()[1]) * 1024
  raise OSError('/proc/self/status has no line VmHWM; the benchmark needs Linux to measure peak memory.')


class Worker:
  """A contender's process; a context manager that ends it."""

  def __init__(self, name: str, command: Sequence[str]):
    self.name = name
    try:
      self._process = subprocess.Popen(
          command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **ALLOCATOR})
    except OSError as error:
      raise RuntimeError(f'Cannot start the worker {name!r} with {command[0]!r}: {error.strerror}. '
                         '--peer_python must be a Python interpreter.') from error

  def ask(self, request: str, value):
    """Sends one request and waits for its reply.

    Raises:
      RuntimeError: the worker ended instead.
    """
    with contextlib.suppress(BrokenPipeError):
      print(json.dumps({request: value}), file=self._process.stdin, flush=True)
    if not (line := self._process.stdout.readline()):
      raise RuntimeError(
          f'The worker {self.name!r} ended with exit code {self._process.wait()} when asked to {request}; '
          'its own messages above say why (none and exit code -9: memory ran out).')
    return json.loads(line)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._process.kill()
    self._process.communicate()


def tell(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def names(choices: Sequence[str]) -> Callable[[str], list[str]]:
  """An argparse type: a comma-separated list of some of `choices`."""
  def parse(text: str) -> list[str]:
    names = text.split(',')
    if unknown := sorted(set(names) - set(choices)):
      raise argparse.ArgumentTypeError(
          f'there is no {", ".join(map(repr, unknown))}; choose of {", ".join(choices)}')
    return names
  return parse


def compare_in_turns(
    benchmark: str, doc: str, rows: Mapping[str, Any], default: Sequence[str], measure: Callable[[Any, int], dict],
    header: str, line: Callable[[str, dict[str, Any]], str], argv: Sequence[str] | None = None) -> int:
  """The command of a benchmark whose sides run in turns in one process: prints a table and a line of JSON.

  Args:
    rows: what can be measured, dataclasses by name.
    measure: (row, turns) -> figures.
    header, line: of the table; name and figures of a row -> a line.
  """
  parser = argparse.ArgumentParser(
      description=doc, formatter_class=argparse.RawDescriptionHelpFormatter,
      epilog='rows:\n' + '\n'.join(f'  {name:<14} {row}' for name, row in rows.items()))
  parser.add_argument('--rows', type=names(list(rows)), default=list(default), metavar='ROW,...',
                      help=f'which rows to measure, see below (default: {",".join(default)})')
  parser.add_argument('--turns', type=int, default=7, metavar='N',
                      help='timed turns of each side, after those to compile and warm up (default: %(default)s)')
  arguments = parser.parse_args(argv)
  if arguments.turns < 1:
    parser.error(f'--turns={arguments.turns}: at least one turn is needed')
  found = {}
  for name in arguments.rows:
    tell(f'{name}: {rows[name]}')
    found[name] = {**dataclasses.asdict(rows[name]), **measure(rows[name], arguments.turns)}
  print(header)
  for name, figures in found.items():
    print(line(name, figures))
  print(json.dumps({'benchmark': benchmark, 'cpu': cpu(), 'turns': arguments.turns, 'rows': found}))
  return 0
