"""Chooses what the template prints of runs, and puts it into words."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from bct_jax.evals.schema import (
  EvalRecord,
  Gradients,
  Rate,
  Reach,
  shown_shares,
)
from bct_jax.infra.formats import duration
from bct_jax.report import text
from bct_jax.report.corrected import last_corrected
from bct_jax.report.draw import arm_curves
from bct_jax.report.draw.picture import Picture
from bct_jax.report.read.load import SETTINGS
from bct_jax.report.read.types import (
  ArmRecord,
  GateRecord,
  Row,
  RunRecord,
)
from bct_jax.report.samples import (
  first_middle_last,
  samples_of,
  side_by_side,
)

OPEN_ARMS = 4  # with more arms than this, their curves are folded


@dataclasses.dataclass(frozen=True)
class Bar:
  """Describes one line of the gate: a rate and the bar that it had to reach.

  Attributes:
    bar: in words, "none" where the rate had to reach no bar.
    passed: None where there is no bar.
  """

  name: str
  rate: Rate
  bar: str
  passed: bool | None


@dataclasses.dataclass(frozen=True)
class ArmView:
  """Holds an arm as the template prints it.

  Attributes:
    key: begins the ids of its elements, unique in the page.
    number: counts the arms of all runs.
    last: its last eval, None where there is none.
    measured: names of the shares that any of its evals has.
    summary: a sentence on how it ended.
    gradients: step, and heading -> cell, of each eval that has them.
    tasks: eval, and heading -> cell, of each eval that has tasks.
    steps: whose completions stand side by side.
    prompts: for each of a few prompts, its completions at `steps`.
    num_others: completions that are labelled `other`.
  """

  key: str
  number: int
  arm: ArmRecord
  last: EvalRecord | None
  measured: list[str]
  summary: str
  settings: dict[str, str]
  style_step: str
  loss_step: str
  margin: str
  deployment_length: str
  cost: str
  reasons: list[str]
  doses: list[str]
  rates_svg: Picture | None
  learned_svg: Picture | None
  references_svg: Picture | None
  gradients_svg: Picture | None
  gradients: list[tuple[int, dict[str, str]]]
  tasks: list[tuple[EvalRecord, dict[str, str]]]
  loss_svg: Picture | None
  loss: str
  steps: list[int]
  prompts: list[list[Row]]
  num_others: int


@dataclasses.dataclass(frozen=True)
class RunView:
  """Holds a run as the template prints it.

  Attributes:
    key: begins the ids of its elements, unique in the page.
    origin: when it began, and by which code.
    command: that began it, "" where it is not known.
    samples: a few answers at the last evals, one for each kind.
    behaviors: what both do, by heading of the setting's docstring; empty for a
      setting that is not known here.
    summary: a sentence on what was run, up to the arms.
    primary: what came out of the primary comparison; "" if none was named.
    shared: settings that are the same in all arms.
    varied: names of the others.
    capability: of the organism, None where it was not measured.
    fold_arms: whether the curves of each arm are folded with it.
    tables: title, and (key, value) of each line.
    corrected: raw and corrected rates of each arm's last eval, as text.
  """

  key: str
  run: RunRecord
  title: str
  origin: str
  command: str
  behaviors: Mapping[str, str]
  summary: str
  primary: str
  arms: list[ArmView]
  samples: list[tuple[str, Row]]
  shared: dict[str, str]
  varied: list[str]
  gate: list[Bar]
  capability: Rate | None
  fold_arms: bool
  tables: list[tuple[str, list[tuple[str, str]]]]
  corrected: list[tuple[str, Mapping[str, str]]]


def make_run_views(runs: Sequence[RunRecord]) -> list[RunView]:
  """Makes what the template needs of each run."""
  # The number of a run's first arm among the arms of all runs.
  firsts = itertools.accumulate((len(run.arms) for run in runs), initial=0)
  fold = sum(len(run.arms) for run in runs) > OPEN_ARMS
  return [
    _view_run(run, i, n, fold)
    for (i, run), n in zip(enumerate(runs), firsts, strict=False)
  ]


def _view_run(
  run: RunRecord, index: int, first_arm: int, fold_arms: bool
) -> RunView:
  """Makes what the template needs of a run.

  Args:
    run: what was read of it.
    index: of the run in the page.
    first_arm: the number of its first arm.
    fold_arms: whether the curves of each arm are folded with it.
  """
  key = f"r{index + 1}"
  arms = [
    _view_arm(a, f"{key}a{i + 1}", first_arm + i)
    for i, a in enumerate(run.arms)
  ]
  shared = shared_settings([a.settings for a in arms])
  gate = run.organism.gate
  return RunView(
    key=key,
    run=run,
    title=text.title(run),
    origin=text.describe_origin(run),
    command=text.command(run),
    behaviors=text.behaviors(run),
    summary=text.describe_run(run),
    primary=text.describe_primary(run),
    arms=arms,
    samples=samples_of(run),
    shared=shared,
    varied=[
      key
      for key in SETTINGS
      if key not in shared and any(key in a.settings for a in arms)
    ],
    gate=_bars(gate) if gate else [],
    capability=gate.rates.get("capability") if gate else None,
    fold_arms=fold_arms,
    tables=[
      ("Overrides of the configuration", text.flatten(run.overrides)),
      ("Configuration", text.flatten(run.config)),
      ("Environment", text.flatten(run.env)),
      ("How the organism was made", text.flatten(run.organism.install)),
      ("Provenance of the organism", text.flatten(run.organism.provenance)),
      ("The judge that gave the labels", text.flatten(run.judge)),
    ],
    corrected=[
      (arm.name, cells)
      for arm in run.arms
      if (cells := last_corrected(run, arm))
    ],
  )


def shared_settings(settings: Sequence[dict[str, str]]) -> dict[str, str]:
  """Returns the settings that are the same in all arms."""
  if not settings:
    return {}
  first = settings[0]
  return {
    key: value
    for key, value in first.items()
    if all(s.get(key) == value for s in settings)
  }


def _bars(gate: GateRecord) -> list[Bar]:
  """Makes the lines of the gate, with those of the model before the install."""
  bars = []
  for name, rate in gate.rates.items():
    bar = gate.thresholds.get(name)
    if bar is None:
      bars.append(Bar(name, rate, "none", None))
    elif name == "confused":
      text_bar = f"at most {text.percent(bar)}"
      bars.append(Bar(name, rate, text_bar, rate.value <= bar))
    else:
      text_bar = f"at least {text.percent(bar)}"
      bars.append(Bar(name, rate, text_bar, rate.value >= bar))
    floor = gate.thresholds.get(f"{name}_floor")
    if floor is not None and rate.ci is not None:
      text_bar = f"lower bound at least {text.percent(floor)}"
      bars.append(Bar(name, rate, text_bar, rate.ci[0] >= floor))
  for name, rate in gate.base.items():
    bars.append(Bar(f"{name} before the install", rate, "none", None))
  return bars


def _view_arm(arm: ArmRecord, key: str, number: int) -> ArmView:
  """Makes what the template needs of an arm."""
  curve = arm.curve
  steps = first_middle_last(sorted(arm.rollouts))
  pushes = [(p.step, _pushes(p.gradients)) for p in curve if p.gradients]
  return ArmView(
    key=key,
    number=number,
    arm=arm,
    last=curve[-1] if curve else None,
    measured=[
      n
      for n in shown_shares(Reach.RESULTS)
      if any(getattr(p, n) for p in curve)
    ],
    summary=text.describe_arm(arm),
    settings={k: text.setting_value(k, v) for k, v in arm.settings.items()},
    style_step=text.bracket(arm.style_step),
    loss_step=text.bracket(arm.loss_step),
    margin=arm.reading.margin_text() if arm.reading else "–",
    deployment_length=text.crossing(arm.deployment_length),
    cost=_cost(arm),
    reasons=[_reasons(point) for point in curve],
    doses=[_doses(point) for point in curve],
    rates_svg=arm_curves.rates_svg(arm, f"{key}r") if curve else None,
    learned_svg=arm_curves.learned_svg(arm, f"{key}l") if curve else None,
    references_svg=arm_curves.references_svg(arm, f"{key}p")
    if any(point.logprob_initial is not None for point in curve)
    else None,
    gradients_svg=arm_curves.gradients_svg(arm, f"{key}g") if pushes else None,
    gradients=pushes,
    tasks=_tasks(curve),
    loss_svg=arm_curves.loss_svg(arm, f"{key}t") if arm.metrics else None,
    loss=_loss(arm),
    steps=steps,
    prompts=side_by_side(arm, steps),
    num_others=sum(
      row.label == "other" for rows in arm.rollouts.values() for row in rows
    ),
  )


def _cost(arm: ArmRecord) -> str:
  """Says how long training took, and how near sampler and trainer are."""
  parts = []
  if arm.trained_tokens is not None:
    parts.append(f"{arm.trained_tokens:,} trained tokens")
  if arm.seconds is not None:
    parts.append(duration(arm.seconds))
  measured = [p.logprob_difference for p in arm.curve]
  differences = [d for d in measured if d is not None]
  if differences:
    most = text.number(max(differences))
    parts.append(f"log-probs of sampler and trainer within {most}")
  return ", ".join(parts)


def _pushes(gradients: Gradients) -> dict[str, str]:
  """Maps headings to cells: gains, and both norms of all and of each group."""

  def cell(value: float | None) -> str:
    return "–" if value is None else text.number(value)

  gains = {
    f"gain of {name}, nats": cell(gradients.values[f"update_gain_{name}"])
    for name in ("initial", "alternate")
  }
  norms = {
    f"norms, {group}": (cell(norm), cell(gradients.update_norm.get(group)))
    for group, norm in gradients.gradient_norm.items()
  }
  return gains | {heading: " / ".join(pair) for heading, pair in norms.items()}


def _tasks(
  curve: Sequence[EvalRecord],
) -> list[tuple[EvalRecord, dict[str, str]]]:
  """Lists the evals that have tasks.

  Returns:
    Each eval, and heading -> cell, with the headings of all of them.
  """
  points = [point for point in curve if point.tasks]
  headings = {
    f"{task} {metric}": (task, metric)
    for point in points
    for task, metrics in point.tasks.items()
    for metric in metrics
    if metric != "n" and "_stderr" not in metric
  }
  return [
    (point, {k: _score(point, *key) for k, key in headings.items()})
    for point in points
  ]


def _score(point: EvalRecord, task: str, metric: str) -> str:
  """Writes a value with its standard error, which has a key of its own."""
  metrics = point.tasks.get(task, {})
  name, comma, rest = metric.partition(",")
  value, error = metrics.get(metric), metrics.get(f"{name}_stderr{comma}{rest}")
  if value is None:
    return "–"
  cell = text.number(value)
  return cell if error is None else f"{cell} ± {text.number(error)}"


def _reasons(point: EvalRecord) -> str:
  """Lists how often each reason for `other` was given."""
  return ", ".join(f"{name} {n}" for name, n in point.reasons.items() if n)


def _doses(point: EvalRecord) -> str:
  """Writes how many prompts of each dose got an `initial` answer."""
  doses = point.initial_by_dose or {}
  return ", ".join(f"{d}: {hits} of {n}" for d, (hits, n) in doses.items())


def _loss(arm: ArmRecord) -> str:
  """Describes loss and gradient norm at the ends of training."""
  if not arm.metrics:
    return ""
  first, last = arm.metrics[0], arm.metrics[-1]
  ends = (
    f"Loss {text.number(first.loss)} at step {first.step},"
    f" {text.number(last.loss)} at step {last.step}; gradient norm"
    f" {text.number(first.grad_norm)}, then {text.number(last.grad_norm)}."
  )
  bad = [m.step for m in arm.metrics if not math.isfinite(m.loss)]
  return f"{ends} Not finite at {len(bad)} steps." if bad else ends
