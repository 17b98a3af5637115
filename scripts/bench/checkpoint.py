"""Measures saving and restoring a run's checkpoint, alone or beside PyTorch.

A checkpoint holds what a method trains on a T5, AdamW's state of it, and the finished tensors. Ours is that of a
training run: Orbax, checksums, and the finished file; `save` is what the training loop waits for, `behind` the rest,
which is done while it goes on. The peer saves and reads arrays of the same shapes as a PyTorch job does: the trained
ones as safetensors, the state of its AdamW by `torch.save`. Contenders have a process of their own each and take turns.
Files are read from the page cache. Progress goes to stderr, the table to stdout, and the last line of stdout is JSON
with every figure; the table's are medians.

  python scripts/bench/checkpoint.py
  python scripts/bench/checkpoint.py --peer=ENV/bin/python   # an ENV with prompt_tuning[parity]; this one: just --peer
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import statistics
import sys
import tempfile
from typing import Any

from workers import Contender, Worker, cpu, names, serve, tell

PARTS = ('save', 'behind', 'restore')


@dataclasses.dataclass(frozen=True)
class Row:
  """What is trained on which model."""

  method: str
  model: str = 't5_1_1_base'


ROWS = {'prompt': Row('prompt'), 'prefix': Row('prefix'), 'adapter': Row('adapter'),
        'tiny': Row('prompt', 't5_1_1_tiny')}  # to try the script out
DEFAULT_ROWS = ('prompt', 'prefix', 'adapter')


def in_turns(parts: Sequence[Callable[[], Any]]) -> Callable[[], float]:
  """A contender's step: the next of its parts."""
  turns = itertools.cycle(parts)

  def step() -> float:
    next(turns)()
    return 0.0

  return step


def build_ours(settings: Mapping[str, Any]) -> Contender:
  """Saves and restores as `train.loop` does."""
  import jax
  import numpy as np

  from prompt_tuning import loading, trees
  from prompt_tuning.checkpoints import run, tuned
  from prompt_tuning.methods import adapter, prefix, prompt
  from prompt_tuning.partitioning import Partitioner
  from prompt_tuning.train import optim
  from prompt_tuning.train import step as step_lib

  row, partitioner = Row(**settings['row']), Partitioner(devices=jax.devices()[:1])
  method = {'prompt': prompt.Prompt, 'prefix': prefix.Prefix, 'adapter': adapter.Adapter}[row.method]()
  model = loading.abstract(None, method, loading.Backbone(size=row.model), partitioner).model
  rng = np.random.default_rng(0)
  trainable = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), model.abstract_trainable())
  state = partitioner.replicate(step_lib.init_state(trainable, optim.adamw()(optim.constant(0.1))))._asdict()
  tensors = jax.device_get(jax.jit(model.export)(state['trainable']))
  finished = tuned.Tuned(tuned.method_of(tensors), tensors, {'step': 0})
  checkpoints, steps = run.RunCheckpoints(settings['folder']), itertools.count(1)
  about = {'state': run.description(state)}

  def restore():
    return jax.block_until_ready(checkpoints.restore(checkpoints.latest, state))

  return Contender(in_turns((
      lambda: checkpoints.save(next(steps), state, about, finished), checkpoints.finish, restore)), None, {
          'trained': trees.size(trainable), 'bytes': trees.nbytes(state) + sum(x.nbytes for x in tensors.values()),
          'shapes': [list(x.shape) for x in jax.tree.leaves(trainable)], 'versions': {'jax': jax.__version__}})


def measure(row: Row, commands: Mapping[str, Sequence[str]], turns: int) -> dict[str, Any]:
  """The seconds of each part of each contender, 'ours' first."""
  found = {}
  with tempfile.TemporaryDirectory() as root, contextlib.ExitStack() as stack:
    workers: dict[str, Worker] = {}
    for name, command in commands.items():
      folder = pathlib.Path(root, name.replace(' ', '_'))
      folder.mkdir()
      workers[name] = stack.enter_context(Worker(name, command))
      settings = {'row': dataclasses.asdict(row), 'folder': str(folder), 'shapes': found.get('ours', {}).get('shapes')}
      found[name] = {**workers[name].ask('build', settings), **{part: [] for part in PARTS}}  # which saves once
      workers[name].ask('step', len(PARTS) - 1)
    for i in range(turns):
      for name, worker in workers.items():
        seconds = worker.ask('step', len(PARTS))['seconds']
        for part, x in zip(PARTS, seconds, strict=True):
          found[name][part].append(x)
      tell(f'  turn {i + 1} of {turns}: ' + ', '.join(
          f'{name} ' + ' + '.join(f'{1e3 * x[part][-1]:.0f}' for part in PARTS) + ' ms' for name, x in found.items()))
  for name, x in found.items():
    if x['trained'] != found['ours']['trained']:
      raise RuntimeError(f'{name} saves {x["trained"]} trained parameters, ours {found["ours"]["trained"]}.')
    del x['loss_first']
    x.pop('shapes', None)  # the peer was told them
  return {**dataclasses.asdict(row), 'contenders': found}


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
  """A line a contender: milliseconds."""
  lines = [f'{"row":<8} {"contender":<10}{"trained":>12}{"MB":>8}' + ''.join(f'{part + " ms":>12}' for part in PARTS)]
  for row, result in rows.items():
    for name, x in result['contenders'].items():
      lines.append(f'{row:<8} {name:<10}{x["trained"]:>12}{x["bytes"] / 1e6:>8.1f}'
                   + ''.join(f'{1e3 * statistics.median(x[part]):>12.1f}' for part in PARTS))
  return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--rows', type=names(list(ROWS)), default=list(DEFAULT_ROWS), metavar='ROW,...',
                      help=f'some of {", ".join(ROWS)} (default: {",".join(DEFAULT_ROWS)})')
  parser.add_argument('--turns', type=int, default=7, metavar='N', help='of each contender (default: %(default)s)')
  parser.add_argument('--peer', nargs='?', const=sys.executable, metavar='PYTHON',
                      help='measure PyTorch too, in an interpreter with torch and safetensors (default: this)')
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
    commands['torch'] = [arguments.peer, str(here.with_name('torch_checkpoint.py'))]
  load, rows = os.getloadavg()[0], {}
  for name in arguments.rows:
    tell(f'{name}: {ROWS[name]}')
    try:
      rows[name] = measure(ROWS[name], commands, arguments.turns)
    except RuntimeError as error:
      tell(f'ERROR: {error}')
      return 1
  print(table(rows))
  print(json.dumps({'benchmark': 'checkpoint', 'cpu': cpu(), 'load_average_before': load, 'turns': arguments.turns,
                    'rows': rows}))
  return 0


if __name__ == '__main__':
  sys.exit(main())
