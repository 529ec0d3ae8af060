"""Makes the setting of a config, with what it reads from files of the user's.

`settings/` reads no data. So the rows of the setting `file` are read here and
handed to it.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bct_jax.config import TURNS, SettingConfig, choose
from bct_jax.data.setting_rows import read_probe_item, read_split
from bct_jax.data.source import TFDS, list_splits, read_rows
from bct_jax.examples import Setting
from bct_jax.infra.progress import log_line
from bct_jax.infra.user_code import is_user_code, load_user_code
from bct_jax.settings import (
  check_options,
  make_setting,
  make_user_setting,
)
from bct_jax.settings.graders import make_grader
from bct_jax.settings.graders.judge import Judge
from bct_jax.settings.own_files import SPLITS, FileOptions, FileSetting
from bct_jax.settings.probes.capability import Probe, make_probe

FILE = "file"  # the name of the setting, and of its own probe
_SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow")
_SHOWN = 5  # wrong rows that one error names


@dataclasses.dataclass(frozen=True)
class OpenSetting:
  """Holds a setting with the files that it was made from.

  Attributes:
    setting: of the config.
    files: name -> a digest of each row, or of each line of code. Empty for the
      settings that come with bct_jax.
    probe_rows: of the file `probe`; None without one.
    faults: what is wrong with rows, a line for each.
  """

  setting: Setting
  files: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  probe_rows: Sequence[tuple[str, Any]] | None = None
  faults: Sequence[str] = ()

  def make_probe(self, name: str) -> Probe:
    """Makes the probe of a name; "file" is that of the setting's folder.

    Raises:
      ValueError: there is no such probe.
    """
    if name != FILE:
      if self.probe_rows is not None:
        log_line(f"the file `probe` is not asked: eval.probe = {name!r}")
      return make_probe(name)
    if self.probe_rows is None:
      raise ValueError(
        "eval.probe = 'file': the setting has no probe.jsonl; write it, or "
        "choose a probe that is built in, such as 'facts'"
      )
    return Probe(FILE, tuple(read_probe_item(*row) for row in self.probe_rows))


def open_setting(
  config: SettingConfig, judge: Judge | None = None
) -> OpenSetting:
  """Makes a setting, and reads its files if it has any.

  Args:
    config: of the setting.
    judge: for the grader of that kind; None where nothing is to be graded.

  Raises:
    ValueError: an option, a file or a row is wrong; the message names it.
  """
  out = read_setting(config, judge)
  if out.faults:
    rest = len(out.faults) - _SHOWN
    more = [f"and {rest} more: --mode=check_setting lists them"] * (rest > 0)
    raise ValueError("\n".join([*out.faults[:_SHOWN], *more]))
  return out


def read_setting(
  config: SettingConfig, judge: Judge | None = None
) -> OpenSetting:
  """Makes a setting as `open_setting` does, but collects wrong rows.

  Raises:
    ValueError: an option is wrong, or a file cannot be read at all.
  """
  if is_user_code(config.name):
    code = load_user_code(config.name, "setting.name")
    setting = make_user_setting(code, config.options)
    return OpenSetting(setting, _digest_sources(code.sources))
  if config.name != FILE:
    return OpenSetting(make_setting(config.name, config.options))
  options = make_options(config.options)
  is_tfds = options.folder.startswith(TFDS)
  folder = Path(options.folder).expanduser()
  if not is_tfds and not folder.is_dir():
    raise ValueError(
      f"setting.options.folder = {options.folder!r}: no such folder"
      + ("" if folder.is_absolute() else f" in {Path.cwd()}")
    )
  place = Path() if is_tfds else folder
  grader = make_grader(options.grader, place, judge=judge)
  rows, faults, digests = {}, [], _digest_sources(grader.sources)
  for split, source in _sources(options.folder if is_tfds else folder).items():
    found = list(read_rows(*source))
    digests[split] = [_digest(row) for _, row in found]
    rows[split], wrong = read_split(split, found, options)
    faults += wrong or ([] if found else [f"{source[0]}: no rows"])
  probe_rows = rows.pop("probe", None)
  if not rows:
    raise ValueError(
      f"{options.folder}: has none of "
      + ", ".join(f"{split}.jsonl" for split in SPLITS)
    )
  setting = FileSetting(options, rows, grader)
  faults += [] if faults else setting.find_faults()
  return OpenSetting(setting, digests, probe_rows, faults)


def make_options(values: Mapping[str, Any]) -> FileOptions:
  """Makes the options of the setting `file`.

  Raises:
    ValueError: an option is unknown, missing or of the wrong type.
  """
  check_options(FILE, FileOptions, values)
  options = FileOptions(**values)
  choose(options.turns, TURNS, "setting.options.turns")
  if not options.folder.strip():
    raise ValueError(
      "setting.options.folder: missing; the folder of train.jsonl, eval.jsonl "
      "and the like"
    )
  return options


def describe_changes(
  before: Mapping[str, Sequence[str]], now: Mapping[str, Sequence[str]]
) -> list[str]:
  """Describes how the files of a setting differ from those of a run.

  Args:
    before, now: `OpenSetting.files`.

  Returns:
    A line for each file that differs, with the first row or line that does.
  """
  out = []
  for name in sorted({*before, *now}):
    then, here = list(before.get(name, [])), list(now.get(name, []))
    if then == here:
      continue
    if not then or not here:
      out.append(f"{name} {'is new' if here else 'is gone'}")
      continue
    same = len(os.path.commonprefix([then, here]))
    unit = "row" if name in (*SPLITS, "probe") else "line"
    count = f", {len(then)} {unit}s before, {len(here)} now"
    out.append(f"{name} differs from {unit} {same + 1} on{count}")
  return out


def _sources(folder: Path | str) -> dict[str, tuple[str, str]]:
  """Finds what holds each split.

  Returns:
    Source and split, as `read_rows` takes them, by the setting's name of it.

  Raises:
    ValueError: two files have the same split.
  """
  names = (*SPLITS, "probe")
  known = list_splits(str(folder))
  of_set = {name: (str(folder), name) for name in names if name in known}
  if of_set or isinstance(folder, str):
    return of_set
  out = {}
  for name in names:
    paths = [p for s in _SUFFIXES if (p := folder / f"{name}{s}").is_file()]
    paths += [p for p in [folder / name] if p.is_dir()]
    if len(paths) > 1:
      raise ValueError(f"{folder}: {paths[0].name} and {paths[1].name} are two")
    if paths:
      out[name] = str(paths[0]), "train"
  return out


def _digest_sources(sources: Mapping[str, str]) -> dict[str, Sequence[str]]:
  """Hashes the lines of code files."""
  return {
    name: [_digest(line) for line in text.split("\n")]
    for name, text in sources.items()
  }


def _digest(value: Any) -> str:
  """Shortens the SHA-256 of a row to 12 hex digits."""
  text = json.dumps(value, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
