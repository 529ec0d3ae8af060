"""Programs of a run as the real TPU compiler makes them, without a TPU.

`libtpu` holds the compiler and knows the slices by name; devices made from a
name compile, and cannot run.
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
from bct_jax.mesh import row_sharding
from bct_jax.objectives import data_needs, objective_of
from bct_jax.runtime.programs import MeshModel, params_view
from bct_jax.sample.decode import Engine, PackedPrompts
from bct_jax.sizing import hlo
from bct_jax.sizing.sizes import Work
from bct_jax.types import Batch, PyTree

_GIB = 2**30


class DoesNotFit(ValueError):
  """The compiler found no room; `over` is by how many bytes, if it said."""

  def __init__(self, name: str, over: float | None, message: str):
    super().__init__(f"{name}: {message}")
    self.over = over


@dataclasses.dataclass(frozen=True)
class Program:
  """What the compiler says of one program.

  Attributes:
    name: train step, prefill or decode step.
    arguments, temporaries: bytes on a chip.
    collectives: of one run; of one token for the decode step.
    kernels: custom kernels, and how often they run.
    seconds: that compiling took.
  """

  name: str
  arguments: int
  temporaries: int
  collectives: list[hlo.Collective]
  kernels: dict[str, int]
  seconds: float


def chip_of(name: str) -> str:
  """The kind of chip of a topology such as v5e:4x4.

  Raises:
    ConfigError: it is none that is known.
  """
  chip = name.split(":")[0]
  tpus = [k for k, v in CHIPS.items() if v.platform == "tpu"]
  choose(chip, tpus, f"--topology={name}: the chip")
  if not re.fullmatch(r"\w+:\d+(x\d+){1,2}", name):
    raise ConfigError(f"--topology={name}: write it as v5e:4x4 or v5p:2x2x2")
  return chip


def devices_of(name: str) -> list[Any]:
  """The devices of a slice, for compiling alone.

  Raises:
    ConfigError: libtpu is not installed, or knows no such slice.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise ConfigError(
      "--topology needs the compiler in libtpu: pip install 'bct_jax[topology]'"
    )
  # Else it asks a metadata server, which only a TPU machine has.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  # No chip is taken, so several processes may compile at once.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=name, wrap=_wraps(name)
    )
    return list(found.devices)
  except jax.errors.JaxRuntimeError as e:
    raise ConfigError(f"--topology={name}: {str(e).splitlines()[0]}") from e


def _wraps(name: str) -> tuple[bool, bool, bool]:
  """Along which dimensions the links of a slice close to rings.

  A v5p does if all three are multiples of 4, which are cubes of 64 chips joined
  by optical switches; a v5e or v6e along 16 chips. A compiler that is not told
  takes no slice for one, and gathers by summing zeros on v5p:4x4x4.
  """
  sizes = [int(x) for x in name.split(":")[1].split("x")]
  if len(sizes) == 3:
    cubes = all(n % 4 == 0 for n in sizes)
    return cubes, cubes, cubes
  return sizes[0] == 16, sizes[1] == 16, False


def compile_train(
  model: MeshModel, arm: ArmConfig | OrganismConfig, work: Work
) -> Program:
  """The update of a run on a batch of those sizes.

  Raises:
    DoesNotFit: on the chips.
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
) -> list[Program]:
  """Prefill and decode step.

  Args:
    model: whose config says how many rows are sampled at a time.
    params: shapes of the sampler's copy.
    slots: places of a row in the KV cache.

  Raises:
    DoesNotFit: on the chips.
  """
  sampling, mesh = model.config.sampling, model.mesh
  engine = Engine(model.model, sampling, (0,), mesh)
  length = min(slots, model.config.max_length)
  count = max(1, sampling.prefill_tokens // length)
  count = -(-count // engine.shards) * engine.shards

  def ids(*shape, place):
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=place)

  packed = [ids(count, length, place=engine.rows)] * 3
  some = [ids(engine.batch_size, place=engine.whole)] * 2
  prompts = PackedPrompts(*(*packed, ids(count, place=engine.rows), *some))
  seed = _whole(model, jnp.uint32)
  state = engine.abstract_state(slots)
  whole = [_whole(model, jnp.int32)] * 2
  free = jax.ShapeDtypeStruct(
    (engine.batch_size,), jnp.bool_, sharding=engine.whole
  )
  return [
    _compile(model, "prefill", engine.prefill, (params, None, prompts, seed)),
    _compile(
      model, "decode step", engine.advance, (params, state, free, *whole)
    ),
  ]


def _whole(model: MeshModel, dtype: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(
    (), dtype, sharding=NamedSharding(model.mesh, P())
  )


def _compile(model: MeshModel, name: str, function: Any, args: tuple):
  begin = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    try:
      with jax.set_mesh(model.mesh):
        compiled = function.lower(*args).compile(options)
    except jax.errors.JaxRuntimeError as e:
      if "RESOURCE_EXHAUSTED" not in str(e):
        raise
      over = _over(str(e))
      raise DoesNotFit(name, over, str(e).splitlines()[0]) from e
    seconds = time.monotonic() - begin
    # Written by libtpu itself: a jaxlib of another age than libtpu cannot read
    # every program that `as_text` would have to.
    text = "".join(
      path.read_text()
      for path in Path(folder).glob("*.after_optimizations.txt")
    )
  memory = compiled.memory_analysis()
  return Program(
    name,
    memory.argument_size_in_bytes,
    memory.temp_size_in_bytes,
    hlo.collectives(text),
    hlo.kernels(text),
    seconds,
  )


def _over(message: str) -> float | None:
  """Bytes that are missing, from either of the compiler's two messages."""
  unit = {"K": 2**10, "M": 2**20, "G": 2**30}
  size = r"([\d.]+)([KMG])"
  if found := re.search(rf"capacity by {size}", message):
    return float(found[1]) * unit[found[2]]
  if found := re.search(
    rf"\({size}\) exceeds available HBM \({size}\)", message
  ):
    return float(found[1]) * unit[found[2]] - float(found[3]) * unit[found[4]]
  return None


def lines(program: Program, memory: int) -> list[str]:
  """What a dry run prints of a program; `memory` is a chip's, in bytes."""
  total = program.arguments + program.temporaries
  out = [
    f"{program.name}: {total / _GIB:.2f} GiB on a chip of "
    f"{memory / _GIB:.0f}: arguments {program.arguments / _GIB:.2f}, "
    f"temporaries {program.temporaries / _GIB:.2f}; compiled in "
    f"{program.seconds:.0f} s"
  ]
  kinds: dict[str, list[hlo.Collective]] = {}
  for x in program.collectives:
    kinds.setdefault(x.kind, []).append(x)
  for kind, some in kinds.items():
    most = max(some, key=lambda x: x.size)
    received = sum(x.times * x.received for x in some)
    out.append(
      f"  {kind:<19}{sum(x.times for x in some):6} x, "
      f"{received / _GIB:8.2f} GiB received, the largest {most.array}"
    )
  for name, times in program.kernels.items():
    out.append(f"  kernel {name}: {times} x")
  return out
