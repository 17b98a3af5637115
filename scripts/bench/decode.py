"""Measures decoding, in tokens per second, alone or beside Hugging Face `generate`.

As in `train_step.py`, each contender has a process of its own, started anew for each row, with
the same sizes, sources and allocator settings, and they take turns, one whole batch each. A row is a model, greedy
search or a beam, and lengths: B sources of S tokens and a start token, and T new tokens, as no sequence may end before.
Weights are random and float32. A turn includes reading the source, but not compiling.

  python scripts/bench/decode.py --rows=greedy1,greedy8
  python scripts/bench/decode.py --peer=ENV/bin/python   # an ENV with prompt_tuning[parity]; this one: just --peer

A beam's tokens are those of the B sequences that it returns. Progress goes to stderr, the table to stdout, and the last
line of stdout is JSON with every figure. 'speed-up' is the peer's least seconds over ours, 'paired' the median of that
ratio over the turns.
"""

import argparse
from collections.abc import Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import time
from typing import Any

import numpy as np
from workers import ALLOCATOR, PAUSE, Contender, Worker, cpu, names, serve, tell, timed

# Only the standard library and numpy up here: the peer's interpreter, which may have no JAX, imports it too.


@dataclasses.dataclass(frozen=True)
class Row:
  """What is measured: a size name, the number of beams (1: greedy) and lengths, see `prompt_tuning/types.py`."""

  model: str
  B: int
  beams: int
  S: int = 32
  T: int = 64


ROWS = {
    'greedy1': Row('gpt2_small', B=1, beams=1),
    'greedy8': Row('gpt2_small', B=8, beams=1),
    'beam1': Row('gpt2_small', B=1, beams=5),
    'beam8': Row('gpt2_small', B=8, beams=5),
    'tiny': Row('gpt2_tiny', B=2, beams=2, S=4, T=4),  # to try the script out
}
DEFAULT_ROWS = ('greedy1', 'greedy8', 'beam1', 'beam8')


def sources(row: Row, vocab_size: int) -> np.ndarray:
  """Source ids [B, S], the same for every contender, no padding among them."""
  return np.random.default_rng(0).integers(2, vocab_size - 2, (row.B, row.S), np.int32)


def build_ours(settings: dict[str, Any]) -> Contender:
  """This package's `generate`, compiled; a step is a whole batch and returns how many tokens it made."""
  import jax

  from prompt_tuning import decoding, loading, trees
  from prompt_tuning.methods.prefix import Prefix
  from prompt_tuning.partitioning import Partitioner

  jax.config.update('jax_enable_compilation_cache', False)
  row = Row(**settings['row'])
  backbone = loading.Backbone(size=row.model, scan=True)  # the fastest to initialise
  loaded = loading.load(None, Prefix(length=0), backbone, Partitioner(devices=jax.devices()[:1]))
  config = loaded.config
  scan = jax.devices()[0].platform != 'cpu'
  model = dataclasses.replace(loaded.model, backbone=dataclasses.replace(backbone, scan=scan).module(config))
  decoder = decoding.Greedy(min_length=row.T) if row.beams == 1 else decoding.Beam(
      row.beams, length_penalty='hf', alpha=1.0, early_stopping=False, min_length=row.T)
  batch = {'encoder_input_tokens': sources(row, config.vocab_size),
           'decoder_input_tokens': np.full((row.B, 1), config.eos_id, np.int32)}
  trainable = loaded.new_trainable(0)
  generate = jax.jit(lambda frozen, batch: model.generate(trainable, frozen, batch, row.T, decoder).tokens)
  lower_seconds, lowered = timed(lambda: generate.lower(loaded.frozen, batch))
  compile_seconds, compiled = timed(lowered.compile)
  return Contender(lambda: np.asarray(compiled(loaded.frozen, batch)).size, None, {
      'platform': jax.devices()[0].platform, 'versions': {'jax': jax.__version__},
      'frozen_parameters': trees.size(loaded.frozen), 'lower_seconds': lower_seconds,
      'compile_seconds': compile_seconds})


def measure(row: Row, commands: dict[str, Sequence[str]], turns: int) -> dict[str, Any]:
  """The row and the figures of its contenders, 'ours' first.

  Raises:
    RuntimeError: a worker failed, or the contenders have not done the same work.
  """
  from prompt_tuning.backbones import config as config_lib
  settings = {'row': dataclasses.asdict(row), 'config': dataclasses.asdict(config_lib.from_size(row.model))}
  with contextlib.ExitStack() as stack:
    workers, figures = {}, {}
    for name, command in commands.items():
      tell(f'  building {name}')
      workers[name] = stack.enter_context(Worker(name, command))
      figures[name] = {**workers[name].ask('build', settings), 'seconds': []}
    for i in range(turns):
      for name, worker in workers.items():
        time.sleep(PAUSE)
        reply = worker.ask('step', 1)
        figures[name]['seconds'] += reply['seconds']
        figures[name].update(tokens=reply['losses'][0], peak_memory_gb=reply['peak_memory_gb'])
      tell(f'  turn {i + 1} of {turns}: ' + ', '.join(
          f'{name} {figure["seconds"][-1]:.2f} s' for name, figure in figures.items()))
  ours = figures['ours']
  for name, figure in figures.items():
    if figure['tokens'] != row.B * row.T:
      raise RuntimeError(f'{name} made {figure["tokens"]} tokens; expected B x T = {row.B * row.T}.')
    for key in ('platform', 'frozen_parameters'):
      if figure[key] != ours[key]:
        raise RuntimeError(f'{key}: {figure[key]} of {name}, {ours[key]} of ours; they must do the same. '
                           'Set JAX_PLATFORMS=cpu if it is the platform.')
    figure['tokens_per_second'] = figure['tokens'] / min(figure['seconds'])
    figure['speed_up'] = min(figure['seconds']) / min(ours['seconds'])
    figure['paired'] = statistics.median(x / y for x, y in zip(figure['seconds'], ours['seconds'], strict=True))
  return {**dataclasses.asdict(row), 'contenders': figures}


def table(rows: dict[str, dict[str, Any]]) -> str:
  """The figures of `measure` as aligned text, a line a contender."""
  lines = [f'{"row":<8} {"contender":<12}' + ''.join(
      f'{title:>10}' for title in ('least s', 'tokens/s', 'speed-up', 'paired', 'compile s'))]
  for row, result in rows.items():
    for name, x in result['contenders'].items():
      compiling = f'{x["compile_seconds"]:.1f}' if 'compile_seconds' in x else ''
      lines.append(f'{row:<8} {name:<12}{min(x["seconds"]):>10.2f}{x["tokens_per_second"]:>10.1f}{x["speed_up"]:>10.2f}'
                   f'{x["paired"]:>10.2f}{compiling:>10}'.rstrip())
  return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
      epilog='rows:\n' + '\n'.join(f'  {name:<9} {row}' for name, row in ROWS.items()))
  parser.add_argument('--rows', type=names(list(ROWS)), default=list(DEFAULT_ROWS), metavar='ROW,...',
                      help=f'which rows to measure, see below (default: {",".join(DEFAULT_ROWS)})')
  parser.add_argument('--turns', type=int, default=5, metavar='N',
                      help='timed turns of each contender, after one to warm up (default: %(default)s)')
  parser.add_argument('--peer', nargs='?', const=sys.executable, metavar='PYTHON',
                      help='measure Hugging Face too, in an interpreter with torch and transformers (default: this)')
  parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)  # how the parent starts `ours`
  arguments = parser.parse_args(argv)
  if arguments.turns < 1:
    parser.error(f'--turns={arguments.turns}: at least one turn is needed')
  if arguments.worker:
    serve(build_ours)
    return 0
  here = pathlib.Path(__file__).resolve()
  commands = {'ours': [sys.executable, str(here), '--worker']}
  if arguments.peer:
    commands['hugging face'] = [arguments.peer, str(here.with_name('hf_decode.py'))]
  if (load := os.getloadavg()[0]) > 0.5:
    tell(f'WARNING: the load average is {load:.1f}; times are too long. Run this again on a quiet machine.')
  rows = {}
  for name in arguments.rows:
    tell(f'{name}: {ROWS[name]}')
    try:
      rows[name] = measure(ROWS[name], commands, arguments.turns)
    except RuntimeError as error:
      tell(f'ERROR: {error}')
      return 1
  print(table(rows))
  print(json.dumps({'benchmark': 'decode', 'cpu': cpu(), 'load_average_before': load, 'allocator': ALLOCATOR,
                    'turns': arguments.turns, 'rows': rows}))
  return 0


if __name__ == '__main__':
  sys.exit(main())
