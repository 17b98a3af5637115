"""`python -m prompt_tuning.train`: the training job."""

import sys

from prompt_tuning import cli

if __name__ == '__main__':
  sys.exit(cli.run('train', sys.argv[1:]))
