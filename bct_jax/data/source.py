"""Prompts and train examples from files and data sets, each row checked.

Nothing is skipped: a row that does not fit is an error that names file and row.
TFDS is read without TensorFlow, and folders of Hugging Face's `datasets`
without that package.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from bct_jax.examples import Example, Message
from bct_jax.infra.files import digest, read_json

Row = tuple[str, Any]  # where it stands, for errors, and its fields
# Before the name of a data set in TFDS's own data folder.
TFDS = "tfds:"
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.parquet")


def read_prompts(path: Path) -> list[tuple[Message, ...]]:
  """Prompts from JSON lines.

  Each line is {"messages": [{"role", "content"}, ...]} or {"prompt": "text"},
  which stands for one user turn. An assistant message at the end is how the
  answer is made to begin.

  Raises:
    ValueError: naming file, line and what is wrong.
  """
  prompts = _checked(_json_lines(Path(path)), _prompt)
  if not prompts:
    raise ValueError(f"{path}: no prompts")
  return [messages for _, messages in prompts]


def read_examples(source: str, split: str) -> tuple[list[Example], str]:
  """Train examples from a file or a data set.

  A row has `messages`, of which the last one, an assistant's, is the
  completion. It may have an `id` (else its number is one) and a `weight`.
  What the two behaviors would say is not known of it.

  Args:
    source: JSON lines; Parquet or Arrow, a file or the folder that
      `save_to_disk` of Hugging Face's `datasets` wrote; the folder of a TFDS
      builder, or tfds:NAME, whose records are an array_record.
    split: of a data set; "train" is that of files which have no splits.

  Returns:
    All examples in order, and the hash of what was read of them.

  Raises:
    ValueError: naming the source, the row and what is wrong.
  """
  rows, recorded = _open(source, split)
  examples = [
    _example(number, *parts)
    for number, parts in enumerate(_checked(rows, _trained), 1)
  ]
  if not examples:
    raise ValueError(f"{source}: no examples")
  seen: dict[str, int] = {}
  for number, example in enumerate(examples, 1):
    if (first := seen.setdefault(example.id, number)) != number:
      raise ValueError(
        f"{source}: rows {first} and {number} have the same id {example.id!r}"
      )
  found = content_hash(examples)
  if recorded not in (None, found):
    raise ValueError(
      f"{source}: the split {split!r} is not what was exported: its content "
      f"has the hash {found[:16]}, metadata.json says {recorded[:16]}"
    )
  return examples, found


def content_hash(examples: Iterable[Example]) -> str:
  """Hash of all that training reads of some examples, in order."""
  return digest(
    [[e.id, list(e.messages), e.completion, e.weight] for e in examples]
  )


def _checked(
  rows: Iterable[Row], check: Callable[[Any], Any]
) -> list[tuple[Any, Any]]:
  """Rows with what `check` makes of each."""
  out = []
  for where, row in rows:
    try:
      out.append((row, check(row)))
    except ValueError as e:
      raise ValueError(f"{where}: {e}") from None
  return out


# --- rows ---------------------------------------------------------------------


def _prompt(row: Any) -> tuple[Message, ...]:
  if isinstance(row, dict) and isinstance(row.get("prompt"), str):
    return ({"role": "user", "content": row["prompt"]},)
  if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
    raise ValueError('needs "prompt": text or "messages": a list')
  return _messages(row["messages"])


def _trained(row: Any) -> tuple[Message, ...]:
  """The messages of a row to train on, with the completion at the end."""
  if not isinstance(row, dict):
    raise ValueError(f'needs {{"messages": [...]}}, found {row!r}')
  if not isinstance(row.get("messages"), list):
    raise ValueError(
      'needs "messages", a list of turns with a role and content; found the '
      f"fields {sorted(row)}"
    )
  messages = _messages(row["messages"])
  if messages[-1]["role"] != "assistant":
    raise ValueError(
      "the last message must be the assistant's: it is the completion"
    )
  if not messages[-1]["content"].strip():
    raise ValueError("the completion is empty: nothing to train on")
  name, weight = row.get("id"), row.get("weight")
  if name is not None and (not isinstance(name, str) or not name):
    raise ValueError(f'"id" must be text that is not empty, not {name!r}')
  if weight is not None and (
    isinstance(weight, bool)
    or not isinstance(weight, (int, float))
    or not 0 < weight < float("inf")
  ):
    raise ValueError(f'"weight" must be a number above 0, not {weight!r}')
  return messages


def _example(number: int, row: dict, messages: tuple[Message, ...]) -> Example:
  weight = row.get("weight")
  return Example(
    id=row.get("id") or f"file/{number}",
    messages=messages[:-1],
    completion=messages[-1]["content"],
    weight=1.0 if weight is None else float(weight),
  )


def _messages(messages: list) -> tuple[Message, ...]:
  for m in messages:
    if (
      not isinstance(m, dict)
      or m.get("role") not in ("system", "user", "assistant")
      or not isinstance(m.get("content"), str)
    ):
      raise ValueError(f"not a message with a role and content: {m!r}")
    m["content"].encode()  # a lone surrogate is no text; says where it is
  roles = [m["role"] for m in messages]
  turns = roles[1:] if roles[:1] == ["system"] else roles
  wanted = [("user", "assistant")[i % 2] for i in range(len(turns))]
  if not turns or turns != wanted:
    raise ValueError(
      "after a system message, if there is one, the user's and the assistant's "
      f"must take turns, the user's first; found {roles}"
    )
  return tuple({"role": m["role"], "content": m["content"]} for m in messages)


# --- files --------------------------------------------------------------------


def _open(source: str, split: str) -> tuple[Iterator[Row], str | None]:
  """Rows of a source, and the hash that the one who wrote it recorded."""
  path = Path(source)
  if source.startswith(TFDS) or (path / "features.json").is_file():
    return _tfds(source, split)
  if not path.exists():
    raise ValueError(
      f"{source} is missing; a data set of TFDS is named {TFDS}NAME"
    )
  if path.is_dir():
    files, found = _files(path, split), split
  else:
    files, found = [path], "train"
  if found != split:
    raise ValueError(f"{source}: a file has no split {split!r}, only 'train'")
  suffixes = {file.suffix for file in files}
  if suffixes <= {".jsonl", ".json"}:
    return _json_lines(path), None
  if suffixes <= {".arrow", ".parquet"}:
    return _tables(files), None
  raise ValueError(
    f"{source}: must end in .jsonl, .parquet or .arrow, not {sorted(suffixes)}"
  )


def _json_lines(path: Path) -> Iterator[Row]:
  try:
    text = path.read_bytes().decode("utf-8")
  except FileNotFoundError:
    raise ValueError(f"{path} is missing") from None
  except UnicodeDecodeError as e:
    raise ValueError(f"{path}: not UTF-8 at byte {e.start}") from None
  # Not splitlines: JSON may hold other ends of line (U+2028) in its strings.
  for number, line in enumerate(text.split("\n"), 1):
    where = f"{path}:{number}"
    if not line.strip():
      continue
    try:
      yield where, json.loads(line, parse_constant=_no_number)
    except json.JSONDecodeError as e:
      raise ValueError(f"{where}: not JSON: {e.msg}") from None
    except ValueError as e:
      raise ValueError(f"{where}: {e}") from None


def _no_number(name: str) -> None:
  raise ValueError(f"not JSON: {name} is no number of it")


def _files(folder: Path, split: str) -> list[Path]:
  """Files of a split in a folder, in order.

  Raises:
    ValueError: there is none; or they are of several splits, and none is it.
  """
  if (folder / "dataset_dict.json").is_file():
    splits = read_json(folder / "dataset_dict.json")["splits"]
    if split not in splits:
      raise ValueError(f"{folder}: no split {split!r}, only {splits}")
    folder = folder / split
  if (folder / "state.json").is_file():  # as save_to_disk writes it
    state = read_json(folder / "state.json")
    if state.get("_indices_data_files"):
      raise ValueError(
        f"{folder}: its rows are chosen by a list of indices, as old versions "
        "of datasets wrote it; save it again with a newer one"
      )
    return [folder / file["filename"] for file in state["_data_files"]]
  files = sorted(folder.glob("*.parquet"))
  named = {f: m[1] for f in files if (m := _SHARD.fullmatch(f.name))}
  if split in named.values():
    return [f for f in files if named.get(f) == split]
  if named or not files:
    splits = f"only {sorted(set(named.values()))}" if named else (
      "and neither what save_to_disk writes, nor .parquet files, nor a TFDS "
      "builder (dataset_info.json and features.json)"
    )  # fmt: skip
    raise ValueError(f"{folder}: no split {split!r}, {splits}")
  if split != "train":
    raise ValueError(f"{folder}: its files have no split {split!r}")
  return files


def _tables(files: Iterable[Path]) -> Iterator[Row]:
  for file in files:
    try:
      if file.suffix == ".parquet":
        table = pyarrow.parquet.read_table(file)
      else:
        with pyarrow.memory_map(str(file)) as mapped:
          table = pyarrow.ipc.open_stream(mapped).read_all()
    except (OSError, pyarrow.ArrowException) as e:
      raise ValueError(f"{file}: not readable: {e}") from None
    for number, row in enumerate(table.to_pylist(), 1):
      yield f"{file}, row {number}", _plain(row)


# --- TFDS ---------------------------------------------------------------------


def _tfds(source: str, split: str) -> tuple[Iterator[Row], str | None]:
  import tensorflow_datasets as tfds  # takes a second, and few need it

  try:
    if source.startswith(TFDS):
      name = source.removeprefix(TFDS)
      builder = tfds.builder(name, file_format="array_record")
    else:
      builder = tfds.builder_from_directory(source)
  except (OSError, ValueError) as e:
    first = str(e).strip().splitlines()[0]
    raise ValueError(f"{source}: no such TFDS data set: {first}") from None
  if not builder.is_prepared():
    raise ValueError(
      f"{source}: not in {builder.data_dir}; make it with `tfds build "
      f"{builder.name} --file_format=array_record`"
    )
  kept = builder.info.file_format
  if kept is None or kept.value != "array_record":
    raise ValueError(
      f"{source}: its records are a {kept and kept.value}, which only "
      "TensorFlow reads; make it again with --file_format=array_record"
    )
  if split.split("[")[0] not in builder.info.splits:
    splits = sorted(builder.info.splits)
    raise ValueError(f"{source}: no split {split!r}, only {splits}")
  records = builder.as_data_source(split)  # pyright: ignore
  rows = (
    (f"{source}, row {number}", _plain(row))
    for number, row in enumerate(records, 1)
  )
  metadata = builder.info.metadata or {}
  return rows, metadata.get("content_hash", {}).get(split)


def _plain(value: Any) -> Any:
  """Text for bytes, numbers for arrays, and a list of dicts for the dict of
  lists that TFDS and old versions of `datasets` make of one."""
  if isinstance(value, bytes):
    return value.decode("utf-8")
  if hasattr(value, "tolist"):
    return _plain(value.tolist())
  if isinstance(value, (list, tuple)):
    return [_plain(v) for v in value]
  if not isinstance(value, dict):
    return value
  out = {k: _plain(v) for k, v in value.items()}
  turns = out.get("messages")
  if isinstance(turns, dict) and all(
    isinstance(v, list) for v in turns.values()
  ):
    names = list(turns)
    columns = zip(*turns.values(), strict=True)
    out["messages"] = [dict(zip(names, v, strict=True)) for v in columns]
  return out
