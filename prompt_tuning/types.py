"""Aliases and the dimension legend that comments, docstrings and einsums share.

  B batch    S encoder (source) length    T decoder (target) length    P prompt or prefix length
  D width    L layers    N heads    H head width    F feed-forward width (neurons)    V vocabulary
"""

from collections.abc import Mapping
from typing import Any

import jax

Array = jax.Array
PyTree = Any
Params = Mapping[str, Any]  # nested dict of arrays: parameters of a frozen backbone
Trainable = Mapping[str, Any]  # variable collections of a method: {'prompt': {...}}
Batch = Mapping[str, Array]
"""Model features under T5X's names:

  encoder_input_tokens   [B, S] int32, the source, padded behind with `BackboneConfig.source_pad_id`; ids >= V are
                         virtual tokens. A decoder-only model reads it in front of the decoder's inputs
  decoder_input_tokens   [B, T] int32, targets shifted right behind `BackboneConfig.start_id`
  decoder_target_tokens  [B, T] int32
  decoder_loss_weights   [B, T] float32, 0 where there is no target
  encoder_segment_ids, decoder_segment_ids  [B, S], [B, T] int32, packed rows only: 1 to n, padding 0.
                         What is of one segment is one example, with virtual and start tokens of its own
"""
