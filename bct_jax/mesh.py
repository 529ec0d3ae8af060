"""Makes device meshes, and moves arrays between host and devices.

A mesh has three axes. Batch rows are split over `data` and `fsdp`, params over
`fsdp` and `tensor`. Partition rules say how each parameter is split.
"""

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
  """Makes a mesh over all devices.

  Args:
    data: copies of the params; rows are split over them.
    fsdp: params and rows are split over this axis.
    tensor: heads and the width of the MLP are split over this axis. One of the
      three may be -1: it takes the devices that the others leave.
    devices: those of a topology that is compiled for, if it is not here.

  Raises:
    ValueError: the axes do not multiply to the number of devices.
  """
  sizes = _axes(data, fsdp, tensor)
  count = jax.device_count() if devices is None else len(devices)
  open_axes = [a for a, n in sizes.items() if n == -1]
  product = math.prod(n for n in sizes.values() if n != -1)
  if len(open_axes) > 1 or (open_axes and count % product):
    raise ValueError(
      f"mesh {sizes} does not fit {count} devices: at most one axis may be "
      f"-1, and {product} must divide {count}"
    )
  if open_axes:
    sizes[open_axes[0]] = count // product
  elif product != count:
    raise ValueError(
      f"mesh {sizes} has {product} devices, this run has {count}; set one axis "
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
  """Makes the same mesh for shapes alone, on devices that need not be here.

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
  """Returns the axes by name; ValueError unless each is positive or -1."""
  sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
  if any(n == 0 or n < -1 for n in sizes.values()):
    raise ValueError(f"mesh axes must be positive or -1: {sizes}")
  return sizes


def path_name(path: Sequence[Any]) -> str:
  """Returns the slash-joined name of a leaf, e.g. "layers/attn/q/kernel"."""
  return "/".join(
    str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))))
    for k in path
  )


def _check_divisible(
  name: str, shape: Sequence[int], spec: P, mesh: Mesh
) -> None:
  """Raises ValueError unless a spec splits a parameter's shape evenly."""
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
  """Finds the NamedSharding of every leaf by its name.

  Args:
    tree: leaves with a shape, e.g. from jax.eval_shape.
    rules: (regular expression, spec) pairs. Every leaf must match exactly one
      and every rule at least one leaf, so the order has no meaning.
    mesh: the mesh that the specs name axes of.

  Returns:
    The tree with a NamedSharding in place of each leaf.

  Raises:
    ValueError: a leaf matches no rule or several, a rule matches nothing, or a
      dimension is not divisible by its axes.
  """
  matched_rules = set()

  def leaf_sharding(path, leaf):
    """Finds the one rule of a leaf, and makes its sharding."""
    name = path_name(path)
    hits = [(r, spec) for r, spec in rules if re.search(r, name)]
    if len(hits) != 1:
      raise ValueError(
        f"parameter {name} {leaf.shape}: {len(hits)} partition rules match, "
        f"exactly one must: {[r for r, _ in hits]}"
      )
    matched_rules.add(hits[0][0])
    _check_divisible(name, leaf.shape, hits[0][1], mesh)
    return NamedSharding(mesh, hits[0][1])

  out = jax.tree_util.tree_map_with_path(leaf_sharding, tree)
  unused = [r for r, _ in rules if r not in matched_rules]
  if unused:
    raise ValueError(f"partition rules that match no parameter: {unused}")
  return out


def axis_size(name: str) -> int:
  """Returns the devices on an axis of the mesh that is set; 1 without one."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.shape[name]


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
  """Pins the sharding of an activation inside jit.

  Without a mesh from `jax.set_mesh` there is nothing to refer to, and x is
  returned as it is. The train step and the sampler always run inside one.

  Args:
    x: the activation.
    *axes: for each dimension a mesh axis, several, or None for whole.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, P(*axes))


def put(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
  """Makes a global array from a host array that every process holds whole."""
  # device_put and make_array_from_process_local_data silently go wrong when
  # the tensor axis spans hosts; a callback is right by construction.
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])


def row_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding with rows over (data, fsdp) and the rest whole."""
  return NamedSharding(mesh, P(ROWS))


def num_row_shards(mesh: Mesh) -> int:
  """Returns over how many devices the rows of a batch are split."""
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
  """Copies a tree to whole numpy arrays on every process.

  Args:
    tree: arrays, on devices or on the host.
    name: what is waited for, if another process is missing.
  """

  def leaf_to_host(x):
    """Copies a leaf; one spread over processes is gathered first."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)

  with processes.deadline(name):
    return jax.tree.map(leaf_to_host, tree)
