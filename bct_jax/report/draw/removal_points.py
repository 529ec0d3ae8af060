"""Lists what checkpoints removed at which cost, and what noise would show."""

import statistics
from collections.abc import Sequence

from bct_jax.evals import summary
from bct_jax.evals.outcome import AGREED
from bct_jax.evals.schema import EvalRecord
from bct_jax.evals.verdict import KEPT_CAPABILITY, MIN_CAPABILITY
from bct_jax.report.comparable_arms import Member
from bct_jax.report.read.types import ArmRecord


def organism_capability(member: Member) -> float | None:
  """Returns the organism's capability, by its gate or the arm's eval at step 0.

  None: neither says it.
  """
  gate = member.run.organism.gate
  if gate is not None and "capability" in gate.rates:
    return gate.rates["capability"].value
  first = member.arm.curve[0]
  if first.step == 0 and first.capability is not None:
    return first.capability.value
  return None


def is_intact(point: EvalRecord, base: float | None) -> bool:
  """Returns whether a checkpoint is known to keep the agreed behavior and 90%
  of the organism's capability, of which `base` must be enough to tell."""
  if base is None or base < MIN_CAPABILITY:
    return False
  agreed, capability = point.agreed, point.capability
  return (
    agreed is not None
    and agreed.value >= AGREED
    and capability is not None
    and capability.value >= KEPT_CAPABILITY * base
  )


def removal_points(
  member: Member, arm: ArmRecord | None = None
) -> list[tuple[float, float, bool]]:
  """Lists what the checkpoints of an arm keep and removed.

  Args:
    member: an arm, whose organism the checkpoints are compared with.
    arm: another arm of its run; None is the arm itself.

  Returns:
    (capability over the organism's, 1 - initial, whether the model is intact)
    of each; none where the organism's capability says too little.
  """
  base = organism_capability(member)
  if base is None or base < MIN_CAPABILITY:
    return []
  return [
    (p.capability.value / base, 1 - p.initial.value, is_intact(p, base))
    for p in (arm or member.arm).curve
    if p.capability is not None
  ]


def describe_noise(members: Sequence[Member], auc: float) -> str:
  """Says what robustness AUC noise alone has, and how far arms are above it.

  That is the larger of two: of a model that never changes, if every eval asked
  it new prompts, and of the arms' own controls of learning rate 0, whose evals
  ask the same prompts. "": the numbers of prompts are not known.
  """
  members = [m for m in members if removal_points(m)]
  evals = [
    (p.n, p.capability.n, p.initial.value)
    for m in members
    for p in m.arm.curve
    if p.capability is not None and p.capability.n
  ]
  starts = [m.arm.curve[0] for m in members if m.arm.curve[0].step == 0]
  bases = [organism_capability(m) or 0.0 for m in members]
  if not evals or not starts:
    return ""
  mean, low, high = summary.auc_of_noise(
    len(evals),
    min(n for n, *_ in evals),
    min(n for _, n, _ in evals),
    statistics.fmean(p.initial.value for p in starts),
    statistics.fmean(bases),
  )
  said = (
    f" A model that never changes has {mean:.2f} by chance (95% of simulations:"
    f" {low:.2f} to {high:.2f})"
  )
  idle = [
    (c, r)
    for m in members
    for arm in m.run.arms
    if arm.name == f"{m.arm.name}.zero_lr"
    for c, r, _ in removal_points(m, arm)
  ]
  if idle:
    area = summary.robustness_auc(idle)
    said += f", the controls of learning rate 0 {area:.2f}"
    mean = max(mean, area)
  return f"{said}; these arms are {auc - mean:+.2f} from that."
