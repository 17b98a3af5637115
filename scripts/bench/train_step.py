"""Measures one training step of prompt tuning and of other methods, alone or beside Hugging Face PEFT.

Every contender runs in a process of its own, started anew for each row, on the same sizes, the same tokens
and the same allocator settings. They take turns step by step (A B C A B C ...) and only one computes at a
time, so that other load on the machine or a drifting clock hits them all alike. A step is forward, loss,
backward and AdamW's update of what is trained; the frozen model has random weights and its dropout on. A row of
the table is a model, a method and lengths: B rows of S text tokens behind P virtual ones, and T target tokens, no
padding. Peers are where PEFT or Transformers do the same: of prompt tuning and of full fine-tuning. (PEFT's prefixes
for a T5 are the decoder's alone, its P-tuning has another network, and it has no adapters or BitFit.)

  python scripts/bench/train_step.py --rows=small20
  python scripts/bench/train_step.py --peer --peer_python=ENV/bin/python   # an ENV with prompt_tuning[parity]

FLOPs are counted as 4 x parameters x tokens (2 forward, 2 for the gradient of activations: frozen weights
have none of their own; trained ones 2 more), and beside that by XLA, which also sees attention scores.
Utilisation is the analytic count per second over what a matrix product of the same dtype reaches in the same
process. Peak memory is the most a process ever held, compilation included. Progress goes to stderr, the table
to stdout, and the last line of stdout is JSON with every figure; 'ratio' is our median over the contender's,
'paired_ratio' the median of the ratios of each turn.
"""

import argparse
from collections.abc import Sequence
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import statistics
import sys
import time
from typing import Any

import numpy as np
from workers import ALLOCATOR, GEMM, PAUSE, Contender, Worker, cpu, names, serve, tell, timed

# Only the standard library, numpy and `workers` up here: the peer's interpreter, which may have no JAX, imports it too.

GEMM_SECONDS = 2.0  # how long that product is repeated
LEARNING_RATE = 0.01
PEER_DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Row:
  """What is measured: a size name and lengths, see the dimension legend in `prompt_tuning/types.py`."""

  model: str
  B: int
  S: int  # text tokens, the prompt not counted
  P: int
  T: int
  method: str = 'prompt'

  @property
  def encoder_length(self) -> int:
    """Prompt and text."""
    return self.S + (self.P if self.method in ('prompt', 'p_tuning') else 0)


ROWS = {
    'small20': Row('t5_1_1_small', B=8, S=128, P=20, T=8),
    'small100': Row('t5_1_1_small', B=8, S=128, P=100, T=8),
    'base100': Row('t5_1_1_base', B=8, S=256, P=100, T=8),
    'tiny': Row('t5_1_1_tiny', B=2, S=16, P=4, T=4),  # to try the script out
    **{f'small20_{method}': Row('t5_1_1_small', B=8, S=128, P=20, T=8, method=method)
       for method in ('prefix', 'p_tuning', 'adapter', 'bitfit', 'full')},
    'tiny_full': Row('t5_1_1_tiny', B=2, S=16, P=4, T=4, method='full'),
}
PEERS = ('prompt', 'full')  # methods that a peer has too
DEFAULT_ROWS = ('small20', 'small100', 'base100')


def tokens(row: Row, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
  """The batch, the same for every contender: text ids [B, S] and targets [B, T], no padding among them."""
  rng = np.random.default_rng(0)
  draw = lambda length: rng.integers(2, vocab_size, (row.B, length), np.int32)
  return draw(row.S), draw(row.T)


def analytic_flops(config, row: Row) -> int:
  """4 x parameters x the tokens each of them sees, of a `BackboneConfig`; attention scores are not counted.

  The encoder sees B (P + S) tokens, and so do the keys and values of cross-attention; the rest of the decoder
  and the LM head see B T. Norms, position biases and the lookup of embeddings are no products and left out.
  """
  joined = config.num_heads * config.head_dim
  attention = 4 * config.d_model * joined  # query, key, value, output
  mlp = (len(config.mlp_activations) + 1) * config.d_model * config.d_ff
  cross_kv = config.decoder_layers * 2 * config.d_model * joined
  encoder = config.encoder_layers * (attention + mlp)
  decoder = config.decoder_layers * (2 * attention + mlp) - cross_kv + config.d_model * config.vocab_size
  return 4 * row.B * ((encoder + cross_kv) * row.encoder_length + decoder * row.T)


# --- A contender, in its worker process.


def method(row: Row):
  """The method of a row, as its gin file has it but for the length."""
  from prompt_tuning.methods import adapter, bias, full, p_tuning, prefix, prompt
  return {'prompt': lambda: prompt.Prompt(length=row.P), 'prefix': lambda: prefix.Prefix(length=row.P),
          'p_tuning': lambda: p_tuning.PTuning(template=f'<p*{row.P}> {{text}}'),
          'adapter': adapter.Adapter, 'bitfit': bias.Bias, 'full': full.Full}[row.method]()


def build_ours(settings: dict[str, Any]) -> Contender:
  """This package's step, compiled. The time to trace and lower is Python's, the time to compile XLA's."""
  import jax

  from prompt_tuning import loading, trees
  from prompt_tuning.partitioning import Partitioner
  from prompt_tuning.train import losses, optim
  from prompt_tuning.train import step as step_lib

  jax.config.update('jax_enable_compilation_cache', False)
  device, row, dropout = jax.devices()[0], Row(**settings['row']), settings['dropout']
  scan = device.platform != 'cpu' if settings['scan'] is None else settings['scan']
  partitioner = Partitioner(devices=[device])
  backbone = loading.Backbone(
      size=row.model, param_dtype=settings['param_dtype'], dropout_rate=dropout, scan=True)  # the fastest to initialise
  loaded = loading.load(None, method(row), backbone, partitioner)
  optimizer = optim.adamw()(optim.constant(LEARNING_RATE))
  trainable = loaded.new_trainable(0)
  state = partitioner.replicate(step_lib.init_state(trainable, optimizer))
  encoder, targets = tokens(row, loaded.config.vocab_size)
  place = loaded.model.method.place
  batch = partitioner.place_batch({
      'encoder_input_tokens': np.stack([place(x, loaded.config.vocab_size) for x in encoder]),
      'decoder_input_tokens': np.pad(targets, [(0, 0), (1, 0)])[:, :-1],
      'decoder_target_tokens': targets,
      'decoder_loss_weights': np.ones(targets.shape, np.float32)})

  def lower(scan):
    module = dataclasses.replace(backbone, scan=scan).module(loaded.config)
    model = dataclasses.replace(loaded.model, backbone=module)
    loss = lambda logits, batch: losses.compute(logits, batch, normalizing_factor='NUM_REAL_TARGET_TOKENS')
    train_step = step_lib.make_train_step(model, optimizer, loss, dropout_seed=0 if dropout else None)
    return train_step.lower(state, loaded.frozen, batch)

  lower_seconds, lowered = timed(lambda: lower(scan))
  compile_seconds, compiled = timed(lowered.compile)
  counted = lower(scan=False) if scan else lowered  # XLA counts the body of a loop once

  def step() -> float:
    nonlocal state
    state, metrics = compiled(state, loaded.frozen, batch)
    jax.block_until_ready(state)
    return float(metrics['loss'])

  def gemm(m, k, n):
    a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
    a, b = jax.device_put((a, b), device)
    dot = jax.jit(jax.numpy.dot)
    return lambda: dot(a, b).block_until_ready()

  return Contender(step, gemm, {
      'platform': device.platform, 'dtype': backbone.dtype, 'param_dtype': backbone.param_dtype, 'scan': scan,
      'versions': {'jax': jax.__version__},
      'trainable_parameters': trees.size(trainable), 'frozen_parameters': trees.size(loaded.model.abstract_frozen()),
      'frozen_bytes': trees.nbytes(loaded.frozen), 'lower_seconds': lower_seconds, 'compile_seconds': compile_seconds,
      'flops_xla': counted.cost_analysis()['flops']})


# --- The parent: starts the workers, gives them their turns, reports.


Figures = dict[str, dict[str, Any]]  # contender -> figure -> value


def measure(
    row: Row, settings: dict[str, Any], commands: dict[str, Sequence[str]], steps: int) -> dict[str, Any]:
  """The row, its analytic FLOPs and all figures of its contenders.

  Args:
    settings: what every worker is built with, besides the row.
    commands: contender -> the command of its worker; 'ours' comes first.
    steps: turns of one step that each contender gets.

  Raises:
    RuntimeError: a worker failed, a loss is not finite, or the contenders are not the same model.
  """
  from prompt_tuning.backbones import config as config_lib
  config = config_lib.from_size(row.model)
  settings = {**settings, 'row': dataclasses.asdict(row), 'config': dataclasses.asdict(config)}
  with contextlib.ExitStack() as stack:
    workers, figures = {}, {}
    for name, command in commands.items():
      tell(f'  building {name}')
      workers[name] = stack.enter_context(Worker(name, command))
      figures[name] = workers[name].ask('build', settings)
    turns = {name: [] for name in workers}
    for i in range(steps):
      for name, worker in workers.items():
        time.sleep(PAUSE)
        turns[name].append(worker.ask('step', 1))
      tell(f'  step {i + 1} of {steps}: ' + ', '.join(f'{name} {turn[-1]["seconds"][0]:.3f} s'
                                                       for name, turn in turns.items()))
    gemms = {name: worker.ask('gemm', GEMM_SECONDS) for name, worker in workers.items()}
  flops = analytic_flops(config, row) * (6 if row.method == 'full' else 4) // 4
  for name, figure in figures.items():
    seconds, losses = ([turn[key][0] for turn in turns[name]] for key in ('seconds', 'losses'))
    median, gemm = statistics.median(seconds), statistics.median(gemms[name])
    figure.update(
        step_seconds=seconds, step_seconds_median=median, step_seconds_min=min(seconds), losses=losses,
        peak_memory_gb=turns[name][-1]['peak_memory_gb'], flops_per_second=flops / median,
        gemm_flops_per_second=gemm, utilisation=flops / median / gemm)
    ours = figures['ours']  # the first to be complete
    figure['ratio'] = ours['step_seconds_median'] / median
    figure['paired_ratio'] = statistics.median(
        a / b for a, b in zip(ours['step_seconds'], seconds, strict=True))
  _check(figures, row.P * config.d_model if row.method == 'prompt' else None)
  return {**dataclasses.asdict(row), 'flops_analytic': flops, 'contenders': figures}


def _check(figures: Figures, trainable: int | None) -> None:
  """Raises RuntimeError where the contenders have not done the same, sound work.

  `trainable`: how many parameters are to be trained; None: as many as ours.
  """
  ours = figures['ours']
  for name, figure in figures.items():
    if not all(map(math.isfinite, (figure['loss_first'], *figure['losses']))):
      raise RuntimeError(f'The loss of {name} is not finite; its times mean nothing.')
    if figure['platform'] != ours['platform']:
      raise RuntimeError(
          f'{name} runs on a {figure["platform"]} and ours on a {ours["platform"]}: set JAX_PLATFORMS=cpu.')
    if (found := figure['trainable_parameters']) != (trainable or ours['trainable_parameters']):
      raise RuntimeError(f'{name} trains {found} parameters; expected '
                         + (f'P x D = {trainable}.' if trainable else f'{ours["trainable_parameters"]}, as ours.'))
    if (found := figure['frozen_parameters']) != ours['frozen_parameters']:
      raise RuntimeError(
          f'{name} has {found} frozen parameters and ours {ours["frozen_parameters"]}; they must be the same '
          'model.')


COLUMNS = {  # title -> (figure, digits, unit)
    'median s': ('step_seconds_median', 3, 1), 'min s': ('step_seconds_min', 3, 1),
    'ours/this': ('ratio', 2, 1), 'paired': ('paired_ratio', 2, 1), 'memory GB': ('peak_memory_gb', 2, 1),
    'lower s': ('lower_seconds', 1, 1), 'compile s': ('compile_seconds', 1, 1),
    'GFLOP/s': ('flops_per_second', 1, 1e9), 'GEMM': ('gemm_flops_per_second', 1, 1e9),
    'utilisation': ('utilisation', 2, 1)}


def table(rows: dict[str, dict[str, Any]]) -> str:
  """The figures of `measure` as aligned text, a line a contender; blank where one has no such figure."""
  lines = [('row', 'contender', *COLUMNS)]
  for row, result in rows.items():
    for name, figures in result['contenders'].items():
      lines.append((row, name, *(
          f'{figures[key] / unit:.{digits}f}' if key in figures else ''
          for key, digits, unit in COLUMNS.values())))
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  justify = lambda i, cell: cell.ljust(widths[i]) if i < 2 else cell.rjust(widths[i])
  return '\n'.join('  '.join(justify(i, cell) for i, cell in enumerate(line)).rstrip() for line in lines)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
      epilog='rows:\n' + '\n'.join(
          f'  {name:<16} {row.method} on {row.model}, B={row.B} S={row.S} P={row.P} T={row.T}'
          for name, row in ROWS.items()))
  parser.add_argument('--rows', type=names(list(ROWS)), default=list(DEFAULT_ROWS), metavar='ROW,...',
                      help=f'which rows to measure, see below (default: {",".join(DEFAULT_ROWS)})')
  parser.add_argument('--steps', type=int, default=7, metavar='N',
                      help='timed steps of each contender, after one to warm up (default: %(default)s)')
  parser.add_argument('--dropout', type=float, default=0.1, metavar='RATE',
                      help="the frozen model's dropout rate, of every contender (default: %(default)s)")
  parser.add_argument('--scan', action=argparse.BooleanOptionalAction,
                      help='ours: loop over one compiled layer, or unroll (default: unroll on a CPU only)')
  parser.add_argument('--param_dtype', choices=('float32', 'bfloat16', 'int8'), default='float32',
                      help='ours: of the frozen parameters in memory; activations are float32 (default: float32)')
  parser.add_argument('--peer', type=names(PEER_DTYPES), nargs='?', default=[], const=list(PEER_DTYPES),
                      metavar='DTYPE,...',
                      help=f'measure PEFT too, in these dtypes (just --peer: {",".join(PEER_DTYPES)}). On '
                      'a CPU without bfloat16 instructions that one takes minutes a step: say --peer=float32')
  parser.add_argument('--peer_python', default=sys.executable, metavar='FILE',
                      help='interpreter of an environment with torch, transformers and peft (default: this)')
  parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)  # how the parent starts `ours`
  arguments = parser.parse_args(argv)
  if arguments.steps < 1:
    parser.error(f'--steps={arguments.steps}: at least one step is needed')
  if not 0 <= arguments.dropout < 1:
    parser.error(f'--dropout={arguments.dropout}: expected a rate in [0, 1)')
  return arguments


def main(argv: Sequence[str] | None = None) -> int:
  arguments = _arguments(argv)
  if arguments.worker:
    serve(build_ours)
    return 0
  here = pathlib.Path(__file__).resolve()
  commands = {'ours': [sys.executable, str(here), '--worker']}
  for dtype in arguments.peer:
    commands[f'peft {dtype}'] = [arguments.peer_python, str(here.with_name('peft_step.py')), dtype]
  settings, rows = {name: getattr(arguments, name) for name in ('dropout', 'scan', 'param_dtype')}, {}
  if (load := os.getloadavg()[0]) > 0.5:
    tell(f'WARNING: the load average is {load:.1f}. On a busy machine times are too long, the more so '
          "the peer's, whose threads wait for each other: run this again on a quiet one.")
  for name in arguments.rows:
    tell(f'{name}: {ROWS[name]}')
    try:
      row, alone = ROWS[name], {'ours': commands['ours']}
      rows[name] = measure(row, settings, commands if row.method in PEERS else alone, arguments.steps)
    except RuntimeError as error:
      tell(f'ERROR: {error}')
      return 1
  print(table(rows))
  print(json.dumps({
      'benchmark': 'train_step', 'cpu': cpu(), 'load_average_before': load, 'allocator': ALLOCATOR,
      'gemm': GEMM, 'steps': arguments.steps, 'dropout': arguments.dropout, 'rows': rows}))
  return 0


if __name__ == '__main__':
  sys.exit(main())
