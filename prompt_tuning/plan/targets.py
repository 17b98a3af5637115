"""Devices to compile for that need not be here: the compilers of TPUs and GPUs run without one.

A plan is made in a process of its own (`environment`), since how many devices there seem to be, and which compilers are
loaded, is decided when JAX starts.
"""

from collections.abc import Mapping
import dataclasses
import importlib.util
import math
import os
import re
import time

import jax
from jax.experimental import topologies
import jax.numpy as jnp

from prompt_tuning.plan.devices import Device, Target

COMPILER_OPTIONS = {  # a GPU's kernels are chosen by timing them on it; without one, the libraries' are taken
    'gpu': {'xla_gpu_autotune_level': 0, 'xla_gpu_enable_triton_gemm': False}, 'tpu': {}, 'cpu': {}}


def check_installed(target: Target) -> None:
  """Raises ValueError where the compiler for the devices is not installed; the message says what to install."""
  found, extra = True, target.device.platform
  if extra == 'tpu':
    found = importlib.util.find_spec('libtpu')
  elif extra == 'gpu':
    plugins = importlib.util.find_spec('jax_plugins') and ('jax_plugins.xla_cuda13', 'jax_plugins.xla_cuda12')
    found = any(map(importlib.util.find_spec, plugins or ()))
  if not found:
    raise ValueError(f"--devices={target}: the compiler for {extra.upper()}s is not installed; no {extra.upper()} is "
                     f"needed for it. Install it: pip install 'prompt_tuning[{extra}]'")


def environment(target: Target, base: Mapping[str, str]) -> dict[str, str]:
  """Environment variables of a process that plans for these devices, whatever its machine has."""
  count = target.count if target.device.platform == 'cpu' else 1
  flags = re.sub(r'--xla_force_host_platform_device_count=\S*', '', base.get('XLA_FLAGS', ''))
  return {
      **base, 'JAX_PLATFORMS': 'cpu', 'JAX_ENABLE_COMPILATION_CACHE': 'false',
      'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count={count}'.strip(),
      'TF_CPP_MIN_LOG_LEVEL': '3', 'TPU_MIN_LOG_LEVEL': '3', 'TPU_STDERR_LOG_LEVEL': '3',
      # Compile for TPUs where there is none, and while others do.
      'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}


def devices(target: Target) -> list[jax.Device]:
  """Descriptions of the devices, to make a mesh of.

  Raises:
    ValueError: there is no such grid of TPUs, or another number of simulated devices (the environment is not its).
  """
  platform, compiler = target.device.platform, target.device.compiler
  if platform == 'cpu':
    if len(jax.devices()) < target.count:
      raise ValueError(f'--devices={target}: this process has {len(jax.devices())} simulated devices.')
    return jax.devices()[:target.count]
  try:
    if platform == 'tpu':
      more = {'chips_per_host_bounds': [1, 1, 1]} if target.count == 1 else {}
      more |= {'chip_config_name': 'megacore'} if target.name == 'v4' else {}  # else a chip is two devices
      return topologies.get_topology_desc(f'{compiler}:{target.topology}', 'tpu', **more).devices
    return topologies.get_topology_desc(
        'gpu', 'cuda', topology=target.topology, target_config=compiler).devices
  except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
    raise ValueError(f'--devices={target}: the compiler knows no such devices: {str(error).splitlines()[0]}') from error


def peaks(target: Target) -> Device:
  """Peaks of one device; those of a simulated one are its share of what this machine is measured to do."""
  return _measured(target.count) if target.device.platform == 'cpu' else target.device


def _measured(count: int) -> Device:
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  n = 1024
  x = jnp.ones((n, n))
  seconds = {dtype: _seconds(jax.jit(lambda x: x @ x), x.astype(dtype)) for dtype in ('float32', 'bfloat16')}
  copied = _seconds(jax.jit(lambda x: x + 1), jnp.ones(2**26 // 4 * 2))  # 128 MB, more than the caches
  return Device('cpu', memory / count, {dtype: 2 * n**3 / s / count for dtype, s in seconds.items()},
                2**28 / copied / count, math.inf, 0.9)


def _seconds(function, x) -> float:
  """The fastest of a few calls."""
  jax.block_until_ready(function(x))
  times = []
  for _ in range(3):
    began = time.perf_counter()
    jax.block_until_ready(function(x))
    times.append(time.perf_counter() - began)
  return min(times)


def with_memory(device: Device, gib: float | None) -> Device:
  """The device with another size of memory, if one is given."""
  return device if gib is None else dataclasses.replace(device, memory=gib * 2**30, usable=1.0)
