"""Products of rows with their experts' matrices, compiled for a TPU both ways.

python tests/benchmarks/grouped_products.py [--chip=v5p:2x2x1]

JAX has two forms: `jax.lax.ragged_dot`, for which XLA has kernels of its own,
and megablox, a Pallas kernel. Prints what the TPU compiler says of the forward
and backward pass of gated experts. It needs libtpu, and no TPU.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox import ops as megablox
from jax.sharding import SingleDeviceSharding

from bct_jax.sizing import hlo, topology

# Rows, experts, D and F of a device: Qwen3-30B-A3B at 16 x 1024 on v5p:2x2x4
# with tokens sent, and with weights gathered, where a quarter of rows has an
# expert here; gpt-oss-20b with tokens sent to 4 of 32 experts.
CASES = {
  "30B-A3B, tokens": (8192, 8, 2048, 768),
  "30B-A3B, weights": (32768, 32, 2048, 768),
  "gpt-oss-20b, tokens": (8192, 4, 2944, 2944),
}
TILES = ((128, 128, 128), (512, 512, 512), (512, 1024, 1024))


def gated(product, sizes, x, gate, up, down):
  y = jax.nn.silu(product(x, gate, sizes)) * product(x, up, sizes)
  return jnp.sum(product(y, down, sizes).astype(jnp.float32) ** 2)


def compile_form(product, shape, device):
  """Compiles value and gradients; returns memory, kernels and operations."""
  rows, experts, width, inner = shape
  place = SingleDeviceSharding(device)

  def array(*dims, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=place)

  wide, narrow = array(experts, width, inner), array(experts, inner, width)
  step = jax.value_and_grad(functools.partial(gated, product), (1, 2, 3, 4))
  args = array(experts, dtype=jnp.int32), array(rows, width), wide, wide, narrow
  compiled, text = topology.compile_lowered(jax.jit(step).lower(*args))
  memory, costs = compiled.memory_analysis(), compiled.cost_analysis()
  return (
    memory.temp_size_in_bytes / 2**20,
    hlo.kernels(text),
    costs.get("flops", 0) / 1e9,
    costs.get("bytes accessed", 0) / 2**20,
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--chip", default="v5p:2x2x1")
  device = topology.devices_of(parser.parse_args().chip)[0]
  forms: dict[str, Any] = {"ragged_dot": jax.lax.ragged_dot}
  for tiles in TILES:
    forms[f"megablox {tiles}"] = functools.partial(
      lambda x, w, sizes, tiles: megablox.gmm(x, w, sizes, x.dtype, tiles),
      tiles=tiles,
    )
  print("| case | form | temporaries, MiB | kernels | GFLOP | MiB moved |")
  print("|---|---|---|---|---|---|")
  for name, shape in CASES.items():
    for form, product in forms.items():
      temporaries, kernels, flops, moved = compile_form(product, shape, device)
      listed = ", ".join(f"{n} x {k}" for k, n in kernels.items())
      print(
        f"| {name} | {form} | {temporaries:.0f} | {listed} | {flops:.0f} | "
        f"{moved:.0f} |",
        flush=True,
      )


if __name__ == "__main__":
  main()
