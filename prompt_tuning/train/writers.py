"""Where numbers go: metrics.jsonl, TensorBoard event files, and prediction files."""

from collections.abc import Iterable
import json
import os
import pathlib
import socket
import time
from typing import Any

from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2, summary_pb2


class MetricsWriter:
  """`metrics.jsonl` and event files of one run; a process that is not the first writes nothing."""

  def __init__(self, model_dir: str, resumed_at: int = 0, enabled: bool = True):
    """Drops lines of `metrics.jsonl` behind step `resumed_at`: those steps are run again."""
    self._root, self._enabled, self._boards = pathlib.Path(model_dir), enabled, {}
    self._path = self._root / 'metrics.jsonl'
    if enabled and self._path.exists():
      kept = [line for line in self._path.read_text().splitlines() if _step(line) is not None]
      write_lines(self._path, (line for line in kept if _step(line) <= resumed_at))

  def write(self, step: int, folder: str, **values: Any) -> None:
    """One line {step, split/task, values}; scalars also go to the event file in `folder` ('train', ...)."""
    if not self._enabled:
      return
    with open(self._path, 'a') as file:
      file.write(json.dumps({'step': step, 'split': folder, **values}) + '\n')
    if folder not in self._boards:
      self._boards[folder] = _board(self._root / folder)
    scalars = [x for name, value in values.items() if isinstance(value, int | float)
               for x in summary.scalar(name, value).value]
    self._boards[folder].write_event(
        event_pb2.Event(step=step, wall_time=time.time(), summary=summary_pb2.Summary(value=scalars)))
    self._boards[folder].flush()

  def close(self) -> None:
    for board in self._boards.values():
      board.close()


def _board(folder: pathlib.Path) -> event_file_writer.EventsWriter:
  """A new event file, without tensorboardX's thread: that dies when a clock is set back by weeks, and the run hangs."""
  folder.mkdir(parents=True, exist_ok=True)
  number = len(list(folder.glob('events.out.tfevents.*')))  # the time in its name may come again
  return event_file_writer.EventsWriter(str(folder / 'events'), f'.{number}')


def _step(line: str) -> int | None:
  """Step of a line, None if it was cut off when the process was killed."""
  try:
    return json.loads(line)['step']
  except (json.JSONDecodeError, KeyError, TypeError):
    return None


def write_lines(path: pathlib.Path, lines: Iterable[str]) -> None:
  """Writes a text file under a temporary name, then renames."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.tmp')
  with open(temporary, 'w', encoding='utf-8') as file:
    file.writelines(f'{line}\n' for line in lines)
  os.replace(temporary, path)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes one JSON document under a temporary name, then renames."""
  write_lines(path, [json.dumps(value, indent=2)])


def writable_folder(path: str, macro: str) -> pathlib.Path:
  """Makes a folder and checks that it can be written to.

  Raises:
    OSError: it cannot; the message names the macro.
  """
  folder = pathlib.Path(path)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f'.probe-{socket.gethostname()}-{os.getpid()}'
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise OSError(f'{macro}={path} cannot be written to ({error.strerror}); choose another folder.') from error
  return folder
