"""Metrics that kept libraries compute: chrF++, ROUGE, and, with a model from a local folder, BERTScore and BLEURT.

MoverScore is left out: its package is unmaintained, fixed to one model that it downloads, and computes its idf and
word groups in its own way; a rewrite would not be that metric.
"""

from collections.abc import Sequence
import functools
import importlib.util
import pathlib
import statistics

from sacrebleu.metrics import CHRF

from prompt_tuning.metrics.bleu import columns
from prompt_tuning.metrics.meteor import Unavailable

_INSTALL = 'pip install "prompt_tuning[model_metrics]"'


def chrf_pp(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """chrF++ (Popovic 2017) in [0, 1]: F2 of 1- to 6-grams of characters and 1- and 2-grams of words, best reference."""
  return CHRF(word_order=2).corpus_score(list(hypotheses), columns(references, None)).score / 100


def rouge(kind: str, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """Mean F1 of ROUGE over examples, in [0, 1], by rouge-score with Porter's stemmer; the best of several references.

  Args:
    kind: 'rouge1', 'rouge2', 'rougeL' (the whole text as one sequence) or 'rougeLsum' (a sentence a line).
  """
  from rouge_score import rouge_scorer
  scorer = rouge_scorer.RougeScorer([kind], tokenizer=_rouge_tokenizer(), split_summaries=False)
  return statistics.fmean(scorer.score_multi(texts, text)[kind].fmeasure
                          for text, texts in zip(hypotheses, references, strict=True))


@functools.cache
def _rouge_tokenizer():
  """rouge-score's tokenizer with memory: four kinds of ROUGE read the same texts."""
  from rouge_score import tokenizers

  class Cached(tokenizers.Tokenizer):
    tokenize = staticmethod(functools.lru_cache(maxsize=2**16)(tokenizers.DefaultTokenizer(use_stemmer=True).tokenize))

  return Cached()


def bertscore(hypotheses: Sequence[str], references: Sequence[Sequence[str]], folder: str) -> float:
  """Mean F1 of BERTScore (Zhang et al. 2020), best reference, no idf, no rescaling.

  Args:
    folder: a model in Hugging Face's format. It bears its public name (`roberta-large`): that selects the layer.

  Raises:
    Unavailable: no package or no such folder.
  """
  _need('bert_score', folder)
  import bert_score
  name = pathlib.Path(folder).resolve().name
  if name not in bert_score.utils.model2layers:
    raise Unavailable(f'{folder}: bert_score knows no best layer for {name!r}; name the folder as the model is called, '
                      'e.g. roberta-large.')
  _, _, f1 = bert_score.score(list(hypotheses), [list(texts) for texts in references], model_type=folder,
                              num_layers=bert_score.utils.model2layers[name])
  return float(f1.mean())


def bleurt(hypotheses: Sequence[str], references: Sequence[Sequence[str]], folder: str) -> float:
  """Mean BLEURT (Sellam et al. 2020) against the first reference, as DART's script does.

  Args:
    folder: a BLEURT checkpoint; its name belongs in every report, since values of different ones do not compare.

  Raises:
    Unavailable: no package or no such folder.
  """
  _need('bleurt', folder)
  from bleurt import score
  scores = score.BleurtScorer(folder).score(references=[texts[0] for texts in references], candidates=list(hypotheses))
  return statistics.fmean(scores)


def _need(package: str, folder: str) -> None:
  if not pathlib.Path(folder).is_dir():
    raise Unavailable(f'{folder} is no folder; name one that holds the model.')
  if importlib.util.find_spec(package) is None:
    raise Unavailable(f'the package {package} is not installed: '
                      + (_INSTALL if package == 'bert_score' else 'see github.com/google-research/bleurt') + '.')
