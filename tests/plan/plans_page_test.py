"""docs/plans.md: its configurations could be launched, and it is what its script makes of docs/plans.json."""

import json

import gin
import pytest

from prompt_tuning.backbones import config as config_lib
from prompt_tuning.plan import devices, planner
from scripts import make_plans

ROWS = list(make_plans.rows())


@pytest.mark.parametrize('files', sorted({row.files for row in ROWS}), ids=lambda files: files[-1])
def test_configurations_are_read(files):
  gin.clear_config()
  for macros in {str(row.macros): row.macros for row in ROWS if row.files == files}.values():
    planner.Configuration(files, ()).read(macros)
  gin.clear_config()


def test_every_size_is_planned_on_a_tpu_and_a_gpu():
  walked = {(row.macros['MODEL_SIZE'], devices.parse(row.on).device.platform) for row in ROWS if row.part == 'sizes'}
  sizes = {size for size in config_lib.SIZES if not size.endswith('_tiny')}
  assert walked == {(size, platform) for size in sizes for platform in ('tpu', 'gpu')}
  assert len({row.key(job) for row in ROWS for job in row.jobs}) == sum(len(row.jobs) for row in ROWS)


def test_the_page_is_of_the_figures():
  found = json.loads((make_plans.DOCS / 'plans.json').read_text())
  assert set(found) <= {row.key(job) for row in ROWS for job in row.jobs}
  assert (make_plans.DOCS / 'plans.md').read_text() == make_plans.page(found)
