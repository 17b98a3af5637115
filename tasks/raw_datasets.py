"""Which data sets `prompt-tuning import-data` knows: their files, readers, official sizes, sources and licences.

A file is looked for in the folder given, then in the sub-folder that the official archive unpacks to. Alternatives
are parted by `|`, of which the first that is there is read: the official name, then names that samples go by.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import difflib
import re

from etils import epath

from prompt_tuning.tasks import builders, classification_builders, raw_files, raw_rows

Reader = Callable[[epath.Path], Iterator[raw_files.Record]]


@dataclasses.dataclass(frozen=True)
class Raw:
  """A data set that becomes one of TFDS's own, or of the same kind.

  Attributes:
    files: split -> alternatives of a file's name or pattern.
    read: the records of a file.
    convert: their examples.
    official: examples of the official splits, where known.
    folder: the archive's sub-folder.
    source: where the files are from.
    licence: as the source states it.
    versions: that it can be prepared as; the first is meant where none is named.
  """

  files: Mapping[str, str]
  read: Reader
  convert: raw_rows.Convert
  official: Mapping[str, int]
  folder: str
  source: str
  licence: str
  versions: tuple[str, ...] = ('1.0.0',)


@dataclasses.dataclass(frozen=True)
class Own:
  """A data set that has a builder in this package; `header`: its tables begin with the names of columns."""

  builder: type[builders.Builder]
  official: Mapping[str, int]
  header: bool = False

  @property
  def files(self) -> dict[str, str]:
    """As `Raw.files`."""
    return {split: '|'.join(patterns) for split, patterns in self.builder.FILES.items()}

  folder = property(lambda self: self.builder.FOLDER)
  source = property(lambda self: self.builder.HOMEPAGE)
  licence = property(lambda self: self.builder.LICENSE)
  versions = property(lambda self: (str(self.builder.VERSION),))


def _mrpc(path: epath.Path) -> Iterator[raw_files.Record]:
  """Microsoft's training file less the development rows, or these rows, whose ids GLUE lists in a file beside it."""
  ids = path.parent / _MRPC_DEV
  if path.name not in ('msr_paraphrase_train.txt', _MRPC_DEV) or not ids.exists():
    yield from raw_files.read_tsv(path)
    return
  dev = {tuple(str(line.value).split('\t')[:2]) for line in raw_files.read_lines(ids)}
  for record in raw_files.read_tsv(path.parent / 'msr_paraphrase_train.txt'):
    broken = isinstance(record.value, ValueError)
    if broken or ((record.value.get('#1 ID'), record.value.get('#2 ID')) in dev) == (path.name == _MRPC_DEV):
      yield record


def _squad(path: epath.Path) -> Iterator[raw_files.Record]:
  content = raw_files.read_json(path)
  try:
    rows = [(f'data[{i}].paragraphs[{j}].qas[{k}]', {
        **question, 'title': article.get('title', ''), 'context': paragraph['context']})
            for i, article in enumerate(content['data']) for j, paragraph in enumerate(article['paragraphs'])
            for k, question in enumerate(paragraph['qas'])]
  except (TypeError, KeyError, AttributeError) as error:
    raise ValueError(f'{path}: expected {{"data": [{{"paragraphs": [{{"context": ..., "qas": [...]}}]}}]}}, as SQuAD '
                     f'has it ({type(error).__name__}: {error}).') from error
  for index, (place, row) in enumerate(rows):
    yield raw_files.Record(f'{path}, {place}', index, row)


def _mrqa(path: epath.Path) -> Iterator[raw_files.Record]:
  subset = path.name.split('.')[0].removeprefix('mrqa_').removesuffix('_sample')  # where no header names it
  for record in raw_files.read_jsonl(path):
    if isinstance(record.value, ValueError):
      yield record
    elif isinstance(header := record.value.get('header'), dict):
      subset = header.get('dataset', subset)
    else:
      yield dataclasses.replace(record, value={**record.value, 'subset': subset})


def _pronoun(path: epath.Path) -> Iterator[raw_files.Record]:
  return raw_files.read_groups(path, ('sentence', 'pronoun', 'candidates', 'correct'))


def _ag_news(path: epath.Path) -> Iterator[raw_files.Record]:
  if path.suffix == '.tsv':
    return raw_files.read_text_tab_label(path)
  return raw_files.read_csv(path, ('class', 'title', 'description'))


def _imdb(path: epath.Path) -> Iterator[raw_files.Record]:
  if path.suffix == '.json':
    yield from raw_files.read_json_table(path)
    return
  lines = [line.value for line in raw_files.read_lines(path)]
  broken = next((line for line in lines if isinstance(line, ValueError)), None)
  row = {'path': '/'.join(('aclImdb', *path.parts[-3:])), 'folder': path.parent.name}
  yield raw_files.Record(str(path), 0, broken or {**row, 'text': '\n'.join(lines)})


def _tweet_eval(task: str, classes: tuple[str, ...]) -> type[classification_builders.Labelled]:
  """The builder of another of TweetEval's tasks."""
  members = {'name': f'tweet_eval_{task}', 'CLASSES': classes, 'URL': None, '__module__': __name__, 'FILES': {
      split: tuple(name.replace('sentiment', task) for name in names)
      for split, names in classification_builders.TweetSentiment.FILES.items()}}
  base = classification_builders.TweetSentiment
  return type(base)(f'Tweet{task.title()}', (base,), members, skip_registration=True)


_AG_NEWS, _DBPEDIA = classification_builders.AgNews, classification_builders.Dbpedia14
_ENTAILMENT = ('entailment', 'not_entailment')
_MRPC_DEV = 'mrpc_dev_ids.tsv'


def _sizes(*numbers: int, names=('train', 'validation', 'test')) -> dict[str, int]:
  return {split: size for split, size in zip(names, numbers, strict=True)}


def _superglue(folder, sizes, convert, train='train.jsonl|train32.jsonl') -> Raw:
  return Raw({'train': train, 'validation': 'val.jsonl', 'test': 'test.jsonl'}, raw_files.read_jsonl, convert,
             _sizes(*sizes), folder, f'https://dl.fbaipublicfiles.com/glue/superglue/data/v2/{folder}.zip',
             'research use; that of each task, see https://super.gluebenchmark.com', ('1.0.2',))


def _glue(folder, sizes, names, *columns, splits=None, read=raw_files.read_table, convert=None, source=None) -> Raw:
  splits = splits or {'train': 'train.tsv|glue_train.tsv|train.json|kshot_*_train.tsv',
                      'validation': 'dev.tsv|glue_dev.tsv|kshot_*_dev.tsv|kshot_*_test.tsv', 'test': 'test.tsv'}
  return Raw(splits, read, convert or raw_rows.glue(columns, names), _sizes(*sizes, names=splits), folder,
             source or f'https://dl.fbaipublicfiles.com/glue/data/{folder}.zip',
             'that of each task, see https://gluebenchmark.com', ('2.0.0', '1.0.0', '1.0.1'))


_MNLI = {  # split -> (files, size)
    'train': ('train.tsv|train.json|kshot_*_train.tsv', 392_702),
    'validation_matched': ('dev_matched.tsv|kshot_*_dev_matched.tsv', 9_815),
    'validation_mismatched': ('dev_mismatched.tsv|kshot_*_dev_mismatched.tsv', 9_832),
    'test_matched': ('test_matched.tsv', 9_796),
    'test_mismatched': ('test_mismatched.tsv', 9_847),
}


def _mnli(**splits: tuple[str, int]) -> Raw:
  pairs = ({'premise': 'sentence1', 'hypothesis': 'sentence2', 'label': 'gold_label'},
           {'premise': 'text_a', 'hypothesis': 'text_b', 'label': 'label'})
  return _glue('MNLI', [size for _, size in splits.values()], classification_builders.GlueMnli.CLASSES, *pairs,
               splits={split: names for split, (names, _) in splits.items()})


_MRQA_SOURCE = ('MRQA Shared Task 2019, https://github.com/mrqa/MRQA-Shared-Task-2019', 'MIT; that of each data set')
_MRQA = {  # config -> (name of its file, sizes of the splits)
    'squad': ('SQuAD', 86_588, 10_507), 'news_qa': ('NewsQA', 74_160, 4_212), 'trivia_qa': ('TriviaQA', 61_688, 7_785),
    'search_qa': ('SearchQA', 117_384, 16_980), 'hotpot_qa': ('HotpotQA', 72_928, 5_901),
    'natural_questions': ('NaturalQuestions', 104_071, 12_836),
    'bio_asq': ('BioASQ', 1_504), 'drop': ('DROP', 1_503), 'duo_rc': ('DuoRC', 1_501), 'race': ('RACE', 674),
    'relation_extraction': ('RelationExtraction', 2_948), 'textbook_qa': ('TextbookQA', 1_503),
}


def _mrqa_set(name: str, *sizes: int) -> Raw:
  both = lambda folder: '|'.join(f'{folder}{name}{end}' for end in ('.jsonl', '.jsonl.gz'))
  dev = f'{both("dev/")}|mrqa_{name}_sample.jsonl'
  files = {'train': both('train/'), 'validation': dev} if len(sizes) == 2 else {
      'test': f'{both("test/")}|{both("dev/")}|{both("")}|mrqa_{name}_sample.jsonl'}
  return Raw(files, _mrqa, raw_rows.mrqa, dict(zip(files, sizes, strict=True)), 'mrqa', *_MRQA_SOURCE)


_SST2 = ({'sentence': 'sentence', 'label': 'label'}, {'sentence': 'content', 'label': 'label'})
_MRPC = {'sentence1': '#1 String', 'sentence2': '#2 String', 'label': 'Quality'}
_QQP_NAMES, _MRPC_NAMES = ('not_duplicate', 'duplicate'), ('not_equivalent', 'equivalent')

DATASETS: dict[str, Raw | Own] = {
    'super_glue/boolq': _superglue('BoolQ', (9427, 3270, 3245), raw_rows.superglue(
        ('question', 'passage'), raw_rows.FALSE_TRUE)),
    'super_glue/cb': _superglue('CB', (250, 56, 250), raw_rows.superglue(
        ('premise', 'hypothesis'), ('entailment', 'contradiction', 'neutral'))),
    'super_glue/copa': _superglue('COPA', (400, 100, 500), raw_rows.superglue(
        ('premise', 'choice1', 'choice2', 'question'), ('choice1', 'choice2')),
                                  train='train.jsonl|train_rebuilt.jsonl|train32.jsonl'),
    'super_glue/multirc': _superglue('MultiRC', (27_243, 4848, 9693), raw_rows.multirc),
    'super_glue/record': _superglue('ReCoRD', (100_730, 10_000, 10_000), raw_rows.record),
    'super_glue/rte': _superglue('RTE', (2490, 277, 3000), raw_rows.superglue(
        ('premise', 'hypothesis'), _ENTAILMENT)),
    'super_glue/wic': _superglue('WiC', (5428, 638, 1400), raw_rows.superglue(
        ('word', 'sentence1', 'sentence2'), raw_rows.FALSE_TRUE, ('start1', 'start2', 'end1', 'end2'))),
    'super_glue/wsc': _superglue('WSC', (554, 104, 146), raw_rows.wsc),
    'super_glue/wsc.fixed': _superglue('WSC', (554, 104, 146), raw_rows.wsc_fixed),
    'glue/sst2': _glue('SST-2', (67_349, 872, 1821), ('negative', 'positive'), *_SST2),
    'glue/mrpc': _glue(
        'MRPC', (3668, 408, 1725), _MRPC_NAMES, read=_mrpc, convert=raw_rows.mrpc_test(
            raw_rows.glue([_MRPC], _MRPC_NAMES)),
        splits={'train': 'train.tsv|msr_paraphrase_train.txt', 'validation': 'dev.tsv|' + _MRPC_DEV,
                'test': 'test.tsv|msr_paraphrase_test.txt'},
        source='https://www.microsoft.com/en-us/download/details.aspx?id=52398, and mrpc_dev_ids.tsv from GLUE'),
    'glue/qqp': _glue('QQP', (363_846, 40_430, 390_965), _QQP_NAMES, {
        'question1': 'question1', 'question2': 'question2', 'label': 'is_duplicate'},
                      {'question1': 'text_a', 'question2': 'text_b', 'label': 'label'}),
    'glue/mnli': _mnli(**_MNLI),
    'glue/mnli_matched': _mnli(validation=_MNLI['validation_matched'], test=_MNLI['test_matched']),
    'glue/mnli_mismatched': _mnli(validation=_MNLI['validation_mismatched'], test=_MNLI['test_mismatched']),
    'glue/qnli': _glue('QNLI', (104_743, 5463, 5463), _ENTAILMENT, {
        'question': 'question', 'sentence': 'sentence', 'label': 'label'},
                       {'question': 'text_a', 'sentence': 'text_b', 'label': 'label'},
                       source='https://dl.fbaipublicfiles.com/glue/data/QNLIv2.zip'),
    'glue/rte': _glue('RTE', (2490, 277, 3000), _ENTAILMENT, {
        'sentence1': 'sentence1', 'sentence2': 'sentence2', 'label': 'label'}),
    'squad/v1.1': Raw(
        {'train': 'train-v1.1.json', 'validation': 'dev-v1.1.json'}, _squad, raw_rows.squad,
        {'train': 87_599, 'validation': 10_570}, 'squad', 'https://rajpurkar.github.io/SQuAD-explorer',
        'CC BY-SA 4.0', ('3.0.0',)),
    **{f'mrqa/{config}': _mrqa_set(*row) for config, row in _MRQA.items()},
    'definite_pronoun_resolution': Raw(
        {'train': 'train.c.txt|train.txt', 'test': 'test.c.txt|test.txt'}, _pronoun, raw_rows.pronoun,
        {'train': 1322, 'test': 564}, 'dpr', 'https://www.hlt.utdallas.edu/~vince/data/emnlp12', 'none stated',
        ('1.1.0',)),
    'ag_news_subset': Raw(
        {split: '|'.join(names) for split, names in _AG_NEWS.FILES.items()}, _ag_news,
        raw_rows.ag_news(_AG_NEWS.CLASSES), {'train': 120_000, 'test': 7_600}, 'ag_news_csv', _AG_NEWS.HOMEPAGE,
        'non-commercial use'),
    'imdb_reviews/plain_text': Raw(
        {'train': 'train/[np]*/*.txt|train.json|dev.json', 'test': 'test/[np]*/*.txt|test.json',
         'unsupervised': 'train/unsup/*.txt'}, _imdb, raw_rows.imdb,
        {'train': 25_000, 'test': 25_000, 'unsupervised': 50_000}, 'aclImdb',
        classification_builders.ImdbReviews.HOMEPAGE, 'none stated; cite the paper'),
    'c4/en': Raw(
        {'train': 'c4-train.*.json*', 'validation': 'c4-validation.*.json*'}, raw_files.read_jsonl, raw_rows.c4,
        {'train': 364_868_892, 'validation': 364_608}, 'en', 'https://huggingface.co/datasets/allenai/c4',
        'ODC-BY 1.0, and the terms of Common Crawl', ('3.1.0', '3.0.1', '2.3.1', '2.3.0', '2.2.1', '2.2.0')),
    'e2e_nlg': Own(builders.E2eNlg, {'train': 42_061, 'validation': 547, 'test': 630}, header=True),
    'webnlg_2017': Own(builders.Webnlg2017, {'train': 18_025, 'validation': 872, 'test': 1_862}),
    'dart_v111': Own(builders.DartV111, {'train': 62_659, 'validation': 2_768, 'test': 5_097}),
    'xsum_bbc': Own(builders.XsumBbc, {'train': 204_045, 'validation': 11_332, 'test': 11_334}),
    'dbpedia_14_files': Own(_DBPEDIA, {'train': 560_000, 'test': 70_000}),
    'tweet_eval_sentiment': Own(classification_builders.TweetSentiment, _sizes(45_615, 2_000, 12_284)),
    'tweet_eval_emotion': Own(
        _tweet_eval('emotion', ('anger', 'joy', 'optimism', 'sadness')), _sizes(3_257, 374, 1_421)),
    'tweet_eval_hate': Own(_tweet_eval('hate', ('not-hate', 'hate')), _sizes(9_000, 1_000, 2_970)),
    'tweet_eval_irony': Own(_tweet_eval('irony', ('non_irony', 'irony')), _sizes(2_862, 955, 784)),
}
FAMILIES: dict[str, Raw] = {  # name -> with a config of the user's choice
    'squad_like': Raw(
        {'train': 'train*.json', 'validation': 'dev*.json', 'test': 'test*.json'}, _squad, raw_rows.squad, {}, '',
        'any files in the form of SQuAD 1.1 (SQuADShifts, XQuAD, ...)', 'that of the files'),
    'text_corpus': Raw(
        {'train': 'train*.txt|train*.json*', 'validation': 'valid*.txt|valid*.json*|dev*.txt|dev*.json*',
         'test': 'test*.txt|test*.json*'},
        raw_files.read_documents, raw_rows.document, {}, '',
        'any text, see docs/data.md (WikiText, ...)', 'that of the files'),
}


def find(name: str) -> tuple[str, Raw | Own, str]:
  """A data set by name, `NAME[/CONFIG][:VERSION]`: (its name without the version, what is known of it, the version).

  Raises:
    ValueError: there is none; the message lists the nearest.
  """
  plain, _, version = name.partition(':')
  family, _, config = plain.partition('/')
  spec = DATASETS.get(plain)
  if family in FAMILIES and re.fullmatch(r'[a-z][a-z0-9_.-]*', config):
    spec = FAMILIES[family]
  if spec is None:
    names = [*DATASETS, *(f'{family}/NAME' for family in FAMILIES)]
    near = difflib.get_close_matches(plain, names, n=5, cutoff=0.5) or names
    raise ValueError(f'There is no data set {plain!r} to import. Nearest: {", ".join(near)}; all of them: '
                     'prompt-tuning import-data --list')
  if version and version not in spec.versions:
    raise ValueError(f'{plain}: there is no version {version!r}; expected {" or ".join(spec.versions)}.')
  return plain, spec, version or spec.versions[0]
