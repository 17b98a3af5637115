"""Every gin file parses in the company it is made for, and every parameter it sets exists."""

import pathlib

import gin
import pytest

from prompt_tuning import gin_utils

CONFIGS = gin_utils.config_folder()
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob('*.gin'))
COMMON = ["INITIAL_CHECKPOINT_PATH = 'base'"]
TASK = ["MIXTURE_OR_TASK_NAME = 'sst2_sample'", "TASK_FEATURE_LENGTHS = {'inputs': 8, 'targets': 4}"]
TRAIN = [*COMMON, *TASK, "MODEL_DIR = 'run'", 'TRAIN_STEPS = 1']
FINISHED = [*COMMON, "CHECKPOINT_PATH = 'prompt.npy'"]
MODEL, METHOD, RUN = 'models/t5.gin', 'methods/prompt.gin', 'runs/train.gin'
ALONE = ('table4', 'parameters', 'parameters_bart')  # tables that need no others
COMPANY = {  # paper -> model and method, if not these
    'li2021': ('models/gpt2.gin', 'methods/prefix.gin'), 'wang2022': ('models/roberta.gin', METHOD)}


def company(file: str) -> tuple[list[str], list[str]]:
  """(the files it is used with, itself among them; the required macros)."""
  kind, *_ = pathlib.Path(file).parts
  if kind == 'runs':
    return {
        'runs/train.gin': ([MODEL, METHOD, RUN], TRAIN),
        'runs/eval.gin': ([MODEL, file], [*FINISHED, *TASK, "EVAL_OUTPUT_DIR = 'out'"]),
        'runs/infer.gin': ([MODEL, file], [*FINISHED, "INPUT_FILE = 'a.txt'", "INFER_OUTPUT_DIR = 'out'"]),
        'runs/infer_task.gin': (
            [MODEL, 'runs/infer.gin', file], [*FINISHED, TASK[0], "INFER_OUTPUT_DIR = 'out'"]),
        'runs/interpret.gin': ([file], [*FINISHED, "OUTPUT_DIR = 'out'"]),
        'runs/population.gin': ([MODEL, METHOD, file], [*TRAIN, "MEMBERS = ({'seed': 0}, {'seed': 1})"]),
        'runs/params.gin': ([MODEL, METHOD, file], ["MODEL_SIZES = ('t5_1_1_tiny',)"]),
        'runs/prune.gin': ([MODEL, file], [*COMMON, "PROBE_DIR = 'probe'", "PRUNED_DIR = 'pruned'"]),
        'runs/probe.gin': ([MODEL, file], [*FINISHED, *TASK, "PROBE_OUTPUT_DIR = 'out'"]),
        'runs/probe_dev.gin': ([MODEL, 'runs/probe.gin', file], [*FINISHED, *TASK, "PROBE_OUTPUT_DIR = 'out'"]),
    }[file]
  if kind == 'models':
    return [file, METHOD, RUN], TRAIN
  if kind == 'methods':
    return [MODEL, file, RUN], TRAIN
  if kind == 'quickstart.gin':
    return [file], []
  if pathlib.Path(file).stem in ALONE:
    return [file], []
  assert kind == 'papers', f'configs/{kind}: say in this test which files it is used with'
  recipe = str(pathlib.Path(file).with_name('recipe.gin'))
  behind = [recipe] if recipe != file and (CONFIGS / recipe).exists() else []
  model, method = COMPANY.get(pathlib.Path(file).parent.name, (MODEL, METHOD))
  model = 'models/bart.gin' if file.endswith('xsum.gin') else model
  return [model, method, RUN, *behind, file], TRAIN


@pytest.fixture(autouse=True)
def no_configuration():
  gin.clear_config()
  yield
  gin.clear_config()


@pytest.mark.parametrize('file', FILES)
def test_every_file_loads(file):
  files, bindings = company(file)
  gin_utils.parse(files, bindings, '')
  # Not only the names: what is configured is really there.
  for (_, selector), values in gin.config._CONFIG.items():
    assert selector == 'gin.macro' or gin.config._REGISTRY.get_match(selector), (selector, values)


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
  gin_utils.parse(files, [b for b in bindings if 'TRAIN_STEPS' not in b], '')
  values = {name: gin_utils.macro(name) for name in ('TRAIN_STEPS', 'BATCH_SIZE', 'LEARNING_RATE', 'PROMPT_LENGTH')}
  assert values == {'TRAIN_STEPS': 30000, 'BATCH_SIZE': 32, 'LEARNING_RATE': 0.3, 'PROMPT_LENGTH': 100}
  assert gin.query_parameter('optim.adafactor.multiply_by_parameter_scale') is False


@pytest.mark.parametrize(('name', 'expected'), [  # Li & Liang 2021, table 5
    ('e2e', (8e-5, 10, 5, 512, 0.0)), ('webnlg', (5e-5, 5, 5, 512, 0.0)), ('dart', (5e-5, 5, 10, 512, 0.0)),
    ('xsum', (5e-5, 14, 100, 800, 0.1))])
def test_recipes_of_prefix_tuning(name, expected):
  files, _ = company(f'papers/li2021/{name}.gin')
  gin_utils.parse(files, [*COMMON, "MODEL_DIR = 'run'"], '')
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
  files, _ = company(f'papers/wang2022/{name}.gin')
  gin_utils.parse(files, [*COMMON, "MODEL_DIR = 'run'"], '')
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
