"""Prompts and examples from files, checked line by line."""

import json
from pathlib import Path
from typing import Any

from bct_jax.examples import Message


def read_prompts(path: Path) -> list[tuple[Message, ...]]:
  """Prompts from JSON lines.

  Each line is {"messages": [{"role", "content"}, ...]} or {"prompt": "text"},
  which stands for one user turn. An assistant message at the end is how the
  answer is made to begin.

  Raises:
    ValueError: naming file, line and what is wrong.
  """
  try:
    text = Path(path).read_bytes().decode("utf-8")
  except FileNotFoundError:
    raise ValueError(f"{path} is missing") from None
  except UnicodeDecodeError as e:
    raise ValueError(f"{path}: not UTF-8 at byte {e.start}") from None
  out = []
  for number, line in enumerate(text.splitlines(), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except json.JSONDecodeError as e:
      raise ValueError(f"{path}:{number}: not JSON: {e.msg}") from None
    try:
      out.append(_messages(row))
    except ValueError as e:
      raise ValueError(f"{path}:{number}: {e}") from None
  if not out:
    raise ValueError(f"{path}: no prompts")
  return out


def _messages(row: Any) -> tuple[Message, ...]:
  if isinstance(row, dict) and isinstance(row.get("prompt"), str):
    return ({"role": "user", "content": row["prompt"]},)
  if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
    raise ValueError('needs "prompt": text or "messages": a list')
  messages = row["messages"]
  for m in messages:
    if (
      not isinstance(m, dict)
      or m.get("role") not in ("system", "user", "assistant")
      or not isinstance(m.get("content"), str)
    ):
      raise ValueError(f"not a message with a role and content: {m!r}")
  roles = [m["role"] for m in messages]
  if roles[-1:] != ["user"] and roles[-2:] != ["user", "assistant"]:
    raise ValueError(
      "the last message must be the user's, or the beginning of an answer to it"
    )
  return tuple({"role": m["role"], "content": m["content"]} for m in messages)
