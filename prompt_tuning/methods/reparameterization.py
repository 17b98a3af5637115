"""Small networks that make the rows of a prompt or prefix while they are trained.

`MLP` (Li & Liang 2021, 4.3): row i is MLP(embedding[i]); embedding and MLP are trained, the rows are kept. As in the
released code the embedding is D wide (in the paper as wide as the hidden layer, see `input_width`), everything begins
as PyTorch's `Embedding` and `Linear` do, N(0, 1) and U[-1 / sqrt(in), 1 / sqrt(in)), and two hidden layers are its
"deep" option.

`LSTM` (P-tuning, Liu et al. 2021, section 3.2): a bidirectional LSTM reads the embeddings before the MLP does, so that
rows depend on their neighbours. A direction of a layer has one bias where PyTorch adds up two, which is the same
function.
"""

from collections.abc import Iterator
import dataclasses

import jax
import jax.numpy as jnp
import optax

from prompt_tuning.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class MLP:
  """Embedding [P, input_width] -> (Linear(hidden) -> tanh) x layers -> Linear.

  Attributes:
    hidden: width of the hidden layers; the paper's is 512 for tables, 800 for summarisation.
    input_width: of the embedding; None: D of the base.
    layers: how many are hidden.
  """

  hidden: int = 512
  input_width: int | None = None
  layers: int = 1

  def __post_init__(self):
    for name in ('hidden', 'input_width', 'layers'):
      if (value := getattr(self, name)) is not None and value < 1:
        raise ValueError(f'MLP.{name}={value}; expected at least 1.')

  def init(self, key: jax.Array, length: int, d_model: int, row: tuple[int, ...]) -> PyTree:
    """New parameters of an MLP that makes P = `length` rows of shape `row`.

    Returns:
      {'embedding': [P, input_width], 'layer_0': {'kernel': [input_width, hidden], 'bias': [hidden]}, ...}; the last
      layer's kernel is [hidden, *row].
    """
    keys = iter(jax.random.split(key, 2 * self.layers + 3))
    widths = [self.input_width or d_model, *[self.hidden] * self.layers]
    embedding = jax.random.normal(next(keys), (length, widths[0]))
    return {'embedding': embedding, **_linear(keys, widths, row)}


@dataclasses.dataclass(frozen=True)
class LSTM:
  """Embedding [P, D] -> bidirectional LSTM -> Linear(D) -> ReLU -> Linear.

  Attributes:
    hidden: units a direction; None: D / 2 (the LAMA experiments; D in the few-shot SuperGLUE ones).
    layers: of the LSTM.
  """

  hidden: int | None = None
  layers: int = 2

  def __post_init__(self):
    for name in ('hidden', 'layers'):
      if (value := getattr(self, name)) is not None and value < 1:
        raise ValueError(f'LSTM.{name}={value}; expected at least 1.')

  def init(self, key: jax.Array, length: int, d_model: int, row: tuple[int, ...]) -> PyTree:
    """New parameters that make P = `length` rows of shape `row`.

    Returns:
      {'embedding': [P, D], 'lstm': {'0': {'forward': {'kernel': [D + hidden, 4 hidden], 'bias': [4 hidden]},
      'backward': ...}, '1': ...}, 'layer_0': ..., 'layer_1': ...}, the last two as those of an MLP; gates in PyTorch's
      order: input, forget, cell, output.
    """
    units = self.hidden or max(1, d_model // 2)
    keys = iter(jax.random.split(key, 5 + 4 * self.layers))
    embedding, lstm = jax.random.normal(next(keys), (length, d_model)), {}
    uniform = lambda shape: jax.random.uniform(next(keys), shape, jnp.float32, -units**-0.5, units**-0.5)
    for i in range(self.layers):
      inputs = 2 * units if i else d_model
      lstm[str(i)] = {direction: {'kernel': uniform((inputs + units, 4 * units)), 'bias': uniform((4 * units,))}
                      for direction in ('forward', 'backward')}
    return {'embedding': embedding, 'lstm': lstm, **_linear(keys, [2 * units, d_model], row)}


def _linear(keys: Iterator[jax.Array], widths: list[int], row: tuple[int, ...]) -> PyTree:
  """Layers from each width to the next, and from the last to `row`."""
  params = {}
  for i, (inputs, units) in enumerate(zip(widths, [*[(w,) for w in widths[1:]], row], strict=True)):
    uniform = lambda shape, bound=inputs**-0.5: jax.random.uniform(next(keys), shape, jnp.float32, -bound, bound)
    params[f'layer_{i}'] = {'kernel': uniform((inputs, *units)), 'bias': uniform(units)}
  return params


def _read(cell: PyTree, x: Array) -> Array:
  """One direction of one layer of an LSTM: [P, in] -> [P, hidden]."""
  size = len(cell['bias']) // 4
  from_input, from_state = jnp.split(cell['kernel'], [len(cell['kernel']) - size])

  def step(carry, gates):
    h, c = carry
    i, f, g, o = jnp.split(gates + h @ from_state, 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h

  zeros = jnp.zeros(size, x.dtype)
  return jax.lax.scan(step, (zeros, zeros), x @ from_input + cell['bias'])[1]


def apply(params: PyTree) -> Array:
  """The rows [P, ...] that parameters of an MLP or LSTM stand for; an embedding without layers stands for itself."""
  x, lstm = params['embedding'], params.get('lstm', {})
  for _, layer in sorted(lstm.items()):
    x = jnp.concatenate([_read(layer['forward'], x), _read(layer['backward'], x[::-1])[::-1]], axis=-1)
  activation = jax.nn.relu if lstm else jnp.tanh
  last = sum(name.startswith('layer_') for name in params) - 1
  for i in range(last + 1):
    kernel, bias = params[f'layer_{i}']['kernel'], params[f'layer_{i}']['bias']
    flat = kernel.reshape(len(kernel), -1)  # XLA on a CPU takes the gradient of a matrix in half the time
    x = (x @ flat).reshape(-1, *bias.shape) + bias
    x = activation(x) if i < last else x
  return x


def fit(params: PyTree, rows: Array, steps: int = 500, learning_rate: float = 1e-4) -> tuple[PyTree, Array]:
  """Trains an MLP or LSTM until it makes `rows` [P, ...]: the paper's pre-fit to the activations of real words.

  Adam on the mean squared error, of the weights only: the embedding stays what it is.

  Returns:
    The parameters, and the mean squared error that is left (to be compared with the variance of the rows).
  """
  optimizer = optax.adam(learning_rate)

  @jax.jit
  def run(embedding, weights, rows):
    loss = lambda weights: jnp.mean(jnp.square(apply({'embedding': embedding, **weights}) - rows))

    def step(_, carry):
      weights, state = carry
      updates, state = optimizer.update(jax.grad(loss)(weights), state)
      return optax.apply_updates(weights, updates), state

    weights, _ = jax.lax.fori_loop(0, steps, step, (weights, optimizer.init(weights)))
    return weights, loss(weights)

  weights, error = run(params['embedding'], {k: v for k, v in params.items() if k != 'embedding'}, rows)
  return {'embedding': params['embedding'], **weights}, error
