"""Settings with which a job that is too large would fit: a short ladder, climbed from what costs least.

What a rung saves is estimated first; what seems to fit is then compiled, so that what is suggested does fit.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import itertools

from prompt_tuning import loading
from prompt_tuning.plan.estimate import Estimate

REMAT = {'none': 1.0, 'dots': 0.5, 'full': 0.2}  # share of the temporaries that is left, about
BYTES = {'float32': 4, 'bfloat16': 2, 'int8': 1}
DOUBLINGS = 4


@dataclasses.dataclass(frozen=True)
class Rung:
  """Macros to set, and what is expected to be left of parameters and of temporaries."""

  macros: Mapping[str, object]
  parameters: float = 1.0
  temporaries: float = 1.0

  def __add__(self, other: 'Rung') -> 'Rung':
    return Rung({**self.macros, **other.macros}, self.parameters * other.parameters,
                self.temporaries * other.temporaries)

  def flags(self) -> str:
    return ' '.join(f'--gin.{name}={value}' for name, value in self.macros.items())

  def expected(self, found: Estimate) -> float:
    """Bytes at the peak, given those of the job as it is."""
    rest = sum(found.memory[name] for name in ('trainable', 'optimizer', 'batch') if name in found.memory)
    temporaries = found.peak - found.memory['frozen'] - rest
    return self.parameters * found.memory['frozen'] + rest + self.temporaries * temporaries


def rungs(job: str, macros: Mapping[str, object], rows: int, heads: int, devices: int) -> Iterator[Rung]:
  """What may be tried, cheapest first.

  Args:
    macros: of the configuration; what it does not have is not tried.
    rows: of a batch.
    heads: of the model, which partitions share equally.
  """
  partitions = int(macros.get('NUM_PARTITIONS') or 1)
  data = devices // partitions
  slices = _slices(job, macros, rows, data)
  recomputed = [Rung({'REMAT': name}, temporaries=share / REMAT[str(macros['REMAT'])]) for name, share in REMAT.items()
                if job == 'train' and 'REMAT' in macros and share < REMAT[str(macros['REMAT'])]]
  split = [Rung({'NUM_PARTITIONS': n}, parameters=partitions / n, temporaries=1.2)
           for n in (partitions * 2**i for i in range(1, DOUBLINGS + 1))
           if 'NUM_PARTITIONS' in macros and devices % n == 0 and heads % n == 0]
  if macros.get('PARAMETER_PARTITIONING_DIMS') == 1 and data > 1:
    split.insert(min(1, len(split)), Rung({'PARAMETER_PARTITIONING_DIMS': 2}, parameters=1 / data, temporaries=1.2))
  nothing = Rung({})
  groups = ([nothing, *slices], [nothing, *recomputed], [nothing, *_types(macros)], [nothing, *split])
  ladder = sorted(itertools.product(*map(enumerate, groups)), key=lambda each: sum(
      i * price for (i, _), price in zip(each, (1, 1.5, 2, 2.5), strict=True)))
  for each in ladder[1:]:
    yield sum((rung for _, rung in each), nothing)


def _slices(job: str, macros: Mapping[str, object], rows: int, data: int) -> list[Rung]:
  """Fewer rows at once: of a training in microbatches, else in smaller batches."""
  if job == 'train' and 'MICROBATCHES' in macros:
    now = int(macros['MICROBATCHES'])
    return [Rung({'MICROBATCHES': now * 2**i}, temporaries=2.0**-i) for i in range(1, DOUBLINGS + 1)
            if rows % (now * 2**i * data) == 0]
  name = 'EVAL_BATCH_SIZE' if 'EVAL_BATCH_SIZE' in macros else 'BATCH_SIZE'
  if job == 'train' or name not in macros:
    return []
  return [Rung({name: rows // 2**i}, temporaries=2.0**-i) for i in range(1, DOUBLINGS + 1)
          if rows % 2**i == 0 and rows // 2**i % data == 0]


def _types(macros: Mapping[str, object]) -> list[Rung]:
  """Smaller types than the configured ones."""
  if 'PARAMETER_DTYPE' not in macros or 'ACTIVATION_DTYPE' not in macros:
    return []
  now, activations = str(macros['PARAMETER_DTYPE']), str(macros['ACTIVATION_DTYPE'])
  known = getattr(loading, 'PARAM_DTYPES', loading.DTYPES)
  return [Rung({'PARAMETER_DTYPE': name, 'ACTIVATION_DTYPE': 'bfloat16'}, BYTES[name] / BYTES[now],
               0.6 if activations == 'float32' else 1.0)
          for name in ('bfloat16', 'int8') if name in known and BYTES[name] < BYTES[now]]
