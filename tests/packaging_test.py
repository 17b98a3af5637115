"""The wheel is whole: installed anywhere, it finds its configurations, tasks and data."""

import os
import pathlib
import subprocess
import sys
import zipfile

ROOT = pathlib.Path(__file__).parent.parent


def test_wheel_works_from_any_folder(tmp_path):
  # A copy, so that building leaves nothing in the checkout.
  files = subprocess.run(['git', 'ls-files'], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
  for file in files:
    if file.split('/')[0] in ('prompt_tuning', 'tasks', 'configs', 'setup.py', 'pyproject.toml', 'README.md'):
      target = tmp_path / 'source' / file
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes((ROOT / file).read_bytes())
  subprocess.run(
      [sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', tmp_path / 'dist', tmp_path / 'source'],
      check=True, capture_output=True)
  (wheel,) = (tmp_path / 'dist').glob('*.whl')
  with zipfile.ZipFile(wheel) as archive:
    assert {name.split('/')[0] for name in archive.namelist()} <= {'prompt_tuning', 'prompt_tuning-0.1.0.dist-info'}
    archive.extractall(tmp_path / 'installed')
  elsewhere = tmp_path / 'elsewhere'
  elsewhere.mkdir()
  run = subprocess.run(
      [sys.executable, '-m', 'prompt_tuning.train', '--gin_file=quickstart.gin', '--gin.TRAIN_STEPS=3', '--dry_run'],
      cwd=elsewhere, env={**os.environ, 'PYTHONPATH': str(tmp_path / 'installed')}, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  assert 'TRAIN_STEPS = 3' in run.stdout
  where = subprocess.run(
      [sys.executable, '-c', 'from prompt_tuning import gin_utils, tokenizer\nfrom prompt_tuning.tasks import sample\n'
       'print(gin_utils.config_folder(), tokenizer.T5_VOCABULARY.exists(), *sorted(p.name for p in '
       'sample._DATA.glob("*.tsv")))'],
      cwd=elsewhere, env={**os.environ, 'PYTHONPATH': str(tmp_path / 'installed')}, capture_output=True, text=True)
  assert where.returncode == 0, where.stderr
  assert where.stdout.split() == [
      str(tmp_path / 'installed' / 'prompt_tuning' / 'configs'), 'True', 'sst2_dev.tsv', 'sst2_sample_train.tsv']
