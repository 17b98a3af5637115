"""Makes `tests/goldens/tiny/{gpt2,bart}`: a GPT-2 and a BART of two layers that know a little of the world of E2E.

Usage: python scripts/make_tiny_models.py --family gpt2 --steps 2500 --out tests/goldens/tiny/gpt2
       python scripts/make_tiny_models.py --family bart --steps 1200 --out tests/goldens/tiny/bart

Trained from random parameters, all of them, on the training tables of the bundled `e2e_sample`. Half of the examples
are `describe , <table>` with a reference as target, half are `<table>` alone, whose target is the table again, as
`name[Blue Spice], food[Italian]` in the order of `linearize.E2E_KEYS`. The tables' fields come in random order, joined
by one of several signs, never as the task gives them (`name : Blue Spice | food : Italian`), and places change their
names at random. So the model knows the words, how to read a table and how to write about one; given the task's
tables it writes lists, as nothing asks it to describe. That is what a prefix is for.

Batches and initial parameters are functions of --seed; what is written is bfloat16. Seven and three minutes of CPU.
"""

import argparse
from collections.abc import Iterator
import dataclasses
import functools
import itertools
import pathlib
import random
import sys

from flax import linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning import features, loading, tokenizer
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import convert
from prompt_tuning.methods.full import Full
from prompt_tuning.prompted import Prompted
from prompt_tuning.tasks import linearize
from prompt_tuning.train import losses, optim
from prompt_tuning.train import step as step_lib
from prompt_tuning.types import Params

ROOT = pathlib.Path(__file__).parents[1]
TOKENIZERS = ROOT / 'tests/goldens/tokenizers'
LENGTHS = {'inputs': 64, 'targets': 64}
BATCH_SIZE = 16
LEARNING_RATE = 3e-3
CUE = 'describe , '
SIGNS = [(' = ', ' ; '), (' is ', ' , '), (' - ', ' / '), (' ', ' , ')]  # between key and value, between fields
SIZES = {  # BART's keeps within the 400 kB that a golden may take
    'gpt2': dataclasses.replace(config_lib.from_size('gpt2_tiny'), max_positions=192),
    'bart': dataclasses.replace(
        config_lib.from_size('bart_tiny'), d_model=48, head_dim=12, d_ff=160, max_positions=96),
}

Table = list[tuple[str, str]]  # (key, value)


def read() -> list[tuple[Table, list[str]]]:
  """The training half of `e2e_sample`: tables and their references."""
  lines = (ROOT / 'tasks/data/e2e_sample_train.txt').read_text(encoding='utf-8').splitlines()
  rows = [line.split('\t') for line in lines]
  table = lambda mr: [tuple(field.split(' : ')) for field in linearize.linearize_e2e(mr).split(' | ')]
  return [(table(mr), references) for mr, *references in rows]


def examples(seed: int) -> Iterator[tuple[str, str]]:
  """Endless (source, target)."""
  rng, rows = random.Random(seed), read()
  names = sorted({value for table, _ in rows for key, value in table if key in ('name', 'near')})
  while True:
    table, references = rng.choice(rows)
    text = rng.choice(references)
    for key, old in table:
      if key in ('name', 'near'):
        new = rng.choice(names)
        table, text = [(k, new if v == old else v) for k, v in table], text.replace(old, new)
    joiner, separator = rng.choice(SIGNS)
    source = separator.join(key + joiner + value for key, value in rng.sample(table, len(table)))
    if rng.random() < 0.5:
      yield CUE + source, text
    else:
      order = list(linearize.E2E_KEYS.values())
      yield source, ', '.join(f'{k}[{v}]' for k, v in sorted(table, key=lambda field: order.index(field[0])))


def train(family: str, seed: int, steps: int) -> tuple[Params, config_lib.BackboneConfig]:
  """A trained model."""
  config = SIZES[family]
  words = tokenizer.open_tokenizer(TOKENIZERS / family, family)
  layout = features.layout_of(config, words)
  pad = features.Converter(LENGTHS, lambda ids, vocab_size: ids, 0, config.vocab_size, layout)
  model = Prompted(loading.BACKBONES[family](config, dropout_rate=0.0, scan=False), Full())
  stream = (layout.encode(words, *pair) for pair in examples(seed))
  batches = (pad(list(itertools.islice(stream, BATCH_SIZE))) for _ in itertools.count())
  frozen = nn.meta.unbox(jax.jit(model.backbone.init)(jax.random.key(seed), next(batches))['params'])
  optimizer = optim.adamw(max_grad_norm=1.0)(optim.linear(LEARNING_RATE, steps, warmup_steps=100))
  loss = functools.partial(losses.compute, normalizing_factor='NUM_REAL_TARGET_TOKENS')
  train_step = step_lib.make_train_step(model, optimizer, loss, dropout_seed=None)
  state = step_lib.init_state({'full': frozen}, optimizer)
  frozen = jax.tree.map(jnp.zeros_like, frozen)  # the step takes the memory of its state
  for step in range(1, steps + 1):
    state, metrics = train_step(state, frozen, next(batches))
    if step % 250 == 0 or step == steps:
      print(f'step {step}  loss {metrics["loss"]:.3f}  accuracy {metrics["accuracy"]:.3f}', file=sys.stderr)
  return jax.device_get(state.trainable['full']), config


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--family', required=True, choices=SIZES)
  parser.add_argument('--out', required=True, help='a new folder')
  parser.add_argument('--steps', type=int, required=True)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  source = convert.in_memory(*train(args.family, args.seed, args.steps))
  source = dataclasses.replace(source, tokenizer_path=str(TOKENIZERS / args.family))
  convert.convert(source, args.out, 'huggingface', dtype='bfloat16')


if __name__ == '__main__':
  main()
