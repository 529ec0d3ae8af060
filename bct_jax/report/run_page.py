"""What the template prints: a run's values chosen and put into words."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from bct_jax.evals.schema import EvalRecord, Gradients, Rate
from bct_jax.report import text
from bct_jax.report.draw import arm_curves
from bct_jax.report.draw.picture import Picture
from bct_jax.report.read.load import SETTINGS
from bct_jax.report.read.types import (
  ArmRecord,
  GateRecord,
  Row,
  RunRecord,
)

NUM_PROMPTS = {"eval": 3, "heldout": 2}  # side by side, per split
OPEN_ARMS = 4  # with more arms in all than this, each is folded


@dataclasses.dataclass(frozen=True)
class Bar:
  """One line of the gate: a rate and the bar it had to reach, if any."""

  name: str
  rate: Rate
  bar: str
  passed: bool | None


@dataclasses.dataclass(frozen=True)
class ArmView:
  """An arm as the template prints it; `number` counts those of all runs."""

  key: str
  number: int
  arm: ArmRecord
  last: EvalRecord | None
  told: str
  verdict: str
  settings: dict[str, str]
  transfer_step: str
  deployment_length: str
  cost: str
  reasons: list[str]
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
  """A run as the template prints it."""

  key: str
  run: RunRecord
  title: str
  told: str
  arms: list[ArmView]
  shared: dict[str, str]
  varied: list[str]
  gate: list[Bar]
  capability: Rate | None
  fold_arms: bool
  tables: list[tuple[str, list[tuple[str, str]]]]


def make_run_views(runs: Sequence[RunRecord]) -> list[RunView]:
  """Everything the template needs of the runs."""
  before = itertools.accumulate((len(run.arms) for run in runs), initial=0)
  fold = sum(len(run.arms) for run in runs) > OPEN_ARMS
  return [
    _of_run(run, i, n, fold)
    for (i, run), n in zip(enumerate(runs), before, strict=False)
  ]


def _of_run(
  run: RunRecord, index: int, before: int, fold_arms: bool
) -> RunView:
  key = f"r{index + 1}"
  arms = [
    _of_arm(a, f"{key}a{i + 1}", before + i) for i, a in enumerate(run.arms)
  ]
  shared = _shared([a.settings for a in arms])
  gate = run.organism.gate
  return RunView(
    key=key,
    run=run,
    title=text.title(run),
    told=text.describe_run(run),
    arms=arms,
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
      ("How the organism was made", text.flatten(run.organism.made)),
      ("Provenance of the organism", text.flatten(run.organism.provenance)),
    ],
  )


def _shared(settings: Sequence[dict[str, str]]) -> dict[str, str]:
  """The settings that are the same in all arms."""
  if not settings:
    return {}
  first = settings[0]
  return {
    key: value
    for key, value in first.items()
    if all(s.get(key) == value for s in settings)
  }


def _bars(gate: GateRecord) -> list[Bar]:
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
  for name, rate in gate.base.items():
    bars.append(Bar(f"{name} before the install", rate, "none", None))
  return bars


def _of_arm(arm: ArmRecord, key: str, number: int) -> ArmView:
  curve = arm.curve
  steps = _chosen(sorted(arm.rollouts))
  pushed = [(p.step, _pushes(p.gradients)) for p in curve if p.gradients]
  return ArmView(
    key=key,
    number=number,
    arm=arm,
    last=curve[-1] if curve else None,
    told=text.describe_arm(arm),
    verdict=arm.verdict or ("no verdict" if arm.finished else "unfinished"),
    settings={k: text.setting_value(k, v) for k, v in arm.settings.items()},
    transfer_step=text.crossing(arm.transfer_step),
    deployment_length=text.crossing(arm.deployment_length),
    cost=_cost(arm),
    reasons=[_reasons(point) for point in curve],
    rates_svg=arm_curves.rates_svg(arm, f"{key}r") if curve else None,
    learned_svg=arm_curves.learned_svg(arm, f"{key}l") if curve else None,
    references_svg=arm_curves.references_svg(arm, f"{key}p")
    if any(point.logprob_initial is not None for point in curve)
    else None,
    gradients_svg=arm_curves.gradients_svg(arm, f"{key}g") if pushed else None,
    gradients=pushed,
    tasks=_tasks(curve),
    loss_svg=arm_curves.loss_svg(arm, f"{key}t") if arm.metrics else None,
    loss=_loss(arm),
    steps=steps,
    prompts=_side_by_side(arm, steps),
    num_others=sum(
      row.label == "other" for rows in arm.rollouts.values() for row in rows
    ),
  )


def _chosen(steps: Sequence[int]) -> list[int]:
  """The first, the middle and the last."""
  if not steps:
    return []
  return sorted({steps[0], steps[len(steps) // 2], steps[-1]})


def _side_by_side(arm: ArmRecord, steps: Sequence[int]) -> list[list[Row]]:
  """For each of a few prompts its completions at the steps.

  The prompts are the first of their split in the file: choosing them by what
  came out would make a nicer story than the run tells.
  """
  if not steps:
    return []
  rows = {s: {(r.split, r.id): r for r in arm.rollouts[s]} for s in steps}
  prompts = []
  for split, n in NUM_PROMPTS.items():
    ids = [r.id for r in arm.rollouts[steps[-1]] if r.split == split]
    for name in list(dict.fromkeys(ids))[:n]:
      found = [rows[s].get((split, name)) for s in steps]
      prompts.append([row for row in found if row is not None])
  return prompts


def _cost(arm: ArmRecord) -> str:
  parts = []
  if arm.trained_tokens is not None:
    parts.append(f"{arm.trained_tokens:,} trained tokens")
  if arm.seconds is not None:
    parts.append(text.seconds(arm.seconds))
  found = [p.logprob_difference for p in arm.curve]
  known = [d for d in found if d is not None]
  if known:
    parts.append(
      f"log-probs of sampler and trainer within {text.number(max(known))}"
    )
  return ", ".join(parts)


def _pushes(found: Gradients) -> dict[str, str]:
  """Heading -> cell: gains, and both norms in all and of each group."""

  def told(value: float | None) -> str:
    return "–" if value is None else text.number(value)

  gains = {
    f"gain of {name}, nats": told(found.values[f"update_gain_{name}"])
    for name in ("initial", "alternate")
  }
  return gains | {
    f"norms, {group}": f"{told(norm)} / {told(found.update_norm.get(group))}"
    for group, norm in found.gradient_norm.items()
  }


def _tasks(
  curve: Sequence[EvalRecord],
) -> list[tuple[EvalRecord, dict[str, str]]]:
  """Evals with tasks, and heading -> cell; the headings of all of them."""
  points = [point for point in curve if point.tasks]
  headings = {
    f"{task} {metric}": (task, metric)
    for point in points
    for task, found in point.tasks.items()
    for metric in found
    if metric != "n" and "_stderr" not in metric
  }
  return [
    (point, {k: _score(point, *key) for k, key in headings.items()})
    for point in points
  ]


def _score(point: EvalRecord, task: str, metric: str) -> str:
  """A value with its standard error, which is under a key of its own."""
  found = point.tasks.get(task, {})
  name, comma, rest = metric.partition(",")
  value, error = found.get(metric), found.get(f"{name}_stderr{comma}{rest}")
  if value is None:
    return "–"
  told = text.number(value)
  return told if error is None else f"{told} ± {text.number(error)}"


def _reasons(point: EvalRecord) -> str:
  told = [f"{name} {n}" for name, n in point.reasons.items() if n]
  return ", ".join(told)


def _loss(arm: ArmRecord) -> str:
  if not arm.metrics:
    return ""
  first, last = arm.metrics[0], arm.metrics[-1]
  told = (
    f"Loss {text.number(first.loss)} at step {first.step},"
    f" {text.number(last.loss)} at step {last.step}; gradient norm"
    f" {text.number(first.grad_norm)}, then {text.number(last.grad_norm)}."
  )
  bad = [m.step for m in arm.metrics if not math.isfinite(m.loss)]
  return f"{told} Not finite at {len(bad)} steps." if bad else told
