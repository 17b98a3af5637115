"""Measures training steps and decoding of every model size on one accelerator, with random weights.

Needs jax, flax, optax and safetensors, and neither TensorFlow nor seqio, a network, or this package installed: copy the
repository to the machine and run

  python scripts/bench/gpu.py --output=gpu.json

Rows are prompt tuning of T5 (S text tokens behind P virtual ones, T target tokens), prefix-tuning of GPT-2, and greedy
decoding of B x T tokens; activations are bfloat16. Each row and kind of attention runs in a process of its own, so that
its peak memory is its own; one that does not fit says so, and the next begins. FLOPs are those of products with
weights, 4 a parameter and token of a step (2 forward, 2 for the gradient of activations), 2 of decoding; what remat
computes again is not counted. MFU is their share of the peak of bfloat16 products of the device (dense, from its data
sheet; blank for a device that is not in PEAKS), GEMM share that of what a large product reaches in the same process.
The last line of stdout is JSON with every figure.
"""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from train_step import analytic_flops  # noqa: E402
from workers import names, tell, timed  # noqa: E402

PEAKS = {  # in jax's name of the device -> dense bfloat16 FLOP/s of its data sheet; the first that fits counts
    'H100 PCIe': 756e12, 'H100': 989e12, 'H200': 989e12, 'A100': 312e12, 'L40S': 362e12, 'L4': 121e12}
GEMM_SIZE = {'gpu': 8192, 'cpu': 512}
SECONDS = 1800  # that a row may take, compilation included


@dataclasses.dataclass(frozen=True)
class Row:
  """What is measured; the dimension letters are those of `prompt_tuning/types.py`."""

  kind: str  # 'prompt', 'prefix' or 'decode'
  model: str
  B: int
  S: int
  P: int
  T: int
  param_dtype: str = 'bfloat16'
  remat: str = 'none'

  @property
  def encoder_length(self) -> int:
    return self.P + self.S


ROWS = {
    'base': Row('prompt', 't5_1_1_base', B=32, S=512, P=100, T=16),
    'large': Row('prompt', 't5_1_1_large', B=32, S=512, P=100, T=16, remat='full'),
    'xl': Row('prompt', 't5_1_1_xl', B=32, S=512, P=100, T=16, remat='full'),
    'xxl': Row('prompt', 't5_1_1_xxl', B=32, S=512, P=100, T=16, remat='full'),
    'xxl_int8': Row('prompt', 't5_1_1_xxl', B=32, S=512, P=100, T=16, remat='full', param_dtype='int8'),
    'gpt2_prefix': Row('prefix', 'gpt2_large', B=32, S=100, P=10, T=100),
    'gpt2_decode': Row('decode', 'gpt2_large', B=32, S=100, P=10, T=100),
    'gpt2_decode_int8': Row('decode', 'gpt2_large', B=32, S=100, P=10, T=100, param_dtype='int8'),
    'tiny_prompt': Row('prompt', 't5_1_1_tiny', B=2, S=16, P=4, T=4),
    'tiny_int8': Row('prompt', 't5_1_1_tiny', B=2, S=16, P=4, T=4, param_dtype='int8', remat='full'),
    'tiny_prefix': Row('prefix', 'gpt2_tiny', B=2, S=8, P=2, T=8),
    'tiny_decode': Row('decode', 'gpt2_tiny', B=2, S=8, P=2, T=8),
}
GROUPS = {'tiny': [name for name in ROWS if name.startswith('tiny')],  # to try the script out
          'all': [name for name in ROWS if not name.startswith('tiny')]}


def flops(config, row: Row) -> int:
  """Of products with weights, see the top; of a `BackboneConfig`."""
  if row.kind == 'prompt':
    return analytic_flops(config, row)
  layer = 4 * config.d_model * config.num_heads * config.head_dim + 2 * config.d_model * config.d_ff
  tokens = config.decoder_layers * layer * (row.S + row.T) + config.d_model * config.vocab_size * row.T
  return (2 if row.kind == 'decode' else 4) * row.B * tokens


# --- A row, in a process of its own.


def random_params(abstract):
  """Random parameters in the types of a tree of shapes, made a layer at a time: little is held beside the result."""
  import jax
  import jax.numpy as jnp

  from prompt_tuning import quantized, trees

  def random(key, path, shape, dtype):
    if dtype == jnp.int8:
      return jax.random.randint(key, shape, -127, 128, jnp.int8)
    if path.endswith(quantized.SCALE):
      return jnp.full(shape, 1e-3, dtype)  # about as wide as the others are
    return jax.random.normal(key, shape, dtype) * (shape[-2] ** -0.5 if len(shape) > 1 else 1.0)

  def leaf(key, path, x):
    if '/layers/' not in path:
      return random(key, path, x.shape, x.dtype)
    keys = jax.random.split(key, x.shape[0])
    return jax.lax.map(lambda key: random(key, path, x.shape[1:], x.dtype), keys)

  return trees.unflatten({
      path: jax.jit(lambda key, path=path, x=x: leaf(key, path, x).astype(x.dtype))(jax.random.key(i))
      for i, (path, x) in enumerate(trees.flatten(abstract).items())})


def build(row: Row, attention: str) -> tuple[Callable[[], Any], dict[str, Any]]:
  """A function that does a step, or decodes a batch, and waits for it; and what is known once it is compiled."""
  from flax import linen as nn
  import jax
  import jax.numpy as jnp
  import numpy as np

  from prompt_tuning import decoding, quantized, trees
  from prompt_tuning.backbones import config as config_lib
  from prompt_tuning.backbones import gpt2, t5
  from prompt_tuning.methods.base import Base
  from prompt_tuning.methods.prefix import Prefix
  from prompt_tuning.methods.prompt import Prompt
  from prompt_tuning.prompted import Prompted
  from prompt_tuning.train import losses, optim
  from prompt_tuning.train import step as step_lib

  config = config_lib.from_size(row.model)
  family = {'t5': t5.T5, 'gpt2': gpt2.GPT2}[config.family]
  backbone = family(config, dtype=jnp.bfloat16, remat=row.remat, attention=attention)
  model = Prompted(backbone, Prompt(length=row.P, initializer=None) if config.family == 't5' else Prefix(length=row.P))
  boxed = model.abstract_frozen()
  if row.param_dtype == 'int8':
    abstract = nn.meta.unbox(quantized.abstract(boxed))
  else:
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, row.param_dtype), nn.meta.unbox(boxed))
  frozen = random_params(abstract)
  trainable = model.init(jax.random.key(0), Base(config, lambda ids: None, lambda text: []))
  rng = np.random.default_rng(0)
  draw = lambda length: rng.integers(2, config.vocab_size, (row.B, length), np.int32)
  virtual = np.broadcast_to(config.vocab_size + np.arange(row.P, dtype=np.int32), (row.B, row.P))
  source, targets = draw(row.S), draw(row.T)
  batch = jax.device_put({
      'encoder_input_tokens': np.concatenate([virtual, source], 1) if row.kind == 'prompt' else source,
      'decoder_input_tokens': np.pad(targets, [(0, 0), (1, 0)], constant_values=config.start_id)[:, :-1],
      'decoder_target_tokens': targets,
      'decoder_loss_weights': np.ones(targets.shape, np.float32)})
  known = {'frozen_parameters': trees.size(abstract), 'frozen_bytes': trees.nbytes(abstract),
           'flops': flops(config, row)}

  if row.kind == 'decode':
    decoder = decoding.Greedy(min_length=row.T)
    program = jax.jit(lambda trainable, frozen, batch: model.generate(trainable, frozen, batch, row.T, decoder).tokens)
    arguments = (trainable, frozen, batch)
  else:
    optimizer = optim.adamw()(optim.constant(0.01))
    program = step_lib.make_train_step(model, optimizer, losses.compute, dropout_seed=0)
    arguments = (step_lib.init_state(trainable, optimizer), frozen, batch)
  known['lower_seconds'], lowered = timed(lambda: program.lower(*arguments))
  known['compile_seconds'], compiled = timed(lowered.compile)
  memory = compiled.memory_analysis()
  known['planned_bytes'] = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
  if row.kind == 'decode':
    return lambda: jax.block_until_ready(compiled(*arguments)), known
  state = arguments[0]

  def step():
    nonlocal state
    state, metrics = compiled(state, frozen, batch)
    if not math.isfinite(float(metrics['loss'])):
      raise FloatingPointError('The loss is not finite; the times mean nothing.')

  return step, known


def gemm_flops(platform: str) -> float:
  """FLOP/s of a large bfloat16 product, the best of ten."""
  import jax
  import jax.numpy as jnp
  n = GEMM_SIZE.get(platform, GEMM_SIZE['gpu'])
  x = jnp.ones((n, n), jnp.bfloat16)
  dot = jax.jit(jnp.dot)
  dot(x, x).block_until_ready()
  return 2 * n**3 / min(timed(lambda: dot(x, x).block_until_ready())[0] for _ in range(10))


def measure(name: str, attention: str, steps: int) -> dict[str, Any]:
  """All figures of a row, in this process."""
  import jax
  jax.config.update('jax_enable_compilation_cache', False)
  row, device = ROWS[name], jax.devices()[0]
  began = time.perf_counter()
  step, figures = build(row, attention)
  for _ in range(2):
    step()
  seconds = [timed(step)[0] for _ in range(steps)]
  median = statistics.median(seconds)
  stats = device.memory_stats() or {}
  gemm = gemm_flops(device.platform)
  peak = next((peak for kind, peak in PEAKS.items() if kind in device.device_kind), None)
  figures |= {
      'row': name, 'attention': attention, **dataclasses.asdict(row), 'device': device.device_kind,
      'platform': device.platform, 'jax': jax.__version__, 'step_seconds': seconds, 'step_seconds_median': median,
      'flops_per_second': figures['flops'] / median, 'gemm_flops_per_second': gemm,
      'gemm_share': figures['flops'] / median / gemm, 'mfu': peak and figures['flops'] / median / peak,
      'peak_bytes': stats.get('peak_bytes_in_use'), 'total_seconds': time.perf_counter() - began}
  if row.kind == 'decode':
    figures['tokens_per_second'] = row.B * row.T / median
  return figures


# --- The parent.


def in_own_process(name: str, attention: str, steps: int) -> dict[str, Any]:
  """The figures of a row, or {'error': what became of it}."""
  with tempfile.TemporaryDirectory() as folder:
    output = pathlib.Path(folder) / 'figures.json'
    command = [sys.executable, __file__, '--worker', f'--rows={name}', f'--attention={attention}', f'--steps={steps}',
               f'--output={output}']
    environment = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', **os.environ}  # or all memory would be the peak
    try:
      done = subprocess.run(
          command, env=environment, timeout=SECONDS, text=True, stdout=sys.stderr, stderr=subprocess.PIPE, check=False)
    except subprocess.TimeoutExpired:
      return {'row': name, 'attention': attention, 'error': f'not done in {SECONDS} s'}
    if done.returncode == 0:
      return json.loads(output.read_text())
    lines = done.stderr.strip().splitlines() or ['']
    return {'row': name, 'attention': attention, 'error': f'exit code {done.returncode}: {lines[-1][:300]}'}


COLUMNS = {  # title -> (figure, digits, unit)
    'step ms': ('step_seconds_median', 1, 1e-3), 'tokens/s': ('tokens_per_second', 0, 1), 'MFU': ('mfu', 3, 1),
    'GEMM share': ('gemm_share', 3, 1), 'TFLOP/s': ('flops_per_second', 2, 1e12), 'peak GB': ('peak_bytes', 2, 1e9),
    'planned GB': ('planned_bytes', 2, 1e9), 'compile s': ('compile_seconds', 1, 1)}


def table(results: Sequence[dict[str, Any]]) -> str:
  """The figures as aligned text, a line a row; blank where there is no such figure."""
  lines = [('row', 'attention', *COLUMNS)]
  for figures in results:
    cells = [f'{figures[key] / unit:.{digits}f}' if figures.get(key) is not None else ''
             for key, digits, unit in COLUMNS.values()]
    lines.append((figures['row'], figures['attention'], *([figures['error']] if 'error' in figures else cells)))
  widths = [max(len(line[i]) for line in lines if len(line) == len(lines[0])) for i in range(len(lines[0]))]
  justify = lambda i, cell: cell.ljust(widths[i]) if i < 2 else cell.rjust(widths[i])
  return '\n'.join('  '.join(justify(i, cell) for i, cell in enumerate(line)).rstrip() for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
      epilog='rows:\n' + '\n'.join(f'  {name:<17} {row}' for name, row in ROWS.items()))
  parser.add_argument('--rows', type=names([*ROWS, *GROUPS]), default=['all'], metavar='ROW,...',
                      help='rows, or a group of them: all, tiny (default: all)')
  parser.add_argument('--attention', type=names(['einsum', 'xla', 'cudnn']), default=['einsum', 'cudnn'],
                      metavar='KIND,...', help='of steps; decoding is by einsums (default: einsum,cudnn)')
  parser.add_argument('--steps', type=int, default=10, metavar='N', help='timed steps, after two (default: 10)')
  parser.add_argument('--output', metavar='FILE', help='write the JSON there too')
  parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
  arguments = parser.parse_args(argv)
  chosen = [row for name in arguments.rows for row in GROUPS.get(name, [name])]
  if arguments.steps < 1:
    parser.error(f'--steps={arguments.steps}: at least one step is needed')
  if arguments.worker:
    (attention,) = arguments.attention
    pathlib.Path(arguments.output).write_text(json.dumps(measure(chosen[0], attention, arguments.steps)))
    return 0
  results = []
  for name in chosen:
    for attention in arguments.attention if ROWS[name].kind != 'decode' else ['einsum']:
      tell(f'{name}, {attention}: {ROWS[name]}')
      results.append(in_own_process(name, attention, arguments.steps))
      tell(table(results[-1:]))
  print(table(results))
  report = json.dumps({'benchmark': 'gpu', 'steps': arguments.steps, 'rows': results})
  print(report)
  if arguments.output:
    temporary = pathlib.Path(f'{arguments.output}.tmp')
    temporary.write_text(report + '\n')
    temporary.replace(arguments.output)
  return 0 if any('error' not in figures for figures in results) else 1


if __name__ == '__main__':
  sys.exit(main())
