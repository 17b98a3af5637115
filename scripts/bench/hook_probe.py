"""The peer of `probe.py`: a worker that finds the same with forward hooks on a Hugging Face RoBERTa, on the CPU.

Hooks on each layer's activation store its P prompt positions; means and accuracies are taken of all that is stored, as
the paper's code does. At its best: every core, inference mode, fused attention (`sdpa`), no LM head or pooler, and only
the prompt positions are kept (a copy: a view would hold the whole activation in memory). Threads that wait sleep
(OMP_WAIT_POLICY, if not set otherwise), see `hf_decode.py`. Imports nothing of ours but the worker's side of the
protocol.
"""

import os
import sys
from typing import Any

import numpy as np
from probe import PROMPT, WEIGHTS, Row, in_turns, rows
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
  """The passes; see `probe.measure` for what `settings` hold."""
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  transformers.logging.set_verbosity_error()  # the LM head's weights are not used
  row, folder, vocab_size = Row(**settings['row']), settings['folder'], settings['config']['vocab_size']
  model = transformers.RobertaForMaskedLM.from_pretrained(os.path.join(folder, WEIGHTS))
  parameters, model = sum(p.numel() for p in model.parameters()), model.roberta.eval()
  prompt = torch.from_numpy(np.load(os.path.join(folder, PROMPT), allow_pickle=False))  # [P - 1, D]
  data = [(torch.from_numpy(tokens).long(), torch.from_numpy(labels))
          for tokens, labels in rows(row, settings['config'], settings['batches'])]
  stored = [[] for _ in model.encoder.layer]  # by layer: [B, P, F] of each batch
  for layer, kept in zip(model.encoder.layer, stored, strict=True):
    layer.intermediate.register_forward_hook(lambda _, __, out, kept=kept: kept.append(out[:, :row.P].clone()))
  table = model.get_input_embeddings()

  @torch.inference_mode()
  def run() -> list[torch.Tensor]:
    """Activations of all rows, [rows, P, F] of each layer."""
    for kept in stored:
      kept.clear()
    for tokens, _ in data:
      words = table(tokens.clamp(max=vocab_size - 1))
      model(inputs_embeds=torch.cat([words[:, :1], prompt.expand(row.B, -1, -1), words[:, row.P:]], dim=1))
    return [torch.cat(kept) for kept in stored]

  baselines = None

  def baseline() -> np.ndarray:
    nonlocal baselines
    baselines = torch.stack([a.mean(0) for a in run()])
    return baselines.numpy()

  def accuracy() -> np.ndarray:
    labels = torch.cat([labels for _, labels in data]).bool()[:, None, None]
    return torch.stack([((a > b) == labels).float().mean(0) for a, b in zip(run(), baselines, strict=True)]).numpy()

  return Contender(in_turns(folder, 'hooks', (baseline, accuracy)), None, {
      'platform': 'cpu', 'attention': model.config._attn_implementation,
      'versions': {m.__name__: m.__version__ for m in (torch, transformers)}, 'frozen_parameters': parameters})


if __name__ == '__main__':
  serve(build)
