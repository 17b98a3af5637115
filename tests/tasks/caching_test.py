"""Caches of tasks: that every task can be cached, and that what is read from a cache is what the task makes."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest
import seqio
import tensorflow as tf

from prompt_tuning import cli, tasks
from prompt_tuning.tasks import caching, catalogue, local, text_to_text
from prompt_tuning.train import data

LENGTHS = {'inputs': 64, 'targets': 64}
SUBSET, CHANGED = 'e2e_sample_low50_s1', 'mine_to_cache_sentinel'  # made when named; one with several references


@pytest.fixture(scope='module', autouse=True)
def task_of_mine(tmp_path_factory):
  path = tmp_path_factory.mktemp('mine') / 'train.tsv'
  path.write_text('sentence\tlabel\n' + ''.join(f'film {i} is {i % 3} stars\t{i % 2}\n' for i in range(20)))
  local.local_task('mine_to_cache', {'train': path}, text_to_text.FORMATS['sst2'])


@pytest.fixture(autouse=True)
def no_caches(monkeypatch):
  """Nothing that seqio has found stays found."""
  monkeypatch.delenv(caching.FOLDERS, raising=False)
  for name in (SUBSET, CHANGED):
    monkeypatch.setattr(tasks.load(name), '_cache_dir', None)
  yield
  seqio.set_global_cache_dirs([])


def write_cache(task: seqio.Task, folder, shards: int = 2) -> None:
  """The form of `seqio_cache_tasks`: TFRecords, what is in them, how many, and a file that says that all is there."""
  root = folder / seqio.get_task_dir_from_name(task.name)
  root.mkdir(parents=True)
  for split in task.splits:
    rows = [row for index in range(shards) for row in task.preprocess_precache(task.source.get_dataset(
        split, shuffle=False, shard_info=seqio.ShardInfo(index, shards))).as_numpy_iterator()]
    for index in range(shards):
      with tf.io.TFRecordWriter(f'{root}/{split}.tfrecord-{index:05}-of-{shards:05}') as file:
        for row in rows[index::shards]:
          file.write(seqio.dict_to_tfexample(row).SerializeToString())
    spec = task.preprocess_precache(task.source.get_dataset(split, shuffle=False)).element_spec
    features = {name: {'shape': [None] * len(x.shape), 'dtype': x.dtype.name} for name, x in spec.items()}
    info = {'num_shards': shards, 'features': features, 'seqio_version': seqio.__version__}
    (root / f'info.{split}.json').write_text(json.dumps(info))
    (root / f'stats.{split}.json').write_text(json.dumps({'examples': len(rows)}))
  (root / 'COMPLETED').touch()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('caches')
  for name in (SUBSET, CHANGED):
    write_cache(tasks.load(name), path)
  return path


def examples(name: str, split: str, **kwargs) -> list[str]:
  dataset = data.Dataset(name, LENGTHS, split, batch_size=8, **kwargs)
  return [str(sorted((key, value.tolist() if hasattr(value, 'tolist') else value) for key, value in row.items()))
          for row in dataset.epoch(seed=0)]


def test_every_task_can_be_cached():
  tasks.find('')
  for name in seqio.TaskRegistry.names():
    task = seqio.TaskRegistry.get(name)
    if not type(task.source).__module__.startswith('prompt_tuning.'):
      continue  # of other tests
    assert task.supports_caching, name
    before = task.preprocessors[:task._cache_step_idx]
    assert seqio.preprocessors.append_eos_after_trim not in before, name
    assert task.source.supports_arbitrary_sharding or hasattr(task.source, 'tfds_dataset'), name


@pytest.mark.parametrize('name', [SUBSET, CHANGED])
def test_a_cache_holds_the_same_examples(name, folder, monkeypatch):
  monkeypatch.setenv(caching.FOLDERS, f'/nowhere,{folder}')
  for split in tasks.load(name).splits:
    made = examples(name, split, shuffle=False)
    assert sorted(examples(name, split, shuffle=False, use_cached=True)) == sorted(made)
    shuffled = examples(name, split, use_cached=True)
    assert sorted(shuffled) == sorted(made)
    assert shuffled != made
    assert shuffled == examples(name, split, use_cached=True)  # an order that the seed decides


def test_no_cache_is_one_message(folder, monkeypatch, tmp_path):
  with pytest.raises(FileNotFoundError, match='no folder of caches is named.*--seqio_additional_cache_dirs'):
    examples('sst2_sample', 'train', use_cached=True)
  monkeypatch.setenv(caching.FOLDERS, str(folder))
  with pytest.raises(FileNotFoundError, match='sst2_sample: none of .*seqio_cache_tasks .*--tasks=sst2_sample '):
    examples('sst2_sample', 'train', use_cached=True)
  with pytest.raises(FileNotFoundError, match='no cache of (super_glue|dpr)_'):
    caching.require(tasks.load('super_glue_v102_proportional'), 'train')


def test_a_cache_without_the_split_or_unfinished(folder, monkeypatch, tmp_path):
  task = tasks.load(SUBSET)
  root = shutil.copytree(folder / seqio.get_task_dir_from_name(SUBSET), tmp_path / seqio.get_task_dir_from_name(SUBSET))
  monkeypatch.setenv(caching.FOLDERS, str(tmp_path))
  (root / 'info.test.json').unlink()
  caching.require(task, 'train')
  with pytest.raises(FileNotFoundError, match="lacks its split 'test'"):
    caching.require(task, 'test')
  monkeypatch.setattr(task, '_cache_dir', None)
  (root / 'COMPLETED').unlink()
  with pytest.raises(FileNotFoundError, match='none of .* has it'):
    caching.require(task, 'train')


def test_a_task_that_cannot_be_cached():
  base = tasks.load('sst2_sample')
  steps = [step for step in base.preprocessors if not isinstance(step, seqio.CacheDatasetPlaceholder)]
  task = seqio.Task('mine', base.source, base.output_features, preprocessors=steps)
  with pytest.raises(ValueError, match='mine cannot be cached'):
    caching.require(task, 'train')


def test_the_flag(monkeypatch, capsys):
  monkeypatch.setenv(caching.FOLDERS, '')
  argv = ['--gin_file=quickstart.gin', '--seqio_additional_cache_dirs=a,gs://b', '--dry_run']
  assert cli.main(['train', *argv]) == 0
  assert os.environ[caching.FOLDERS] == 'a,gs://b'
  assert caching.folders()[-2:] == ['a', 'gs://b']


def test_all_that_is_made_when_named_can_be_registered_for_seqio(monkeypatch):
  registry = dict(seqio.TaskRegistry._REGISTRY)
  monkeypatch.setattr(seqio.TaskRegistry, '_REGISTRY', registry)
  catalogue.register_all()
  for name in ('e2e_low500_s4', 'sst2_sample_low50_s0', 'taskless_super_glue_cb_v102_sentinel', 'wang_imdb_s4'):
    assert registry[name].supports_caching


@pytest.mark.skipif(importlib.util.find_spec('apache_beam') is None, reason='the extra `cache` is not installed')
def test_seqios_command(tmp_path, monkeypatch):
  """Of a small task: half a minute, most of it imports."""
  subprocess.run([sys.executable, '-m', 'seqio.scripts.cache_tasks_main', f'--tasks={SUBSET}', '--min_shards=2',
                  '--module_import=prompt_tuning.tasks.every', f'--output_cache_dir={tmp_path}'], check=True)
  monkeypatch.setenv(caching.FOLDERS, str(tmp_path))
  for split in ('train', 'validation', 'test'):
    assert sorted(examples(SUBSET, split, use_cached=True)) == sorted(examples(SUBSET, split))
