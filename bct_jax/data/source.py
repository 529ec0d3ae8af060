"""Reads prompts and train examples from files and data sets.

Every row is checked and none is skipped: a row that does not fit is an error
that names file and row. TFDS is read without TensorFlow, and folders of Hugging
Face's `datasets` without that package.
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

Row = tuple[str, Any]  # its place, for errors, and its fields
# Stands before the name of a data set in TFDS's own data folder.
TFDS = "tfds:"
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.parquet")


def read_prompts(path: Path) -> list[tuple[Message, ...]]:
  """Reads prompts from JSON lines.

  Each line is {"messages": [{"role", "content"}, ...]} or {"prompt": "text"},
  which stands for one user turn. An assistant message at the end is what the
  answer is made to begin with.

  Raises:
    ValueError: a line is wrong; names file, line and reason.
  """
  prompts = _check_rows(_json_lines(Path(path)), _prompt)
  if not prompts:
    raise ValueError(f"{path}: no prompts")
  return [messages for _, messages in prompts]


def read_examples(source: str, split: str) -> tuple[list[Example], str]:
  """Reads train examples from a file or a data set.

  A row has `messages`, of which the last one, an assistant's, is the
  completion. It may have an `id` (else its number becomes one) and a `weight`.
  What the two behaviors would say is not known of such examples.

  Args:
    source: JSON lines; Parquet or Arrow, a file or the folder that
      `save_to_disk` of Hugging Face's `datasets` wrote; the folder of a TFDS
      builder, or tfds:NAME, whose records are an array_record.
    split: of a data set; "train" is that of files which have no splits.

  Returns:
    All examples in order, and their `content_hash`.

  Raises:
    ValueError: a row or the source is wrong; names source, row and reason.
  """
  rows, recorded_hash = _open(source, split)
  examples = [
    _example(number, *parts)
    for number, parts in enumerate(_check_rows(rows, _dialogue), 1)
  ]
  if not examples:
    raise ValueError(f"{source}: no examples")
  number_of_id: dict[str, int] = {}
  for number, example in enumerate(examples, 1):
    if (first := number_of_id.setdefault(example.id, number)) != number:
      raise ValueError(
        f"{source}: rows {first} and {number} have the same id {example.id!r}"
      )
  content = content_hash(examples)
  if recorded_hash not in (None, content):
    raise ValueError(
      f"{source}: the split {split!r} is not what was exported: its content "
      f"has the hash {content[:16]}, metadata.json says {recorded_hash[:16]}"
    )
  return examples, content


def content_hash(examples: Iterable[Example]) -> str:
  """Hashes all that training reads of some examples, in their order."""
  return digest(
    [[e.id, list(e.messages), e.completion, e.weight] for e in examples]
  )


def _check_rows(
  rows: Iterable[Row], check: Callable[[Any], Any]
) -> list[tuple[Any, Any]]:
  """Pairs each row with what `check` makes of it.

  Raises:
    ValueError: `check` refused a row; names its place.
  """
  out = []
  for where, row in rows:
    try:
      out.append((row, check(row)))
    except ValueError as e:
      raise ValueError(f"{where}: {e}") from None
  return out


# --- rows ---------------------------------------------------------------------


def _prompt(row: Any) -> tuple[Message, ...]:
  """Returns the messages of a row that is a prompt; raises unless it is one."""
  if isinstance(row, dict) and isinstance(row.get("prompt"), str):
    return ({"role": "user", "content": row["prompt"]},)
  if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
    raise ValueError('needs "prompt": text or "messages": a list')
  return _messages(row["messages"])


def _dialogue(row: Any) -> tuple[Message, ...]:
  """Returns the messages of a row to train on; raises unless it is one.

  The completion is the last message.
  """
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
  """Makes an example of a row and the messages that `_dialogue` found in it."""
  weight = row.get("weight")
  return Example(
    id=row.get("id") or f"file/{number}",
    messages=messages[:-1],
    completion=messages[-1]["content"],
    weight=1.0 if weight is None else float(weight),
  )


def _messages(messages: list) -> tuple[Message, ...]:
  """Checks the roles, the texts and the order of messages."""
  for m in messages:
    if (
      not isinstance(m, dict)
      or m.get("role") not in ("system", "user", "assistant")
      or not isinstance(m.get("content"), str)
    ):
      raise ValueError(f"not a message with a role and content: {m!r}")
    m["content"].encode()  # raises for a lone surrogate, and says where it is
  roles = [m["role"] for m in messages]
  turns = roles[1:] if roles[:1] == ["system"] else roles
  expected = [("user", "assistant")[i % 2] for i in range(len(turns))]
  if not turns or turns != expected:
    raise ValueError(
      "after a system message, if there is one, the user's and the assistant's "
      f"must take turns, the user's first; found {roles}"
    )
  return tuple({"role": m["role"], "content": m["content"]} for m in messages)


# --- files --------------------------------------------------------------------


def _open(source: str, split: str) -> tuple[Iterator[Row], str | None]:
  """Opens a source by its kind.

  Returns:
    Its rows, and the content hash that is recorded in it, None where none is.
  """
  path = Path(source)
  if source.startswith(TFDS) or (path / "features.json").is_file():
    return _tfds(source, split)
  if not path.exists():
    raise ValueError(
      f"{source} is missing; a data set of TFDS is named {TFDS}NAME"
    )
  if path.is_dir():
    files, only_split = _files(path, split), split
  else:
    files, only_split = [path], "train"
  if only_split != split:
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
  """Reads the rows of a file of JSON lines."""
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
      yield where, json.loads(line, parse_constant=_refuse_constant)
    except json.JSONDecodeError as e:
      raise ValueError(f"{where}: not JSON: {e.msg}") from None
    except ValueError as e:
      raise ValueError(f"{where}: {e}") from None


def _refuse_constant(name: str) -> None:
  """Raises for NaN and Infinity, which Python reads and JSON has not."""
  raise ValueError(f"not JSON: {name} is no number of it")


def _files(folder: Path, split: str) -> list[Path]:
  """Lists the files of a split in a folder, in order.

  Raises:
    ValueError: the folder has no files, or none of this split.
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
  split_of = {f: m[1] for f in files if (m := _SHARD.fullmatch(f.name))}
  if split in split_of.values():
    return [f for f in files if split_of.get(f) == split]
  if split_of or not files:
    splits = f"only {sorted(set(split_of.values()))}" if split_of else (
      "and neither what save_to_disk writes, nor .parquet files, nor a TFDS "
      "builder (dataset_info.json and features.json)"
    )  # fmt: skip
    raise ValueError(f"{folder}: no split {split!r}, {splits}")
  if split != "train":
    raise ValueError(f"{folder}: its files have no split {split!r}")
  return files


def _tables(files: Iterable[Path]) -> Iterator[Row]:
  """Reads the rows of Parquet and Arrow files."""
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
  """Opens a TFDS data set; see `_open`."""
  import tensorflow_datasets as tfds  # takes a second, and few runs need it

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
  form = builder.info.file_format
  if form is None or form.value != "array_record":
    raise ValueError(
      f"{source}: its records are a {form and form.value}, which only "
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
  """Turns a value of a data set into what JSON would have.

  Bytes become text, and arrays numbers. TFDS and old versions of `datasets`
  keep a list of messages as a dict of lists; it becomes a list of dicts again.
  """
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
