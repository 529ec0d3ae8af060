"""Compiles programs of a run with the real TPU or GPU compiler, without either.

`libtpu` holds one compiler and knows the slices by name. The CUDA plugin of JAX
holds the other and is told what a GPU is by `gpu_target.py`. Devices made from
a name can be compiled for, and run nothing.
"""

import dataclasses
import importlib.util
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bct_jax.config import ArmConfig, ConfigError, OrganismConfig, choose
from bct_jax.config.chips import CHIPS
from bct_jax.infra.formats import duration
from bct_jax.mesh import row_sharding
from bct_jax.objectives import data_needs, objective_of
from bct_jax.runtime.programs import MeshModel, params_view
from bct_jax.sample.decode import Engine, PackedPrompts
from bct_jax.sizing import hlo
from bct_jax.sizing.gpu_target import TARGETS, target_config
from bct_jax.sizing.sizes import Work
from bct_jax.types import Batch, PyTree

_GIB = 2**30


class DoesNotFit(ValueError):
  """Is raised when the compiler finds no room on a chip.

  Attributes:
    over: how many bytes are missing, if the compiler said so.
  """

  def __init__(self, name: str, over: float | None, message: str):
    super().__init__(f"{name}: {message}")
    self.over = over


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
  """Holds what the compiler says of one program.

  Attributes:
    name: train step, prefill or decode step.
    arguments, temporaries: bytes on a chip.
    collectives: of one run of the program; of the decode step, of one token.
    kernels: how often each custom kernel runs.
    seconds: how long compiling took.
  """

  name: str
  arguments: int
  temporaries: int
  collectives: list[hlo.Collective]
  kernels: dict[str, int]
  seconds: float


def chip_of(name: str) -> str:
  """Returns the kind of chip of a topology such as v5e:4x4 or h100:8.

  Raises:
    ConfigError: the chip is none that a compiler knows, or what follows it is
      no shape.
  """
  chip = name.split(":")[0]
  known = [k for k, v in CHIPS.items() if v.platform == "tpu" or k in TARGETS]
  choose(chip, known, f"--topology={name}: the chip")
  if CHIPS[chip].platform == "gpu":
    if not re.fullmatch(r"\w+:[1-9]\d*(x[1-9]\d*)?", name):
      raise ConfigError(
        f"--topology={name}: write it as {chip}:8, or with hosts {chip}:2x8"
      )
  elif not re.fullmatch(r"\w+:\d+(x\d+){1,2}", name):
    raise ConfigError(f"--topology={name}: write it as v5e:4x4 or v5p:2x2x2")
  return chip


def devices_of(name: str) -> list[Any]:
  """Makes the devices of a slice or of hosts with GPUs, to compile for.

  Raises:
    ConfigError: the compiler is not installed, or knows no such slice.
  """
  gpu = CHIPS[chip_of(name)].platform == "gpu"
  package, extra = _COMPILERS["gpu" if gpu else "tpu"]
  if importlib.util.find_spec(package) is None:
    raise ConfigError(
      f"--topology={name} needs the compiler in {package}: "
      f"pip install 'bct_jax[{extra}]'"
    )
  try:
    make = _gpu_topology if gpu else _tpu_topology
    return list(make(name).devices)
  except jax.errors.JaxRuntimeError as e:
    raise ConfigError(f"--topology={name}: {str(e).splitlines()[0]}") from e


# Package that has the compiler, and the extra that installs it.
_COMPILERS = {
  "tpu": ("libtpu", "topology"),
  "gpu": ("jax_cuda12_plugin", "topology-gpu"),
}


def _tpu_topology(name: str) -> Any:
  """Describes a slice of TPUs."""
  # libtpu would ask a metadata server, which only a TPU machine has.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  # No chip is taken, so several processes may compile at once.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  return topologies.get_topology_desc(
    platform="tpu", topology_name=name, wrap=_wraps(name)
  )


def _gpu_topology(name: str) -> Any:
  """Describes hosts with GPUs, all of one kind."""
  chip, shape = name.split(":")
  # XLA's own has one number more before these: of parts that NVLink joins.
  shape = f"1x{shape}" if "x" in shape else f"1x1x{shape}"
  return topologies.get_topology_desc(
    platform="cuda",
    topology_name=name,
    topology=shape,
    target_config=target_config(chip),
  )


def _wraps(name: str) -> tuple[bool, bool, bool]:
  """Says along which dimensions the links of a slice close to rings.

  Those of a v5p do if all three sizes are multiples of 4: cubes of 64 chips are
  joined by optical switches. Those of a v5e or v6e do along 16 chips. Without
  being told, the compiler assumes no rings, and gathers by summing zeros on
  v5p:4x4x4.
  """
  sizes = [int(x) for x in name.split(":")[1].split("x")]
  if len(sizes) == 3:
    cubes = all(n % 4 == 0 for n in sizes)
    return cubes, cubes, cubes
  return sizes[0] == 16, sizes[1] == 16, False


def compile_train(
  model: MeshModel, arm: ArmConfig | OrganismConfig, work: Work
) -> CompiledProgram:
  """Compiles the update of a run on a batch of the sizes in `work`.

  Raises:
    DoesNotFit: the chips have no room for it.
    ConfigError: the objective takes more than rows of tokens.
  """
  needs = data_needs(objective_of(arm))
  if needs.extra_rows or needs.scored or needs.trains_on_own_samples:
    raise ConfigError(
      f"--topology compiles objectives on plain rows; {arm.train.objective} "
      "takes more than these"
    )
  rows = row_sharding(model.mesh)

  def array(dtype) -> Any:
    return jax.ShapeDtypeStruct((work.rows, work.length), dtype, sharding=rows)

  ids = array(jnp.int32)
  batch = Batch(
    ids, ids, array(jnp.float32), ids, ids, num_trained=work.num_trained
  )
  state = model.abstract_state(arm.optim, arm.lora)
  frozen = model.abstract_frozen(params_view(arm))
  rate = _whole(model, jnp.float32)
  return _compile(
    model, "train step", model.step(arm), (state, frozen, batch, rate)
  )


def compile_sampler(
  model: MeshModel, params: PyTree, slots: int
) -> list[CompiledProgram]:
  """Compiles the prefill and the decode step.

  Args:
    model: its config says how many rows are sampled at a time.
    params: shapes of the sampler's copy.
    slots: positions of a row in the KV cache.

  Raises:
    DoesNotFit: the chips have no room for one of them.
  """
  sampling, mesh = model.config.sampling, model.mesh
  engine = Engine(model.model, sampling, (0,), mesh)
  length = min(slots, model.config.max_length)
  count = max(1, sampling.prefill_tokens // length)
  count = -(-count // engine.shards) * engine.shards

  def ids(*shape, place):
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=place)

  packed = [ids(count, length, place=engine.rows)] * 3
  of_rows = [ids(engine.batch_size, place=engine.whole)] * 2
  prompts = PackedPrompts(*(*packed, ids(count, place=engine.rows), *of_rows))
  seed = _whole(model, jnp.uint32)
  state = engine.abstract_state(slots)
  counts = [_whole(model, jnp.int32)] * 2
  free = jax.ShapeDtypeStruct(
    (engine.batch_size,), jnp.bool_, sharding=engine.whole
  )
  return [
    _compile(model, "prefill", engine.prefill, (params, None, prompts, seed)),
    _compile(
      model, "decode step", engine.advance, (params, state, free, *counts)
    ),
  ]


def _whole(model: MeshModel, dtype: Any) -> jax.ShapeDtypeStruct:
  """Returns the shape of a number that every device has."""
  return jax.ShapeDtypeStruct(
    (), dtype, sharding=NamedSharding(model.mesh, P())
  )


def _compile(
  model: MeshModel, name: str, function: Any, args: tuple
) -> CompiledProgram:
  """Compiles a jitted function for arguments of these shapes."""
  devices = list(model.mesh.devices.flat)
  # Chips of a TPU slice have links among all of them.
  links = devices[0].platform == "tpu"
  hosts = [] if links else [d.process_index for d in devices]
  begin = time.monotonic()
  try:
    with jax.set_mesh(model.mesh):
      compiled, text = compile_lowered(function.lower(*args))
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    over = _over(str(e))
    raise DoesNotFit(name, over, str(e).splitlines()[0]) from e
  seconds = time.monotonic() - begin
  memory = compiled.memory_analysis()
  program = CompiledProgram(
    name,
    memory.argument_size_in_bytes,
    memory.temp_size_in_bytes,
    hlo.collectives(text, hosts),
    hlo.kernels(text),
    seconds,
  )
  if target := TARGETS.get(str(model.config.mesh.chip)):
    _check_room(program, target.memory)
  return program


def compile_lowered(lowered: Any) -> tuple[Any, str]:
  """Compiles a lowered function; returns it with its optimized HLO."""
  # The compiler writes the text itself. `as_text` would have jaxlib read the
  # program, which a jaxlib of another age than libtpu cannot always do.
  with tempfile.TemporaryDirectory() as folder:
    options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    compiled = lowered.compile(options)
    files = Path(folder).glob("*after_optimizations.txt")
    return compiled, "".join(path.read_text() for path in files)


def _check_room(program: CompiledProgram, memory: int) -> None:
  """Raises DoesNotFit if a program needs more than there is.

  The compiler for TPUs says so itself, that for GPUs does not.
  """
  needed = program.arguments + program.temporaries
  if needed > memory:
    raise DoesNotFit(
      program.name,
      needed - memory,
      f"{needed / _GIB:.2f} GiB on a GPU that leaves {memory / _GIB:.2f} to "
      "programs",
    )


def _over(message: str) -> float | None:
  """Reads how many bytes are missing, in either of the compiler's messages."""
  unit = {"K": 2**10, "M": 2**20, "G": 2**30}
  size = r"([\d.]+)([KMG])"
  if match := re.search(rf"capacity by {size}", message):
    return float(match[1]) * unit[match[2]]
  if match := re.search(
    rf"\({size}\) exceeds available HBM \({size}\)", message
  ):
    return float(match[1]) * unit[match[2]] - float(match[3]) * unit[match[4]]
  return None


def lines(program: CompiledProgram, memory: int) -> list[str]:
  """Returns what a dry run prints of a program.

  Args:
    program: compiled.
    memory: of a chip, in bytes.
  """
  total = program.arguments + program.temporaries
  out = [
    f"{program.name}: {total / _GIB:.2f} GiB on a chip of "
    f"{memory / _GIB:.0f}: arguments {program.arguments / _GIB:.2f}, "
    f"temporaries {program.temporaries / _GIB:.2f}; compiled in "
    f"{duration(program.seconds)}"
  ]
  kinds: dict[str, list[hlo.Collective]] = {}
  for x in program.collectives:
    kinds.setdefault(x.kind, []).append(x)
  for kind, collectives in kinds.items():
    most = max(collectives, key=lambda x: x.size)
    received = sum(x.times * x.received for x in collectives)
    afar = sum(x.times * x.network for x in collectives)
    from_hosts = f" ({afar / _GIB:.2f} from other hosts)" if afar else ""
    out.append(
      f"  {kind:<19}{sum(x.times for x in collectives):6} x, "
      f"{received / _GIB:8.2f} GiB received{from_hosts}, the largest "
      f"{most.array}"
    )
  for name, times in program.kernels.items():
    out.append(f"  kernel {name}: {times} x")
  return out
