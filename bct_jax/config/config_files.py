"""Finds config files below the current directory, else among those shipped.

A checkout has the shipped ones in `configs/`. A wheel carries that folder as
`bct_jax/shipped/configs`. There it cannot be imported, and so hides no package
of that name, until a command asks for a config.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bct_jax.config.types import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder() -> Path:
  """Returns the folder that has the shipped `configs/` in it."""
  of_wheel = _PACKAGE / "shipped"
  return of_wheel if of_wheel.is_dir() else _PACKAGE.parent


def find_config(name: str, flag: str) -> str:
  """Finds a config file and lets it import others as `configs.NAME`.

  Args:
    name: a path, maybe with a colon and an argument of its `get_config`. A
      relative one that begins with `configs/` may be that of a shipped file.
    flag: the command-line flag that names the file, for the error.

  Returns:
    The name as it is where there is such a file, else with the path of the
    shipped one.

  Raises:
    ConfigError: there is no such file; the message says where it was sought.
  """
  file, colon, argument = name.partition(":")
  path, shipped, places = Path(file), shipped_folder(), [Path.cwd()]
  if not path.is_file() and path.parts[:1] == ("configs",):
    path = shipped / file
    places.append(shipped)
    name = f"{path}{colon}{argument}"
  if not path.is_file():
    where = " or ".join(dict.fromkeys(map(str, places)))
    where = "" if Path(file).is_absolute() else f" in {where}"
    raise ConfigError(f"--{flag}={file}: there is no such file{where}")
  # What a shipped file imports is shipped, too; another file may have a folder
  # `configs/` of its own beside it, which comes first.
  of_ours = path.resolve().is_relative_to(shipped / "configs")
  _add_to_path(shipped, first=of_ours)
  return name


def config_values(config: Any) -> dict[str, Any]:
  """Returns a ConfigDict as nested dicts, arms in the order they were set.

  ConfigDict itself lists names by the alphabet.
  """
  raw = config.to_dict()
  arms = raw.get("arms")
  if isinstance(arms, dict):
    order = vars(config["arms"])["_fields"]
    raw["arms"] = {name: arms[name] for name in order}
  return raw


def find_in_flags(argv: Sequence[str], flag: str) -> list[str]:
  """Returns a command line whose config file is found; see `find_config`.

  Args:
    argv: the command line, which may lack the flag.
    flag: the one that names a config file.
  """
  out = list(argv)
  for i, word in enumerate(out):
    name, equals, value = word.partition("=")
    if name in (f"--{flag}", f"-{flag}"):
      if equals:
        out[i] = f"{name}={find_config(value, flag)}"
      elif i + 1 < len(out):
        out[i + 1] = find_config(out[i + 1], flag)
  return out


def _add_to_path(folder: Path, first: bool) -> None:
  """Adds a folder to the places that Python imports from, once."""
  if str(folder) not in sys.path:
    sys.path.insert(0 if first else len(sys.path), str(folder))
