"""Builds folders that appear whole or not at all, and finds damage in them.

A folder is built beside its final place, flushed, and renamed. Its manifest
holds size and SHA-256 of every file. So an interrupted build leaves no half of
a model, two processes that build at once make one folder, and a truncated or
altered file is found before a loader trips over it.
"""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bct_jax.infra import files
from bct_jax.infra.exit_codes import OF_MACHINE
from bct_jax.infra.locks import wait_for_lock
from bct_jax.infra.visible import visible

MANIFEST = "bct_manifest.json"


class ModelSourceError(ValueError):
  """Is raised for a model folder that cannot be made, found or trusted.

  The message says what to do.
  """


def say(text: str) -> None:
  """Prints one line about a stage to stderr: stdout is kept for results."""
  print(visible(text), file=sys.stderr, flush=True)


def sha256(path: Path) -> str:
  """Returns the hex SHA-256 of a file, at about 1 GB a second."""
  with path.open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def find_damage(folder: Path, key: Mapping[str, Any]) -> str | None:
  """Compares a folder with its manifest and with the key it should be for.

  Returns:
    What is wrong with the folder, in words; None if it is intact.
  """
  try:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    key_there, entries = manifest["key"], manifest["files"]
  except FileNotFoundError:
    return f"{MANIFEST} is missing"
  except (ValueError, KeyError, TypeError, OSError) as error:
    return f"{MANIFEST} is unreadable ({error})"
  if key_there != dict(key):
    return f"it was made for {key_there}, not for {dict(key)}"
  for name, expected in entries.items():
    path = folder / name
    if not path.is_file():
      return f"{name} is missing"
    if path.stat().st_size != expected["size"]:
      return f"{name} has {path.stat().st_size} bytes, not {expected['size']}"
    if sha256(path) != expected["sha256"]:
      return f"{name} is not what was written (SHA-256 differs)"
  return None


def ensure_folder(
  folder: Path,
  key: Mapping[str, Any],
  build: Callable[[Path], None],
  *,
  replace: bool,
) -> Path:
  """Returns `folder` and builds it first if it is not there intact.

  Args:
    folder: the final place.
    key: JSON values that decide the content; a folder made for another key is
      not accepted.
    build: writes all files into the empty folder that it is given.
    replace: whether a folder that is damaged or made for another key may be
      deleted and rebuilt. True only for caches, never for a user's folder.

  Raises:
    ModelSourceError: the folder is in the way, or cannot be written.
    OSError: the disk is full or broken.
  """
  folder = folder.expanduser().absolute()
  if find_damage(folder, key) is None:  # Needs no write access.
    return folder
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
      return _ensure_locked(folder, key, build, replace)
  except OSError as error:
    raise _unwritable(
      folder,
      error,
      ". Free some space (the demo model needs 1 GB while it is made), or set "
      "BCT_JAX_CACHE to a folder elsewhere",
    ) from error


def _ensure_locked(
  folder: Path,
  key: Mapping[str, Any],
  build: Callable[[Path], None],
  replace: bool,
) -> Path:
  """Does what `ensure_folder` does; the caller holds the folder's lock."""
  _remove_leftovers(folder)
  fault = find_damage(folder, key)
  if fault is None:  # Another process made it while we waited.
    return folder
  occupied = _occupied(folder)
  if occupied and not replace:
    raise ModelSourceError(
      f"{folder} is in the way: {fault}. Remove it or name another folder"
    )
  if occupied:
    say(f"rebuilding {folder}: {fault}")
  _build(folder, key, build, occupied)
  return folder


def write_folder(
  folder: Path, key: Mapping[str, Any], build: Callable[[Path], None]
) -> Path:
  """Builds `folder` in place of one that an earlier call made.

  Args:
    folder: the final place.
    key: JSON values to keep in the manifest; a folder counts as written by an
      earlier call if its key has the same "made_by".
    build: as for `ensure_folder`.

  Raises:
    ModelSourceError: something that was not written this way is there, or the
      folder cannot be written.
    OSError: the disk is full or broken.
  """
  folder = folder.expanduser().absolute()
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
      _remove_leftovers(folder)
      check_writable(folder, key)
      _build(folder, key, build, _occupied(folder))
  except OSError as error:
    raise _unwritable(folder, error) from error
  return folder


def _unwritable(folder: Path, error: OSError, advice: str = "") -> Exception:
  """Makes the error for a folder; a full disk is no fault of the command."""
  text = f"cannot write {folder}: {error}{advice}"
  return (OSError if error.errno in OF_MACHINE else ModelSourceError)(text)


def check_writable(folder: Path, key: Mapping[str, Any]) -> None:
  """Checks that `write_folder` may put its folder here.

  Raises:
    ModelSourceError: something is there that `write_folder` did not make.
  """
  folder = folder.expanduser().absolute()
  if not _occupied(folder):
    return
  fault = None
  if folder.is_symlink():
    fault = "it is a link"
  elif not folder.is_dir():
    fault = "it is a file"
  else:
    try:
      manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
      made_by, names = manifest["key"].get("made_by"), manifest["files"]
      others = {path.name for path in folder.iterdir()} - {*names, MANIFEST}
      if made_by != key["made_by"]:
        fault = f"{MANIFEST} says that it was made for {manifest['key']}"
      elif others:
        fault = f"{min(others)} in it was put there by somebody else"
    except FileNotFoundError:
      fault = f"it has no {MANIFEST}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      fault = f"{MANIFEST} is unreadable ({error})"
  if fault:
    raise ModelSourceError(
      f"{folder} is in the way and was not written by {key['made_by']}: "
      f"{fault}. Remove it or name another folder"
    )


def _occupied(folder: Path) -> bool:
  """Tells whether a link, a file or a folder with files is there."""
  if folder.is_symlink() or folder.is_file():
    return True
  return folder.exists() and any(folder.iterdir())


def _remove_leftovers(folder: Path) -> None:
  """Removes builds that were killed; the caller holds the folder's lock."""
  name = glob.escape(folder.name)
  for leftover in folder.parent.glob(f".{name}.tmp-*"):
    shutil.rmtree(leftover, ignore_errors=True)


def _build(
  folder: Path,
  key: Mapping[str, Any],
  build: Callable[[Path], None],
  occupied: bool,
) -> None:
  """Builds beside `folder` and puts the result in its place."""
  temporary = folder.parent / f".{folder.name}.tmp-{uuid.uuid4().hex[:12]}"
  old = folder.parent / f".{folder.name}.tmp-old-{uuid.uuid4().hex[:8]}"
  temporary.mkdir()
  try:
    build(temporary)
    _seal(temporary, key)
    if occupied:
      # Renamed before it is deleted: a reader sees the old folder or the new
      # one, never a part of either.
      folder.rename(old)
    temporary.rename(folder)
    _fsync(folder.parent)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
    if folder.exists():
      shutil.rmtree(old, ignore_errors=True)


def _seal(folder: Path, key: Mapping[str, Any]) -> None:
  """Writes the manifest and flushes everything to the disk."""
  names = sorted(path.name for path in folder.iterdir())
  mode = 0o666 & ~_umask()
  for name in names:  # safetensors makes files that only their owner can read.
    (folder / name).chmod(mode)
  entries = {
    name: {
      "size": (folder / name).stat().st_size,
      "sha256": sha256(folder / name),
    }
    for name in names
  }
  write_json(folder / MANIFEST, {"key": dict(key), "files": entries})
  for name in [*names, MANIFEST]:
    _fsync(folder / name)
  _fsync(folder)


def _umask() -> int:
  """Returns the umask, which the system tells only to who sets another."""
  mask = os.umask(0)
  os.umask(mask)
  return mask


def _fsync(path: Path) -> None:
  """Flushes a file, or the names in a folder, to the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _lock(folder: Path) -> contextlib.AbstractContextManager[None]:
  """Keeps other builders out."""
  path = folder.parent / f".{folder.name}.lock"
  return wait_for_lock(path, str(folder), say)


def write_json(path: Path, value: Any) -> None:
  """Writes indented JSON with a final newline, as Hugging Face does."""
  text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
  files.write_text(path, text)
