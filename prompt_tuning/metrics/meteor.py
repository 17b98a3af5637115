"""METEOR 1.5 (Denkowski and Lavie 2014) by its own Java program, which the package pycocoevalcap brings.

It has no faithful port: its synonyms and 100 MB of paraphrases are part of the definition.
"""

from collections.abc import Sequence
import contextlib
import importlib.util
import pathlib
import shutil
import subprocess
import tempfile


class Unavailable(OSError):
  """A metric cannot be computed here; the message says what is missing and how to get it."""


def meteor(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """`meteor-1.5.jar -l en -norm` in [0, 1]; of several references the best counts. Takes about 10 s to start.

  Raises:
    Unavailable: no Java, no METEOR, or it stopped.
  """
  command = [*_java(), '-jar', str(_jar()), '-', '-', '-stdio', '-l', 'en', '-norm']
  with tempfile.TemporaryFile('w+') as errors, subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, encoding='utf-8') as process:
    try:
      statistics = []
      for hypothesis, texts in zip(hypotheses, references, strict=True):
        statistics.append(_ask(process, ' ||| '.join(['SCORE', *map(_one_line, texts), _one_line(hypothesis)])))
      _ask(process, ' ||| '.join(['EVAL', *statistics]))
      for _ in hypotheses[1:]:
        process.stdout.readline()  # the score of each example
      return float(process.stdout.readline())
    except (OSError, ValueError) as error:
      with contextlib.suppress(OSError):  # a line that the dead process has not read is written again on closing
        process.stdin.close()
      errors.seek(0)
      last = (errors.read().strip().splitlines() or ['it said nothing'])[-1]
      raise Unavailable(f'METEOR stopped before its score: {last}. It needs 2 GB of memory.') from error
    finally:
      process.kill()


def _ask(process: subprocess.Popen, line: str) -> str:
  process.stdin.write(line + '\n')
  process.stdin.flush()
  return process.stdout.readline().strip()


def _one_line(text: str) -> str:
  return ' '.join(text.replace('|||', ' ').split())


def _java() -> list[str]:
  if not (java := shutil.which('java')):
    raise Unavailable('needs Java: no `java` on the PATH; install a Java runtime, version 8 or newer.')
  return [java, '-Xmx2G', '-XX:+UseSerialGC', '-Dfile.encoding=UTF-8', '-Dstdout.encoding=UTF-8']


def _jar() -> pathlib.Path:
  spec = importlib.util.find_spec('pycocoevalcap')
  for folder in spec.submodule_search_locations if spec else ():
    if (jar := pathlib.Path(folder) / 'meteor' / 'meteor-1.5.jar').is_file():
      return jar
  raise Unavailable('needs METEOR 1.5: pip install "prompt_tuning[meteor]".')
