"""Reads the rows of the setting `file`: examples of its splits, and probes."""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from bct_jax.data.rows import Turns, read_dialogue, read_prompt
from bct_jax.examples import Example
from bct_jax.settings.own_files import FileOptions, FileRow
from bct_jax.settings.probes.procedures import Item

# Fields of a row with a meaning of their own, and their types.
_TEXTS = ("initial", "alternate", "completion", "cue", "entity")
# Other fields are for graders. One as near as this to a name above is a typo.
_TYPO = 0.85


def read_split(
  split: str, rows: Sequence[tuple[str, Any]], options: FileOptions
) -> tuple[list[Any], list[str]]:
  """Reads the rows of a split.

  Args:
    split: a name in SPLITS, or "probe".
    rows: each with its place, for errors.
    options: of the setting.

  Returns:
    What the rows that are right hold, and a line for each that is wrong. Rows
    of the probe stay as they are.
  """
  out, faults = [], []
  place_of_id: dict[str, str] = {}
  for number, (where, row) in enumerate(rows, 1):
    try:
      if split == "probe":
        read_probe_item(where, row)
        out.append((where, row))
        continue
      for read in _read_row(split, number, where, row, options):
        if place_of_id.setdefault(read.id, where) != where:
          raise ValueError(
            f"the id {read.id!r} is also {place_of_id[read.id]}'s"
          )
        out.append(read)
    except ValueError as e:
      text = str(e)
      faults.append(text if text.startswith(where) else f"{where}: {text}")
  return out, faults


def _read_row(
  split: str, number: int, where: str, row: Any, options: FileOptions
) -> list[FileRow]:
  """Reads a row of a split: an example, or one for each trained turn.

  Raises:
    ValueError: it is wrong; says why.
  """
  if not isinstance(row, dict):
    raise ValueError(f"must be an object with fields, not {row!r:.60}")
  own = {k: v for k, v in json.loads(json.dumps(row, default=str)).items()
         if v is not None and v != ""}  # fmt: skip
  _check_fields(own)
  trains = split in ("install", "train")
  examples = _dialogue(own, options.turns if trains else "last",
                       options.thoughts)  # fmt: skip
  if len(examples) > 1:
    said = [n for n in ("initial", "alternate", "diverges") if n in own]
    if said or not trains:
      raise ValueError(
        f"{len(examples)} of its answers are trained, "
        + (f"and {said} say of one" if said else f"{split} rows have one")
        + "; give each a row"
      )
  many = len(examples) > 1
  return [
    FileRow(
      where=where,
      id=name,
      messages=example.messages,
      completion=example.completion,
      row={**_complete(split, own, example.completion), "id": name},
      weight=example.weight,
      thought=example.thought,
    )
    for turn, example in enumerate(examples, 1)
    for name in [
      example.id.removeprefix(f"{split}/")
      or (f"{number}/{turn}" if many else str(number))
    ]
  ]


def _complete(
  split: str, own: Mapping[str, Any], completion: str
) -> dict[str, Any]:
  """Adds to the fields of a row what follows from its completion.

  Raises:
    ValueError: a field does not go with the split, or with the completion.
  """
  own = dict(own)
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
  own |= {"completion": completion} if completion else {}
  return {k: v for k, v in own.items() if v != ""}


def _dialogue(
  own: Mapping[str, Any], turns: Turns = "last", thoughts: bool = False
) -> list[Example]:
  """Reads prompt and completion of a row, in one of three forms.

  `messages`, of which the last may be the completion; or `prompt`, a text or
  messages, with `completion` where there is one. `turns` and `thoughts` are as
  in `read_dialogue`.
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
    return read_dialogue(row, turns, thoughts)
  messages = read_prompt(row)
  return [Example(id=str(row.get("id", "")), messages=messages)]


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


def read_probe_item(where: str, row: Any) -> Item:
  """Reads a question of the probe.

  Raises:
    ValueError: it is wrong; the message has the place.
  """
  try:
    if not isinstance(row, dict):
      raise ValueError(f"must be an object with fields, not {row!r:.60}")
    messages = _dialogue(row)[0].messages
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
