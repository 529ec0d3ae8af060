"""Estimates the time of a run's parts on a chip, from shapes and peaks.

Products are taken to reach TRAIN_SHARE of the peak (the model FLOPs
utilization, MFU, of Chowdhery et al. 2022, arXiv 2204.02311), and decoding to
read its weights and its cache at DECODE_SHARE of the memory's bandwidth. Both
are within what well-laid-out runs of such sizes are reported to reach, and
neither was measured for this run.
"""

import dataclasses
import math
from collections.abc import Mapping

from bct_jax.config import ConfigError, choose
from bct_jax.config.chips import CHIPS, Chip

TRAIN_SHARE = 0.4
DECODE_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Describes how completions are drawn.

  Attributes:
    completions: how many.
    prompt_tokens: of each prompt, in the mean.
    new_tokens: of each completion, at most; all are taken to be so long.
    batch: completions that are drawn at a time.
  """

  completions: int
  prompt_tokens: float
  new_tokens: int
  batch: int


@dataclasses.dataclass(frozen=True)
class Model:
  """Says what the time of a model's products and reads follows from.

  Attributes:
    train_flops: of a token in training, forward and backward.
    forward_flops: of a token that is only read.
    decode_bytes: that a device reads for a decode step of a whole batch, with
      those that it writes, where they are as many.
    devices: of the mesh.
  """

  train_flops: float
  forward_flops: float
  decode_bytes: int
  devices: int


def train_seconds(model: Model, tokens: float, chip: Chip) -> float:
  """Estimates the time of updates on `tokens` positions in all."""
  return tokens * model.train_flops / _flops_per_second(model, chip)


def sample_seconds(model: Model, sampling: Sampling, chip: Chip) -> float:
  """Estimates the time of drawing completions.

  Prompts are read at the speed of products. Slots that end are filled again, so
  decode steps are completions x new tokens / batch, and at least new tokens.
  """
  if not sampling.completions:
    return 0.0
  read = sampling.completions * sampling.prompt_tokens * model.forward_flops
  rounds = max(1.0, sampling.completions / sampling.batch)
  step = model.decode_bytes / (DECODE_SHARE * chip.bandwidth)
  return (
    read / _flops_per_second(model, chip) + rounds * sampling.new_tokens * step
  )


def _flops_per_second(model: Model, chip: Chip) -> float:
  return TRAIN_SHARE * chip.flops * model.devices


def parse_prices(text: str, chip: str | None) -> dict[str, float]:
  """Reads --price_per_chip_hour.

  Args:
    text: a number, for the chip of the config, or v5e=1.2,h100=2.5.
    chip: of the config.

  Returns:
    The price of an hour by chip, in whatever currency.

  Raises:
    ConfigError: no number above 0, an unknown chip, or a number alone where the
      config names no chip.
  """
  flag = f"--price_per_chip_hour={text}"
  prices: dict[str, float] = {}
  for part in text.split(","):
    name, equals, value = part.rpartition("=")
    if not equals and chip is None:
      raise ConfigError(f"{flag}: set mesh.chip, or write CHIP=PRICE")
    name = name.strip() if equals else str(chip)
    choose(name, CHIPS, "--price_per_chip_hour")
    try:
      prices[name] = float(value)
    except ValueError:
      prices[name] = math.nan
    if not 0 < prices[name] < math.inf:
      raise ConfigError(f"{flag}: {value!r} is no price above 0")
  return prices


def cheapest(hours: Mapping[str, float], prices: Mapping[str, float]) -> str:
  """Returns the chip whose hours cost least."""
  return min(prices, key=lambda chip: hours[chip] * prices[chip])
