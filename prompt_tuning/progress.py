"""The progress line of whatever takes long."""

from collections.abc import Mapping
import sys
import time

from prompt_tuning import hosts


class Progress:
  """One line of progress: rewritten in place on a terminal, else a new line every few seconds.

  Of several processes the first one shows it.
  """

  def __init__(self, total: int | None = None, done: int = 0, every: float = 5.0, unit: str = 'step'):
    """`total`: None where it is not known beforehand; then no time left is shown."""
    self._total, self._unit = total, unit
    self._terminal = sys.stderr.isatty()
    self._every = 0.5 if self._terminal else every
    self._began = self._shown = time.monotonic()
    self._first, self._counts = done, {}

  def add(self, **counts: float) -> None:
    """Adds to counts that are shown per second (examples, tokens)."""
    for name, n in counts.items():
      self._counts[name] = self._counts.get(name, 0) + n

  def pause(self, seconds: float) -> None:
    """Leaves time spent on something else out of the rates."""
    self._began += seconds

  def show(self, done: int, values: Mapping[str, float | str], force: bool = False) -> None:
    """Shows `done` of the total with rates, time left and `values`, if it is time."""
    now = time.monotonic()
    if not hosts.is_first() or not force and now - self._shown < self._every:
      return
    self._shown = now
    seconds = max(now - self._began, 1e-9)
    rate = (done - self._first) / seconds
    parts = [f'{self._unit} {done}' + (f'/{self._total}' if self._total else '')]
    parts += [f'{name} {value if isinstance(value, str) else format(value, ".4g")}' for name, value in values.items()]
    parts += [f'{n / seconds:.4g} {name}/s' for name, n in self._counts.items()]
    parts += [f'{rate:.3g} {self._unit}s/s'] if not self._counts else []
    parts += [f'eta {clock((self._total - done) / max(rate, 1e-9))}'] if self._total else []
    end = '\r' if self._terminal and not force else '\n'
    print('  '.join(parts).ljust(100 if self._terminal else 0), end=end, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
  """75 -> '1:15'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
