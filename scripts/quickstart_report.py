"""Prints what the quick start reached and leaves it in the run's summary.json.

  python scripts/quickstart_report.py RUN_FOLDER BASE_FOLDER
"""

import argparse
import json
import os
import pathlib
import time

from prompt_tuning import PromptedModel
from prompt_tuning.train import writers


def main() -> None:
  parser = argparse.ArgumentParser(description='Reports on a run of scripts/quickstart.sh.')
  parser.add_argument('run', type=pathlib.Path, help='its MODEL_DIR')
  parser.add_argument('base', help='the frozen base it was tuned on')
  flags = parser.parse_args()

  trained = json.loads((flags.run / 'summary.json').read_text())
  metrics = [json.loads(line) for line in (flags.run / 'metrics.jsonl').read_text().splitlines()]
  accuracy = {m['step']: m['accuracy'] for m in metrics if m['split'] == 'inference_eval/sst2_sample'}
  predictions = flags.run / 'inference_eval' / f'sst2_sample-{trained["step"]}.jsonl'
  now = time.time()
  summary = {
      **trained,
      'accuracy_before': accuracy[0],
      'accuracy_after': accuracy[trained['step']],
      'examples_eval': len(predictions.read_text().splitlines()),
      'prompt_bytes': trained['trainable_bytes'],
      'model_bytes': trained['frozen_bytes'],
      'total_seconds': now - float(os.environ.get('QUICKSTART_BEGAN', now - trained['total_seconds'])),
  }
  writers.write_json(flags.run / 'summary.json', summary)

  print('\nSST-2 dev accuracy, T5 1.1 small (frozen) with a soft prompt of 20 tokens')
  print(f'  before tuning  {summary["accuracy_before"]:8.4f}   (the written instruction as a prompt)')
  print(f'  after tuning   {summary["accuracy_after"]:8.4f}   ({trained["step"]} steps, '
        f'{summary["examples_eval"]} examples evaluated)')
  print(f'  prompt         {summary["prompt_bytes"]:8,d} bytes   frozen model {summary["model_bytes"]:,d} bytes')
  print(f'  training       {summary["train_seconds"]:8.0f} s       everything {summary["total_seconds"]:.0f} s')
  model = PromptedModel.load(flags.base, str(flags.run))
  print('\nNearest words of the virtual tokens (cosine):')
  for i, words in enumerate(model.nearest_words(3)):
    print(f'  {i:3d}  ' + '  '.join(f'{word.strip()!r} {cosine:.2f}' for word, cosine in words))
  print('\nPredictions:')
  for line in (flags.run / 'infer' / 'sentences-predict.jsonl').read_text().splitlines():
    row = json.loads(line)
    print(f'  {row["prediction"]:10s} {row["score"]:7.3f}  {row["inputs"]}')
  print(f'\nAll of it is in {flags.run}/ (summary.json, metrics.jsonl, prompts/, config.gin).')


if __name__ == '__main__':
  main()
