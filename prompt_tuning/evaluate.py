"""`python -m prompt_tuning.evaluate`: the evaluation job."""

import sys

from prompt_tuning import cli

if __name__ == '__main__':
  sys.exit(cli.run('eval', sys.argv[1:]))
