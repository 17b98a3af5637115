"""Rows in the form of TFDS instead of TFDS: `goldens/tasks/rows.json` (see goldens/README.md) and rows of one's own."""

import json
import pathlib

import tensorflow as tf

from prompt_tuning.tasks import tfds_source

GOLDENS = json.loads((pathlib.Path(__file__).parents[1] / 'goldens' / 'tasks' / 'rows.json').read_text())
ROWS = {name: golden['rows'] for name, golden in GOLDENS.items()}
ROWS |= {
    'squad/v1.1': ROWS['squad'],
    'mrqa/race': [{**row, 'answers': row['answers']['text']} for row in ROWS['squad']],
    'definite_pronoun_resolution': [{  # ours; the same pronoun twice, and once within a word
        'sentence': 'The theremin rode in the van because it was heavy, and it hummed.', 'pronoun': 'it',
        'candidates': ['The theremin', 'the van'], 'label': 0}],
}


def dataset(rows: list[dict]) -> tf.data.Dataset:
  """Rows as TFDS gives them: scalars, lists of any length, and dicts of these."""

  def spec(value):
    if isinstance(value, dict):
      return {name: spec(x) for name, x in value.items()}
    if isinstance(value, list):
      return tf.TensorSpec((None,), tf.string if not value or isinstance(value[0], str) else tf.int32)
    return tf.TensorSpec((), tf.string if isinstance(value, str) else tf.int64)

  return tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=spec(rows[0]))


def serve(patch, rows=None) -> None:
  """Lets every split of every data set of TFDS be these rows (by name, without version)."""
  found = {**ROWS, **(rows or {})}
  of = lambda source: found[source.tfds_dataset.name.split(':')[0]]
  patch.setattr(tfds_source.TfdsSource, 'get_dataset', lambda self, split='train', **options: dataset(of(self)))
  patch.setattr(tfds_source.TfdsSource, 'num_input_examples', lambda self, split: len(of(self)))
  patch.setattr(tfds_source.TfdsSource, 'list_shards', lambda self, split: [split])
