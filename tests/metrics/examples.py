"""The example of the E2E challenge's scorer: ten outputs, their references."""

import pathlib

FOLDER = pathlib.Path(__file__).parents[1] / 'goldens' / 'e2e'
OUTPUTS, REFERENCES = FOLDER / 'baseline-output.txt', FOLDER / 'devel-conc.txt'


def e2e() -> tuple[list[str], list[list[str]]]:
  groups = REFERENCES.read_text().strip().split('\n\n')
  return OUTPUTS.read_text().splitlines(), [group.splitlines() for group in groups]
