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
    }[file]
  if kind == 'models':
    return [file, METHOD, RUN], TRAIN
  if kind == 'methods':
    return [MODEL, file, RUN], TRAIN
  if kind == 'quickstart.gin':
    return [file], []
  assert kind == 'papers', f'configs/{kind}: say in this test which files it is used with'
  recipe = str(pathlib.Path(file).with_name('recipe.gin'))
  behind = [recipe] if recipe != file and (CONFIGS / recipe).exists() else []
  return [MODEL, METHOD, RUN, *behind, file], TRAIN


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


@pytest.mark.parametrize('name', ['random_uniform', 'sampled_vocabulary', 'class_labels', 'text', 'from_file'])
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
