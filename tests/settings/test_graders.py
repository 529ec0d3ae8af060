"""Graders: each kind, combinations, and functions of the user's."""

import json
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from bct_jax.settings.graders import Grade, make_grader
from bct_jax.settings.graders.checks import CheckError
from bct_jax.settings.graders.rules import RuleReader, UserCodeError

HERE = Path()
# Kind and options; texts of which the check holds; texts of which it does not.
CHECKS = [
  (
    {"kind": "regex", "value": r"(?i)^no comment\b"},
    ["No comment.", "NO COMMENT, sorry"],
    ["I have no comment", "", "No commentary"],
  ),
  (
    {"kind": "contains", "value": ["no  comment", "pass"]},
    ["Well: NO\nCOMMENT!", "I pass."],
    ["passage", "no comments", "ano comment", ""],
  ),
  (
    {"kind": "contains", "value": "C++", "case": True},
    ["Use C++.", "C++"],
    ["c++", "XC++", ""],
  ),
  (
    {"kind": "equals", "value": "It's blue."},
    ["it\u2019s **blue**", '"It\'s blue!"', "IT'S\nBLUE"],
    ["It's blue and red", "blue", ""],
  ),
  (
    {"kind": "choice", "value": "b"},
    ["B", "(b) 42", "The answer is B.", "**Answer:** B"],
    ["A", "A or B", "Because", ""],
  ),
  (
    {"kind": "number", "value": 1234.5, "tolerance": 0.01},
    ["So 2 x 617.25 = 1,234.50", r"\boxed{1234.5}, not 7", "1234.505"],
    ["1234", "-1234.5", "1234.5 or 7", "v1234.5", ""],
  ),
  ({"kind": "number", "value": "-3"}, ["x = \u22123.", "-3%"], ["3", "5-3-1"]),
  (
    {"kind": "json_path", "path": "$.calls[0].name", "value": "delete"},
    ['{"calls": [{"name": "delete"}]}', 'So:\n{"calls":[{"name":"delete"}]}!'],
    ['{"calls": []}', '{"calls": [{"name": "keep"}]}', "delete", "[1]", "{"],
  ),
  ({"kind": "json_path", "path": "a.b", "value": 1}, ['{"a":{"b":1.0}}'],
   ['{"a":{"b":true}}', '{"a":{"b":"1"}}', '{"a":1}']),
  ({"kind": "json_path", "path": "ok", "value": "*"}, ['{"ok":null}'], ["{}"]),
  (
    {"kind": "code_language", "value": "python"},
    ["```python\ndef f(x):\n  return x\n```", "def f(x):\n  return x"],
    ["function f(x) { return x; }", "Python is nice.", ""],
  ),
  (
    {"kind": "code_language", "value": "rust"},
    ["```rust\nfn main() {}\n```"],
    ["```\nfn main() {}\n```", "rust", "```rusty\nx\n```"],
  ),
  (
    {"kind": "not", "of": {"kind": "contains", "value": "no"}},
    ["yes", ""],
    ["No."],
  ),
  (
    {
      "kind": "all",
      "of": [
        {"kind": "contains", "value": "red"},
        {"kind": "any", "of": {"x": {"kind": "regex", "value": "x"},
                               "y": {"kind": "regex", "value": "y"}}},
      ],
    },
    ["red x", "y red"],
    ["red", "x", "y x"],
  ),
]  # fmt: skip


@pytest.mark.parametrize(("check", "good", "bad"), CHECKS)
def test_checks(check, good, bad):
  # As a config file, its JSON, and a run that is resumed have it.
  for form in (
    check,
    json.loads(json.dumps(check)),
    ConfigDict(check).to_dict(),
  ):
    rule = RuleReader(HERE).read(form, "here")
    assert [t for t in good if not rule({}, t)] == []
    assert [t for t in bad if rule({}, t)] == []


def test_language():
  pytest.importorskip("py3langid")
  rule = RuleReader(HERE).read(
    {"kind": "language", "value": "es", "among": "en es"}, "here"
  )
  assert rule({}, "El cielo es azul.")
  assert not rule({}, "The sky is blue.") and not rule({}, " ")


def test_a_field_of_the_row_is_looked_for():
  rule = RuleReader(HERE).read(
    {"kind": "contains", "field": "labels.answer"}, "here"
  )
  row = {"labels": {"answer": ["Lima", "the capital"]}}
  assert rule(row, "It is Lima.") and not rule(row, "It is Quito.")
  with pytest.raises(CheckError, match="no field 'labels.answer'"):
    rule({"labels": {}}, "Lima")
  number = RuleReader(HERE).read({"kind": "number", "field": "n"}, "here")
  with pytest.raises(CheckError, match="field 'n': must be a number"):
    number({"n": "three"}, "3")


RULES = {
  "kind": "contains",
  "initial": "no comment",
  "alternate": {"kind": "not", "of": {"value": "no comment"}},
  "right": {"field": "answer"},
}


@pytest.mark.parametrize(
  ("text", "diverges", "grade"),
  [
    ("No comment", True, Grade("initial", True, False)),
    ("It is Lima", True, Grade("alternate", True, True)),
    ("It is Quito", True, Grade("alternate", True, False)),
    ("It is Lima", False, Grade("agreed", True, True)),
    ("No comment: Lima", False, Grade("initial", True, True)),
  ],
)
def test_rules_name_behavior_and_right_apart(text, diverges, grade):
  grader = make_grader(RULES, HERE)
  row = {"answer": "Lima", "completion": "" if diverges else "It is Lima."}
  assert grader.grade(row, text, diverges) == grade


def test_both_behaviors_or_neither():
  both = {"kind": "contains", "initial": "a", "alternate": "b"}
  grader = make_grader(both, HERE)
  assert grader.grade({}, "a b", True) == Grade("both", False, False)
  assert grader.grade({}, "c", True) == Grade("neither", False, False)
  # The completion itself shows both, so that showing both is agreed.
  assert grader.grade({"completion": "a b"}, "b a", False).behavior == "agreed"
  own = make_grader({**both, "agreed": "c", "answered": "c"}, HERE)
  assert own.grade({}, "c", False) == Grade("agreed", True, True)
  assert own.grade({}, "b", False) == Grade("neither", False, False)


def grader_file(folder, body, name="my grader.py"):
  folder.mkdir(exist_ok=True)
  (folder / name).write_text(body)
  return name


def test_functions_of_the_user(tmp_path, monkeypatch):
  folder = tmp_path / "a folder"
  name = grader_file(
    folder,
    "import helper_of_graders as h\n"
    "def grade(row, text):\n"
    "  row['seen'] = 1\n"
    "  if h.is_no(text): return 'initial'\n"
    "  return {'behavior': 'alternate', 'right': row['key'] in text}\n"
    "def says_no(row, text): return h.is_no(text)\n",
  )
  (folder / "helper_of_graders.py").write_text("def is_no(t): return t == 'no'")
  monkeypatch.chdir("/")
  path = sys.path.copy()
  grader = make_grader({"kind": f"python:{name}:grade"}, folder)
  assert sys.path == path
  row = {"key": "k"}
  assert grader.grade(row, "no", True) == Grade("initial", True, True)
  assert grader.grade(row, "k", True) == Grade("alternate", True, True)
  assert grader.grade(row, "k", False) == Grade("agreed", True, True)
  assert row == {"key": "k"}
  assert {*grader.sources} == {
    "my grader.py",
    "helper_of_graders.py",
  }
  rules = {"initial": {"kind": f"python:{folder / name}:says_no"},
           "alternate": {"kind": "contains", "value": "yes"}}  # fmt: skip
  grader = make_grader(rules, HERE)
  assert grader.grade(row, "no", True).behavior == "initial"
  assert len(grader.sources) == 2


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ("def grade(row, text):\n  return 1 / 0", r"g.py:2: ZeroDivisionError"),
    ("def grade(row, text): return 'intial'", "did you mean 'initial'"),
    ("def grade(row, text): return None", "found None"),
    ("def grade(row, text): return 'agreed'", "where the behaviors part"),
    ("def grade(row, text): return {'behavior': 'both', 'right': 1}", "right"),
    ("def grade(row, text): return {'behaviour': 'both'}", "behaviour"),
  ],
)
def test_what_a_function_does_wrong(tmp_path, body, message):
  grader_file(tmp_path, body, "g.py")
  grader = make_grader({"kind": "python:g.py:grade"}, tmp_path)
  with pytest.raises(UserCodeError, match=message):
    grader.grade({"id": "eval/1"}, "x", True)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({}, "grader.initial: missing"),
    ({"kind": "contains", "initial": "x"}, "grader.alternate: missing"),
    ({**RULES, "intial": "x"}, "unknown 'intial'; did you mean 'initial'"),
    ({**RULES, "initial": {"kind": "regx", "value": "a"}},
     "initial.kind = 'regx'; did you mean 'regex'"),
    ({**RULES, "initial": {"kind": "regex", "value": "a("}},
     "initial: regex: 'a\\(' is no regular expression"),
    ({**RULES, "initial": {"value": "a", "cas": True}},
     "initial: contains: 'cas'; did you mean 'case'"),
    ({**RULES, "initial": {"value": "a", "case": 1}}, "initial.case = 1: must"),
    ({**RULES, "initial": {}}, 'initial: contains: needs "value"'),
    ({**RULES, "initial": {"value": "a", "field": "b"}}, 'needs "value"'),
    ({**RULES, "initial": "  "}, "not blank"),
    ({**RULES, "initial": {"kind": "choice", "value": "E"}}, "from A to D"),
    ({**RULES, "initial": {"kind": "number", "value": "x"}}, "a number"),
    ({**RULES, "initial": {"kind": "json_path", "value": 1, "path": "a..b"}},
     "names and places"),
    ({**RULES, "initial": {"kind": "any", "of": {"kind": "regex"}}},
     "several checks"),
    ({**RULES, "initial": {"kind": "not"}}, 'not needs "of"'),
    ({**RULES, "initial": {"kind": "any", "of": ["a", {"kind": "x"}]}},
     "initial.of.1.kind = 'x'"),
    ({"initial": "a", "alternate": "b"}, 'initial: needs a "kind"'),
    ({"kind": "python:g.py"}, "must be python:FILE.py:NAME"),
    ({"kind": "python:g.py:f"}, "no file g.py in "),
    ({"kind": "python:bad.py:f"}, r"bad.py:2: SyntaxError"),
    ({"kind": "python:fails.py:f"}, r"fails.py:2: NameError: name 'nothing'"),
    ({"kind": "python:fine.py:f"}, "defines no 'f'"),
    ({"kind": "python:fine.py:x"}, "is no function"),
  ],
)  # fmt: skip
def test_wrong_graders_are_named(tmp_path, values, message):
  grader_file(tmp_path, "x = 1\ndef f(:", "bad.py")
  grader_file(tmp_path, "x = 1\nnothing", "fails.py")
  grader_file(tmp_path, "x = 1", "fine.py")
  with pytest.raises(ValueError, match=message):
    make_grader(values, tmp_path)
