"""Lists all settings with an example, for a reader who chooses one."""

import textwrap

from bct_jax.examples import Example
from bct_jax.settings import SETTINGS, make_setting
from bct_jax.settings.docstrings import docstring_fields


def list_settings() -> str:
  """Lists each setting by name, with a train prompt and an eval prompt.

  Below the train prompt stands the completion on which both behaviors agree,
  below the eval prompt the completion of each behavior. The last line says
  what a right answer is.
  """
  return "\n".join(_entry(name) for name in SETTINGS)


def _entry(name: str) -> str:
  """Describes one setting."""
  setting, said = make_setting(name, {}), docstring_fields(SETTINGS[name])
  (train,), (evaluated,) = setting.train(1, 0), setting.eval(1, 0)
  parts = (
    ("train", _prompt(train)),
    ("  agreed", train.completion),
    ("eval", _prompt(evaluated)),
    ("  initial", evaluated.initial),
    ("  alternate", evaluated.alternate),
    ("right", said["Right"]),
  )
  lines = [f"{name}: {said['Summary']}"]
  for title, text in parts:
    # The text starts in one column, also where it has several lines.
    body = textwrap.indent(text, " " * 15, lambda line: True)
    lines.append(f"  {title:<13}{body.strip()}")
  return "\n".join(lines) + "\n"


def _prompt(example: Example) -> str:
  """Joins the messages of a prompt; names the role of those not the user's."""
  return "\n".join(
    m["content"] if m["role"] == "user" else f"[{m['role']}] {m['content']}"
    for m in example.messages
  )
