"""`prompt-tuning params`: the papers' parameter counts, to the last digit where the paper has it."""

import gin
import numpy as np
import pytest

from prompt_tuning import cli, gin_utils, params, trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.methods.adapter import Adapter
from prompt_tuning.methods.bias import Bias
from prompt_tuning.methods.full import Full
from prompt_tuning.methods.prefix import Prefix
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.methods.readouts import Head
from prompt_tuning.methods.together import Together
from prompt_tuning.methods.top import Top
from tests import models


@pytest.fixture(autouse=True)
def no_configuration():
  gin.clear_config()
  yield
  gin.clear_config()


def rows_of(table: str) -> list[dict]:
  gin.clear_config()
  gin_utils.parse([f'papers/{table}.gin'], [], '')
  return gin.get_configurable(params.params)()


def test_lester_table_4(capsys):
  rows = {(row['size'], row['method']): row for row in rows_of('lester2021/table4')}
  totals = {'small': 76961664, 'base': 247578624, 'large': 783151104, 'xl': 2849759232, 'xxl': 11135336448}
  for size, total in totals.items():
    assert rows[f't5_1_1_{size}', 'Prompt(length=1)']['total'] == total
  assert rows['t5_1_1_small', 'Prompt(length=20)']['kept'] == 10240  # the paper prints 10,420
  assert rows['t5_1_1_xxl', 'Prompt(length=100)']['kept'] == 409600
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 31
  assert '76,961,664' in lines[1]


def test_li_and_liang():
  rows = {(row['size'], row['method']): row for row in rows_of('li2021/parameters') + rows_of('li2021/parameters_bart')}
  kept = lambda *key: rows[key]['kept']
  assert kept('gpt2_medium', 'Prefix(length=5, MLP)') == 2 * 24 * 1024 * 5
  assert kept('gpt2_medium', 'Prefix(length=10, MLP)') == 491520
  assert kept('gpt2_medium', 'Adapter(design=lin, budget=0.001)') == 368784
  assert kept('bart_large', 'Prefix(length=200, MLP)') == 3 * 2 * 12 * 1024 * 200
  assert abs(rows['gpt2_medium', 'Adapter(design=lin, budget=0.03)']['kept'] / 354823168 - 0.03) < 1e-4
  trained = rows['gpt2_medium', 'Prefix(length=5, MLP)']['trained']
  assert trained == 5 * 1024 + (1024 + 1) * 512 + (512 + 1) * 24 * 2 * 1024


def test_a_pruned_roberta_is_two_thirds(capsys):
  rows = rows_of('wang2022/parameters')
  assert [row['of'] for row in rows] == ['100.00%', '66.60%']
  assert 'base / roberta_base' in capsys.readouterr().out


def test_what_takes_the_models_place_is_not_counted_twice():
  config = config_lib.from_size('roberta_tiny')
  found = params.count(config, Full())
  assert found.base == found.trained == found.kept == found.total
  assert found.share == 1
  both = params.count(config, Together((Prompt(length=3), Full())), Head(('a', 'b')))
  assert both.total == found.base + 3 * 64 + 2 * (64 + 1)


@pytest.mark.parametrize(('size', 'method', 'added'), [
    ('gpt2_tiny', Bias(), 0),
    ('t5_1_1_tiny', Bias(), 64 * 2 * (2 + 3)),  # new ones behind each sub-layer
    ('bart_tiny', Top(layers=1), 0),
    ('gpt2_tiny', Adapter('houlsby', 3), 2 * 2 * (2 * 3 * 64 + 3 + 64)),  # its norms are the base's
])
def test_only_what_is_new_is_added(size, method, added):
  found = params.count(config_lib.from_size(size), method)
  assert found.total - found.base == added
  assert 0 < found.kept <= found.trained


def test_it_counts_what_there_is():
  model, frozen, trainable = models.tiny(length=4)
  found = params.count(model.backbone.config, model.method)
  assert (found.base, found.trained) == (trees.size(frozen), trees.size(trainable))
  assert params.count(model.backbone.config, Prefix(2, reparameterization=None)).kept == 3 * 2 * np.prod((2, 2, 64))


def test_the_command(capsys):
  files = [f'--gin_file={name}.gin' for name in ('models/t5', 'methods/prompt', 'runs/params')]
  assert cli.main(['params', *files, "--gin.MODEL_SIZES=('t5_1_1_tiny',)", '--gin.PROMPT_LENGTH=7']) == 0
  assert 'Prompt(length=7)' in capsys.readouterr().out
  assert cli.main(['params', *files, "--gin.MODEL_SIZES=('t5_9',)"]) == 1
  assert "no backbone size 't5_9'" in capsys.readouterr().err
