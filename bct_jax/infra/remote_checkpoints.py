"""Fetches and sends checkpoints of a run that is on an object store.

Every process of the run calls these functions. Processes share no disk: each
sends the files that it has written, and the store has all of them.
"""

import shutil
from pathlib import Path

from bct_jax.infra import processes
from bct_jax.infra.remote_folder import MARK, RemoteFolder


def fetch_newest(remote: RemoteFolder, folder: Path) -> None:
  """Fetches the newest checkpoint whole; removes those that others replaced.

  Args:
    remote: the run on the store.
    folder: of numbered checkpoints, in the copy of this process.

  Raises:
    ValueError: the checkpoint was replaced by the next one meanwhile.
  """
  step = processes.run_on_first(
    f"checkpoints of {folder.parent.name}", lambda: remote.newest(folder)
  )
  for path in folder.glob("*"):
    if path.name.isdigit() and path.name != str(step):
      shutil.rmtree(path)
  if step is None:
    return
  try:
    remote.fetch_folder(folder / str(step))
  except FileNotFoundError as e:
    raise ValueError(
      f"checkpoint {folder / str(step)} was replaced meanwhile: {e}"
    ) from None


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
