"""Makes the bundled files of the task `sst2_sample` from the train.tsv and dev.tsv of GLUE's SST-2.

Usage: python scripts/make_sst2_sample.py --train SST-2/train.tsv --dev SST-2/dev.tsv --out tasks/data

A training phrase is eligible if it has at least 8 words (most of SST-2 is fragments of parsed sentences, down
to one word; the dev set is whole sentences), carries one label only, and is no dev sentence. The 6,000 with
the smallest SHA-256 are kept, and all dev rows. Both files are in the order of that hash, so the result is
shuffled and depends neither on the order of the rows that came in nor on anybody's random number generator.
"""

import argparse
import csv
import hashlib
import os

NUM_TRAIN = 6000
MIN_WORDS = 8


def read(path: str) -> set[tuple[str, str]]:
  """The `(label, sentence)` pairs of a two-column TSV with a header that names one of the columns `label`."""
  with open(path, encoding='utf-8', newline='') as f:
    header, *rows = csv.reader(f, delimiter='\t', quoting=csv.QUOTE_NONE)
  if len(header) != 2 or 'label' not in header:
    raise ValueError(f'{path}: expected two columns, one of them `label`; the header is {header}.')
  label = header.index('label')
  return {(row[label], row[1 - label].strip()) for row in rows}


def select(train: set[tuple[str, str]], dev: set[tuple[str, str]], size: int) -> list[tuple[str, str]]:
  """The `size` training rows to keep (fewer if fewer are eligible), in their order."""
  labels = {}
  for label, sentence in train:
    labels.setdefault(sentence, set()).add(label)
  held_out = {sentence for _, sentence in dev}
  eligible = [(label, s) for label, s in train
              if len(s.split()) >= MIN_WORDS and len(labels[s]) == 1 and s not in held_out]
  return shuffled(eligible)[:size]


def shuffled(rows) -> list[tuple[str, str]]:
  """Rows in the order of their sentence's hash."""
  return sorted(rows, key=lambda row: hashlib.sha256(row[1].encode()).digest())


def write(path: str, rows: list[tuple[str, str]]):
  """Writes rows under a header, atomically."""
  with open(path + '.tmp', 'w', encoding='utf-8', newline='\n') as f:
    f.writelines(f'{label}\t{sentence}\n' for label, sentence in [('label', 'sentence'), *rows])
  os.replace(path + '.tmp', path)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  for name in ('train', 'dev', 'out'):
    parser.add_argument(f'--{name}', required=True)
  args = parser.parse_args()
  train, dev = read(args.train), read(args.dev)
  write(os.path.join(args.out, 'sst2_sample_train.tsv'), select(train, dev, NUM_TRAIN))
  write(os.path.join(args.out, 'sst2_dev.tsv'), shuffled(dev))


if __name__ == '__main__':
  main()
