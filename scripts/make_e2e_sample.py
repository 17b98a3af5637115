"""Makes the bundled files of the task `e2e_sample` from the devset.csv of the E2E NLG Challenge.

Usage: python scripts/make_e2e_sample.py --dev e2e/devset.csv --out tasks/data

The 100 meaning representations with the smallest SHA-256 are kept with all their references, to evaluate on. Of the
others each gives its 3 references with the smallest SHA-256 to train on, so that all 447 of these tables are seen
rather than a few of them with many references. Both files are in the order of those hashes: the result depends neither
on the order of the lines that came in nor on anybody's random number generator. A line is one table,
`mr<TAB>reference<TAB>...`.
"""

import argparse
import csv
import hashlib
import os

NUM_EVAL = 100
TRAIN_REFERENCES = 3


def read(path: str) -> dict[str, set[str]]:
  """References by meaning representation, of a CSV with the header mr,ref."""
  with open(path, encoding='utf-8', newline='') as f:
    header, *rows = csv.reader(f)
  if header != ['mr', 'ref']:
    raise ValueError(f'{path}: expected the header mr,ref; found {header}.')
  tables = {}
  for mr, reference in rows:
    tables.setdefault(mr.strip(), set()).add(' '.join(reference.split()))
  return tables


def shuffled(texts) -> list[str]:
  """Texts in the order of their hashes."""
  return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())


def select(tables: dict[str, set[str]]) -> tuple[list[list[str]], list[list[str]]]:
  """(training, evaluation) lines, each a meaning representation and its references."""
  lines = [[mr, *shuffled(tables[mr])] for mr in shuffled(tables)]
  return [line[:1 + TRAIN_REFERENCES] for line in lines[NUM_EVAL:]], lines[:NUM_EVAL]


def write(path: str, lines: list[list[str]]):
  """Writes lines with tabs between their texts, atomically."""
  with open(path + '.tmp', 'w', encoding='utf-8', newline='\n') as f:
    f.writelines('\t'.join(line) + '\n' for line in lines)
  os.replace(path + '.tmp', path)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  for name in ('dev', 'out'):
    parser.add_argument(f'--{name}', required=True)
  args = parser.parse_args()
  train, evaluation = select(read(args.dev))
  write(os.path.join(args.out, 'e2e_sample_train.txt'), train)
  write(os.path.join(args.out, 'e2e_sample_dev.txt'), evaluation)


if __name__ == '__main__':
  main()
