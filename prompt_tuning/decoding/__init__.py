"""Greedy search, sampling and beam search over an explicit cache; a step is a function, so any backbone serves."""

from prompt_tuning.decoding.base import Decoded, Decoder, Step, TokenIds
from prompt_tuning.decoding.beam import Beam
from prompt_tuning.decoding.sampling import Greedy, Sampling, example_keys

__all__ = ['Beam', 'Decoded', 'Decoder', 'Greedy', 'Sampling', 'Step', 'TokenIds', 'example_keys']
