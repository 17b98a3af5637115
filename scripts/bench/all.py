"""Runs the benchmarks, each in a process of its own, and writes docs/benchmarks.md of what they print.

What a benchmark printed is kept in OUT/benchmarks/<section>.json; the page is made of those files alone, so that one
that fails loses no other, and some can be measured again. The machine should have nothing else to do.

  python scripts/bench/all.py --quick --peer_python=ENV/bin/python   # an ENV with prompt_tuning[parity]
  python scripts/bench/all.py --only=decode,startup
  python scripts/bench/all.py --page                                 # the page again, of what is there
"""

import argparse
from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from typing import Any

from workers import cpu, names, tell

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENV = 'ENV/bin/python'  # what the page calls the peers' interpreter


@dataclasses.dataclass(frozen=True)
class Section:
  """A benchmark and how it is run.

  Attributes:
    title, about: of the page; `about` says what the columns do not.
    script: in scripts.
    flags, quick: what it is run with, in full and in `--quick`; None: not in that.
    peer: flags to measure a peer too; {python} is its interpreter, {dtypes} what this processor has instructions for.
  """

  title: str
  about: str
  script: str
  flags: tuple[str, ...] = ()
  quick: tuple[str, ...] | None = ()
  peer: tuple[str, ...] = ()

  def command(self, quick: bool, peer_python: str | None) -> list[str]:
    """Its arguments behind the interpreter."""
    dtypes = 'float32,bfloat16' if cpu()['bfloat16'] else 'float32'  # emulated, it takes minutes a step
    peer = [flag.format(python=peer_python, dtypes=dtypes) for flag in self.peer] if peer_python else []
    return [str(pathlib.PurePath('scripts', self.script)), *((self.quick or ()) if quick else self.flags), *peer]


SECTIONS = {
    'train_step': Section(
        'A training step', 'Prompt tuning beside Hugging Face PEFT, step by step in turns; other methods beside the '
        'peer that does the same, if there is one. `GEMM` is a float32 matrix product of the same process in GFLOP/s, '
        '`utilisation` the step\'s share of it, `ours/this` our seconds over the contender\'s.', 'bench/train_step.py',
        flags=('--rows=small20,small100,base100,small20_prefix,small20_p_tuning,small20_adapter,small20_bitfit,small20_full',),
        quick=('--rows=small20,base100,small20_prefix,small20_p_tuning,small20_adapter,small20_bitfit,small20_full',
               '--steps=3'),
        peer=('--peer={dtypes}', '--peer_python={python}')),
    'profile_step': Section(
        'Where a step\'s time goes', 'Shares of the operations of T5 base\'s training step, and its utilisation by the '
        'processor\'s seconds.', 'bench/profile_step.py', flags=('--row=base100',), quick=('--row=base100',)),
    'padding': Section(
        'Padding, buckets and packing', 'Examples a second on the lengths of real data sets: all rows padded to 512 '
        'tokens of text, in buckets, packed, and PEFT with dynamic padding; the same examples in each step, but for '
        '`window`: buckets of all batches\' examples, dealt out by length. `padding` is the share of the encoder\'s '
        'tokens, `shapes` and `build s` what is compiled once.', 'bench/padding.py',
        quick=('--batches=4', '--rounds=1'), peer=('--peer={dtypes}', '--peer_python={python}')),
    'decode': Section(
        'Decoding', 'Tokens a second of GPT-2 small, greedy and with five beams, beside Hugging Face `generate`; '
        '`speed-up` is the peer\'s seconds over ours.', 'bench/decode.py', quick=('--rows=greedy8,beam1', '--turns=2'),
        peer=('--peer={python}',)),
    'prefix_cost': Section(
        'What a prefix costs', 'The gradient of a prefix over the loss alone, and a token of a decoder with a prefix '
        'over one without.', 'bench/prefix_cost.py', quick=None),
    'population': Section(
        'Many prompts at once', 'A step of N prompts together beside N steps in turn.', 'bench/population.py',
        quick=('--rows=small4', '--turns=3')),
    'probe': Section(
        'Probing for skill neurons', 'Both passes over the data on RoBERTa base, beside PyTorch\'s forward hooks.',
        'bench/probe.py', quick=('--turns=2', '--batches=2'), peer=('--peer={python}',)),
    'pruned': Section(
        'A pruned model', 'RoBERTa base, of nine layers 2% of the neurons.', 'bench/pruned.py', flags=('--rows=base',),
        quick=None),
    'checkpoint': Section(
        'Saving and restoring', 'A run\'s checkpoint on the shapes of T5 base, beside PyTorch\'s of arrays of the same '
        'shapes. Training waits for `save` alone.', 'bench/checkpoint.py', quick=('--turns=5',),
        peer=('--peer={python}',)),
    'startup': Section(
        'To the first step', 'A job\'s first start, and again with its programs compiled before.', 'bench/startup.py',
        quick=('--rows=small', '--turns=1')),
    'plan_memory': Section(
        'Memory, planned and measured', 'What `prompt-tuning plan` expects of a training step beside what a process '
        'takes.', 'bench/plan_memory.py', quick=None),
    'soak': Section(
        'Memory over many steps', 'A tiny T5 with a checkpoint every ten steps, an evaluation every hundred; the '
        'slope is fitted to the second half.', 'soak.py', quick=('--steps=1000',)),
    'interchange': Section(
        'Reading and converting models', 'Rates beside the disk\'s own, and memory.', 'bench/interchange.py',
        quick=None),
}


def machine() -> str:
  """The processor in words."""
  found = cpu()
  return f'{found["name"]}, {found["cores"]} cores'


def run(name: str, section: Section, folder: pathlib.Path, quick: bool, peer_python: str | None, limit: float) -> bool:
  """Runs a benchmark and keeps what it printed, or why it did not; returns whether it was measured."""
  command = section.command(quick, peer_python)
  began, load = time.monotonic(), os.getloadavg()[0]
  path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
  process = subprocess.Popen(
      [sys.executable, *command], cwd=ROOT, env={**os.environ, 'PYTHONPATH': path}, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, text=True, start_new_session=True)  # with all its workers
  try:
    out, err = process.communicate(timeout=limit)
    code = process.returncode
    reason = None if code == 0 else f'ended by signal {-code}' if code < 0 else _last(err) or f'exit code {code}'
  except subprocess.TimeoutExpired:
    out, reason = '', f'not done after {limit:.0f} s (--limit)'
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
  *table, report = out.splitlines() or ['']
  found = {
      'command': _shown(command, peer_python), 'machine': machine(), 'date': datetime.date.today().isoformat(),
      'load_before': round(load, 1), 'seconds': round(time.monotonic() - began)}
  if reason is None:
    try:
      found |= {'table': table, 'report': json.loads(report)}
    except json.JSONDecodeError:
      reason = 'its last line is no JSON'
  if reason is not None:
    tell(f'  failed: {reason}')
    found['failed'] = reason
  folder.mkdir(parents=True, exist_ok=True)
  _write(folder / f'{name}.json', json.dumps(found, indent=1))
  return reason is None


def _last(err: str) -> str:
  """The line of stderr that most likely says what was wrong."""
  lines = [line.strip() for line in err.splitlines() if line.strip()]
  return next((line for line in reversed(lines) if 'rror' in line), lines[-1] if lines else '')[:300]


def _shown(command: Sequence[str], peer_python: str | None) -> str:
  """The command as the page has it."""
  text = shlex.join(['python', *command])
  return text.replace(peer_python, ENV) if peer_python else text


def _write(path: pathlib.Path, text: str) -> None:
  temporary = path.with_name(f'.{path.name}.tmp')
  temporary.write_text(text.rstrip('\n') + '\n')
  os.replace(temporary, path)


def measured(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """What is kept, by section, in the order of `SECTIONS`."""
  return {name: json.loads((folder / f'{name}.json').read_text())
          for name in SECTIONS if (folder / f'{name}.json').exists()}


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
  """docs/benchmarks.md of what is kept."""
  parts = ['# Benchmarks\n\nMade by `scripts/bench/all.py` of what each benchmark printed, which is in '
           f'`docs/benchmarks/`; `{ENV}` is the\ninterpreter of an environment with `prompt_tuning[parity]`. Peers are '
           'measured in the same run, in turns with ours.']
  for name, kept in found.items():
    section = SECTIONS[name]
    body = f'Not measured: {kept["failed"]}' if 'failed' in kept else '```text\n' + '\n'.join(kept['table']) + '\n```'
    busy = f', load average {kept["load_before"]} before it began' if kept['load_before'] > 0.5 else ''
    parts.append(f'## {section.title}\n\n{section.about}\n\n```bash\n{kept["command"]}\n```\n\n{body}\n\n'
                 f'{kept["machine"]}; {kept["date"]}; {kept["seconds"]} s{busy}.')
  return '\n\n'.join(parts)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
      epilog='sections:\n' + '\n'.join(f'  {name:<12} {x.script}: {x.title}' for name, x in SECTIONS.items()))
  parser.add_argument('--only', type=names(list(SECTIONS)), default=list(SECTIONS), metavar='SECTION,...',
                      help='some sections (default: all)')
  parser.add_argument('--quick', action='store_true', help='fewer rows and turns: half an hour, with peers')
  parser.add_argument('--resume', action='store_true', help='leave out what was measured by the same command here')
  parser.add_argument('--page', action='store_true', help='measure nothing')
  parser.add_argument('--peer_python', metavar='FILE', help='measure peers too: an interpreter with torch and peft')
  parser.add_argument('--limit', type=float, default=1800, metavar='S',
                      help='seconds that a section may take (default: %(default)s)')
  parser.add_argument('--out', type=pathlib.Path, default=ROOT / 'docs', metavar='FOLDER', help='default: docs')
  arguments = parser.parse_args(argv)
  folder = arguments.out / 'benchmarks'
  before = measured(folder)

  def known(name: str) -> bool:
    kept = before.get(name, {'failed': ''})
    command = _shown(SECTIONS[name].command(arguments.quick, arguments.peer_python), arguments.peer_python)
    return 'failed' not in kept and (kept['command'], kept['machine']) == (command, machine())

  possible = [name for name in arguments.only if not (arguments.quick and SECTIONS[name].quick is None)]
  wanted = [] if arguments.page else [name for name in possible if not (arguments.resume and known(name))]
  began, failed = time.monotonic(), []
  for i, name in enumerate(wanted):
    eta = f', about {(time.monotonic() - began) / i * (len(wanted) - i):.0f} s left' if i else ''
    tell(f'[{i + 1}/{len(wanted)}] {name}{eta}')
    if not run(name, SECTIONS[name], folder, arguments.quick, arguments.peer_python, arguments.limit):
      failed.append(name)
  if not (found := measured(folder)):
    parser.error(f'nothing was ever measured in {folder}')
  _write(arguments.out / 'benchmarks.md', page(found))
  if failed:
    tell(f'{", ".join(failed)} failed; the page says why. --resume measures what is left.')
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
