"""The prompts of many tasks in one table, so that one batch may hold examples of all of them (Lester et al. 2021, 1).

Virtual tokens are tokens: task k has the ids behind those of task k - 1, and an example chooses its prompt by the ids
that stand in it. The model and its functions know nothing of tasks.

    bank = prompts(['runs/sst2', 'runs/rte', 'runs/boolq'])  # run folders, files, or methods
    loaded = loading.load('models/t5', bank)
    trainable = loaded.new_trainable(0)
    row = loaded.model.method.place_for(1)(ids, loaded.config.vocab_size)  # an example of rte

Rows of different tasks padded to one length are then a batch for `loaded.model.generate`, `score` or `logits`. Prefixes
have no ids: `prefix.choose(stack_prefixes(trainables), tasks)` are trainables that give each example its own.
"""

from collections.abc import Callable, Sequence
import os
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import trees
from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.checkpoints import tuned
from prompt_tuning.methods import finished, prefix, reparameterization
from prompt_tuning.methods.base import Base, Method, Patch
from prompt_tuning.methods.prompt import Table, VirtualTokens
from prompt_tuning.types import Array, Trainable


class Bank(Method):
  """Prompts of K tasks, of any lengths and templates; `prompts` is the usual way here.

  Attributes:
    members: the method of each task, a `Prompt` or `PTuning`.
  """

  members: tuple[Table, ...] = ()

  collection = 'prompt'

  @property
  def virtual_tokens(self) -> int:
    return max(member.virtual_tokens for member in self.members)

  def bind(self, config: BackboneConfig, tokenizer: Any) -> 'Bank':
    return self.clone(members=tuple(member.bind(config, tokenizer) for member in self.members))

  def place_for(self, task: int) -> Callable[[np.ndarray, int], np.ndarray]:
    """`place` of an example of that task, its number among the members.

    Raises:
      ValueError: there is no such task.
    """
    if not 0 <= task < len(self.members):
      raise ValueError(f'There is no task {task}; this bank has the tasks 0 to {len(self.members) - 1}.')
    member, first = self.members[task], sum(member.length for member in self.members[:task])
    return lambda tokens, vocab_size: member.place(tokens, vocab_size + first)

  def place(self, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """For an example of the first task."""
    return self.place_for(0)(tokens, vocab_size)

  @nn.compact
  def __call__(self, base: Base | None = None) -> Patch:
    """Returns the patch; with `base` (at init), its variables are made."""
    if base is not None:
      keys = jax.random.split(self.make_rng('prompt'), len(self.members))
      made = [{'prompt': member.begin(key, base)} for member, key in zip(self.members, keys, strict=True)]
      table = stack_prompts(made)['prompt']['embedding']
      self.variable('prompt', 'embedding', lambda: table)
    return Patch(sites={'inputs': VirtualTokens(self.variables['prompt']['embedding'])})

  def export(self, trainable: Trainable) -> dict[str, Array]:
    """The table [K P, D]."""
    return {tuned.PROMPT: trainable['prompt']['embedding']}


def prompts(members: Sequence[str | os.PathLike | Method]) -> Bank:
  """The bank of what was trained before.

  Args:
    members: one a task: what `finished.load` reads, or a method.

  Raises:
    FileNotFoundError, ValueError: a path that is wrong, or what is no prompt.
  """
  if not members:
    raise ValueError('A bank of no prompts; expected at least one file, run folder or method.')
  methods = [member if isinstance(member, Method) else finished.load(member) for member in members]
  for i, (name, method) in enumerate(zip(members, methods, strict=True)):
    if not isinstance(method, Table):
      name = 'A method' if name is method else name
      raise ValueError(f'{name} (task {i}) is a {method.collection}; a bank holds prompts. Of prefixes, use '
                       'prefix.choose(bank.stack_prefixes(trainables), tasks).')
  return Bank(members=tuple(methods))


def stack_prompts(trainables: Sequence[Trainable]) -> Trainable:
  """Trainables of K prompts, finished or not, as those of their `Bank`: {'prompt': {'embedding': [K P, D]}}."""
  tables = [reparameterization.apply(trainable['prompt']) for trainable in trainables]
  return {'prompt': {'embedding': jnp.concatenate(tables)}}


def stack_prefixes(trainables: Sequence[Trainable]) -> Trainable:
  """Trainables of K prefixes, finished or not, with leaves [K, L, P, N, H], for `prefix.choose`.

  Raises:
    ValueError: they differ in length or sites.
  """
  finish = lambda params: dict(zip(('key', 'value'), prefix.generate(params), strict=True))
  done = [{'prefix': trees.unflatten({site: finish(params) for site, params in prefix.by_site(t['prefix']).items()})}
          for t in trainables]
  for i, other in enumerate(done):
    if lines := trees.diff(done[0], other):
      raise ValueError(f'The prefix of task {i} differs from that of task 0 (- of task 0, + of task {i}); prefixes in '
                       'one batch have one length and the same sites:\n  ' + trees.shorten(lines))
  return jax.tree.map(lambda *x: jnp.stack(x), *done)
