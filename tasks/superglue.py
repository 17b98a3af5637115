"""SuperGLUE (Wang et al. 2019) from TFDS 1.0.2, and DPR, read when a split is asked for; formats of T5.

`taskless_super_glue_<task>_v102` for prompts, `super_glue_<task>_v102` with T5's task name in front for one model of
all tasks, which is trained on the mixture `super_glue_v102_proportional` (Lester et al. 2021, sec. 3, multi-task model
tuning). Two metrics where the benchmark has two; `metrics.superglue_score` is their mean.

- MultiRC: an example is one answer; its HTML tags are removed.
- ReCoRD: an example is one of a query's right answers, 138,854 in training; scored once a query.
- WSC and DPR (Rahman & Ng 2012): the pronoun is marked, `*it*`, and the target is what it stands for. WSC trains on
  the 259 examples whose noun is the right one. Its other splits hold all, and a prediction is right if it names the
  example's noun where that is the right one, and does not where it is not. T5 registers two tasks for this,
  `..._simple_train` and `..._simple_eval`; here it is one task whose training split is smaller.
"""

import functools

import seqio
import tensorflow as tf

from prompt_tuning.tasks import metrics, pipeline, text_to_text, tfds_source

SPLITS = ('train', 'validation', 'test')  # given, or seqio would ask TFDS for them; `test` is unlabelled
RATES = {  # T5's sizes of the training splits
    'boolq': 9427, 'cb': 250, 'copa': 400, 'multirc': 27243, 'record': 138854, 'rte': 2490, 'wic': 5428, 'wsc': 259}
DPR_RATE = 1322
MULTIRC_LABELS = WSC_LABELS = ('False', 'True')
DETERMINERS = frozenset(
    'a an each every few her his many much my our some that the their these this those which whose your'.split())


def multirc_to_text(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """`question: Q answer: A paragraph: P`, in this order; `group` tells the question."""
  words = tf.constant([metrics.UNLABELLED, *MULTIRC_LABELS])

  def to_text(row):
    text = text_to_text.join_fields(row, ('question', 'answer', 'paragraph'))
    text = tf.strings.regex_replace(tf.strings.regex_replace(text, '<br>', ' '), '</?b>', '')
    ids = [tf.strings.as_string(row['idx'][name]) for name in ('paragraph', 'question')]
    return {'inputs': text, 'targets': tf.gather(words, row['label'] + 1), 'group': tf.strings.join(ids, ' ')}

  return dataset.map(to_text, num_parallel_calls=tf.data.AUTOTUNE)


def multirc_answer(text: str, example=None, is_target: bool = False, **unused_kwargs):
  """Postprocessor: the word, of a target with its question."""
  return metrics.Grouped(_text(example, 'group'), text.strip()) if is_target else text.strip()


def record_to_text(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """`query: Q entities: E, E passage: P` for each answer; `answers` has all, `group` tells the query."""

  def to_text(row):
    passage = tf.strings.regex_replace(row['passage'], r'([.?!"\'])\n@highlight\n', r'\1 ')
    fields = {
        'query': row['query'],
        'entities': tf.strings.reduce_join(row['entities'], separator=', '),
        'passage': tf.strings.regex_replace(passage, r'\n@highlight\n', '. '),
    }
    ids = [tf.strings.as_string(row['idx'][name]) for name in ('passage', 'query')]
    return {'inputs': text_to_text.join_fields(fields, list(fields)), 'answers': row['answers'],
            'group': tf.strings.join(ids, ' ')}

  def one_each(row):
    targets = row['answers'] if tf.size(row['answers']) > 0 else tf.constant([metrics.UNLABELLED])
    return tf.data.Dataset.from_tensor_slices(targets).map(lambda target: {**row, 'targets': target})

  return dataset.map(to_text, num_parallel_calls=tf.data.AUTOTUNE).flat_map(one_each)


def record_answer(text: str, example=None, is_target: bool = False, **unused_kwargs):
  """Postprocessor: the prediction, or all answers of a target with its query."""
  if not is_target:
    return text.strip()
  return metrics.Grouped(_text(example, 'group'), [answer.decode() for answer in example['answers']])


def mark_pronoun(text: tf.Tensor, pronoun: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
  """Puts `*` around the word of `text` that is the pronoun, the nearest to position `index`; all scalars.

  Words are separated by single spaces. Punctuation behind the pronoun gets a space in front, as in T5.
  """
  words = tf.strings.split(text, ' ')
  bare = tf.strings.regex_replace(words, r'[^\w\']+$', '')
  positions = tf.cast(tf.where(tf.strings.lower(bare) == tf.strings.lower(pronoun))[:, 0], tf.int32)
  tf.debugging.Assert(tf.size(positions) > 0, ['The text has no such word:', text, pronoun])
  at = positions[tf.argmin(tf.abs(positions - index))]
  rest = tf.strings.substr(words[at], tf.strings.length(bare[at]), -1)
  marked = tf.strings.join(['*', bare[at], '*', tf.where(rest == '', '', ' '), rest])
  return tf.strings.reduce_join(tf.concat([words[:at], [marked], words[at + 1:]], 0), separator=' ')


def wsc_to_text(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """The text with its pronoun marked, and the noun in question; `label` tells whether it is the right one."""
  return dataset.map(
      lambda row: {
          'inputs': mark_pronoun(row['text'], row['span2_text'], tf.cast(row['span2_index'], tf.int32)),
          'targets': row['span1_text'], 'referent': row['span1_text'], 'label': row['label']},
      num_parallel_calls=tf.data.AUTOTUNE)


def wsc_answer(text: str, example=None, is_target: bool = False, **unused_kwargs) -> str:
  """Postprocessor: whether the noun is the right one; of a prediction whether it names the noun ('': it is empty)."""
  if is_target:
    return (*WSC_LABELS, metrics.UNLABELLED)[int(example['label'])]
  prediction, noun = _noun(text), _noun(_text(example, 'referent'))
  if prediction == {''}:
    return ''
  # "Bob" does not name "Bob's hat"; "fuzzy bunny" names "bunny".
  both_own = ("'" in ''.join(prediction)) == ("'" in ''.join(noun))
  return WSC_LABELS[both_own and (prediction <= noun or noun <= prediction)]


def dpr_to_text(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """As `wsc_to_text`: the pronoun is the first such word with a space before it and a space, dot or comma behind."""

  def to_text(row):
    pattern = tf.strings.join([' (', row['pronoun'], ')( |\\.|,)'])
    return {'inputs': tf.strings.regex_replace(row['sentence'], pattern, r' *\1*\2', replace_global=False),
            'targets': row['candidates'][row['label']]}

  return dataset.map(to_text, num_parallel_calls=tf.data.AUTOTUNE)


def _noun(text: str) -> set[str]:
  return {word for word in text.lower().split() if word not in DETERMINERS} or {''}


def _text(example, field: str) -> str:
  if example is None or field not in example:
    raise ValueError(f'The example has lost its {field!r}; score the task itself, with the features it gives.')
  return example[field].decode()


class _WscSource(tfds_source.TfdsSource):
  """WSC, in training without the examples whose noun is the wrong one."""

  def get_dataset(self, split='train', **options) -> tf.data.Dataset:
    dataset = super().get_dataset(split, **options)
    return dataset.filter(lambda row: row['label'] == 1) if split == 'train' else dataset


def _add(name: str, t5_name: str, source: seqio.DataSource, step: pipeline.Step, **more) -> None:
  """Registers a task without and with T5's task name."""
  pipeline.add(f'taskless_{name}', source, [step], **more)
  pipeline.add(name, source, [step, pipeline.prepend('inputs', t5_name)], **more)


_GENERATED = {  # task -> (step, postprocessor, metrics)
    'multirc': (
        multirc_to_text, multirc_answer, [metrics.multirc, metrics.legal_label_rate(MULTIRC_LABELS)]),
    'record': (record_to_text, record_answer, [metrics.record]),
    'wsc': (wsc_to_text, wsc_answer, [metrics.accuracy]),
}

for _task in RATES:
  if _task in _GENERATED:
    _step, _postprocess, _metrics = _GENERATED[_task]
  else:
    _format = text_to_text.FORMATS[_task]
    _step, _postprocess = functools.partial(text_to_text.to_text, format_=_format), metrics.strip
    _metrics = _format.metric_fns()
  _source = _WscSource if _task == 'wsc' else tfds_source.TfdsSource
  _add(
      f'super_glue_{_task}_v102', 'wsc:' if _task == 'wsc' else _task,
      _source(f'super_glue/{"wsc.fixed" if _task == "wsc" else _task}:1.0.2', splits=SPLITS), _step,
      postprocess_fn=_postprocess, metric_fns=_metrics)

_add(
    'dpr_v001_simple', 'wsc:',
    tfds_source.TfdsSource('definite_pronoun_resolution:1.1.0', splits={'train': 'train', 'validation': 'test'}),
    dpr_to_text, postprocess_fn=metrics.strip, metric_fns=[metrics.accuracy])

seqio.MixtureRegistry.add(
    'super_glue_v102_proportional',
    [*((f'super_glue_{task}_v102', float(rate)) for task, rate in RATES.items()), ('dpr_v001_simple', float(DPR_RATE))])
