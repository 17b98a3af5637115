"""Caches of tasks: what `seqio_cache_tasks` has written is read where a job sets USE_CACHED_TASKS.

A cache holds a task's examples as tokens, in a random order, which is that of splits that are not shuffled too. Unlike
T5X this asks for a cache when a job begins and says how to make it, and knows no cache folders of its own.
"""

import os

import seqio

FOLDERS = 'SEQIO_ADDITIONAL_CACHE_DIRS'  # environment variable; --seqio_additional_cache_dirs sets it


def folders() -> list[str]:
  """Where caches are looked for; seqio knows them from now on."""
  given = [folder for folder in os.environ.get(FOLDERS, '').split(',') if folder]
  seqio.add_global_cache_dirs(given)
  return seqio.get_global_cache_dirs()


def require(task: seqio.Task | seqio.Mixture, split: str) -> None:
  """Checks that the cache of a task, or of each task of a mixture, can be read. Without this seqio would read no cache.

  Raises:
    FileNotFoundError: there is none, or it lacks the split; the message has the command that makes it.
    ValueError: a task cannot be cached.
  """
  known = folders()
  for one in task.tasks if isinstance(task, seqio.Mixture) else (task,):
    if split not in one.splits:
      continue
    if not one.supports_caching:
      raise ValueError(f'USE_CACHED_TASKS: {one.name} cannot be cached, as it has no seqio.CacheDatasetPlaceholder. '
                       'Give it one, or set USE_CACHED_TASKS = False.')
    path = one.cache_dir and seqio.utils.get_cached_info_path(one.cache_dir, split)
    if not path or not os.path.exists(path) and '://' not in path:
      where = f'{one.cache_dir} lacks its split {split!r}' if path else (
          f'none of {", ".join(known)} has it' if known else
          f'no folder of caches is named, by --seqio_additional_cache_dirs or the environment variable {FOLDERS}')
      raise FileNotFoundError(
          f'USE_CACHED_TASKS: there is no cache of {one.name}: {where}. Write it with `seqio_cache_tasks '
          f'--module_import=prompt_tuning.tasks.every --tasks={one.name} --output_cache_dir=FOLDER` (pip install '
          '"prompt_tuning[cache]") and name that folder, or set USE_CACHED_TASKS = False.')
