"""What a device can do at its peak, and the devices that a plan is made for: 'v5e:16x16', 'h100:8', 'cpu:8'.

Figures are the vendors': Google Cloud's pages on the versions of TPU ("System architecture"), NVIDIA's data sheets of
the A100, H100 (SXM) and H200, without sparsity. A link's bandwidth is of all links of a device together, one way, so a
collective along one axis of a torus reaches less.
"""

from collections.abc import Mapping
import dataclasses
import math
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Device:
  """Peaks of one device.

  Attributes:
    platform: 'tpu', 'gpu' or 'cpu'.
    memory: bytes.
    flops: per second, by the type of activations. 'float32' is what XLA makes of float32 products unless it is asked
      for more: bfloat16 passes on a TPU, TF32 on a GPU.
    bandwidth: of its memory, bytes per second.
    link: to other devices, bytes per second one way; math.inf where they share a memory.
    usable: share of the memory that a program can have; the rest is the runtime's.
    compiler: of the device: the TPU's name in a topology, or what the GPU compiler must know of the chip.
  """

  platform: str
  memory: float
  flops: Mapping[str, float]
  bandwidth: float
  link: float
  usable: float = 1.0
  compiler: str = ''


def _tpu(name: str, gib: float, tflops: float, gbytes: float, gbits: float) -> Device:
  flops = {'float32': tflops * 1e12, 'bfloat16': tflops * 1e12}
  return Device('tpu', gib * GIB, flops, gbytes * 1e9, gbits * 1e9 / 8, (gib - 0.25) / gib, name)


def _gpu(name: str, memory: int, tflops: float, tbytes: float, link: float, chip: str) -> Device:
  text = f"""gpu_device_info {{
    threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 threads_per_core_limit: 2048
    block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 registers_per_core_limit: 65536
    registers_per_block_limit: 65536 memory_bandwidth: {round(tbytes * 1e12)} device_memory_size: {memory} {chip}
  }} platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{name}" """
  flops = {'float32': tflops / 2 * 1e12, 'bfloat16': tflops * 1e12}
  return Device('gpu', memory, flops, tbytes * 1e12, link * 1e9, 0.95, text)


_HOPPER = ('core_count: 132 fpus_per_core: 128 l2_cache_size: 52428800 clock_rate_ghz: 1.98 '
           'shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }')
_AMPERE = ('core_count: 108 fpus_per_core: 64 l2_cache_size: 41943040 clock_rate_ghz: 1.41 '
           'shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912 cuda_compute_capability { major: 8 }')

DEVICES: dict[str, Device] = {
    #                   GiB  bf16 TFLOP/s  GB/s  links, Gbit/s
    'v4': _tpu('v4', 32, 275, 1228, 2400),
    'v5e': _tpu('v5e', 16, 197, 819, 1600),
    'v5p': _tpu('v5p', 95, 459, 2765, 4800),
    'v6e': _tpu('v6e', 32, 918, 1638, 3584),
    #                                  bytes  bf16 TFLOP/s  TB/s  NVLink GB/s one way
    'a100-40': _gpu('NVIDIA A100-SXM4-40GB', 42_505_273_344, 312, 1.555, 300, _AMPERE),
    'a100-80': _gpu('NVIDIA A100-SXM4-80GB', 85_094_825_984, 312, 2.039, 300, _AMPERE),
    'h100': _gpu('NVIDIA H100 80GB HBM3', 84_942_979_072, 989, 3.35, 450, _HOPPER),
    'h200': _gpu('NVIDIA H200', 150_754_820_096, 989, 4.8, 450, _HOPPER),
    'cpu': Device('cpu', math.nan, {}, math.nan, math.inf),  # measured where it is planned
}
ALIASES = {'a100': 'a100-80', 'v5litepod': 'v5e', 'trillium': 'v6e'}
_GRIDS = {  # number of TPU chips -> the grid of that many
    2: {1: '1x1', 4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16', 256: '16x16'},
    3: {4: '2x2x1', 8: '2x2x2', 16: '2x2x4', 32: '2x4x4', 64: '4x4x4', 128: '4x4x8', 256: '4x8x8', 512: '8x8x8',
        1024: '8x8x16', 2048: '8x16x16'}}
GPUS_PER_HOST = 8


@dataclasses.dataclass(frozen=True)
class Target:
  """Devices to plan for.

  Attributes:
    name: of the kind, a key of `DEVICES`.
    count: how many; of TPUs chips.
    topology: as the compiler wants it: the grid of TPU chips ('16x16'), or slices x hosts x GPUs of a host ('1x1x8').
  """

  name: str
  count: int
  topology: str

  @property
  def device(self) -> Device:
    return DEVICES[self.name]

  def __str__(self) -> str:
    return f'{self.name}:{self.topology if self.device.platform == "tpu" else self.count}'


def parse(text: str) -> Target:
  """The devices of `--devices=KIND:NUMBER` or, of TPUs, `KIND:GRID`.

  Raises:
    ValueError: no such kind, or a number of devices that there is no grid or no hosts of.
  """
  name, colon, size = text.lower().removeprefix('tpu-').removeprefix('gpu-').partition(':')
  name = ALIASES.get(name, name)
  if name not in DEVICES or not colon:
    raise ValueError(f'--devices={text}: expected KIND:NUMBER or, of TPUs, KIND:GRID, such as v5e:256, v5e:16x16, '
                     f'h100:8 or cpu:8. Kinds: {", ".join(DEVICES)}.')
  if DEVICES[name].platform == 'tpu':
    return _grid(text, name, size)
  if not re.fullmatch('[1-9][0-9]{0,4}', size):
    raise ValueError(f'--devices={text}: expected a number of devices behind the colon, such as {name}:8.')
  count = int(size)
  hosts, rest = divmod(count, GPUS_PER_HOST)
  if count > GPUS_PER_HOST and rest and DEVICES[name].platform == 'gpu':
    raise ValueError(f'--devices={text}: several hosts have {GPUS_PER_HOST} GPUs each; choose a multiple of it.')
  return Target(name, count, f'1x1x{count}' if count <= GPUS_PER_HOST else f'1x{hosts}x{GPUS_PER_HOST}')


def _grid(text: str, name: str, size: str) -> Target:
  axes = 2 if name in ('v5e', 'v6e') else 3
  if re.fullmatch('[1-9][0-9]{0,4}', size):
    if int(size) not in _GRIDS[axes]:
      raise ValueError(f'--devices={text}: there is no usual grid of {size} chips; choose one of '
                       f'{", ".join(map(str, _GRIDS[axes]))}, or name the grid, such as {_GRIDS[axes][16]}.')
    size = _GRIDS[axes][int(size)]
  if not re.fullmatch('x'.join(['[1-9][0-9]{0,3}'] * axes), size):
    raise ValueError(f'--devices={text}: a grid of {name} has {axes} sides, such as {name}:{_GRIDS[axes][16]}.')
  return Target(name, math.prod(map(int, size.split('x'))), size)
