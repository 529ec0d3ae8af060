"""Loads or exports a model folder and prints its memory as JSON.

python memory_worker.py FOLDER DTYPE [OUT]: DTYPE is that of the params. Peaks
are above what the process held before, once JAX was warm.
"""

import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from helpers import make_mesh  # noqa: E402

from bct_jax import mesh as meshes  # noqa: E402
from bct_jax.models import decoder, partition
from bct_jax.models.config import from_hf  # noqa: E402
from bct_jax.models.demo.tiny import make_tiny  # noqa: E402
from bct_jax.models.huggingface import export
from bct_jax.models.huggingface.load import load_params  # noqa: E402


def memory(field: str) -> int:
  """A line of /proc/self/status, in bytes."""
  for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith(f"{field}:"):
      return int(line.split()[1]) * 1024
  raise ValueError(field)


def load(folder, dtype):
  config = from_hf(folder)
  shapes = jax.eval_shape(decoder.Decoder(config).init, jax.random.PRNGKey(0))
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), shapes
  )
  mesh = make_mesh(1, 2, 2)  # no axis that holds copies, apart from norms
  place = meshes.shardings(shapes, partition.rules(config, 2), mesh)
  return config, load_params(folder, config, shapes, place)


def peak() -> int:
  return memory("VmHWM")


def restart_peak() -> int:
  """Forgets the peak so far; returns what is held now."""
  Path("/proc/self/clear_refs").write_text("5")
  return memory("VmRSS")


def main(folder: Path, dtype: str, out: Path | None):
  small = make_tiny(folder.parent / "warm", tied=False)
  config, params = load(small, dtype)
  export.export_hf(params, config, small, folder.parent / "warm_out")
  base = restart_peak()
  config, params = load(folder, dtype)
  size = sum(x.nbytes for x in jax.tree.leaves(params))
  found = {"params": size, "load": peak() - base}
  if out is not None:
    restart_peak()
    export.export_hf(params, config, folder, out, shard_bytes=300_000_000)
    found["export"] = peak() - base
  print(json.dumps(found))


if __name__ == "__main__":
  main(
    Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]) if sys.argv[3:] else None
  )
