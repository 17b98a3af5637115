"""Reading comprehension: SQuAD to train on, and other domains to shift to (Lester et al. 2021, sec. 5, table 1).

| task | splits | read from |
|---|---|---|
| `squad_v010_allanswers` | train (87,599), validation (10,570) | TFDS `squad/v1.1` 3.0.0 |
| `mrqa_{bioasq,drop,duorc,race,relation_extraction,textbookqa}_v001` | validation | TFDS `mrqa` 1.0.0, there `test` |
| `squadshifts_{amazon,new_wiki}`, `xquad_en` | train, validation, test | manual files `qa/*.json`, of SQuAD's form |

Inputs are `question: Q context: C`, the target is the first answer, all of it with spaces around punctuation (T5), and
without space at either end. Scores are the best over a question's answers. The JSON files are evaluation sets: `test`
is a whole file. For experiments without SQuAD its paragraphs are also split, one in five to `validation` as its text's
hash has it and the others to `train`.
"""

from collections.abc import Callable, Mapping
import functools
import hashlib
import os

from etils import epath
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from prompt_tuning.tasks import builders, generation, metrics, pipeline, table_files, tfds_source

MRQA = {  # T5's and Google's names -> configurations of TFDS
    'bioasq': 'bio_asq', 'drop': 'drop', 'duorc': 'duo_rc', 'race': 'race',
    'relation_extraction': 'relation_extraction', 'textbookqa': 'textbook_qa'}
FOLDER = 'qa'  # among the manual files
FILES = {
    'squadshifts_amazon': ('squadshifts_amazon_reviews_v1.0.json', 'https://modestyachts.github.io/squadshifts-website'),
    'squadshifts_new_wiki': ('squadshifts_new_wiki_v1.0.json', 'https://modestyachts.github.io/squadshifts-website'),
    'xquad_en': ('xquad.en.json', 'https://github.com/deepmind/xquad'),
}
VALIDATION_SHARE = 5  # one paragraph in five


def pad_punctuation(text: tf.Tensor) -> tf.Tensor:
  """Spaces around ASCII punctuation, white space as one space and none at the ends; any shape."""
  text = tf.strings.regex_replace(text, '([[:punct:]])', r' \1 ')
  return tf.strings.strip(tf.strings.regex_replace(text, r'\s+', ' '))


def to_text(dataset: tf.data.Dataset, answers: Callable[[Mapping], tf.Tensor]) -> tf.data.Dataset:
  """`question: Q context: C` and the first answer; `references` has all.

  Args:
    dataset: examples with strings `question` and `context`.
    answers: an example -> strings [R].
  """

  def step(row):
    question, context, references = map(pad_punctuation, (row['question'], row['context'], answers(row)))
    return {'inputs': tf.strings.join(['question: ', question, ' context: ', context]),
            'targets': references[0], 'references': references}

  return dataset.map(step, num_parallel_calls=tf.data.AUTOTUNE)


def read_squad(path: str | os.PathLike) -> list[tuple[str, str, list[str]]]:
  """(question, context, answers) of a JSON file in the form of SQuAD v1.1, in order.

  Raises:
    ValueError: the file has another form, or a question no answer.
    FileNotFoundError: there is no such file.
  """
  data = table_files.read_json(path)
  try:
    rows = [(question['question'], paragraph['context'], [answer['text'] for answer in question['answers']])
            for article in data['data'] for paragraph in article['paragraphs'] for question in paragraph['qas']]
  except (KeyError, TypeError) as error:
    raise ValueError(f'{path}: not in the form of SQuAD v1.1 (data, paragraphs, qas, answers): {error!r}.') from error
  if not rows:
    raise ValueError(f'{path}: no questions.')
  for number, (question, _, answers) in enumerate(rows, start=1):
    if not answers:
      raise ValueError(f'{path}: question {number}, {question!r}, has no answer. Expected SQuAD v1.1, not 2.0.')
  return rows


def local_task(name: str, path: str | os.PathLike | Callable[[], str | os.PathLike]) -> seqio.Task:
  """Registers a task on a JSON file in SQuAD's form, split as the module says. Nothing is read yet.

  Args:
    name: name of the task, new to the registry.
    path: the file, or a function that gives it when it is read.
  """
  read = functools.cache(lambda: read_squad(path() if callable(path) else path))

  def split_of(context: str) -> str:
    first = hashlib.sha256(context.encode()).digest()[0]
    return 'train' if first % VALIDATION_SHARE else 'validation'

  def rows(split: str) -> tf.data.Dataset:
    kept = [row for row in read() if split in ('test', split_of(row[1]))]
    text = tf.TensorSpec((), tf.string)
    return tf.data.Dataset.from_generator(
        lambda: ({'question': q, 'context': c, 'answers': a} for q, c, a in kept),
        output_signature={'question': text, 'context': text, 'answers': tf.TensorSpec((None,), tf.string)})

  return _add(name, pipeline.TextSource(rows, builders.SPLITS), lambda row: row['answers'])


def _add(name: str, source: seqio.DataSource, answers: Callable[[Mapping], tf.Tensor]) -> seqio.Task:
  return pipeline.add(
      name, source, [functools.partial(to_text, answers=answers)], postprocess_fn=generation.references_or_text,
      metric_fns=[metrics.squad])


def _manual_file(name: str) -> epath.Path:
  data_dir = seqio.LazyTfdsLoader('squad/v1.1:3.0.0').data_dir or tfds.core.constants.DATA_DIR
  root = os.environ.get(builders.MANUAL_DIR) or os.path.join(data_dir, 'downloads', 'manual')
  file, home = FILES[name]
  path = epath.Path(root).expanduser() / FOLDER / file
  if not path.exists():
    raise FileNotFoundError(f'{name}: no file {path}. Get it from {home}, or name another folder of manual downloads '
                            f'in the environment variable {builders.MANUAL_DIR}.')
  return path


_add(
    'squad_v010_allanswers', tfds_source.TfdsSource('squad/v1.1:3.0.0', splits=('train', 'validation')),
    lambda row: row['answers']['text'])
for _name, _config in MRQA.items():
  _add(
      f'mrqa_{_name}_v001', tfds_source.TfdsSource(f'mrqa/{_config}:1.0.0', splits={'validation': 'test'}),
      lambda row: row['answers'])
for _name in FILES:
  local_task(_name, functools.partial(_manual_file, _name))
