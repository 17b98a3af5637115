"""XSum (Narayan et al. 2018): a BBC article -> its first sentence; and two splits by topic (Li & Liang 2021, sec. 6.4).

`xsum_news_to_sports` trains and validates on news and tests on sport; `xsum_within_news` trains and validates on world,
UK and business news and tests on the other sections. Topics are those of `xsum_files.topic`. The paper's 512 source
tokens are the trainer's to cut (TASK_FEATURE_LENGTHS).
"""

import tensorflow as tf

from prompt_tuning.tasks import builders, generation, generation_metrics, xsum_files

_NEEDS = (f'Topics are those of the BBC addresses: put {xsum_files.URL_FILE} (an address a line, or id<TAB>address; '
          'from https://github.com/EdinburghNLP/XSum) beside the documents, or give JSONL rows a "url".')


def is_news(topic: tf.Tensor) -> tf.Tensor:
  return tf.strings.regex_full_match(topic, 'news(/.*)?')


def is_sport(topic: tf.Tensor) -> tf.Tensor:
  return topic == 'sport'


def is_main_news(topic: tf.Tensor) -> tf.Tensor:
  return tf.strings.regex_full_match(topic, 'news/(world|uk|business)')


def is_other_news(topic: tf.Tensor) -> tf.Tensor:
  return tf.strings.regex_full_match(topic, 'news/.*') & ~is_main_news(topic)


generation.register('xsum', generation.BuilderSource(builders.XsumBbc), generation_metrics.xsum)
for _name, _before, _test in (('news_to_sports', is_news, is_sport), ('within_news', is_main_news, is_other_news)):
  generation.register(
      f'xsum_{_name}',
      generation.BuilderSource(builders.XsumBbc, {'train': _before, 'validation': _before, 'test': _test}, _NEEDS),
      generation_metrics.xsum)
