"""Lists memory and peak speed of the chips that a dry run knows."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """Describes one device.

  Attributes:
    memory: bytes. The vendors write GB for 2**30. The runtime keeps some of it:
      the TPU compiler offers 15.75 of the 16 GiB of a v5e.
    flops: peak of dense bfloat16 products, per second.
    bandwidth: of its memory, bytes per second.
    links: bytes per second that it receives from other chips of its slice, or
      from other GPUs of its host.
    network: bytes per second that a GPU receives from other hosts, in the
      vendor's own servers; None for TPUs, whose slices have links throughout.
    platform: as JAX names it.
  """

  memory: int
  flops: float
  bandwidth: float
  links: float
  network: float | None = None
  platform: str = "tpu"


def _gpu(
  memory: int, flops: float, bandwidth: float, links: float, network: float
) -> Chip:
  return Chip(memory * 2**30, flops, bandwidth, links, network, "gpu")


# TPU: cloud.google.com/tpu/docs/v4, .../v5e, .../v5p, .../v6e, "Key chip
# specifications"; links are half of the "bidirectional" figure there. GPU:
# NVIDIA's data sheets of the SXM modules and of the L40S, which give products
# "with sparsity", half of it without (the A100's gives both), and NVLink both
# ways (the L40S has PCIe 4 x16 alone). Network: one port of 200 Gb/s (DGX A100,
# OVX L40S) or 400 Gb/s (DGX H100, H200, B200) a GPU.
CHIPS = {
  "v4": Chip(32 * 2**30, 275e12, 1228e9, 300e9),
  "v5e": Chip(16 * 2**30, 197e12, 819e9, 200e9),
  "v5p": Chip(95 * 2**30, 459e12, 2765e9, 600e9),
  "v6e": Chip(32 * 2**30, 918e12, 1640e9, 400e9),
  "a100": _gpu(80, 312e12, 2039e9, 300e9, 25e9),
  "h100": _gpu(80, 989e12, 3352e9, 450e9, 50e9),
  "h200": _gpu(141, 989e12, 4800e9, 450e9, 50e9),
  "b200": _gpu(180, 2250e12, 7672e9, 900e9, 50e9),
  "l40s": _gpu(48, 362e12, 864e9, 32e9, 25e9),
}
