"""GLUE (Wang et al. 2018) from TFDS 1.0.0 (v002) or 2.0.0 (v200), read when a split is asked for.

`taskless_glue_mnli_*` validates on the matched half; `mnli_matched` and `mnli_mismatched` are either half alone, as T5
names them. `taskless_glue_mrpc_from_qqp_*` and its reverse are zero-shot transfer (Lester et al. 2021, table 2):
the target task's validation split, scored after the words of the source task became those of the target's. Run them
with a prompt of the source task.
"""

import functools

from prompt_tuning.tasks import metrics, text_to_text, tfds_source

SPLITS = {'train': 'train', 'validation': 'validation', 'test': 'test'}  # `test` is unlabelled
TASKS = {  # name -> (configuration of TFDS, format, splits)
    **{name: (name, name, SPLITS) for name in ('sst2', 'mrpc', 'qqp', 'qnli')},
    'rte': ('rte', 'glue_rte', SPLITS),
    'mnli': ('mnli', 'mnli', {'train': 'train', 'validation': 'validation_matched'}),
    **{f'mnli_{half}': ('mnli', 'mnli', {split: f'{split}_{half}' for split in ('validation', 'test')})
       for half in ('matched', 'mismatched')},
}
TRANSFERS = (('qqp', 'mrpc'), ('mrpc', 'qqp'))


def as_labels_of(target: str, source: str, text: str, **unused_kwargs) -> str:
  """Postprocessor: a label word of the source format becomes that of the target in the same place; others stay."""
  words = dict(zip(text_to_text.FORMATS[source].labels, text_to_text.FORMATS[target].labels, strict=True))
  return words.get(metrics.strip(text), metrics.strip(text))


for _version, _data in (('v002', '1.0.0'), ('v200', '2.0.0')):
  for _task, (_config, _format, _splits) in TASKS.items():
    text_to_text.register(
        f'taskless_glue_{_task}_{_version}', tfds_source.TfdsSource(f'glue/{_config}:{_data}', splits=_splits),
        text_to_text.FORMATS[_format])
  for _source, _target in TRANSFERS:
    text_to_text.register(
        f'taskless_glue_{_target}_from_{_source}_{_version}',
        tfds_source.TfdsSource(f'glue/{_target}:{_data}', splits=('validation',)),
        text_to_text.FORMATS[_target], postprocess=functools.partial(as_labels_of, _target, _source))
