"""The data of the rollout browser, and the policy that its page runs under.

The page holds the completions as JSON in a block that no browser executes;
browser.js shows them as text only. What may run and style the page is named by
hash, so that nothing a model wrote could, even if it got into the markup.
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
  """What the template needs.

  Attributes:
    rows: how many completions there are in the page.
    left_out: what is not in the page, "" where all is.
    data: JSON that can stand inside of a script element.
  """

  rows: int
  left_out: str
  data: Markup


def make_browser(
  runs: Sequence[RunRecord], max_rows: int = MAX_ROWS
) -> Browser:
  """All completions of the runs, or those of fewer steps where too many."""
  arms = [(i, arm) for i, run in enumerate(runs) for arm in run.arms]
  total = sum(map(len, (r for _, a in arms for r in a.rollouts.values())))
  most = max((len(arm.rollouts) for _, arm in arms), default=0)
  kept = most
  while kept > 1 and _size(arms, kept) > max_rows:
    kept -= 1
  strings, prompts, rows = _Table(), _Table(), []
  for i, (_, arm) in enumerate(arms):
    for step in _spaced(sorted(arm.rollouts), kept):
      for row in arm.rollouts[step]:
        rows += _numbers(row, i, step, strings, prompts)
  num_rows = len(rows) // len(FIELDS)
  left_out = ""
  if num_rows < total:
    left_out = (
      f"The browser has {num_rows:,} of {total:,} completions: those of"
      f" {kept} steps of each arm, with its first and last. The rest are in"
      " arms/NAME/rollouts/."
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
  """Numbers distinct values in the order in which they come."""

  def __missing__(self, key: Any) -> int:
    self[key] = len(self)
    return self[key]


def _numbers(
  row: Row, arm: int, step: int, strings: _Table, prompts: _Table
) -> list[int]:
  """A row as numbers in the order of FIELDS; texts stand in the tables."""
  turns = tuple((strings[role], strings[said]) for role, said in row.prompt)
  return [
    *(arm, step, strings[row.split], strings[row.id], prompts[turns]),
    *(strings[row.text], strings[row.label], strings[row.reason]),
    *(-1 if row.decorated is None else int(row.decorated), strings[row.stop]),
  ]


def _size(arms: Sequence[tuple[int, ArmRecord]], kept: int) -> int:
  return sum(
    len(arm.rollouts[step])
    for _, arm in arms
    for step in _spaced(sorted(arm.rollouts), kept)
  )


def _spaced(steps: Sequence[int], kept: int) -> list[int]:
  """At most `kept` of the steps, evenly spaced, the last always."""
  if len(steps) <= kept:
    return list(steps)
  if kept < 2:
    return list(steps[-1:])
  last = len(steps) - 1
  return [steps[round(i * last / (kept - 1))] for i in range(kept)]


def inert_json(value: Any) -> Markup:
  """JSON in ASCII that cannot end, or comment out, a script element.

  Every character that is not ASCII (U+2028, lone surrogates) is an escape, and
  so are <, > and &: neither `</script` nor `<!--` can stand in it.
  """
  content = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
  for char in "<>&":
    content = content.replace(char, f"\\u{ord(char):04x}")
  return Markup(content)


def page_parts() -> Mapping[str, Markup]:
  """The style, the script and the policy that allows these two alone."""
  here = Path(__file__).parent
  style, script = (
    # A browser normalizes line ends before it hashes, and so does read_text.
    (here / name).read_text(encoding="utf-8")
    for name in ("style.css", "browser.js")
  )
  policy = (
    f"default-src 'none'; script-src {_source(script)}; style-src"
    f" {_source(style)}; img-src data:; base-uri 'none'; form-action 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
  )
  return {
    "style": Markup(style),
    "script": Markup(script),
    "policy": Markup(policy),
  }


def _source(content: str) -> str:
  digest = hashlib.sha256(content.encode("utf-8")).digest()
  return f"'sha256-{base64.b64encode(digest).decode()}'"
