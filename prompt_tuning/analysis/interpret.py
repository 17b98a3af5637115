"""What a soft prompt looks like: the words nearest to its virtual tokens (Lester et al. 2021, section 7).

The nearest rows of the frozen embedding table by cosine, five a virtual token as in the paper, and as numbers what it
says of them in words: how tight they are among themselves against those of random vectors (the paper: prompts have
tight clusters, random vectors do not), which virtual tokens share neighbours (long prompts repeat them), how many are
forms of one word ("Technology / technology / Technologies"), and where the class labels come up (they survive in
prompts that begin from them).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
import json
import os
from typing import Any

import numpy as np

from prompt_tuning import loading
from prompt_tuning.analysis import plots
from prompt_tuning.checkpoints import base as base_checkpoints
from prompt_tuning.checkpoints import tuned
from prompt_tuning.tokenizer import T5_VOCABULARY, open_tokenizer


def nearest(prompt: np.ndarray, table: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Ids and cosines [P, k] of the rows of a table [V, D] that are nearest to a prompt [P, D], nearest first.

  Raises:
    ValueError: k is out of range, or widths differ.
  """
  if not 1 <= k <= len(table):
    raise ValueError(f'TOP_K={k}; expected 1 to {len(table)}, the words there are.')
  if prompt.shape[1] != table.shape[1]:
    raise ValueError(f'The prompt is {prompt.shape[1]} wide but the embedding table {table.shape[1]}; name the base '
                     'that it was trained on.')
  cosines = _unit(prompt) @ _unit(table).T
  ids = np.argsort(-cosines, axis=1, kind='stable')[:, :k]
  return ids, np.take_along_axis(cosines, ids, axis=1)


def words(ids: np.ndarray, cosines: np.ndarray, piece: Callable[[int], str]) -> list[list[tuple[str, float]]]:
  """(piece, cosine) for each neighbour of each virtual token."""
  return [[(piece(int(i)), float(c)) for i, c in zip(*row, strict=True)] for row in zip(ids, cosines, strict=True)]


def cohesion(ids: np.ndarray, table: np.ndarray) -> np.ndarray:
  """Mean cosine [P] between two neighbours of a virtual token, for ids [P, k]; NaN for one neighbour."""
  rows = _unit(table[ids])  # [P, k, D]
  k = ids.shape[1]
  if k == 1:
    return np.full(len(ids), np.nan)
  return (np.einsum('PKD,PJD->P', rows, rows) - k) / (k * (k - 1))


def clusters(ids: np.ndarray) -> list[list[int]]:
  """Virtual tokens that share a neighbour, directly or through others, of ids [P, k]: largest first, none alone."""
  groups: list[tuple[set[int], list[int]]] = []
  for token, neighbours in enumerate(ids.tolist()):
    touching = [group for group in groups if group[0] & set(neighbours)]
    merged = (set(neighbours).union(*(group[0] for group in touching)),
              sorted(sum((group[1] for group in touching), [token])))
    groups = [group for group in groups if group not in touching] + [merged]
  return sorted((tokens for _, tokens in groups if len(tokens) > 1), key=lambda tokens: (-len(tokens), tokens))


def forms(neighbours: Sequence[str]) -> int:
  """How many of the words begin with the four letters that most of them begin with, case aside; alone is 0."""
  stems = Counter(word.strip().casefold()[:4] for word in neighbours)
  most = max(stems.values())
  return most if most > 1 else 0


def recurrence(neighbours: Sequence[Sequence[str]], labels: Sequence[str]) -> dict[str, list[int]]:
  """Class label -> the virtual tokens among whose neighbours it is, case aside."""
  same = lambda a, b: a.strip().casefold() == b.strip().casefold()
  return {label: [i for i, row in enumerate(neighbours) if any(same(word, label) for word in row)] for label in labels}


def describe(
    prompt: np.ndarray, table: np.ndarray, piece: Callable[[int], str], *, class_labels: Sequence[str] = (),
    top_k: int = 5, random_seed: int = 0) -> dict[str, Any]:
  """All of the above for a prompt [P, D] and an embedding table [V, D], JSON-able.

  Args:
    random_seed: of as many random vectors N(0, 1), which cohesion is compared with.
  """
  ids, cosines = nearest(prompt, table, top_k)
  random = np.random.default_rng(random_seed).standard_normal(prompt.shape, np.float32)
  random_ids, random_cosines = nearest(random, table, top_k)
  near = words(ids, cosines, piece)
  plain = [[word for word, _ in row] for row in near]
  tight, loose = cohesion(ids, table), cohesion(random_ids, table)
  among = recurrence(plain, class_labels)
  counts = Counter(word for row in plain for word in row)
  number = lambda x: None if np.isnan(x) else float(x)
  return {
      'length': len(prompt),
      'top_k': top_k,
      'cosine_of_nearest': {'prompt': float(cosines[:, 0].mean()), 'random': float(random_cosines[:, 0].mean())},
      'cohesion': {'prompt': number(tight.mean()), 'random': number(loose.mean()), 'random_sd': number(loose.std())},
      'clusters': [{'tokens': tokens, 'words': [word for word, _ in Counter(
          w for token in tokens for w in plain[token]).most_common(top_k)]} for tokens in clusters(ids)],
      'repeated': [[word, n] for word, n in counts.most_common(10) if n > 1],
      'class_labels': {label: {'tokens': at, 'share': len(at) / len(prompt)} for label, at in among.items()},
      'tokens': [{'neighbours': [list(pair) for pair in row], 'cohesion': number(c), 'forms': forms(plain[i])}
                 for i, (row, c) in enumerate(zip(near, tight, strict=True))],
  }


def text_of(found: Mapping[str, Any]) -> str:
  """What `describe` found, to read."""
  percent = lambda x: 'none' if x is None else f'{x:.3f}'
  tight = found['cohesion']
  lines = [
      f'{found["length"]} virtual tokens, {found["top_k"]} nearest words each, by cosine',
      f'nearest word: mean cosine {found["cosine_of_nearest"]["prompt"]:.3f}, of random vectors '
      f'{found["cosine_of_nearest"]["random"]:.3f}',
      f'neighbours among themselves: mean cosine {percent(tight["prompt"])}, of those of random vectors '
      f'{percent(tight["random"])} (sd over vectors {percent(tight["random_sd"])})', '']
  for i, token in enumerate(found['tokens']):
    near = '  '.join(f'{word.strip() or repr(word)} {cosine:.2f}' for word, cosine in token['neighbours'])
    lines.append(f'{i:>4}  {near}')
  lines += ['', 'virtual tokens that share neighbours:' + ('' if found['clusters'] else ' none')]
  lines += [f'  {", ".join(map(str, c["tokens"]))}: {", ".join(w.strip() for w in c["words"])}'
            for c in found['clusters']]
  if found['repeated']:
    lines.append('most repeated: ' + ', '.join(f'{word.strip()} {n}x' for word, n in found['repeated']))
  lines += [f'class label {label!r}: neighbour of {len(x["tokens"])} virtual tokens ({x["share"]:.0%})'
            + (f': {", ".join(map(str, x["tokens"]))}' if x['tokens'] else '')
            for label, x in found['class_labels'].items()]
  return '\n'.join(lines) + '\n'


def draw(path: str | os.PathLike, found: Mapping[str, Any], most: int = 60) -> None:
  """The first `most` virtual tokens with their nearest words, coloured by cosine, as a PNG."""
  tokens = found['tokens'][:most]
  cosines = np.array([[cosine for _, cosine in token['neighbours']] for token in tokens])
  size = (1.5 + 1.3 * cosines.shape[1], 1.4 + 0.24 * len(tokens))
  title = 'nearest words by cosine' + (f' (first {most})' if len(found['tokens']) > most else '')
  with plots._figure(path, title, 'neighbour', 'virtual token', size) as axes:
    image = axes.imshow(cosines, cmap='viridis', aspect='auto')
    axes.figure.colorbar(image)
    axes.set_xticks(range(cosines.shape[1]), range(1, cosines.shape[1] + 1))
    axes.set_yticks(range(len(tokens)))
    for row, token in enumerate(tokens):
      for column, (word, cosine) in enumerate(token['neighbours']):
        color = 'white' if image.norm(cosine) < 0.6 else 'black'
        axes.text(column, row, word.strip() or repr(word), ha='center', va='center', fontsize=7, color=color,
                  parse_math=False)


def interpret(
    *, checkpoint_path: str, initial_checkpoint_path: str, output_dir: str, class_labels: Sequence[str] = (),
    top_k: int = 5, tokenizer: str | None = None, random_seed: int = 0) -> Mapping[str, Any]:
  """Writes `interpret.txt`, `interpret.json` and `interpret.png` into `output_dir`; see `describe`.

  Of the base only the embedding table is read.

  Args:
    checkpoint_path: CHECKPOINT_PATH, what was trained, as `tuned.load` reads it: a prompt or what has one.
    initial_checkpoint_path: INITIAL_CHECKPOINT_PATH, the base that it was trained on.
    class_labels: CLASS_LABELS, to look for among the neighbours.
    tokenizer: a folder or file of it; None: what lies beside the base, else T5's own for T5.

  Raises:
    FileNotFoundError, ValueError: a path that is wrong, or what was trained has no virtual tokens with embeddings.
  """
  tensors = tuned.load(checkpoint_path).tensors
  if not (tables := [x for name, x in sorted(tensors.items()) if name in (tuned.PROMPT, 'infix/embedding')]):
    raise ValueError(f'{checkpoint_path}: has no prompt to interpret ({", ".join(sorted(tensors))}); name a run of '
                     'prompt tuning or P-tuning.')
  source, base = base_checkpoints.open_base(initial_checkpoint_path), loading.base_of(initial_checkpoint_path)
  where = tokenizer or source.tokenizer_path or (T5_VOCABULARY if base.config.family == 't5' else None)
  if where is None:
    raise ValueError(f'{initial_checkpoint_path}: this {base.config.family} model comes without a tokenizer; name it '
                     'by TOKENIZER.')
  opened = open_tokenizer(where, base.config.family)
  table = base.embeddings(range(min(len(opened), base.config.vocab_size)))  # rows beyond are no words
  found = {
      'checkpoint_path': str(checkpoint_path), 'initial_checkpoint_path': str(initial_checkpoint_path),
      **describe(tables[0], table, opened.piece, class_labels=class_labels, top_k=top_k, random_seed=random_seed)}
  text = text_of(found)
  for name, data in (('txt', text), ('json', json.dumps(found, indent=2, ensure_ascii=False) + '\n')):
    plots.write_bytes(os.path.join(output_dir, f'interpret.{name}'), data.encode())
  draw(os.path.join(output_dir, 'interpret.png'), found)
  print(text, end='')
  return found


def _unit(x: np.ndarray) -> np.ndarray:
  x = np.asarray(x, np.float32)
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)
