"""Reads and computes rotary positions in the ways that models scale them."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from bct_jax.infra.formats import number

Refuse = Callable[[str, str], NoReturn]


@dataclasses.dataclass(frozen=True)
class Rope:
  """Describes the rotary positions of a layer (Su et al. 2021, 2104.09864).

  Attributes:
    theta: the base of the wavelengths.
    kind: "default"; "linear", which divides all frequencies by `factor` (Chen
      et al. 2023, arXiv 2306.15595); "llama3", which divides the frequencies
      whose wavelength is long against `original_length` (Llama 3.1; Dubey et
      al. 2024, arXiv 2407.21783); "yarn", which does so by the place of a
      pair of dimensions (Peng et al. 2023, arXiv 2309.00071); or
      "proportional", where all pairs but the first do not turn (Gemma 4).
    factor: see `kind`.
    low_freq_factor: turns within the original length up to which a frequency
      is divided by `factor`; llama3 only.
    high_freq_factor: turns from which a frequency stays as it is; llama3 only.
    original_length: positions that the model was first trained with.
    beta_slow: as low_freq_factor, yarn only.
    beta_fast: as high_freq_factor, yarn only.
    truncate: whether the two places between which yarn blends are whole pairs.
    attention_factor: of cosine and sine, so that scores grow by its square;
      yarn only.
    query_growth: queries at position t are multiplied by 1 + query_growth x
      ln(1 + floor(t / original_length)); only yarn of Ministral 3, whose
      config.json calls it llama_4_scaling_beta.
    share: of the dimensions of a head that turn, the first of them. Where it is
      proportional: of the pairs that do, of frequencies over the whole head.
  """

  theta: float
  kind: str = "default"
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_length: int = 0
  beta_slow: float = 1.0
  beta_fast: float = 32.0
  truncate: bool = True
  attention_factor: float = 1.0
  query_growth: float = 0.0
  share: float = 1.0

  def turning(self, head_dim: int) -> int:
    """Returns R, how many dimensions of a head are rotated."""
    if self.kind == "proportional":
      return head_dim
    return int(head_dim * self.share)

  def frequencies(self, head_dim: int) -> np.ndarray:  # [R/2] float32
    """Returns the radians per position of each pair of dimensions.

    theta ** (-2 i / R) for pair i, changed as `kind` says
    """
    head_dim = self.turning(head_dim)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    plain = (1.0 / np.float32(self.theta) ** exponents).astype(np.float32)
    if self.kind == "default":
      return plain
    slow = plain / np.float32(self.factor)
    if self.kind == "linear":
      return slow
    if self.kind == "proportional":
      slow[int(self.share * head_dim // 2) :] = 0
      return slow
    # Pairs that turn often within the original context stay, pairs that turn
    # rarely are slowed down, and in between the two are blended.
    keep = (
      self._kept_by_place(head_dim)
      if self.kind == "yarn"
      else self._kept_by_turns(plain)
    )
    return keep * plain + (1 - keep) * slow

  def _kept_by_turns(self, plain: np.ndarray) -> np.ndarray:
    """Returns how far each frequency stays: linear in its turns (llama3)."""
    turns = self.original_length * plain / np.float32(2 * math.pi)
    low, high = self.low_freq_factor, self.high_freq_factor
    return np.clip((turns - low) / (high - low), 0, 1).astype(np.float32)

  def _kept_by_place(self, head_dim: int) -> np.ndarray:
    """Returns how far each frequency stays: linear in its place (yarn)."""

    def place(turns: float) -> float:
      """Finds the pair, as a real number, that turns so often."""
      wavelength = self.original_length / (2 * math.pi * turns)
      return head_dim * math.log(wavelength) / (2 * math.log(self.theta))

    first, last = place(self.beta_fast), place(self.beta_slow)
    if self.truncate:
      first, last = math.floor(first), math.ceil(last)
    # The published code bounds the end by dimensions, not by pairs.
    first, last = max(first, 0), min(last, head_dim - 1)
    if first == last:
      last += 0.001
    pairs = np.arange(head_dim // 2, dtype=np.float32)
    return 1 - np.clip((pairs - first) / (last - first), 0, 1).astype(
      np.float32
    )


_NAMES = {
  "rope_theta": "theta",
  "factor": "factor",
  "low_freq_factor": "low_freq_factor",
  "high_freq_factor": "high_freq_factor",
  "original_max_position_embeddings": "original_length",
  "beta_fast": "beta_fast",
  "beta_slow": "beta_slow",
  "truncate": "truncate",
  "attention_factor": "attention_factor",
  "llama_4_scaling_beta": "query_growth",
  "partial_rotary_factor": "share",
}
_MOST = 1e12  # the largest number that is no mistake
_LENGTH = "original_max_position_embeddings"
# Kind -> the fields that it needs, and those that it may have.
_KINDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
  "default": (("rope_theta",), ()),
  "linear": (("rope_theta", "factor"), ()),
  "llama3": (
    ("rope_theta", "factor", "low_freq_factor", "high_freq_factor", _LENGTH),
    (),
  ),
  "yarn": (
    ("rope_theta", "factor", _LENGTH),
    ("beta_fast", "beta_slow", "truncate", "attention_factor"),
  ),
  "proportional": (("rope_theta",), ("factor",)),
}
ROPES = tuple(_KINDS)
# They say how a head is shared between the three positions of an image.
_OF_IMAGES = ("mrope_section", "mrope_interleaved")
# Of yarn, they make the attention factor where it is not given.
_MSCALES = ("mscale", "mscale_all_dim")
_OR_ZERO = ("beta_fast", "beta_slow", "llama_4_scaling_beta", *_MSCALES)


def read_rope(
  values: Mapping[str, Any],
  refuse: Refuse,
  growing: bool = False,
  partial: bool = False,
) -> Rope:
  """Reads rotary positions from `rope_parameters`.

  Args:
    values: the fields, as a configuration of transformers has them.
    refuse: raises an error about a field.
    growing: whether the family reads `llama_4_scaling_beta`.
    partial: whether it reads `partial_rotary_factor`, and has positions of
      images, which are plain ones where there are none.
  """
  kind = values.get("rope_type", values.get("type", "default"))
  if kind not in ROPES:
    refuse(
      "rope_parameters", f"rope_type {kind}; supported: {', '.join(ROPES)}"
    )
  needs, may = _KINDS[kind]
  given = {k: v for k, v in values.items() if v is not None}
  _check_numbers(given, refuse)
  if growing:
    if kind != "yarn":
      refuse("rope_parameters", f"rope_type {kind}; supported: yarn")
    needs += ("llama_4_scaling_beta",)
    given.pop("max_position_embeddings", None)  # a copy, which is not read
  elif "llama_4_scaling_beta" in given:
    refuse("rope_parameters", "llama_4_scaling_beta is not supported")
  if partial or kind == "proportional":
    may += ("partial_rotary_factor",)
    given = {k: v for k, v in given.items() if k not in _OF_IMAGES}
  # Some other configurations have it, too, and it must be 1 in them.
  elif given.get("partial_rotary_factor") == 1:
    del given["partial_rotary_factor"]
  elif "partial_rotary_factor" in given:
    refuse("rope_parameters", "partial_rotary_factor is not supported")
  unknown = sorted(set(given) - {*_NAMES, *_MSCALES, "rope_type", "type"})
  if unknown:
    refuse("rope_parameters", f"{unknown[0]} is not supported")
  if missing := [n for n in needs if n not in given]:
    refuse("rope_parameters", f"{missing[0]} is missing for {kind}")
  used = {_NAMES[k]: given[k] for k in (*needs, *may) if k in given}
  if kind == "yarn":
    used.setdefault("attention_factor", _attention_factor(used, given))
    # As in the published code, 0 is the default, too.
    for name in ("beta_fast", "beta_slow"):
      if not used.get(name, 1):
        del used[name]
  return Rope(kind=kind, **used)


def _check_numbers(given: Mapping[str, Any], refuse: Refuse) -> None:
  """Refuses what is no number, or out of range."""
  for name in (*_NAMES, *_MSCALES):
    value = given.get(name)
    if value is None:
      continue
    if name == "truncate":
      if type(value) is not bool:
        refuse("rope_parameters", f"truncate = {value!r}: true or false")
      continue
    low = 1 if name == "rope_theta" else 0
    high = 1 if name == "partial_rotary_factor" else _MOST
    fits = type(value) in (int, float) and (
      low < value <= high or (name in _OR_ZERO and value == 0)
    )
    if not fits:
      refuse(
        "rope_parameters",
        f"{name} = {value!r}: a number above {low} and up to {number(high)} is "
        "needed",
      )
  low, high = (given.get(f"{x}_freq_factor") for x in ("low", "high"))
  if low is not None and high is not None and low >= high:
    refuse("rope_parameters", "low_freq_factor must be below high_freq_factor")


def _attention_factor(
  used: Mapping[str, Any], given: Mapping[str, Any]
) -> float:
  """Computes the factor of cosine and sine: 0.1 ln(factor) + 1 by default."""

  def grown(scale: float) -> float:
    factor = used["factor"]
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

  of_part, of_all = (given.get(name) for name in _MSCALES)
  return grown(of_part) / grown(of_all) if of_part and of_all else grown(1.0)
