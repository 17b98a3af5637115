"""Folders on a disk or in a bucket (`gs://...`), read and written through TensorStore's key-value stores."""
import os
import pathlib
from typing import Any

import tensorstore as ts


def is_remote(path: str | os.PathLike) -> bool:
  """Whether `path` is a URL, such as `gs://bucket/folder`."""
  return '://' in str(path)


class Folder:
  """A folder of files; made when the first file is written."""

  def __init__(self, path: str | os.PathLike):
    self.remote = is_remote(path)
    self.path = str(path).rstrip('/') if self.remote else os.path.abspath(path)

  def __str__(self) -> str:
    return self.path

  @property
  def name(self) -> str:
    return self.path.rpartition('/')[2]

  def spec(self, inside: str = '') -> dict[str, Any]:
    """The TensorStore key-value store of this folder, or of a folder `inside` it.

    Raises:
      ValueError: a URL that TensorStore does not know.
    """
    path = f'{self.path}/{inside.strip("/")}'.rstrip('/') + '/'
    if not self.remote:
      return {'driver': 'file', 'path': path}
    try:
      return ts.KvStore.Spec(path).to_json()
    except ValueError as error:
      raise ValueError(f'{self.path}: not an address that is understood; expected a folder or gs://BUCKET/FOLDER.'
                       ) from error

  def _store(self) -> ts.KvStore:
    return ts.KvStore.open(self.spec()).result()

  def has(self, name: str) -> bool:
    """Whether there is a file `name`, such as 'state/_METADATA'."""
    if not self.remote:
      return self.size(name) is not None
    return bool(self._list(name, name + '\0'))

  def size(self, name: str) -> int | None:
    """The bytes of a file on a disk; None if there is none."""
    path = f'{self.path}/{name}'
    return os.path.getsize(path) if os.path.isfile(path) else None

  def read(self, name: str) -> bytes:
    """The content of a file.

    Raises:
      FileNotFoundError: there is none.
    """
    if not self.remote:
      return pathlib.Path(self.path, name).read_bytes()
    result = self._store().read(name).result()
    if result.state != 'value':
      raise FileNotFoundError(f'{self.path}/{name} does not exist.')
    return result.value

  def write(self, name: str, content: bytes) -> None:
    """Writes a file; it appears whole or not at all."""
    self._store().write(name, content).result()

  def files(self) -> list[str]:
    """Every file in it and in folders below, by its path from here; empty if there is no such folder."""
    return self._list('', '')

  def _list(self, first: str, behind: str) -> list[str]:
    keys = self._store().list(ts.KvStore.KeyRange(first, behind)).result()
    return sorted(key.decode() for key in keys)
