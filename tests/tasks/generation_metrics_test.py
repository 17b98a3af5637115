"""The suites as seqio metric functions."""

import inspect

import pytest

from prompt_tuning.metrics import meteor
from prompt_tuning.tasks import generation_metrics
from tests.metrics import examples


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
  def missing():
    raise meteor.Unavailable('needs Java: none here.')

  monkeypatch.setattr(meteor, '_java', missing)


def test_e2e(capsys):
  outputs, references = examples.e2e()
  values = generation_metrics.e2e(references, outputs)
  assert {name: round(value, 4) for name, value in values.items()} == {
      'bleu': 0.7203, 'nist': 7.8212, 'rouge_l': 0.791, 'cider': 2.3039}
  assert capsys.readouterr().err == 'e2e: meteor is left out: it needs Java: none here.\n'


def test_targets_may_be_texts():
  text = 'a small cat sat there'
  assert generation_metrics.webnlg([text], [text]) == {'bleu': pytest.approx(1), 'ter': 0, 'chrf++': pytest.approx(1)}
  assert set(generation_metrics.dart([[text, 'b']], [text])) == {'bleu', 'ter', 'chrf++'}
  assert generation_metrics.xsum([text], [text]) == dict.fromkeys(('rouge1', 'rouge2', 'rougeL', 'rougeLsum'), 1.0)


@pytest.mark.parametrize('name', ['e2e', 'webnlg', 'dart', 'xsum'])
def test_seqio_knows_them_by_their_signature(name):
  assert list(inspect.signature(getattr(generation_metrics, name)).parameters) == ['targets', 'predictions']
