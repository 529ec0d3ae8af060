"""Reads weights in MXFP4 as bfloat16, expert by expert.

A block is 32 numbers of four bits and one scale (OCP Microscaling Formats
specification 1.0, section 5.3): sign, two bits of exponent and one of mantissa,
times 2 ** (scale - 127). Every product is exact in bfloat16. gpt-oss stores a
kernel [E, in, out] of its experts as two tensors of bytes: NAME_blocks
[E, out, in / 32, 16], two numbers a byte with the lower bits first, and
NAME_scales [E, out, in / 32].
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bct_jax.models.huggingface import safetensors_file
from bct_jax.models.huggingface.safetensors_file import StoredTensor

_BLOCKS, _SCALES = "_blocks", "_scales"
_BLOCK_BYTES = 16
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = np.array([*_MAGNITUDES, *(-m for m in _MAGNITUDES)], np.float32)
_BIAS = 127
_NAN = 255  # the scale that stands for no number


class PackedTensor(NamedTuple):
  """Says where the two parts of a tensor are stored, as StoredTensor does."""

  blocks: StoredTensor
  scales: StoredTensor

  @property
  def path(self) -> Path:
    """Returns the file."""
    return self.blocks.path

  @property
  def name(self) -> str:
    """Returns the name that the tensor has where it is not packed."""
    return self.blocks.name.removesuffix(_BLOCKS)

  @property
  def kind(self) -> str:
    """Returns the word for the format."""
    return "MXFP4"

  @property
  def dtype(self) -> np.dtype:
    """Returns the dtype that its numbers are read as."""
    return np.dtype(jnp.bfloat16)

  @property
  def shape(self) -> tuple[int, ...]:
    """Returns [E, in, out]."""
    experts, rows, groups, size = self.blocks.shape
    return experts, groups * size * 2, rows

  @property
  def start(self) -> int:
    """Returns 0: `stop - start` is the size of what is read."""
    return 0

  @property
  def stop(self) -> int:
    """Returns the bytes of its numbers as they are read."""
    return math.prod(self.shape) * self.dtype.itemsize


Tensor = StoredTensor | PackedTensor


def join_parts(tensors: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
  """Replaces each pair of blocks and scales by one tensor of their name.

  Args:
    tensors: of a folder, by name.

  Raises:
    ValueError: one of the two is missing, or they do not fit together; names
      file and tensor.
  """
  out: dict[str, Tensor] = {}
  for name, tensor in tensors.items():
    stem = name.removesuffix(_BLOCKS).removesuffix(_SCALES)
    if tensor.kind != "U8" or stem == name:
      out[name] = tensor
      continue
    blocks, scales = (tensors.get(stem + end) for end in (_BLOCKS, _SCALES))
    if blocks is None or scales is None:
      raise ValueError(
        f"{tensor.path}: tensor {name} has no other half: MXFP4 weights are "
        f"{stem}{_BLOCKS} and {stem}{_SCALES}"
      )
    if (
      {blocks.kind, scales.kind} != {"U8"}
      or len(blocks.shape) != 4
      or blocks.shape[-1] != _BLOCK_BYTES
      or blocks.shape[:-1] != scales.shape
      or any(math.prod(t.shape) != t.stop - t.start for t in (blocks, scales))
    ):
      raise ValueError(
        f"{blocks.path}: tensors {blocks.name} {blocks.kind} {blocks.shape} "
        f"and {scales.name} {scales.kind} {scales.shape} are no MXFP4 weights: "
        "U8 [experts, out, in / 32, 16] and U8 [experts, out, in / 32]"
      )
    out[stem] = PackedTensor(blocks, scales)
  return out


def read_rows(tensor: Tensor, start: int, stop: int) -> np.ndarray:
  """Reads the rows [start, stop) of a tensor's first dimension.

  Returns:
    Those of a packed tensor as bfloat16 [stop - start, in, out].

  Raises:
    ValueError: the file is cut short, or a scale is no number.
  """
  if isinstance(tensor, StoredTensor):
    return safetensors_file.read_rows(tensor, start, stop)
  blocks, scales = (
    safetensors_file.read_rows(part, start, stop, np.dtype(np.uint8))
    for part in tensor
  )
  if (scales == _NAN).any():
    raise ValueError(
      f"{tensor.scales.path}: tensor {tensor.scales.name} has a scale that is "
      "not a number"
    )
  out = np.empty((stop - start, *tensor.shape[1:]), tensor.dtype)
  for i in range(stop - start):  # an expert at a time: each is 4 times as large
    pairs = np.stack([blocks[i] & 15, blocks[i] >> 4], axis=-1)
    rows, groups = scales[i].shape
    values = _VALUES[pairs.reshape(rows, groups, -1)]
    exponents = scales[i].astype(np.int32)[..., None] - _BIAS
    out[i] = np.ldexp(values, exponents).reshape(rows, -1).T
  return out
