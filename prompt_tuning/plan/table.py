"""The figures of a plan as text."""

from collections.abc import Sequence

from prompt_tuning.plan.estimate import Estimate

MEMORY = {  # part -> what it is called
    'frozen': 'frozen parameters', 'trainable': 'trained parameters', 'optimizer': 'optimizer', 'batch': 'batch',
    'temporaries': 'activations and other temporaries', 'cache': '  of which decoding keeps (evenly spread)',
    'outputs': 'results', 'code': 'code'}


def size(nbytes: float) -> str:
  """Bytes in few digits: '5.57 GiB'."""
  for unit in ('B', 'KiB', 'MiB', 'GiB'):
    if abs(nbytes) < 1024 or unit == 'GiB':
      break
    nbytes /= 1024
  return f'{nbytes:.0f} {unit}' if unit == 'B' or nbytes >= 1000 else f'{nbytes:.3g} {unit}'


def duration(seconds: float) -> str:
  return f'{seconds:.3g} s' if seconds >= 1 else f'{seconds * 1e3:.3g} ms'


def of_program(found: Estimate, count: int) -> str:
  """One program on each of `count` devices, one figure a line."""
  known = not found.note
  lines = [(f'{found.program}, per device', '')]
  lines += [(f'  {what}', size(found.memory[name])) for name, what in MEMORY.items()
            if name in found.memory and (known or name in ('frozen', 'trainable', 'optimizer', 'batch'))]
  verdict = f'{"fits" if found.fits else "DOES NOT FIT"} in {size(found.usable)}'
  lines.append(('  peak', f'{size(found.peak)}: {verdict}'))
  if not known:
    return _aligned([*lines, ('  compiler', found.note)])
  lines.append(('  FLOPs', f'{found.flops:.3g} (matrix products of the model, over {count} devices)'))
  lines.append(('  memory traffic', f'{size(found.traffic)} (XLA\'s rule, loops multiplied out)'))
  for kind, (times, sent) in sorted(found.collectives.items()):
    lines.append((f'  {kind}', f'{times} x, {size(sent)} sent'))
  if not found.collectives:
    lines.append(('  network', 'nothing crosses it'))
  for what, seconds in found.times.items():
    lines.append((f'  {what} at its peak', duration(seconds) + (' (binding)' if what == found.bound else '')))
  lines.append(('  at least', f'{duration(found.seconds)}: at most {found.examples_per_second:.3g} examples/s on all '
                f'devices, MFU {found.utilisation:.0%}'))
  if found.checkpoint:
    lines.append(('  checkpoint', f'{size(found.checkpoint[0])}; what is trained {size(found.checkpoint[1])}'))
  lines.append(('  compiled in', f'{found.compile_seconds:.0f} s ({found.compile_cpu_seconds:.0f} s of CPU)'))
  return _aligned(lines)


def _aligned(lines: Sequence[tuple[str, str]]) -> str:
  width = max(len(name) for name, _ in lines)
  return '\n'.join(f'{name:<{width}}  {value}'.rstrip() for name, value in lines)
