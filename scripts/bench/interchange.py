"""Measures the loading and the conversion of large checkpoints: rates beside the disk's own, and peak memory.

A random model is written once, in both formats, to a temporary folder; then each measurement runs in a process of
its own, on files that were dropped from the page cache. Disk: the weights read from end to end, in pieces of
8 MiB. Load: `load_params` onto a mesh of 8 simulated devices, rate and peak memory beyond what is loaded. Convert:
peak memory in all.

  python scripts/bench/interchange.py                            # loads t5-large, float32; 10 GB of disk
  python scripts/bench/interchange.py --size=t5_1_1_xl --dtype=bfloat16    # 18 GB of disk

Every measurement is taken --repeat times, in turns; the table shows medians. The last line of stdout is JSON with
every figure. Rates in MB/s (1e6 bytes), memory in MB; `of disk` is the rate over the disk's.
"""
import argparse
import functools
import json
import math
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

DEVICES = 8
_RUNS = ('disk huggingface', 'load huggingface', 'disk t5x', 'load t5x', 'convert huggingface t5x',
         'convert t5x huggingface')


def peak_mb() -> float:
  """The most memory that this process ever held."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def drop_from_cache(folder: pathlib.Path) -> int:
  """Makes the next read of the files go to the disk; returns their bytes."""
  total = 0
  for file in folder.rglob('*'):
    if file.is_file():
      with open(file, 'rb') as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
      total += file.stat().st_size
  return total


# --- in the measured processes ---


def read_disk(folder: pathlib.Path) -> dict:
  """Reads all files from end to end."""
  total = drop_from_cache(folder)
  began = time.monotonic()
  buffer = bytearray(2**23)
  for file in sorted(folder.rglob('*')):
    if file.is_file():
      with open(file, 'rb', buffering=0) as f:
        while f.readinto(buffer):
          pass
  return {'bytes': total, 'seconds': time.monotonic() - began}


def load(folder: pathlib.Path) -> dict:
  """Loads the model onto the mesh."""
  os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={DEVICES}'
  import jax

  from prompt_tuning import loading
  from prompt_tuning.checkpoints import base
  from prompt_tuning.methods.prompt import Prompt
  from prompt_tuning.partitioning import Partitioner
  source = base.open_base(folder)
  dtype = next(iter(source.tensors.values())).dtype.name
  mesh = Partitioner(num_partitions=math.gcd(DEVICES, source.config.num_heads))
  loading.load(None, Prompt(length=1), loading.Backbone(size='t5_1_1_tiny'), Partitioner())  # JAX is awake
  before, total = peak_mb(), drop_from_cache(folder)
  began = time.monotonic()
  loaded = loading.load(str(folder), Prompt(length=1), loading.Backbone(param_dtype=dtype), mesh)
  jax.block_until_ready(loaded.frozen)
  seconds = time.monotonic() - began
  held = sum(shard.data.nbytes for x in jax.tree.leaves(loaded.frozen) for shard in x.addressable_shards)
  return {'bytes': total, 'seconds': seconds, 'peak_mb': peak_mb(), 'before_mb': before, 'result_mb': held / 1e6}


def convert(folder: pathlib.Path, form: str) -> dict:
  """Converts the model."""
  from prompt_tuning.checkpoints import base
  from prompt_tuning.checkpoints import convert as convert_lib
  total = drop_from_cache(folder)
  target = folder.parent / 'converted' / 'checkpoint_0'
  began = time.monotonic()
  try:
    convert_lib.convert(base.open_base(folder), target, form)
    seconds = time.monotonic() - began
  finally:
    shutil.rmtree(target.parent, ignore_errors=True)
  return {'bytes': total, 'seconds': seconds, 'peak_mb': peak_mb()}


def make(root: pathlib.Path, size: str, dtype: str) -> dict:
  """Writes a random model in both formats; its bytes and those of its largest tensor."""
  import jax.numpy as jnp

  from prompt_tuning.backbones import config as config_lib
  from prompt_tuning.checkpoints import base, keys
  from prompt_tuning.checkpoints import convert as convert_lib
  from prompt_tuning.checkpoints.families import t5
  from prompt_tuning.checkpoints.source import Source, TensorInfo
  config = config_lib.from_size(size)
  table = t5.key_table(config)
  shapes = keys.shapes(config, table)
  tensors = {name: TensorInfo(entry.stored_shape(shapes[path]), jnp.dtype(dtype))
             for path, entry in table.items() for name in entry.names}
  rng = np.random.default_rng(0)

  def read(name: str, index) -> np.ndarray:
    return rng.standard_normal(tensors[name].shape, np.float32)[index].astype(tensors[name].dtype)

  source = Source(path='random', kind='random', tensors=tensors, config=config, read=read,
                  key_table=lambda config: table, ignored=lambda name: False)
  convert_lib.convert(source, root / 'huggingface' / 'model', 'huggingface')
  convert_lib.convert(base.open_base(root / 'huggingface' / 'model'), root / 't5x' / 'checkpoint_0', 't5x')
  return {'bytes': sum(info.nbytes for info in tensors.values()),
          'largest': max(info.nbytes for info in tensors.values()),
          'parameters': sum(int(np.prod(info.shape)) for info in tensors.values())}


# --- the driver ---


def in_process(*args: str) -> dict:
  """Runs one measurement in a fresh process."""
  done = subprocess.run([sys.executable, __file__, '--worker', *args], stdout=subprocess.PIPE, text=True, check=False)
  if done.returncode:
    sys.exit(f'{" ".join(args)} failed with exit code {done.returncode}')
  return json.loads(done.stdout.splitlines()[-1])


def worker(what: str, root: str, *args: str) -> dict:
  folders = {name: pathlib.Path(root, name, inside)
             for name, inside in (('huggingface', 'model'), ('t5x', 'checkpoint_0'))}
  if what == 'make':
    return make(pathlib.Path(root), *args)
  function = {'disk': read_disk, 'load': load, 'convert': convert}[what]
  return function(folders[args[0]], *args[1:])


def report(runs: dict[str, list[dict]], about: dict) -> None:
  """Prints the table and the JSON line."""
  print(f'{"measurement":<26}{"MB":>8}{"s":>8}{"MB/s":>8}{"of disk":>9}{"peak MB":>9}{"beyond result MB":>18}')
  figures = {}
  for name, results in runs.items():
    median = functools.partial(lambda results, key: statistics.median(r[key] for r in results), results)
    megabytes, seconds = median('bytes') / 1e6, median('seconds')
    figure = figures[name] = {'mb': megabytes, 'seconds': seconds, 'mb_per_s': megabytes / seconds, 'runs': results}
    cells = [f'{name:<26}{megabytes:>8.0f}{seconds:>8.1f}{megabytes / seconds:>8.0f}']
    if name.startswith('load'):
      disk = runs[name.replace('load', 'disk')]
      pairs = zip(results, disk, strict=True)
      figure['of_disk'] = statistics.median(d['seconds'] / r['seconds'] for r, d in pairs)
      figure['beyond_result_mb'] = max(r['peak_mb'] - r['result_mb'] for r in results)
    cells.append(f'{figure["of_disk"]:>9.2f}' if 'of_disk' in figure else ' ' * 9)
    if 'peak_mb' in results[0]:
      figure['peak_mb'] = max(r['peak_mb'] for r in results)
      cells.append(f'{figure["peak_mb"]:>9.0f}')
    cells.append(f'{figure["beyond_result_mb"]:>18.0f}' if 'beyond_result_mb' in figure else '')
    print(''.join(cells).rstrip())
  limit = 1.5 * about['largest'] / 1e6 + 1000
  print(f'largest tensor {about["largest"] / 1e6:.0f} MB; 1.5 x that + 1 GB = {limit:.0f} MB')
  print(json.dumps({**about, 'limit_mb': limit, **figures}))


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--size', default='t5_1_1_large', help='a T5 of the size table (default: %(default)s)')
  parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16'])
  parser.add_argument('--repeat', type=int, default=3, help='default: %(default)s')
  parser.add_argument('--folder', help='where there is room for three copies of the model; default: the system\'s')
  args = parser.parse_args(argv)
  with tempfile.TemporaryDirectory(dir=args.folder) as root:
    print('writing a random model ...', file=sys.stderr, flush=True)
    about = {'size': args.size, 'dtype': args.dtype, **in_process('make', root, args.size, args.dtype)}
    runs = {name: [] for name in _RUNS}
    for turn in range(args.repeat):
      for name in _RUNS:
        what, *rest = name.split()
        print(f'{turn + 1}/{args.repeat} {name} ...', file=sys.stderr, flush=True)
        runs[name].append(in_process(what, root, *rest))
    report(runs, about)


if __name__ == '__main__':
  if sys.argv[1:2] == ['--worker']:
    print(json.dumps(worker(*sys.argv[2:])))
  else:
    main()
