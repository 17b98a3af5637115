"""`prompt-tuning import-data`: what it writes is what the stock TFDS builders read from the same files."""

import collections
import dataclasses
import gzip
import json
import os
import pathlib
import re
import shutil

from etils import epath
import pytest
import tensorflow_datasets as tfds

from prompt_tuning import cli
from prompt_tuning.tasks import (
  builders,
  classification_builders,
  import_data,
  raw_datasets,
  raw_files,
  raw_lenient,
  xsum_files,
)

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
RAW = GOLDENS / 'raw'


def plain(value):
  """A decoded or encoded example as lists, numbers and text, to compare."""
  if isinstance(value, dict):
    return {key: plain(v) for key, v in value.items()}
  if hasattr(value, 'tolist'):
    return plain(value.tolist())
  if isinstance(value, list):
    return [plain(v) for v in value]
  return value.decode() if isinstance(value, bytes) else value


def read(name, split, data_dir):
  """The examples that stock TFDS finds, in their order."""
  builder = tfds.builder(name, data_dir=data_dir)
  return [plain(row) for row in builder.as_dataset(split=split).as_numpy_iterator()]


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """Where this module imports to."""
  tfds.disable_progress_bar()
  return tmp_path_factory.mktemp('tfds')


def stock_rows(builder, *arguments):
  """What the code of a stock builder makes of a file, encoded."""
  return [plain(builder.info.features.encode_example(example))
          for _, example in builder._generate_examples(*arguments)]


def canonical(rows):
  return sorted(json.dumps(row, sort_keys=True) for row in rows)


SUPERGLUE = ('boolq', 'cb', 'copa', 'multirc', 'record', 'rte', 'wic', 'wsc', 'wsc.fixed')
STOCK = [  # name, folder, split -> arguments of the stock builder's reader after the folder
    *((f'super_glue/{task}:1.0.2', f'superglue/{folder}', {
        'train': ('train.jsonl', 'train'), 'validation': ('val.jsonl', 'validation'), 'test': ('test.jsonl', 'test')})
      for task, folder in zip(SUPERGLUE, (
          'BoolQ', 'CB', 'COPA', 'MultiRC', 'ReCoRD', 'RTE', 'WiC', 'WSC', 'WSC'), strict=True)),
    ('glue/sst2:1.0.0', 'glue/SST-2', {'train': ('train.tsv', 'train')}),
    ('glue/rte:1.0.0', 'glue/RTE', {'train': ('train.tsv', 'train'), 'validation': ('dev.tsv', 'dev')}),
    ('glue/rte:2.0.0', 'glue/RTE', {'train': ('train.tsv', 'train'), 'validation': ('dev.tsv', 'dev')}),
    ('glue/qqp:2.0.0', 'glue/QQP', {'validation': ('dev.tsv', 'dev')}),
    ('glue/qnli:2.0.0', 'glue/QNLI', {'validation': ('dev.tsv', 'dev')}),
    ('glue/mnli:2.0.0', 'glue/MNLI', {'validation_matched': ('dev_matched.tsv', 'dev')}),
    ('glue/mnli_matched:1.0.0', 'glue/MNLI', {'validation': ('dev_matched.tsv', 'dev')}),
    ('squad/v1.1:3.0.0', 'squad', {'validation': ('dev-v1.1.json',)}),
    ('mrqa/bio_asq:1.0.0', 'mrqa', {'test': ('test/BioASQ.jsonl', 'test')}),
    ('definite_pronoun_resolution:1.1.0', 'dpr', {'train': ('train.c.txt',), 'test': ('test.c.txt',)}),
]


@pytest.mark.parametrize(('name', 'folder', 'splits'), STOCK, ids=[row[0] for row in STOCK])
def test_rows_are_those_of_the_stock_builder(data_dir, name, folder, splits):
  counts = import_data.import_dataset(name, RAW / folder, data_dir)
  family, version = name.split(':')
  stock = tfds.builder(family, data_dir=data_dir / 'none')
  compared = 0
  for split, (file, *arguments) in splits.items():
    if (RAW / folder / file).exists():
      expected = stock_rows(stock, os.fspath(RAW / folder / file), *arguments)
      assert canonical(read(name, split, data_dir)) == canonical(expected)
      assert counts[split].written == len(expected) > 0
      compared += 1
  assert compared
  found = tfds.builder(name, data_dir=data_dir)
  assert (found.info.full_name.split('/')[-1], str(found.info.features)) == (version, str(stock.info.features))


def test_mrpc_of_microsoft_is_parted_by_the_ids_of_glue(data_dir):
  folder = RAW / 'glue' / 'MRPC'
  import_data.import_dataset('glue/mrpc', folder, data_dir)
  stock = tfds.builder('glue/mrpc', data_dir=data_dir / 'none')
  files = {'dev_ids': os.fspath(folder / 'mrpc_dev_ids.tsv'), 'train': os.fspath(folder / 'msr_paraphrase_train.txt'),
           'test': os.fspath(folder / 'msr_paraphrase_test.txt')}
  for split, name, size in (('train', 'train', 3), ('validation', 'dev', 2), ('test', 'test', 2)):
    rows = read('glue/mrpc', split, data_dir)
    assert canonical(rows) == canonical(stock_rows(stock, None, name, files))
    assert len(rows) == size
  quoted = {row['sentence1'] for row in read('glue/mrpc', 'train', data_dir)}
  assert '"And about eight to 10 seconds down, I hit.' in quoted
  assert {row['label'] for row in read('glue/mrpc', 'test', data_dir)} == {-1}


def test_order_is_that_of_tfds(data_dir, tmp_path):
  """An example's place follows from its key alone, which is the stock builder's."""
  class Stock(tfds.builder_cls('glue'), skip_registration=True):
    name = 'glue'

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples(os.fspath(RAW / 'glue/RTE/train.tsv'), 'train')}

  stock = Stock(config='rte', data_dir=tmp_path)
  stock.download_and_prepare()
  import_data.import_dataset('glue/rte', RAW / 'glue/RTE', data_dir, overwrite=True)
  assert read('glue/rte', 'train', data_dir) == [plain(r) for r in stock.as_dataset(split='train').as_numpy_iterator()]


def test_samples_under_their_own_names(data_dir):
  assert import_data.import_dataset('glue/sst2:2.0.0', RAW / 'glue', data_dir)['validation'].read == 3
  sst2 = read('glue/sst2:2.0.0', 'validation', data_dir)
  lines = (RAW / 'glue/SST-2/glue_dev.tsv').read_text().splitlines()[1:]  # label first, `content`
  assert sorted(f'{r["label"]}\t{r["sentence"]}' for r in sst2) == sorted(lines)
  import_data.import_dataset('glue/qqp:1.0.0', RAW / 'glue/QQP', data_dir)
  qqp = json.loads((RAW / 'glue/QQP/train.json').read_text())
  assert {(r['question1'], r['question2'], str(r['label'])) for r in read('glue/qqp:1.0.0', 'train', data_dir)} == {
      tuple(row.values()) for row in qqp.values()}


def test_agnews_and_imdb(data_dir, tmp_path):
  import_data.import_dataset('ag_news_subset', GOLDENS / 'data/agnews', data_dir)
  stock = tfds.builder('ag_news_subset', data_dir=data_dir / 'none')
  assert canonical(read('ag_news_subset:1.0.0', 'test', data_dir)) == canonical(
      stock_rows(stock, os.fspath(GOLDENS / 'data/agnews/test.csv')))
  assert {row['title'] for row in read('ag_news_subset:1.0.0', 'train', data_dir)} == {''}  # alps_dev.tsv has none
  import_data.import_dataset('imdb_reviews/plain_text', GOLDENS / 'data/imdb', data_dir)
  praise = next(r for r in read('imdb_reviews/plain_text:1.0.0', 'test', data_dir) if 'Chasing the Dragon' in r['text'])
  assert praise['label'] == 1  # 0 in the file
  for kind in ('neg', 'pos', 'unsup'):
    (tmp_path / 'aclImdb/train' / kind).mkdir(parents=True)
    (tmp_path / 'aclImdb/train' / kind / '0_1.txt').write_text(f'{kind}: it was.<br />')
  counts = import_data.import_dataset('imdb_reviews/plain_text', tmp_path, data_dir, overwrite=True)
  assert {split: count.written for split, count in counts.items()} == {'train': 2, 'unsupervised': 1}
  assert [(r['text'][:3], r['label']) for r in sorted(
      read('imdb_reviews/plain_text:1.0.0', 'train', data_dir), key=str)] == [('neg', 0), ('pos', 1)]


def test_builders_of_our_own(data_dir, monkeypatch):
  monkeypatch.delenv(builders.MANUAL_DIR, raising=False)
  sizes = {name: {split: count.written for split, count in import_data.import_dataset(
      name, GOLDENS / 'data', data_dir).items()}
           for name in ('e2e_nlg', 'webnlg_2017', 'dart_v111', 'xsum_bbc', 'dbpedia_14_files', 'tweet_eval_sentiment')}
  assert sizes == {
      'e2e_nlg': {'train': 20, 'validation': 10, 'test': 6}, 'webnlg_2017': {'train': 3, 'validation': 1, 'test': 3},
      'dart_v111': {'train': 3, 'validation': 1, 'test': 2}, 'xsum_bbc': {'train': 3, 'validation': 1, 'test': 2},
      'dbpedia_14_files': {'train': 29, 'test': 14}, 'tweet_eval_sentiment': {'validation': 6, 'test': 3}}
  # The tasks take them from there, without a folder of manual downloads.
  builder = builders.prepared(builders.E2eNlg, 'test', data_dir)
  assert builder.info.splits['test'].num_examples == 6
  assert builders.prepared(classification_builders.Dbpedia14, 'test', data_dir).is_prepared()
  with pytest.raises(FileNotFoundError, match="has no split 'train'"):
    builders.prepared(classification_builders.TweetSentiment, 'train', data_dir)


def test_text_and_squad_like_files_under_a_name_of_ones_own(data_dir, tmp_path):
  (tmp_path / 'train.txt').write_text(
      ' \n = One = \n \n Text of one . \n = = Part = = \n = 1 + b = \n \n = Two = \n \n Of two . \n')
  (tmp_path / 'valid.txt').write_text('A first\ntext.\n\n\nA second.\n')
  with gzip.open(tmp_path / 'test.json.gz', 'wt') as f:
    f.write('{"text": "In C4\'s form.", "url": "http://x.y", "timestamp": "2019"}\n')
  import_data.import_dataset('text_corpus/mine', tmp_path, data_dir)
  texts = {split: sorted(r['text'] for r in read('text_corpus/mine:1.0.0', split, data_dir))
           for split in ('train', 'validation', 'test')}
  assert texts == {'train': ['= One = \n \n Text of one . \n = = Part = = \n = 1 + b =', '= Two = \n \n Of two .'],
                   'validation': ['A first\ntext.', 'A second.'], 'test': ["In C4's form."]}
  shutil.move(tmp_path / 'test.json.gz', tmp_path / 'c4-train.00000-of-01024.json.gz')
  import_data.import_dataset('c4/en:2.2.0', tmp_path, data_dir)
  assert [(r['text'], r['url']) for r in read('c4/en:2.2.0', 'train', data_dir)] == [("In C4's form.", 'http://x.y')]
  import_data.import_dataset('squad_like/other', RAW / 'squad', data_dir, files={'test': 'dev-*.json'})
  assert canonical(read('squad_like/other:1.0.0', 'test', data_dir)) == canonical(
      read('squad/v1.1:3.0.0', 'validation', data_dir))


RTE = 'index\tsentence1\tsentence2\tlabel\n0\tA b.\tB.\tentailment\n'
COPA = '{"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 0, "idx": 0}\n'
QA = '{"data": [{"paragraphs": [{"context": "c", "qas": [%s, {"id": "1", "question": "q", "answers": []}]}]}]}'
BROKEN = [  # data set, file, text with one good record and a broken one, what is said of it
    ('glue/rte', 'train.tsv', RTE + '1\tA b.\tB.\n', r'train\.tsv, line 3: 3 columns; expected 4, index, sentence1'),
    ('glue/rte', 'train.tsv', RTE + '1\tA b.\tB.\tperhaps\n', r"line 3: label 'perhaps'; expected one of entailm"),
    ('glue/rte', 'train.tsv', RTE + '1\tA b.\tB.\t-1\n', r"line 3: no label 'label'; expected one of entailment"),
    ('glue/rte', 'train.tsv', RTE.encode() + b'1\t\xff\tB.\tentailment\n', r'line 3: not UTF-8 text'),
    ('super_glue/copa', 'train.jsonl', COPA + '{"premise": \n', r'train\.jsonl, line 2: malformed JSON, .*found '),
    ('super_glue/copa', 'train.jsonl', COPA + '[1]\n', r'line 2: expected a JSON object'),
    ('super_glue/copa', 'train.jsonl', COPA + COPA.replace('"choice1"', '"one"'),
     r"line 2: expected 'choice1' as text; found only premise, one, choice2"),
    ('super_glue/copa', 'train.jsonl', COPA + COPA.replace('"idx": 0', '"idx": "x"'),
     r"line 2: expected 'idx' as a whole number; found 'x'"),
    ('super_glue/copa', 'train.jsonl', COPA + COPA, r'line 2: there is another example with the idx or id 0 above'),
    ('super_glue/wsc.fixed', 'train.jsonl', ''.join(
        json.dumps({'text': 'It fell.', 'idx': i, 'label': True, 'target': {
            'span1_index': 0, 'span2_index': 0, 'span1_text': word, 'span2_text': 'It'}}) + '\n'
        for i, word in enumerate(('It', 'She'))), r"line 2: a span is not in the text: 'She', 'It'"),
    ('ag_news_subset', 'train.csv', '"3","T","D"\n"3","T\n', r'train\.csv, line 2: malformed CSV .unexpected end of'),
    ('ag_news_subset', 'train.csv', '"3","T","D"\n"5","T","D"\n', r"line 2: class '5'; expected 1 to 4"),
    ('definite_pronoun_resolution', 'train.c.txt', 'A b.\nit\nA,b\nA\n\nA b.\nit\nA,b\n',
     r'line 6: 3 lines; expected 4 and an empty one'),
    ('definite_pronoun_resolution', 'train.c.txt', 'A b.\nit\nA,b\nA\n\nA b.\nit\nA,b\nc\n',
     r"line 6: candidates .'A', 'b'., correct 'c'; expected one of two"),
    ('squad/v1.1', 'dev-v1.1.json', QA % '{"id": "0", "question": "q"}',
     r"data.0.\.paragraphs.0.\.qas.0.: expected 'answers' as a list"),
    ('mrqa/race', 'test/RACE.jsonl', (RAW / 'mrqa/test/BioASQ.jsonl').read_text() + '{"context": "c", "qas": 3}\n',
     r"line 3: expected 'qas' as a list; found '3'"),
    ('e2e_nlg', 'devset.csv', 'mr,ref\nname[Zizzi],Zizzi.\nZizzi,Zizzi.\n', r"devset\.csv, line 3: 'Zizzi' is no mean"),
    ('e2e_nlg', 'devset.csv', 'mr,ref\nname[Zizzi],Zizzi.\nname[A],"Zizzi.\n', r'line 3: unexpected end of data'),
    ('dart_v111', 'dart-v1.1.1-full-dev.json', json.dumps([
        {'tripleset': [['a', 'b', 'c']], 'annotations': [{'text': 'A.'}]}, {'tripleset': []}]),
     r'element 2: expected "tripleset"'),
    ('webnlg_2017', 'dev/1triples/a.xml', '<benchmark><entries>{}{}</entries></benchmark>'.format(*(
        f'<entry category="Food" eid="Id{i}"><modifiedtripleset><mtriple>{triple}</mtriple></modifiedtripleset>'
        '<lex comment="good">A.</lex></entry>' for i, triple in enumerate(('a | b | c', 'a | b')))),
     r"a\.xml, entry 2: .'a', 'b'. is no triple"),
    ('dbpedia_14_files', 'train.csv', '1,T,Some text.\n1,T,"Some\n', r'train\.csv, line 2: malformed CSV'),
    ('tweet_eval_irony', 'irony/train_*.txt', {'text': 'One tweet\n\n', 'labels': '0\n1\n'},
     r'train_text\.txt, line 2: the text is empty'),
]


@pytest.mark.parametrize(('name', 'file', 'content', 'message'), BROKEN, ids=map(str, range(len(BROKEN))))
def test_a_broken_record_is_named_and_fatal_or_skipped(tmp_path, capsys, name, file, content, message):
  for part, text in (content if isinstance(content, dict) else {'': content}).items():
    path = tmp_path / 'raw' / file.replace('*', part)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
  flags = [name, f'--raw_dir={tmp_path}/raw', f'--tfds_data_dir={tmp_path}/tfds']
  assert cli.main(['import-data', *flags]) == 1
  captured = capsys.readouterr()
  assert re.search(message, captured.err)
  assert '--on_broken_line=skip' in captured.err
  assert not any(path.is_file() for path in (tmp_path / 'tfds').rglob('*'))
  assert cli.main(['import-data', *flags, '--on_broken_line=skip']) == 0
  captured = capsys.readouterr()
  assert re.search(f'skipped: .*{message}', captured.err)
  row = next(line.split() for line in captured.out.splitlines() if line.split()[2] == '1')
  assert row[1:4] == ['2', '1', '2' if 'mrqa' in name else '1']  # a record of MRQA has several questions
  assert list((tmp_path / 'tfds').glob('[a-z]*/**/*.tfrecord*'))


def test_xsum_skips_lines_and_pages(tmp_path, capsys):
  raw = shutil.copytree(GOLDENS / 'data' / 'xsum', tmp_path / 'raw')
  with (raw / 'made_up.jsonl').open('a') as f:
    f.write('{"id": "1"}\n')
  counts = import_data.import_dataset('xsum_bbc', raw, tmp_path / 'tfds', skip_broken=True)
  assert [(count.skipped, count.written) for count in counts.values()] == [(1, 3), (1, 1), (1, 2)]
  assert re.search(r'skipped: .*made_up\.jsonl, line \d+: expected an object with "id"', capsys.readouterr().err)
  (raw / '2.summary').write_text('no parts')
  told = []
  assert raw_lenient.read(lambda p: [xsum_files.read_page(p)], [epath.Path(raw / '2.summary')], told.append) == []
  assert '2.summary: expected the parts URL' in told[0]


def test_a_failure_leaves_what_was_there(tmp_path, capsys):
  flags = ['import-data', 'glue/rte:1.0.0', f'--raw_dir={tmp_path}/raw', f'--tfds_data_dir={tmp_path}/tfds']
  (tmp_path / 'raw').mkdir()
  file = tmp_path / 'raw' / 'train.tsv'
  file.write_text(RTE)
  assert cli.main(flags) == 0
  assert cli.main(flags) == 1
  assert 'is there already. Give --overwrite' in capsys.readouterr().err
  file.write_text(RTE + '1\tnew\n')
  assert cli.main([*flags, '--overwrite']) == 1
  assert len(read('glue/rte:1.0.0', 'train', tmp_path / 'tfds')) == 1
  file.write_text(RTE + '1\tA\tB\tnot_entailment\n')
  assert cli.main([*flags, '--overwrite']) == 0
  assert collections.Counter(r['label'] for r in read('glue/rte:1.0.0', 'train', tmp_path / 'tfds')) == {0: 1, 1: 1}
  assert [path.name for path in (tmp_path / 'tfds').iterdir()] == ['glue']


def test_interrupted_in_the_middle_nothing_is_left_that_tfds_reads(tmp_path, monkeypatch):
  target = tmp_path / 'tfds'

  def interrupted(path):
    yield from raw_files.read_table(path)
    shutil.copytree(target, tmp_path / 'killed')  # what a kill at this moment would leave
    raise KeyboardInterrupt

  spec = dataclasses.replace(raw_datasets.DATASETS['glue/rte'], read=interrupted)
  monkeypatch.setitem(raw_datasets.DATASETS, 'glue/rte', spec)
  with pytest.raises(KeyboardInterrupt):
    import_data.import_dataset('glue/rte:1.0.0', RAW / 'glue/RTE', target)
  assert list((tmp_path / 'killed').rglob('*incomplete*'))
  assert not list(target.iterdir())
  for folder in (target, tmp_path / 'killed'):
    assert not (folder / 'glue').exists()
    assert not tfds.builder('glue/rte:1.0.0', data_dir=folder).is_prepared()


@pytest.mark.parametrize(('flags', 'message'), [
    (['glue/rtte', '--raw_dir=x', '--tfds_data_dir=x'], r"no data set 'glue/rtte' to import\. Nearest: glue/rte"),
    (['glue/rte:9.0.0', '--raw_dir=x', '--tfds_data_dir=x'], r"glue/rte: there is no version '9\.0\.0'; expected 2\.0"),
    (['glue/rte', '--raw_dir=x'], r'--tfds_data_dir is missing'),
    (['glue/rte', '--raw_dir=x', '--tfds_data_dir=x'], r'glue/rte: x has none of these files .*train: train\.tsv\|'),
    (['glue/rte', '--raw_dir=x', '--tfds_data_dir=x', '--file', 'dev=a.tsv'], r'dev=\.\.\.: glue/rte has the splits t'),
    (['glue/rte', '--raw_dir=x', '--tfds_data_dir=x', '--file', 'a.tsv'], r'--file a\.tsv: expected SPLIT=PATTERN'),
])
def test_bad_flags(capsys, flags, message):
  assert cli.main(['import-data', *flags]) == 1
  assert re.search(message, capsys.readouterr().err)


def test_empty_files_and_files_of_another_kind(tmp_path):
  (tmp_path / 'train.tsv').write_text('index\tsentence1\tsentence2\tlabel\n')
  with pytest.raises(ValueError, match=r'train\.tsv: no example in it'):
    import_data.import_dataset('glue/rte', tmp_path, tmp_path / 'tfds')
  for text, message in (('{', 'malformed JSON .*none can be skipped'), ('[]', r'expected ."data": .*as SQuAD has it')):
    (tmp_path / 'dev-v1.1.json').write_text(text)
    with pytest.raises(ValueError, match=message):
      import_data.import_dataset('squad/v1.1', tmp_path, tmp_path / 'tfds', skip_broken=True)
  (tmp_path / 'train.json.gz').write_bytes(gzip.compress(b'{"text": "a"}\n' * 9)[:-9])
  with pytest.raises(ValueError, match=r'train\.json\.gz: damaged after line \d'):
    import_data.import_dataset('text_corpus/cut', tmp_path, tmp_path / 'tfds', skip_broken=True)


def test_listing(capsys):
  assert cli.main(['import-data', '--list']) == 0
  out = capsys.readouterr().out
  assert 'super_glue/copa:1.0.2\n  train: train.jsonl|train_rebuilt.jsonl|train32.jsonl\n' in out
  assert 'from https://github.com/tuetschek/e2e-dataset (CC BY-SA 4.0)' in out
  assert all(f'{name}:' in out for name in raw_datasets.DATASETS)
