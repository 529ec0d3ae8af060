"""Memory of a train step on TPU slices against MaxText's, without a TPU.

  bash tests/benchmarks/maxtext.sh .venv-maxtext
  python tests/benchmarks/tpu_memory.py [--out=FILE]
    [--maxtext_python=.venv-maxtext/bin/python] [--points=0,1,...]

Both compile with libtpu for the same slice: all weights trained by AdamW with
the gradient clipped to a norm of 1; params, gradients and moments in float32,
products in bfloat16; each block recomputed in the backward pass; params and
rows spread over all chips; rows of 2048 positions, all of them trained. The
figure is what the compiler says of a chip: arguments plus temporaries.

Ours compiles in this process, MaxText by its own `train_compile` in another,
one after the other.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

GIB = 2**30
LENGTH = 2048  # positions of a row


@dataclasses.dataclass(frozen=True)
class Point:
  """What is compiled.

  Attributes:
    config: a module in configs/.
    slice: as --topology names it.
    rows: on a chip.
    peer_model, peer_slice: MaxText's names of the two. Its v5p count cores.
  """

  config: str
  slice: str
  rows: int
  peer_model: str
  peer_slice: str


POINTS = [
  Point("llama3_1_8b", "v5e:4x4", 1, "llama3.1-8b", "v5e-16"),
  Point("llama3_1_8b", "v6e:4x4", 2, "llama3.1-8b", "v6e-16"),
  Point("llama3_1_8b", "v5p:2x2x2", 2, "llama3.1-8b", "v5p-16"),
  Point("llama3_3_70b", "v5e:16x16", 1, "llama3.3-70b", "v5e-256"),
  Point("llama3_3_70b", "v5p:4x4x4", 1, "llama3.3-70b", "v5p-128"),
]


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on a chip."""

  arguments: int
  temporaries: int

  @property
  def total(self) -> int:
    return self.arguments + self.temporaries


def ours(point: Point) -> tuple[Memory, int]:
  """Memory of our update, and the chips of the slice."""
  from bct_jax.config import from_dict
  from bct_jax.mesh import make_mesh
  from bct_jax.runtime.programs import MeshModel
  from bct_jax.runtime.runtime import make_decoder, read_architecture
  from bct_jax.sizing import topology
  from bct_jax.sizing.sizes import Work

  raw = import_module(f"configs.{point.config}").get_config()
  raw.mesh.data, raw.mesh.fsdp, raw.mesh.tensor = 1, -1, 1
  raw.mesh.chip = topology.chip_of(point.slice)
  raw.max_length = LENGTH
  raw.model.remat = "full"
  raw.model.dtype, raw.model.param_dtype = "bfloat16", "float32"
  raw.optim.optimizer, raw.optim.clip_norm = "adamw", 1.0
  config = from_dict(raw.to_dict())
  devices = topology.devices_of(point.slice)
  mesh = make_mesh(1, len(devices), 1, devices)
  architecture = read_architecture(str(config.model.architecture))
  model = MeshModel(config, make_decoder(architecture, config), mesh)
  work = Work(point.rows * len(devices), LENGTH, LENGTH, 1)
  arm = next(iter(config.arms.values()))
  program = topology.compile_train(model, arm, work)
  return Memory(program.arguments, program.temporaries), len(devices)


def maxtext(point: Point, python: str) -> Memory:
  """Memory of MaxText's update.

  Raises:
    RuntimeError: it does not compile.
  """
  env = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  }
  where = "import importlib.util as u; print(u.find_spec('maxtext').origin)"
  found = subprocess.run(
    [python, "-c", where], capture_output=True, text=True, check=True
  )
  base = Path(found.stdout.strip()).parent / "configs" / "base.yml"
  values = {
    "model_name": point.peer_model,
    "compile_topology": point.peer_slice,
    "compile_topology_num_slices": 1,
    "per_device_batch_size": point.rows,
    "max_target_length": LENGTH,
    "remat_policy": "full",
    "opt_type": "adamw",
    "gradient_clipping_threshold": 1.0,
    "dtype": "bfloat16",
    "weight_dtype": "float32",
    "grad_dtype": "float32",
    "mu_dtype": "float32",
    "ici_fsdp_parallelism": -1,
  }
  # In a folder of its own, as it leaves files where it runs.
  with tempfile.TemporaryDirectory() as folder:
    done = subprocess.run(
      [
        python,
        "-m",
        "maxtext.trainers.pre_train.train_compile",
        str(base),
        *(f"{k}={v}" for k, v in values.items()),
      ],
      env=env,
      cwd=folder,
      capture_output=True,
      text=True,
    )
  line = re.search(r"Memory analysis: (.*)", done.stdout)
  if line is None:
    raise RuntimeError(f"MaxText, {point}: {done.stderr[-2000:]}")
  sizes = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", line[1])}
  return Memory(sizes["argument_size_in_bytes"], sizes["temp_size_in_bytes"])


def cell(memory: Memory | None) -> str:
  if memory is None:
    return "not run"
  return (
    f"{memory.total / GIB:.2f} ({memory.arguments / GIB:.2f} + "
    f"{memory.temporaries / GIB:.2f})"
  )


def row(point: Point, chips: int, mine: Memory, theirs: Memory | None) -> str:
  ratio = f"{mine.total / theirs.total:.3f}" if theirs else ""
  return (
    f"| {point.config} | {point.slice} | {chips} | {point.rows} | "
    f"{cell(mine)} | {cell(theirs)} | {ratio} |"
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--maxtext_python")
  parser.add_argument("--points", default=",".join(map(str, range(5))))
  parser.add_argument("--out")
  options = parser.parse_args()
  # libtpu would look for chips here, at some length.
  os.environ["JAX_PLATFORMS"] = "cpu"
  print("GiB on a chip (arguments + temporaries); ratio is ours over theirs\n")
  print(
    "| config | slice | chips | rows on a chip | bct_jax | MaxText | ratio |"
  )
  print("|---|---|---|---|---|---|---|", flush=True)
  out = []
  for i in map(int, options.points.split(",")):
    point, theirs = POINTS[i], None
    mine, chips = ours(point)
    if options.maxtext_python:
      python = str(Path(options.maxtext_python).absolute())
      theirs = maxtext(point, python)
    print(row(point, chips, mine, theirs), flush=True)
    out.append(
      {
        **dataclasses.asdict(point),
        "chips": chips,
        "ours": dataclasses.asdict(mine),
        "maxtext": theirs and dataclasses.asdict(theirs),
      }
    )
    if options.out:
      Path(options.out).write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
  main()
