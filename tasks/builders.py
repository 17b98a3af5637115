"""TFDS builders of E2E, WebNLG 2017, DART 1.1.1 and XSum, from the original files.

A builder first looks into its folder among the manual downloads, `$PROMPT_TUNING_MANUAL_DIR/<folder>` or else
`<TFDS data dir>/downloads/manual/<folder>`; where there is no such folder it downloads the official files (XSum has no
official download). A split whose files the folder lacks is absent, and asking for it says which file is missing.

Unlike TFDS's own `e2e_cleaned`, `web_nlg`, `dart` and `xsum`, these are the corpora that Li & Liang 2021 used. A
training example is one (source, reference) pair, an example of the other splits one source with all its references,
in the order of the files. A dataset is prepared once, and anew when the files of the manual folder have changed.
"""

from collections.abc import Iterator
import hashlib
import itertools
import logging
import os

from etils import epath
import tensorflow_datasets as tfds

from prompt_tuning.tasks import linearize, table_files, xsum_files

SPLITS = ('train', 'validation', 'test')
MANUAL_DIR = 'PROMPT_TUNING_MANUAL_DIR'  # environment variable


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """What all share. A subclass names its folder and files and reads one file."""

  VERSION = tfds.core.Version('1.0.0')
  code_path = epath.Path(__file__)  # TFDS would need importlib_resources, which it does not declare, to find it
  FOLDER: str  # in the folder of manual downloads
  FILES: dict[str, tuple[str, ...]]  # split -> patterns, of which the first that some file matches is read
  URL: str | dict[str, str | tuple[str, ...]] | None = None  # an archive, or each split's files
  ARCHIVE_ROOT = '*'  # the folder with the files in an archive
  HOMEPAGE: str
  LICENSE: str

  def read(self, path: epath.Path, split: str) -> Iterator[table_files.Row] | list[table_files.Row]:
    """The tables of one file."""
    raise NotImplementedError

  @property
  def manual_folder(self) -> epath.Path:
    """Where the files are looked for."""
    root = os.environ.get(MANUAL_DIR) or os.path.join(self._data_dir_root, 'downloads', 'manual')
    return epath.Path(root).expanduser() / self.FOLDER

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text()
    return tfds.core.DatasetInfo(
        builder=self, description=__doc__, homepage=self.HOMEPAGE, license=self.LICENSE, disable_shuffling=True,
        metadata=tfds.core.MetadataDict(),
        features=tfds.features.FeaturesDict(
            {'source': text, 'references': tfds.features.Sequence(text), 'group': text}))

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    if self.manual_folder.exists():
      files = self._in_folder(self.manual_folder)
    else:
      files = self._downloaded(dl_manager)
    self.info.metadata['files'] = self.fingerprint()
    examples = {split: self._generate_examples(split, paths) for split, paths in files.items()}
    # TFDS refuses a split without examples: it is absent.
    return {split: itertools.chain([first], rest) for split, rest in examples.items() if (first := next(rest, None))}

  def _generate_examples(self, split, paths):
    key = 0
    for path in paths:
      rows = self.read(path, split)
      for row in table_files.pairs(rows) if split == 'train' else rows:
        yield key, {'source': row.source, 'references': row.references, 'group': row.group}
        key += 1

  def _in_folder(self, folder: epath.Path) -> dict[str, list[epath.Path]]:
    found = {split: next(filter(None, (sorted(folder.glob(p)) for p in patterns)), [])
             for split, patterns in self.FILES.items()}
    if not any(found.values()):
      raise FileNotFoundError(f'{self.name}: {folder} has none of its files. {self.advice(*self.FILES)}')
    return found

  def _downloaded(self, dl_manager) -> dict[str, list[epath.Path]]:
    if self.URL is None:
      raise FileNotFoundError(f'{self.name}: no folder {self.manual_folder}, and no official download. '
                              f'{self.advice(*self.FILES)}')
    try:
      got = dl_manager.download_and_extract(self.URL)
    except (OSError, tfds.download.DownloadError) as error:
      raise ConnectionError(f'{self.name}: no folder {self.manual_folder}, and {self.URL} could not be downloaded '
                            f'({error}). {self.advice(*self.FILES)}') from error
    if isinstance(got, dict):
      return {split: list(paths) if isinstance(paths, tuple) else [paths] for split, paths in got.items()}
    return self._in_folder(next(iter(got.glob(self.ARCHIVE_ROOT)), got))

  def fingerprint(self) -> str:
    """Names and sizes of the files in the manual folder, hashed; '' where there is no such folder."""
    if not self.manual_folder.exists():
      return ''
    names = {path for patterns in self.FILES.values() for p in patterns for path in self.manual_folder.glob(p)}
    listing = sorted(f'{path.relative_to(self.manual_folder)} {path.stat().length}' for path in names)
    return hashlib.sha256('\n'.join(listing).encode()).hexdigest()

  def absent(self, split: str) -> str:
    """Why `split` is not there and what to do."""
    return f'{self.name} has no split {split!r}: its files are not in {self.manual_folder}. {self.advice(split)}'

  def advice(self, *splits: str) -> str:
    """Which files to put where."""
    wanted = ', '.join(dict.fromkeys(' or '.join(self.FILES[split]) for split in splits))
    return (f'Put {wanted} there (see {self.HOMEPAGE}), or name another folder for manual downloads in the environment '
            f'variable {MANUAL_DIR}.')


class E2eNlg(Builder):
  """E2E NLG Challenge (Novikova et al. 2017)."""

  name = 'e2e_nlg'
  FOLDER = 'e2e'
  FILES = {'train': ('trainset.csv',), 'validation': ('devset.csv',), 'test': ('testset_w_refs.csv',)}
  URL = 'https://github.com/tuetschek/e2e-dataset/archive/v1.0.0.zip'
  HOMEPAGE = 'https://github.com/tuetschek/e2e-dataset'
  LICENSE = 'CC BY-SA 4.0'

  def read(self, path, split):
    return table_files.read_e2e(path)


class Webnlg2017(Builder):
  """WebNLG Challenge 2017 (Gardent et al. 2017); training keeps the references marked good."""

  name = 'webnlg_2017'
  FOLDER = 'webnlg'
  FILES = {'train': ('train/*/*.xml',), 'validation': ('dev/*/*.xml',), 'test': ('test/testdata_with_lex.xml',)}
  URL = 'https://gitlab.com/shimorina/webnlg-dataset/-/archive/master/webnlg-dataset-master.zip?path=webnlg_challenge_2017'
  ARCHIVE_ROOT = '*/webnlg_challenge_2017'
  HOMEPAGE = 'https://gitlab.com/shimorina/webnlg-dataset'
  LICENSE = 'CC BY-NC-SA 4.0'

  def read(self, path, split):
    return table_files.read_xml(path, linearize.linearize_webnlg, only_good=split == 'train')


class DartV111(Builder):
  """DART 1.1.1 (Nan et al. 2021), from its JSON files or, where those are not there, its XML."""

  name = 'dart_v111'
  FOLDER = 'dart'
  FILES = {split: (f'dart-v1.1.1-full-{name}.json', f'dart-v1.1.1-full-{name}.xml')
           for split, name in (('train', 'train'), ('validation', 'dev'), ('test', 'test'))}
  URL = {split: f'https://raw.githubusercontent.com/Yale-LILY/dart/master/data/v1.1.1/{names[0]}'
         for split, names in FILES.items()}
  HOMEPAGE = 'https://github.com/Yale-LILY/dart'
  LICENSE = 'MIT'

  def read(self, path, split):
    if path.suffix == '.xml':
      return table_files.read_xml(path, linearize.linearize_dart)
    return table_files.read_dart_json(path)


class XsumBbc(Builder):
  """XSum (Narayan et al. 2018): JSONL or extracted pages, cut by the official split; topics where addresses are known.

  Documents or summaries that are empty are left out, and their number is logged.
  """

  name = 'xsum_bbc'
  FOLDER = 'xsum'
  FILES = dict.fromkeys(SPLITS, ('*.jsonl', 'bbc-summary-data/*.summary', 'xsum-extracts-from-downloads/*.data'))
  HOMEPAGE = 'https://github.com/EdinburghNLP/XSum'
  LICENSE = 'MIT; the texts are the BBC\'s'

  def _in_folder(self, folder):
    if not (folder / xsum_files.SPLIT_FILE).exists():
      raise FileNotFoundError(f'{self.name}: {folder} has no {xsum_files.SPLIT_FILE}, the official split. Take it from '
                              f'{self.HOMEPAGE}.')
    self._ids = {split: frozenset(ids) for split, ids in xsum_files.read_split(folder / xsum_files.SPLIT_FILE).items()}
    urls = folder / xsum_files.URL_FILE
    self._topics = xsum_files.read_topics(urls) if urls.exists() else {}
    return super()._in_folder(folder)

  def fingerprint(self):
    urls = self.manual_folder / xsum_files.URL_FILE
    return f'{super().fingerprint()} {urls.stat().length if urls.exists() else "no addresses"}'

  def absent(self, split):
    return (f'{self.name} has no split {split!r}: of its ids in {xsum_files.SPLIT_FILE} no document is in '
            f'{self.manual_folder}. {self.advice(split)}')

  def read(self, path, split):
    empty = 0
    for key, document, summary, topic in self._documents(path, split):
      if key not in self._ids[split]:
        continue
      if document and summary:
        yield table_files.Row(document, (summary,), self._topics.get(key, topic))
      else:
        empty += 1
    if empty:
      logging.warning('%s, %s: %d rows without document or summary left out', path, split, empty)

  def _documents(self, path, split):
    if path.suffix == '.jsonl':
      yield from xsum_files.read_jsonl(path)
    elif path.stem in self._ids[split]:
      yield xsum_files.read_page(path)


def prepared(builder_class: type[Builder], split: str, data_dir: str | None = None) -> Builder:
  """The builder with its data prepared, now or before, and `split` among them.

  Args:
    builder_class: one of this module's.
    split: 'train', 'validation' or 'test'.
    data_dir: where prepared data are; None is TFDS's, `$TFDS_DATA_DIR` or ~/tensorflow_datasets.

  Raises:
    FileNotFoundError: the files of the split are missing; the message says which, and where they were looked for.
    ConnectionError: there is no manual folder, and the official files could not be downloaded.
    ValueError: a file is malformed.
  """
  builder = builder_class(data_dir=data_dir)
  mode = tfds.GenerateMode.REUSE_DATASET_IF_EXISTS
  if builder.is_prepared() and builder.manual_folder.exists():
    if builder.info.metadata.get('files') != builder.fingerprint():
      mode = tfds.GenerateMode.REUSE_CACHE_IF_EXISTS
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(download_mode=mode))
  if split not in builder.info.splits:
    raise FileNotFoundError(builder.absent(split))
  return builder
