"""T5's generic rule for turning a labelled example into text, without the leading task name ("taskless").

Inputs are the example's fields in alphabetical order, each as `name: value`, with one space between; the
target is the label word (Raffel et al. 2020, app. D; Lester et al. 2021, sec. 3). So boolq's inputs are
`passage: P question: Q`. T5 puts the task's name in front and Google's prompt-tuning then cuts the first word
off; here it never gets there. Fields other than those of the format (`idx`, for one) are dropped.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools

import seqio
import tensorflow as tf

from prompt_tuning.tasks import metrics, pipeline


@dataclasses.dataclass(frozen=True)
class Format:
  """What one classification task reads and answers."""

  fields: tuple[str, ...]  # in any order: the text has them in alphabetical order
  labels: tuple[str, ...]  # label words; the position is the class number in the source
  extra_metrics: tuple[Callable[[Sequence[str]], metrics.MetricFn], ...] = ()  # made from `labels`

  def metric_fns(self) -> list[metrics.MetricFn]:
    """The task's metrics for seqio: accuracy, the rate of legal labels, and the extra ones."""
    return [metrics.accuracy, *(m(self.labels) for m in (metrics.legal_label_rate, *self.extra_metrics))]


_ENTAILMENT = ('entailment', 'not_entailment')

# Class numbers are those of TFDS, which for cb are not alphabetical.
FORMATS: dict[str, Format] = {
    'boolq': Format(('passage', 'question'), ('False', 'True')),
    'cb': Format(('hypothesis', 'premise'), ('entailment', 'contradiction', 'neutral'),
                 extra_metrics=(metrics.mean_macro_f1,)),
    'copa': Format(('choice1', 'choice2', 'premise', 'question'), ('choice1', 'choice2')),
    'glue_rte': Format(('sentence1', 'sentence2'), _ENTAILMENT),
    'mnli': Format(('hypothesis', 'premise'), ('entailment', 'neutral', 'contradiction')),
    'mrpc': Format(('sentence1', 'sentence2'), ('not_equivalent', 'equivalent'), extra_metrics=(metrics.f1,)),
    'qnli': Format(('question', 'sentence'), _ENTAILMENT),
    'qqp': Format(('question1', 'question2'), ('not_duplicate', 'duplicate'), extra_metrics=(metrics.f1,)),
    'rte': Format(('hypothesis', 'premise'), _ENTAILMENT),
    'sst2': Format(('sentence',), ('negative', 'positive')),
    'wic': Format(('sentence1', 'sentence2', 'word'), ('False', 'True')),
}


def to_text(dataset: tf.data.Dataset, format_: Format) -> tf.data.Dataset:
  """Maps examples to `inputs` and `targets` text.

  Args:
    dataset: examples with a string scalar for each of `format_.fields` and an integer scalar `label`, a
      position in `format_.labels` or -1 for none, which becomes `<unk>`.
    format_: the task's fields and label words.

  Returns:
    A dataset of `{'inputs': text, 'targets': text}`, string scalars.

  Raises:
    ValueError: the examples lack a field of the format.
  """
  wanted, found = {*format_.fields, 'label'}, set(dataset.element_spec)
  if not wanted <= found:
    raise ValueError(f'Examples lack {sorted(wanted - found)}: they have {sorted(found)}. Rename them with '
                     '`seqio.preprocessors.rekey`, or change the format.')
  words = tf.constant([metrics.UNLABELLED, *format_.labels])

  def example_to_text(example):
    return {
        'inputs': join_fields(example, sorted(format_.fields)),
        'targets': tf.gather(words, example['label'] + 1),
    }

  return dataset.map(example_to_text, num_parallel_calls=tf.data.AUTOTUNE)


def join_fields(example: Mapping[str, tf.Tensor], names: Sequence[str]) -> tf.Tensor:
  """`name: value name: value`, a string scalar."""
  return tf.strings.join([tf.strings.join([f'{name}: ', example[name]]) for name in names], separator=' ')


def register(
    name: str, source: seqio.DataSource, format_: Format, more_steps: Sequence[pipeline.Step] = (),
    postprocess: Callable[..., str] = metrics.strip) -> seqio.Task:
  """Registers a classification task with seqio. Reads nothing from `source` yet.

  Args:
    name: name of the task, new to the registry.
    source: where examples as `to_text` wants them come from.
    format_: the task's fields, label words and metrics.
    more_steps: what else is done to the text.
    postprocess: text -> label word, of targets and of predictions.

  Returns:
    The task, as `pipeline.add` says.
  """
  return pipeline.add(
      name, source, [functools.partial(to_text, format_=format_), *more_steps], postprocess_fn=postprocess,
      metric_fns=format_.metric_fns())
