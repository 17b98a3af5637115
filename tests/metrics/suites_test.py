"""Choosing metrics, what is refused, what is skipped, and METEOR where Java is."""

import shutil
import sys
import types

import pytest

from prompt_tuning.metrics import libraries, meteor, suites
from tests.metrics import examples


@pytest.mark.skipif(shutil.which('java') is None, reason='no Java')
def test_official_meteor():
  outputs, references = examples.e2e()
  values, skipped = suites.compute(suites.select('e2e', ['meteor']), outputs, references)
  assert not skipped
  assert f'{values["meteor"]:.4f}' == '0.4801'


def test_meteor_says_what_is_missing(monkeypatch):
  monkeypatch.setattr(shutil, 'which', lambda name: None)
  values, skipped = suites.compute(suites.select('e2e', ['bleu', 'meteor']), ['a b c d'], [['a b c d']])
  assert list(values) == ['bleu']
  assert 'no `java`' in skipped['meteor']
  monkeypatch.setattr(shutil, 'which', lambda name: '/bin/false')
  monkeypatch.setattr(meteor.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(meteor.Unavailable, match=r'prompt_tuning\[meteor\]'):
    meteor.meteor(['a'], [['a']])


def test_a_meteor_that_stops_is_no_number(monkeypatch, tmp_path):
  monkeypatch.setattr(meteor, '_java', lambda: [sys.executable, '-c', 'raise SystemExit("no memory")'])
  monkeypatch.setattr(meteor, '_jar', lambda: tmp_path)
  values, skipped = suites.compute(suites.select('e2e', ['meteor']), ['a'], [['a']])
  assert not values
  assert 'no memory' in skipped['meteor']


def test_names():
  assert list(suites.select('e2e')) == ['bleu', 'nist', 'meteor', 'rouge_l', 'cider']
  chosen = suites.select(None, ['bleu', 'ter', 'rouge2'])
  assert 'mteval' in chosen['bleu'].definition
  assert 'up to 3 references' in chosen['ter'].definition  # WebNLG's: before DART's
  assert 'multi-bleu' in suites.select('dart', ['bleu'])['bleu'].definition
  for arguments, message in [(('e2f',), 'e2e, webnlg, dart, xsum'), ((None,), 'Name a suite'),
                             (('e2e', ['ter']), "'ter' in suite e2e.*bleu, cider"),
                             ((None, ['blue']), "'blue'.*bleu")]:
    with pytest.raises(ValueError, match=message):
      suites.select(*arguments)


@pytest.mark.parametrize(('outputs', 'references', 'message'), [
    (['a', 'b'], [['a']], '2 outputs but references for 1'),
    ([], [], 'at least one'),
    (['a', 'b'], [[''], [' ']], 'All references are empty'),
    (['a', 'b'], [['a'], ['']], 'Output 2 has no reference'),
])
def test_refused(outputs, references, message):
  with pytest.raises(ValueError, match=message):
    suites.compute(suites.select('e2e'), outputs, references)


def test_webnlg_and_dart_bring_raw_text_into_the_form_of_their_references():
  outputs, references = suites._webnlg(['Café–bar "3.5"'], [['Café–bar "3.5"', 'b', 'c', 'd']])
  assert outputs == ['cafe - bar " 3 . 5 "']
  assert references == [['cafe - bar " 3 . 5 "', 'b', 'c']]
  assert suites._webnlg(outputs, references) == (outputs, references)
  assert suites._dart(['Café-bar'], [['x']])[0] == ['café - bar']
  values, _ = suites.compute(suites.select('dart', ['ter', 'bleu']), ['A B, c d'], [['x y', 'a b , c d']])
  assert values == {'ter': 5 / 2, 'bleu': pytest.approx(1.0)}  # TER sees the first reference alone


def test_rouge():
  metrics = suites.select('xsum', ['rouge1', 'rouge2', 'rougeL', 'rougeLsum'])
  values, _ = suites.compute(metrics, ['The cats sat down', ''], [['the cat sat'], ['anything']])
  assert values == {  # `cats` has the stem of `cat`: 3 hits of 4 and 3 words, 2 of 3 and 2 pairs; the mean over two
      'rouge1': pytest.approx(6 / 7 / 2), 'rouge2': pytest.approx(4 / 5 / 2),
      'rougeL': pytest.approx(6 / 7 / 2), 'rougeLsum': pytest.approx(6 / 7 / 2)}


def test_chrf():
  assert libraries.chrf_pp(['a cat', ''], [['a cat', 'x'], ['']]) == pytest.approx(1.0)
  assert 0 < libraries.chrf_pp(['a cat'], [['a dog']]) < 0.5


def test_model_metrics_are_skipped_with_the_reason(tmp_path, monkeypatch):
  metrics = suites.select('dart', ['bertscore', 'bleurt'])
  assert 'bertscore=FOLDER' in suites.compute(metrics, ['a'], [['a']])[1]['bertscore']
  _, skipped = suites.compute(metrics, ['a'], [['a']], {'bertscore': 'nowhere', 'bleurt': str(tmp_path)})
  assert 'nowhere is no folder' in skipped['bertscore']
  assert 'package bleurt is not installed' in skipped['bleurt']


def test_bleurt_of_a_stand_in(tmp_path, monkeypatch):
  scorer = lambda folder: types.SimpleNamespace(score=lambda references, candidates: [
      float(r == c) for r, c in zip(references, candidates, strict=True)])
  monkeypatch.setitem(sys.modules, 'bleurt', types.SimpleNamespace(
      score=types.SimpleNamespace(BleurtScorer=scorer), __spec__=types.SimpleNamespace()))
  values, _ = suites.compute(suites.select('dart', ['bleurt']), ['a', 'b'], [['a'], ['x', 'b']],
                             {'bleurt': str(tmp_path)})
  assert values == {'bleurt': 0.5}
