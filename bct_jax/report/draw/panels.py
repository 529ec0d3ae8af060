"""Makes the panels of arms that differ in learning rate and seed alone."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from bct_jax.evals import summary
from bct_jax.evals.verdict import MIN_CAPABILITY
from bct_jax.report import text
from bct_jax.report.comparable_arms import Group, Member
from bct_jax.report.draw import comparisons
from bct_jax.report.draw.picture import Picture
from bct_jax.report.draw.removal_points import (
  describe_noise,
  is_intact,
  organism_capability,
  removal_points,
)


@dataclasses.dataclass(frozen=True)
class Panel:
  """Holds a figure with title and caption; or title and caption alone.

  Attributes:
    name: of the figure's file.
    caption: what came out and how to see it, in two sentences; or why nothing
      is drawn.
    notes: out of how many, what marks mean, and what else is to be known.
    rows: of a picture that is wider than a narrow screen, the same in words:
      the name of each row, and heading and words of each cell.
  """

  name: str
  title: str
  caption: str
  picture: Picture | None = None
  notes: str = ""
  rows: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()

  @property
  def words(self) -> str:
    """Returns caption and notes."""
    return f"{self.caption} {self.notes}".strip()


def evaluated_arms(group: Group) -> dict[float, list[Member]]:
  """Maps learning rates to their arms that have evals."""
  arms = {
    lr: [m for m in members if m.arm.curve]
    for lr, members in group.by_lr.items()
  }
  return {lr: members for lr, members in arms.items() if members}


def plural(n: int, what: str) -> str:
  """Writes a number and its noun, in the plural unless the number is 1."""
  return f"{n} {what}{'' if n == 1 else 's'}"


def make_panels(
  key: str, group: Group, by_lr: dict[float, list[Member]], rates: list[float]
) -> list[Panel]:
  """Makes all panels of a group; those that cannot be drawn have words alone.

  Args:
    key: begins the ids of the figures.
    group: the arms.
    by_lr: the arms with evals by learning rate.
    rates: the learning rates to draw lines for.
  """
  return [
    make(key, group, by_lr, rates)
    for make in (_retention, _margin, _removal, _survival)
  ]


def _seeds(by_lr: dict[float, list[Member]]) -> str:
  """Writes how many there are: "2 learning rates, 3 seeds each"."""
  counts = sorted({len(members) for members in by_lr.values()})
  each = plural(counts[0], "seed") if len(counts) == 1 else (
    f"{counts[0]} to {counts[-1]} seeds")  # fmt: skip
  return f"{plural(len(by_lr), 'learning rate')}, {each} each"


def _retention(
  key: str, group: Group, by_lr: dict[float, list[Member]], rates: list[float]
) -> Panel:
  """Makes the panel of the initial rate by step."""
  title = "Initial behavior by learning rate"
  curves = {
    lr: [[(p.step, p.initial.value) for p in m.arm.curve] for m in by_lr[lr]]
    for lr in rates
  }
  # A mean needs an eval at which all seeds were looked at.
  curves = {lr: c for lr, c in curves.items() if comparisons.shared_steps(c)}
  if not curves:
    return Panel("initial", title, "no step at which all seeds have an eval.")
  sizes = [p.n for arms in by_lr.values() for m in arms for p in m.arm.curve]
  notes = (
    f"{min(sizes)}{'' if min(sizes) == max(sizes) else f' to {max(sizes)}'}"
    f" prompts an eval; {_seeds(by_lr)}."
  )
  if any(len(c) > 2 for c in curves.values()):
    notes += (
      " Bands: 95% t interval of the mean across seeds, cut at 0 and 100%."
    )
  if any(len(c) < 3 for c in curves.values()):
    notes += " No band where there are fewer than 3 seeds."
  ends = [
    f"lr {text.number(lr)} "
    + text.percent(statistics.fmean(comparisons.shared_steps(c)[-1][1]))
    for lr, c in curves.items()
  ]
  caption = (
    "Share of eval prompts answered with the initial behavior, at the last"
    f" eval {', '.join(dict.fromkeys((ends[0], ends[-1])))}. Points are seeds,"
    " lines their mean where all have an eval."
  )
  picture = comparisons.retention_curves(
    f"{key}r", f"{text.visible(group.name)}: initial rate by learning rate",
    f"At the last eval: {', '.join(ends)}.", curves, rates,
  )  # fmt: skip
  return Panel("initial", title, caption, picture, notes)


def _finished_arms(by_lr: dict[float, list[Member]]) -> list[Member]:
  """Lists the arms that have been read, or judged by schema 1."""
  return [m for arms in by_lr.values() for m in arms if m.arm.behavior]


def _margin(
  key: str, group: Group, by_lr: dict[float, list[Member]], rates: list[float]
) -> Panel:
  """Makes the panel of style step and loss step by learning rate.

  The null of every comparison over learning rates, that lr x steps alone
  decides, is a falling line in it.
  """
  del rates
  title = "When the target was reached, and when the behavior was lost"
  finished = _finished_arms(by_lr)
  styles, losses, censored = [], [], []
  for m in finished:
    style, loss = m.arm.style_step, m.arm.loss_step
    if not m.lr or style is None or loss is None:
      continue
    if style.by and style.first:
      styles.append((m.lr, style.first, style.by))
    if loss.by and loss.first:
      losses.append((m.lr, loss.first, loss.by))
    elif loss.censored_at:
      censored.append((m.lr, loss.censored_at))
  rest = len(finished) - len(losses) - len(censored)
  law = _law(by_lr)
  counted = (
    f"{len(losses)} of {plural(len(finished), 'finished arm')} lost the initial"
    " behavior (rate below one half, at two evals in a row or the last)"
  )
  if not losses:
    return Panel("margin", title, f"{counted}. {law}".strip())
  product = math.exp(statistics.fmean(math.log(lr * s) for lr, _, s in losses))
  caption = (
    f"{counted}. Dashed: steps x learning rate = {text.number(product)}, the"
    " geometric mean of the losses, where all would lie if only that product"
    " counted."
  )
  notes = "A line below a mark is the bracket it lies in."
  if censored:
    notes += f" {plural(len(censored), 'arm')} had not by the last eval (ring)."
  if rest:
    notes += f" No place on these axes: {rest}, of step or learning rate 0."
  notes += f"{_margins(by_lr)} {law}"
  picture = comparisons.crossing_steps(
    f"{key}t", f"{text.visible(group.name)}: {title.lower()}",
    f"{len(losses)} arms lost the behavior, {len(censored)} did not.", styles,
    losses, censored, product,
  )  # fmt: skip
  return Panel("margin", title, caption, picture, notes.strip())


def _margins(by_lr: dict[float, list[Member]]) -> str:
  """Says the margin, loss step over style step, of each learning rate."""
  parts = []
  for lr, members in by_lr.items():
    read = [m.arm.reading for m in members if m.arm.reading is not None]
    shown = [r.margin_text() for r in read if r.margin_bounds is not None]
    if shown:
      parts.append(f"lr {text.number(lr)}: {', '.join(shown)}")
  if not parts:
    return ""
  return f" Margin, loss step over style step: {'; '.join(parts)}."


def _law(by_lr: dict[float, list[Member]]) -> str:
  """Says how the arms bear on summary.learning_rate_law, seed by seed."""
  curves: dict[object, dict[float, list[tuple[int, float, bool]]]] = {}
  for lr, members in by_lr.items():
    for m in members:
      base = organism_capability(m)
      points = [
        (p.step, p.initial.value, is_intact(p, base)) for p in m.arm.curve
      ]
      if lr > 0 and m.arm.behavior:
        curves.setdefault(m.arm.settings.get("seed"), {})[lr] = points
  pairs = [
    c for each in curves.values() for c in summary.learning_rate_law(each)
  ]
  if not pairs:
    return ""
  holding = sum(c.holds is True for c in pairs)
  failing = sum(c.holds is False for c in pairs)
  short = len(pairs) - holding - failing
  return (
    f"Of {plural(len(pairs), 'pair')} of learning rates of one seed, the higher"
    " of which removed the behavior in S steps and left the model intact, the"
    f" lower one (by a factor N) had not within 6 N S steps in {holding}, had"
    f" in {failing}, and was not trained for so long in {short}."
  )


def _removal(
  key: str, group: Group, by_lr: dict[float, list[Member]], rates: list[float]
) -> Panel:
  """Makes the panel of removal by capability, over all checkpoints."""
  title = "Removal against capability"
  points = {
    lr: [point for m in members for point in removal_points(m)]
    for lr, members in by_lr.items()
  }
  judged = [point for found in points.values() for point in found]
  checkpoints = [(c, r) for c, r, _ in judged]
  if not checkpoints:
    return Panel(
      "removal",
      title,
      f"the organism's own capability is below {text.percent(MIN_CAPABILITY)}"
      " or not known, so what is lost of it says nothing.",
    )
  auc = summary.robustness_auc(checkpoints)
  best = summary.removal_at(judged)
  most = "no checkpoint is that" if best is None else text.percent(best)
  members = [m for arms in by_lr.values() for m in arms]
  caption = (
    f"Area under the hull {auc:.2f}: 0.5 (dotted) where removal costs"
    " capability in proportion, about 1 where it is free."
    f"{describe_noise(members, auc)}"
  )
  notes = (
    f"Marks are {plural(len(checkpoints), 'checkpoint')} of"
    f" {plural(len(members), 'arm')}. Most removed by"
    " an intact model with 90% or more of the capability (upright line):"
    f" {most}. Both are of the luckiest checkpoints, so they grow with how many"
    " there are."
  )
  shown = {lr: [(c, r) for c, r, _ in points[lr]] for lr in rates if points[lr]}
  hull = summary.pareto_hull(checkpoints)
  picture = comparisons.removal(
    f"{key}c", f"{text.visible(group.name)}: {title.lower()}",
    f"Area under the hull {auc:.2f}.", shown, hull, rates,
  )  # fmt: skip
  return Panel("removal", title, caption, picture, notes)


def _survival(
  key: str, group: Group, by_lr: dict[float, list[Member]], rates: list[float]
) -> Panel:
  """Makes the panel of the share of seeds that have not lost the behavior."""
  title = "Share of seeds that have not lost the initial behavior"
  brackets: dict[float, list[summary.Bracket]] = {}
  for lr in rates:
    for m in by_lr[lr]:
      bracket = _bracket(m)
      if bracket is not None:
        brackets.setdefault(lr, []).append(bracket)
  enough = {lr: b for lr, b in brackets.items() if len(b) > 2}
  if not enough:
    most = max(map(len, brackets.values()), default=0)
    return Panel(
      "survival",
      title,
      "it needs 3 finished seeds of a learning rate; "
      f"there are at most {most}.",
    )
  curves = {lr: summary.survival(b) for lr, b in enough.items()}
  medians = {lr: summary.median_step(c) for lr, c in curves.items()}
  median_list = ", ".join(
    f"lr {text.number(lr)} "
    + ("not reached" if m is None else f"step {text.number(m)}")
    for lr, m in medians.items()
  )
  few = [text.number(lr) for lr in rates if lr not in enough]
  sizes = sorted({len(b) for b in enough.values()})
  caption = (
    "Share of seeds whose initial rate is not below one half for good. Median:"
    f" {median_list}."
  )
  notes = (
    "The rate is known at evals only: this is Turnbull's"
    " estimate, which is that of Kaplan and Meier where brackets do not"
    f" overlap. {' or '.join(map(str, sizes))} seeds a learning rate."
  )
  if few:
    notes += f" Fewer than 3 finished seeds: lr {', '.join(few)}."
  last = {
    lr: int(max(b.until or b.after for b in seeds))
    for lr, seeds in enough.items()
  }
  picture = comparisons.survival_curves(
    f"{key}s", f"{text.visible(group.name)}: share that keeps it by step",
    f"Median loss step: {median_list}.", curves, last, rates,
  )  # fmt: skip
  return Panel("survival", title, caption, picture, notes)


def _bracket(member: Member) -> summary.Bracket | None:
  """Returns the bracket of an arm's loss step.

  None: the arm has not ended, or the behavior was gone at its first eval.
  """
  arm, steps = member.arm, [p.step for p in member.arm.curve]
  loss = arm.loss_step
  if not arm.behavior or loss is None:
    return None
  if loss.by is None:
    return summary.bracket(steps, None)
  return summary.bracket(steps, loss.by) if loss.by in steps[1:] else None
