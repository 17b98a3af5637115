"""The peer of `decode.py`: a worker that decodes the same rows with Hugging Face `generate`, on the CPU.

At its best: every core, float32 (bfloat16 is emulated where the CPU has no instructions for it), inference mode, fused
attention (`sdpa`) and the cache that grows; a static one was as fast for one greedy sequence and slower for a batch.
Threads that wait sleep (OMP_WAIT_POLICY, if not set otherwise): spinning ones, torch's default, made each token eight
times as slow while other jobs wanted the cores. Random weights are Transformers' own. Imports nothing of ours but the
worker's side of the protocol.
"""

import os
import sys
from typing import Any

from decode import Row, sources
from workers import Contender, serve

os.environ.setdefault('HF_HUB_OFFLINE', '1')  # nothing is to be downloaded
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')  # read when torch is imported
try:
  import torch
  import transformers
except ImportError as error:
  sys.exit(f"The peer needs {error.name!r}: run pip install 'prompt_tuning[parity]', or give --peer the interpreter of "
           'an environment that has it.')


def build(settings: dict[str, Any]) -> Contender:
  """The step; see `workers.serve` for what `settings` hold."""
  torch.manual_seed(0)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  row, config = Row(**settings['row']), settings['config']
  model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
      vocab_size=config['vocab_size'], n_positions=config['max_positions'], n_embd=config['d_model'],
      n_layer=config['decoder_layers'], n_head=config['num_heads'], n_inner=config['d_ff'],
      bos_token_id=config['eos_id'], eos_token_id=config['eos_id'])).eval()
  start = torch.full((row.B, 1), config['eos_id'])
  ids = torch.cat([torch.from_numpy(sources(row, config['vocab_size'])).long(), start], dim=1)
  how = transformers.GenerationConfig(
      max_new_tokens=row.T, num_beams=row.beams, do_sample=False, eos_token_id=None, pad_token_id=config['pad_id'])

  def step() -> int:
    with torch.inference_mode():
      out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=how)
    return out[:, ids.shape[1]:].numel()

  return Contender(step, None, {
      'platform': 'cpu', 'attention': model.config._attn_implementation,
      'versions': {m.__name__: m.__version__ for m in (torch, transformers)},
      'frozen_parameters': sum(p.numel() for p in model.parameters())})


if __name__ == '__main__':
  serve(build)
