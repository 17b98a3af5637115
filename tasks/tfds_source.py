"""`TfdsSource`: seqio's source of TFDS data that says at once what to do where the data are not there.

`seqio.TfdsDataSource` would try to download for minutes and then show the trace of a name server. Where the internet
can be reached, this downloads and prepares as that does.
"""

import os
import re

import requests
import seqio
import tensorflow_datasets as tfds

PROBE = 'https://storage.googleapis.com'
PROBE_SECONDS = 5


class TfdsSource(seqio.TfdsDataSource):
  """As `seqio.TfdsDataSource`, with the same arguments; a data set or split that is not to be had is one message."""

  def get_dataset(self, split=None, *args, **kwargs):
    """Reads a split, as `seqio.DataSource.get_dataset` says.

    Raises:
      FileNotFoundError: the data set is not prepared and cannot be downloaded, or it is without this split. The
        message names the folder, the command that imports it and where its raw files are from.
    """
    split = split or 'train'
    self._check(split)
    try:
      return super().get_dataset(split, *args, **kwargs)
    except (OSError, tfds.download.DownloadError) as error:
      raise FileNotFoundError(self._missing(f'could not be downloaded ({error})')) from error

  def num_input_examples(self, split: str) -> int | None:
    """The number of examples in a prepared split; raises as `get_dataset`."""
    self._check(split)
    return super().num_input_examples(split)

  def list_shards(self, split: str):
    """The files of a prepared split; raises as `get_dataset`."""
    self._check(split)
    return super().list_shards(split)

  def _check(self, split: str) -> None:
    loader = self.tfds_dataset
    if loader.is_memoized(split) and not loader.info.splits:
      loader._MEMOIZED_BUILDERS.pop((loader.name, loader.data_dir))  # it may have been prepared since
    try:
      builder = loader.builder
    except (ValueError, AssertionError) as error:  # neither code nor files, or code of other versions alone
      raise FileNotFoundError(self._missing('is not prepared, and TFDS has no code for it')) from error
    if not builder.is_prepared():
      if not online():
        raise FileNotFoundError(self._missing('is not prepared, and the internet cannot be reached to download it'))
    elif (name := re.split(r'[\[+]', str(loader._map_split(split)))[0]) not in builder.info.splits:
      raise FileNotFoundError(self._missing(f'has no split {name!r}, only {", ".join(builder.info.splits)}'))

  def _missing(self, what: str) -> str:
    loader = self.tfds_dataset
    folder = os.path.abspath(os.path.expanduser(loader.data_dir or tfds.core.constants.DATA_DIR))
    from prompt_tuning.tasks import raw_datasets  # late: modules that it imports may import this one

    try:
      source = raw_datasets.find(loader.name)[1].source
    except ValueError:
      return (f'{loader.name} {what}. Looked in {folder}. Prepare it with TFDS where there is a network, and copy the '
              'folder here; prompt-tuning import-data --list shows the data sets that can be made from raw files.')
    return (f'{loader.name} {what}. Looked in {folder}. Get its raw files from {source}, and import them: '
            f'prompt-tuning import-data {loader.name} --raw_dir=FOLDER --tfds_data_dir={folder}')


def online() -> bool:
  """Whether the hosts of TFDS can be reached, through a proxy if there is one; waits for `PROBE_SECONDS` at most."""
  try:
    requests.head(PROBE, timeout=PROBE_SECONDS)
  except requests.RequestException:
    return False
  return True
