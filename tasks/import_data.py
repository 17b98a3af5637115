"""`prompt-tuning import-data`: raw files into the form on disk that TFDS and seqio read, without a network.

What is written has the name, version, features, keys and hence the order of what the stock builder would have
prepared, so `tfds.builder('glue/sst2:1.0.0', data_dir=...)` finds it and tasks do not know the difference. (TFDS takes
whatever is in `<data_dir>/<name>/<config>/<version>` where a version is named, also one that its code is too new to
prepare.) A data set is prepared in a hidden folder beside its place, which one rename fills: it is there whole or not
at all. Data sets of this package's own builders are prepared by these from RAW_DIR.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import io
import os
import sys
import types
import uuid

from etils import epath
import tensorflow_datasets as tfds
from tensorflow_datasets.question_answering import qa_utils

from prompt_tuning.tasks import (
  builders,
  classification_builders,
  classification_files,
  raw_datasets,
  raw_lenient,
  raw_rows,
)

_FAMILY_FEATURES = {
    'squad_like': qa_utils.squadlike_features,
    'text_corpus': lambda: tfds.features.FeaturesDict({'text': tfds.features.Text()}),
}


@dataclasses.dataclass
class Count:
  """Of a split: records read from the files, those of them skipped as broken, and examples written."""

  read: int = 0
  skipped: int = 0
  written: int = 0


@dataclasses.dataclass(frozen=True)
class _Job:
  """An import: what, from which files, and what is counted on the way."""

  name: str
  spec: raw_datasets.Raw | raw_datasets.Own
  version: str
  root: epath.Path
  patterns: Mapping[str, str]
  skip_broken: bool
  counts: dict[str, Count]

  def broken(self, split: str, message: str) -> None:
    """Skips a broken record, or ends the import."""
    if not self.skip_broken:
      raise ValueError(f'{message.rstrip(".")}. Correct it, or leave such records out with --on_broken_line=skip.')
    print(f'skipped: {message}', file=sys.stderr)
    self.counts[split].skipped += 1
    self.counts[split].read += 1


def import_dataset(
    name: str, raw_dir: str | os.PathLike, data_dir: str | os.PathLike, skip_broken: bool = False,
    overwrite: bool = False, files: Mapping[str, str] | None = None) -> dict[str, Count]:
  """Prepares a data set from raw files.

  Args:
    name: `NAME[/CONFIG][:VERSION]`, see `raw_datasets`.
    raw_dir: folder of the raw files.
    data_dir: TFDS's data folder.
    skip_broken: leave out records that cannot be read, each with a line on standard error; otherwise the first of
      them ends the import.
    overwrite: replace what was imported earlier; it stays if anything fails.
    files: split -> file or pattern in `raw_dir`, instead of the known names.

  Returns:
    What was read and written, by split. Splits without files are absent.

  Raises:
    ValueError: there is no such data set or split, or a record is broken (the message names file and line).
    FileNotFoundError: none of the files is there.
    FileExistsError: the data set has been imported already.
  """
  plain, spec, version = raw_datasets.find(name)
  data = epath.Path(data_dir).expanduser()
  target, work = data / plain / version, data / f'.import-{uuid.uuid4().hex[:12]}'
  if target.exists() and not overwrite:
    raise FileExistsError(f'{target} is there already. Give --overwrite to import it anew.')
  root, patterns = locate(plain, spec, epath.Path(raw_dir).expanduser(), files)
  job = _Job(plain, spec, version, root, patterns, skip_broken, {split: Count() for split in patterns})
  try:
    builder = (_stock if isinstance(spec, raw_datasets.Raw) else _own)(job, os.fspath(work))
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS would tell of downloads
      builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    _replace(epath.Path(builder.data_dir), target, work)
  finally:
    if work.exists():
      work.rmtree()
  for split, info in builder.info.splits.items():
    job.counts[split].written = info.num_examples
  return {split: count for split, count in job.counts.items() if count.written}


def locate(
    name: str, spec: raw_datasets.Raw | raw_datasets.Own, folder: epath.Path,
    files: Mapping[str, str] | None = None) -> tuple[epath.Path, dict[str, str]]:
  """`folder` or the sub-folder of the official archive, and by split the pattern that files there match.

  Raises:
    ValueError: `files` names a split that the data set does not have.
    FileNotFoundError: there are none, or not those of `files`; the message says what was looked for.
  """
  for split in files or {}:
    if split not in spec.files:
      raise ValueError(f'--file {split}=...: {name} has the splits {", ".join(spec.files)}.')
  wanted = files or spec.files
  for root in dict.fromkeys((folder, folder / spec.folder)):
    found = {split: pattern for split, patterns in wanted.items()
             if (pattern := next((p for p in patterns.split('|') if any(root.glob(p))), None))}
    if found:
      break
  lacking = ', '.join(f'{split}: {patterns}' for split, patterns in wanted.items() if split not in found)
  if not found or (files and lacking):
    raise FileNotFoundError(f'{name}: {folder} has none of these files (| parts alternatives): {lacking}. Get them '
                            f'from {spec.source}, or name yours with --file SPLIT=PATTERN.')
  return root, found


def _stock(job: _Job, data_dir: str) -> tfds.core.GeneratorBasedBuilder:
  """The stock builder of that name, or one of a family, made to read the files."""
  family, _, config = job.name.partition('/')
  if family in raw_datasets.FAMILIES:
    stock, config = tfds.core.GeneratorBasedBuilder, tfds.core.BuilderConfig(name=config, version=job.version)
    members = {'code_path': epath.Path(__file__), '_info': lambda self: tfds.core.DatasetInfo(
        builder=self, description=f'{job.spec.source}.', features=_FAMILY_FEATURES[family]())}
  else:
    stock = tfds.builder_cls(family)
    members = {'__module__': stock.__module__}

  def split_generators(self, dl_manager):
    return {split: _examples(job, split, sorted(job.root.glob(pattern)), self.info.features)
            for split, pattern in job.patterns.items()}

  version = tfds.core.Version(job.version)
  members |= {'name': family, '_split_generators': split_generators, '_generate_examples': None,
              'canonical_version': version}  # TFDS would not prepare GLUE 1.0.0, which is older
  return _derived(stock, members)(config=config or None, version=version, data_dir=data_dir)


def _examples(
    job: _Job, split: str, paths: Sequence[epath.Path], features: tfds.features.FeaturesDict
) -> Iterator[raw_rows.Keyed]:
  keys = set()
  for number, path in enumerate(paths):
    for record in job.spec.read(path):
      try:
        if isinstance(record.value, ValueError):
          raise record.value
        found = [(f'{number}_{key}' if len(paths) > 1 and isinstance(key, int) else key, example)
                 for key, example in job.spec.convert(record.value, record.index, split)]
        for key, example in found:
          if key in keys:
            raise ValueError(f'there is another example with the idx or id {key!r} above')
          features.encode_example(example)
      except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        job.broken(split, f'{record.where}: {error}')
        continue
      job.counts[split].read += 1
      keys.update(key for key, _ in found)
      yield from found
  if not keys:
    raise ValueError(f'{", ".join(map(str, paths[:3]))}: no example in it. Is it the right file?')


def _own(job: _Job, data_dir: str) -> builders.Builder:
  """This package's builder, made to read the files and to count."""
  stock = job.spec.builder

  def rows(reader, files, split):
    for row in raw_lenient.read(reader, files, functools.partial(job.broken, split), job.spec.header):
      job.counts[split].read += 1
      yield row

  def read(self, path, split):
    return rows(lambda p: stock.read(self, p, split), [path], split)

  def tweets(self, files, split):
    aligned = lambda labels, texts: classification_files.read_aligned(texts, labels, self.CLASSES)
    return rows(aligned, files, split) if len(files) == 2 else iter(())

  members = {'name': job.name, '__module__': stock.__module__, 'read': read,
             'FILES': {split: (job.patterns[split],) if split in job.patterns else () for split in job.spec.files},
             'manual_folder': property(lambda self: job.root)}
  if issubclass(stock, classification_builders.TweetSentiment):
    members['_rows'] = tweets
  return _derived(stock, members)(data_dir=data_dir)


def _derived(stock: type, members: dict) -> type:
  return types.new_class(stock.__name__, (stock,), {'skip_registration': True}, lambda body: body.update(members))


def _replace(new: epath.Path, target: epath.Path, work: epath.Path) -> None:
  """Moves `new` to `target`; what was there goes to `work`, or stays if that fails."""
  target.parent.mkdir(parents=True, exist_ok=True)
  old = work / 'replaced'
  if target.exists():
    target.rename(old)
  try:
    new.rename(target)
  except OSError:
    if old.exists():
      old.rename(target)
    raise


def report(name: str, counts: Mapping[str, Count]) -> list[str]:
  """A table of the splits, beside the official numbers of examples."""
  _, spec, _ = raw_datasets.find(name)
  rows = [('split', 'read', 'skipped', 'written', 'official', '')]
  for split, files in spec.files.items():
    official = spec.official.get(split)
    count = counts.get(split)
    if count is None:
      remark = f'absent: no {files}'
    elif not official:
      remark = ''
    elif count.written + count.skipped < official:
      remark = f'a sample: {count.written / official:.2%}'
    else:
      remark = 'complete' if count.written <= official else 'more than official'
    numbers = (count.read, count.skipped, count.written) if count else ('-',) * 3
    rows.append((split, *(f'{n:,}' if isinstance(n, int) else n for n in (*numbers, official or '-')), remark))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return ['  '.join(cell.ljust(w) if i in (0, 5) else cell.rjust(w) for i, (cell, w) in enumerate(
      zip(row, widths, strict=True))).rstrip() for row in rows]


def listing() -> list[str]:
  """The data sets, each with versions, files, source and licence."""
  lines = []
  named = {**raw_datasets.DATASETS, **{f'{name}/NAME': spec for name, spec in raw_datasets.FAMILIES.items()}}
  for name, spec in named.items():
    lines.append(f'{name}:{"|".join(spec.versions)}')
    lines += [f'  {split}: {files}' for split, files in spec.files.items()]
    lines.append(f'  from {spec.source} ({spec.licence})')
  return lines


def parser() -> argparse.ArgumentParser:
  """The command's flags."""
  result = argparse.ArgumentParser(
      prog='prompt-tuning import-data',
      description='Turns raw files into a data set that tasks read: see docs/data.md, and --list for names and files.')
  result.add_argument('name', nargs='?', metavar='NAME', help='such as glue/sst2:1.0.0; the version may be left out')
  result.add_argument('--list', action='store_true', help='print the data sets, their files, sources and licences')
  result.add_argument('--raw_dir', metavar='DIR', help='folder with the raw files')
  result.add_argument('--tfds_data_dir', metavar='DIR', help="where to write: TFDS's data folder")
  result.add_argument('--on_broken_line', choices=('error', 'skip'), default='error',
                      help='what to do with a record that cannot be read (default: error, and nothing is written)')
  result.add_argument('--overwrite', action='store_true', help='replace what was imported earlier')
  result.add_argument('--file', action='append', default=[], metavar='SPLIT=PATTERN',
                      help='read this split, and only those named so, from this file of DIR; may be repeated')
  return result


def import_data(argv: Sequence[str]) -> int:
  """The command; returns the exit code.

  Raises:
    ValueError, OSError: as `import_dataset`, or a flag is missing or malformed.
  """
  flags = parser().parse_args(argv)
  if flags.list:
    print('\n'.join(listing()))
    return 0
  for flag, value in (('NAME', flags.name), ('--raw_dir', flags.raw_dir), ('--tfds_data_dir', flags.tfds_data_dir)):
    if not value:
      raise ValueError(f'{flag} is missing; expected NAME --raw_dir=DIR --tfds_data_dir=DIR, or --list.')
  pairs = [pair.partition('=')[::2] for pair in flags.file]
  if not all(split and pattern for split, pattern in pairs):
    raise ValueError(f'--file {" ".join(flags.file)}: expected SPLIT=PATTERN, such as validation=dev.json.')
  tfds.disable_progress_bar()
  counts = import_dataset(
      flags.name, flags.raw_dir, flags.tfds_data_dir, flags.on_broken_line == 'skip', flags.overwrite, dict(pairs))
  print('\n'.join(report(flags.name, counts)))
  return 0
