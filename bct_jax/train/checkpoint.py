"""Saving and restoring arrays with Orbax. The only file that knows Orbax."""

import logging
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from bct_jax.infra import processes
from bct_jax.mesh import path_name, to_host
from bct_jax.types import PyTree, TrainState

# Written by Orbax when all else is there.
_MARK = "_CHECKPOINT_METADATA"
# A thread of Orbax's logs a traceback of what it then raises here as well.
logging.getLogger("absl").addFilter(
  lambda record: "_SignalingThread.run()" not in record.getMessage()
)
# The first of several failures is raised; asyncio logs the others.
logging.getLogger("asyncio").addFilter(
  lambda record: (
    not (
      "never retrieved" in record.getMessage()
      and "orbax" in record.getMessage()
    )
  )
)
_print_unraisable = sys.unraisablehook


def _unraisable(what) -> None:
  """Prints what could not be raised, but for what follows on a failed write.

  Orbax then closes the event loop to which TensorStore's threads report their
  other writes; `save` raises the failure itself.
  """
  if str(what.exc_value) != "Event loop is closed":
    _print_unraisable(what)


sys.unraisablehook = _unraisable


class DamagedCheckpoint(ValueError):
  """A checkpoint that is not complete, or not what was saved."""

  def __init__(self, checkpoints: "Checkpoints", step: int, what: str):
    path = checkpoints.folder / str(step)
    super().__init__(
      f"checkpoint {path} {what}; --resume=latest_good goes on without it"
    )
    self.step = step


class Checkpoints:
  """Numbered checkpoints of a training run in one directory.

  A checkpoint has the params, the rest of the state unless it is a final one,
  and metadata. Orbax writes to a temporary name and renames, so what is listed
  is complete. The metadata has a checksum of every array, taken on the devices
  and compared there after reading: files have none, and a flipped bit would
  train on.
  """

  def __init__(self, folder: Path, keep: int = 1):
    self.folder = Path(folder).absolute()
    self._manager = ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=False
      ),
    )

  def latest(self) -> int | None:
    """Step of the newest complete checkpoint.

    Raises:
      ValueError: there is one that is not complete, as a copy that was cut.
    """
    whole, cut = processes.run_on_first("latest checkpoint", self._steps)
    newest = max(whole, default=None)
    # An older one is the rest of a removal that was cut; the next save ends it.
    if cut and (newest is None or cut[-1] > newest):
      raise DamagedCheckpoint(
        self,
        cut[-1],
        f"is not complete: {_MARK} is missing, as in a copy that was cut",
      )
    return newest

  def _steps(self) -> tuple[list[int], list[int]]:
    """Those that are complete, and those that are not; both ascend."""
    names = (p.name for p in self.folder.iterdir())
    there = sorted(int(name) for name in names if name.isdigit())
    known = self._manager.all_steps()
    whole = [
      s for s in there if s in known and (self._path(s) / _MARK).is_file()
    ]
    return whole, [s for s in there if s not in whole]

  def set_aside(self, step: int) -> Path:
    """Renames a damaged checkpoint, so that it is not looked at again."""
    target = self._path(step).with_name(f"{step}.damaged")

    def move() -> None:
      if target.exists():
        shutil.rmtree(target)
      self._path(step).rename(target)

    processes.run_on_first(f"setting checkpoint {step} aside", move)
    self._manager.reload()
    return target

  def save(
    self, state: TrainState, meta: dict[str, Any], final: bool = False
  ) -> None:
    """Saves the state, or only its params when nothing will follow (final).

    Raises:
      OSError: it does not fit on the disk, or cannot be written. The checkpoint
        before it is still there.
    """
    step, trees = int(state.step), {"params": state.params}
    if not final:
      trees["rest"] = _rest(state)
    processes.run_on_first(
      "room on the disk", lambda: self._check_room(step, trees)
    )
    items: dict[str, Any] = {
      k: ocp.args.StandardSave(v) for k, v in trees.items()
    }
    about = {
      **meta,
      "leaves": _describe(state.params),
      "checksums": {k: checksums(v) for k, v in trees.items()},
      "devices": jax.device_count(),
    }
    items["meta"] = ocp.args.JsonSave(about)
    try:
      with processes.deadline(f"saving {self._at(step)}"):
        self._manager.save(step, args=ocp.args.Composite(**items))
        self._manager.wait_until_finished()
    except (OSError, ValueError) as e:
      what = " ".join(str(e).split())[-300:]  # the cause is at its end
      raise OSError(f"{self._at(step)} was not written: {what}") from e

  def _check_room(self, step: int, trees: dict[str, PyTree]) -> None:
    need = sum(x.nbytes for x in jax.tree.leaves(trees))
    free = shutil.disk_usage(self.folder).free
    if free < need:
      raise OSError(
        f"{self._at(step)} needs {need:,} bytes, {free:,} are free on its disk"
      )

  def meta(self) -> dict[str, Any]:
    """Metadata of the newest checkpoint.

    Raises:
      ValueError: there is none, or it cannot be read.
    """
    step = self._step()
    try:
      read = self._manager.restore(
        step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
      )["meta"]
      if {"leaves", "checksums", "devices"} <= set(read):
        return read
      raise ValueError("its meta lacks the checksums")
    except (OSError, ValueError, KeyError, TypeError) as e:
      raise DamagedCheckpoint(self, step, f"cannot be read: {e}") from e

  def restore(self, abstract: TrainState) -> TrainState:
    """The newest state, on the devices that `abstract` names.

    Args:
      abstract: ShapeDtypeStructs with shardings.

    Raises:
      ValueError: there is no checkpoint, it is of other names, shapes or
        dtypes, or it cannot be read.
    """
    step = self._step()
    items = {"params": abstract.params, "rest": _rest(abstract)}
    read = self._read(step, items)
    state = TrainState(
      step=jax.device_put(
        jax.numpy.asarray(step, abstract.step.dtype), abstract.step.sharding
      ),
      params=read["params"],
      **read["rest"],
    )
    # Arrays made by Orbax cannot be donated before they went through jit.
    place = jax.tree.map(lambda a: a.sharding, abstract)
    return jax.jit(lambda s: s, out_shardings=place)(state)

  def restore_params(self, abstract: PyTree) -> PyTree:
    """The params of the newest checkpoint alone; see `restore`."""
    return self._read(self._step(), {"params": abstract})["params"]

  def close(self) -> None:
    self._manager.close()

  def _path(self, step: int) -> Path:
    return self.folder / str(step)

  def _at(self, step: int) -> str:
    return f"checkpoint {self._path(step)}"

  def _step(self) -> int:
    step = self.latest()
    if step is None:
      raise ValueError(f"{self.folder}: no complete checkpoint")
    return step

  def _read(self, step: int, items: dict[str, PyTree]) -> dict[str, PyTree]:
    # Orbax casts silently when a dtype differs, so compare before.
    meta = self.meta()
    saved, wanted = meta["leaves"], _describe(items["params"])
    wrong = [
      f"{n}: saved {saved.get(n, 'nothing')}, needed {wanted.get(n, 'nothing')}"
      for n in sorted(set(saved) | set(wanted))
      if saved.get(n) != wanted.get(n)
    ]
    if wrong:
      raise ValueError(
        f"{self._at(step)} is of another model: {'; '.join(wrong[:5])} "
        f"({len(wrong)} leaves differ)"
      )
    args = {k: ocp.args.StandardRestore(v) for k, v in items.items()}
    try:
      with processes.deadline(f"reading {self._at(step)}"):
        read = self._manager.restore(step, args=ocp.args.Composite(**args))
      found = {name: read[name] for name in items}
    except jax.errors.JaxRuntimeError:
      raise  # as when memory is short
    except Exception as e:  # Orbax raises this very class where a file is cut
      raise DamagedCheckpoint(self, step, f"cannot be read: {e}") from e
    for name, tree in found.items():
      now = checksums(tree)
      saved = meta["checksums"].get(name, {})
      wrong = sorted(n for n in {*now, *saved} if now.get(n) != saved.get(n))
      if wrong:
        raise DamagedCheckpoint(
          self,
          step,
          f"was changed: {name}/{wrong[0]} is not what was saved "
          f"({len(wrong)} of {len(now)} arrays)",
        )
    return found


def _rest(state: TrainState) -> dict[str, PyTree]:
  """What a final checkpoint has not."""
  rest = {"opt_state": state.opt_state, "rng": state.rng}
  return rest if state.ema is None else {**rest, "ema": state.ema}


# --- checksums ----------------------------------------------------------------


def checksums(tree: PyTree) -> dict[str, int]:
  """A number per leaf that any one changed bit changes, on any mesh."""
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  sums = to_host(_sums([x for _, x in flat]), "checksums")
  return {path_name(p): int(s) for (p, _), s in zip(flat, sums, strict=True)}


@jax.jit
def _sums(leaves: list[jax.Array]) -> list[jax.Array]:
  return [_sum(x) for x in leaves]


def _sum(x: jax.Array) -> jax.Array:
  """Sum modulo 2**32 of each element's bits times an odd number of its place.

  Integers, so the order of adding, which the mesh decides, does not matter. An
  odd factor never makes the change of a bit vanish; by its place, elements that
  changed theirs are noticed too.
  """
  bits = jnp.uint32 if x.dtype.itemsize == 4 else jnp.uint16
  bits = jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)
  place = jnp.zeros(x.shape, jnp.uint32)
  for axis in range(x.ndim):
    stride = math.prod(x.shape[axis + 1 :]) % 2**32
    iota = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    place += iota * jnp.uint32(stride)
  return jnp.sum(bits * (place * jnp.uint32(2654435762) + jnp.uint32(1)))


def _describe(tree: PyTree) -> dict[str, list]:
  """Leaf name -> [shape, dtype], as JSON."""
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {path_name(p): [list(x.shape), str(x.dtype)] for p, x in flat}
