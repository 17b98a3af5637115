"""Where a task's data come from, under which licence, and whether they are on this machine: nothing is read for it."""

import dataclasses
import re

from etils import epath
import seqio
import tensorflow_datasets as tfds

from prompt_tuning import tasks
from prompt_tuning.tasks import (
  builders,
  e2e,
  generation,
  language_modeling,
  local,
  question_answering,
  sentiment,
  skill_neurons,
)

BUNDLED, PREPARED, FILES, MISSING, UNKNOWN = 'bundled', 'prepared', 'files', 'no', 'unknown'

LICENCES = {  # of what TFDS has, by the longest beginning of its name; as the homepages of the data have it
    'ag_news_subset': 'for non-commercial use',
    'c4': 'ODC-BY 1.0, and the terms of Common Crawl',
    'definite_pronoun_resolution': 'none stated; cite the paper',
    'glue/': 'see https://gluebenchmark.com',
    'glue/mrpc': 'Microsoft Research, see the corpus',
    'glue/qnli': 'CC BY-SA 4.0 (SQuAD)',
    'glue/qqp': 'Quora, for non-commercial use',
    'imdb_reviews': 'none stated; cite the paper',
    'mrqa': 'see https://github.com/mrqa/MRQA-Shared-Task-2019',
    'squad': 'CC BY-SA 4.0',
    'super_glue/': 'see https://super.gluebenchmark.com',
    'super_glue/boolq': 'CC BY-SA 3.0',
    'super_glue/copa': 'BSD 2-clause',
    'super_glue/multirc': 'for research, see the corpus',
    'super_glue/record': 'Apache 2.0',
    'super_glue/wic': 'CC BY-NC 4.0',
    'super_glue/wsc': 'CC BY 4.0',
}
_SAMPLES = {  # bundled tasks -> licence; see data/README.md
    'e2e_sample': builders.E2eNlg.LICENSE,
    'sst2_sample': 'none stated; cite the paper',
    'wang_sst2_sample': 'none stated; cite the paper',
    'wikitext_sample': 'CC BY-SA 3.0',
}


@dataclasses.dataclass(frozen=True)
class Origin:
  """Attributes:
    where: what is read.
    licence: of the data.
    here: 'bundled', 'prepared' (TFDS form), 'files' (prepared when first read), 'no', or 'unknown' (a task of yours).
    advice: how to get the data, where they are not here.
  """

  where: str
  licence: str
  here: str
  advice: str = ''


def of(task: seqio.Task) -> Origin:
  """The origin of a task, one of ours or not."""
  if match := re.fullmatch(r'(.+)_low\d+_s\d+|(.+)_sentinel', task.name):
    if base := tasks.find(match[1] or match[2]):
      return of(base)
  for name, licence in _SAMPLES.items():
    if re.fullmatch(rf'{name}(_s\d+|_prefix_lm|_span_corruption)?', task.name):
      return Origin('bundled in tasks/data', licence, BUNDLED)
  if task.name in sentiment.CORPORA:
    return of(tasks.find(sentiment.CORPORA[task.name]))
  if task.name in question_answering.FILES:
    return _question_answering(task.name)
  match source := task.source:
    case seqio.TfdsDataSource():
      return _tfds(source.tfds_dataset.name, source.tfds_dataset.data_dir)
    case skill_neurons.Source():
      return _builder(source._corpus.read.args[0])
    case generation.BuilderSource():
      return _builder(source._builder_class)
    case generation.RowSource() if task.name == 'e2e_dev_split':
      return _builder(e2e._CORPUS._builder_class)
    case local.LocalSource():
      paths = [epath.Path(path) for path in source._paths.values()]
      missing = [str(path) for path in paths if not path.exists()]
      return Origin(', '.join(map(str, paths)), 'your own files', MISSING if missing else FILES,
                    f'No file {", ".join(missing)}.')
    case language_modeling.TextFiles():
      return _text_files(source)
  return Origin(type(source).__name__, 'unknown', UNKNOWN)


def _tfds(name: str, data_dir: str | None) -> Origin:
  known = max(filter(name.startswith, LICENCES), key=len, default=None)
  folder = epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
  here = _prepared(folder, name)
  return Origin(f'TFDS {name}', LICENCES.get(known, 'unknown'), PREPARED if here else MISSING, _imported(name, folder))


def _builder(builder_class: type[builders.Builder]) -> Origin:
  name = f'{builder_class.name}:{builder_class.VERSION}'
  data_dir = seqio.LazyTfdsLoader(name).data_dir
  builder = builder_class(data_dir=data_dir)
  where, root = f'files {builder.FOLDER}/', epath.Path(builder._data_dir_root)
  if builder.manual_folder.exists():
    return Origin(where, builder_class.LICENSE, FILES)
  if other := getattr(builder_class, 'TFDS', None):  # the same in TFDS's own form, which is read if there is no folder
    where, name = f'{where} or TFDS {other}', other
  return Origin(where, builder_class.LICENSE, PREPARED if _prepared(root, name) else MISSING,
                f'No folder {builder.manual_folder}. {builder.advice(*builder.FILES)} {_imported(name, root)}')


def _question_answering(name: str) -> Origin:
  file, home = question_answering.FILES[name]
  licence = 'CC BY-SA 4.0' if name == 'xquad_en' else f'see {home}'
  try:
    question_answering._manual_file(name)
  except FileNotFoundError as error:
    return Origin(f'file qa/{file}', licence, MISSING, str(error))
  return Origin(f'file qa/{file}', licence, FILES)


def _text_files(source: language_modeling.TextFiles) -> Origin:
  try:
    source.list_shards('train')
  except FileNotFoundError as error:
    return Origin('files text/', 'your own files', MISSING, str(error))
  return Origin('files text/', 'your own files', FILES)


def _prepared(folder: epath.Path, name: str) -> bool:
  """Whether TFDS would find this data set ('glue/sst2:2.0.0') prepared; any version where the name has none."""
  name, _, version = name.partition(':')
  return any((folder / name).glob(f'{version or "*"}/dataset_info.json'))


def _imported(name: str, folder: epath.Path) -> str:
  return f'Import it: prompt-tuning import-data {name} --raw_dir=FOLDER --tfds_data_dir={folder}'
