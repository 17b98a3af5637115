"""Trains a tiny T5's prompt for many steps with a checkpoint every few, and measures whether memory grows.

The resident memory of the process is sampled at each checkpoint, after a collection of Python's garbage: without the
pages of files (libraries), which the system drops and reads again as it likes. Its slope over the second half of the
run, where caches are full, is fitted by least squares; its confidence is 95%, of the slopes of blocks of samples, which
are not independent one by one. Prints it with the number of threads and open files, and a line of JSON; exits with 0
where the slope is below --limit with confidence, else with 1.

  python scripts/soak.py --output=runs/soak
"""

import argparse
from collections.abc import Sequence
import ctypes
import gc
import json
import os
import pathlib
import sys
import tempfile
import threading

import numpy as np

# A run of T5-XXL has 30,000 steps; at this slope it would grow by 30 MB, a thousandth of its host's memory.
LIMIT = 1000.0  # bytes a step
BLOCKS = 5


def resident() -> int:
  """Bytes of this process that are in memory now, or swapped out, and are no file's (Linux)."""
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  found = {name: value for name, _, value in (line.partition(':') for line in lines)}
  return 1024 * sum(int(found[name].split()[0]) for name in ('RssAnon', 'VmSwap'))


def slope(steps: np.ndarray, values: np.ndarray) -> tuple[float, float]:
  """(least-squares slope, half its 95% interval), by steps [n] and values [n].

  The interval is that of the slope of a line through the means of `BLOCKS` blocks of samples, by Student's t.
  """
  fitted = np.polyfit(steps, values, 1)[0]
  at, means = (np.array([block.mean() for block in np.array_split(x, BLOCKS)]) for x in (steps, values))
  spread = at - at.mean()
  line = np.polyval(np.polyfit(at, means, 1), at)
  error = np.sqrt(np.sum((means - line) ** 2) / (BLOCKS - 2) / np.sum(spread**2))
  return float(fitted), float(3.182 * error)  # t of 0.975 with 3 degrees of freedom


def train(folder: str, steps: int, period: int, samples: list[dict[str, int]]) -> None:
  """The run; appends {step, rss, threads, files} at each checkpoint."""
  from prompt_tuning import loading
  from prompt_tuning.checkpoints import run
  from prompt_tuning.methods.prompt import Prompt
  from prompt_tuning.train import data, loop, optim

  save = run.RunCheckpoints.save

  def sampled(self, step, *args, **kwargs):
    save(self, step, *args, **kwargs)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for later is in no one's hands
    samples.append({'step': step, 'rss': resident(), 'threads': threading.active_count(),
                    'files': len(os.listdir('/proc/self/fd'))})

  run.RunCheckpoints.save = sampled
  lengths = {'inputs': 32, 'targets': 4}
  loop.train(
      model_dir=folder, initial_checkpoint_path=None, method=Prompt(length=20),
      train_dataset=data.Dataset('sst2_sample', lengths, 'train', batch_size=8),
      eval_datasets=[data.Dataset('sst2_sample', lengths, 'validation', batch_size=8, shuffle=False, limit=16)],
      train_steps=steps, optimizer=optim.adamw(), schedule=optim.constant(0.01),
      backbone=loading.Backbone('t5_1_1_tiny', dropout_rate=0.1), eval_period=10 * period, save_period=period,
      log_period=period)


def plot(samples: Sequence[dict[str, int]], begin: int, path: pathlib.Path) -> None:
  """Memory over steps; the fitted part from step `begin` on."""
  import matplotlib
  matplotlib.use('Agg')
  from matplotlib import pyplot
  figure, axes = pyplot.subplots(figsize=(6, 3), layout='constrained')
  axes.plot([x['step'] for x in samples], [x['rss'] / 1e6 for x in samples])
  axes.axvline(begin, color='0.7', linestyle=':')
  axes.set(xlabel='step', ylabel='resident MB', ylim=(0, None), title='Memory; the slope is of what is behind the line')
  figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--steps', type=int, default=2000, help='default: %(default)s')
  parser.add_argument('--period', type=int, default=10, help='steps between checkpoints (default: %(default)s)')
  parser.add_argument('--limit', type=float, default=LIMIT, metavar='BYTES',
                      help='a step, above which the slope is a leak (default: %(default)s)')
  parser.add_argument('--output', type=pathlib.Path, metavar='FOLDER', help='for soak.json and soak.png')
  arguments = parser.parse_args(argv)
  if arguments.steps < 4 * BLOCKS * arguments.period:
    parser.error(f'--steps={arguments.steps}: {4 * BLOCKS} checkpoints are needed; at least '
                 f'{4 * BLOCKS * arguments.period} steps')
  samples: list[dict[str, int]] = []
  with tempfile.TemporaryDirectory() as folder:
    train(folder, arguments.steps, arguments.period, samples)
  half = samples[len(samples) // 2:]
  value, interval = slope(np.array([x['step'] for x in half]), np.array([x['rss'] for x in half], float))
  verdict = 'no growth above the limit'
  if value + interval > arguments.limit:
    verdict = 'memory grows' if value - interval > arguments.limit else 'cannot tell, take more steps'
  report = {
      'benchmark': 'soak', 'steps': arguments.steps, 'checkpoints': len(samples), 'bytes_per_step': value,
      'interval': interval, 'limit': arguments.limit, 'first': half[0], 'last': half[-1], 'samples': samples}
  print(f'{"part":<12}{"step":>8}{"resident MB":>13}{"threads":>9}{"files":>7}')
  for part, x in (('first', samples[0]), ('fitted from', half[0]), ('last', half[-1])):
    print(f'{part:<12}{x["step"]:>8}{x["rss"] / 1e6:>13.1f}{x["threads"]:>9}{x["files"]:>7}')
  outcome = f'{value:.0f} +- {interval:.0f} bytes a step, limit {arguments.limit:.0f}: {verdict}'
  print(outcome)
  if arguments.output:
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / 'soak.json').write_text(json.dumps(report) + '\n')
    plot(samples, half[0]['step'], arguments.output / 'soak.png')
  print(json.dumps(report))
  if verdict != 'no growth above the limit':
    print(f'ERROR: {outcome}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
