"""Reads prompts and train examples from files and data sets.

Every row is checked and none is skipped: a row that does not fit is an error
that names file and row. TFDS is read without TensorFlow, and folders of Hugging
Face's `datasets` without that package.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from bct_jax.data.rows import Turns, read_dialogue, read_prompt
from bct_jax.examples import Example, Message
from bct_jax.infra.files import digest, read_json

Row = tuple[str, Any]  # its place, for errors, and its fields
# Stands before the name of a data set in TFDS's own data folder.
TFDS = "tfds:"
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(?:-[0-9a-f]+)?\.parquet")
# Words in the name of a file that say its split, as `datasets` reads them.
_SPLITS = {
  "train": {"train", "training"},
  "validation": {"validation", "valid", "dev", "val"},
  "test": {"test", "testing", "eval", "evaluation"},
}


def read_prompts(path: Path) -> list[tuple[Message, ...]]:
  """Reads prompts from JSON lines.

  Each line is {"messages": [{"role", "content"}, ...]} or {"prompt": "text"},
  which stands for one user turn. An assistant message at the end is what the
  answer is made to begin with.

  Raises:
    ValueError: a line is wrong; names file, line and reason.
  """
  prompts = _check_rows(_json_lines(Path(path)), read_prompt)
  if not prompts:
    raise ValueError(f"{path}: no prompts")
  return prompts


def read_examples(
  source: str, split: str, turns: Turns = "last", thoughts: bool = False
) -> tuple[list[Example], str]:
  """Reads train examples from a file or a data set.

  A row has `messages`, of which the last one, an assistant's, is the
  completion, or `prompt` and `completion`. It may have an `id` (else its number
  becomes one) and a `weight`. What the two behaviors would say is not known of
  such examples. A row with several trained turns gives an example for each.

  Args:
    source: JSON lines; Parquet or Arrow, a file or the folder that
      `save_to_disk` of Hugging Face's `datasets` wrote; the folder of a TFDS
      builder, or tfds:NAME, whose records are an array_record.
    split: of a data set; "train" is that of files which have no splits.
    turns, thoughts: see rows.read_dialogue.

  Returns:
    All examples in order, and their `content_hash`.

  Raises:
    ValueError: a row or the source is wrong; names source, row and reason.
  """
  rows, recorded_hash = _open(source, split)
  read = functools.partial(read_dialogue, turns=turns, thoughts=thoughts)
  examples = []
  for number, of_row in enumerate(_check_rows(rows, read), 1):
    several = len(of_row) > 1
    examples += [
      e
      if e.id
      else dataclasses.replace(e, id=f"file/{number}" + f"/{k}" * several)
      for k, e in enumerate(of_row, 1)
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


def read_rows(source: str, split: str) -> Iterator[Row]:
  """Reads the rows of a file or a data set as they are; see `read_examples`.

  Yields:
    The place of a row, for errors, and its fields.

  Raises:
    ValueError: the source is wrong, or a row is no JSON.
  """
  return _open(source, split)[0]


def list_splits(source: str) -> list[str]:
  """Lists the splits of a data set; [] if the source is none that names them.

  Raises:
    ValueError: TFDS has no such data set.
  """
  path = Path(source)
  if source.startswith(TFDS) or (path / "features.json").is_file():
    return sorted(_tfds_builder(source).info.splits)
  if (path / "dataset_dict.json").is_file():
    return read_json(path / "dataset_dict.json")["splits"]
  return []


def content_hash(examples: Iterable[Example]) -> str:
  """Hashes all that training reads of some examples, in their order."""
  return digest(
    [
      [
        e.id,
        list(e.messages),
        e.completion,
        e.weight,
        *filter(None, [e.thought]),
      ]
      for e in examples
    ]
  )


def _check_rows(rows: Iterable[Row], check: Callable[[Any], Any]) -> list[Any]:
  """Lists what `check` makes of each row.

  Raises:
    ValueError: `check` refused a row; names its place.
  """
  out = []
  for where, row in rows:
    try:
      out.append(check(row))
    except ValueError as e:
      raise ValueError(f"{where}: {e}") from None
  return out


# --- files --------------------------------------------------------------------


def _open(source: str, split: str) -> tuple[Iterator[Row], str | None]:
  """Opens a source by its kind.

  Returns:
    Its rows, and the content hash that is recorded in it, None where none is.
  """
  path = Path(source).expanduser()
  if source.startswith(TFDS):
    return _tfds(source, split)
  if (path / "features.json").is_file():
    return _tfds(str(path), split)
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
  """Reads the rows of a file of JSON lines, or of one JSON array."""
  try:
    text = path.read_bytes().decode("utf-8-sig")
  except FileNotFoundError:
    raise ValueError(f"{path} is missing") from None
  except UnicodeDecodeError as e:
    raise ValueError(f"{path}: not UTF-8 at byte {e.start}") from None
  if text.lstrip().startswith("["):
    for number, row in enumerate(_parse(f"{path}", text), 1):
      yield f"{path}, row {number}", row
    return
  # Not splitlines: JSON may hold other ends of line (U+2028) in its strings.
  for number, line in enumerate(text.split("\n"), 1):
    if line.strip():
      where = f"{path}:{number}"
      yield where, _parse(where, line)


def _parse(where: str, text: str) -> Any:
  """Parses JSON; raises ValueError with its place."""
  try:
    return json.loads(
      text,
      parse_constant=_refuse_constant,
      object_pairs_hook=_refuse_repeats,
    )
  except json.JSONDecodeError as e:
    line = f" at its line {e.lineno}" if e.lineno > 1 else ""
    raise ValueError(
      f"{where}: not JSON: {e.msg}{line}; each line must be one object, or the "
      "file one array of objects"
    ) from None
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from None


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Makes an object; raises for a name that it has twice."""
  out = dict(pairs)
  if len(out) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(n for n in names if names.count(n) > 1)
    raise ValueError(f'an object has the field "{twice}" twice')
  return out


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
  if not files:  # as the hub's repositories have them
    files = sorted((folder / "data").glob("*.parquet"))
  if not files:
    raise ValueError(
      f"{folder}: no split {split!r}, and neither what save_to_disk writes, "
      "nor .parquet files, nor a TFDS builder (dataset_info.json and "
      "features.json)"
    )
  split_of = {f: _split_of(f) for f in files}
  named = sorted({name for name in split_of.values() if name})
  if named and None in split_of.values():
    plain = next(f.name for f, name in split_of.items() if not name)
    raise ValueError(
      f"{folder}: {plain} names no split, and other files do ({named}): move "
      "it elsewhere, or name the one file to read"
    )
  if not named and split == "train":
    return files
  if split not in named:
    raise ValueError(f"{folder}: no split {split!r}, only {named or ['train']}")
  files = [f for f in files if split_of[f] == split]
  shards = list(filter(None, (_SHARD.fullmatch(f.name) for f in files)))
  if shards and len(shards) != int(shards[0][2]):
    raise ValueError(
      f"{folder}: has {len(shards)} of the {int(shards[0][2])} files that "
      f"{shards[0][0]} is one of"
    )
  return files


def _split_of(file: Path) -> str | None:
  """Returns the split that a file's name says, as for `datasets`.

  Raises:
    ValueError: it says two.
  """
  shard = _SHARD.fullmatch(file.name)
  if shard:
    return shard[1]
  words = re.split(r"[-._ 0-9]+", file.stem.lower())
  found = {name for name, keys in _SPLITS.items() if keys & {*words}}
  if len(found) > 1:
    raise ValueError(f"{file}: its name says several splits, {sorted(found)}")
  return found.pop() if found else None


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


def _tfds_builder(source: str) -> Any:
  """Opens a TFDS data set, prepared or not."""
  import tensorflow_datasets as tfds  # takes a second, and few runs need it

  try:
    if source.startswith(TFDS):
      name = source.removeprefix(TFDS)
      return tfds.builder(name, file_format="array_record")
    return tfds.builder_from_directory(source)
  except (OSError, ValueError) as e:
    first = str(e).strip().splitlines()[0]
    raise ValueError(f"{source}: no such TFDS data set: {first}") from None


def _tfds(source: str, split: str) -> tuple[Iterator[Row], str | None]:
  """Opens a TFDS data set; see `_open`."""
  builder = _tfds_builder(source)
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
  for field in ("messages", "prompt", "completion"):
    turns = out.get(field)
    if isinstance(turns, dict) and all(
      isinstance(v, list) for v in turns.values()
    ):
      names = list(turns)
      columns = zip(*turns.values(), strict=True)
      out[field] = [dict(zip(names, v, strict=True)) for v in columns]
  return out
