"""Memory and peak speed of the chips that a dry run knows."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device.

  Attributes:
    memory: bytes. The vendors write GB for 2**30; the runtime keeps some of
      it: the TPU compiler offers 15.75 of the 16 GiB of a v5e.
    flops: per second, dense bfloat16 products.
  """

  memory: int
  flops: float


# TPU: cloud.google.com/tpu/docs/v5e, .../v5p, .../v6e, "Key chip
# specifications". H100: the SXM column of NVIDIA's data sheet
# (nvidia.com/en-us/data-center/h100), which gives 1,979 TFLOP/s "with
# sparsity", half of it without.
CHIPS = {
  "v5e": Chip(16 * 2**30, 197e12),
  "v5p": Chip(95 * 2**30, 459e12),
  "v6e": Chip(32 * 2**30, 918e12),
  "h100": Chip(80 * 2**30, 989e12),
}
