"""Measures what padding costs: examples per second on real lengths, padded, in buckets, packed, and in PEFT.

A row is a data set: batches of B examples drawn at random, of the lengths that lengths.tsv counts, with random token
ids behind a prompt of P. `padded` has all rows of S text tokens; `bucketed` and `packed` are the ways of
`prompt_tuning/batching.py`, with the very same examples in each step; `window` is `Bucketed` that deals the examples of
all batches out by length, so that steps have others; `peft` is Hugging Face PEFT with dynamic padding, to the longest
of each batch. Every contender runs in a process of its own; they take turns batch by batch, after each has seen all
shapes once, so that compilation is not in the times: `build s` and the number of `shapes` say what that cost. Steps
are those of train_step.py: forward, loss, backward and AdamW, random weights, dropout on.

  python scripts/bench/padding.py --rows=rte
  python scripts/bench/padding.py --peer --peer_python=ENV/bin/python   # an ENV with prompt_tuning[parity]

Progress goes to stderr, the table to stdout, and the last line of stdout is JSON with every figure. Examples per
second are those of all batches over the sum of each one's median time.
"""

import argparse
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
import statistics
import sys
import time
from typing import Any

import numpy as np
from workers import ALLOCATOR, PAUSE, Contender, Worker, cpu, names, serve, tell, timed

# Only the standard library, numpy and `workers` up here: the peer's interpreter, which may have no JAX, imports it too.

HERE = pathlib.Path(__file__).resolve().parent
LEARNING_RATE = 0.01
WAYS = ('padded', 'bucketed', 'window', 'packed')
PEER_DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Row:
  """What is measured: lengths, a size name, and numbers as in `prompt_tuning/types.py`'s legend."""

  data: str
  model: str
  B: int
  S: int  # text tokens of a padded row, the prompt not counted; longer texts are cut
  P: int
  T: int


ROWS = {
    'sst2': Row('sst2', 't5_1_1_small', B=16, S=512, P=20, T=8),
    'rte': Row('rte', 't5_1_1_small', B=16, S=512, P=20, T=8),
    'boolq': Row('boolq', 't5_1_1_small', B=8, S=512, P=20, T=8),
    'boolq100': Row('boolq', 't5_1_1_small', B=8, S=512, P=100, T=8),
    'tiny': Row('sst2', 't5_1_1_tiny', B=4, S=48, P=4, T=4),  # to try the script out
}
DEFAULT_ROWS = ('sst2', 'rte', 'boolq')


def examples(row: Row, batches: int, vocab_size: int) -> list[list[dict[str, np.ndarray]]]:
  """The batches, the same for every contender: ids of inputs and targets of lengths as they occur."""
  lines = [line.split('\t') for line in (HERE / 'lengths.tsv').read_text().splitlines() if line.startswith(row.data)]
  lengths, counts = np.array([line[1:3] for line in lines], int), np.array([line[3] for line in lines], int)
  rng = np.random.default_rng(0)
  drawn = lengths[rng.choice(len(lengths), (batches, row.B), p=counts / counts.sum())]
  ids = lambda n, most: rng.integers(2, vocab_size, min(n, most), np.int32)
  return [[{'inputs': ids(n, row.S), 'targets': ids(m, row.T)} for n, m in batch] for batch in drawn]


# --- A contender, in its worker process.


def build_ours(settings: dict[str, Any], way: str) -> Contender:
  """This package's step on rows as `train.loop` makes them."""
  import jax

  from prompt_tuning import batching, features, loading, trees
  from prompt_tuning.methods.prompt import Prompt
  from prompt_tuning.partitioning import Partitioner
  from prompt_tuning.train import losses, optim
  from prompt_tuning.train import step as step_lib

  jax.config.update('jax_enable_compilation_cache', False)
  row, device = Row(**settings['row']), jax.devices()[0]
  bucketed = batching.Bucketed(groups=4, target_lengths=(2, 4, 8))
  how = {'padded': batching.Padded(), 'packed': batching.Packed(), 'bucketed': bucketed,
         'window': dataclasses.replace(bucketed, window=settings['batches'])}[way]
  partitioner = Partitioner(devices=[device])
  backbone = loading.Backbone(size=row.model, dropout_rate=settings['dropout'], scan=True)  # the fastest to initialise
  loaded = loading.load(None, Prompt(length=row.P), backbone, partitioner)
  module = dataclasses.replace(backbone, scan=device.platform != 'cpu').module(loaded.config)
  model = dataclasses.replace(loaded.model, backbone=module)
  optimizer = optim.adamw()(optim.constant(LEARNING_RATE))
  trainable = loaded.new_trainable(0)
  state = partitioner.replicate(step_lib.init_state(trainable, optimizer))
  convert = features.Converter(
      {'inputs': row.S, 'targets': row.T}, model.place, model.placed, loaded.config.vocab_size, batching=how)
  drawn = examples(row, settings['batches'], loaded.config.vocab_size)
  if how.window > 1:
    drawn = batching.by_length(list(itertools.chain(*drawn)), row.B, lambda example: len(example['inputs']))
  made = [convert(batch) for batch in drawn]
  pieces = [piece for batch in made for piece in (batch if isinstance(batch, tuple) else (batch,))]
  shapes = sorted({piece['encoder_input_tokens'].shape + piece['decoder_input_tokens'].shape[1:] for piece in pieces})
  loss = lambda logits, batch: losses.compute(logits, batch, normalizing_factor='NUM_REAL_TARGET_TOKENS')
  make = step_lib.make_pieces_step if how.pieces > 1 else step_lib.make_train_step
  train_step = make(model, optimizer, loss, dropout_seed=0 if settings['dropout'] else None)
  placed = [batching.each(partitioner.place_batch, batch) for batch in made]

  def step(batch) -> float:
    nonlocal state
    state, metrics = train_step(state, loaded.frozen, batch)
    jax.block_until_ready(state)
    return float(metrics['loss'])

  return contender([functools.partial(step, batch) for batch in placed], [batching.sources(x) for x in made], {
      'how': str(how), 'platform': device.platform, 'dtype': backbone.dtype, 'shapes': shapes,
      'versions': {'jax': jax.__version__},
      'trainable_parameters': trees.size(trainable), 'frozen_parameters': trees.size(loaded.frozen)})


def contender(
    steps: Sequence, batches: Sequence[Sequence[np.ndarray]], figures: dict[str, Any]) -> Contender:
  """One that does the next batch at each turn; one of each shape before, to compile.

  Args:
    steps: of each batch.
    batches: the source arrays of each.
  """
  first = {}
  for step, arrays in zip(steps, batches, strict=True):
    first.setdefault(tuple(x.shape for x in arrays), step)
  seconds, losses = zip(*(timed(step) for step in first.values()), strict=True)
  sources = list(itertools.chain(*batches))
  real, slots = sum(int(np.count_nonzero(x)) for x in sources), sum(x.size for x in sources)
  turn = iter(range(-1, sys.maxsize))  # the worker does one to warm up
  return Contender(lambda: steps[next(turn) % len(steps)](), None, {
      **figures, 'warm_seconds': sum(seconds), 'losses_first': losses, 'encoder_slots': slots,
      'padding': 1 - real / slots})


# --- The parent: starts the workers, gives them their turns, reports.


def measure(
    row: Row, settings: dict[str, Any], commands: dict[str, Sequence[str]], rounds: int) -> dict[str, Any]:
  """The row and all figures of its contenders.

  Args:
    settings: what every worker is built with, besides the row.
    commands: contender -> the command of its worker; 'padded' is one of them.
    rounds: turns on each batch that each contender gets.

  Raises:
    RuntimeError: a worker failed, a loss is not finite, or the contenders are not the same model.
  """
  from prompt_tuning.backbones import config as config_lib
  config = config_lib.from_size(row.model)
  settings = {**settings, 'row': dataclasses.asdict(row), 'config': dataclasses.asdict(config)}
  batches = settings['batches']
  with contextlib.ExitStack() as stack:
    workers, figures = {}, {}
    for name, command in commands.items():
      tell(f'  building {name}')
      workers[name] = stack.enter_context(Worker(name, command))
      figures[name] = workers[name].ask('build', settings)
    turns = {name: [] for name in workers}
    for i in range(rounds * batches):
      for name, worker in workers.items():
        time.sleep(PAUSE)
        turns[name].append(worker.ask('step', 1))
      tell(f'  batch {i % batches + 1} of {batches}: ' + ', '.join(
          f'{name} {turn[-1]["seconds"][0]:.3f} s' for name, turn in turns.items()))
  for name, figure in figures.items():
    seconds = [turn['seconds'][0] for turn in turns[name]]
    medians = [statistics.median(seconds[i::batches]) for i in range(batches)]
    losses = [*figure['losses_first'], *(turn['losses'][0] for turn in turns[name])]
    if not all(map(math.isfinite, losses)):
      raise RuntimeError(f'The loss of {name} is not finite; its times mean nothing.')
    for key in ('trainable_parameters', 'frozen_parameters'):
      if figure[key] != (expected := figures['padded'][key]):
        raise RuntimeError(f'{name} has {figure[key]} {key.replace("_", " ")}, padded {expected}: not the same model.')
    figure.update(step_seconds=seconds, examples_per_second=row.B * batches / sum(medians),
                  peak_memory_gb=turns[name][-1]['peak_memory_gb'])
  speeds = {name: figure['examples_per_second'] for name, figure in figures.items()}
  for name, figure in figures.items():
    figure['over_padded'] = speeds[name] / speeds['padded']
    figure['over_peft'] = {other: speeds[name] / speed for other, speed in speeds.items() if other.startswith('peft')}
  return {**dataclasses.asdict(row), 'contenders': figures}


def table(rows: dict[str, dict[str, Any]]) -> str:
  """The figures of `measure` as aligned text, a line a contender."""
  lines = [('row', 'contender', 'examples/s', 'x padded', 'x PEFT', 'padding', 'shapes', 'build s', 'memory GB')]
  for row, result in rows.items():
    for name, x in result['contenders'].items():
      lines.append((row, name, f'{x["examples_per_second"]:.2f}', f'{x["over_padded"]:.2f}',
                    f'{min(x["over_peft"].values()):.2f}' if x['over_peft'] else '', f'{x["padding"]:.0%}',
                    str(len(x['shapes'])), f'{x["build_seconds"]:.1f}', f'{x["peak_memory_gb"]:.2f}'))
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  justify = lambda i, cell: cell.ljust(widths[i]) if i < 2 else cell.rjust(widths[i])
  return '\n'.join('  '.join(justify(i, cell) for i, cell in enumerate(line)).rstrip() for line in lines)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
      epilog='rows:\n' + '\n'.join(f'  {name:<9} {row}' for name, row in ROWS.items()))
  parser.add_argument('--rows', type=names(list(ROWS)), default=list(DEFAULT_ROWS), metavar='ROW,...',
                      help=f'which rows to measure, see below (default: {",".join(DEFAULT_ROWS)})')
  parser.add_argument('--batches', type=int, default=4, metavar='N', help='of each row (default: %(default)s)')
  parser.add_argument('--rounds', type=int, default=3, metavar='N',
                      help='timed turns of each contender on each batch (default: %(default)s)')
  parser.add_argument('--dropout', type=float, default=0.1, metavar='RATE',
                      help="the frozen model's dropout rate, of every contender (default: %(default)s)")
  parser.add_argument('--peer', type=names(PEER_DTYPES), nargs='?', default=[], const=list(PEER_DTYPES),
                      metavar='DTYPE,...',
                      help=f'measure PEFT too, in these dtypes (just --peer: {",".join(PEER_DTYPES)})')
  parser.add_argument('--peer_python', default=sys.executable, metavar='FILE',
                      help='interpreter of an environment with torch, transformers and peft (default: this)')
  parser.add_argument('--worker', choices=WAYS, help=argparse.SUPPRESS)  # how the parent starts ours
  arguments = parser.parse_args(argv)
  if min(arguments.batches, arguments.rounds) < 1:
    parser.error('--batches and --rounds: at least one is needed')
  if not 0 <= arguments.dropout < 1:
    parser.error(f'--dropout={arguments.dropout}: expected a rate in [0, 1)')
  return arguments


def main(argv: Sequence[str] | None = None) -> int:
  arguments = _arguments(argv)
  if arguments.worker:
    serve(lambda settings: build_ours(settings, arguments.worker))
    return 0
  commands = {way: [sys.executable, str(HERE / 'padding.py'), f'--worker={way}'] for way in WAYS}
  for dtype in arguments.peer:
    commands[f'peft {dtype}'] = [arguments.peer_python, str(HERE / 'peft_padding.py'), dtype]
  settings, rows = {'dropout': arguments.dropout, 'batches': arguments.batches}, {}
  if (load := os.getloadavg()[0]) > 0.5:
    tell(f'WARNING: the load average is {load:.1f}: run this again on a quiet machine.')
  for name in arguments.rows:
    tell(f'{name}: {ROWS[name]}')
    try:
      rows[name] = measure(ROWS[name], settings, commands, arguments.rounds)
    except RuntimeError as error:
      tell(f'ERROR: {error}')
      return 1
  print(table(rows))
  print(json.dumps({
      'benchmark': 'padding', 'cpu': cpu(), 'load_average_before': load, 'allocator': ALLOCATOR, **settings,
      'rows': rows}))
  return 0


if __name__ == '__main__':
  sys.exit(main())
