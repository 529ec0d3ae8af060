"""All settings with one example each, for a reader who chooses one."""

import textwrap

from bct_jax.examples import Example
from bct_jax.settings import SETTINGS, make_setting
from bct_jax.settings.base import docstring_fields


def list_settings() -> str:
  """Each setting by name, with a train prompt and an eval prompt.

  Below the train prompt stands the completion on which both behaviors agree,
  below the eval prompt that of either.
  """
  return "\n".join(_entry(name) for name in SETTINGS)


def _entry(name: str) -> str:
  setting = make_setting(name, {})
  (train,), (asked,) = setting.train(1, 0), setting.eval(1, 0)
  parts = (
    ("train", _prompt(train)),
    ("  agreed", train.completion),
    ("eval", _prompt(asked)),
    ("  initial", asked.initial),
    ("  alternate", asked.alternate),
  )
  lines = [f"{name}: {docstring_fields(SETTINGS[name])['Summary']}"]
  for title, text in parts:
    # The text starts in one column, also where it has several lines.
    body = textwrap.indent(text, " " * 15, lambda line: True)
    lines.append(f"  {title:<13}{body.strip()}")
  return "\n".join(lines) + "\n"


def _prompt(example: Example) -> str:
  return "\n".join(
    m["content"] if m["role"] == "user" else f"[{m['role']}] {m['content']}"
    for m in example.messages
  )
