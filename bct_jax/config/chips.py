"""Lists memory and peak speed of the chips that a dry run knows."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """Describes one device.

  Attributes:
    memory: bytes. The vendors write GB for 2**30. The runtime keeps some of it:
      the TPU compiler offers 15.75 of the 16 GiB of a v5e.
    flops: peak of dense bfloat16 products, per second.
    links: bytes per second that it receives from other chips of its slice.
    platform: as JAX names it.
  """

  memory: int
  flops: float
  links: float
  platform: str = "tpu"


# TPU: cloud.google.com/tpu/docs/v5e, .../v5p, .../v6e, "Key chip
# specifications"; links are half of the "bidirectional" figure there. H100: the
# SXM column of NVIDIA's data sheet (nvidia.com/en-us/data-center/h100), which
# gives 1,979 TFLOP/s "with sparsity", half of it without, and NVLink both ways.
CHIPS = {
  "v5e": Chip(16 * 2**30, 197e12, 200e9),
  "v5p": Chip(95 * 2**30, 459e12, 600e9),
  "v6e": Chip(32 * 2**30, 918e12, 400e9),
  "h100": Chip(80 * 2**30, 989e12, 450e9, "gpu"),
}
