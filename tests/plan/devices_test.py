"""Devices and how they are named; what a process that plans for them needs."""

import importlib.util
import math

import jax
import pytest

from prompt_tuning.plan import devices, targets


@pytest.mark.parametrize(('text', 'name', 'count', 'topology'), [
    ('tpu-v5e:16x16', 'v5e', 256, '16x16'), ('v5e:256', 'v5e', 256, '16x16'), ('V5E:8', 'v5e', 8, '2x4'),
    ('v4:4x4x8', 'v4', 128, '4x4x8'), ('v4:128', 'v4', 128, '4x4x8'), ('v5p:4x4x4', 'v5p', 64, '4x4x4'),
    ('h100:8', 'h100', 8, '1x1x8'), ('gpu-h100:16', 'h100', 16, '1x2x8'), ('a100:4', 'a100-80', 4, '1x1x4'),
    ('cpu:12', 'cpu', 12, '1x1x8')])
def test_devices_by_name(text, name, count, topology):
  target = devices.parse(text)
  assert (target.name, target.count) == (name, count)
  assert target.topology == topology or name == 'cpu'
  assert devices.parse(str(target)) == target


@pytest.mark.parametrize(('text', 'message'), [
    ('v9:4', 'Kinds: v4, v5e'), ('v5e', 'KIND:NUMBER'), ('v5e:7', 'no usual grid of 7 chips; choose one of 1, 4, 8'),
    ('v5e:4x4x4', 'has 2 sides, such as v5e:4x4'), ('v4:4x4', 'has 3 sides'), ('v5e:0x4', 'has 2 sides'),
    ('h100:12', 'multiple of'), ('h100:0', 'a number of devices'), ('cpu:x', 'a number of devices')])
def test_devices_that_are_none(text, message):
  with pytest.raises(ValueError, match=f'--devices={text}: .*{message}'):
    devices.parse(text)


@pytest.mark.parametrize('name', [name for name in devices.DEVICES if name != 'cpu'])
def test_peaks_are_of_the_right_order(name):
  device = devices.DEVICES[name]
  assert 15 < device.memory / devices.GIB < 150
  assert 0.9 <= device.usable < 1
  assert device.flops['float32'] in (device.flops['bfloat16'], device.flops['bfloat16'] / 2)
  assert 100 < device.flops['bfloat16'] / device.bandwidth < 700  # FLOPs that pay for a byte
  assert 0.05 < device.link / device.bandwidth < 0.35
  if device.platform == 'gpu':
    assert device.compiler.count('{') == device.compiler.count('}')
    assert f'device_memory_size: {device.memory}' in device.compiler


@pytest.mark.parametrize(('name', 'extra'), [('v5e:4', 'tpu'), ('h100:1', 'gpu')])
def test_a_compiler_that_is_not_installed(name, extra, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(ValueError, match=rf"not installed.* pip install 'prompt_tuning\[{extra}\]'"):
    targets.check_installed(devices.parse(name))
  targets.check_installed(devices.parse('cpu:2'))


def test_environment_of_a_process_that_plans():
  base = {'HOME': '/h', 'XLA_FLAGS': '--a=1 --xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'tpu'}
  env = targets.environment(devices.parse('cpu:3'), base)
  assert env['XLA_FLAGS'].split() == ['--a=1', '--xla_force_host_platform_device_count=3']
  assert (env['HOME'], env['JAX_PLATFORMS']) == ('/h', 'cpu')
  assert '_count=1' in targets.environment(devices.parse('v5e:256'), base)['XLA_FLAGS']


def test_simulated_devices():
  assert targets.devices(devices.parse('cpu:4')) == jax.devices()[:4]
  with pytest.raises(ValueError, match='8 simulated devices'):
    targets.devices(devices.parse('cpu:9'))


def test_a_simulated_device_is_a_share_of_this_machine():
  one = targets.peaks(devices.parse('cpu:4'))
  assert 0 < one.memory < 2**44
  assert min(one.flops['float32'], one.flops['bfloat16'], one.bandwidth) > 1e6
  assert one.link == math.inf
  assert targets.with_memory(one, 2.5).memory * targets.with_memory(one, 2.5).usable == 2.5 * 2**30
  assert targets.with_memory(one, None) == one
