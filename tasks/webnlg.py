"""WebNLG Challenge 2017 (Gardent et al. 2017): up to seven DBpedia triples -> text.

Ten categories are in the training data and half of the test set; the test set's other half has five unseen ones. The
paper counts nine seen ones; the files of the challenge have ten.
"""

import tensorflow as tf

from prompt_tuning.tasks import builders, generation, generation_metrics

SEEN = ('Airport', 'Astronaut', 'Building', 'City', 'ComicsCharacter', 'Food', 'Monument', 'SportsTeam', 'University',
        'WrittenWork')


def seen(category: tf.Tensor) -> tf.Tensor:
  """Whether the training data have the category."""
  return tf.reduce_any(category == tf.constant(SEEN))


generation.register('webnlg', generation.BuilderSource(builders.Webnlg2017), generation_metrics.webnlg)
for _half, _keep in (('seen', seen), ('unseen', lambda category: ~seen(category))):
  generation.register(
      f'webnlg_{_half}', generation.BuilderSource(builders.Webnlg2017, {'test': _keep}), generation_metrics.webnlg)
