"""The peer of `checkpoint.py`: arrays of the same shapes and AdamW's state of them, saved and read by PyTorch."""

import os
import sys
from typing import Any

from checkpoint import in_turns
from workers import Contender, serve

try:
  import safetensors.torch
  import torch
except ImportError as error:
  sys.exit(f"The peer needs {error.name!r}: run pip install 'prompt_tuning[parity]', or give --peer the interpreter "
           'of an environment that has it.')


def build(settings: dict[str, Any]) -> Contender:
  """What a job of PEFT does with its adapter and its optimizer; see `workers.serve` for what `settings` hold."""
  tensors = {str(i): torch.nn.Parameter(torch.randn(shape)) for i, shape in enumerate(settings['shapes'])}
  optimizer = torch.optim.AdamW(tensors.values(), lr=0.1)
  for x in tensors.values():
    x.grad = torch.ones_like(x)
  optimizer.step()
  adapter, rest = (os.path.join(settings['folder'], name) for name in ('adapter.safetensors', 'optimizer.pt'))

  def save():
    safetensors.torch.save_file({name: x.detach() for name, x in tensors.items()}, adapter)
    torch.save(optimizer.state_dict(), rest)

  def restore():
    with torch.no_grad():
      for name, x in safetensors.torch.load_file(adapter).items():
        tensors[name].copy_(x)
    optimizer.load_state_dict(torch.load(rest, weights_only=True))

  count = sum(x.numel() for x in tensors.values())
  return Contender(in_turns((save, lambda: None, restore)), None, {
      'trained': count, 'bytes': 3 * 4 * count, 'versions': {'torch': torch.__version__}})


if __name__ == '__main__':
  serve(build)
