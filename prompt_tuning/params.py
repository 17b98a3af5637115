"""`prompt-tuning params`: what a method trains, keeps and adds to a model, counted exactly and without weights."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from flax import linen as nn
import jax

from prompt_tuning import loading, trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.methods.base import Method, plain
from prompt_tuning.methods.readouts import Readout
from prompt_tuning.methods.together import Together
from prompt_tuning.prompted import Prompted


@dataclasses.dataclass(frozen=True)
class Count:
  """Numbers of parameters.

  Attributes:
    base: of the model.
    trained: that the optimizer sees (of a reparameterised prefix its MLP too).
    kept: that are saved when training is done.
    total: of the model with what is kept; what takes the place of the model's own is not counted twice.
  """

  base: int
  trained: int
  kept: int
  total: int

  @property
  def share(self) -> float:
    """Of what is kept in the total, as the papers count it."""
    return self.kept / self.total


def count(config: BackboneConfig, method: Method, readout: Readout | None = None) -> Count:
  """Counts for a model and a method, whatever their sizes: nothing is allocated."""
  readout = readout or loading.Backbone().readout
  model = Prompted(loading.Backbone().module(config), plain(method), readout)
  frozen, trainable = nn.meta.unbox(model.abstract_frozen()), model.abstract_trainable()
  kept = trees.size(jax.eval_shape(model.export, trainable))
  replaced = trees.size(jax.eval_shape(lambda trainable: model.method.apply(trainable).overlay, trainable))
  base = trees.size(frozen)
  return Count(base, trees.size(trainable), kept, base + kept - replaced)


def params(
    *, method: Method | Sequence[Method], sizes: Sequence[str], readout: Readout | None = None,
    paper: Mapping[str, str] | None = None, relative_to: str | None = None) -> list[dict[str, Any]]:
  """The counting job: prints a table of all sizes with all methods, and returns its rows.

  Args:
    method: METHOD, one or several.
    sizes: MODEL_SIZES, names of the size table.
    relative_to: a size, of which each base is shown as a share (a pruned model).
    paper: figures to show beside ours, by 'size' or 'size method', such as 't5_1_1_small Prompt(length=1)'.

  Raises:
    ValueError: no such size, or a method that the model cannot have.
  """
  if not sizes or None in sizes:
    raise ValueError(f'MODEL_SIZES={tuple(sizes)}; expected some of {", ".join(config_lib.SIZES)}.')
  rows, whole = [], relative_to and count(config_lib.from_size(relative_to), Together()).base
  for size in sizes:
    for one in [method] if isinstance(method, Method) else method:
      found, name = count(config_lib.from_size(size), one, readout), describe(one)
      rows.append({'size': size, 'method': name, **dataclasses.asdict(found), 'share': found.share,
                   **({'of': f'{found.base / whole:.2%}'} if whole else {}),
                   'paper': (paper or {}).get(f'{size} {name}', (paper or {}).get(size, ''))})
  heads = {'size': 'size', 'method': 'method', 'base': 'base', 'trained': 'trained', 'kept': 'kept', 'total': 'total',
           'share': 'kept / total', **({'of': f'base / {relative_to}'} if whole else {}), 'paper': 'paper'}
  table = [heads, *({**row, **{name: f'{row[name]:,}' for name in ('base', 'trained', 'kept', 'total')},
                     'share': f'{row["share"]:.4%}'} for row in rows)]
  widths = {name: max(len(str(row[name])) for row in table) for name in heads}
  for row in table:
    cells = [f'{row[name]:<{widths[name]}}' if name in ('size', 'method', 'paper') else f'{row[name]:>{widths[name]}}'
             for name in heads]
    print('  '.join(cells).rstrip())
  return rows


def describe(method: Method) -> str:
  """A method in few words: `Prompt(length=20)`, its settings that are plain values and no defaults."""
  if hasattr(method, 'methods'):
    return ' + '.join(map(describe, method.methods))
  given = []
  for field in dataclasses.fields(method):
    value = getattr(method, field.name)
    simple = isinstance(value, int | float | str | tuple)
    if field.name not in ('parent', 'name') and simple and (value != field.default or field.name == 'length'):
      given.append(f'{field.name}={value}')
    elif field.name == 'reparameterization' and value is not None:
      given.append(type(value).__name__)
  return f'{type(method).__name__}({", ".join(given)})'
