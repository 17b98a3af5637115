"""Files and folders that appear whole or not at all: written under a temporary name, then renamed."""
from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib
import shutil

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def on_disk(path: str | os.PathLike) -> pathlib.Path:
  """The path, unless it is an address, of which a folder called `gs:` would be made here.

  Raises:
    ValueError: it is one.
  """
  if '://' in str(path):
    raise ValueError(f'{path} is not on a disk; only T5X checkpoints (checkpoint_<step>) are written elsewhere: name a '
                     'local path and copy it.')
  return pathlib.Path(path)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives a folder to fill, which becomes `path` when the block ends and vanishes if it fails.

  Raises:
    FileExistsError: `path` holds something.
    ValueError: `path` is an address such as gs://.
  """
  path = on_disk(path).absolute()
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise FileExistsError(f'{path} already holds something: remove it, or name another folder.')
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'{path.name}.tmp-{os.getpid()}')
  try:
    partial.mkdir()
  except FileExistsError as error:  # process numbers come again, in containers soon
    raise FileExistsError(f'{partial} is in the way, left by a process that was killed: remove it.') from error
  try:
    yield partial
    os.replace(partial, path)
  except BaseException as error:
    shutil.rmtree(partial, ignore_errors=True)
    if isinstance(error, OSError) and error.errno in _FULL:  # Python names no file then
      raise OSError(error.errno, f'{error.strerror}; nothing was written: make room, or name another disk', str(path)
                    ) from error
    raise
