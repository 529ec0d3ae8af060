"""Fetches and sends checkpoints of a run that is on an object store.

Every process of the run calls these functions. Processes share no disk: each
sends the shards that it has written and fetches those that it needs. The store
has all of them: of each array a folder, with a file for each of its chunks.

  params/layers.mlp.up.kernel/.zarray     {"chunks": [2, 64, 96], ...}
  params/layers.mlp.up.kernel/0.0.1       rows 0 to 63, columns 96 to 191
"""

import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax

from bct_jax.infra import processes
from bct_jax.infra.remote_folder import MARK, RemoteFolder

_ARRAY = "/.zarray"  # ends the name of a file that says how large chunks are


def fetch_newest(remote: RemoteFolder, folder: Path) -> None:
  """Fetches the newest checkpoint, and removes others.

  Several processes leave out chunks, which `fetch_shards` fetches.

  Args:
    remote: the run on the store.
    folder: of numbered checkpoints, in the copy of this process.

  Raises:
    ValueError: the checkpoint was replaced by the next one meanwhile.
  """
  step = processes.run_on_first(
    f"checkpoints of {folder.parent.name}", lambda: remote.newest(folder)
  )
  if not processes.is_first():
    remote.newest(folder)  # to know the files that are there
  for path in folder.glob("*"):
    if path.name.isdigit() and path.name != str(step):
      shutil.rmtree(path)
  if step is None:
    return
  try:
    names = remote.names(folder / str(step))
    if processes.count() > 1:
      arrays = {n.removesuffix(_ARRAY) for n in names if n.endswith(_ARRAY)}
      names = [
        n
        for n in names
        if n.endswith(_ARRAY) or n.rpartition("/")[0] not in arrays
      ]
    remote.fetch(names)
  except FileNotFoundError as e:
    raise ValueError(
      f"checkpoint {folder / str(step)} was replaced meanwhile: {e}"
    ) from None


def fetch_shards(
  remote: RemoteFolder, folder: Path, arrays: Mapping[str, jax.ShapeDtypeStruct]
) -> None:
  """Fetches the chunks of arrays that the devices of this process hold.

  Args:
    remote: the run on the store.
    folder: with a folder for each array, which `fetch_newest` has fetched. One
      that a single process wrote is whole, and has other files.
    arrays: by their names, with shardings.
  """
  wanted = []
  for name, array in arrays.items():
    header = folder / f"{name}{_ARRAY}"
    if header.exists():
      chunks = _needed(array, json.loads(header.read_text())["chunks"])
      there = remote.names(header.parent)
      wanted += [n for n in there if n.rpartition("/")[2] in chunks]
  remote.fetch(wanted)


def _needed(array: jax.ShapeDtypeStruct, sizes: list[int]) -> set[str]:
  """Names the chunks of these sizes that this process needs of an array."""
  assert array.sharding is not None
  indices = array.sharding.addressable_devices_indices_map(array.shape)
  out = set()
  for index in indices.values():
    ranges = []
    for part, length, size in zip(index or (), array.shape, sizes, strict=True):
      start, stop, _ = part.indices(length)
      ranges.append(range(start // size, -(-stop // size)))
    out |= {".".join(map(str, at)) or "0" for at in itertools.product(*ranges)}
  return out


def send(remote: RemoteFolder, folder: Path, step: int) -> None:
  """Sends a checkpoint, then deletes the others that the store has.

  The file that makes it complete is sent last, by the first process.

  Args:
    remote, folder: as of `fetch_newest`.
    step: the number of the checkpoint.

  Raises:
    OSError: the store is out of reach.
  """
  path, name = folder / str(step), f"checkpoint {step} in the store"

  def begin() -> None:  # with what a kill may have left of this step
    remote.newest(folder)
    remote.delete(path)

  def end() -> None:
    remote.send_folder(path, last=MARK)
    remote.newest(folder)
    for other in remote.steps(folder):
      if other != step:
        remote.delete(folder / str(other))

  processes.run_on_first(f"begin of {name}", begin)
  if not processes.is_first():
    remote.send_folder(path, but=MARK)
  processes.barrier(f"parts of {name}")
  processes.run_on_first(f"end of {name}", end)
