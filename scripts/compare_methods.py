"""Trains methods on one frozen base and one task, at equal steps, and prints their metrics beside the untuned model's.

  python scripts/compare_methods.py --base models/quickstart_t5
  python scripts/compare_methods.py --base models/quickstart_t5 --methods prefix adapter bitfit
  PROMPT_TUNING_MANUAL_DIR=... python scripts/compare_methods.py --base models/quickstart_t5 --gin_file papers/li2021/small_webnlg.gin

Every method is a run of its own in OUT/<method>, begun by the same gin files; a run that is there is not repeated.
`trained` counts what the optimizer sees, `kept` what is left of it in the run's `prompts/`. The untuned model is the
beginning of full fine-tuning. Ends with one line of JSON.
"""  # noqa: E501

import argparse
import json
import pathlib
import subprocess
import sys

from prompt_tuning import trees
from prompt_tuning.checkpoints import tuned

METHODS = {  # method -> its macros; rates are guesses: no search was made
    'prefix': {'LEARNING_RATE': 2e-3},
    'full': {'LEARNING_RATE': 5e-4},
    'prompt': {'LEARNING_RATE': 0.3, 'PROMPT_LENGTH': 20},
    'adapter': {'LEARNING_RATE': 2e-3},
    'bitfit': {'LEARNING_RATE': 1e-2},
    'top_k': {'LEARNING_RATE': 5e-4},
}


def command(method: str, flags: argparse.Namespace, folder: pathlib.Path) -> list[str]:
  """The training job of one method."""
  files = ['models/t5.gin', f'methods/{method}.gin', 'runs/train.gin', 'papers/li2021/recipe.gin',
           'papers/li2021/small.gin', *flags.gin_file]
  macros = {'MODEL_DIR': folder, 'INITIAL_CHECKPOINT_PATH': flags.base, 'EVAL_INITIAL': method == 'full',
            **METHODS[method]}
  if flags.steps:
    macros |= {'TRAIN_STEPS': flags.steps, 'EVAL_PERIOD': flags.steps}
  return [sys.executable, '-m', 'prompt_tuning.train', *(f'--gin_file={file}' for file in files),
          *(f'--gin.{name}={value}' for name, value in macros.items()), *flags.bindings]


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--base', required=True, help='checkpoint of a T5')
  parser.add_argument('--out', type=pathlib.Path, default='runs/compare_methods', help='folder of the runs')
  parser.add_argument('--methods', nargs='+', choices=list(METHODS), default=list(METHODS), metavar='METHOD',
                      help=f'some of {", ".join(METHODS)}; all if not given')
  parser.add_argument('--steps', type=int, help='training steps of each; 100 if not given')
  parser.add_argument('--gin_file', action='append', default=[], help='behind papers/li2021/small.gin')
  flags, flags.bindings = parser.parse_known_args(argv)
  if wrong := [binding for binding in flags.bindings if not binding.startswith('--gin.')]:
    parser.error(f'unknown: {" ".join(wrong)}; besides the flags, only --gin.NAME=VALUE goes to the training jobs')

  rows = {}
  for method in flags.methods:
    folder = flags.out / method
    subprocess.run(command(method, flags, folder), check=True)
    summary = json.loads((folder / 'summary.json').read_text())
    if summary['metrics_before'] is not None:
      rows['untuned'] = {'trained': 0, 'kept': 0, 'seconds': 0, **flat(summary['metrics_before'])}
    rows[method] = {'trained': summary['trainable_bytes'] // 4, 'kept': trees.size(tuned.load(folder).tensors),
                    'seconds': round(summary['train_seconds']), **flat(summary['metrics'])}
  columns = list(next(iter(rows.values())))
  widths = [max(10, len(column)) for column in columns]
  print('  '.join([' ' * 8, *(c.rjust(w) for c, w in zip(columns, widths, strict=True))]))
  for name, row in rows.items():
    cells = [f'{row[c]:{w}.4f}' if isinstance(row[c], float) else f'{row[c]:{w}}'
             for c, w in zip(columns, widths, strict=True)]
    print('  '.join([name.ljust(8), *cells]))
  print(json.dumps(rows))
  return 0


def flat(metrics: dict[str, dict[str, float]]) -> dict[str, float]:
  """Metrics of one task by their names; of several with the task in front."""
  if len(metrics) == 1:
    return next(iter(metrics.values()))
  return {f'{task}/{name}': value for task, values in metrics.items() for name, value in values.items()}


if __name__ == '__main__':
  sys.exit(main())
