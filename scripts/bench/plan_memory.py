"""Compares the memory that `prompt-tuning plan` expects of a training step with what a process really takes.

Each row is a process of its own. It plans the step for this machine's CPU as one device, makes arrays of the shapes
that the plan is of, runs the step three times, and reads from Linux by how much its resident memory grew at most
above what it was before the arrays were made. So the interpreter, JAX and the compiler are not part of either figure.
The last line of the output is JSON with every figure.

  python scripts/bench/plan_memory.py --rows=t5,gpt2
"""

import argparse
from collections.abc import Sequence
import ctypes
import gc
import json
import os
import pathlib
import subprocess
import sys

RUN = 'runs/train.gin'
ROWS = {  # files of gin, and what is set on top of them
    't5': (('models/t5.gin', 'methods/prompt.gin', RUN, 'papers/lester2021/recipe.gin'),
           {'MODEL_SIZE': 't5_1_1_small', 'BATCH_SIZE': 8, 'TASK_FEATURE_LENGTHS': {'inputs': 156, 'targets': 16}}),
    'gpt2': (('models/gpt2.gin', 'methods/prefix.gin', RUN, 'papers/li2021/recipe.gin', 'papers/li2021/e2e.gin'),
             {'MODEL_SIZE': 'gpt2_small', 'BATCH_SIZE': 4}),
    'bert': (('models/bert.gin', 'methods/adapter.gin', RUN, 'papers/relatives/glue.gin'),
             {'MODEL_SIZE': 'bert_base', 'BATCH_SIZE': 8, 'LABELS': ('a', 'b')}),
    'tiny': (('models/t5.gin', 'methods/prompt.gin', RUN, 'papers/lester2021/recipe.gin'),
             {'MODEL_SIZE': 't5_1_1_tiny', 'BATCH_SIZE': 32,
              'TASK_FEATURE_LENGTHS': {'inputs': 156, 'targets': 16}})}  # to try the script out
STEPS = 3


def status(name: str) -> int:
  """A figure of this process, bytes: 'VmRSS' or 'VmHWM'."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(f'{name}:'):
      return int(line.split()[1]) * 1024
  raise OSError(f'/proc/self/status has no {name}; this script needs Linux.')


def measure(name: str) -> dict[str, int]:
  """Bytes that are expected and that are taken, of one row; in a process of its own."""
  import jax
  import jax.numpy as jnp

  from prompt_tuning.plan import compiling, devices, planner

  files, macros = ROWS[name]
  target = devices.parse('cpu:1')
  (program,) = planner.Configuration(files, ()).job(target, 'train', macros).programs
  expected = compiling.compile_program(program, 'cpu')
  step = program.function.lower(*program.arguments).compile()
  shapes = program.arguments
  make = jax.jit(lambda: jax.tree.map(lambda x: jnp.full(x.shape, 0.01 if x.dtype.kind == 'f' else 2, x.dtype), shapes))
  jax.block_until_ready(make())  # compiled, and its arrays freed
  gc.collect()
  ctypes.CDLL(None).malloc_trim(0)
  before = status('VmRSS')
  state, frozen, batch = make()
  jax.block_until_ready(state)
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
  for _ in range(STEPS):
    state, metrics = step(state, frozen, batch)
    jax.block_until_ready(metrics)
  return {'expected': expected.peak, 'measured': status('VmHWM') - before, 'temporaries': expected.temporaries,
          'before': before}


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--rows', default='t5,gpt2,bert', metavar='A,B', help=f'of {", ".join(ROWS)} (%(default)s)')
  parser.add_argument('--row', help=argparse.SUPPRESS)
  flags = parser.parse_args(argv)
  if flags.row:
    print(json.dumps(measure(flags.row)))
    return 0
  if unknown := set(flags.rows.split(',')) - set(ROWS):
    parser.error(f'--rows: there is no {", ".join(sorted(unknown))}; choose of {", ".join(ROWS)}.')
  found = {}
  print(f'{"row":<6}{"expected MB":>12}{"measured MB":>12}{"error":>8}', flush=True)
  for name in flags.rows.split(','):
    done = subprocess.run(
        [sys.executable, __file__, f'--row={name}'], stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_ENABLE_COMPILATION_CACHE': 'false'})
    found[name] = json.loads(done.stdout.splitlines()[-1])
    expected, measured = (found[name][key] / 1e6 for key in ('expected', 'measured'))
    print(f'{name:<6}{expected:>12.1f}{measured:>12.1f}{expected / measured - 1:>8.1%}', flush=True)
  print(json.dumps({'benchmark': 'plan_memory', 'rows': found}))
  return 0


if __name__ == '__main__':
  sys.exit(main())
