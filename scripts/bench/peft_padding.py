"""The peer of `padding.py`: a worker that trains with Hugging Face PEFT, each batch padded to its longest example."""

import functools
import os
import sys
from typing import Any

import numpy as np
from padding import LEARNING_RATE, Row, contender, examples
from peft_step import model, peft, torch, transformers
from workers import Contender, serve


def padded(ids: list[np.ndarray], filling: int) -> torch.Tensor:
  """Ids [n_i] -> [B, max n_i]."""
  return torch.nn.utils.rnn.pad_sequence(
      [torch.from_numpy(x).long() for x in ids], batch_first=True, padding_value=filling)


def build(settings: dict[str, Any], dtype: torch.dtype) -> Contender:
  """The steps in `dtype`, as `peft_step.build` makes one."""
  torch.manual_seed(0)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.set_float32_matmul_precision('medium')
  row, config = Row(**settings['row']), settings['config']
  net = model(config, row.P, settings['dropout'], dtype).train()
  trainable = [p for p in net.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, weight_decay=0.0)

  def step(inputs, targets) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = net(input_ids=inputs, attention_mask=(inputs != 0).long(), labels=targets, use_cache=False).loss
    loss.backward()
    optimizer.step()
    return loss.item()

  batches = examples(row, settings['batches'], config['vocab_size'])
  made = [(padded([x['inputs'] for x in batch], 0), padded([x['targets'] for x in batch], -100)) for batch in batches]
  virtual = np.ones((row.B, row.P), np.int32)
  sources = [np.concatenate([virtual, inputs.numpy()], axis=1) for inputs, _ in made]
  return contender([functools.partial(step, *batch) for batch in made], [[x] for x in sources], {
      'platform': 'cpu', 'dtype': str(dtype).removeprefix('torch.'),
      'shapes': sorted({(*x.shape, targets.shape[1]) for x, (_, targets) in zip(sources, made, strict=True)}),
      'versions': {m.__name__: m.__version__ for m in (torch, transformers, peft)},
      'trainable_parameters': sum(p.numel() for p in trainable),
      'frozen_parameters': sum(p.numel() for p in net.get_base_model().parameters())})


if __name__ == '__main__':
  serve(lambda settings: build(settings, getattr(torch, sys.argv[1])))
