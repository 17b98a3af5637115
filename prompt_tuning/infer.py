"""`python -m prompt_tuning.infer`: the inference job."""

import sys

from prompt_tuning import cli

if __name__ == '__main__':
  sys.exit(cli.run('infer', sys.argv[1:]))
