"""Measures what training N prompts at once gains over N runs in turn.

A step of a population of N members against N steps of single runs, one after the other as N runs in turn would make
them, on the same frozen parameters and the same batches, dropout on (threefry on both sides). Both sides are compiled
before anything is timed and run in turns in one process; the gain is the ratio of their least seconds. Not counted, and
in favour of the population: N runs in turn also load the base and compile N times. Random float32 weights. Progress
goes to stderr, the table to stdout, its last line is JSON with every figure.

  python scripts/bench/population.py --rows=small4
"""

from collections.abc import Sequence
import dataclasses
import sys
from typing import Any

import jax
import numpy as np
from workers import compare_in_turns, timed

from prompt_tuning import loading
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.train import losses, optim, population_step, step


@dataclasses.dataclass(frozen=True)
class Row:
  """Sizes, see `prompt_tuning/types.py`; N members."""

  model: str
  N: int
  B: int
  S: int
  P: int = 20
  T: int = 4


ROWS = {
    'tiny8': Row('t5_1_1_tiny', N=8, B=8, S=32),
    'small4': Row('t5_1_1_small', N=4, B=4, S=44),
    'small8': Row('t5_1_1_small', N=8, B=2, S=44),
    'trial': Row('gpt2_tiny', N=2, B=2, S=4, P=3)}  # to try the script out
DEFAULT_ROWS = ('tiny8', 'small4')
OPTIMIZER = optim.adafactor(weight_decay_rate=1e-5, multiply_by_parameter_scale=False, factored=False)


def build(row: Row):
  """(a step of the population, a step of each member in turn), each () -> None."""
  partitioner = Partitioner(devices=jax.devices()[:1])
  backbone = loading.Backbone(size=row.model, dropout_rate=0.1)
  loaded = loading.load(None, Prompt(length=row.P), backbone, partitioner)
  if jax.devices()[0].platform == 'cpu':  # where unrolled layers are faster
    module = dataclasses.replace(backbone, scan=False).module(loaded.config)
    loaded = dataclasses.replace(loaded, model=dataclasses.replace(loaded.model, backbone=module))
  trainables = [loaded.new_trainable(seed) for seed in range(row.N)]
  optimizer = OPTIMIZER(optim.constant(0.3))
  rng = np.random.default_rng(0)
  batches = []
  for _ in range(row.N):
    text, targets = (rng.integers(2, loaded.config.vocab_size - 2, (row.B, n), np.int32) for n in (row.S, row.T))
    prompt = np.tile(np.arange(row.P, dtype=np.int32) + loaded.config.vocab_size, (row.B, 1))
    batches.append({
        'encoder_input_tokens': np.concatenate([prompt, text], axis=1), 'decoder_input_tokens': targets,
        'decoder_target_tokens': targets, 'decoder_loss_weights': np.ones(targets.shape, np.float32)})

  groups = population_step.groups([loaded] * row.N, trainables, pad=False)
  together = population_step.make(groups, [optimizer] * row.N, losses.compute, range(row.N))
  rows = jax.sharding.NamedSharding(partitioner.mesh, jax.sharding.PartitionSpec(None, 'data'))
  placed = population_step.place(groups, batches, rows, loaded.config.source_pad_id)
  population = step.TrainState(
      np.zeros((), np.int32), tuple(trainables), tuple(optimizer.init(t) for t in trainables))
  single = step.make_train_step(loaded.model, optimizer, losses.compute, dropout_seed=0, use_hardware_rng=False)
  state = {'population': jax.tree.map(np.array, population),
           'members': [jax.tree.map(np.array, step.init_state(t, optimizer)) for t in trainables]}
  own = [partitioner.place_batch(batch) for batch in batches]

  def run_together():
    state['population'], _ = together(state['population'], loaded.frozen, placed)
    jax.block_until_ready(state['population'])

  def run_in_turn():
    for i, batch in enumerate(own):
      state['members'][i], _ = single(state['members'][i], loaded.frozen, batch)
      jax.block_until_ready(state['members'][i])

  return run_together, run_in_turn


def measure(row: Row, turns: int) -> dict[str, Any]:
  """The row, the seconds of each turn of both sides, the least of each, and their ratio."""
  runs = build(row)
  compiled = [timed(run)[0] for run in runs]
  for run in runs:
    run()  # to warm up
  seconds = [[timed(run)[0] for run in runs] for _ in range(turns)]
  together, in_turn = np.min(seconds, axis=0)
  return {'first_seconds': compiled, 'seconds': seconds, 'together': together,
          'in_turn': in_turn, 'gain': in_turn / together}


def line(name: str, x: dict[str, Any]) -> str:
  """A row of the table."""
  return f'{name:<8} {x["N"]:>7} {1e3 * x["together"]:>12.2f} {1e3 * x["in_turn"]:>11.2f} {x["gain"]:>6.2f}'


def main(argv: Sequence[str] | None = None) -> int:
  header = f'{"row":<8} {"members":>7} {"together ms":>12} {"in turn ms":>11} {"gain":>6}'
  return compare_in_turns('population', __doc__, ROWS, DEFAULT_ROWS, measure, header, line, argv)


if __name__ == '__main__':
  sys.exit(main())
