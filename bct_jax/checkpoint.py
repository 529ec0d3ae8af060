"""Saving and restoring arrays with Orbax. The only file that knows Orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from bct_jax import processes
from bct_jax.mesh import path_name
from bct_jax.types import PyTree, TrainState


class Checkpoints:
  """Numbered checkpoints of a training run in one directory.

  A checkpoint has the params, the rest of the state unless it is a final one,
  and metadata. Orbax writes to a temporary name and renames, so what is listed
  is complete.
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
    """Step of the newest complete checkpoint."""
    return processes.first("latest checkpoint", self._manager.latest_step)

  def save(
    self, state: TrainState, meta: dict[str, Any], final: bool = False
  ) -> None:
    """Saves the state, or only its params when nothing will follow (final)."""
    items = {
      "params": ocp.args.StandardSave(state.params),
      "meta": ocp.args.JsonSave({**meta, "leaves": _describe(state.params)}),
    }
    if not final:
      rest = {"opt_state": state.opt_state, "rng": state.rng}
      items["rest"] = ocp.args.StandardSave(rest)
    step = int(state.step)
    with processes.deadline(f"saving {self._at(step)}"):
      self._manager.save(step, args=ocp.args.Composite(**items))
      self._manager.wait_until_finished()

  def meta(self) -> dict[str, Any]:
    """Metadata of the newest checkpoint.

    Raises:
      ValueError: there is none, or it cannot be read.
    """
    step = self._step()
    try:
      read = self._manager.restore(
        step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
      )
    except (OSError, ValueError, KeyError) as e:
      raise ValueError(f"{self._at(step)}: unreadable: {e}") from e
    return read["meta"]

  def restore(self, abstract: TrainState) -> TrainState:
    """The newest state, on the devices that `abstract` names.

    Args:
      abstract: ShapeDtypeStructs with shardings.

    Raises:
      ValueError: there is no checkpoint, it is of other names, shapes or
        dtypes, or it cannot be read.
    """
    step = self._step()
    rest = {"opt_state": abstract.opt_state, "rng": abstract.rng}
    read = self._read(step, {"params": abstract.params, "rest": rest})
    state = TrainState(
      step=jax.device_put(
        jax.numpy.asarray(step, abstract.step.dtype), abstract.step.sharding
      ),
      params=read["params"],
      opt_state=read["rest"]["opt_state"],
      rng=read["rest"]["rng"],
    )
    # Arrays made by Orbax cannot be donated before they went through jit.
    place = jax.tree.map(lambda a: a.sharding, abstract)
    return jax.jit(lambda s: s, out_shardings=place)(state)

  def restore_params(self, abstract: PyTree) -> PyTree:
    """The params of the newest checkpoint alone; see `restore`."""
    return self._read(self._step(), {"params": abstract})["params"]

  def close(self) -> None:
    self._manager.close()

  def _at(self, step: int) -> str:
    return f"checkpoint {self.folder / str(step)}"

  def _step(self) -> int:
    step = self.latest()
    if step is None:
      raise ValueError(f"{self.folder}: no complete checkpoint")
    return step

  def _read(self, step: int, items: dict[str, PyTree]) -> dict[str, PyTree]:
    # Orbax casts silently when a dtype differs, so compare before.
    saved, wanted = self.meta()["leaves"], _describe(items["params"])
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
      return {name: read[name] for name in items}
    except (OSError, ValueError, KeyError) as e:
      raise ValueError(f"{self._at(step)}: unreadable: {e}") from e


def _describe(tree: PyTree) -> dict[str, list]:
  """Leaf name -> [shape, dtype], as JSON."""
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {path_name(p): [list(x.shape), str(x.dtype)] for p, x in flat}
