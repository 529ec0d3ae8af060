"""Makes the setting of a config, with what it reads from files of the user's.

`settings/` reads no data. So the rows of the setting `file` are read here and
handed to it.
"""

import dataclasses
import difflib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bct_jax.config import SettingConfig
from bct_jax.data.rows import read_dialogue, read_prompt
from bct_jax.data.source import TFDS, list_splits, read_rows
from bct_jax.examples import Example, Setting
from bct_jax.infra.progress import log_line
from bct_jax.infra.user_code import is_user_code, load_user_code
from bct_jax.settings import (
  check_options,
  make_setting,
  make_user_setting,
)
from bct_jax.settings.graders import make_grader
from bct_jax.settings.own_files import (
  SPLITS,
  FileOptions,
  FileRow,
  FileSetting,
)
from bct_jax.settings.probes.capability import Probe, make_probe
from bct_jax.settings.probes.procedures import Item

FILE = "file"  # the name of the setting, and of its own probe
_SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow")
# Fields of a row with a meaning of their own, and their types.
_TEXTS = ("initial", "alternate", "completion", "cue", "entity")
# Other fields are for graders. One as near as this to a name above is a typo.
_TYPO = 0.85
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
    return Probe(FILE, tuple(_probe_item(*row) for row in self.probe_rows))


def open_setting(config: SettingConfig) -> OpenSetting:
  """Makes a setting, and reads its files if it has any.

  Raises:
    ValueError: an option, a file or a row is wrong; the message names it.
  """
  out = read_setting(config)
  if out.faults:
    rest = len(out.faults) - _SHOWN
    more = [f"and {rest} more: --mode=check_setting lists them"] * (rest > 0)
    raise ValueError("\n".join([*out.faults[:_SHOWN], *more]))
  return out


def read_setting(config: SettingConfig) -> OpenSetting:
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
  grader = make_grader(options.grader, Path() if is_tfds else folder)
  rows, faults, digests = {}, [], _digest_sources(grader.sources)
  for split, source in _sources(options.folder if is_tfds else folder).items():
    found = list(read_rows(*source))
    digests[split] = [_digest(row) for _, row in found]
    rows[split], wrong = _read_split(split, found)
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
    unit = "line" if name.endswith(".py") else "row"
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


def _read_split(
  split: str, rows: Sequence[tuple[str, Any]]
) -> tuple[list[Any], list[str]]:
  """Reads the rows of a split.

  Returns:
    What the rows that are right hold, and a line for each that is wrong. Rows
    of the probe stay as they are.
  """
  out, faults = [], []
  place_of_id: dict[str, str] = {}
  for number, (where, row) in enumerate(rows, 1):
    try:
      if split == "probe":
        _probe_item(where, row)
        out.append((where, row))
        continue
      read = _read_row(split, number, where, row)
      if place_of_id.setdefault(read.id, where) != where:
        raise ValueError(f"the id {read.id!r} is also {place_of_id[read.id]}'s")
      out.append(read)
    except ValueError as e:
      text = str(e)
      faults.append(text if text.startswith(where) else f"{where}: {text}")
  return out, faults


def _read_row(split: str, number: int, where: str, row: Any) -> FileRow:
  """Reads a row of a split of examples.

  Raises:
    ValueError: it is wrong; says why.
  """
  if not isinstance(row, dict):
    raise ValueError(f"must be an object with fields, not {row!r:.60}")
  own = {k: v for k, v in json.loads(json.dumps(row, default=str)).items()
         if v is not None and v != ""}  # fmt: skip
  _check_fields(own)
  example = _dialogue(own)
  completion = example.completion
  if split == "eval" and completion:
    raise ValueError(
      'an eval row has no completion: it is never trained on; give "initial" '
      'and "alternate" as what the two behaviors say'
    )
  if split in ("eval", "heldout") and own.get("weight", 1) != 1:
    raise ValueError(f'"weight": {split} rows are never trained on')
  if split in ("install", "train") and not completion:
    raise ValueError(
      "no completion: the last message must be the assistant's, or give "
      '"completion"'
    )
  if split in ("train", "heldout"):
    for name in ("initial", "alternate"):
      if own.setdefault(name, completion) != completion:
        raise ValueError(
          f'"{name}": on {split} rows both behaviors agree on the completion; '
          "leave it out"
        )
  if split == "install":
    own.setdefault("initial", completion)
    if "alternate" in own:
      own.setdefault("diverges", own["alternate"] != completion)
    elif own.get("diverges") is False:
      own["alternate"] = completion
  own = {k: v for k, v in own.items() if v != ""}
  name = example.id.removeprefix(f"{split}/") or str(number)
  fields = {
    **own,
    "id": name,
    **({"completion": completion} if completion else {}),
  }
  return FileRow(
    where, name, example.messages, completion, fields, example.weight,
    example.thought,
  )  # fmt: skip


def _dialogue(own: Mapping[str, Any]) -> Example:
  """Reads prompt and completion of a row, in one of three forms.

  `messages`, of which the last may be the completion; or `prompt`, a text or
  messages, with `completion` where there is one.
  """
  row = dict(own)
  completion = row.pop("completion", None)
  if isinstance(row.get("prompt"), list):
    row["messages"] = row.pop("prompt")
  if "messages" in row and "prompt" in row:
    raise ValueError('"prompt" and "messages": one of them is needed, not both')
  if isinstance(row.get("prompt"), str):
    row["messages"] = [{"role": "user", "content": row.pop("prompt")}]
  if not isinstance(row.get("messages"), list) or not row["messages"]:
    raise ValueError('needs "messages", a list of turns, or "prompt": text')
  last = row["messages"][-1]
  answered = isinstance(last, dict) and last.get("role") == "assistant"
  if answered and completion is not None:
    raise ValueError('"completion": the last message is one already')
  if completion is not None:
    answer = {"role": "assistant", "content": completion}
    row["messages"] = [*row["messages"], answer]
  if answered or completion is not None:
    (example,) = read_dialogue(row, "last", False)
    return example
  messages = read_prompt(row)
  return Example(id=str(row.get("id", "")), messages=messages)


def _check_fields(own: Mapping[str, Any]) -> None:
  """Raises ValueError for a field with a meaning that has a wrong type."""
  for name in _TEXTS:
    if name in own and not isinstance(own[name], str):
      raise ValueError(f'"{name}" must be text, not {own[name]!r:.60}')
  entities = own.get("entities", [])
  if not isinstance(entities, list) or not all(
    isinstance(e, str) and e for e in entities
  ):
    raise ValueError(
      f'"entities" must be a list of texts, not {entities!r:.60}'
    )
  if not isinstance(own.get("diverges", True), bool):
    raise ValueError(
      f'"diverges" must be true or false, not {own["diverges"]!r}'
    )
  dose = own.get("dose", 0)
  if isinstance(dose, bool) or not isinstance(dose, (int, float)):
    raise ValueError(f'"dose" must be a number, not {dose!r:.60}')
  known = ("messages", "prompt", "id", *_TEXTS, "entities", "diverges", "dose")
  for name in sorted(own.keys() - {*known}):
    absent = [k for k in known if k not in own]
    if near := difflib.get_close_matches(name, absent, 1, _TYPO):
      raise ValueError(f'"{name}": did you mean "{near[0]}"?')


def _probe_item(where: str, row: Any) -> Item:
  """Reads a question of the probe.

  Raises:
    ValueError: it is wrong; the message has the place.
  """
  try:
    if not isinstance(row, dict):
      raise ValueError(f"must be an object with fields, not {row!r:.60}")
    messages = _dialogue(row).messages
    if len(messages) != 1 or messages[0]["role"] != "user":
      raise ValueError("a probe asks one user turn, without a system message")
    right, wrong = (_words(row, name) for name in ("right", "wrong"))
    if not right:
      raise ValueError('"right": missing; the answers of which one is enough')
    return Item(messages[0]["content"], right, wrong)
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from None


def _words(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
  """Reads a text or a list of texts."""
  value = row.get(name) or []
  value = [value] if isinstance(value, str) else value
  if not isinstance(value, list) or not all(
    isinstance(v, str) and any(c.isalnum() for c in v) for v in value
  ):
    raise ValueError(f'"{name}" must be text or a list of texts, not {value!r}')
  return tuple(value)


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
