"""Plans of the papers' largest recipes and of every size of model, from the gin files that launch them: docs/plans.md

    python scripts/make_plans.py                 # what docs/plans.json does not have yet; can be stopped at any time
    python scripts/make_plans.py --only=xxl --again
    python scripts/make_plans.py --render        # the page alone

Needs the compilers of TPUs and GPUs (pip install 'prompt_tuning[tpu]' and '[gpu]'), and neither of them.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

from prompt_tuning.plan import devices, planner, table, targets
from prompt_tuning.train import writers

DOCS = pathlib.Path(__file__).parent.parent / 'docs'
INSIDE = 'PROMPT_TUNING_MAKES_PLANS'

LESTER = ('models/t5.gin', 'methods/prompt.gin', 'runs/train.gin', 'papers/lester2021/recipe.gin',
          'papers/lester2021/boolq.gin')
E2E = ('models/gpt2.gin', 'methods/prefix.gin', 'runs/train.gin', 'papers/li2021/recipe.gin', 'papers/li2021/e2e.gin',
       'papers/li2021/decode.gin')
XSUM = ('models/bart.gin', 'methods/prefix.gin', 'runs/train.gin', 'papers/li2021/recipe.gin', 'papers/li2021/xsum.gin',
        'papers/li2021/decode_xsum.gin')
WANG = ('models/roberta.gin', 'methods/prompt.gin', 'runs/train.gin', 'papers/wang2022/recipe.gin',
        'papers/wang2022/sst2.gin')
GLUE = ('models/bert.gin', 'methods/adapter.gin', 'runs/train.gin', 'papers/relatives/glue.gin')


@dataclasses.dataclass(frozen=True)
class Row:
  """One job on one kind of devices.

  Attributes:
    part: of the page: 'recipes', 'one', 'sizes'.
    name: what is trained.
    files: of gin.
    macros: set on top of them.
    on: the devices.
    jobs: what is planned of it.
  """

  part: str
  name: str
  files: Sequence[str]
  macros: Mapping[str, object]
  on: str
  jobs: Sequence[str] = ('train', 'eval')

  def key(self, job: str) -> str:
    return f'{self.part}: {self.name} {job} {self.on} {" ".join(f"{k}={v}" for k, v in self.macros.items())}'

  @property
  def flags(self) -> str:
    """What is set besides the size and, of a classifier, its classes."""
    return ' '.join(f'{k}={v}' for k, v in self.macros.items() if k not in ('MODEL_SIZE', 'LABELS'))


def rows() -> Iterator[Row]:
  bf16 = {'PARAMETER_DTYPE': 'bfloat16', 'ACTIVATION_DTYPE': 'bfloat16'}
  tpus = {'v5e:16x16': 8, 'v4:4x4x8': 4, 'v5p:4x4x4': 2}  # with the partitions that leave one example a partition
  for size, more in (('xl', {}), ('xxl', bf16)):
    name, macros = f'T5 {size.upper()} prompt', {'MODEL_SIZE': f't5_1_1_{size}'}
    yield Row('recipes', name, LESTER, {**macros, **more}, 'h100:8')
    for on, partitions in tpus.items():
      yield Row('recipes', name, LESTER, {**macros, 'NUM_PARTITIONS': partitions}, on)
  for on, batch in {'h100:8': 80, 'v5e:16x16': 256, 'v4:4x4x8': 128, 'v5p:4x4x4': 64}.items():
    yield Row('recipes', 'GPT-2 XL prefix', E2E, {'MODEL_SIZE': 'gpt2_xl', 'BATCH_SIZE': batch}, on)
  for more in ({}, {'REMAT': 'dots'}, {'MICROBATCHES': 8}):
    yield Row('one', 'T5 XXL prompt', LESTER, {'MODEL_SIZE': 't5_1_1_xxl', **bf16, **more}, 'h100:1', ('train',))
  for more in ({}, {'PARAMETER_DTYPE': 'int8'}):
    yield Row('one', 'xxl_one_gpu.gin', (*LESTER, 'papers/lester2021/xxl_one_gpu.gin'), more, 'h100:1')
  yield from _sizes(bf16)


def _sizes(bf16: Mapping[str, object]) -> Iterator[Row]:
  large = {  # what the largest need on such few devices: of a TPU's, and of a GPU's
      't5_1_1_xl': ({'NUM_PARTITIONS': 4}, {}), 't5_1_0_xl': ({'NUM_PARTITIONS': 4, 'MICROBATCHES': 4}, {}),
      't5_1_1_xxl': ({'NUM_PARTITIONS': 8, 'MICROBATCHES': 8}, bf16),
      't5_1_0_xxl': ({'NUM_PARTITIONS': 8, 'MICROBATCHES': 8}, {**bf16, 'MICROBATCHES': 4})}
  classes = {'LABELS': ('a', 'b')}
  found = [(f't5_1_{minor}_{size}', LESTER, {}) for minor in (1, 0) for size in ('small', 'base', 'large', 'xl', 'xxl')]
  found += [(f'gpt2_{size}', E2E, {'BATCH_SIZE': 32}) for size in ('small', 'medium', 'large', 'xl')]
  found += [(f'bart_{size}', XSUM, {'BATCH_SIZE': 32}) for size in ('base', 'large')]
  found += [(f'roberta_{size}', WANG, {}) for size in ('base', 'base_pruned', 'large')]
  found += [(name, GLUE, classes) for name in ('bert_base', 'bert_large', 'minilm')]
  for i, on in enumerate(('h100:8', 'v5e:4x8')):
    for size, files, macros in found:
      more = large.get(size, ({}, {}))[1 - i]
      yield Row('sizes', size, files, {'MODEL_SIZE': size, **macros, **more}, on)


def read() -> dict[str, dict]:
  """What was planned before, by the rows' keys."""
  path = DOCS / 'plans.json'
  return json.loads(path.read_text()) if path.exists() else {}


def make(only: str, again: bool) -> None:
  """Plans what is not there yet; each is written as soon as it is made, beside what others have made meanwhile."""
  for row in rows():
    for job in row.jobs:
      key = row.key(job)
      done = 'error' not in read().get(key, {'error': ''})  # what failed is tried again
      if only not in key or (done and not again):
        continue
      target, began = devices.parse(row.on), time.monotonic()
      configuration = planner.Configuration(row.files, ())
      try:
        plan = planner.planned(configuration, target, job, target.device, quick=True, macros=row.macros).json()
      except Exception as error:  # a compiler's: that is a result too
        plan = {'error': f'{type(error).__name__}: {str(error).splitlines()[0]}'}
      writers.write_json(DOCS / 'plans.json', {**read(), key: plan})
      state = plan.get('error') or ', '.join(
          f'{one["program"]} {table.size(one["peak"])}{"" if one["fits"] else " TOO MUCH"}' for one in plan['programs'])
      print(f'{time.monotonic() - began:4.0f} s  {key}  {state}', file=sys.stderr, flush=True)


# --- The page ---


def page(found: Mapping[str, dict]) -> str:
  """The page of what was planned."""
  parts = {name: [row for row in rows() if row.part == name] for name in ('recipes', 'one', 'sizes')}
  return HEAD.format(
      recipes=_recipes(parts['recipes'], found), one=_recipes(parts['one'], found, verdict=True),
      sizes=_of_sizes(parts['sizes'], found), slowest=_slowest(found))


def _recipes(some: Sequence[Row], found: Mapping[str, dict], verdict: bool = False) -> str:
  heads = ['trained', 'devices', 'mesh', 'set besides', 'program', 'frozen', 'temporaries', 'peak',
           *(['fits'] if verdict else []), 'sent', 'at least', 'bound by', 'examples/s', 'MFU']
  lines = [heads, ['---'] * len(heads)]
  for row in some:
    for job in row.jobs:
      plan = found.get(row.key(job))
      for one in (plan or {}).get('programs', ()):
        mesh = ' x '.join(str(n) for n in plan['mesh'].values())
        lines.append([
            row.name, row.on, mesh, row.flags, one['program'], table.size(one['memory']['frozen']),
            table.size(one['memory']['temporaries']) if not one['note'] else '', table.size(one['peak']),
            *([('yes' if one['fits'] else 'no')] if verdict else []),
            table.size(sum(sent for _, sent in one['collectives'].values())), table.duration(one['seconds']),
            one['bound'], f'{one["examples_per_second"]:,.0f}', f'{one["utilisation"]:.0%}'])
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _of_sizes(some: Sequence[Row], found: Mapping[str, dict]) -> str:
  kinds = list(dict.fromkeys(row.on for row in some))
  programs = ('train step', 'generate', 'score')
  lines = [['size', *(f'{on} {name}' for on in kinds for name in programs)]]
  lines.append(['---'] * len(lines[0]))
  for size in dict.fromkeys(row.name for row in some):
    cells = [size]
    for on in kinds:
      row = next(row for row in some if (row.name, row.on) == (size, on))
      plans = [found.get(row.key(job)) for job in row.jobs]
      peaks = {one['program']: table.size(one['peak']) + ('' if one['fits'] else ' (too much)')
               for plan in plans if plan for one in plan.get('programs', ())}
      failed = [plan for plan in plans if plan and 'error' in plan]
      cells += [peaks.get(name, 'FAILS' if failed else 'not made') for name in programs]
    lines.append(cells)
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _slowest(found: Mapping[str, dict]) -> str:
  """The longest compilation of a train step of T5 XXL."""
  seconds = [one['compile_cpu_seconds'] for key, plan in found.items() if 't5_1_1_xxl' in key
             for one in plan.get('programs', ()) if one['program'] == 'train step']
  return f'{max(seconds):.0f}' if seconds else '?'


HEAD = """# Plans

What the largest recipes of the papers need of pods and nodes that were not there: each row is a job's own function,
made from the gin files that launch it, compiled by the target's compiler with shapes in place of arrays. Made and
written by

```bash
python scripts/make_plans.py
```

which keeps its figures in `docs/plans.json`. One job is planned by `prompt-tuning plan`
([scale.md](scale.md#plan-before-you-rent)).

- *frozen*, *temporaries*, *peak*: bytes of one device, by the compiler; *sent*: bytes that a device sends in a step
  or, of `generate`, in all steps up to the longest target, read from the compiled program.
- *at least*, *examples/s*, *MFU*: a roofline. The longest of three times, each at the vendor's peak: the model's
  matrix products, the memory traffic of the compiled program, and what is sent. A run is slower; by how much, a plan
  does not know.
- TPU programs are compiled with the least effort (`--quick`): with more, the compiler uses more of the memory that
  there is. GPU programs are compiled without choosing kernels by timing them, which takes the GPU. A train step of T5
  XXL took at most {slowest} s of CPU to compile.

## Recipes

Prompt tuning is Lester et al. 2021's recipe (`papers/lester2021/recipe.gin`, `boolq.gin`: batch 32, 512 tokens,
prompt of 100), prefix-tuning Li & Liang 2021's E2E (`papers/li2021/recipe.gin`, `e2e.gin`, `decode.gin`: beam of 5).
The batch of GPT-2 is set because 10 does not divide over the devices, and T5's partitions leave one example for each.
Float32 unless it says otherwise.

{recipes}

## T5 XXL on one GPU of 80 GB

Prompt tuning at batch 32 of 512 tokens.

{one}

## Every size

The peak of a device for the recipes above, BART on `xsum.gin`, RoBERTa on `wang2022/sst2.gin`, and BERT with adapters
on `relatives/glue.gin`; XL and XXL with the partitions, microbatches and types that `scripts/make_plans.py` names.

{sizes}
"""


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
      description=__doc__.split('\n')[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
  parser.add_argument('--only', default='', metavar='TEXT', help='plan only what has this in its name')
  parser.add_argument('--again', action='store_true', help='also what is there already')
  parser.add_argument('--render', action='store_true', help='write the page of what is there, and plan nothing')
  flags = parser.parse_args(argv)
  if not flags.render:
    for name in ('v5e:8', 'h100:8'):
      targets.check_installed(devices.parse(name))
    if INSIDE not in os.environ:
      env = {**targets.environment(devices.parse('v5e:8'), os.environ), INSIDE: '1'}
      return subprocess.run([sys.executable, __file__, *(sys.argv[1:] if argv is None else argv)], env=env,
                            check=False).returncode
    make(flags.only, flags.again)
  known = {row.key(job) for row in rows() for job in row.jobs}
  writers.write_lines(DOCS / 'plans.md', page({key: plan for key, plan in read().items() if key in known}).splitlines())
  return 0


if __name__ == '__main__':
  sys.exit(main())
