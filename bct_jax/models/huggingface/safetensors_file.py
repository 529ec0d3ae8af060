"""Reads rows of safetensors by offset, and writes files tensor by tensor.

A file is the length of its header (8 bytes, little-endian), the header (JSON:
dtype, shape and byte range of every tensor) and the data, row-major
(https://huggingface.co/docs/safetensors). The library maps files into memory,
where every page that was read counts as the process's own, and it writes from a
dict of all tensors. Here neither a file nor a tensor is ever held whole.

Measured against `safetensors.safe_open(...).get_slice` (0.8.0), with blocks of
16 MB of SmolLM2 (538 MB) and of a gigabyte of bfloat16: an open handle adds the
whole file to the memory of the process. Opened again for each block it adds no
more than this module, and takes 1.2 to 4.5 times the CPU time, 1.1 to 3.5 times
the wall time. A file that shrinks while it is mapped kills the process.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

# What weights may be stored as; integers would be quantised ones.
DTYPES = {
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(jnp.bfloat16),
}
_MAX_HEADER = 100_000_000  # bytes, as in the library


class StoredTensor(NamedTuple):
  """Says where a tensor is stored.

  Attributes:
    path: the file.
    name: of the tensor.
    kind: the format's word for its dtype, such as BF16.
    shape: of the tensor.
    start: its first byte in the file.
    stop: the byte behind its last.
  """

  path: Path
  name: str
  kind: str
  shape: tuple[int, ...]
  start: int
  stop: int

  @property
  def dtype(self) -> np.dtype:
    """Returns the dtype; raises ValueError unless it is one of DTYPES."""
    if self.kind not in DTYPES:
      raise ValueError(
        f"{self.path}: tensor {self.name} is stored as {self.kind}; "
        f"{', '.join(DTYPES)} are read"
      )
    return DTYPES[self.kind]


def read_header(path: Path) -> dict[str, StoredTensor]:
  """Reads where every tensor of a file is, by name, in the order of bytes.

  Raises:
    ValueError: the file is missing, not of this format or cut short; or the
      bytes of a tensor do not fit its shape, the file or its neighbours. The
      message names the tensor.
  """
  try:
    if path.exists() and not path.is_file():
      raise ValueError(f"{path}: not a regular file")
    size = path.stat().st_size
    with path.open("rb") as f:
      length = int.from_bytes(f.read(8), "little")
      if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise ValueError(
          f"{path}: a header of {length} bytes in a file of {size}: cut short, "
          "or not a safetensors file; fetch it again"
        )
      text = f.read(length)
  except OSError as e:
    raise ValueError(f"{path}: cannot be read: {e.strerror}") from None
  try:
    header = json.loads(text, object_pairs_hook=_no_twins)
    if not isinstance(header, dict):
      raise ValueError("not an object")
  except (ValueError, RecursionError) as e:
    raise ValueError(f"{path}: bad safetensors header: {e}") from None
  header.pop("__metadata__", None)
  out = [_parse_entry(path, k, v, 8 + length) for k, v in header.items()]
  out.sort(key=lambda t: (t.start, t.stop))
  at = 8 + length
  for t in out:
    if t.stop > size:
      raise ValueError(
        f"{path}: tensor {t.name} ends at byte {t.stop}, the file has {size}: "
        "it was cut short, fetch it again"
      )
    if t.start != at:
      raise ValueError(
        f"{path}: tensor {t.name} begins at byte {t.start}, the one before it "
        f"ends at {at}: the header is damaged"
      )
    at = t.stop
  if at != size:
    raise ValueError(f"{path}: {size - at} bytes behind the last tensor")
  return {t.name: t for t in out}


def _no_twins(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
  """Makes a dict of JSON's pairs; raises ValueError if a key occurs twice."""
  out = dict(pairs)
  if len(out) != len(pairs):
    names = [k for k, _ in pairs]
    twin = next(k for k in names if names.count(k) > 1)
    raise ValueError(f"{twin!r} is in it twice")
  return out


def _parse_entry(path: Path, name: str, entry: Any, base: int) -> StoredTensor:
  """Reads one entry of a header, with the data beginning at byte `base`."""

  def naturals(values: Any) -> tuple[int, ...]:
    # Not isinstance: True is an int.
    if not all(type(n) is int and n >= 0 for n in values):
      raise ValueError
    return tuple(values)

  try:
    kind, shape = str(entry["dtype"]), naturals(entry["shape"])
    start, stop = naturals(entry["data_offsets"])
  except (TypeError, KeyError, ValueError):
    raise ValueError(
      f"{path}: tensor {name}: dtype, shape and two data_offsets are needed, "
      f"found {entry!r:.200}"
    ) from None
  if (
    kind in DTYPES and math.prod(shape) * DTYPES[kind].itemsize != stop - start
  ):
    raise ValueError(
      f"{path}: tensor {name}: {kind} {shape} has other than "
      f"{stop - start} bytes"
    )
  return StoredTensor(path, name, kind, shape, base + start, base + stop)


def read_rows(
  tensor: StoredTensor, start: int, stop: int, dtype: np.dtype | None = None
) -> np.ndarray:
  """Reads the rows [start, stop) of a tensor's first dimension.

  Args:
    tensor: where it is stored.
    start, stop: the rows.
    dtype: to take the bytes for; None is that of the tensor.
  """
  out = np.empty((stop - start, *tensor.shape[1:]), dtype or tensor.dtype)
  row = (tensor.stop - tensor.start) // max(1, tensor.shape[0])
  rest = out.reshape(-1).view(np.uint8).data
  with tensor.path.open("rb", buffering=0) as f:
    f.seek(tensor.start + start * row)
    while rest:
      count = f.readinto(rest)
      if not count:
        raise ValueError(
          f"{tensor.path}: tensor {tensor.name} was cut short while it was read"
        )
      rest = rest[count:]
  return out


def row_blocks(
  tensor: Any, start: int, stop: int, size: int
) -> Iterable[tuple[int, int]]:
  """Splits the rows [start, stop) into ranges of about `size` bytes.

  A range has one row at least.
  """
  row = (tensor.stop - tensor.start) // max(1, tensor.shape[0])
  step = max(1, size // max(1, row))
  for at in range(start, stop, step):
    yield at, min(at + step, stop)


def write(
  path: Path,
  shapes: Mapping[str, Sequence[int]],
  dtype: np.dtype,
  arrays: Iterable[np.ndarray],
) -> None:
  """Writes a file from arrays that are made one after the other.

  Args:
    path: a new file.
    shapes: of each tensor, by name, in the order of `arrays`.
    dtype: of all of them, one of DTYPES.
    arrays: the values, which an iterator may make one by one.

  Raises:
    ValueError: an array has another shape or dtype; names the tensor.
  """
  kind = next(k for k, v in DTYPES.items() if v == dtype)
  # transformers refuses a file that does not name its framework.
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  at = 0
  for name, shape in shapes.items():
    stop = at + math.prod(shape) * dtype.itemsize
    header[name] = {
      "dtype": kind,
      "shape": list(shape),
      "data_offsets": [at, stop],
    }
    at = stop
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # so that the data is aligned
  with path.open("wb") as f:
    f.write(len(text).to_bytes(8, "little") + text)
    for (name, shape), x in zip(shapes.items(), arrays, strict=True):
      if x.shape != tuple(shape) or x.dtype != dtype:
        raise ValueError(
          f"{path}: tensor {name} was to be {dtype} {tuple(shape)}, is "
          f"{x.dtype} {x.shape}"
        )
      f.write(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)


def write_whole(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes tensors that are in memory, as the library orders them.

  Raises:
    OSError: the file cannot be written, as on a full disk; the library has an
      error of its own for that.
  """
  try:
    # transformers refuses a file that does not name its framework.
    safetensors.numpy.save_file({**tensors}, path, metadata={"format": "pt"})
  except safetensors.SafetensorError as e:
    if not (number := re.search(r"os error (\d+)", str(e))):
      raise
    code = int(number[1])
    raise OSError(code, os.strerror(code), str(path)) from None
