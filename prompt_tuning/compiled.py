"""XLA's compiled programs, kept in the user's cache folder: the same job started again compiles next to nothing.

A kept program is the very program that was compiled, so that no number depends on it; JAX's key holds the program, its
version, the flags and the machine. What the user says wins: `JAX_COMPILATION_CACHE_DIR` names another folder, which is
then left to JAX and to the user, and `JAX_ENABLE_COMPILATION_CACHE=false` keeps nothing.
"""

import os
import pathlib
import warnings
import zlib

MAX_BYTES = 2**30  # a program has 1 kB to 1 MB
MIN_COMPILE_SECONDS = 0.1  # what compiles faster is hardly faster to read


def folder() -> pathlib.Path:
  """Where programs are kept: `prompt_tuning/xla` of XDG_CACHE_HOME or ~/.cache."""
  return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'prompt_tuning' / 'xla'


def keep() -> pathlib.Path | None:
  """Has JAX keep its programs in `folder()`; to be called before the first is compiled.

  Returns:
    The folder; None where the user has chosen otherwise or nothing can be written there, which is no error.
  """
  import jax
  if not jax.config.jax_enable_compilation_cache or jax.config.jax_compilation_cache_dir:
    return None
  try:
    where = folder()
    where.mkdir(parents=True, exist_ok=True, mode=0o700)  # what is kept there is run
    tidy(where, MAX_BYTES)
  except (OSError, RuntimeError):  # the latter: there is no home
    return None
  jax.config.update('jax_compilation_cache_dir', str(where))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', MIN_COMPILE_SECONDS)
  # A full disk, or a program that another process is writing just now: it is compiled as if there were no folder.
  warnings.filterwarnings('ignore', message='Error (reading|writing) persistent compilation cache')
  return where


def tidy(where: pathlib.Path, max_bytes: int) -> None:
  """Deletes programs that were cut off, and then the ones not used for longest until `max_bytes` are left.

  JAX would do the latter itself (`jax_compilation_cache_max_size`), with a lock and with a file beside each program; a
  process killed between the two files stops it from writing any more. It never replaces a program that was cut off.

  Raises:
    OSError: the folder cannot be written to.
  """
  looked = where / '.looked'  # its time is that of the last look
  since = looked.stat().st_mtime_ns if looked.exists() else 0
  looked.touch()
  kept = []
  for file in where.glob('*-cache'):
    try:
      stat = file.stat()
      if stat.st_mtime_ns >= since and _cut_off(file):
        file.unlink()
      else:
        kept.append((max(stat.st_atime_ns, stat.st_mtime_ns), stat.st_size, file))
    except FileNotFoundError:  # another process tidies too
      pass
  total = sum(size for _, size, _ in kept)
  for _, size, file in sorted(kept):
    if total <= max_bytes:
      break
    file.unlink(missing_ok=True)
    total -= size


def _cut_off(file: pathlib.Path) -> bool:
  """Whether a zlib file does not end; other formats pass."""
  data = file.read_bytes()
  if data[:1] != b'\x78':
    return not data
  stream = zlib.decompressobj()
  try:
    stream.decompress(data)
  except zlib.error:
    return True
  return not stream.eof
