"""One job on several hosts: its processes find each other, agree, stop together, and end together.

A process alone (the default) does none of this. Of several, `start` connects all (`link`, then `jax.distributed`);
`agree` refuses hosts that were not given the same; `Preemption` stops all after the same step when any of them gets
SIGTERM; and where one dies or fails the others say so and end.
"""

import argparse
from collections.abc import Callable, Mapping
import dataclasses
import difflib
import hashlib
from importlib import metadata
import os
import pathlib
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from prompt_tuning import link

ENVIRONMENTS = 'a TPU pod, SLURM (srun), Open MPI (mpirun), Kubernetes (an indexed Job)'


class DisagreementError(ValueError):
  """The processes of a job were given different things; the message shows two of them."""


@dataclasses.dataclass
class _Job:
  """What this process knows of its job; without a connection it is alone."""

  connection: link.Link | None = None
  advice: Callable[[], str] = lambda: ''
  told_to_stop: bool = False  # this process, by SIGTERM


_job = _Job()


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags that start a job of several processes; T5X's names where it has them."""
  group = parser.add_argument_group('several hosts', 'None of these: one process.')
  group.add_argument(
      '--multiprocess', '--multiprocess_gpu', action='store_true',
      help=f'one of several processes; what the next three do not say comes from the environment: {ENVIRONMENTS}')
  group.add_argument('--coordinator_address', metavar='HOST:PORT', help='of process 0, with a free port')
  group.add_argument('--process_count', type=int, metavar='N', help='processes of the job')
  group.add_argument('--process_index', type=int, metavar='I', help='of this process, from 0')
  group.add_argument('--initialization_timeout', type=int, default=300, metavar='SECONDS',
                     help='how long to wait for the other processes (%(default)s)')
  group.add_argument('--heartbeat_timeout', type=int, default=100, metavar='SECONDS',
                     help='a process that was silent for so long is gone (%(default)s); one that was killed is at once')


def start(flags: argparse.Namespace, stops: bool = False) -> None:
  """Connects this process with the others of its job, if the flags say that there are any. Before any use of devices;
  once it has, it does nothing.

  Args:
    stops: the job asks `Preemption` after every step; else SIGTERM ends this process, and with it the others.

  Raises:
    link.LinkError, ValueError: the flags are incomplete, or the processes cannot find each other; within
      --initialization_timeout.
  """
  given = {name: getattr(flags, name) for name in ('coordinator_address', 'process_count', 'process_index')}
  if several() or not flags.multiprocess and all(value is None for value in given.values()):
    return
  address, count, index, devices = _completed(given, flags.initialization_timeout)
  host, _ = link.parse(address)
  if not 0 <= index < count:
    raise ValueError(f'--process_index={index} of --process_count={count}: expected one from 0 to {count - 1}.')
  if count == 1:
    return
  _job.connection = link.Link(
      address, count, index, timeout=flags.initialization_timeout, silence=flags.heartbeat_timeout, on_loss=_end)
  if index:
    link.wait_for(host, _job.connection.port, flags.initialization_timeout)  # jax would end without a message
  import jax

  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.config.update('jax_enable_preemption_service', False)  # its agreement on a step was seen to miss that step
  later = flags.heartbeat_timeout + 30  # jax ends a process without saying who died, so `link` goes first
  try:
    jax.distributed.initialize(
        f'[{host}]:{_job.connection.port}' if ':' in host else f'{host}:{_job.connection.port}', count, index, devices,
        cluster_detection_method='deactivate', initialization_timeout=flags.initialization_timeout,
        heartbeat_timeout_seconds=later)
  except RuntimeError as error:
    raise link.LinkError(f'jax.distributed could not start on {count} processes: {error}') from error
  if stops:
    signal.signal(signal.SIGTERM, lambda *_: setattr(_job, 'told_to_stop', True))


def _completed(given: Mapping[str, Any], timeout: int) -> tuple[str, int, int, Any]:
  """(address, count, index, local devices), from the flags or else from the cluster, as jax detects it.

  Raises:
    ValueError: something is said nowhere.
  """
  from jax._src import clusters  # what jax.distributed.initialize asks; we need the answer before it

  devices = None
  if None in given.values():
    try:
      *found, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(*given.values(), None, None, timeout)
    except (RuntimeError, ValueError, LookupError, OSError) as error:
      raise ValueError(f'The other processes could not be read from the environment ({error!r}). Give all three of '
                       f'{", ".join(f"--{name}" for name in given)}.') from error
    given = dict(zip(given, found, strict=True))
  if missing := [f'--{name}' for name, value in given.items() if value is None]:
    raise ValueError(f'No {", ".join(missing)}, and this is not one of {ENVIRONMENTS}. Give all three of '
                     f'{", ".join(f"--{name}" for name in given)}.')
  return *given.values(), devices


def several() -> bool:
  """Whether the job has other processes."""
  return _job.connection is not None


def is_first() -> bool:
  """Whether this is the process that writes files and messages."""
  return not several() or _job.connection.index == 0


def gather(value: Any) -> list[Any]:
  """What each process gives for `value`, JSON-able, in their order; all call it, at the same place.

  Raises:
    link.LinkError: one of them is gone.
  """
  return _job.connection.gather(value) if several() else [value]


def completed(value: Any) -> Any:
  """`value` with what is None in it, however deep, as another process has it. All call it."""
  found, *others = gather(value)
  for other in others:
    found = _merged(found, other)
  return found


def _merged(one: Any, other: Any) -> Any:
  if isinstance(one, dict) and isinstance(other, dict):
    return {key: _merged(one[key], other[key]) for key in one}
  if isinstance(one, list) and isinstance(other, list):
    return [_merged(*pair) for pair in zip(one, other, strict=True)]
  return other if one is None else one


def agree(facts: Callable[[], Mapping[str, str]]) -> None:
  """Compares what the processes were given; `facts` (what -> text) are asked for only where there are several.

  Raises:
    DisagreementError: on every process, with the lines in which the first other process differs.
  """
  if not several():
    return
  mine = dict(facts())
  digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in mine.items()}
  everyone = gather([socket.gethostname(), digests])
  differ = [i for i, (_, found) in enumerate(everyone) if found != everyone[0][1]]
  if not differ:
    return
  texts = gather(mine if _job.connection.index in (0, differ[0]) else None)
  pair = texts[0], texts[differ[0]]
  names = [name for name in sorted({*pair[0], *pair[1]}) if pair[0].get(name) != pair[1].get(name)]
  more = f' (and processes {", ".join(map(str, differ[1:6]))})' if differ[1:] else ''
  shown = [_diff(name, *(text.get(name, '') for text in pair)) for name in names]
  raise DisagreementError(
      f'Process {differ[0]} on {everyone[differ[0]][0]}{more} differs from process 0 on {everyone[0][0]} in '
      f'{", ".join(names)}. Start all with the same flags, files, data and versions (- process 0, + process '
      f'{differ[0]}):\n' + '\n'.join(shown))


def _diff(name: str, one: str, other: str, limit: int = 20) -> str:
  lines = difflib.unified_diff(one.splitlines(), other.splitlines(), n=0, lineterm='')
  kept = [f'  {line}' for line in lines if not line.startswith(('---', '+++', '@@'))]
  return '\n'.join([f'{name}:', *kept[:limit], *([f'  ... {len(kept) - limit} more'] if len(kept) > limit else [])])


def versions() -> str:
  """Of what must be alike on all hosts; of this package its sources."""
  package = pathlib.Path(__file__).parent
  sources = hashlib.sha256(b''.join(path.read_bytes() for path in sorted(package.rglob('*.py')))).hexdigest()
  found = {name: metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'seqio', 'tensorflow')}
  return '\n'.join(f'{name} {version}' for name, version in {'prompt_tuning sources': sources[:12], **found}.items())


def advise(advice: Callable[[], str]) -> None:
  """What to add when this job ends because another process is gone."""
  _job.advice = advice


def _end(text: str) -> NoReturn:
  stop = '' if text.endswith(('.', '?', '!')) else '.'
  print(f'prompt-tuning: {text}{stop} This process ends too. {_job.advice()}', file=sys.stderr, flush=True)
  _exit()


def _exit() -> NoReturn:
  """Ends this process from any thread, without jax's farewell, which waits for those who are gone."""
  sys.stdout.flush()
  if is_first():
    time.sleep(1)  # the others are about to say why they end, and jax ends them when this one does
  os._exit(1)


def settle(error: Exception) -> None:
  """To be called before an error is told: where another process is gone, it is but a consequence, and this one ends."""
  if isinstance(error, DisagreementError):
    finish()  # all say it themselves
  elif several():
    time.sleep(2)  # a lost connection is known in moments, and `_end` comes first


def fail(text: str) -> None:
  """Tells the other processes what went wrong in this one and ends it; alone, it does nothing."""
  if several():
    _job.connection.fail(text)
    _exit()


def finish() -> None:
  """Takes leave of the other processes: this one has done its part."""
  if several():
    _job.connection.close()


class Preemption:
  """Notes SIGTERM (a pod or a queue taking the machine back) of any process, to stop all after the same step."""

  def __init__(self):
    self.requested = False
    if not several() and threading.current_thread() is threading.main_thread():
      signal.signal(signal.SIGTERM, lambda *_: setattr(self, 'requested', True))

  def stops(self, step: int, every: int = 1) -> bool:
    """Whether to stop after this step, the same on all processes; asked after every one.

    Several tell each other after each `every` steps: a message to the first process and back.
    """
    if several() and step % every == 0:
      self.requested = any(gather(_job.told_to_stop))
    return self.requested
