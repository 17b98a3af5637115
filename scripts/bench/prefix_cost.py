"""Measures what a prefix costs: its gradient, and its share of a decoder step.

  gradient   loss and gradient of a trained prefix, MLP included, over the loss alone (limit 2.1)
  step       a token of a decoder with P virtual tokens at all three sites over one without (limit 1.1); its
             seconds are those of many steps less those of one, so that the encoder does not count

Both sides of a ratio run in turns in one process; ratios are of the least seconds. Random float32 weights. Times to
compile are not in it. Progress goes to stderr, the table to stdout, its last line is JSON with every figure.

  python scripts/bench/prefix_cost.py --rows=gradient_t5
"""

from collections.abc import Callable, Sequence
import dataclasses
import sys
from typing import Any

import jax
import numpy as np
from workers import compare_in_turns, timed

from prompt_tuning import decoding, loading
from prompt_tuning.methods.prefix import Prefix
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.train import losses


@dataclasses.dataclass(frozen=True)
class Row:
  """What is measured ('gradient' or 'step') and on which sizes, see `prompt_tuning/types.py`."""

  what: str
  model: str
  B: int
  P: int
  S: int = 64
  T: int = 64  # targets, or steps

  @property
  def limit(self) -> float:
    return {'gradient': 2.1, 'step': 1.1}[self.what]


ROWS = {
    'gradient_gpt2': Row('gradient', 'gpt2_small', B=8, P=10),
    'gradient_t5': Row('gradient', 't5_1_1_small', B=8, P=10),
    'step1': Row('step', 'bart_base', B=1, P=200),
    'step8': Row('step', 'bart_base', B=8, P=200),
    'tiny_gradient': Row('gradient', 'gpt2_tiny', B=2, P=3, S=4, T=4),  # to try the script out
    'tiny_step': Row('step', 'bart_tiny', B=2, P=3, S=4, T=4)}
DEFAULT_ROWS = ('gradient_gpt2', 'gradient_t5', 'step1', 'step8')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps(decoding.Decoder):
  """Does `count` steps, a traced number, of greedy search, and keeps the last tokens only."""

  count: jax.Array

  def __call__(self, first_logits, cache, step, *, length, ids, keys=None):
    del ids, keys
    visible = lambda time: jax.numpy.broadcast_to(jax.numpy.arange(length) < time, (len(first_logits), 1, length))
    best = lambda logits: jax.numpy.argmax(logits, axis=-1)

    def advance(time, state):
      logits, cache = step(state[0], state[1], time, visible(time)[..., None])
      return best(logits), cache

    return jax.lax.fori_loop(0, self.count, advance, (best(first_logits[:, None]), cache))[0]


def load(row: Row, length: int):
  """The model, unrolled, its trainables and its frozen parameters."""
  backbone = loading.Backbone(size=row.model, dropout_rate=0.0, scan=True)  # the fastest to initialise
  loaded = loading.load(None, Prefix(length=length), backbone, Partitioner(devices=jax.devices()[:1]))
  module = dataclasses.replace(backbone, scan=jax.devices()[0].platform != 'cpu').module(loaded.config)
  return dataclasses.replace(loaded.model, backbone=module), loaded.new_trainable(0), loaded.frozen


def draw(row: Row, vocab_size: int, length: int) -> np.ndarray:
  return np.random.default_rng(0).integers(2, vocab_size - 2, (row.B, length), np.int32)


def gradient(row: Row) -> tuple[Callable, Callable]:
  """(loss and gradient, loss), each () -> None."""
  model, trainable, frozen = load(row, row.P)
  vocab = model.backbone.config.vocab_size
  targets = draw(row, vocab, row.T)
  batch = {
      'encoder_input_tokens': draw(row, vocab, row.S), 'decoder_input_tokens': targets,
      'decoder_target_tokens': targets, 'decoder_loss_weights': np.ones(targets.shape, np.float32)}

  def loss(trainable, frozen, batch):
    logits = model.logits(trainable, frozen, batch)
    result = losses.compute(logits, batch, normalizing_factor='NUM_REAL_TARGET_TOKENS')
    return result.total / result.normalizer

  compiled = [jax.jit(f).lower(trainable, frozen, batch).compile() for f in (jax.value_and_grad(loss), loss)]
  return tuple(lambda f=f: jax.block_until_ready(f(trainable, frozen, batch)) for f in compiled)


def steps(row: Row) -> tuple[Callable, ...]:
  """(many steps with the prefix, one step with it, many without, one without)."""
  runs = []
  for length in (row.P, 0):
    model, trainable, frozen = load(row, length)
    source = draw(row, model.backbone.config.vocab_size, row.S)
    batch = {'encoder_input_tokens': source, 'decoder_input_tokens': source[:, :1]}
    run = jax.jit(lambda trainable, frozen, batch, count, model=model: model.generate(
        trainable, frozen, batch, row.T, Steps(count=count))).lower(trainable, frozen, batch, np.int32(1)).compile()
    runs += [lambda n=n, run=run, given=(trainable, frozen, batch): run(*given, np.int32(n)).block_until_ready()
             for n in (row.T, 1)]
  return tuple(runs)


def measure(row: Row, turns: int) -> dict[str, Any]:
  """The row, the least seconds of each side and their ratio."""
  runs = (gradient if row.what == 'gradient' else steps)(row)
  for run in runs:
    run()  # to warm up
  seconds = [[timed(run)[0] for run in runs] for _ in range(turns)]
  least = np.min(seconds, axis=0)
  with_, without = least if row.what == 'gradient' else (least[::2] - least[1::2]) / (row.T - 1)
  return {'limit': row.limit, 'seconds': seconds, 'with': with_, 'without': without,
          'ratio': with_ / without}


def line(name: str, x: dict[str, Any]) -> str:
  """A row of the table."""
  return f'{name:<14} {1e3 * x["with"]:>9.2f} {1e3 * x["without"]:>11.2f} {x["ratio"]:>6.2f} {x["limit"]:>6.2f}'


def main(argv: Sequence[str] | None = None) -> int:
  header = f'{"row":<14} {"with ms":>9} {"without ms":>11} {"ratio":>6} {"limit":>6}'
  return compare_in_turns('prefix_cost', __doc__, ROWS, DEFAULT_ROWS, measure, header, line, argv)


if __name__ == '__main__':
  sys.exit(main())
