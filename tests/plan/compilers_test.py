"""The compilers of TPUs and GPUs, where they are installed; none of their devices is needed."""

import gin
import pytest

from prompt_tuning.plan import devices, planner, targets
from tests.plan.planner_test import TINY, TRAIN


def installed(name: str) -> bool:
  try:
    targets.check_installed(devices.parse(name))
  except ValueError:
    return False
  return True


@pytest.mark.parametrize('name', ['v5e:2x2', 'h100:2'])
def test_a_training_compiles(name, monkeypatch):
  if not installed(name):
    pytest.skip(f'the compiler for {name} is not installed')
  target = devices.parse(name)
  for variable, value in targets.environment(target, {}).items():
    monkeypatch.setenv(variable, value)
  gin.clear_config()
  plan = planner.planned(planner.Configuration(TRAIN, TINY), target, None, target.device, quick=True)
  gin.clear_config()
  (step,) = plan.programs
  assert plan.fits
  assert set(step.collectives) == {'all-reduce'}
  assert step.traffic > 0
