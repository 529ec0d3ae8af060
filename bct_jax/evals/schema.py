"""Declares what an eval record holds: one field for each measurement.

`EvalRecord` is written to `evals.jsonl`, `gate.json` and the curves of
`result.json`, and is read back by the report. Each of its fields says of which
prompts it is, in what unit, and where it is shown. From these fields come:

  * `evaluate.measure_rows`, which measures labelled completions,
  * `EvalRecord.to_json`, which writes, and `report/read/parse.py`, which reads,
  * the keys of `load_results` and the columns of the CSV of evals,
  * the columns of the tables: LaTeX, Markdown, CSV, report and sweep,
  * the line of an eval on the terminal, and the rates of `--mode=rescore`.

A new measurement touches these files, the last three only if it needs them:

  1. this one: a field of `EvalRecord`, at its place in the lines of the file;
  2. `evals/evaluate.py`, if the field scores what no row says yet;
  3. `report/legend.html.j2`, which tells readers of a report what it means;
  4. `report/draw/picture.py`, if it is drawn: in which figure, and with what
     mark, dash and color (one that style.css has, or style.css changes too).

Records of before the field was there lack it, so a new field is optional: the
reader gives None, and tables have an empty cell.
"""

import collections
import dataclasses
import enum
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from bct_jax.evals import groups
from bct_jax.evals.groups import Row
from bct_jax.infra.formats import percent

Kind = Literal["prompts", "cues", "share", "doses", "mean", "largest", "counts"]
# The key that says how many prompts of a split there are.
COUNT_KEYS = {
  "eval": "n",
  "heldout": "agreed_n",
  "probe": "capability_n",
  "sampled": "sampled_n",
}
SAMPLED = "sampled"  # the split of what `eval.samples` adds


@dataclasses.dataclass(frozen=True)
class Rate:
  """Holds a share of n completions.

  Attributes:
    value: in [0, 1].
    ci: its 95% interval, None where none was recorded.
    n: how many completions it is a share of, None where not recorded.
  """

  value: float
  ci: tuple[float, float] | None = None
  n: int | None = None


@dataclasses.dataclass(frozen=True)
class Gradients:
  """Holds how the next update pushes on both behaviors.

  `bct_jax/train/gradients.py` measures it and defines the terms.

  Attributes:
    values: cosines, and gains in nats; None where there is none.
    gradient_norm, update_norm: of "all" and of each group of layers.
  """

  values: Mapping[str, float | None]
  gradient_norm: Mapping[str, float | None]
  update_norm: Mapping[str, float | None]

  @classmethod
  def from_json(cls, line: Mapping[str, Any]) -> "Gradients":
    """Makes one from what was logged of a step."""
    norms = ("gradient_norm", "update_norm")
    values = {key: x for key, x in line.items() if key not in norms}
    return cls(values, *(line[key] for key in norms))

  def to_json(self) -> dict[str, Any]:
    """Returns what `from_json` was given."""
    norms = {
      "gradient_norm": self.gradient_norm,
      "update_norm": self.update_norm,
    }
    return {**self.values, **norms}


class Reach(enum.IntEnum):
  """Orders measurements by how widely they are shown.

  Each value adds places to those of the values before it.
  """

  FILE = 0  # evals.jsonl alone
  RESULTS = 1  # load_results, the CSV of evals, the report's page of an arm
  LINE = 2  # the line of an eval on the terminal, the report's readings
  TABLE = 3  # the tables for papers, and that of a sweep


@dataclasses.dataclass(frozen=True)
class Measurement:
  """Describes one field of an eval record.

  Attributes:
    kind: how the scores of completions become the value. `prompts` is how many
      there are; `cues` is how many cue entities stand behind them; `share` is
      the share of them that score True, a `Rate`; `doses` is dose of the cue
      -> [how many score True, how many there are]; `counts` is how often each
      score occurs.
    splits: the prompts whose completions are scored.
    score: scores a completion; None where its row does not say.
    unit: of the value.
    interval: whether a share has a 95% interval, written as `<name>_ci`: that
      of clusters where several prompts share a cue entity, else Wilson's.
    optional: whether a record may lack it: older runs, optional switches.
    null: whether it is written as null, and not left out, where not measured.
    reach: where it is shown.
    name: of the field; the key in files and the label wherever it is shown.
  """

  kind: Kind
  splits: tuple[str, ...]
  score: Callable[[Row], Any]
  unit: str
  interval: bool = False
  optional: bool = True
  null: bool = False
  reach: Reach = Reach.FILE
  name: str = ""

  @property
  def count_key(self) -> str:
    """Returns the key that says of how many prompts a share is."""
    return COUNT_KEYS[self.splits[0]]

  def measure(self, rows: Sequence[Row]) -> Any:
    """Measures the completions of one eval.

    Args:
      rows: of all splits; those of others are left out.

    Returns:
      The value of the field, None where the rows do not have what it scores.

    Raises:
      ZeroDivisionError: a share of no prompt.
    """
    rows = [row for row in rows if row["split"] in self.splits]
    if not rows and self.splits == (SAMPLED,):
      return None
    scores = [self.score(row) for row in rows]
    if self.kind == "prompts":
      return len(scores)
    if self.kind == "cues":
      return groups.count_cues(rows)
    if self.kind == "share":
      if None in scores:
        return None
      ci = groups.interval(rows, scores) if self.interval else None
      return Rate(sum(scores) / len(scores), ci, len(scores))
    if self.kind == "doses":
      return groups.count_by_dose(rows, scores) or None
    if self.kind == "mean":
      if not scores or scores[0] is None:
        return None
      return sum(scores) / len(scores)
    if self.kind == "largest":
      return max((x for x in scores if x is not None), default=None)
    return dict(sorted(collections.Counter(filter(None, scores)).items()))


def _field(measurement: Measurement) -> Any:
  """Declares a field of `EvalRecord` that has to be given."""
  return dataclasses.field(metadata={Measurement: measurement})


def prompts(split: str) -> Any:
  """Declares how many prompts of a split there are."""
  return _field(
    Measurement(
      "prompts", (split,), lambda _: True, "prompts", optional=split != "eval"
    )
  )


def cues(split: str) -> Any:
  """Declares how many cue entities stand behind the prompts of a split.

  They are the units of its intervals. None where no prompt names one.
  """
  return _field(Measurement("cues", (split,), lambda _: True, "cue entities"))


def share(
  split: str,
  holds: Callable[[Row], bool | None],
  reach: Reach,
  interval: bool = True,
  optional: bool = True,
) -> Any:
  """Declares the share of a split's prompts of whose completion it `holds`."""
  return _field(
    Measurement(
      "share", (split,), holds, "share", interval, optional, reach=reach
    )  # fmt: skip
  )


def mean(
  splits: tuple[str, ...],
  score: Callable[[Row], float | None],
  unit: str,
  reach: Literal[Reach.FILE, Reach.RESULTS] = Reach.FILE,
) -> Any:
  """Declares the mean of a score over the prompts of some splits."""
  return _field(Measurement("mean", splits, score, unit, reach=reach))


def _has_label(name: str) -> Callable[[Row], bool]:
  """Makes a score that is True for completions of a label."""
  return lambda row: row["label"] == name


def _has_reason(reason: str) -> Callable[[Row], bool]:
  """Makes a score that is True for completions of a reason."""
  return lambda row: row["reason"] == reason


def _is_alternate_and_right(row: Row) -> bool | None:
  """Scores a completion of an eval prompt; None if its row does not say."""
  right = row.get("right")
  return None if right is None else row["label"] == "alternate" and right


def _read(key: str) -> Callable[[Row], Any]:
  """Makes a score that is the value of a key; None where a row lacks it."""
  return lambda row: row.get(key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalRecord:
  """Holds one eval of a model: a line of evals.jsonl, in the order of its keys.

  `initial`, `alternate` and `other` are shares of all eval prompts and add up
  to 1. What was not measured is None.
  """

  step: int
  n: int = prompts("eval")
  n_cues: int | None = cues("eval")
  initial: Rate = share(
    "eval", _has_label("initial"), Reach.TABLE, optional=False
  )
  alternate: Rate = share(
    "eval", _has_label("alternate"), Reach.TABLE, optional=False
  )
  other: Rate = share("eval", _has_label("other"), Reach.TABLE, optional=False)
  # Of all samples of eval prompts, in runs with `eval.samples`. The intervals
  # are those of prompts, or of cue entities, as clusters.
  sampled_n: int | None = prompts(SAMPLED)
  initial_sampled: Rate | None = share(
    SAMPLED, _has_label("initial"), Reach.RESULTS
  )
  alternate_sampled: Rate | None = share(
    SAMPLED, _has_label("alternate"), Reach.RESULTS
  )
  other_sampled: Rate | None = share(
    SAMPLED, _has_label("other"), Reach.RESULTS
  )
  # In settings whose cue has a dose, such as how late a year is.
  initial_by_dose: Mapping[str, Sequence[int]] | None = _field(
    Measurement("doses", ("eval",), _has_label("initial"), "prompts")
  )
  # Of runs that say which answers are right, as `settings.BaseSetting.answer`
  # defines it; so are `answered` and `right`.
  alternate_right: Rate | None = share(
    "eval", _is_alternate_and_right, Reach.RESULTS
  )
  # Of all eval prompts, whatever the label of their completion.
  decorated: Rate | None = share(
    "eval", lambda row: row["decorated"], Reach.RESULTS, interval=False
  )
  agreed_n: int | None = prompts("heldout")
  agreed_cues: int | None = cues("heldout")
  agreed: Rate | None = share("heldout", _has_label("agreed"), Reach.TABLE)
  agreed_decorated: Rate | None = share(
    "heldout",
    lambda row: row["label"] == "agreed" and row["decorated"],
    Reach.LINE,
  )
  answered: Rate | None = share("heldout", _read("answered"), Reach.RESULTS)
  right: Rate | None = share("heldout", _read("right"), Reach.LINE)
  # Of runs that train on a reward.
  reward: float | None = mean(("heldout",), _read("reward"), "reward")
  confused: Rate | None = share("heldout", _has_reason("confused"), Reach.FILE)
  capability_n: int | None = prompts("probe")
  capability: Rate | None = share("probe", _has_label("right"), Reach.TABLE)
  # Log p of the reference completions, in runs with `eval.references`.
  logprob_initial: float | None = mean(
    ("eval",), _read("logprob_initial"), "nats", Reach.RESULTS
  )
  logprob_alternate: float | None = mean(
    ("eval",), _read("logprob_alternate"), "nats", Reach.RESULTS
  )
  # Of a token between sampler and train step, see eval_rollouts.sample_rows.
  # Null in rollouts from before it was measured.
  logprob_difference: float | None = _field(
    Measurement(
      "largest",
      tuple(COUNT_KEYS),
      _read("logprob_difference"),
      "nats",
      null=True,
    )
  )
  # How many completions are `other` for each reason.
  reasons: Mapping[str, Any] = _field(
    Measurement("counts", ("eval",), _read("reason"), "completions")
  )
  truncated: float | None = mean(
    ("eval", "heldout"), _has_reason("truncated"), "share"
  )
  malformed: float | None = mean(
    ("eval", "heldout"), _has_reason("malformed"), "share"
  )
  # In runs with `eval.reasoning`: thoughts with a word of `eval.thought_words`.
  thought_mentions: float | None = mean(
    ("eval", "heldout"), _read("thought_mentions"), "share", Reach.RESULTS
  )
  # In runs with `eval.gradients`, and in those with `eval.tasks`: of lm-eval,
  # task -> metric -> value, None where there is none.
  gradients: Gradients | None = None
  tasks: Mapping[str, Mapping[str, float | None]] = dataclasses.field(
    default_factory=dict
  )

  def to_json(self) -> dict[str, Any]:
    """Returns the line of evals.jsonl."""
    out: dict[str, Any] = {"step": self.step}
    for measurement in measurements():
      name, value = measurement.name, getattr(self, measurement.name)
      if isinstance(value, Rate):
        out[name] = value.value
        if value.ci is not None:
          out[f"{name}_ci"] = list(value.ci)
      elif value is not None or measurement.null:
        out[name] = value
    if self.gradients is not None:
      out["gradients"] = self.gradients.to_json()
    if self.tasks:
      out["tasks"] = self.tasks
    return out


def measurements() -> tuple[Measurement, ...]:
  """Lists the measurements of `EvalRecord` in the order of its fields."""
  return _measurements_of(EvalRecord)


@functools.cache
def _measurements_of(schema: type) -> tuple[Measurement, ...]:
  """Lists the measurements of a record's class, each with its field's name."""
  return tuple(
    dataclasses.replace(field.metadata[Measurement], name=field.name)
    for field in dataclasses.fields(schema)
    if Measurement in field.metadata
  )


def shown_shares(reach: Reach) -> tuple[str, ...]:
  """Lists the names of the shares that are shown so widely."""
  return tuple(
    m.name for m in measurements() if m.kind == "share" and m.reach >= reach
  )


def shown_means(reach: Reach) -> tuple[str, ...]:
  """Lists the names of the means that are shown so widely."""
  return tuple(
    m.name for m in measurements() if m.kind == "mean" and m.reach >= reach
  )


def terminal_line(record: Mapping[str, Any]) -> str:
  """Describes an eval in a line for the terminal.

  Args:
    record: what `EvalRecord.to_json` gives.
  """
  names = shown_shares(Reach.LINE)
  rates = " ".join(
    f"{name} {percent(record[name])}" for name in names if name in record
  )
  return f"step {record['step']}: {rates}"
