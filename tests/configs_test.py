"""Every gin file parses in the company that its header names, sets what exists, and describes a job that could be run.

A header says behind which files a configuration goes ("Behind models/t5.gin, a method, runs/train.gin and recipe.gin"),
or shows them as flags (`--gin_file=...`): this is where the tests have it from, so a new file needs no line here.
"""

import pathlib
import re

import gin
import pytest

from prompt_tuning import gin_utils, params

CONFIGS = gin_utils.config_folder()
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob('*.gin'))
MODEL, METHOD, RUN = 'models/t5.gin', 'methods/prompt.gin', 'runs/train.gin'
KINDS = ('models/', 'methods/', 'runs/')
VALUES = {  # of macros that a job requires
    'CHECKPOINT_PATH': 'prompt.npy', 'CHECKPOINT_PATHS': ('a', 'b'), 'EVAL_OUTPUT_DIR': 'out',
    'INFER_OUTPUT_DIR': 'out', 'INITIAL_CHECKPOINT_PATH': 'base', 'INPUT_FILE': 'a.txt',
    'MEMBERS': ({'seed': 0}, {'seed': 1}), 'MIXTURE_OR_TASK_NAME': 'wang_sst2_sample',
    'MODEL_DIR': 'run', 'MODEL_SIZES': ('t5_1_1_tiny',), 'OUTPUT_DIR': 'out', 'PROBE_DIR': 'probe',
    'PROBE_OUTPUT_DIR': 'out', 'PRUNED_DIR': 'pruned', 'TASK_FEATURE_LENGTHS': {'inputs': 8, 'targets': 4},
    'TRAIN_STEPS': 1}
SIZES = {  # the largest of the papers'
    'models/t5.gin': 't5_1_1_xxl', 'models/gpt2.gin': 'gpt2_large', 'models/bart.gin': 'bart_large',
    'models/roberta.gin': 'roberta_large', 'models/bert.gin': 'bert_large'}


def text_of(file: str) -> str:
  return (CONFIGS / file).read_text()


def header_of(file: str) -> str:
  """The comment at the top, as one line."""
  lines = re.match(r'(#.*\n)*', text_of(file))[0].splitlines()
  return ' '.join(line.removeprefix('#').strip() for line in lines)


def complete(file: str) -> bool:
  """Whether it is used alone: it includes what it needs."""
  return file == 'quickstart.gin' or (file.startswith('papers/') and bool(included(file)))


def included(file: str) -> list[str]:
  return re.findall(r"^include '(.*)'", text_of(file), re.MULTILINE)


def named(file: str) -> list[str]:
  """The files that a header names as those to go in front, in order."""
  header = header_of(file)
  flags = re.findall(r'--gin_file=([\w./]+)', header)
  if file in flags:
    return flags[:flags.index(file)]
  clauses = re.findall(r'[Bb]ehind ((?:[^.:;]|\.(?=gin))*)', header)
  found = []
  for clause in clauses:
    for name in re.findall(r'[\w/]+\.gin', re.sub(r' or [\w/]+\.gin', '', clause)):  # alternatives
      found.append(name if (CONFIGS / name).exists() else str(pathlib.Path(file).with_name(name)))
  return [name for name in found if name != file]


def chain(file: str) -> list[str]:
  """The files in front of one and itself. Of each kind one: what it names, or else what those that it names do."""
  names = named(file)
  further = [other for name in sorted(names, key=lambda name: name.startswith(KINDS)) for other in chain(name)]
  kinds = [next((name for name in names + further if name.startswith(kind)), None) for kind in KINDS]
  others = [name for name in further if not name.startswith(KINDS)]
  return list(dict.fromkeys([*filter(None, kinds), *others, file]))


def company(file: str) -> tuple[list[str], list[str]]:
  """(the files it is used with, itself among them; bindings of what they require)."""
  kind = pathlib.Path(file).parts[0]
  if complete(file):
    files = [file]
  elif kind == 'models':
    files = [file, METHOD, RUN]
  elif kind == 'methods':
    files = [MODEL, file, RUN]
  else:
    files = chain(file)
    assert kind == 'runs' or len(files) > 1, f'{file}: say at its top behind which files it goes'
    if RUN in files and not any(name.startswith('methods/') for name in files):  # "a method"
      files.insert(1, METHOD)
  return files, bindings_of(files)


def bindings_of(files: list[str]) -> list[str]:
  texts = [text_of(name) for file in files for name in (*included(file), file)]
  macros = [re.findall(r'^([A-Z]\w*) = (.*)', text, re.MULTILINE) for text in texts]
  last = {name: value for text in macros for name, value in text}
  return [f'{name} = {VALUES[name]!r}' for name, value in last.items() if value == '%gin.REQUIRED']


def parse(file: str) -> None:
  gin_utils.parse(*company(file), '', strict=False)


TRAIN = bindings_of([MODEL, METHOD, RUN])
TABLES = [file for file in FILES if '/tables/' in file]
PAPERS = [file for file in FILES if file.startswith('papers/') and file not in TABLES and not complete(file)]
TRAININGS = [file for file in PAPERS if RUN in company(file)[0]]


@pytest.fixture(autouse=True)
def no_configuration():
  gin.clear_config()
  yield
  gin.clear_config()


@pytest.mark.parametrize('file', [file for file in FILES if file not in TABLES])
def test_every_file_loads(file):
  parse(file)
  # Not only the names: what is configured is really there.
  for (_, selector), values in gin.config._CONFIG.items():
    assert selector == 'gin.macro' or gin.config._REGISTRY.get_match(selector), (selector, values)


@pytest.mark.parametrize('file', TABLES)
def test_every_table_loads(file):
  gin_utils.parse([file], [], '')


def test_headers_say_what_goes_in_front():
  assert company('papers/li2021/xsum.gin')[0] == [
      'models/bart.gin', 'methods/prefix.gin', RUN, 'papers/li2021/recipe.gin', 'papers/li2021/xsum.gin']
  assert company('papers/lester2021/cb.gin')[0] == [
      MODEL, METHOD, RUN, 'papers/lester2021/recipe.gin', 'papers/lester2021/cb.gin']
  assert company('runs/infer_task.gin')[0] == [MODEL, 'runs/infer.gin', 'runs/infer_task.gin']
  assert company('papers/lester2021/table4.gin') == (['papers/lester2021/table4.gin'], [])


COUNTS = {}  # many train the same part of the same model


@pytest.fixture
def count_once(monkeypatch):
  count = params.count

  def remembered(config, method, readout):
    key = (config, params.describe(method), str(readout))
    if key not in COUNTS:
      COUNTS[key] = count(config, method, readout)
    return COUNTS[key]

  monkeypatch.setattr(params, 'count', remembered)


@pytest.mark.usefixtures('count_once')
@pytest.mark.parametrize('file', TRAININGS)
def test_every_paper_trains_part_of_a_model_of_its_size(file):
  """Abstractly, without weights; and its data are tasks with these splits, of which nothing is read."""
  files, bindings = company(file)
  gin_utils.parse([*files, 'runs/params.gin'], [*bindings, f'MODEL_SIZES = ({SIZES[files[0]]!r},)'], '', strict=False)
  (row,) = gin.get_configurable(params.params)()
  assert 0 < row['kept'] <= row['trained']
  assert (row['kept'] == row['base']) == ('methods/full.gin' in files)
  configured = [gin.query_parameter('loop.train.train_dataset'), *gin.query_parameter('loop.train.eval_datasets')]
  for dataset in (reference.scoped_configurable_fn() for reference in configured):
    assert dataset.split in dataset.task.splits
    assert set(dataset.task.output_features) == set(dataset.task_feature_lengths) == {'inputs', 'targets'}


def test_there_is_a_file_for_each_command():
  from prompt_tuning import cli
  assert {example for _, example, _ in cli.COMMANDS.values()} <= set(FILES)


def test_every_file_says_what_it_is_for():
  for file in FILES:
    assert (CONFIGS / file).read_text().startswith('# '), file


@pytest.mark.parametrize(
    'name', ['random_uniform', 'normal', 'sampled_vocabulary', 'class_labels', 'text', 'from_file'])
def test_every_initializer_can_be_chosen(name):
  gin_utils.parse([MODEL, METHOD, RUN], [*TRAIN, f'INITIALIZER = @initializers.{name}()'], '')
  assert name in str(gin_utils.macro('INITIALIZER'))


def test_optimizer_and_schedule_can_be_chosen_by_a_binding():
  gin_utils.parse([MODEL, METHOD, RUN], [
      *TRAIN, 'SCHEDULE = @optim.linear()', 'optim.linear.total_steps = 9', 'OPTIMIZER = @optim.adafactor()'], '')
  assert gin.query_parameter('optim.linear.total_steps') == 9


def test_the_paper_recipe_overrides_the_run():
  files, bindings = company('papers/lester2021/recipe.gin')
  gin_utils.parse(files, bindings, '')
  values = {name: gin_utils.macro(name) for name in ('TRAIN_STEPS', 'BATCH_SIZE', 'LEARNING_RATE', 'PROMPT_LENGTH')}
  assert values == {'TRAIN_STEPS': 30000, 'BATCH_SIZE': 32, 'LEARNING_RATE': 0.3, 'PROMPT_LENGTH': 100}
  assert gin.query_parameter('optim.adafactor.multiply_by_parameter_scale') is False


@pytest.mark.parametrize(('name', 'expected'), [  # Li & Liang 2021, table 5
    ('e2e', (8e-5, 10, 5, 512, 0.0)), ('webnlg', (5e-5, 5, 5, 512, 0.0)), ('dart', (5e-5, 5, 10, 512, 0.0)),
    ('xsum', (5e-5, 14, 100, 800, 0.1))])
def test_recipes_of_prefix_tuning(name, expected):
  parse(f'papers/li2021/{name}.gin')
  values = [gin_utils.macro(macro) for macro in (
      'LEARNING_RATE', 'BATCH_SIZE', 'PREFIX_LENGTH', 'MLP_HIDDEN', 'DROPOUT_RATE')]
  assert tuple(values) == expected
  assert gin.query_parameter('optim.adamw.max_grad_norm') == 1.0
  per_sentence = 'NUM_REAL_TARGET_TOKENS' if name == 'xsum' else 'NUM_SEQUENCES'
  assert gin_utils.macro('LOSS_NORMALIZING_FACTOR') == per_sentence
  assert gin_utils.macro('BEST_METRIC') == ('rouge2' if name == 'xsum' else 'bleu')


@pytest.mark.parametrize(('name', 'words', 'steps_per_epoch'), [  # Wang et al. 2022, released code
    ('sst2', 2, 421), ('imdb', 2, 157), ('tweet', 3, 357), ('mnli', 3, 2455), ('qnli', 2, 655), ('agnews', 2, 375),
    ('dbpedia', 2, 500)])
def test_recipes_of_skill_neurons(name, words, steps_per_epoch):
  parse(f'papers/wang2022/{name}.gin')
  values = [gin_utils.macro(macro) for macro in ('PROMPT_LENGTH', 'LEARNING_RATE', 'BATCH_SIZE', 'DROPOUT_RATE')]
  assert values == [15, 1e-3, 128, 0.1]
  adam = [gin.query_parameter(f'optim.adamw.{name}') for name in ('b1', 'b2', 'eps', 'weight_decay', 'max_grad_norm')]
  assert adam == [0.9, 0.98, 1e-6, 0.0, 1.0]
  assert gin.query_parameter('initializers.normal.stddev') == pytest.approx(1 / 30)
  assert 'Verbalizer' in str(gin_utils.macro('READOUT'))
  assert 'linear' in str(gin_utils.macro('SCHEDULE'))
  assert len(gin_utils.macro('LABELS')) == words
  steps = gin_utils.macro('TRAIN_STEPS')
  assert (steps, gin_utils.macro('WARMUP_STEPS')) == (40 * steps_per_epoch, round(0.006 * steps))
  assert gin_utils.macro('TASK_FEATURE_LENGTHS')['inputs'] + 16 <= 512


@pytest.mark.parametrize(('file', 'beam'), [
    ('decode', {'beams': 5, 'alpha': 1.0, 'banned': (198, 628)}),
    ('decode_xsum', {'beams': 6, 'alpha': 0.8, 'min_length': 10})])
@pytest.mark.parametrize('run', ['runs/train.gin', 'runs/eval.gin', 'runs/infer.gin'])
def test_every_job_takes_the_decoding_of_a_paper(file, beam, run):
  (_, *files), bindings = company(run)
  gin_utils.parse(['models/bart.gin', *files, f'papers/li2021/{file}.gin'], bindings, '')
  assert 'Beam' in str(gin_utils.macro('DECODER'))
  for name, value in {**beam, 'length_penalty': 'hf', 'early_stopping': False}.items():
    assert gin.query_parameter(f'decoding.Beam.{name}') == value


@pytest.mark.parametrize('bindings', [
    ['INITIALIZER = @prefix.from_words()', "INITIAL_TEXT = 'table-to-text'"], ['INITIALIZER = @prefix.from_file()'],
    ['REPARAMETERIZATION = None', "PREFIX_SITES = ('decoder/attn_kv',)", 'PREFIX_DROPOUT_RATE = 0.1']])
def test_every_kind_of_prefix_can_be_chosen(bindings):
  gin_utils.parse(['models/gpt2.gin', 'methods/prefix.gin', RUN], [*TRAIN, *bindings], '')
  assert all(gin_utils.macro(binding.split(' = ')[0]) is not gin.REQUIRED for binding in bindings)
