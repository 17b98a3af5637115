"""The T5 vocabulary and the output features that all tasks share."""

import pathlib

import seqio

import prompt_tuning

# 32,000 pieces + 100 sentinels = 32,100 ids. T5's embedding tables have 32,128 rows, padded for hardware.
# Ids from there on are virtual tokens, which are the trainer's to place and never come out of a task.
VOCABULARY = seqio.SentencePieceVocabulary(
    str(pathlib.Path(prompt_tuning.__file__).parent / 'assets' / 't5.spiece.model'), extra_ids=100)

OUTPUT_FEATURES = {
    'inputs': seqio.Feature(VOCABULARY, add_eos=True),
    'targets': seqio.Feature(VOCABULARY, add_eos=True),
}
