"""Makes the data of the rollout browser, and the policy that its page is under.

The page holds the completions as JSON in a block that no browser executes;
browser.js shows them as text only. The policy names by hash the one script and
the one style that the page may use, so that nothing a model wrote could run,
even if it got into the markup.
"""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bct_jax.report import text
from bct_jax.report.read.types import ArmRecord, Row, RunRecord

MAX_ROWS = 60_000  # completions in one page; more than these are thinned out
FIELDS = (
  *("arm", "step", "split", "id", "prompt", "text"),
  *("label", "reason", "decorated", "stop"),
)


@dataclasses.dataclass(frozen=True)
class Browser:
  """Holds what the template of the browser needs.

  Attributes:
    rows: how many completions the page has.
    left_out: says what the page lacks, "" where it has all completions.
    data: JSON that can stand inside of a script element.
  """

  rows: int
  left_out: str
  data: Markup


def make_browser(
  runs: Sequence[RunRecord], max_rows: int = MAX_ROWS
) -> Browser:
  """Makes the browser of all completions of some runs.

  Args:
    runs: whose completions are shown.
    max_rows: of more completions than this, those of evenly spaced steps.
  """
  arms = [(i, arm) for i, run in enumerate(runs) for arm in run.arms]
  total = sum(map(len, (r for _, a in arms for r in a.rollouts.values())))
  most = max((len(arm.rollouts) for _, arm in arms), default=0)
  num_steps = most
  while num_steps > 1 and _size(arms, num_steps) > max_rows:
    num_steps -= 1
  strings, prompts, rows = _Table(), _Table(), []
  for i, (_, arm) in enumerate(arms):
    for step in _spaced(sorted(arm.rollouts), num_steps):
      for row in arm.rollouts[step]:
        rows += _numbers(row, i, step, strings, prompts)
  num_rows = len(rows) // len(FIELDS)
  left_out = ""
  if num_rows < total:
    left_out = (
      f"The browser has {num_rows:,} of {total:,} completions: those of"
      f" {num_steps} steps of each arm, with its first and last. The rest are"
      " in arms/NAME/rollouts/."
    )
  data = {
    "runs": [f"{text.title(run)} ({text.base(str(run.path))})" for run in runs],
    "arms": [{"run": run, "name": arm.name} for run, arm in arms],
    "fields": FIELDS,
    "strings": list(strings),
    "prompts": list(prompts),
    "rows": rows,
  }
  return Browser(num_rows, left_out, inert_json(data))


class _Table(dict):
  """Numbers distinct values in the order in which they are looked up.

  The page has each text once, and rows of numbers that stand for texts.
  """

  def __missing__(self, key: Any) -> int:
    """Gives a new value the next number."""
    self[key] = len(self)
    return self[key]


def _numbers(
  row: Row, arm: int, step: int, strings: _Table, prompts: _Table
) -> list[int]:
  """Writes a row as numbers in the order of FIELDS; tables have the texts."""
  turns = tuple(
    (strings[role], strings[content]) for role, content in row.prompt
  )
  return [
    *(arm, step, strings[row.split], strings[row.id], prompts[turns]),
    *(strings[row.text], strings[row.label], strings[row.reason]),
    *(-1 if row.decorated is None else int(row.decorated), strings[row.stop]),
  ]


def _size(arms: Sequence[tuple[int, ArmRecord]], num_steps: int) -> int:
  """Counts the completions of so many steps of each arm."""
  return sum(
    len(arm.rollouts[step])
    for _, arm in arms
    for step in _spaced(sorted(arm.rollouts), num_steps)
  )


def _spaced(steps: Sequence[int], most: int) -> list[int]:
  """Picks at most so many of the steps, evenly spaced, with the last one."""
  if len(steps) <= most:
    return list(steps)
  if most < 2:
    return list(steps[-1:])
  last = len(steps) - 1
  return [steps[round(i * last / (most - 1))] for i in range(most)]


def inert_json(value: Any) -> Markup:
  """Writes JSON in ASCII that cannot end, or comment out, a script element.

  Every character that is not ASCII (U+2028, lone surrogates) is an escape, and
  so are <, > and &: neither `</script` nor `<!--` can stand in it.
  """
  content = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
  for char in "<>&":
    content = content.replace(char, f"\\u{ord(char):04x}")
  return Markup(content)


def page_parts() -> Mapping[str, Markup]:
  """Returns style, scripts, and the policy that allows these alone."""
  folder = Path(__file__).parent
  style, script, table = (
    # A browser normalizes line ends before it hashes, and so does read_text.
    (folder / name).read_text(encoding="utf-8")
    for name in ("style.css", "browser.js", "table.js")
  )
  policy = (
    f"default-src 'none'; script-src {_source(script)} {_source(table)};"
    f" style-src {_source(style)}; img-src data:; base-uri 'none';"
    " form-action 'none'; require-trusted-types-for 'script';"
    " trusted-types 'none'"
  )
  return {
    "style": Markup(style),
    "script": Markup(script),
    "table": Markup(table),
    "policy": Markup(policy),
  }


def _source(content: str) -> str:
  """Names a script or style by its hash, as a content security policy does."""
  digest = hashlib.sha256(content.encode("utf-8")).digest()
  return f"'sha256-{base64.b64encode(digest).decode()}'"
