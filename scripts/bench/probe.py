"""Measures the two passes over data that skill neurons are found with, alone or beside PyTorch forward hooks.

The baseline pass makes the mean activation of each neuron at each of P prompt positions (a mask token and P - 1 virtual
ones), the accuracy pass how often "above that mean" is the label (Wang et al. 2022, section 3): `analysis/record.py`.
The peer stores [B, P, F] of each layer and batch and reduces it at the end, as the paper's code does; see
`hook_probe.py`. Each contender has a process of its own, with the same weights, rows and allocator settings, as in
`train_step.py`, and they take turns, both passes each. A turn includes placing the batches and
the sums on the host, but not compiling. Weights are random and float32; rows are B of P + S tokens, without padding.

  python scripts/bench/probe.py
  python scripts/bench/probe.py --peer=ENV/bin/python   # an ENV with prompt_tuning[parity]; this one: just --peer

What the peer finds is compared with what we find, so that it too multiplies in full precision. Progress goes to stderr,
the table to stdout, and the last line of stdout is JSON with every figure. 'ratio' is our examples/s over the peer's,
by the median seconds, 'paired' the median of the turns' ratios, 'CPU ratio' that of the median CPU seconds, which other
jobs on the machine disturb less.
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
import time
from typing import Any

import numpy as np
from workers import ALLOCATOR, PAUSE, Contender, Worker, cpu, serve, tell

# Only the standard library and numpy up here: the peer's interpreter, which may have no JAX, imports it too.

PASSES = ('baseline', 'accuracy')
WEIGHTS, PROMPT = 'weights', 'prompt.npy'  # in the folder that the contenders share
TOLERANCE = 1e-3  # of baselines; activations are about 1


@dataclasses.dataclass(frozen=True)
class Row:
  """What is measured: a size name and lengths, see `prompt_tuning/types.py`."""

  model: str
  B: int
  S: int  # text tokens
  P: int  # prompt positions, the mask among them


BASE = Row('roberta_base', B=16, S=64, P=16)
TINY = Row('roberta_tiny', B=4, S=8, P=4)


def rows(row: Row, config: Mapping[str, Any], batches: int) -> list[tuple[np.ndarray, np.ndarray]]:
  """(ids [B, P + S], labels [B]) of each batch, the same for every contender: mask, virtual tokens, text."""
  rng = np.random.default_rng(0)
  prompt = [config['mask_id'], *range(config['vocab_size'], config['vocab_size'] + row.P - 1)]
  text = rng.integers(config['eos_id'] + 1, config['mask_id'], (batches, row.B, row.S), np.int32)
  tokens = np.concatenate([np.tile(np.array(prompt, np.int32), (batches, row.B, 1)), text], axis=-1)
  return list(zip(tokens, rng.integers(0, 2, (batches, row.B)), strict=True))


def in_turns(folder: str, name: str, passes: Sequence[Callable[[], np.ndarray]]) -> Callable[[], float]:
  """A contender's step: the next of its `passes`; returns the CPU seconds it took.

  What a pass has found, [L, P, F], is left in the folder for the parent.
  """
  turns = itertools.cycle(zip(PASSES, passes, strict=True))

  def step() -> float:
    passed, run = next(turns)
    began = time.process_time()
    x = run()
    seconds = time.process_time() - began
    np.save(_file(folder, name, passed), x.astype(np.float32))
    return seconds

  return step


def build_ours(settings: dict[str, Any]) -> Contender:
  """The passes of `record`; the base's weights are left for the peer."""
  import jax

  from prompt_tuning import loading, trees
  from prompt_tuning.analysis import predictivity, readings, record
  from prompt_tuning.checkpoints import convert
  from prompt_tuning.methods.prompt import Prompt
  from prompt_tuning.partitioning import Partitioner

  jax.config.update('jax_enable_compilation_cache', False)
  row, folder, partitioner = Row(**settings['row']), settings['folder'], Partitioner(devices=jax.devices()[:1])
  scan = jax.devices()[0].platform != 'cpu'
  backbone = loading.Backbone(size=row.model, scan=True)  # the fastest to initialise
  loaded = loading.load(None, Prompt(length=row.P - 1), backbone, partitioner)
  trainable = loaded.new_trainable(0)
  if settings['share']:
    convert.convert(convert.in_memory(loaded.frozen, loaded.config), os.path.join(folder, WEIGHTS), 'huggingface')
    np.save(os.path.join(folder, PROMPT), trainable['prompt']['embedding'])
  model = dataclasses.replace(loaded.model, backbone=dataclasses.replace(backbone, scan=scan).module(loaded.config))
  read = record.reader(model, trainable, loaded.frozen, partitioner)
  looks = readings.at_prompt(loaded.config, row.P)
  data = [({'encoder_input_tokens': tokens, 'decoder_input_tokens': np.zeros((row.B, 1), np.int32)}, labels)
          for tokens, labels in rows(row, settings['config'], settings['batches'])]
  baselines = None

  def baseline():
    nonlocal baselines
    baselines = record.mean(record.baseline(read, data, looks))
    return record.join(baselines)[:, 0]

  def accuracy():
    hits = record.hits(read, data, looks, baselines)
    return predictivity.accuracy(hits.joined, hits.counts)[0]

  return Contender(in_turns(folder, 'ours', (baseline, accuracy)), None, {
      'platform': jax.devices()[0].platform, 'versions': {'jax': jax.__version__}, 'scan': scan,
      'frozen_parameters': trees.size(loaded.frozen)})


def measure(row: Row, commands: Mapping[str, Sequence[str]], turns: int, batches: int) -> dict[str, Any]:
  """The row and the figures of its contenders, 'ours' first.

  Raises:
    RuntimeError: a worker failed, or a peer has found something else.
  """
  from prompt_tuning.backbones import config as config_lib
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
    settings = {'row': dataclasses.asdict(row), 'config': dataclasses.asdict(config_lib.from_size(row.model)),
                'batches': batches, 'folder': folder, 'share': len(commands) > 1}
    workers, figures = {}, {}
    for name, command in commands.items():
      tell(f'  building {name}')
      workers[name] = stack.enter_context(Worker(name, command))
      figures[name] = workers[name].ask('build', settings)
      del figures[name]['loss_first']  # none
      figures[name] |= {passed: {'seconds': [], 'cpu_seconds': []} for passed in PASSES}
      workers[name].ask('step', 1)  # the other pass is to be warm too
    for i in range(turns):
      for name, worker in workers.items():
        time.sleep(PAUSE)
        reply = worker.ask('step', len(PASSES))
        for passed, seconds, cpu_seconds in zip(PASSES, reply['seconds'], reply['losses'], strict=True):
          figures[name][passed]['seconds'].append(seconds)
          figures[name][passed]['cpu_seconds'].append(cpu_seconds)
        figures[name]['peak_memory_gb'] = reply['peak_memory_gb']
      tell(f'  turn {i + 1} of {turns}: ' + ', '.join(
          f'{name} ' + ' + '.join(f'{figure[p]["seconds"][-1]:.2f}' for p in PASSES) + ' s'
          for name, figure in figures.items()))
    for name, passed in itertools.product(figures, PASSES):
      mine, other = (np.load(_file(folder, who, passed), allow_pickle=False) for who in ('ours', name))
      figures[name][passed]['largest_difference'] = float(np.abs(mine - other).max())
      figures[name][passed]['mean_difference'] = float(np.abs(mine - other).mean())
  for name, figure in figures.items():
    _compare(name, figure, figures['ours'], row.B * batches)
  return {**dataclasses.asdict(row), 'batches': batches, 'contenders': figures}


def _compare(name: str, figure: dict[str, Any], ours: Mapping[str, Any], examples: int) -> None:
  """Adds rates and ratios; raises RuntimeError where a contender has not done the same work."""
  if figure['platform'] != ours['platform']:
    raise RuntimeError(f'{name} runs on a {figure["platform"]} and ours on a {ours["platform"]}: set '
                       'JAX_PLATFORMS=cpu.')
  if not (difference := figure['baseline']['largest_difference']) <= TOLERANCE:  # nor NaN
    raise RuntimeError(f'The baselines of {name} are up to {difference:.2g} away from ours; expected the same model to '
                       f'differ by less than {TOLERANCE}.')
  for passed in PASSES:
    figure[passed]['examples_per_second'] = examples / statistics.median(figure[passed]['seconds'])
    for title, key in (('ratio', 'seconds'), ('cpu_ratio', 'cpu_seconds')):
      figure[passed][title] = statistics.median(figure[passed][key]) / statistics.median(ours[passed][key])
    pairs = zip(figure[passed]['seconds'], ours[passed]['seconds'], strict=True)
    figure[passed]['paired'] = statistics.median(x / y for x, y in pairs)


def _file(folder: str, name: str, passed: str) -> str:
  return os.path.join(folder, f'{name} {passed}.npy')


def table(result: Mapping[str, Any]) -> str:
  """The figures of `measure` as aligned text, a line for a contender's pass."""
  titles = ('median s', 'CPU s', 'examples/s', 'ratio', 'paired', 'CPU ratio', 'largest difference')
  lines = [f'{"pass":<9} {"contender":<10}' + ' '.join(f'{title:>10}' for title in titles)]
  for passed in PASSES:
    for name, contender in result['contenders'].items():
      x = contender[passed]
      seconds, cpu_seconds = (statistics.median(x[key]) for key in ('seconds', 'cpu_seconds'))
      lines.append(f'{passed:<9} {name:<10}{seconds:>10.2f} {cpu_seconds:>10.2f} {x["examples_per_second"]:>10.1f} '
                   f'{x["ratio"]:>10.2f} {x["paired"]:>10.2f} {x["cpu_ratio"]:>10.2f} {x["largest_difference"]:>18.2g}')
  return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--turns', type=int, default=5, metavar='N',
                      help='timed turns of each contender, after one to warm up (default: %(default)s)')
  parser.add_argument('--batches', type=int, default=4, metavar='N',
                      help='batches that a pass goes over (default: %(default)s)')
  parser.add_argument('--quick', action='store_true', help='a tiny model, to try the script out')
  parser.add_argument('--peer', nargs='?', const=sys.executable, metavar='PYTHON',
                      help='measure PyTorch too, in an interpreter with torch and transformers (default: this)')
  parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)  # how the parent starts `ours`
  arguments = parser.parse_args(argv)
  for name in ('turns', 'batches'):
    if (value := getattr(arguments, name)) < 1:
      parser.error(f'--{name}={value}: expected at least one')
  if arguments.worker:
    serve(build_ours)
    return 0
  here = pathlib.Path(__file__).resolve()
  commands = {'ours': [sys.executable, str(here), '--worker']}
  if arguments.peer:
    commands['hooks'] = [arguments.peer, str(here.with_name('hook_probe.py'))]
  if (load := os.getloadavg()[0]) > 0.5:
    tell(f'WARNING: the load average is {load:.1f}; times are too long. Run this again on a quiet machine.')
  try:
    result = measure(TINY if arguments.quick else BASE, commands, arguments.turns, arguments.batches)
  except RuntimeError as error:
    tell(f'ERROR: {error}')
    return 1
  print(table(result))
  print(json.dumps({'benchmark': 'probe', 'cpu': cpu(), 'load_average_before': load, 'allocator': ALLOCATOR,
                    'turns': arguments.turns, **result}))
  return 0


if __name__ == '__main__':
  sys.exit(main())
