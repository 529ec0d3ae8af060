"""Describes NVIDIA GPUs to XLA's compiler, which then needs none.

XLA compiles for a GPU that it is told about. What it must be told is its
`GpuTargetConfigProto`, here written as text. The figures are facts about the
devices: NVIDIA's white papers of each architecture, and what XLA itself reads
from a device of the kind.
"""

import dataclasses

# The last that XLA's description of these devices names; cuDNN's own kernels
# are chosen by it.
_CUDNN = (9, 10, 0)


@dataclasses.dataclass(frozen=True)
class GpuTarget:
  """Holds what the compiler must know of one kind of GPU.

  Attributes:
    name: as the driver gives it.
    capability: compute capability, major and minor.
    accelerated: whether its code may use what later ones need not have, such as
      the tensor memory accelerator (sm_90a).
    cores: streaming multiprocessors.
    units_per_core: float32 units of each.
    clock: of the cores, in GHz.
    memory: bytes that the driver leaves to programs.
    bandwidth: of the memory, bytes per second.
    l2_cache: bytes.
    shared_memory: bytes of a core, and of them the most that a block may ask
      for.
  """

  name: str
  capability: tuple[int, int]
  accelerated: bool
  cores: int
  units_per_core: int
  clock: float
  memory: int
  bandwidth: int
  l2_cache: int
  shared_memory: tuple[int, int]


_HOPPER = {
  "capability": (9, 0),
  "accelerated": True,
  "cores": 132,
  "units_per_core": 128,
  "clock": 1.98,
  "l2_cache": 50 * 2**20,
  "shared_memory": (228 * 2**10, 227 * 2**10),
}
TARGETS = {
  "a100": GpuTarget(
    name="NVIDIA A100-SXM4-80GB",
    capability=(8, 0),
    accelerated=False,
    cores=108,
    units_per_core=64,
    clock=1.41,
    memory=85_100_068_864,
    bandwidth=2_039_040_000_000,
    l2_cache=40 * 2**20,
    shared_memory=(164 * 2**10, 163 * 2**10),
  ),
  "h100": GpuTarget(
    name="NVIDIA H100 80GB HBM3",
    memory=84_942_979_072,
    bandwidth=3_352_320_000_000,
    **_HOPPER,
  ),
  "h200": GpuTarget(
    name="NVIDIA H200 141GB HBM3e",
    memory=151_397_597_184,
    bandwidth=4_800_000_000_000,
    **_HOPPER,
  ),
  "b200": GpuTarget(
    name="NVIDIA B200",
    capability=(10, 0),
    accelerated=True,
    cores=148,
    units_per_core=128,
    clock=1.965,
    memory=191_514_411_008,
    bandwidth=7_672_320_000_000,
    l2_cache=132_644_864,
    shared_memory=(228 * 2**10, 227 * 2**10),
  ),
}


def target_config(chip: str) -> str:
  """Writes the description of a GPU as XLA's text form of it.

  Args:
    chip: a name in TARGETS.
  """
  gpu = TARGETS[chip]
  major, minor = gpu.capability
  feature = "ACCELERATED_FEATURES" if gpu.accelerated else "NONE"
  shared, optin = gpu.shared_memory
  cudnn = "\n".join(
    f"  {part}: {n}"
    for part, n in zip(("major", "minor", "patch"), _CUDNN, strict=True)
  )
  # The first and the last lines are the same for all of these: blocks of 1,024
  # threads, warps of 32, 64 Ki registers a core.
  return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {optin}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.units_per_core}
  clock_rate_ghz: {gpu.clock}
  memory_bandwidth: {gpu.bandwidth}
  l2_cache_size: {gpu.l2_cache}
  device_memory_size: {gpu.memory}
  cuda_compute_capability {{
    major: {major}
    minor: {minor}
    feature_extension: {feature}
  }}
  device_vendor: "NVIDIA Corporation"
  name: "{gpu.name}"
}}
platform_name: "CUDA"
dnn_version_info {{
{cudnn}
}}
device_description_str: "{gpu.name}"
"""
