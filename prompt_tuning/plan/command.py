"""`prompt-tuning plan`: memory, speed and fit of a job on devices that are not here, from the files that launch it.

The job's own functions are compiled for the devices with shapes in place of arrays; no data and no weights are read.
"""

import argparse
from collections.abc import Sequence
import json
import os
import pathlib
import subprocess
import sys

from prompt_tuning import gin_utils
from prompt_tuning.plan import devices, planner, programs, targets
from prompt_tuning.train import writers

INSIDE = 'PROMPT_TUNING_PLANS_FOR'  # of the process that compiles: the devices it was set up for


def parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog='prompt-tuning plan', formatter_class=argparse.RawDescriptionHelpFormatter,
      description='Compiles a job for devices that are not here; says what it needs of them and whether it fits.',
      epilog='Take the gin files and flags of the job to be launched. MODEL_SIZE says what the base is where\n'
             'INITIAL_CHECKPOINT_PATH is not on this disk. The exit code is 1 where something does not fit.')
  gin_utils.add_flags(parser)
  parser.add_argument('--devices', default='v5e:8', metavar='KIND:NUMBER',
                      help=f'or KIND:GRID of TPU chips: v5e:256, v4:4x4x8, h100:8, cpu:8; kinds: '
                           f'{", ".join(devices.DEVICES)} (%(default)s)')
  parser.add_argument('--job', choices=programs.JOBS, help='what to plan (what is configured; eval and infer also of '
                      'what a training trains)')
  parser.add_argument('--memory_gib', type=float, metavar='X', help='memory of a device, if not the usual')
  parser.add_argument('--quick', action='store_true',
                      help='TPUs: compile with the least effort, in a third of the time; memory may differ')
  parser.add_argument('--no_suggest', action='store_true', help='do not look for settings that fit')
  parser.add_argument('--output', type=pathlib.Path, metavar='FILE', help='gets the figures as JSON')
  parser.add_argument('--dry_run', action='store_true', help='read the configuration, print it and stop')
  return parser


def plan(argv: Sequence[str]) -> int:
  """The command; returns the exit code."""
  others, bindings = gin_utils.split_bindings(argv)
  flags = parser().parse_args(others)
  target = devices.parse(flags.devices)
  configuration = planner.Configuration(flags.gin_file, [*flags.gin_bindings, *bindings], flags.gin_search_paths)
  if flags.dry_run:
    configuration.read()
    print(gin_utils.shown())
    return 0
  targets.check_installed(target)
  if os.environ.get(INSIDE) != str(target):  # JAX of this process may have started already, with other devices
    env = {**targets.environment(target, os.environ), INSIDE: str(target)}
    return subprocess.run([sys.executable, '-m', 'prompt_tuning.cli', 'plan', *argv], env=env, check=False).returncode
  device = targets.with_memory(targets.peaks(target), flags.memory_gib)
  found = planner.planned(configuration, target, flags.job, device, flags.quick)
  print(planner.text(found), flush=True)
  suggestions = []
  if not found.fits and not flags.no_suggest:
    suggestions = planner.suggestions(configuration, found, device, flags.quick)
    print('\n'.join(['', 'Settings with which it fits:', *(f'  {flags}' for flags, _ in suggestions)] if suggestions
                    else ['', 'No settings were found with which it fits: take more devices, or larger ones.']))
  figures = {**found.json(), 'suggestions': [{'flags': flags, 'peak': peak} for flags, peak in suggestions]}
  if flags.output:
    writers.write_json(flags.output, figures)
  print(json.dumps(figures))
  return 0 if found.fits else 1
