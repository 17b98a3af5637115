"""What a run costs before it is run: parameters, floating point operations and device hours.

FLOPs are those of matrix products, twice the number of multiplications: products with parameters, and attention's
(whole rows, as it is computed here; a causal mask spares nothing). Looking up embeddings is free, the LM head counts.
What a method computes of its own is left out (an adapter, a prefix's keys: a few per cent), but for virtual tokens.

A step of training is a forward pass, gradients of activations (as many operations again, twice as many in attention)
and, where the base itself is trained, gradients of its parameters. So a prompt's step is two thirds of full tuning's
(4ND instead of 6ND), although it trains next to nothing.
"""

import copy
import dataclasses
import functools
import os
from typing import Any

from prompt_tuning import gin_utils, params
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.checkpoints import base as base_checkpoints
from prompt_tuning.checkpoints.storage import is_remote
from prompt_tuning.methods.base import Method, plain
from prompt_tuning.methods.full import Full

EXAMPLES = 5000  # of a split whose size is not known without the data
TFLOPS = 197.0  # of one TPU v5e at its peak, in bfloat16
UTILISATION = 0.4  # share of it that is reached
_count = functools.cache(params.count)  # a table has many runs that differ by seed or task alone
_NO_DEVICE = ('params', 'tasks', 'interpret', 'prune')


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of one job; None where it is not known, and then `note` says why.

  Attributes:
    trained, kept, total: parameters, as `params.Count` has them; of a population those of all members.
    flops: of the whole job.
    note: what was assumed.
  """

  trained: int | None = None
  kept: int | None = None
  total: int | None = None
  flops: float | None = None
  note: str = ''


def flops(config: BackboneConfig, *, batch: int, encoder_length: int, decoder_length: int, virtual_tokens: int = 0,
          trains_all: bool = False) -> float:
  """FLOPs of one training step.

  Args:
    encoder_length, decoder_length: tokens of text in a source and in a target, padding included.
    virtual_tokens: that a method adds to the source.
    trains_all: the base itself is trained.
  """
  products, attention = _forward(config, encoder_length + virtual_tokens, decoder_length)
  return batch * ((3 if trains_all else 2) * products + 3 * attention)


def forward_flops(config: BackboneConfig, *, batch: int, encoder_length: int, decoder_length: int,
                  virtual_tokens: int = 0, width: int = 1) -> float:
  """FLOPs of one forward pass, or, which is the same, of decoding with a cache.

  Args:
    width: of the beam: so many targets are decoded for each source.
  """
  source = encoder_length + virtual_tokens
  one = sum(_forward(config, source, decoder_length))
  return batch * (one + (width - 1) * (one - sum(_forward(config, source, 0))))


def device_hours(flops: float, tflops: float = TFLOPS, utilisation: float = UTILISATION) -> float:
  """Hours on one device of `tflops` TFLOP/s at its peak, of which a share is reached."""
  return flops / (tflops * 1e12 * utilisation) / 3600


def _forward(config: BackboneConfig, source: int, target: int) -> tuple[float, float]:
  """FLOPs of one example's forward pass: in products with parameters, and in attention."""
  c, joined = config, config.num_heads * config.head_dim
  mlp = lambda d_ff: (len(c.mlp_activations) + 1) * c.d_model * d_ff
  projections = 4 * c.d_model * joined
  products = attention = 0
  for layers, segment in c.segments('encoder').values() if c.encoder_layers else ():
    products += layers * source * (projections + mlp(segment.d_ff))
    attention += layers * 2 * joined * source**2
  if c.decoder_layers:
    own = target + (source if c.decoder_only else 0)
    products += c.decoder_layers * own * (projections + mlp(c.d_ff))
    attention += c.decoder_layers * 2 * joined * own**2
  if not c.decoder_only and not c.encoder_only:  # cross-attention: keys and values of the source
    products += c.decoder_layers * projections // 2 * (source + target)
    attention += c.decoder_layers * 2 * joined * source * target
  if c.mlm_head:
    products += target * c.d_model**2
  if c.mlm_head or c.decoder_layers:
    products += target * c.d_model * c.vocab_size
  return 2.0 * products, 2.0 * attention


# --- of the configuration that gin has read ---


def estimate(command: str) -> Cost:
  """The cost of the job that gin is configured for.

  The sizes of the data are not known without them: a split that is only read (evaluated, probed) is taken for
  `EXAMPLES` examples, and `note` says so.

  Args:
    command: of `prompt-tuning`.
  """
  if command in _NO_DEVICE:
    return Cost(flops=0.0)
  config, note = _config()
  if config is None:
    return Cost(note=note)
  if command in ('train', 'population'):
    return _training(config, command)
  return _reading(config, command)


def _training(config: BackboneConfig, command: str) -> Cost:
  method, readout = _value('METHOD'), _value('READOUT')
  members = [method]
  if command == 'population':
    members = [method.clone(length=member['length']) if 'length' in member else method for member in _value('MEMBERS')]
  counts = [_count(config, plain(member), readout) for member in members]
  lengths, eval_lengths = _value('TASK_FEATURE_LENGTHS'), _value('EVAL_FEATURE_LENGTHS')
  steps, evaluations = _value('TRAIN_STEPS'), _value('TRAIN_STEPS') // max(_value('EVAL_PERIOD', 0) or 1, 1)
  total = 0.0
  for member in members:
    added = _added(member) + _added(readout)
    total += steps * flops(
        config, batch=_value('BATCH_SIZE'), encoder_length=lengths['inputs'], virtual_tokens=added,
        decoder_length=readout.length or lengths['targets'], trains_all=_trains_all(member))
    total += evaluations * forward_flops(
        config, batch=_examples(), encoder_length=eval_lengths['inputs'], virtual_tokens=added,
        decoder_length=readout.length or eval_lengths['targets'], width=_width())
  return Cost(*(sum(getattr(count, name) for count in counts) for name in ('trained', 'kept')), counts[0].total, total,
              f'evaluations {_assumed()}' if evaluations else '')


def _reading(config: BackboneConfig, command: str) -> Cost:
  """Of jobs that read what a training left, which need not be there yet: its virtual tokens are not known."""
  lengths = _value('TASK_FEATURE_LENGTHS', {'inputs': 512, 'targets': _value('MAX_DECODE_LENGTH', 64)})
  passes = 1
  if command == 'probe':  # perturbed: with the found and with random neurons
    passes += 2 * len(_value('PERCENTS', ())) * _value('NOISE_SEEDS', 1)
  elif command == 'ensemble':
    passes = len(_value('CHECKPOINT_PATHS'))
  total = passes * forward_flops(
      config, batch=_examples(), encoder_length=lengths['inputs'], decoder_length=1 if config.encoder_only
      else lengths['targets'], width=_width())
  times = f', {passes} times' if passes > 1 else ''
  return Cost(flops=total, note=f'{command} {_assumed()}{times}; without virtual tokens')


def _config() -> tuple[BackboneConfig | None, str]:
  """Dimensions of the base, or why they are not known."""
  size, path = _value('MODEL_SIZE', None), _value('INITIAL_CHECKPOINT_PATH', None)
  if size is not None:
    return config_lib.from_size(size), ''
  if path is None or is_remote(path) or not os.path.exists(path):
    return None, f'size unknown: MODEL_SIZE is not set, and {path} is not on this disk'
  config = base_checkpoints.open_base(path).config
  return config, '' if config else f'size unknown: {path} does not look like a model that is known here'


def _value(name: str, *default: Any) -> Any:
  """A macro's value with its references made into what they stand for; `default` if there is no such macro."""
  try:
    found = gin_utils.macro(name)
  except ValueError:  # gin's: there is none
    if default:
      return default[0]
    raise
  return copy.deepcopy(found)  # a copy of gin's reference @f() is what f returns


def _examples() -> int:
  return _value('EVAL_LIMIT', None) or EXAMPLES


def _assumed() -> str:
  return f'of {_examples():,} examples' + ('' if _value('EVAL_LIMIT', None) else ' (assumed)')


def _width() -> int:
  return getattr(_value('DECODER', None), 'width', 1)


def _added(method: Method) -> int:
  """Virtual tokens; of a template whose words need a tokenizer, none."""
  try:
    return method.virtual_tokens
  except ValueError:
    return 0


def _trains_all(method: Method) -> bool:
  return any(isinstance(one, Full) for one in getattr(method, 'methods', (method,)))
