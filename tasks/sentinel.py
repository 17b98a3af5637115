"""Sentinel variants: `<task>_sentinel`, such as `taskless_super_glue_cb_v102_sentinel`, of any task.

A model pretrained by span corruption alone begins whatever it writes with a sentinel, so every target gets
`<extra_id_0>` in front, and targets and predictions are scored without it (Lester et al. 2021, sec. 3.3, Fig. 3c).
Inputs stay as they are; T5's own variant also puts a sentinel behind them. The prompt gets none.
"""

import seqio

from prompt_tuning import tasks
from prompt_tuning.tasks import pipeline

SENTINEL = '<extra_id_0>'
_SUFFIX = '_sentinel'


def define(name: str) -> bool:
  """Registers the task called `name` if it is a sentinel variant of a task; tells whether it is one."""
  base = tasks.find(name.removesuffix(_SUFFIX)) if name.endswith(_SUFFIX) else None
  if not isinstance(base, seqio.Task):
    return False

  def postprocess(text: str, **example):
    return base.postprocess_fn(text.strip().removeprefix(SENTINEL).lstrip(), **example)

  pipeline.add(
      name, base.source, [*pipeline.text_steps(base), pipeline.prepend('targets', SENTINEL)],
      postprocess_fn=postprocess, metric_fns=base.metric_fns)
  return True
