"""Metrics of generated text as seqio metric functions: the suites of `prompt_tuning.metrics` under a task's targets.

A target is a text or a list of texts (all references of an example). Values are fractions but for NIST and CIDEr; TER
is the one of which less is better. METEOR is left out, with a line on stderr, where Java or its package is missing; an
evaluation starts Java once. Metrics that need a model are computed by `prompt-tuning score` only.
"""

from collections.abc import Sequence
import sys

from prompt_tuning.metrics import suites


def e2e(targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """BLEU, NIST, METEOR, ROUGE-L and CIDEr as the E2E challenge has them."""
  return _suite('e2e', targets, predictions)


def webnlg(targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """BLEU, METEOR, TER (up to three references) and chrF++ as WebNLG 2017 has them."""
  return _suite('webnlg', targets, predictions)


def dart(targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """BLEU (up to three references), METEOR and TER (the first) as DART's script has them, and chrF++."""
  return _suite('dart', targets, predictions)


def xsum(targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """F1 of ROUGE-1, -2, -L and -Lsum, with stemmer."""
  return _suite('xsum', targets, predictions)


def _suite(name: str, targets, predictions) -> dict[str, float]:
  metrics = {key: metric for key, metric in suites.select(name).items() if not metric.needs_model}
  references = [[target] if isinstance(target, str) else list(target) for target in targets]
  values, skipped = suites.compute(metrics, list(predictions), references)
  for metric, reason in skipped.items():
    print(f'{name}: {metric} is left out: it {reason}', file=sys.stderr)
  return values
