"""The bundled SST-2 sample: its files, its task, and the script that made it."""

import importlib.util
import pathlib

import pytest
import seqio

from prompt_tuning import tasks

ROOT = pathlib.Path(__file__).parents[2]
LENGTHS = {'inputs': 128, 'targets': 8}


def _rows(name):
  header, *lines = (ROOT / 'tasks' / 'data' / name).read_text(encoding='utf-8').splitlines()
  assert header == 'label\tsentence'
  return [tuple(line.split('\t')) for line in lines]


def _script():
  spec = importlib.util.spec_from_file_location('make_sst2_sample', ROOT / 'scripts' / 'make_sst2_sample.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_files_are_what_their_readme_says():
  dev, train = _rows('sst2_dev.tsv'), _rows('sst2_sample_train.tsv')
  assert [sum(label == c for label, _ in dev) for c in '01'] == [428, 444]
  assert [sum(label == c for label, _ in train) for c in '01'] == [2888, 3112]
  assert len({s for _, s in train}) == 6000
  assert not {s for _, s in train} & {s for _, s in dev}
  assert min(len(s.split()) for _, s in train) == 8
  # Shuffled: every block of 500 rows has about the same balance.
  assert all(200 < sum(label == '1' for label, _ in train[i:i + 500]) < 300 for i in range(0, 6000, 500))
  assert sum(path.stat().st_size for path in (ROOT / 'tasks' / 'data').iterdir()) < 1_100_000


def test_dev_split_end_to_end():
  task = tasks.load('sst2_sample')
  examples = list(task.get_dataset(LENGTHS, 'validation', shuffle=False).as_numpy_iterator())
  assert len(examples) == 872
  assert examples[0]['inputs_pretokenized'].decode() == (
      'sentence: majidi is an unconventional storyteller , capable of finding beauty in the most depressing '
      'places .')
  assert examples[0]['targets'].tolist() == [1465, 1]
  assert all(e['inputs'][-1] == 1 and e['targets'][-1] == 1 for e in examples)
  words = [e['targets_pretokenized'].decode() for e in examples]
  assert [words.count(w) for w in ('negative', 'positive')] == [428, 444]


def test_training_order_follows_the_seed():
  task = tasks.load('sst2_sample')

  def first(seed):
    dataset = task.get_dataset(LENGTHS, 'train', shuffle=True, seed=seed).take(20)
    return [e['inputs_pretokenized'] for e in dataset.as_numpy_iterator()]

  assert first(0) == first(0)
  assert first(0) != first(1)


def test_two_hosts_see_every_row_once():
  task = tasks.load('sst2_sample')
  shards = [task.get_dataset(LENGTHS, 'validation', shuffle=False, shard_info=seqio.ShardInfo(host, 2))
            for host in (0, 1)]
  rows = [[e['inputs_pretokenized'] for e in shard.as_numpy_iterator()] for shard in shards]
  assert [len(r) for r in rows] == [436, 436]
  assert len({*rows[0], *rows[1]}) == 872


def test_an_unknown_split_is_named():
  with pytest.raises(ValueError, match="no split 'test'; the task has train, validation"):
    tasks.load('sst2_sample').get_dataset(LENGTHS, 'test')


def test_the_script_takes_eligible_rows_whatever_their_order(tmp_path):
  script = _script()
  long = [f'a sentence that has exactly eight words {i}' for i in range(20)]
  rows = [*((str(i % 2), s) for i, s in enumerate(long)), ('1', 'too short'), ('1', long[3]), ('0', long[3])]
  dev = [('1', long[5])]
  (tmp_path / 'a.tsv').write_text('sentence\tlabel\n' + ''.join(f'{s} \t{label}\n' for label, s in rows))
  (tmp_path / 'b.tsv').write_text('label\tsentence\n' + ''.join(f'{label}\t{s}\n' for label, s in rows[::-1]))
  a, b = (script.read(str(tmp_path / name)) for name in ('a.tsv', 'b.tsv'))
  assert a == b == set(rows)
  chosen = script.select(a, set(dev), 100)
  assert {s for _, s in chosen} == set(long) - {long[3], long[5]}  # 3 contradicts itself, 5 is a dev sentence
  assert script.select(b, set(dev), 7) == chosen[:7]
  script.write(str(tmp_path / 'out.tsv'), chosen[:1])
  assert (tmp_path / 'out.tsv').read_text() == 'label\tsentence\n' + '\t'.join(chosen[0]) + '\n'


def test_the_bundled_rows_are_in_the_scripts_order():
  script = _script()
  for name in ('sst2_dev.tsv', 'sst2_sample_train.tsv'):
    assert script.shuffled(_rows(name)) == _rows(name)
