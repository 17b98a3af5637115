"""Measures how much faster a pruned model infers than the whole one (Wang et al. 2022: about 1.4 times, on a GPU).

The base on B rows of P virtual tokens and S others, one of them the mask, against the same with 2% of the neurons in
its top nine layers. Both run in turns in one process; the ratio is that of the least seconds. Random float32 weights,
random neurons. Times to compile are not in it. Progress goes to stderr, the table to stdout, its last line is JSON with
every figure.

  python scripts/bench/pruned.py --rows=base
"""

from collections.abc import Callable, Sequence
import dataclasses
import sys
from typing import Any

import jax
import numpy as np
from workers import compare_in_turns, timed

from prompt_tuning import loading, trees
from prompt_tuning.analysis import prune
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.partitioning import Partitioner


@dataclasses.dataclass(frozen=True)
class Row:
  """What is measured, see `prompt_tuning/types.py`."""

  model: str
  B: int
  S: int
  P: int


ROWS = {
    'base': Row('roberta_base', B=16, S=64, P=16),
    'large': Row('roberta_large', B=16, S=64, P=16),
    'tiny': Row('roberta_tiny', B=2, S=4, P=3)}  # to try the script out


def models(row: Row) -> dict[str, tuple[Callable, int]]:
  """Name -> (what infers once, number of parameters) of the whole and the pruned model."""
  backbone = loading.Backbone(size=row.model, dropout_rate=0.0)
  loaded = loading.load(None, Prompt(length=row.P), backbone, Partitioner(devices=jax.devices()[:1]))
  config, trainable, rng = loaded.config, loaded.new_trainable(0), np.random.default_rng(0)
  shape = (config.encoder_layers, config.d_ff)
  tokens = rng.integers(config.eos_id + 1, config.mask_id, (row.B, row.P + row.S), np.int32)
  tokens[:, :row.P], tokens[:, row.P] = config.vocab_size + np.arange(row.P), config.mask_id
  batch = jax.device_put({'encoder_input_tokens': tokens, 'decoder_input_tokens': np.zeros((row.B, 1), np.int32)})

  def inferring(frozen, config):
    module = dataclasses.replace(backbone, scan=jax.devices()[0].platform != 'cpu').module(config)
    model = dataclasses.replace(loaded.model, backbone=module)
    run = jax.jit(model.logits).lower(trainable, frozen, batch).compile()
    return lambda: run(trainable, frozen, batch).block_until_ready(), trees.size(frozen)

  pruned = prune.prune(loaded.frozen, config, prune.masks_to_keep(rng.random(shape)), np.zeros(shape))
  return {'whole': inferring(loaded.frozen, config), 'pruned': inferring(*pruned)}


def measure(row: Row, turns: int) -> dict[str, Any]:
  """The row, the seconds of each model, and how many times faster the pruned one is."""
  found = models(row)
  for run, _ in found.values():
    run()  # to warm up
  seconds = {name: [] for name in found}
  for _ in range(turns):
    for name, (run, _) in found.items():
      seconds[name].append(timed(run)[0])
  (_, whole), (_, pruned) = found.values()
  return {'parameters': {'whole': whole, 'pruned': pruned}, 'share': pruned / whole,
          'seconds': seconds, 'speed_up': min(seconds['whole']) / min(seconds['pruned'])}


def line(name: str, x: dict[str, Any]) -> str:
  """A row of the table."""
  whole, pruned = (1e3 * min(x['seconds'][side]) for side in ('whole', 'pruned'))
  return (f'{name:<6} {x["parameters"]["whole"]:>12} {x["parameters"]["pruned"]:>12} {x["share"]:>6.1%} {whole:>9.1f} '
      f'{pruned:>9.1f} {x["speed_up"]:>9.2f}')


def main(argv: Sequence[str] | None = None) -> int:
  header = f'{"row":<6} {"parameters":>12} {"pruned":>12} {"share":>6} {"whole ms":>9} {"pruned ms":>9} {"speed-up":>9}'
  return compare_in_turns('pruned', __doc__, ROWS, ('base',), measure, header, line, argv)


if __name__ == '__main__':
  sys.exit(main())
