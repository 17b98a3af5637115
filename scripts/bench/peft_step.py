"""The peer of `train_step.py`: a worker that does the same step with Hugging Face PEFT, on the CPU; full fine-tuning
with Transformers alone.

At its best: every core, `set_float32_matmul_precision('medium')`, torch's fused attention (`sdpa`, the
default of Transformers, as fast as `eager` here), no cache of keys and values, no gradient checkpointing; in
bfloat16, all parameters are. Started by `train_step.py --peer`; imports nothing of ours but the worker's side
of the protocol, so that torch may live in an environment of its own.

Random weights are Transformers' own, except the LM head's. Transformers 5 ties that to the embedding table
until a checkpoint brings one, and draws it with scale 1, which makes logits whose softmax underflows to
denormal, slow numbers: here it is a matrix of its own, with our scale of 1/sqrt(D).
"""

import os
import sys
from typing import Any

from train_step import LEARNING_RATE, Row, tokens
from workers import Contender, serve

os.environ.setdefault('HF_HUB_OFFLINE', '1')  # nothing is to be downloaded
try:
  import peft
  import torch
  import transformers
except ImportError as error:
  sys.exit(
      f"The peer needs {error.name!r}: run pip install 'prompt_tuning[parity]', or give --peer_python the "
      'interpreter of an environment that has it.')


def model(config: dict[str, Any], length: int | None, dropout: float, dtype: torch.dtype) -> torch.nn.Module:
  """A frozen T5 of our `BackboneConfig` (a dictionary) with a soft prompt [length, D] before its input.

  `length` None: all of the T5 is trained.
  """
  t5_config = transformers.T5Config(
      vocab_size=config['vocab_size'], d_model=config['d_model'], d_kv=config['head_dim'],
      d_ff=config['d_ff'],
      num_heads=config['num_heads'], num_layers=config['encoder_layers'],
      num_decoder_layers=config['decoder_layers'],
      relative_attention_num_buckets=config['relpos_buckets'],
      relative_attention_max_distance=config['relpos_max_distance'], dropout_rate=dropout,
      feed_forward_proj='gated-gelu' if len(config['mlp_activations']) == 2 else 'relu',
      tie_word_embeddings=config['tied_embeddings'], pad_token_id=config['pad_id'],
      eos_token_id=config['eos_id'], decoder_start_token_id=config['pad_id'], attn_implementation='sdpa')
  t5 = transformers.T5ForConditionalGeneration(t5_config)
  if not config['tied_embeddings']:
    head = torch.randn(config['vocab_size'], config['d_model']) * config['d_model'] ** -0.5
    t5.lm_head.weight = torch.nn.Parameter(head)
  if length is None:
    return t5.to(dtype)
  return peft.get_peft_model(t5.to(dtype), peft.PromptTuningConfig(
      task_type=peft.TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=length, num_transformer_submodules=1))


def build(settings: dict[str, Any], dtype: torch.dtype) -> Contender:
  """The step in `dtype`; see `workers.serve` for what `settings` hold."""
  torch.manual_seed(0)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.set_float32_matmul_precision('medium')
  row, config = Row(**settings['row']), settings['config']
  net = model(config, row.P if row.method == 'prompt' else None, settings['dropout'], dtype).train()
  base = net if row.method == 'full' else net.get_base_model()
  trainable = [p for p in net.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, weight_decay=0.0)
  encoder, targets = (torch.from_numpy(x).long() for x in tokens(row, config['vocab_size']))
  mask = torch.ones_like(encoder)

  def step() -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = net(input_ids=encoder, attention_mask=mask, labels=targets, use_cache=False).loss
    loss.backward()
    optimizer.step()
    return loss.item()

  def gemm(m, k, n):
    a, b = torch.ones(m, k, dtype=dtype), torch.ones(k, n, dtype=dtype)
    return lambda: a @ b

  return Contender(step, gemm, {
      'platform': 'cpu', 'dtype': str(dtype).removeprefix('torch.'),
      'attention': base.config._attn_implementation,
      'versions': {m.__name__: m.__version__ for m in (torch, transformers, peft)},
      'trainable_parameters': sum(p.numel() for p in trainable),
      'frozen_parameters': sum(p.numel() for p in base.parameters())})


if __name__ == '__main__':
  serve(lambda settings: build(settings, getattr(torch, sys.argv[1])))
