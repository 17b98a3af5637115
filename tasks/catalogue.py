"""`prompt-tuning tasks`: all tasks in a list, or what the examples of some of them are.

The list reads no data. With names the data are read: sizes, labels (the distributions of Lester et al. 2021, tables 7
to 16), a formatted example, and lengths in tokens against the lengths that a job would cut at.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import pathlib
from typing import Any

from prompt_tuning import tasks

FAMILIES = {  # module of tasks.FAMILIES -> (pattern, example, what it is)
    'low_data': ('<task>_low<50|100|200|500>_s<0..4>', 'sst2_sample_low100_s3',
                 'a subset to train on and 30% as many examples to validate on (Li & Liang 2021)'),
    'sentinel': ('<task>_sentinel', 'sst2_sample_sentinel', '<extra_id_0> before the targets (Lester et al. 2021)'),
    'skill_neurons': ('wang_<corpus>_s<seed>', 'wang_sst2_sample_s3',
                      'another draw of the validation split (Wang et al. 2022); without it, seed 0'),
}
SEEDS_TO_CACHE = range(1, 5)  # of the skill-neuron tasks
_TEXT = 600  # characters of an example that are printed


def parser() -> argparse.ArgumentParser:
  result = argparse.ArgumentParser(
      prog='prompt-tuning tasks', description='Lists all tasks; with names, reads those and shows what they are like.')
  result.add_argument('names', nargs='*', metavar='NAME', help='a task or mixture')
  result.add_argument('--inputs', type=int, default=512, metavar='N',
                      help="TASK_FEATURE_LENGTHS['inputs'] (%(default)s)")
  result.add_argument('--targets', type=int, default=16, metavar='N', help='and of targets (%(default)s)')
  result.add_argument('--splits', metavar='A,B', help='read only these of the splits that a task has')
  result.add_argument('--limit', type=int, metavar='N', help='read only the first N examples of each split')
  result.add_argument('--tokenizer', metavar='FOLDER', help="count this tokenizer's tokens instead of T5's")
  result.add_argument('--json', metavar='FILE', help='also write all numbers here')
  result.add_argument('--plot', metavar='FILE.png', help='also draw the lengths here')
  result.add_argument('--tfds_data_dir', metavar='FOLDER', help='where TensorFlow Datasets are')
  return result


def catalogue(argv: Sequence[str]) -> int:
  """The command; returns 1 if data of a task asked for are not here or cannot be read, else 0.

  Raises:
    ValueError: there is no such task, or a bad flag; the message says which and what is expected.
  """
  flags = parser().parse_args(argv)
  for name in ('inputs', 'targets', 'limit'):
    if getattr(flags, name) is not None and getattr(flags, name) < 1:
      raise ValueError(f'--{name}={getattr(flags, name)}: expected a number from 1 on.')
  if flags.plot and not flags.plot.endswith('.png'):
    raise ValueError(f'--plot={flags.plot}: expected the name of a .png file.')
  if flags.tfds_data_dir:
    import seqio
    seqio.set_tfds_data_dir_override(flags.tfds_data_dir)
  if not flags.names:
    found = listed()
    print(_table([('task', 'splits', 'data here', 'from', 'licence'), *(
        (name, ' '.join(task['splits']), task['here'], task['from'], task['licence'])
        for name, task in found.items())]))
    print('\nMade when named:')
    print(_table([(pattern, about, f'such as {example}') for pattern, example, about in FAMILIES.values()]))
  else:
    found = show(flags)
  if flags.json:
    from prompt_tuning.train import writers
    writers.write_json(pathlib.Path(flags.json), found)
  return int(any('missing' in split for task in found.values() for split in task['splits'].values()))


def listed() -> dict[str, dict[str, Any]]:
  """Every registered task and mixture: splits, where from, licence and whether its data are here. Reads none."""
  import seqio

  from prompt_tuning.tasks import origin
  tasks.find('')
  found = {}
  for name in sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}):
    parts = [origin.of(task) for task in _tasks(name).values()]
    one = lambda field: '; '.join(dict.fromkeys(getattr(part, field) for part in parts))  # noqa: B023 (called here)
    splits = sorted(seqio.get_mixture_or_task(name).splits, key=lambda split: split == 'test')  # a mixture has a set
    found[name] = {'splits': {split: {} for split in splits},
                   'from': one('where'), 'licence': one('licence'), 'here': one('here')}
    if name in seqio.MixtureRegistry.names():
      found[name] |= {'from': f'a mixture of {len(parts)} tasks', 'licence': 'those of its tasks'}
  return found


def _tasks(name: str) -> dict[str, Any]:
  """The task, or those of a mixture, by name."""
  import seqio
  found = tasks.load(name)
  return {task.name: task for task in (found.tasks if isinstance(found, seqio.Mixture) else [found])}


def show(flags: argparse.Namespace) -> dict[str, dict[str, Any]]:
  """Prints what the tasks named are like; returns the numbers: task -> `from`, `licence`, `here`, `splits`."""
  from prompt_tuning.tasks import lengths, origin
  wanted = {name: task for given in flags.names for name, task in _tasks(given).items()}
  encode = lengths.encoder(flags.tokenizer)[1] if flags.tokenizer else None
  limits = {name: getattr(flags, name) for name in lengths.FEATURES}
  found: dict[str, dict[str, Any]] = {}
  for name, task in wanted.items():
    data = origin.of(task)
    found[name] = {'from': data.where, 'licence': data.licence, 'here': data.here, 'splits': {}}
    print(f'{name}\n  from {data.where}; licence: {data.licence}')
    splits = [split for split in task.splits if not flags.splits or split in flags.splits.split(',')]
    if not splits:
      raise ValueError(f'--splits={flags.splits}: {name} has none of them; it has {", ".join(task.splits)}.')
    for split in splits:
      found[name]['splits'][split] = {'missing': data.advice} if data.here == origin.MISSING else _measured(
          lambda: lengths.measure(task, split, limits, encode, flags.limit))  # noqa: B023 (called here)
    print('\n'.join(f'  {line}' for line in _described(found[name]['splits'], limits)), flush=True)
  if flags.plot:
    lengths.draw(flags.plot, found)
  return found


def _measured(measure) -> dict[str, Any]:
  """What is measured, or why it cannot be: a source does not find its data, or finds others."""
  try:
    return measure()
  except (OSError, ValueError) as error:
    return {'missing': str(error)}


def _described(splits: Mapping[str, Mapping], limits: Mapping[str, int]) -> Iterator[str]:
  from prompt_tuning.tasks import lengths
  for reason in dict.fromkeys(split['missing'] for split in splits.values() if 'missing' in split):
    names = ', '.join(name for name, split in splits.items() if split.get('missing') == reason)
    yield f'cannot be read ({names}): {reason}'
  if not any(split.get('examples') for split in splits.values()):
    return
  yield from _table(lengths.percentiles(splits)).splitlines()
  for name, split in splits.items():
    if 'labels' in split:
      yield f'labels of {name}: ' + ', '.join(
          f'{word} {of["count"]:,} ({of["share"]:.1%})' for word, of in split['labels'].items())
  where, example = next((name, split['example']) for name, split in splits.items() if split.get('examples'))
  for name, text in example.items():
    yield f'{name} of the first example ({where}): {text[:_TEXT]}{" ..." if len(text) > _TEXT else ""}'
  for name, limit in limits.items():
    yield f'{name}, tokens and examples of all splits (!: beyond {limit})'
    yield from (f'  {line}' for line in lengths.bars(lengths.together(splits, name), limit))


def _table(rows: Sequence[Sequence[str]]) -> str:
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join('  '.join(f'{cell:<{n}}' for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows)


def register_all() -> None:
  """Registers what is else registered when named, for commands of seqio's that look through its registry."""
  import seqio

  from prompt_tuning.tasks import low_data, skill_neurons
  tasks.find('')
  names = list(seqio.TaskRegistry.names())
  wanted = [f'{name}_sentinel' for name in names]
  wanted += [f'{name}_low{size}_s{seed}' for name in names for size in low_data.SIZES for seed in low_data.SEEDS]
  wanted += [f'{name}_s{seed}' for name in skill_neurons.TASKS for seed in SEEDS_TO_CACHE]
  for name in wanted:
    with contextlib.suppress(ValueError):  # of a task that has no such variant
      tasks.find(name)
