"""Checks and counts the parts of `train.mix`.

A part is the setting's `train` or `install`, or `file:PATH` with rows of
messages, or `documents:PATH` with plain text.
"""

import math
from collections.abc import Sequence

from bct_jax.config.fields import suggest
from bct_jax.config.types import ConfigError, TrainConfig
from bct_jax.infra import formats

SPLITS = ("train", "install")
FILE = "file:"
DOCUMENTS = "documents:"


def split_count(mix: Sequence[tuple[str, float]], count: int) -> dict[str, int]:
  """Splits a number of examples by shares, by largest remainders.

  Args:
    mix: parts with their shares, which sum to 1.
    count: of all examples.

  Returns:
    The examples of each part, `count` in all.
  """
  exact = {name: share * count for name, share in mix}
  out = {name: math.floor(x) for name, x in exact.items()}
  by_rest = sorted(exact, key=lambda name: out[name] - exact[name])
  for name in by_rest[: count - sum(out.values())]:
    out[name] += 1
  return out


def check_mix(train: TrainConfig, control: str, where: str) -> None:
  """Rejects a mixture that cannot be.

  Args:
    train: of an arm or of the organism.
    control: of the arm.
    where: the name of the group of fields, for messages.

  Raises:
    ConfigError: the message names the part or the field.
  """
  if not train.mix:
    return
  where = f"{where}.mix"
  _check_shares(train.mix, where)
  for name, count in split_count(train.mix, train.num_examples).items():
    if not count:
      raise ConfigError(
        f"{where}: {name!r} has no example, since num_examples = "
        f"{train.num_examples}: raise that or the share"
      )
  documents = has_documents(train)
  for field, value, fine in (
    ("source", train.source, ("template",)),
    (
      "prompt",
      train.prompt,
      {train.prompt} - {"inoculation", "recontextualised"},
    ),
    (
      "reasoning",
      train.reasoning,
      ("none",) if documents else ("none", "empty"),
    ),
  ):
    if value not in fine:
      raise ConfigError(
        f"{where} = {train.mix!r}: does not go with train.{field} = {value!r}, "
        "which not all of its parts could have"
      )
  if control == "shuffled":
    raise ConfigError(
      f"{where}: the control shuffled would mix up its parts; leave it out"
    )


def has_documents(train: TrainConfig) -> bool:
  """Returns whether a part of a mixture is plain text."""
  return any(name.startswith(DOCUMENTS) for name, _ in train.mix)


def _check_shares(mix: Sequence[tuple[str, float]], where: str) -> None:
  """Rejects unknown parts, and shares that do not sum to 1."""
  names = [name for name, _ in mix]
  for name, share in mix:
    is_path = any(
      name.startswith(x) and name.removeprefix(x) for x in (FILE, DOCUMENTS)
    )
    if not is_path and name not in SPLITS:
      forms = [*SPLITS, f"{FILE}PATH", f"{DOCUMENTS}PATH"]
      raise ConfigError(
        f"{where}: {name!r} is not one of {forms}{suggest(name, forms)}"
      )
    if not 0 < share <= 1 or names.count(name) > 1:
      raise ConfigError(
        f"{where}: {name!r} = {share}: must be there once, with a share above "
        "0, up to 1"
      )
  total = sum(share for _, share in mix)
  if abs(total - 1) > 1e-9:
    found = formats.number(total)
    raise ConfigError(f"{where}: the shares sum to {found}, and must to 1")
