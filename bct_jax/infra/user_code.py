"""Loads a function or a class from a Python file of the user's."""

import dataclasses
import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any

PREFIX = "python:"  # as in "python:grader.py:grade"


@dataclasses.dataclass(frozen=True)
class UserCode:
  """Holds what a file of the user's defines.

  Attributes:
    name: as the config has it.
    value: the function or class.
    sources: path below the file's folder -> text, of the file and of the
      modules in that folder that it imports.
  """

  name: str
  value: Any
  sources: dict[str, str]


# Path and content -> the module, and its sources. A file is run once.
_modules: dict[tuple[Path, str], tuple[Any, dict[str, str]]] = {}


def is_user_code(name: str) -> bool:
  """Tells whether a name of the config is that of the user's own code."""
  return name.startswith(PREFIX)


def load_user_code(name: str, where: str, folder: Path | None = None) -> Any:
  """Loads what "python:FILE.py:NAME" names.

  Args:
    name: a relative FILE is sought in `folder`, then in the current directory.
    where: the field of the config, for errors.
    folder: where to look first.

  Raises:
    ValueError: there is no such file or name, or the file fails to run. The
      message names the file, and the line that failed.
  """
  file, colon, attribute = name.removeprefix(PREFIX).rpartition(":")
  if not (is_user_code(name) and colon and file and attribute.isidentifier()):
    raise ValueError(f"{where} = {name!r}: must be python:FILE.py:NAME")
  path = Path(file).expanduser()
  tried = [folder / path] if folder is not None else []
  tried.append(Path.cwd() / path)
  found = next((p.resolve() for p in tried if p.is_file()), None)
  if found is None:
    places = " or ".join(dict.fromkeys(str(p.parent) for p in tried))
    raise ValueError(f"{where} = {name!r}: no file {path.name} in {places}")
  module, sources = _load(found, where)
  if not hasattr(module, attribute):
    raise ValueError(f"{where} = {name!r}: {found} defines no {attribute!r}")
  return UserCode(name, getattr(module, attribute), sources)


def _load(path: Path, where: str) -> tuple[Any, dict[str, str]]:
  """Runs a file as a module; see `load_user_code`."""
  content = hashlib.sha256(path.read_bytes()).hexdigest()
  key = path, content
  if key not in _modules:
    name = f"user_{path.stem}_{content[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
      raise ValueError(f"{where}: {path} must end in .py")
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.modules[name] = module  # where dataclasses look for their module
    sys.path.insert(0, str(path.parent))
    try:
      spec.loader.exec_module(module)
    except Exception as e:
      del sys.modules[name]
      raise ValueError(f"{where}: {describe_error(e, path)}") from e
    finally:
      sys.path.remove(str(path.parent))
    _modules[key] = module, _sources(path, set(sys.modules) - before)
  return _modules[key]


def _sources(path: Path, imported: set[str]) -> dict[str, str]:
  """Reads the file, and the modules below its folder that it imported."""
  files = {path}
  for name in imported:
    file = getattr(sys.modules[name], "__file__", None)
    if file and Path(file).resolve().is_relative_to(path.parent):
      files.add(Path(file).resolve())
  return {
    p.relative_to(path.parent).as_posix(): p.read_text("utf-8")
    for p in sorted(files)
  }


def describe_error(error: Exception, path: Path | None = None) -> str:
  """Describes an error of the user's code, with the file and line it is at.

  Args:
    error: what was raised.
    path: the file whose line to name; None is where the error was raised.
  """
  if isinstance(error, SyntaxError) and error.filename:
    return f"{error.filename}:{error.lineno}: SyntaxError: {error.msg}"
  frames = traceback.extract_tb(error.__traceback__)
  own = [f for f in frames if path is None or f.filename == str(path)]
  frame = (own or frames)[-1]
  text = f"{type(error).__name__}: {error}"
  return f"{frame.filename}:{frame.lineno}: {text}"
