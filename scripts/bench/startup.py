"""Measures how long a training job takes to its first step, the first time and again with its programs compiled before.

Each start is a process of its own, `prompt-tuning train` on the bundled SST-2 sentences for two steps, with a random
base. The first start of a row finds an empty cache of compiled programs, the others what it left there. Where the
seconds go is measured in the process: `imports` (of which TensorFlow and seqio are most), `base` (its parameters made
and fingerprinted), `first step` (compiled or read, and done); `in all` is until then, with what is between them.
Progress goes to stderr, the table to stdout, and the last line of stdout is JSON with every figure.

  python scripts/bench/startup.py --rows=small
"""

import argparse
from collections.abc import Sequence
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from workers import cpu, names, tell

ROWS = {  # model, batch and text tokens, as of the quick start; more macros
    'small': ('t5_1_1_small', 16, 48), 'base': ('t5_1_1_base', 16, 48), 'tiny': ('t5_1_1_tiny', 8, 8)}
DEFAULT_ROWS = ('small', 'base')
PARTS = ('imports', 'base', 'first step', 'in all')


def worker(began: float, argv: Sequence[str]) -> None:
  """The job, with a clock at its parts; `began`: when the process was started, by the clock of the whole machine."""
  clock = lambda: time.clock_gettime(time.CLOCK_BOOTTIME) - began
  from prompt_tuning import cli, loading
  from prompt_tuning.train import loop, step
  seconds = {'imports': clock()}
  load, make_train_step = loading.load, step.make_train_step

  def timed_load(*args, **kwargs):
    start = clock()
    loaded = load(*args, **kwargs)
    loaded.fingerprint()
    seconds['base'] = clock() - start
    return loaded

  def timed_make(*args, **kwargs):
    train_step = make_train_step(*args, **kwargs)

    def timed_step(*args):
      start = clock()
      state, metrics = train_step(*args)
      float(metrics['loss'])
      seconds.setdefault('first step', clock() - start)
      seconds.setdefault('in all', clock())
      return state, metrics

    return timed_step

  loop.loading.load, loop.step_lib.make_train_step = timed_load, timed_make
  if code := cli.run('train', argv):
    sys.exit(code)
  print(json.dumps(seconds))


def start(row: str, cache: str) -> dict[str, float]:
  """Seconds of the parts of one start."""
  size, batch, length = ROWS[row]
  with tempfile.TemporaryDirectory() as folder:
    command = [
        sys.executable, __file__, '--worker', str(time.clock_gettime(time.CLOCK_BOOTTIME)), '--gin_file=models/t5.gin',
        '--gin_file=methods/prompt.gin', '--gin_file=runs/train.gin', f'--gin.MODEL_DIR={folder}',
        '--gin.INITIAL_CHECKPOINT_PATH=None', f'--gin.MODEL_SIZE={size}', '--gin.MIXTURE_OR_TASK_NAME=sst2_sample',
        f"--gin.TASK_FEATURE_LENGTHS={{'inputs': {length}, 'targets': 4}}", '--gin.TRAIN_STEPS=2',
        f'--gin.BATCH_SIZE={batch}', '--gin.PROMPT_LENGTH=20', '--gin.SCAN_LAYERS=False', '--gin.DROPOUT_RATE=0.0',
        '--gin.INITIALIZER=@initializers.random_uniform()', '--gin.loop.train.eval_datasets=[]']
    environment = {name: x for name, x in os.environ.items() if name != 'JAX_COMPILATION_CACHE_DIR'}
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          env={**environment, 'XDG_CACHE_HOME': cache, 'JAX_ENABLE_COMPILATION_CACHE': 'true'})
  if done.returncode:
    raise RuntimeError(f'the job of {row} ended with exit code {done.returncode}: {done.stderr[-500:]}')
  return json.loads(done.stdout.splitlines()[-1])


def measure(row: str, turns: int) -> dict[str, Any]:
  """The parts of the first start, and of `turns` further ones."""
  with tempfile.TemporaryDirectory() as cache:
    starts = []
    for i in range(1 + turns):
      starts.append(start(row, cache))
      tell(f'  start {i}: ' + ', '.join(f'{part} {starts[-1][part]:.1f} s' for part in PARTS))
    kept = sum(os.path.getsize(os.path.join(at, file)) for at, _, files in os.walk(cache) for file in files)
  return {'model': ROWS[row][0], 'first': starts[0], 'again': starts[1:], 'kept_bytes': kept}


def table(rows: dict[str, dict[str, Any]]) -> str:
  """A line for the first start of each row, and one for the least of the others."""
  lines = [f'{"row":<8}{"start":<8}' + ''.join(f'{part + " s":>14}' for part in PARTS) + f'{"kept MB":>10}']
  for name, x in rows.items():
    again = {part: min(seconds[part] for seconds in x['again']) for part in PARTS}
    for which, seconds in (('first', x['first']), ('again', again)):
      kept = f'{x["kept_bytes"] / 1e6:>10.1f}' if which == 'first' else ''
      lines.append(f'{name:<8}{which:<8}' + ''.join(f'{seconds[part]:>14.1f}' for part in PARTS) + kept)
  return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--rows', type=names(list(ROWS)), default=list(DEFAULT_ROWS), metavar='ROW,...',
                      help=f'some of {", ".join(ROWS)} (default: {",".join(DEFAULT_ROWS)})')
  parser.add_argument('--turns', type=int, default=2, metavar='N', help='starts after the first (default: %(default)s)')
  arguments = parser.parse_args(argv)
  if arguments.turns < 1:
    parser.error(f'--turns={arguments.turns}: at least one turn is needed')
  load, rows = os.getloadavg()[0], {}
  for name in arguments.rows:
    tell(f'{name}: {ROWS[name]}')
    try:
      rows[name] = measure(name, arguments.turns)
    except RuntimeError as error:
      tell(f'ERROR: {error}')
      return 1
  print(table(rows))
  print(json.dumps({'benchmark': 'startup', 'cpu': cpu(), 'load_average_before': load, 'rows': rows}))
  return 0


if __name__ == '__main__':
  if sys.argv[1:2] == ['--worker']:
    worker(float(sys.argv[2]), sys.argv[3:])
  else:
    sys.exit(main())
