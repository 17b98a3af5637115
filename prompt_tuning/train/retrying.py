"""Reading on where a source of data fails for a moment: a file server, a bucket, a network."""

from collections.abc import Callable, Iterator
import sys
import time
from typing import Any

FIRST_PAUSE = 1.0  # seconds before the first further try, doubled for each one after it


class SourceError(OSError):
  """A source failed again and again."""


class Retrying:
  """Iterates over what `open_at` gives; where that fails, it is opened again at the same item.

  What comes out is the same as without the failure, as long as `open_at` is a function of the offset.
  """

  def __init__(
      self, open_at: Callable[[int], Iterator], offset: int, tries: int, transient: Callable[[Exception], bool],
      name: str):
    """Opens it.

    Args:
      open_at: offset -> the items from there on.
      offset: the first.
      tries: further ones, after which an error is raised; counted anew when an item has come.
      transient: whether an error may be gone the next time; others are raised at once.
      name: what is read, for messages.

    Raises:
      SourceError: all tries have failed.
    """
    self._open_at, self._tries, self._transient, self._name = open_at, tries, transient, name
    self._offset = offset
    self._items: Iterator | None = None
    self._again(self._open)

  def __iter__(self):
    return self

  def __next__(self) -> Any:
    item = self._again(lambda: next(self._open()))
    self._offset += 1
    return item

  def _open(self) -> Iterator:
    if self._items is None:
      self._items = self._open_at(self._offset)
    return self._items

  def _again(self, read: Callable[[], Any]) -> Any:
    """What `read` gives, at the first try or at a later one."""
    for failed in range(self._tries + 1):
      try:
        return read()
      except Exception as error:
        if not self._transient(error):
          raise
        self._items = None
        reason = f'{type(error).__name__}: {str(error).strip()}'.splitlines()[0][:300]
        where = f'{self._name} could not be read at example {self._offset} ({reason})'
        if failed == self._tries:
          raise SourceError(
              f'{where}, also not in {self._tries} further tries. See whether its disk or network is there, then start '
              'again with the same flags: a run goes on from its last checkpoint.') from error
      pause = FIRST_PAUSE * 2**failed
      print(f'{where}; trying again in {pause:g} s ({failed + 1} of {self._tries})', file=sys.stderr, flush=True)
      time.sleep(pause)
