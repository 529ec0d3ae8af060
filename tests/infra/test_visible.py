"""What others wrote does not drive the terminal that it is printed on."""

import pytest

from bct_jax.infra import exit_codes, progress, whole_folder
from bct_jax.infra.visible import visible


@pytest.mark.parametrize(
  ("text", "shown"),
  [
    ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
    ("a\rb\tc\nd", "a\\rb\\tc\nd"),
    ("\u202egnp.exe\u2066 \x9b1m", "\\u202egnp.exe\\u2066 \\x9b1m"),
    (
      "½ é 你好 \U0001f469\u200d\U0001f680",
      "½ é 你好 \U0001f469\u200d\U0001f680",
    ),
  ],
)
def test_what_a_terminal_acts_on_is_escaped(text, shown):
  assert visible(text) == shown


@pytest.mark.parametrize(
  "say", [exit_codes.fail, progress.log_line, whole_folder.say]
)
def test_lines_for_the_terminal_are_escaped(say, capsys):
  say("tensor \x1b[2Jmodel.norm")
  err = capsys.readouterr().err
  assert err.removeprefix("error: ") == "tensor \\x1b[2Jmodel.norm\n"
