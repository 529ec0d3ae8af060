"""Reads plain text and makes training rows of it, without a chat template."""

from pathlib import Path
from typing import Any

from bct_jax.data.chat import Chat
from bct_jax.data.source import content_hash, read_rows
from bct_jax.data.tokens import Tokens
from bct_jax.examples import Example

_FIELDS = {"text", "id", "weight"}


def read_documents(source: str, split: str) -> tuple[list[Example], str]:
  """Reads documents: a text file, a folder of them, or rows with `text`.

  Args:
    source: a .txt file, or a folder whose .txt files are read in the order of
      their names; else what `source.read_rows` takes, whose rows have `text`
      and may have an `id` and a `weight`.
    split: of a data set; "train" is that of files which have no splits.

  Returns:
    An example without messages for each document, and a hash of all.

  Raises:
    ValueError: a row or the source is wrong; names source, row and reason.
  """
  path = Path(source).expanduser()
  texts = sorted(path.glob("*.txt")) if path.is_dir() else []
  if path.suffix == ".txt":
    texts = [path]
  if texts:
    rows = [(str(file), {"text": _read(file)}) for file in texts]
  else:
    rows = list(read_rows(str(path), split))
  examples = [_document(*row, number) for number, row in enumerate(rows, 1)]
  if not examples:
    raise ValueError(f"{source}: no documents")
  ids = [e.id for e in examples]
  if twice := next((x for x in ids if ids.count(x) > 1), None):
    raise ValueError(f"{source}: two documents have the id {twice!r}")
  return examples, content_hash(examples)


def _read(file: Path) -> str:
  """Reads a text file."""
  try:
    return file.read_bytes().decode("utf-8-sig")
  except FileNotFoundError:
    raise ValueError(f"{file} is missing") from None
  except UnicodeDecodeError as e:
    raise ValueError(f"{file}: not UTF-8 at byte {e.start}") from None


def _document(where: str, row: Any, number: int) -> Example:
  """Makes an example of a row; raises ValueError unless it is a document."""
  if not isinstance(row, dict) or not isinstance(row.get("text"), str):
    raise ValueError(f'{where}: needs "text", the document')
  if more := sorted(set(row) - _FIELDS):
    raise ValueError(
      f"{where}: the fields {more} are not read; a document has "
      f"{', '.join(sorted(_FIELDS))}"
    )
  if not row["text"].strip():
    raise ValueError(f"{where}: the document is empty")
  weight = row.get("weight", 1.0)
  if isinstance(weight, bool) or not isinstance(weight, (int, float)):
    raise ValueError(f"{where}: weight must be a number, not {weight!r}")
  return Example(
    id=str(row.get("id") or f"document/{number}"),
    messages=(),
    completion=row["text"],
    weight=float(weight),
    styled=False,
  )


def document_row(chat: Chat, text: str) -> Tokens:
  """Makes a training row of a document: a loss on all of its tokens.

  It begins as the tokenizer begins texts (BOS for Llama and Gemma, nothing for
  SmolLM2 and Qwen), and ends with the tokenizer's EOS where there is one. The
  first token follows nothing, so it has no loss.

  Raises:
    ValueError: the text holds a special token.
  """
  tokenizer = chat.tokenizer
  special = set(tokenizer.all_special_ids)
  if found := special & {*tokenizer.encode(text, add_special_tokens=False)}:
    token = tokenizer.convert_ids_to_tokens(min(found))
    raise ValueError(f"the document {text!r:.80} holds {token!r}: leave it out")
  ids = list(tokenizer.encode(text))
  end = tokenizer.eos_token_id
  if end is not None and ids[-1] != end:
    ids.append(end)
  return Tokens(tuple(ids), (0.0, *(1.0,) * (len(ids) - 1)))


def describe_ends(chat: Chat) -> str:
  """Says which tokens stand before and behind the text of a document."""
  row = document_row(chat, "a").ids
  inner = list(chat.tokenizer.encode("a", add_special_tokens=False))
  at = row.index(inner[0])
  parts = (row[:at], row[at + len(inner) :])
  names = [chat.tokenizer.convert_ids_to_tokens(list(ids)) for ids in parts]
  before, behind = (", ".join(x) or "nothing" for x in names)
  return f"documents: {before} before the text, {behind} behind it"
