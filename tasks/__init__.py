"""seqio tasks: text in, text out, one module per suite.

| module | tasks | read from |
|---|---|---|
| `glue` | `taskless_glue_{sst2,mrpc,qqp,mnli,mnli_[mis]matched,qnli,rte}_v{002,200}` | TFDS `glue` 1.0.0, 2.0.0 |
| `glue` | `taskless_glue_{mrpc_from_qqp,qqp_from_mrpc}_v{002,200}` | the same: zero-shot transfer, to evaluate on |
| `superglue` | `[taskless_]super_glue_{boolq,cb,copa,multirc,record,rte,wic,wsc}_v102` | TFDS `super_glue` 1.0.2 |
| `superglue` | `[taskless_]dpr_v001_simple`; mixture `super_glue_v102_proportional` | TFDS; all nine |
| `question_answering` | `squad_v010_allanswers`, `mrqa_*_v001`, `squadshifts_*`, `xquad_en` | TFDS, files |
| `sample` | `sst2_sample` | two small files in `data/`: no download |
| `e2e` | `e2e`, `e2e_dev_split`, `e2e_sample` | the E2E NLG Challenge's files; its development file; `data/` |
| `webnlg` | `webnlg`, `webnlg_seen`, `webnlg_unseen` | the WebNLG Challenge 2017's files |
| `dart` | `dart` | DART 1.1.1's files |
| `xsum` | `xsum`, `xsum_news_to_sports`, `xsum_within_news` | XSum's documents, split and addresses |
| `skill_neurons` | `wang_{sst2,sst2_sample,imdb,tweet,mnli,qnli,agnews,dbpedia}[_2][_s{seed}]` | TFDS, files, `data/` |
| `sentiment` | `sst2_on_imdb`, `sst2_on_tweets` | the corpora of `skill_neurons`; to evaluate on |
| `language_modeling` | `{c4,c4_v220,text,wikitext_sample}_{prefix_lm,span_corruption}` | TFDS `c4`, own text, `data/` |
| `sentinel` | `<task>_sentinel` | any of these, with `<extra_id_0>` before its targets |
| `low_data` | `<task>_low{50,100,200,500}_s{0..4}` | subsets of any of these, drawn when named |

"Taskless" is T5's text format without its leading task name, as in Lester et al. 2021: the prompt tells the
task. The names are those of Google's prompt-tuning repository, so its users' commands keep their meaning. Tables and
articles become text as in Li & Liang 2021; `docs/data.md` says where their files come from and go.

To add a task: describe its fields and label words as one row of `text_to_text.FORMATS`, then register it by
one call: `text_to_text.register` (any seqio source) or `local.local_task` (your own TSV or JSONL files).
`load` finds a module of this package once `SUITES` names it, and one of your own once it has been imported.

Importing this package is cheap: seqio and TensorFlow (seconds) are imported by `load` and by the modules.
"""

import difflib
import importlib

# Modules that register tasks when imported.
SUITES = (
    'glue', 'superglue', 'sample', 'e2e', 'webnlg', 'dart', 'xsum', 'skill_neurons', 'sentiment', 'language_modeling',
    'question_answering')
# Modules with `define(name)`, which registers a task when it is named.
FAMILIES = ('low_data', 'sentinel', 'skill_neurons')


def load(name: str):
  """The seqio task or mixture called `name`, with every suite of this package registered first.

  Args:
    name: a name of the table above, or of a task or mixture that the caller has registered.

  Returns:
    A `seqio.Task` or `seqio.Mixture`. Nothing is read or downloaded before its `get_dataset`.

  Raises:
    ValueError: nothing is registered under `name`; the message lists the nearest names. Or it is a low-data
      name with another size or seed than the paper's, or a seed of a task that is not split by one.
  """
  import seqio

  if (found := find(name)) is None:
    known = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.3) or known
    raise ValueError(f'There is no task or mixture {name!r}. Nearest: {", ".join(near)}. '
                     'A task of your own has to be registered (its module imported) before it is loaded.')
  return found


def find(name: str):
  """As `load`, but None where there is no such task or mixture."""
  import seqio

  for suite in SUITES:
    importlib.import_module(f'{__name__}.{suite}')
  for family in FAMILIES:
    if name in seqio.TaskRegistry.names() or importlib.import_module(f'{__name__}.{family}').define(name):
      break
  known = name in seqio.TaskRegistry.names() or name in seqio.MixtureRegistry.names()
  return seqio.get_mixture_or_task(name) if known else None
