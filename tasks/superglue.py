"""SuperGLUE (Wang et al. 2019) from TFDS 1.0.2, read when a split is asked for."""

import seqio

from prompt_tuning.tasks import text_to_text

SPLITS = ('train', 'validation', 'test')  # given, or seqio would ask TFDS for them; `test` is unlabelled

for _task in ('boolq', 'cb', 'rte'):
  text_to_text.register(
      f'taskless_super_glue_{_task}_v102',
      seqio.TfdsDataSource(f'super_glue/{_task}:1.0.2', splits=SPLITS),
      text_to_text.FORMATS[_task])
