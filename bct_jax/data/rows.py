"""Turns rows of files into prompts and train examples, and refuses the rest.

A field is read, or it is an error: what would change the text or what is
trained is never left out without a word. Fields that are empty count as absent,
since tables have all fields in all rows.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from bct_jax.examples import Example, Message

Turns = Literal["last", "all"]

# Names that writers of data sets have for "this turn is trained", with the
# values that say yes and no.
_FLAGS = ("weight", "loss_weight", "train", "trainable")
# Names of the field that holds a thought.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
# Fields of a row that templates render or that would change what is trained.
_REFUSED = (
  "tools functions documents system system_prompt chat_template "
  "chat_template_kwargs enable_thinking reasoning_effort train trainable "
  "loss_weight loss_mask completion_mask assistant_masks reasoning_content "
  "reasoning thinking"
).split()


@dataclasses.dataclass(frozen=True)
class _Turn:
  """Holds a message, its thought, and whether the row says to train it."""

  message: Message
  thought: str
  trained: bool | None


def read_prompt(row: Any) -> tuple[Message, ...]:
  """Returns the messages of a row that is a prompt.

  Raises:
    ValueError: it is none, or has a field that would be left out.
  """
  if isinstance(row, dict) and isinstance(row.get("prompt"), str):
    _refuse_fields(row)
    return ({"role": "user", "content": row["prompt"]},)
  if isinstance(row, dict) and isinstance(row.get("prompt"), list):
    row = {**row, "messages": row["prompt"]}
  if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
    raise ValueError('needs "prompt": text or "messages": a list')
  _refuse_fields(row)
  turns = _read_turns(row["messages"])
  if any(t.trained is not None for t in turns) or turns[-1].thought:
    raise ValueError(
      f"a prompt's messages have a role and content, not {[*_FLAGS]}, and an "
      "answer's beginning has no thought"
    )
  return _messages(turns)


def read_dialogue(row: Any, turns: Turns, thoughts: bool) -> list[Example]:
  """Makes the train examples of a row, one for each turn that is trained.

  Each has the messages before its turn as prompt, as a sampler would see them.

  Args:
    row: with `messages`, or `prompt` and `completion` as TRL has them, and
      maybe `id` and `weight`. Both are text, for one message of the user and
      the answer to it, or lists of messages, of which the completion's are
      trained. A message of the
      assistant may say by itself whether it is trained: `weight` or
      `loss_weight` of 0 or 1, `train` or `trainable`.
    turns: which of the other assistant's messages are trained.
    thoughts: whether turns that are trained may have a thought.

  Returns:
    Examples whose id is that of the row, or "" where it has none; of several
    with "/1" and so on behind it.

  Raises:
    ValueError: the row is none to train on; says why.
  """
  if not isinstance(row, dict):
    raise ValueError(f'needs {{"messages": [...]}}, found {row!r:.60}')
  row, completed = _join_completion(row)
  if not isinstance(row.get("messages"), list):
    raise ValueError(
      'needs "messages", or "prompt" and "completion": a list of turns with a '
      f"role and content; found {_name_fields(row)}"
    )
  _refuse_fields(row)
  read = _read_turns(row["messages"])
  if read[-1].message["role"] != "assistant":
    raise ValueError(
      "the last message must be the assistant's: it is the completion"
    )
  trained = _trained_turns(read, turns, completed)
  for at in trained:
    if not read[at].message["content"].strip():
      raise ValueError("the completion is empty: nothing to train on")
    if read[at].thought and not thoughts:
      raise ValueError(
        f"message {at + 1} has a thought (reasoning_content): set "
        "train.reasoning to 'given' to train with it (in the setting 'file' "
        "also setting.options.thoughts), or leave it out"
      )
  name, weight = _read_id(row.get("id")), _read_weight(row.get("weight"))
  return [
    Example(
      id=name if len(trained) == 1 or not name else f"{name}/{number}",
      messages=_messages(read[:at]),
      completion=read[at].message["content"],
      thought=read[at].thought,
      weight=weight,
    )
    for number, at in enumerate(trained, 1)
  ]


def _join_completion(row: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
  """Puts `prompt` and `completion` of a row into one list of messages.

  Returns:
    The row, with `messages`; and where the completion begins, None where the
    row has none.
  """
  if _is_empty(row.get("completion")):
    return row, None
  if not _is_empty(row.get("messages")) or _is_empty(row.get("prompt")):
    raise ValueError(
      '"completion" goes with "prompt", and without "messages"; found '
      f"{_name_fields(row)}"
    )
  parts = {}
  for name, role in (("prompt", "user"), ("completion", "assistant")):
    part = row[name]
    parts[name] = [{"role": role, "content": part}] if isinstance(
      part, str
    ) else part  # fmt: skip
    if not isinstance(parts[name], list):
      raise ValueError(f'"{name}" must be text or messages, not {part!r:.60}')
  messages = [*parts["prompt"], *parts["completion"]]
  return {**row, "messages": messages}, len(parts["prompt"])


def _trained_turns(
  read: Sequence[_Turn], turns: Turns, completed: int | None
) -> list[int]:
  """Lists the turns of a dialogue that are trained.

  Args:
    read: the turns.
    turns: which ones, where neither they nor a completion say so.
    completed: where the completion begins, all of which is trained.
  """
  answers = [i for i, t in enumerate(read) if t.message["role"] == "assistant"]
  default = answers if turns == "all" else answers[-1:]
  if completed is not None:
    default = [i for i in answers if i >= completed]
  out = [
    i
    for i in answers
    if (i in default if read[i].trained is None else read[i].trained)
  ]
  if not out:
    raise ValueError(
      "no message is trained: their weight, loss_weight, train or trainable "
      "says so; leave the row out"
    )
  return out


def _read_id(name: Any) -> str:
  """Reads the id of a row; "" where there is none."""
  if name is None:
    return ""
  if isinstance(name, int) and not isinstance(name, bool):
    return str(name)
  if not isinstance(name, str) or not name:
    raise ValueError(
      f'"id" must be text that is not empty, or a whole number, not {name!r}'
    )
  return name


def _read_weight(weight: Any) -> float:
  """Reads the weight of a row, 1 where it has none."""
  if weight is None:
    return 1.0
  if (
    isinstance(weight, bool)
    or not isinstance(weight, (int, float))
    or not 0 < weight < float("inf")
  ):
    raise ValueError(f'"weight" must be a number above 0, not {weight!r}')
  return float(weight)


def _refuse_fields(row: Mapping[str, Any]) -> None:
  """Raises ValueError for fields of a row that would be left out."""
  for name in _REFUSED:
    if not _is_empty(row.get(name)):
      raise ValueError(
        f'"{name}": {row[name]!r:.60} of a row is not supported: it would '
        "change the text or what is trained, and would be left out"
      )


def _name_fields(row: Mapping[str, Any]) -> str:
  """Names the fields of a row, and says which are empty."""
  empty = sorted(name for name in row if _is_empty(row[name]))
  said = f" (empty: {', '.join(empty)})" if empty else ""
  return f"the fields {sorted(row)}{said}"


def _is_empty(value: Any) -> bool:
  """Tells whether a field says nothing."""
  return value is None or (
    isinstance(value, (str, list, tuple, dict)) and not value
  )


def _read_turns(messages: list) -> list[_Turn]:
  """Checks the roles, the texts, the fields and the order of messages."""
  turns = [_read_turn(number, m) for number, m in enumerate(messages, 1)]
  roles = [t.message["role"] for t in turns]
  rest = roles[1:] if roles[:1] == ["system"] else roles
  expected = [("user", "assistant")[i % 2] for i in range(len(rest))]
  if not rest or rest != expected:
    raise ValueError(
      "after a system message, if there is one, the user's and the assistant's "
      f"must take turns, the user's first; found {roles}"
    )
  return turns


def _read_turn(number: int, message: Any) -> _Turn:
  """Reads one message; `number` counts from 1."""
  role = message.get("role") if isinstance(message, dict) else None
  role = "system" if role == "developer" else role  # OpenAI's name for it
  content = _read_content(message.get("content")) if role else None
  if role not in ("system", "user", "assistant") or content is None:
    raise ValueError(
      "not a message with a role (system, user, assistant) and content that is "
      f"text: {message!r:.120}"
    )
  content.encode()  # raises for a lone surrogate, and says where it is
  flags, thoughts = set(), set()
  for name, value in message.items():
    if name in ("role", "content") or _is_empty(value):
      continue
    if name in _FLAGS:
      flags.add(_read_flag(number, name, value))
    elif name in _THOUGHTS and isinstance(value, str) and role == "assistant":
      thoughts.add(value)
    else:
      raise ValueError(
        f'message {number}: the field "{name}": {value!r:.60} is not '
        "supported, and would be left out"
      )
  if len(flags) > 1 or len(thoughts) > 1:
    raise ValueError(
      f"message {number}: its fields {sorted(message)} contradict each other"
    )
  if role != "assistant" and True in flags:
    raise ValueError(
      f"message {number}: only the assistant's can be trained, not the {role}'s"
    )
  trained = flags.pop() if flags else None
  return _Turn({"role": role, "content": content}, "".join(thoughts), trained)


def _read_content(content: Any) -> str | None:
  """Joins parts of text, as OpenAI has them; None if not all of it is text."""
  if not isinstance(content, list) or not content:
    return content if isinstance(content, str) else None
  texts = [
    part["text"]
    for part in content
    if isinstance(part, dict)
    and {*part} == {"type", "text"}
    and part["type"] == "text"
    and isinstance(part["text"], str)
  ]
  return "".join(texts) if len(texts) == len(content) else None


def _read_flag(number: int, name: str, value: Any) -> bool:
  """Reads whether a message says that it is trained."""
  if value not in (0, 1):
    raise ValueError(
      f'message {number}: "{name}" must be 0 or 1, true or false, not '
      f"{value!r:.60}"
    )
  return bool(value)


def _messages(turns: Sequence[_Turn]) -> tuple[Message, ...]:
  """Returns the messages of turns; thoughts are the template's to show."""
  return tuple(
    {**t.message, "reasoning_content": t.thought} if t.thought else t.message
    for t in turns
  )
