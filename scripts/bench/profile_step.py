"""Says where the time of a training step of `train_step.py` goes: shares of the compiled program's operations.

  python scripts/bench/profile_step.py --row=base100

Operations have the names of XLA's instructions without their numbers: what is a product of matrices is called dot, or
fusion of one (on a CPU `ynn_fusion`), a fusion is named by what is in it. Times are of threads: one that waits for its
turn on a busy machine counts too. Utilisation is the analytic FLOPs of the step (see train_step.py) for each second of
the processor, over what a matrix product reaches for each second of it in this process; such seconds depend on other
load less than those of a clock do. The last line of stdout is JSON.
"""

import argparse
import collections
from collections.abc import Sequence
import dataclasses
import gzip
import json
import math
import pathlib
import re
import sys
import tempfile
import time

from train_step import ROWS, analytic_flops, build_ours
from workers import GEMM

SHOWN = 12


def shares(folder: pathlib.Path) -> dict[str, float]:
  """Operation -> its share of the time of all, the largest first; of the trace that `jax.profiler.trace` has written.

  Raises:
    FileNotFoundError: there is none.
  """
  files = sorted(folder.rglob('*.trace.json.gz'))
  if not files:
    raise FileNotFoundError(f'{folder} has no *.trace.json.gz: this version of jax writes traces of another form.')
  with gzip.open(files[-1]) as file:
    events = json.load(file)['traceEvents']
  spent = collections.Counter()
  for event in events:
    if 'hlo_op' in event.get('args', {}):
      spent[re.sub(r'(\.\d+|\.clone)+$', '', event['name'])] += event['dur']
  total = sum(spent.values())
  return {name: microseconds / total for name, microseconds in spent.most_common()}


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--row', choices=ROWS, default='base100', help='of train_step.py (default: base100)')
  parser.add_argument('--param_dtype', choices=('float32', 'bfloat16', 'int8'), default='float32')
  parser.add_argument('--scan', action=argparse.BooleanOptionalAction, help='as in train_step.py')
  arguments = parser.parse_args(argv)
  import jax

  from prompt_tuning.backbones import config as config_lib

  row = ROWS[arguments.row]
  contender = build_ours({'row': dataclasses.asdict(row), 'dropout': 0.1, 'scan': arguments.scan,
                          'param_dtype': arguments.param_dtype})
  product = contender.gemm(*GEMM)
  product()
  contender.step()

  def cpu_seconds(function) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began

  step = cpu_seconds(contender.step)
  gemm = cpu_seconds(lambda: [product() for _ in range(20)]) / 20
  flops = analytic_flops(config_lib.from_size(row.model), row)
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      contender.step()
    found = shares(pathlib.Path(folder))
  figures = {'row': arguments.row, **contender.figures, 'flops_analytic': flops, 'cpu_seconds': step,
             'gemm_flops_per_cpu_second': 2 * math.prod(GEMM) / gemm,
             'utilisation': flops / step / (2 * math.prod(GEMM) / gemm), 'shares': found}
  print(f'{arguments.row}: {step:.2f} s of the processor, utilisation {figures["utilisation"]:.2f}')
  for name, share in list(found.items())[:SHOWN]:
    print(f'{share:6.1%}  {name}')
  print(json.dumps({'benchmark': 'profile_step', **figures}))
  return 0


if __name__ == '__main__':
  sys.exit(main())
