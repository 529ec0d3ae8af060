"""Device mesh, partition rules, and moving arrays between host and devices."""

import math
import re
from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bct_jax.infra import processes
from bct_jax.types import Batch, PyTree, Rows

AXES = ("data", "fsdp", "tensor")
# Batch rows are spread over both of these; params over fsdp and tensor.
ROWS = ("data", "fsdp")

Rules = Sequence[tuple[str, P]]


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """A mesh over all devices; one axis may be -1 and takes what is left.

  `devices` are those of a topology that is compiled for, if it is not here.

  Raises:
    ValueError: the axes do not multiply to the number of devices.
  """
  sizes = _axes(data, fsdp, tensor)
  count = jax.device_count() if devices is None else len(devices)
  free = [a for a, n in sizes.items() if n == -1]
  known = math.prod(n for n in sizes.values() if n != -1)
  if len(free) > 1 or (free and count % known):
    raise ValueError(
      f"mesh {sizes} does not fit {count} devices: at most one axis may be "
      f"-1, and {known} must divide {count}"
    )
  if free:
    sizes[free[0]] = count // known
  elif known != count:
    raise ValueError(
      f"mesh {sizes} has {known} devices, this run has {count}; set one axis "
      "to -1 to take what is there"
    )
  # jax.make_mesh defaults to Explicit axes, under which constraints are
  # assertions; this code is written for Auto.
  return jax.make_mesh(
    tuple(sizes.values()),
    AXES,
    axis_types=(AxisType.Auto,) * len(AXES),
    devices=devices,
  )


def abstract_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
  """The same mesh for shapes alone, on devices that need not be here.

  It is an AbstractMesh: it has axes and makes shardings, and that is all.

  Raises:
    ValueError: an axis is -1 and the others do not fit the devices here.
  """
  sizes = _axes(data, fsdp, tensor)
  if -1 in sizes.values():
    sizes = dict(make_mesh(data, fsdp, tensor).shape)
  mesh = AbstractMesh(
    tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES)
  )
  # The type of both where nothing runs; JAX has no common one.
  return cast(Mesh, mesh)


def _axes(data: int, fsdp: int, tensor: int) -> dict[str, int]:
  sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
  if any(n == 0 or n < -1 for n in sizes.values()):
    raise ValueError(f"mesh axes must be positive or -1: {sizes}")
  return sizes


def path_name(path: Sequence[Any]) -> str:
  """The slash-joined name of a leaf, e.g. "layers/attn/q/kernel"."""
  return "/".join(
    str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))))
    for k in path
  )


def _check_divisible(
  name: str, shape: Sequence[int], spec: P, mesh: Mesh
) -> None:
  if len(spec) > len(shape):
    raise ValueError(f"{name}: spec {spec} is longer than shape {shape}")
  for size, axes in zip(shape, spec, strict=False):
    names = (axes,) if isinstance(axes, str) else tuple(axes or ())
    parts = math.prod(mesh.shape[a] for a in names)
    if size % parts:
      fits = [n for n in range(1, size + 1) if size % n == 0 and n <= 4 * parts]
      raise ValueError(
        f"parameter {name} {tuple(shape)}: a dimension of {size} does not "
        f"divide over mesh axes {names} of {parts} devices; sizes that fit: "
        f"{fits}"
      )


def shardings(tree: PyTree, rules: Rules, mesh: Mesh) -> PyTree:
  """A NamedSharding for every leaf, by name.

  Args:
    tree: leaves with a shape, e.g. from jax.eval_shape.
    rules: (regular expression, spec) pairs. Every leaf must match exactly one
      and every rule at least one leaf, so the order has no meaning.
    mesh: the mesh the specs name axes of.

  Raises:
    ValueError: a leaf matches no rule or several, a rule matches nothing, or a
      dimension is not divisible by its axes.
  """
  used = set()

  def one(path, leaf):
    name = path_name(path)
    hits = [(r, spec) for r, spec in rules if re.search(r, name)]
    if len(hits) != 1:
      raise ValueError(
        f"parameter {name} {leaf.shape}: {len(hits)} partition rules match, "
        f"exactly one must: {[r for r, _ in hits]}"
      )
    used.add(hits[0][0])
    _check_divisible(name, leaf.shape, hits[0][1], mesh)
    return NamedSharding(mesh, hits[0][1])

  out = jax.tree_util.tree_map_with_path(one, tree)
  unused = [r for r, _ in rules if r not in used]
  if unused:
    raise ValueError(f"partition rules that match no parameter: {unused}")
  return out


def axis_size(name: str) -> int:
  """Devices on an axis of the mesh that is set; 1 without one."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.shape[name]


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
  """Pins the sharding of an activation inside jit.

  Outside of a `jax.set_mesh` there is no mesh to refer to and x is returned as
  it is; the train step and the sampler always run inside one.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, P(*axes))


def put(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
  """A global array from a host array that every process holds whole."""
  # device_put and make_array_from_process_local_data silently go wrong when
  # the tensor axis spans hosts; a callback is right by construction.
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])


def row_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over (data, fsdp), all other dimensions whole."""
  return NamedSharding(mesh, P(ROWS))


def num_row_shards(mesh: Mesh) -> int:
  return mesh.shape["data"] * mesh.shape["fsdp"]


def put_batch(rows: Rows, mesh: Mesh) -> Batch:
  """Makes the global batch from rows that every process computed alike.

  Raises:
    ValueError: the rows do not divide over (data, fsdp), or a row has more
      trained positions than `num_trained`, which would drop some.
  """
  count = rows.tokens.shape[0]
  if count % num_row_shards(mesh):
    raise ValueError(
      f"a batch of {count} rows does not divide over {num_row_shards(mesh)} "
      "data x fsdp devices"
    )
  most = int((rows.weights != 0).sum(axis=1).max())
  if most > rows.num_trained:
    raise ValueError(
      f"a row trains {most} positions, num_trained is {rows.num_trained}"
    )
  sharding = row_sharding(mesh)
  return Batch(
    tokens=put(rows.tokens, sharding),
    targets=put(rows.targets, sharding),
    weights=put(rows.weights, sharding),
    positions=put(rows.positions, sharding),
    segments=put(rows.segments, sharding),
    extras={
      name: put_batch(x, mesh) if isinstance(x, Rows) else put(x, sharding)
      for name, x in rows.extras.items()
    },
    num_trained=rows.num_trained,
  )


def to_host(tree: PyTree, name: str = "arrays of the devices") -> PyTree:
  """Whole numpy arrays on every process; `name` says what is waited for."""

  def one(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)

  with processes.deadline(name):
    return jax.tree.map(one, tree)
