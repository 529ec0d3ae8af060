"""Adds system prompts, hints and answer prefixes to messages."""

from collections.abc import Sequence

from bct_jax.examples import Message
from bct_jax.settings.prompts import system_text


def with_system(
  messages: Sequence[Message], text: str | None
) -> tuple[Message, ...]:
  """Puts a system message first; None leaves the template's own default.

  Raises:
    ValueError: the messages have a system message already.
  """
  if text is None:
    return tuple(messages)
  if messages[0]["role"] == "system":
    raise ValueError(f"two system messages: {text!r} and {messages[0]}")
  return ({"role": "system", "content": text}, *messages)


def with_prompt(
  messages: Sequence[Message],
  system_prompt: str | None,
  kind: str,
  wordings: tuple[str, ...],
  paraphrases: int,
  key: str,
) -> tuple[Message, ...]:
  """Puts messages under a prompt of settings/prompts.py.

  Args:
    messages: among them a user's message.
    system_prompt: of the config.
    kind: of the prompt. A hint stands before the user's last message; every
      other kind is a system message.
    wordings, paraphrases, key: see `system_text`.

  Raises:
    ValueError: there are fewer wordings than paraphrases, or the messages have
      a system message.
  """
  if kind != "hint":
    text = system_text(system_prompt, wordings, paraphrases, key)
    return with_system(messages, text)
  hint = system_text(None, wordings, paraphrases, key)
  at = max(i for i, m in enumerate(messages) if m["role"] == "user")
  hinted: Message = {
    "role": "user",
    "content": f"{hint}\n{messages[at]['content']}",
  }
  with_hint = (*messages[:at], hinted, *messages[at + 1 :])
  return with_system(with_hint, system_prompt)


def with_prefix(
  messages: Sequence[Message], text: str | None
) -> tuple[Message, ...]:
  """Appends the beginning of an answer, unless there is one or no text."""
  if text is None or messages[-1]["role"] == "assistant":
    return tuple(messages)
  return (*messages, {"role": "assistant", "content": text})
