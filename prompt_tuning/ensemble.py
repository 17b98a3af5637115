"""Ensembles: N prompts on one frozen model, in one forward pass (Lester et al. 2021, section 6 and table 3).

    model = ensemble.load('models/t5', ['runs/seed0', 'runs/seed1', 'runs/seed2'])
    model.predict(['sentence: a gorgeous , witty , seductive movie .'])  # what most of them say
    model.score(['sentence: ...'], ['positive'])  # log of their mean probability

The paper repeats each example N times in a batch with other prompts. The same N x B rows are made here by `jax.vmap`
over the members' trainables, which serves prefixes, adapters and trained heads as well as prompts; the frozen
parameters are there once, and products with them are one matrix product for all rows.
"""

from collections.abc import Sequence
import dataclasses
import os

import jax
import jax.numpy as jnp

from prompt_tuning import decoding, loading, trees
from prompt_tuning.interactive import PromptedModel
from prompt_tuning.methods import finished
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompted import Prompted
from prompt_tuning.types import Array, Batch, Params, Trainable


def vote(tokens: Array, log_probs: Array) -> tuple[Array, Array]:
  """The majority of N predictions; of equally many votes, those of the highest summed probability.

  Args:
    tokens: predicted by each member, [N, B, T].
    log_probs: each member's of its own prediction, [N, B].

  Returns:
    What is chosen [B, T], and the log of its probability [B] summed over those that chose it and divided by N.
  """
  same = jnp.all(tokens[:, None] == tokens[None, :], axis=-1)  # [N, N, B]
  votes = jnp.sum(same, axis=1)
  mass = jax.nn.logsumexp(jnp.where(same, log_probs[None], -jnp.inf), axis=1)  # [N, B]
  best = jnp.argmax(jnp.where(votes == votes.max(axis=0), mass, -jnp.inf), axis=0)
  take = lambda x: jnp.take_along_axis(x, best.reshape(1, -1, *[1] * (x.ndim - 2)), axis=0)[0]
  return take(tokens), take(mass) - jnp.log(len(tokens))


def mean(log_probs: Array) -> Array:
  """Log-probabilities [N, ...] of the members -> log of their mean probability [...]."""
  return jax.nn.logsumexp(log_probs, axis=0) - jnp.log(len(log_probs))


@dataclasses.dataclass(frozen=True)
class Ensemble(Prompted):
  """A `Prompted` whose trainables are those of N members, with leaves [N, ...]: see `stack`."""

  def logits(self, trainable: Trainable, frozen: Params, batch: Batch, dropout_key=None, sites=None) -> Array:
    """Log of the members' mean probability of each token or class, [B, T, V]."""
    each = lambda t: jax.nn.log_softmax(Prompted.logits(self, t, frozen, batch, dropout_key, sites))
    return mean(jax.vmap(each)(trainable))

  def score(self, trainable: Trainable, frozen: Params, batch: Batch) -> Array:
    """Log of the members' mean probability of each row's targets, [B]."""
    return mean(jax.vmap(lambda t: self._member.score(t, frozen, batch))(trainable))

  def generate(
      self, trainable: Trainable, frozen: Params, batch: Batch, length: int,
      decoder: decoding.Decoder | None = None, keys: jax.Array | None = None) -> decoding.Decoded:
    """What most members predict, see `vote`: one sequence an example. Texts are told apart by their tokens."""
    decoded = jax.vmap(lambda t: self._member.generate(t, frozen, batch, length, decoder, keys))(trainable)
    tokens, log_probs = vote(decoded.tokens[:, :, 0], decoded.log_probs[:, :, 0])
    return decoding.Decoded(tokens[:, None], log_probs[:, None], log_probs[:, None])

  @property
  def _member(self) -> Prompted:
    return Prompted(self.backbone, self.method, self.readout, self.constraints)


def stack(trainables: Sequence[Trainable]) -> Trainable:
  """The members' trainables as one tree with leaves [N, ...].

  Raises:
    ValueError: there are none, or they differ in names or shapes.
  """
  if not trainables:
    raise ValueError('An ensemble of nothing; expected the trainables of at least one member.')
  for i, other in enumerate(trainables):
    if lines := trees.diff(trainables[0], other):
      raise ValueError(f'Member {i} of the ensemble differs from member 0 (- member 0, + member {i}); expected one '
                       'method of one size:\n  ' + trees.shorten(lines))
  return jax.tree.map(lambda *x: jnp.stack(x), *trainables)


def load(
    base: str, members: Sequence[str | os.PathLike], *, backbone: loading.Backbone | None = None,
    partitioner: Partitioner | None = None, batch_size: int = 32) -> PromptedModel:
  """Loads a base checkpoint and what was trained N times on it, to talk to as to one; see `read`."""
  loaded, trainable = read(base, members, backbone, partitioner)
  loaded.partitioner.check_batch(batch_size, 'batch_size')
  return PromptedModel(loaded, trainable, batch_size)


def read(
    base: str, members: Sequence[str | os.PathLike], backbone: loading.Backbone | None = None,
    partitioner: Partitioner | None = None) -> tuple[loading.Loaded, Trainable]:
  """The loaded ensemble and its trainables, for `train.evaluate.Evaluator` (table 3) and all that takes a `Loaded`.

  Args:
    base: a base checkpoint, see `loading.load`.
    members: what `finished.load` reads: run folders, files.

  Raises:
    FileNotFoundError, ValueError: a path that is wrong, what does not fit the base, or members of different kinds.
  """
  if not members:
    raise ValueError('An ensemble of nothing; expected at least one run folder or file.')
  backbone = backbone or loading.Backbone()
  backbone = dataclasses.replace(backbone, readout=finished.readout(members[0], backbone.readout))
  loaded = loading.load(base, finished.load(members[0]), backbone, partitioner)
  kind = lambda model: (model.method.settings(), model.readout.settings())
  trainables = []
  for path in members:
    bound = [x.bind(loaded.config, loaded.known_tokenizer)
             for x in (finished.load(path), finished.readout(path, backbone.readout))]
    member = dataclasses.replace(loaded, model=Prompted(loaded.model.backbone, *bound, loaded.model.constraints))
    if kind(member.model) != kind(loaded.model):
      raise ValueError(f'{path} is used with {kind(member.model)}, but {members[0]} with {kind(loaded.model)}; an '
                       'ensemble has one template and one readout.')
    trainables.append(member.new_trainable(0))
  model = Ensemble(loaded.model.backbone, loaded.model.method, loaded.model.readout, loaded.model.constraints)
  return dataclasses.replace(loaded, model=model), loaded.partitioner.replicate(stack(trainables))
