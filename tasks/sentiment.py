"""SST-2's question asked of other domains: `sst2_on_imdb` (film reviews) and `sst2_on_tweets`, to evaluate on.

After Lester et al. 2021, sec. 5, which shifts the domain of question answering: a prompt trained on sentences of film
reviews is scored on texts of another length and style, in SST-2's own format (`sentence: S`, negative or positive). The
corpora are those of `skill_neurons`: all of IMDB's test set without its line breaks in HTML, and the negative and the
positive tweets of TweetEval's. The one split is `test`: nothing is trained on them.
"""

import functools

import tensorflow as tf

from prompt_tuning.tasks import metrics, pipeline, skill_neurons, text_to_text

CORPORA = {'sst2_on_imdb': 'wang_imdb', 'sst2_on_tweets': 'wang_tweet_2'}


def _as_sst2(row):
  text = tf.strings.regex_replace(row['inputs'], r'(<br\s*/?>|\s)+', ' ')
  return {'inputs': tf.strings.join(['sentence: ', tf.strings.strip(text)]), 'targets': row['targets']}


def _read(corpus: str, split: str) -> tf.data.Dataset:
  return skill_neurons.Source(skill_neurons.TASKS[corpus], seed=0).read(split).map(_as_sst2)


for _name, _corpus in CORPORA.items():
  pipeline.add(
      _name, pipeline.TextSource(functools.partial(_read, _corpus), ('test',)), postprocess_fn=metrics.strip,
      metric_fns=text_to_text.FORMATS['sst2'].metric_fns())
