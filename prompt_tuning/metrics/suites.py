"""The metrics that papers report for a data set, each with the definition it follows; and computing them.

One name may stand for different definitions: BLEU on E2E is mteval's, on WebNLG and DART that of Moses. A name without
a suite is looked up in the order of `SUITES`.

Differences to Li and Liang 2021's own evaluation: an empty output counts as empty (theirs put a dummy word in its
place), and ROUGE is the mean over examples (theirs was a mean of means over batches).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import re
import sys
import threading
import time

import text_unidecode

from prompt_tuning.metrics import bleu, coco, libraries, ptb
from prompt_tuning.metrics.meteor import Unavailable, meteor
from prompt_tuning.metrics.ter import ter

_Texts = tuple[list[str], list[list[str]]]


@dataclasses.dataclass(frozen=True)
class Metric:
  """A metric and the definition it follows."""
  function: Callable[..., float]  # (hypotheses, references of each[, model folder]) -> value
  definition: str
  fraction: bool = True  # of [0, 1], which papers print as percent
  needs_model: bool = False  # a local folder, never downloaded


def _ptb(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> _Texts:
  words = lambda text: ' '.join(ptb.tokenize(text))
  return [words(text) for text in hypotheses], [[words(text) for text in texts] for texts in references]


def _webnlg(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> _Texts:
  """As WebNLG's evaluation.py: at most three references, lower case, ASCII, spaces around what is no letter or digit.

  Outputs become ASCII before they are split and references after it, as there. Texts already in that form stay.
  """
  ascii_ = text_unidecode.unidecode
  return ([_split(ascii_(ascii_(text).lower())) for text in hypotheses],
          [[ascii_(_split(text).lower()) for text in texts[:3]] for texts in references])


def _dart(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> _Texts:
  """The form of DART's reference files: lower case, spaces around what is no letter or digit; three references."""
  return ([_split(text.lower()) for text in hypotheses],
          [[_split(text.lower()) for text in texts[:3]] for texts in references])


def _dart_first(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> _Texts:
  return _dart(hypotheses, [texts[:1] for texts in references])


@functools.lru_cache(maxsize=2**16)
def _split(text: str) -> str:
  return ' '.join(' '.join(re.split(r'(\W)', text)).split())


def _after(prepare: Callable[..., _Texts], function: Callable[..., float]) -> Callable[..., float]:
  return lambda hypotheses, references: function(*prepare(hypotheses, references))


_CHRF = Metric(libraries.chrf_pp, 'chrF++ (sacrebleu), unchanged text, all references')
_MODELS = {
    'bertscore': Metric(libraries.bertscore, 'BERTScore F1 (bert_score), no idf, all references', needs_model=True),
    'bleurt': Metric(libraries.bleurt, 'BLEURT, first reference', fraction=False, needs_model=True),
}
SUITES: Mapping[str, Mapping[str, Metric]] = {
    'e2e': {
        'bleu': Metric(bleu.bleu, 'mteval-v13a BLEU-4, lower case'),
        'nist': Metric(bleu.nist, 'mteval-v13a NIST-5, lower case', fraction=False),
        'meteor': Metric(_after(_ptb, meteor), 'METEOR 1.5 -norm on COCO words'),
        'rouge_l': Metric(coco.rouge_l, 'COCO ROUGE-L, beta 1.2'),
        'cider': Metric(coco.cider, 'COCO CIDEr (CIDEr-D)', fraction=False),
    },
    'webnlg': {
        'bleu': Metric(_after(_webnlg, bleu.multi_bleu), 'multi-bleu.perl -lc, up to 3 references, WebNLG tokens'),
        'meteor': Metric(_after(_webnlg, meteor), 'METEOR 1.5 -norm, up to 3 references, WebNLG tokens'),
        'ter': Metric(_after(_webnlg, ter), 'tercom TER (sacrebleu), up to 3 references, lower is better'),
        'chrf++': _CHRF,
        **_MODELS,
    },
    'dart': {
        'bleu': Metric(_after(_dart, bleu.multi_bleu), 'multi-bleu.perl, up to 3 references, lower case, DART tokens'),
        'meteor': Metric(_after(_dart_first, meteor), "METEOR 1.5 -norm, first reference (as DART's script)"),
        'ter': Metric(_after(_dart_first, ter),
                      "tercom TER (sacrebleu), first reference (as DART's script), lower is better"),
        'chrf++': _CHRF,
        **_MODELS,
    },
    'xsum': {
        **{kind: Metric(functools.partial(libraries.rouge, kind), f'rouge-score {kind} F1, stemmer, mean over examples')
           for kind in ('rouge1', 'rouge2', 'rougeL', 'rougeLsum')},
        'bertscore': _MODELS['bertscore'],
    },
}


def select(suite: str | None, names: Iterable[str] | None = None) -> dict[str, Metric]:
  """Metrics by name: of a suite, all or some; without one, from the first suite that has the name.

  Raises:
    ValueError: an unknown suite or metric, or neither given; the message lists those there are.
  """
  if suite is not None and suite not in SUITES:
    raise ValueError(f'There is no suite {suite!r}; choose of {", ".join(SUITES)}.')
  if suite is None and not names:
    raise ValueError(f'Name a suite ({", ".join(SUITES)}) or metrics.')
  known: dict[str, Metric] = {}
  for each in [suite] if suite else SUITES:
    known = {**SUITES[each], **known}
  if unknown := [name for name in names or () if name not in known]:
    raise ValueError(f'There is no metric {unknown[0]!r}' + (f' in suite {suite}' if suite else '')
                     + f'; choose of {", ".join(sorted(known))}.')
  return {name: known[name] for name in names or known}


def compute(metrics: Mapping[str, Metric], hypotheses: Sequence[str], references: Sequence[Sequence[str]],
            models: Mapping[str, str] | None = None) -> tuple[dict[str, float], dict[str, str]]:
  """Computes metrics, telling on stderr what it is at every 10 s.

  Args:
    metrics: as `select` gives them.
    hypotheses: one text an example; may be empty.
    references: at least one text for each; empty ones are taken for missing.
    models: folder by name of the metric that needs one.

  Returns:
    Values by name, and for metrics that cannot be computed here the reason by name.

  Raises:
    ValueError: no examples, not as many references as hypotheses, or an example without any.
  """
  if not hypotheses or len(hypotheses) != len(references):
    raise ValueError(f'{len(hypotheses)} outputs but references for {len(references)}: they must be as many, and at '
                     'least one.')
  references = [[text for text in texts if text.strip()] for texts in references]
  missing = [number for number, texts in enumerate(references, 1) if not texts]
  if len(missing) == len(references):
    raise ValueError('All references are empty.')
  if missing:
    raise ValueError(f'Output {missing[0]} has no reference that is not empty ({len(missing)} such outputs).')
  values, skipped = {}, {}
  for name, metric in metrics.items():
    arguments = [(models or {}).get(name)] if metric.needs_model else []
    if arguments == [None]:
      skipped[name] = f'needs a model: give its local folder as {name}=FOLDER.'
      continue
    try:
      with _telling(name):
        values[name] = metric.function(hypotheses, references, *arguments)
    except Unavailable as error:
      skipped[name] = str(error)
  return values, skipped


@contextlib.contextmanager
def _telling(name: str, every: float = 10.0) -> Iterator[None]:
  """Says on stderr that a metric is still at work."""
  began, done = time.monotonic(), threading.Event()

  def tell():
    while not done.wait(every):
      print(f'{name}: {time.monotonic() - began:.0f} s', file=sys.stderr, flush=True)

  thread = threading.Thread(target=tell, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()
