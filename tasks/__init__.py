"""seqio tasks: text in, text out, one module per suite.

| module | tasks | read from |
|---|---|---|
| `glue` | `taskless_glue_{rte,sst2}_{v002,v200}` | TFDS `glue` 1.0.0 (v002, the paper's) and 2.0.0 (v200) |
| `superglue` | `taskless_super_glue_{boolq,cb,rte}_v102` | TFDS `super_glue` 1.0.2 |
| `sample` | `sst2_sample` | two small files in `data/`: no download |

"Taskless" is T5's text format without its leading task name, as in Lester et al. 2021: the prompt tells the
task. The names are those of Google's prompt-tuning repository, so its users' commands keep their meaning.

To add a task: describe its fields and label words as one row of `text_to_text.FORMATS`, then register it by
one call: `text_to_text.register` (any seqio source) or `local.local_task` (your own TSV or JSONL files).
`load` finds a module of this package once `SUITES` names it, and one of your own once it has been imported.

Importing this package is cheap: seqio and TensorFlow (seconds) are imported by `load` and by the modules.
"""

import difflib
import importlib

SUITES = ('glue', 'superglue', 'sample')  # modules that register tasks when imported


def load(name: str):
  """The seqio task or mixture called `name`, with every suite of this package registered first.

  Args:
    name: a name of the table above, or of a task or mixture that the caller has registered.

  Returns:
    A `seqio.Task` or `seqio.Mixture`. Nothing is read or downloaded before its `get_dataset`.

  Raises:
    ValueError: nothing is registered under `name`; the message lists the nearest names.
  """
  import seqio

  for suite in SUITES:
    importlib.import_module(f'{__name__}.{suite}')
  known = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
  if name not in known:
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.3) or known
    raise ValueError(f'There is no task or mixture {name!r}. Nearest: {", ".join(near)}. '
                     'A task of your own has to be registered (its module imported) before it is loaded.')
  return seqio.get_mixture_or_task(name)
