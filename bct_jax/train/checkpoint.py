"""Saves and restores arrays with Orbax; no other file knows Orbax."""

import functools
import logging
import math
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from bct_jax.infra import (
  processes,
  remote_checkpoints,
  remote_runs,
  shared_files,
)
from bct_jax.infra.remote_folder import MARK
from bct_jax.mesh import path_name, to_host
from bct_jax.types import PyTree, TrainState

# Orbax logs a traceback in a thread of its own and then raises the same error
# here, where the caller prints it. The others are about processes that share no
# disk, each time that they save.
_UNTOLD = (
  "_SignalingThread.run()",
  "Global object size logging disabled",
  "Skipping merge of OCDBT",
)
logging.getLogger("absl").addFilter(
  lambda record: not any(x in record.getMessage() for x in _UNTOLD)
)
# `save` raises the first of several failures; asyncio would log the others.
logging.getLogger("asyncio").addFilter(
  lambda record: (
    not (
      "never retrieved" in record.getMessage()
      and "orbax" in record.getMessage()
    )
  )
)
_print_unraisable = sys.unraisablehook


def _unraisable(hook_args) -> None:
  """Prints an error that Python cannot raise, unless a failed write caused it.

  After a failed write Orbax closes the event loop to which TensorStore's
  threads report their other writes. `save` raises the failure itself.
  """
  if str(hook_args.exc_value) != "Event loop is closed":
    _print_unraisable(hook_args)


sys.unraisablehook = _unraisable


class DamagedCheckpoint(ValueError):
  """Is raised for a checkpoint that is incomplete or was changed."""

  def __init__(self, checkpoints: "Checkpoints", step: int, damage: str):
    path = checkpoints.folder / str(step)
    super().__init__(
      f"checkpoint {path} {damage}; the command that trains it goes on without "
      "it with --resume=latest_good"
    )
    self.step = step


class Checkpoints:
  """Keeps the numbered checkpoints of one training run in one directory.

  A checkpoint holds the params and metadata; unless it is the final one, it
  also holds the rest of the state. Orbax writes to a temporary name and then
  renames, so a checkpoint that is listed is complete. The metadata hold a
  checksum of every array, which the devices compute before writing and compare
  after reading: the files have no checksums, and training would go on with a
  flipped bit.

  Of a run on an object store, the newest checkpoint is fetched first, and one
  that is saved is sent before the one before it goes. Several processes then
  have a disk each: each writes and sends its own shards, as zarr files of which
  the store has all. The file that makes a checkpoint complete is sent last.
  """

  def __init__(self, folder: Path, keep: int = 1, watching: bool = False):
    """Opens the directory.

    Args:
      folder: the directory, made if it is not there.
      keep: the number of checkpoints that stay.
      watching: whether another process may be saving there. Then nothing is
        written, and what it has not completed is not looked at.
    """
    self.folder, self._watching = Path(folder).absolute(), watching
    self._remote = remote_runs.find(self.folder / MARK)
    handlers, each = None, ocp.options.MultiprocessingOptions()
    if self._remote is not None:
      remote_checkpoints.fetch_newest(self._remote, self.folder)
      if processes.count() > 1:
        each = ocp.options.MultiprocessingOptions(primary_host=None)
        handlers = _local_handlers(each)
    self._manager = ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        enable_async_checkpointing=False,
        create=not watching,
        multiprocessing_options=each,
      ),
      item_handlers=handlers,
    )

  def latest(self) -> int | None:
    """Returns the step of the newest complete checkpoint; None without one.

    Raises:
      ValueError: the newest checkpoint is incomplete, as a copy that was cut.
    """
    complete, cut = processes.run_on_first("latest checkpoint", self._steps)
    newest = max(complete, default=None)
    # An older incomplete one is what an interrupted removal left; the next save
    # removes the rest.
    if not self._watching and cut and (newest is None or cut[-1] > newest):
      raise DamagedCheckpoint(
        self,
        cut[-1],
        f"is not complete: {MARK} is missing, as in a copy that was cut",
      )
    return newest

  def _steps(self) -> tuple[list[int], list[int]]:
    """Lists the steps of complete and of incomplete checkpoints, ascending."""
    if not self.folder.is_dir():
      return [], []  # of an arm that has saved nothing yet
    names = (p.name for p in self.folder.iterdir())
    steps = sorted(int(name) for name in names if name.isdigit())
    listed = self._manager.all_steps()
    complete = [
      s for s in steps if s in listed and (self._path(s) / MARK).is_file()
    ]
    return complete, [s for s in steps if s not in complete]

  def set_aside(self, step: int) -> Path:
    """Renames a damaged checkpoint, so that no later run reads it."""
    target = self._path(step).with_name(f"{step}.damaged")
    shared_files.move_folder(self._path(step), target)
    self._manager.reload()
    return target

  def save(
    self, state: TrainState, meta: dict[str, Any], final: bool = False
  ) -> None:
    """Saves a state.

    Args:
      state: of any step; the step is the checkpoint's number.
      meta: JSON values to save beside it.
      final: whether training ends here; then the params alone are saved.

    Raises:
      OSError: the checkpoint does not fit on the disk, or cannot be written.
        The checkpoint before it is still there.
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
    all_meta = {
      **meta,
      "leaves": _describe(state.params),
      "checksums": {k: checksums(v) for k, v in trees.items()},
      "devices": jax.device_count(),
    }
    items["meta"] = ocp.args.JsonSave(all_meta)
    try:
      with processes.deadline(f"saving {self._at(step)}"):
        self._manager.save(step, args=ocp.args.Composite(**items))
        self._manager.wait_until_finished()
    except (OSError, ValueError) as e:
      raise OSError(f"{self._at(step)} was not written: {_cause(e)}") from e
    if self._remote is not None:
      remote_checkpoints.send(self._remote, self.folder, step)

  def _check_room(self, step: int, trees: dict[str, PyTree]) -> None:
    """Raises OSError if the arrays are larger than what the disk has free."""
    need = sum(x.nbytes for x in jax.tree.leaves(trees))
    free = shutil.disk_usage(self.folder).free
    if free < need:
      raise OSError(
        f"{self._at(step)} needs {need:,} bytes, {free:,} are free on its disk"
      )

  def meta(self) -> dict[str, Any]:
    """Reads the metadata of the newest checkpoint.

    Raises:
      ValueError: there is no checkpoint, or its metadata cannot be read.
    """
    step = self._step()
    try:
      meta = self._manager.restore(
        step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
      )["meta"]
      if {"leaves", "checksums", "devices"} <= set(meta):
        return meta
      raise ValueError("its meta lacks the checksums")
    except (OSError, ValueError, KeyError, TypeError) as e:
      raise DamagedCheckpoint(self, step, f"cannot be read: {e}") from e

  def restore(self, abstract: TrainState) -> TrainState:
    """Reads the newest state onto the devices that `abstract` names.

    Args:
      abstract: ShapeDtypeStructs with shardings.

    Raises:
      ValueError: there is no checkpoint, its arrays have other names, shapes or
        dtypes than `abstract`, or it cannot be read.
    """
    step = self._step()
    items = {"params": abstract.params, "rest": _rest(abstract)}
    trees = self._read(step, items)
    state = TrainState(
      step=jax.device_put(
        jax.numpy.asarray(step, abstract.step.dtype), abstract.step.sharding
      ),
      params=trees["params"],
      **trees["rest"],
    )
    # A step donates its state, and arrays that Orbax made cannot be donated
    # before they went through jit.
    shardings = jax.tree.map(lambda a: a.sharding, abstract)
    return jax.jit(lambda s: s, out_shardings=shardings)(state)

  def restore_params(self, abstract: PyTree) -> PyTree:
    """Reads the params of the newest checkpoint alone; see `restore`."""
    return self._read(self._step(), {"params": abstract})["params"]

  def close(self) -> None:
    """Ends Orbax's threads."""
    self._manager.close()

  def _path(self, step: int) -> Path:
    """Returns the folder of a checkpoint."""
    return self.folder / str(step)

  def _at(self, step: int) -> str:
    """Names a checkpoint for a message."""
    return f"checkpoint {self._path(step)}"

  def _step(self) -> int:
    """Returns the newest checkpoint's step; raises ValueError without one."""
    step = self.latest()
    if step is None:
      raise ValueError(f"{self.folder}: no complete checkpoint")
    return step

  def _read(self, step: int, items: dict[str, PyTree]) -> dict[str, PyTree]:
    """Reads trees of a checkpoint and compares shapes and checksums."""
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
    if self._remote is not None and processes.count() > 1:
      for item, tree in items.items():
        arrays = jax.tree_util.tree_flatten_with_path(tree)[0]
        names = {path_name(p).replace("/", "."): x for p, x in arrays}
        remote_checkpoints.fetch_shards(
          self._remote, self._path(step) / item, names
        )
    try:
      with processes.deadline(f"reading {self._at(step)}"):
        restored = self._manager.restore(step, args=ocp.args.Composite(**args))
      trees = {name: restored[name] for name in items}
    except (jax.errors.JaxRuntimeError, processes.ProcessError):
      raise  # memory is short, or another process gone
    except Exception as e:  # Orbax raises this very class where a file is cut
      raise DamagedCheckpoint(self, step, f"cannot be read: {e}") from e
    for name, tree in trees.items():
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
    return trees


def _local_handlers(
  each: ocp.options.MultiprocessingOptions,
) -> dict[str, ocp.CheckpointHandler]:
  """Returns what reads and writes the parts where processes share no disk.

  The files of all processes together are a checkpoint: OCDBT would have an
  index of its own in each.
  """
  arrays = functools.partial(
    ocp.StandardCheckpointHandler,
    multiprocessing_options=each,
    use_ocdbt=False,
  )
  meta = ocp.JsonCheckpointHandler(multiprocessing_options=each)
  return {"params": arrays(), "rest": arrays(), "meta": meta}


def _rest(state: TrainState) -> dict[str, PyTree]:
  """Returns the trees of a state that a final checkpoint does not hold."""
  rest = {"opt_state": state.opt_state, "rng": state.rng}
  return rest if state.ema is None else {**rest, "ema": state.ema}


# --- checksums ----------------------------------------------------------------


def _cause(error: Exception) -> str:
  """Shortens what Orbax says of a failed write, whose end has the cause.

  Some of its messages have the number of the cause alone. Those of TensorStore
  end with notes in brackets, such as the whole layout of an array.
  """
  text = " ".join(str(error).split())
  number = re.search(r"os_error_code='(\d+)'", text)
  name = "" if number is None else f"{os.strerror(int(number[1]))}: "
  return name + re.sub(r" \[\w[\w ]*='.*?'\]", "", text)[-300:]


def checksums(tree: PyTree) -> dict[str, int]:
  """Computes a number per leaf that changes with any one bit of the leaf.

  The numbers do not depend on the mesh.
  """
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  sums = to_host(_sums([x for _, x in flat]), "checksums")
  return {path_name(p): int(s) for (p, _), s in zip(flat, sums, strict=True)}


@jax.jit
def _sums(leaves: list[jax.Array]) -> list[jax.Array]:
  """Computes the checksum of each leaf in one program."""
  return [_sum(x) for x in leaves]


def _sum(x: jax.Array) -> jax.Array:
  """Sums each element's bits times an odd factor, modulo 2**32.

  The factor depends on the element's place in the array, so that elements which
  changed places are noticed; it is odd, so that no changed bit vanishes. The
  numbers are integers, so that the order of adding, which the mesh decides,
  does not matter.
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
  """Maps leaf names to [shape, dtype], as JSON values."""
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {path_name(p): [list(x.shape), str(x.dtype)] for p, x in flat}
