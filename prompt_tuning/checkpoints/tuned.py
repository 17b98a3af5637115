"""A trained prompt, prefix, adapter and so on from whatever holds it: a file, a PEFT folder, a run or a T5X checkpoint.

What a path holds is told by content, not by its name: Google's released prompts have no suffix.
"""

from collections.abc import Callable
import os
import pathlib
import re
import warnings

from prompt_tuning.checkpoints import base, peft, tuned_file, tuned_tensors
from prompt_tuning.checkpoints.tuned_file import Tuned, save_npy, save_safetensors, write_bytes
from prompt_tuning.checkpoints.tuned_tensors import PROMPT, checked, method_of

__all__ = ['PROMPT', 'OtherBaseWarning', 'Tuned', 'checked', 'load', 'method_of', 'save_npy', 'save_safetensors',
           'step_files', 'warn_if_other_base', 'write_bytes']

_T5X_PROMPT = 'encoder/prompt/prompt/prompt'  # of Google's prompt-tuning, below `target`
_FORMS = ('expected a .npy file [P, D], a .safetensors file, a PEFT adapter folder, a run folder or a T5X '
          'checkpoint_<step>')
_SUFFIXES = ('.safetensors', '.npy')  # the better first: it knows what it was trained on


class OtherBaseWarning(UserWarning):
  """A prompt is used on a base that it was not trained on."""


def load(path: str | os.PathLike, method: str | None = None) -> Tuned:
  """Reads what was trained, as float32, with the facts that its form holds.

  Args:
    path: a `.npy` [P, D] (Google's have no suffix) or our `.safetensors`; a PEFT folder, see `peft.read_folder`; a
      run folder, which stands for its best (else newest) prompt; or a `checkpoint_<step>` of Google's
      prompt-tuning, of which only the prompt is read.
    method: 'prompt', 'prefix', ... where only that will do, or what holds it too, such as 'prompt+head'.

  Raises:
    FileNotFoundError: there is nothing of these forms.
    ValueError: it is damaged, of a form that is not read (pickles and archives), not finite, of wrong shape, or of
      another method; the message names the file and says what to do.
  """
  tuned = _load(path)
  if method is not None and method not in tuned.method.split('+'):
    shapes = ', '.join(f'{name} {list(x.shape)}' for name, x in sorted(tuned.tensors.items()))
    raise ValueError(f'{path}: holds a {tuned.method} ({shapes}) where a {method} is expected; name a file of a '
                     f'{method}, or use the method {tuned.method}.')
  return tuned


def _load(path: str | os.PathLike) -> Tuned:
  place = pathlib.Path(path)
  if '://' in str(path):
    return _read_t5x(str(path))
  if not place.exists():
    raise FileNotFoundError(f'{path}: there is no such prompt; {_FORMS}.')
  if place.is_file():
    return _read_file(place)
  if (place / peft.CONFIG).exists() or (place / peft.WEIGHTS).exists():
    return peft.read_folder(place)
  if (place / 'checkpoint').is_file() or (place / 'state').is_dir():
    return _read_t5x(str(path))
  return _read_file(_of_run(place))


def _read_file(file: pathlib.Path) -> Tuned:
  with open(file, 'rb') as f:
    head = f.read(256)
  safetensors = head[8:9] == b'{'  # behind the length of its header, whose first byte may be any
  if (head.startswith(b'\x80') and not safetensors) or b'/data.pkl' in head:  # torch.save, old or new
    raise ValueError(f'{file}: is a pickle, which could run code when loaded and is not read; of a PEFT adapter, load '
                     'it in PEFT, save it with save_pretrained(FOLDER, safe_serialization=True) and name FOLDER.')
  if head.startswith(b'PK'):
    raise ValueError(f'{file}: is an archive (.npz or zip), which is not unpacked; save its one array [P, D] '
                     'with numpy.save.')
  if head.startswith(b'\x93NUMPY') or file.suffix == '.npy':
    return tuned_file.read_npy(file)
  if safetensors or file.suffix == '.safetensors':
    return tuned_file.read_ours(file)
  raise ValueError(f'{file}: neither .npy nor .safetensors by its content; {_FORMS}.')


def _read_t5x(folder: str) -> Tuned:
  source = base.open_base(folder)
  if _T5X_PROMPT not in source.tensors:
    raise ValueError(f'{folder}: a {source.kind} checkpoint without {_T5X_PROMPT}: it is a base model, not a prompt; '
                     f'{_FORMS}.')
  tensors = {PROMPT: source.read(_T5X_PROMPT, ())}
  return Tuned('prompt', checked(folder, 'prompt', tensors))


def step_files(folder: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
  """The `<method>_<step>` files of a run's `prompts`, by step, of two of a step the better last."""
  found = [(int(match[1]), _SUFFIXES.index(match[2]), file) for file in folder.iterdir()
           if (match := re.fullmatch(rf'{tuned_tensors.NAME}_(\d+)(\.npy|\.safetensors)', file.name))]
  return [(step, file) for step, _, file in sorted(found, key=lambda x: (x[0], -x[1]))]


def _of_run(folder: pathlib.Path) -> pathlib.Path:
  """The best, else the newest prompt of a run folder or of its `prompts`."""
  prompts = folder / 'prompts' if (folder / 'prompts').is_dir() else folder
  for suffix in _SUFFIXES:
    if (best := prompts / f'best{suffix}').exists():
      return best
  if not (files := step_files(prompts)):
    raise FileNotFoundError(f'{folder}: no prompts/best.* and no prompts/prompt_<step>.* in this folder '
                            f'({" or ".join(_SUFFIXES)}); {_FORMS}.')
  return files[-1][1]


def warn_if_other_base(path: str, tuned: Tuned, base_path: str, fingerprint: Callable[[], str]) -> None:
  """Warns if a file says that it was trained on another base; `fingerprint` is called only if it says so."""
  trained_on = tuned.about.get('base_fingerprint')
  if trained_on is not None and (here := fingerprint()) != trained_on:
    dtype = f' in {tuned.about["base_dtype"]}' if 'base_dtype' in tuned.about else ''
    warnings.warn(OtherBaseWarning(
        f'{path} was trained on {tuned.about.get("base_path", "a base")}{dtype} (fingerprint {trained_on}) but is used '
        f'on {base_path} (fingerprint {here}): its predictions may mean nothing; name the base, and the '
        'PARAMETER_DTYPE, that it was trained with.'),
        stacklevel=2)
