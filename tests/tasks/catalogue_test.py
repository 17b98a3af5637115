"""`prompt-tuning tasks`: the list, the numbers of tasks that are here, and what it says of others."""

import json
import pathlib

import matplotlib.image
import numpy as np
import pytest
import seqio

from prompt_tuning import cli, tasks
from prompt_tuning.tasks import catalogue, lengths, origin

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'


@pytest.fixture(autouse=True)
def no_data(tmp_path, monkeypatch):
  """A data folder with nothing in it."""
  monkeypatch.setenv('PROMPT_TUNING_MANUAL_DIR', str(tmp_path / 'manual'))
  seqio.set_tfds_data_dir_override(str(tmp_path / 'tfds'))
  yield
  seqio.set_tfds_data_dir_override(None)


def test_the_list(capsys):
  assert cli.main(['tasks']) == 0
  out = capsys.readouterr().out
  rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
  assert {'e2e_sample', 'taskless_super_glue_wsc_v102', 'super_glue_v102_proportional', 'c4_prefix_lm'} <= set(rows)
  assert rows['sst2_sample'].split()[1:4] == ['train', 'validation', 'bundled']
  assert rows['taskless_glue_sst2_v002'].split()[4] == 'no'
  assert 'TFDS glue/sst2:1.0.0' in rows['taskless_glue_sst2_v002']
  assert 'a mixture of 9 tasks' in rows['super_glue_v102_proportional']
  for pattern, example, _ in catalogue.FAMILIES.values():
    assert pattern in rows
    assert example in out


def test_every_task_has_an_origin_and_a_licence():
  unknown = [name for name, task in catalogue.listed().items()
             if origin.UNKNOWN in (task['here'], task['licence']) and 'test' not in name]
  assert not unknown, 'say in tasks/origin.py where these are from'


def test_every_family_is_explained():
  assert set(catalogue.FAMILIES) == set(tasks.FAMILIES)
  for _, example, _ in catalogue.FAMILIES.values():
    assert origin.of(tasks.load(example)).here == origin.BUNDLED


def test_numbers_of_a_task(tmp_path, capsys):
  found = tmp_path / 'a' / 'tasks.json'
  assert cli.main(['tasks', 'e2e_sample', '--inputs=40', '--targets=32', '--splits=validation', f'--json={found}',
                   f'--plot={tmp_path / "b" / "a.png"}']) == 0
  out = capsys.readouterr().out
  task = json.loads(found.read_text())['e2e_sample']
  assert {name: split['examples'] for name, split in task['splits'].items()} == {'validation': 100}
  examples = list(tasks.load('e2e_sample').get_dataset(None, 'validation', shuffle=False).as_numpy_iterator())
  for feature, limit in (('inputs', 40), ('targets', 32)):
    sizes = np.array([len(example[feature]) for example in examples])
    numbers = task['splits']['validation'][feature]
    assert (numbers['limit'], numbers['longer']) == (limit, (sizes > limit).sum())
    assert numbers['mean'] == pytest.approx(sizes.mean())
    assert numbers['percentiles'] == {
        str(p): np.percentile(sizes, p, method='inverted_cdf') for p in lengths.PERCENTILES}
    assert numbers['counts'] == {str(n): (sizes == n).sum() for n in np.unique(sizes)}
  assert task['splits']['validation']['example'] == {
      name: examples[0][f'{name}_pretokenized'].decode() for name in ('inputs', 'targets')}
  assert 'labels' not in task['splits']['validation']
  assert 'CC BY-SA 4.0' in out
  assert task['splits']['validation']['example']['inputs'] in out
  assert matplotlib.image.imread(tmp_path / 'b' / 'a.png').ndim == 3
  assert not list(tmp_path.rglob('.*'))


def test_labels(tmp_path, capsys):
  found = tmp_path / 'tasks.json'
  assert cli.main(['tasks', 'sst2_sample', '--splits=validation', f'--json={found}']) == 0
  (split,) = json.loads(found.read_text())['sst2_sample']['splits'].values()
  assert split['labels'] == {  # as of the official dev set
      'negative': {'count': 428, 'share': 428 / 872}, 'positive': {'count': 444, 'share': 444 / 872}}
  assert 'labels of validation: negative 428 (49.1%), positive 444 (50.9%)' in capsys.readouterr().out


def test_a_limit(tmp_path):
  found = tmp_path / 'tasks.json'
  assert cli.main(['tasks', 'wikitext_sample_prefix_lm', '--limit=2', f'--json={found}']) == 0
  splits = json.loads(found.read_text())['wikitext_sample_prefix_lm']['splits']
  assert [split['examples'] for split in splits.values()] == [2, 2]
  assert splits['train']['example']['targets']  # tokens as text: this task keeps none


@pytest.mark.parametrize(('name', 'parts', 'message'), [
    ('taskless_super_glue_cb_v102', 1, 'prompt-tuning import-data super_glue/cb:1.0.2 --raw_dir='),
    ('super_glue_v102_proportional', 9, 'prompt-tuning import-data super_glue/wsc.fixed:1.0.2 --raw_dir='),
    ('webnlg', 1, 'test/testdata_with_lex.xml'),
    ('wang_imdb', 1, 'train/[np]*/*.txt'),
    ('xquad_en_low50_s1', 1, 'xquad.en.json'),
    ('text_prefix_lm', 1, 'train*.txt'),
])
def test_data_that_are_not_here(tmp_path, capsys, name, parts, message):
  found = tmp_path / 'tasks.json'
  assert cli.main(['tasks', name, 'sst2_sample', '--limit=2', f'--json={found}']) == 1
  out = capsys.readouterr().out
  assert message in out
  result = json.loads(found.read_text())
  assert len(result) == parts + 1
  assert result['sst2_sample']['splits']['train']['examples'] == 2  # the others are shown all the same
  assert all('missing' in split for task in list(result.values())[:parts] for split in task['splits'].values())


def test_a_split_that_is_not_here(tmp_path, capsys):
  folder = tmp_path / 'manual' / 'e2e'
  folder.mkdir(parents=True)
  (folder / 'devset.csv').write_text('mr,ref\n"name[Aromi], area[riverside]",Aromi is by the river.\n')
  assert cli.main(['tasks', 'e2e']) == 1
  out = capsys.readouterr().out
  assert 'cannot be read (train)' in out
  assert 'trainset.csv' in out
  assert 'name : Aromi | area : riverside' in out


@pytest.mark.parametrize(('path', 'text', 'inputs', 'targets'), [
    ('gpt2', ' good ', ('', ''), ('', 'eos')),  # Li & Liang 2021's format
    ('bart', 'good', ('bos', 'eos'), ('bos', 'eos')), ('bert', 'good', ('bos', 'eos'), ('bos', 'eos'))])
def test_tokens_of_another_tokenizer(path, text, inputs, targets):
  tokenizer, encode = lengths.encoder(str(GOLDENS / 'tokenizers' / path))
  ends = lambda names: [[getattr(tokenizer, f'{name}_id')] if name else [] for name in names]
  found = encode({'inputs_pretokenized': b'good', 'targets_pretokenized': b'good'})
  for feature, (before, behind) in (('inputs', ends(inputs)), ('targets', ends(targets))):
    assert found[feature] == [*before, *tokenizer.encode(text), *behind]


def test_t5s_own_tokenizer_changes_nothing():
  task = tasks.load('e2e_sample')
  _, encode = lengths.encoder(str(pathlib.Path(tasks.__file__).parents[1] / 'prompt_tuning/assets/t5.spiece.model'))
  limits = {'inputs': 9, 'targets': 9}
  assert lengths.measure(task, 'validation', limits, encode) == lengths.measure(task, 'validation', limits)


@pytest.mark.parametrize(('argv', 'message'), [
    (['sst2_sampel'], 'Nearest: sst2_sample'),
    (['sst2_sample', '--inputs=0'], '--inputs=0: expected a number from 1'),
    (['sst2_sample', '--plot=a.jpg'], '--plot=a.jpg'),
    (['sst2_sample', '--splits=dev'], 'sst2_sample has none of them; it has train, validation'),
    (['sst2_sample', '--tokenizer=nowhere'], '--tokenizer=nowhere: no tokenizer'),
])
def test_mistakes(capsys, argv, message):
  assert cli.main(['tasks', *argv]) == 1
  assert message in capsys.readouterr().err


def test_bars_hold_every_example():
  counts = {'3': 5, '17': 2, '90': 1}
  edges, examples = lengths.histogram(counts)
  assert examples.sum() == 8
  assert edges[0] <= 3
  assert edges[-1] > 90
  lines = lengths.bars(counts, 20)
  assert [line.split()[-1] for line in lines] == [str(n) for n in examples]
  assert ['!' in line for line in lines] == [high - 1 > 20 for high in edges[1:]]
