"""Makes the data of the rollout browser, and the policy that its page is under.

The page holds the completions, packed, in a block that no browser executes;
browser.js unpacks them and shows them as text only. The policy names by hash
the scripts and the one style that the page may use, so that nothing a model
wrote could run, even if it got into the markup.
"""

import base64
import dataclasses
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bct_jax.report import text
from bct_jax.report.read.references import find_references
from bct_jax.report.read.types import ArmRecord, Row, RunRecord

MAX_ROWS = 250_000  # completions in one page; more than these are thinned out
FIELDS = (
  *("arm", "step", "split", "id", "prompt", "text"),
  *("label", "reason", "decorated", "stop", "right"),
)
# What the answers before training are listed under, where arms share them.
ORGANISM = "the organism"


@dataclasses.dataclass(frozen=True)
class Browser:
  """Holds what the template of the browser needs.

  Attributes:
    rows: how many completions the page has.
    left_out: says what the page lacks, "" where it has all completions.
    data: JSON, compressed by gzip and in base64. Its columns are a list of
      numbers for each of FIELDS; they count in `arms`, `prompts` and `strings`.
      `references` has for a prompt what both behaviors say.
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
  arms = _with_organisms(runs)
  total = sum(map(len, (r for _, a in arms for r in a.rollouts.values())))
  most = max((len(arm.rollouts) for _, arm in arms), default=0)
  num_steps = most
  while num_steps > 1 and _size(arms, num_steps) > max_rows:
    num_steps -= 1
  strings, prompts, rows = _Table(), _Table(), []
  references: dict[int, tuple[int, int]] = {}
  said = [find_references(run) for run in runs]
  for i, (run, arm) in enumerate(arms):
    for step in _spaced(sorted(arm.rollouts), num_steps):
      for row in arm.rollouts[step]:
        rows.append(_numbers(row, i, step, strings, prompts))
        if (pair := said[run].get((row.split, row.id))) is not None:
          references[rows[-1][4]] = (strings[pair[0]], strings[pair[1]])
  num_rows = len(rows)
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
    "told": [dict(text.behaviors(run)) for run in runs],
    "strings": list(strings),
    "prompts": list(prompts),
    "references": references,
    "columns": dict(zip(FIELDS, zip(*rows, strict=True), strict=True))
    if rows
    else {name: [] for name in FIELDS},
  }
  return Browser(num_rows, left_out, pack(data))


def _with_organisms(runs: Sequence[RunRecord]) -> list[tuple[int, ArmRecord]]:
  """Lists the arms of all runs with the numbers of their runs.

  Answers at step 0 are the organism's, once for all arms that begin with them:
  they are those of a further arm, ORGANISM, behind all others.
  """
  out, organisms = [], []
  for i, run in enumerate(runs):
    begun = [arm.rollouts[0] for arm in run.arms if arm.rollouts.get(0)]
    first = _answers(begun[0]) if begun else []
    alike = [_answers(rows) == first for rows in begun]
    for arm in run.arms:
      rollouts = arm.rollouts
      if sum(alike) > 1 and _answers(rollouts.get(0, ())) == first:
        rollouts = {step: rows for step, rows in rollouts.items() if step}
      out.append((i, dataclasses.replace(arm, rollouts=rollouts)))
    if sum(alike) > 1:
      arm = dataclasses.replace(
        run.arms[0], name=ORGANISM, rollouts={0: begun[0]}
      )
      organisms.append((i, arm))
  return out + organisms


def _answers(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
  """Lists what tells apart the answers of an eval."""
  return [(row.split, row.id, row.text) for row in rows]


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
    *(_number(row.decorated), strings[row.stop], _number(row.right)),
  ]


def _number(value: bool | None) -> int:
  """Writes a flag as 0 or 1, and one that is not known as -1."""
  return -1 if value is None else int(value)


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


def pack(value: Any) -> Markup:
  """Writes JSON, compressed, in letters that can end no script element.

  The page unpacks it when it is shown: 200,000 answers are a fraction of the
  bytes, and hold up nothing.
  """
  content = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
  # Without a time, so that the same runs give the same bytes.
  packed = gzip.compress(content.encode("ascii"), 6, mtime=0)
  return Markup(base64.b64encode(packed).decode("ascii"))


def page_parts() -> Mapping[str, Markup]:
  """Returns style, scripts, and the policy that allows these alone."""
  folder = Path(__file__).parent
  style, script, table, reload = (
    # A browser normalizes line ends before it hashes, and so does read_text.
    (folder / name).read_text(encoding="utf-8")
    for name in ("style.css", "browser.js", "table.js", "reload.js")
  )
  policy = (
    f"default-src 'none'; script-src {_source(script)} {_source(table)}"
    f" {_source(reload)}; style-src {_source(style)}; img-src data:;"
    " base-uri 'none'; form-action 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
  )
  return {
    "style": Markup(style),
    "script": Markup(script),
    "table": Markup(table),
    "reload": Markup(reload),
    "policy": Markup(policy),
  }


def _source(content: str) -> str:
  """Names a script or style by its hash, as a content security policy does."""
  digest = hashlib.sha256(content.encode("utf-8")).digest()
  return f"'sha256-{base64.b64encode(digest).decode()}'"
