"""E2E NLG Challenge (Novikova et al. 2017): a table of a restaurant -> a sentence or two about it.

`e2e` is the whole corpus. `e2e_dev_split` needs the development file alone: four fifths of its meaning
representations train (a pair a reference), the rest validate. `e2e_sample` is bundled (`data/README.md`).
"""

import pathlib

import numpy as np

from prompt_tuning.tasks import builders, generation, generation_metrics, linearize, table_files

TRAIN_SHARE = 0.8  # of the development file's meaning representations, in `e2e_dev_split`
_DATA = pathlib.Path(__file__).parent / 'data'
_CORPUS = generation.BuilderSource(builders.E2eNlg)


def dev_split() -> tuple[list[table_files.Row], list[table_files.Row]]:
  """The development file's rows for training and for validation; no meaning representation is in both."""
  rows = [generation.to_row(row) for row in _CORPUS.read('validation').as_numpy_iterator()]
  order = np.random.default_rng(0).permutation(len(rows))
  cut = round(TRAIN_SHARE * len(rows))
  return [rows[i] for i in order[:cut]], [rows[i] for i in sorted(order[cut:])]


def read_sample(name: str) -> list[table_files.Row]:
  """A bundled file: a meaning representation and its references a line, with tabs between."""
  lines = (_DATA / name).read_text(encoding='utf-8').splitlines()
  return [table_files.Row(linearize.linearize_e2e(mr), tuple(references))
          for mr, *references in (line.split('\t') for line in lines)]


generation.register('e2e', _CORPUS, generation_metrics.e2e)
generation.register(
    'e2e_dev_split',
    generation.RowSource({'train': lambda: table_files.pairs(dev_split()[0]), 'validation': lambda: dev_split()[1]}),
    generation_metrics.e2e)
generation.register(
    'e2e_sample',
    generation.RowSource({'train': lambda: table_files.pairs(read_sample('e2e_sample_train.txt')),
                          'validation': lambda: read_sample('e2e_sample_dev.txt')}),
    generation_metrics.e2e)
