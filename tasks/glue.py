"""GLUE (Wang et al. 2018) from TFDS 1.0.0 (v002) or 2.0.0 (v200), read when a split is asked for."""

import seqio

from prompt_tuning.tasks import text_to_text

SPLITS = ('train', 'validation', 'test')  # given, or seqio would ask TFDS for them; `test` is unlabelled

for _task, _format in (('rte', 'glue_rte'), ('sst2', 'sst2')):
  for _version, _data in (('v002', '1.0.0'), ('v200', '2.0.0')):
    text_to_text.register(
        f'taskless_glue_{_task}_{_version}',
        seqio.TfdsDataSource(f'glue/{_task}:{_data}', splits=SPLITS),
        text_to_text.FORMATS[_format])
