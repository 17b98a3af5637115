"""The generation tasks end to end, on small files in the official formats, and the bundled sample."""

import importlib.util
import pathlib

import pytest
import seqio

from prompt_tuning import tasks
from prompt_tuning.tasks import builders, generation_metrics, low_data

ROOT = pathlib.Path(__file__).parents[2]
LENGTHS = {'inputs': 128, 'targets': 64}


@pytest.fixture(autouse=True, scope='module')
def data(tmp_path_factory):
  """Manual downloads are the small files; prepared data go to a temporary folder."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(builders.MANUAL_DIR, str(ROOT / 'tests' / 'goldens' / 'data'))
    seqio.set_tfds_data_dir_override(str(tmp_path_factory.mktemp('tfds')))
    yield
  seqio.set_tfds_data_dir_override(None)


def examples(name, split, **options):
  return list(tasks.load(name).get_dataset(LENGTHS, split, **{'shuffle': False, **options}).as_numpy_iterator())


def rows(name, split, **options):
  """(source, first reference) as the task's source gives them, which spares the tokenizer."""
  dataset = tasks.load(name).source.get_dataset(split, **{'shuffle': False, **options})
  return [(row.get('source', row.get('inputs')).decode(), row['references'][0].decode())
          for row in dataset.as_numpy_iterator()]


def sources(name, split, **options):
  return [source for source, _ in rows(name, split, **options)]


def test_an_example_keeps_its_text_and_all_references():
  task, (first, *_) = tasks.load('e2e'), examples('e2e', 'test')
  assert first['inputs_pretokenized'] == b'name : Blue Spice | Type : coffee shop | area : city centre'
  assert first['targets_pretokenized'] == b'A coffee shop in the city centre area called Blue Spice.'
  assert first['inputs'][-1] == first['targets'][-1] == 1
  assert task.postprocess_fn('ignored', example=first, is_target=True) == [
      'A coffee shop in the city centre area called Blue Spice.', 'Blue Spice is a coffee shop in city centre.']
  assert task.postprocess_fn(' Blue Spice. ', example=first, is_target=False) == 'Blue Spice.'
  with pytest.raises(ValueError, match='has lost its references'):
    task.postprocess_fn('x', example={'inputs': first['inputs']}, is_target=True)


def test_a_metric_takes_what_the_postprocessor_gives():
  task = tasks.load('xsum')
  targets = [task.postprocess_fn('', example=example, is_target=True) for example in examples('xsum', 'test')]
  (metric,) = task.predict_metric_fns
  scores = metric(targets, [references[0] for references in targets])
  assert scores
  assert all(isinstance(value, float) for value in scores.values())


@pytest.mark.parametrize(('name', 'metric'), [
    ('e2e', 'e2e'), ('e2e_dev_split', 'e2e'), ('e2e_sample', 'e2e'), ('webnlg_unseen', 'webnlg'), ('dart', 'dart'),
    ('e2e_sample_low100_s0', 'e2e'), ('xsum_low200_s1', 'xsum')])
def test_every_task_has_the_metrics_of_its_corpus(name, metric):
  assert tasks.load(name).metric_fns == [getattr(generation_metrics, metric)]


def test_training_examples_are_pairs_in_an_order_of_the_seed():
  assert len(sources('e2e', 'train')) == 20
  first, again, other = (sources('e2e', 'train', shuffle=True, seed=seed) for seed in (0, 0, 1))
  assert first == again
  assert first != other
  assert sorted(first) == sorted(other)


def test_two_hosts_see_every_row_once():
  shards = [sources('e2e', 'test', shard_info=seqio.ShardInfo(host, 2)) for host in (0, 1)]
  assert [len(shard) for shard in shards] == [3, 3]
  assert sorted(sum(shards, [])) == sorted(sources('e2e', 'test'))


def test_webnlg_halves():
  assert [len(sources(name, 'test')) for name in ('webnlg', 'webnlg_seen', 'webnlg_unseen')] == [3, 2, 1]
  assert sources('webnlg_unseen', 'test') == [' | Ida_Bok : genre : Folk_music']
  assert sources('webnlg_unseen', 'train') == sources('webnlg', 'train')


def test_xsum_by_topic():
  def stories(name, split):
    return [source.split('story ')[1].split()[0][-1] for source in sources(name, split)]

  assert {split: stories('xsum', split) for split in builders.SPLITS} == {
      'train': ['1', '2', '5'], 'validation': ['3'], 'test': ['4', '6']}
  assert {split: stories('xsum_news_to_sports', split) for split in builders.SPLITS} == {
      'train': ['1', '5'], 'validation': ['3'], 'test': ['6']}
  assert {split: stories('xsum_within_news', split) for split in builders.SPLITS} == {
      'train': ['1'], 'validation': ['3'], 'test': ['4']}


def test_topics_need_addresses(tmp_path, monkeypatch):
  for path in (ROOT / 'tests' / 'goldens' / 'data' / 'xsum').iterdir():
    if path.name != 'XSum-WebArxiveUrls.txt':
      (tmp_path / 'xsum').mkdir(exist_ok=True)
      (tmp_path / 'xsum' / path.name).write_bytes(path.read_bytes())
  monkeypatch.setenv(builders.MANUAL_DIR, str(tmp_path))
  with pytest.raises(ValueError, match="none of the 2 examples of 'test' is .* put XSum-WebArxiveUrls.txt"):
    sources('xsum_within_news', 'test')
  assert len(sources('xsum', 'test')) == 2


def test_the_dev_split_shares_no_table():
  train, validation = sources('e2e_dev_split', 'train'), sources('e2e_dev_split', 'validation')
  assert [len(train), len(set(train)), len(validation)] == [24, 8, 2]
  assert {*train, *validation} == set(sources('e2e', 'validation'))
  assert not set(train) & set(validation)


def test_the_bundled_sample_is_what_its_readme_says():
  train, validation = examples('e2e_sample', 'train'), examples('e2e_sample', 'validation')
  tables = [{example['inputs_pretokenized'] for example in part} for part in (train, validation)]
  assert [len(train), len(validation), *map(len, tables)] == [1340, 100, 447, 100]
  assert not tables[0] & tables[1]
  assert sum(len(example['references']) for example in validation) == 863
  assert sum(path.stat().st_size for path in (ROOT / 'tasks' / 'data').glob('e2e*')) < 400_000


def test_the_script_makes_the_sample_from_lines_in_any_order(tmp_path):
  spec = importlib.util.spec_from_file_location('make_e2e_sample', ROOT / 'scripts' / 'make_e2e_sample.py')
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  tables = {f'name[Pub {i}]': {f'Pub {i},  {word}.' for word in 'abcde'} for i in range(103)}
  lines = [f'"{mr}","{reference}"' for mr, references in tables.items() for reference in sorted(references)]
  (tmp_path / 'a.csv').write_text('\n'.join(['mr,ref', *lines]))
  (tmp_path / 'b.csv').write_text('\n'.join(['mr,ref', *lines[::-1]]))
  train, evaluation = script.select(script.read(tmp_path / 'a.csv'))
  assert (train, evaluation) == script.select(script.read(tmp_path / 'b.csv'))
  assert [{len(line) for line in part} for part in (train, evaluation)] == [{4}, {6}]
  assert len({mr for mr, *_ in train + evaluation}) == 103
  script.write(str(tmp_path / 'out.txt'), train[:1])
  assert (tmp_path / 'out.txt').read_text() == '\t'.join(train[0]) + '\n'
  assert '  ' not in train[0][1]


def test_low_data_subsets_are_fixed_and_disjoint():
  name = 'e2e_sample_low50_s3'
  train, validation = rows(name, 'train'), rows(name, 'validation')
  assert [len(set(train)), len(validation)] == [50, 15]
  assert not {source for source, _ in train} & {source for source, _ in validation}
  assert {*train, *validation} <= set(rows('e2e_sample', 'train'))
  assert train[0][0] == (
      'name : The Mill | Type : coffee shop | food : Chinese | price : more than £30 | area : riverside | '
      'near : The Sorrento')
  assert rows('e2e_sample_low50_s2', 'train') != train
  assert rows(name, 'test') == rows('e2e_sample', 'validation')


def test_the_draw():
  train, dev = low_data.draw(range(1000), 100, 0)
  assert [len(set(train)), len(set(dev))] == [100, 30]
  assert not set(train) & set(dev)
  train, dev = low_data.draw([i % 100 for i in range(400)], 50, 0)
  assert not {i % 100 for i in train} & {i % 100 for i in dev}
  with pytest.raises(ValueError, match='400 training examples are too few for 200 and, of other sources, 60'):
    low_data.draw([i % 2 for i in range(400)], 200, 0)


@pytest.mark.parametrize(('name', 'message'), [
    ('e2e_low75_s0', r'expected e2e_low<size>_s<seed> with a size of \(50, 100, 200, 500\)'),
    ('xsum_low50_s5', 'and a seed from 0 to 4'),
    ('e3e_low50_s0', "no task or mixture 'e3e_low50_s0'"),
    ('sst2_on_imdb_low50_s0', "no task or mixture 'sst2_on_imdb_low50_s0'"),  # which has no training split
    ('super_glue_v102_proportional_low50_s0', 'no task or mixture'),
])
def test_other_low_data_names_are_refused(name, message):
  with pytest.raises(ValueError, match=message):
    tasks.load(name)


def test_too_few_examples_are_counted():
  with pytest.raises(ValueError, match='20 training examples are too few for 50 and, of other sources, 15'):
    sources('e2e_low50_s0', 'train')


def test_an_unknown_split_is_named():
  with pytest.raises(ValueError, match="no split 'dev'; the task has train, validation, test"):
    examples('dart', 'dev')
