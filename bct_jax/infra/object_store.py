"""Reads and writes the objects below one URL of an object store.

Any store that fsspec knows will do: s3:// by s3fs and gs:// by gcsfs, both of
the extra `store`. Credentials, endpoint and region are those that these find:
AWS_PROFILE, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS and so on.

A store that cannot be reached is asked again for a while, and then an OSError
says so. One that refuses raises a PermissionError at once.
"""

import contextlib
import errno
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bct_jax.infra.formats import duration
from bct_jax.infra.progress import log_line

T = TypeVar("T")

# Packages whose errors are about the way to the store, unless their class has
# one of these words.
_REMOTE = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "requests")
_REFUSALS = ("Credential", "Validation", "ProfileNotFound", "Region")
# What is wrong with the disk here, and not with the store.
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def is_url(place: str | Path) -> bool:
  """Tells whether a place is a URL such as s3://bucket/run."""
  return "://" in str(place)


class Store:
  """Holds the objects below a URL, by their names below it.

  Attributes:
    url: of the folder, without a slash at its end.
  """

  def __init__(self, url: str, patience: float):
    """Opens the store without asking it anything.

    Args:
      url: such as s3://bucket/run.
      patience: seconds for which a store that cannot be reached is asked again.

    Raises:
      ValueError: no bucket or no folder in it is named, or the package for the
        store is missing.
    """
    scheme, _, path = url.partition("://")
    parts = path.strip("/").split("/")
    if len(parts) < 2 or {"", ".", ".."} & {*parts}:
      raise ValueError(
        f"{url}: a bucket and a folder in it are needed, as s3://bucket/run"
      )
    self.url, self.patience = f"{scheme}://{'/'.join(parts)}", patience
    self._fs = _filesystem(scheme)
    self._root = self._fs._strip_protocol(self.url)

  def list(self, folder: str = "") -> dict[str, int]:
    """Returns the sizes in bytes of all objects in a folder, by name."""
    where = f"{self._root}/{folder}".rstrip("/")
    with contextlib.suppress(FileNotFoundError):
      found: Any = self._call(self._fs.find, where, detail=True)
      skip = len(self._root) + 1
      return {
        path[skip:]: entry["size"]
        for path, entry in found.items()
        if path.startswith(f"{where}/") and entry["type"] == "file"
      }
    return {}

  def read(self, name: str) -> bytes:
    """Reads an object; raises FileNotFoundError without one."""
    return self._call(self._fs.cat_file, f"{self._root}/{name}")

  def write(self, name: str, content: bytes) -> None:
    """Writes an object whole, in place of one that is there."""
    self._write(name, content)

  def create(self, name: str, content: bytes) -> bool:
    """Writes an object unless there is one; tells whether it is this one now.

    Of several that try, one succeeds, if the store heeds If-None-Match: * as S3
    and GCS do.
    """
    try:
      self._write(name, content, mode="create")
    except (FileExistsError, _Conflict):
      # An answer that was lost on the way makes the second attempt fail.
      with contextlib.suppress(FileNotFoundError):
        return self.read(name) == content
      return False
    return True

  def _write(self, name: str, content: bytes, **mode: str) -> None:
    """Writes an object; raises ValueError without a bucket."""
    try:
      path = f"{self._root}/{name}"
      self._call(self._fs.pipe_file, path, content, **mode)
    except FileNotFoundError as e:
      raise ValueError(f"{self.url}: there is no such bucket ({e})") from None

  def send(self, files: Sequence[tuple[Path, str]]) -> None:
    """Copies local files to objects, several at a time."""
    if files:
      there = [f"{self._root}/{name}" for _, name in files]
      self._call(self._fs.put, [str(path) for path, _ in files], there)

  def fetch(self, files: Sequence[tuple[str, Path]]) -> None:
    """Copies objects to local files, several at a time.

    Raises:
      FileNotFoundError: an object is gone.
    """
    if files:
      there = [f"{self._root}/{name}" for name, _ in files]
      for _, path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
      self._call(self._fs.get, there, [str(path) for _, path in files])

  def copy(self, pairs: Sequence[tuple[str, str]]) -> None:
    """Copies objects within the store."""
    for old, new in pairs:
      paths = (f"{self._root}/{old}", f"{self._root}/{new}")
      self._call(self._fs.cp_file, *paths)

  def delete(self, names: Iterable[str]) -> None:
    """Deletes objects, one after another; those that are gone are no error."""
    for name in names:
      with contextlib.suppress(FileNotFoundError):
        self._call(self._fs.rm_file, f"{self._root}/{name}")

  def _call(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
    """Calls a function of the file system until the store has answered.

    Raises:
      FileNotFoundError, FileExistsError: as the function does.
      PermissionError: the store refused, for want of rights or credentials.
      OSError: it was out of reach for too long, or the disk here is full.
    """
    begin, pause, said = time.monotonic(), 0.5, False
    while True:
      try:
        return function(*args, **options)
      except (FileNotFoundError, FileExistsError):
        raise
      except Exception as e:
        words = " ".join(f"{type(e).__name__}: {e}".split())[:300]
        if "PreconditionFailed" in repr(e.__cause__ or e):
          raise _Conflict from None
        if _is_refusal(e):
          raise PermissionError(
            f"{self.url}: the store refuses: {words}"
          ) from None
        if not _is_outage(e):
          raise
        left = self.patience - (time.monotonic() - begin)
        if left <= 0:
          raise OSError(
            f"{self.url}: the store was out of reach for "
            f"{duration(self.patience)}: {words}"
          ) from None
        if not said:
          log_line(f"{self.url}: out of reach, trying again: {words}")
          said = True
      time.sleep(min(pause, left))
      pause = min(2 * pause, 15.0)


class _Conflict(Exception):
  """Is raised if an object that must not be there is."""


def _filesystem(scheme: str) -> Any:
  """Returns fsspec's file system for a scheme.

  Raises:
    ValueError: there is none, or its package is missing.
  """
  import fsspec

  options: dict[str, Any] = {}
  if scheme in ("s3", "s3a"):  # `Store` asks again itself
    options = {"config_kwargs": {"retries": {"total_max_attempts": 1}}}
  try:
    files = fsspec.filesystem(
      scheme, use_listings_cache=False, skip_instance_cache=True, **options
    )
    files.batch_size = 16  # files at a time, each with some 100 MB of buffers
    return files
  except (ImportError, ValueError) as e:
    raise ValueError(
      f"{scheme}://: {e}; pip install 'bct_jax[store]' for s3:// and gs://"
    ) from None


def _is_refusal(error: Exception) -> bool:
  """Tells whether a store, or its package, said no."""
  if isinstance(error, PermissionError) or f"{error}".startswith("Forbidden"):
    return True  # the latter is an OSError of gcsfs
  names = [c.__name__ for c in type(error).__mro__]
  refuses = any(word in name for name in names for word in _REFUSALS)
  return _is_remote(error) and (refuses or getattr(error, "code", 0) == 401)


def _is_outage(error: Exception) -> bool:
  """Tells whether an error may be gone a little later."""
  if isinstance(error, OSError):
    return error.errno not in _LOCAL
  return _is_remote(error)


def _is_remote(error: Exception) -> bool:
  """Tells whether an error is of a package that speaks with stores."""
  return type(error).__module__.split(".")[0] in _REMOTE
