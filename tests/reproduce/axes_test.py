"""Axes that tables share."""

import pytest

from prompt_tuning.reproduce import axes
from prompt_tuning.reproduce.table import Part, Table, steps_of


def test_sizes_of_t5_name_their_bases():
  sizes = axes.t5_sizes('gs://t5/lm100k_{size}', quickstart='q')
  assert list(sizes) == ['small', 'base', 'large', 'xl', 'xxl', 'quickstart']
  part = Part({'train': {'command': 'train'}}, {'score': ('train', 'score')}, {'size': sizes},
              on_request=('quickstart',))
  table = Table('t', 's', [part], ('size',), seeds=(0,))
  bindings = lambda wanted: {
      step.points['size']: step.bindings for step in steps_of(table.narrowed(wanted).parts[0], 'runs').values()}
  assert list(bindings({})) == ['small', 'base', 'large', 'xl', 'xxl']
  assert bindings({})['xl'][:2] == ("MODEL_SIZE = 't5_1_1_xl'", "INITIAL_CHECKPOINT_PATH = 'gs://t5/lm100k_xl'")
  assert bindings({'size': ['quickstart']})['quickstart'][0] == "INITIAL_CHECKPOINT_PATH = 'q'"


def test_one_base_for_all_sizes_is_a_slip():
  with pytest.raises(ValueError, match=r"CHECKPOINTS='/models/t5'; expected a path with \{size\}"):
    axes.t5_sizes('/models/t5')
