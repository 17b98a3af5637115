"""Converts a model, or a trained prompt or prefix, from one format to another.

FROM may be
  a model      a Hugging Face folder, or a T5X checkpoint_<step> (native or Orbax; on a disk or gs://)
  a prompt     .npy, .safetensors, a PEFT adapter folder, a run folder, or a T5X checkpoint that holds a prompt
               (or what else was trained; of which a model, if methods/full.gin trained all of it, is written as one)

What is written goes by the name of TO (or by --to_format):
  *.npy              npy          a prompt [P, D], as Google's prompt-tuning reads it
  *.safetensors      safetensors  a prompt or prefix with facts about its base and task
  checkpoint_<step>  t5x          a native T5X checkpoint (t5x_scan: with scanned layers)
  any other folder   huggingface  for a model;  peft, an adapter, for a prompt or prefix

TO appears whole or not at all, and nothing that exists is written over.
"""
import argparse
import functools
import pathlib
import sys
import time

from prompt_tuning import loading
from prompt_tuning.checkpoints import base, convert, peft, tuned

_TUNED_FORMS = ('npy', 'safetensors', 'peft')


def to_format(path: str, to: str) -> str:
  """The format that the name of TO asks for."""
  for suffix in ('npy', 'safetensors'):
    if to.endswith(f'.{suffix}'):
      return suffix
  if base.is_model(path):
    return convert.form_for(base.open_base(path), to)
  if trained(path).method == 'full':
    return convert.form_for(convert.of_full(trained(path), path), to)
  return 'peft'


@functools.cache
def trained(path: str) -> tuned.Tuned:
  """What was trained, read once."""
  return tuned.load(path)


def tokenizer_of(path: str | None) -> str | None:
  """The tokenizer beside a base, if there is such a base here."""
  try:
    return path and base.open_base(path).tokenizer_path
  except (ValueError, OSError):
    return None


def convert_tuned(args: argparse.Namespace) -> list[str]:
  """Converts a prompt or prefix; returns what is to be said of it."""
  if args.dtype:
    raise ValueError('--dtype is for models; prompts and prefixes are float32.')
  thing = trained(args.source)
  if args.to_format == 'peft':
    config = base.open_base(args.base).config if args.base else None
    peft.write_folder(args.to, thing, base_path=args.base, base_config=config)
  elif pathlib.Path(args.to).exists():
    raise FileExistsError(f'{args.to} exists already: remove it, or name another file.')
  elif args.to_format == 'npy':
    tuned.save_npy(args.to, thing)
  else:
    tuned.save_safetensors(args.to, thing)
  return [f'{name} {list(x.shape)} {x.dtype}' for name, x in thing.tensors.items()]


def convert_model(args: argparse.Namespace) -> list[str]:
  """Converts a model; returns what is to be said of it."""
  if not base.is_model(args.source):
    thing = trained(args.source)
    source = convert.of_full(thing, args.source, tokenizer_of(args.base or thing.about.get('base_path')))
  else:
    source = base.open_base(args.source)
  try:
    state = None if args.no_state else base.open_t5x(args.source, 'state')
  except FileNotFoundError as error:
    raise FileNotFoundError(f'{error} To convert the model alone, add --no_state.') from error
  total = sum(info.nbytes for info in source.tensors.values())
  convert.convert(source, args.to, args.to_format, dtype=args.dtype, state=state, tick=loading.megabytes(total))
  return [f'{len(source.tensors)} tensors, {total / 1e6:.1f} MB', *convert.left_out(source, args.to_format, state)]


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('source', metavar='FROM', help='what to read')
  parser.add_argument('to', metavar='TO', help='the file or folder to write')
  parser.add_argument('--to_format', choices=[*convert.FORMS, *_TUNED_FORMS], help='default: by the name of TO')
  parser.add_argument('--dtype', choices=list(loading.DTYPES), help='type of all tensors; default: as each is')
  parser.add_argument('--no_state', action='store_true', help="leave a T5X checkpoint's optimizer state behind")
  parser.add_argument('--base', metavar='MODEL', help='where FROM does not say it: the model that it was trained on')
  args = parser.parse_args(argv)
  began = time.monotonic()
  try:
    args.to_format = args.to_format or to_format(args.source, args.to)
    notes = convert_tuned(args) if args.to_format in _TUNED_FORMS else convert_model(args)
  except (ValueError, OSError) as error:
    print(f'convert_checkpoint.py: {error}', file=sys.stderr)
    return 1
  print(f'{args.source} -> {args.to} ({args.to_format}) in {time.monotonic() - began:.1f} s')
  print('\n'.join(f'  {note}' for note in notes))
  return 0


if __name__ == '__main__':
  sys.exit(main())
