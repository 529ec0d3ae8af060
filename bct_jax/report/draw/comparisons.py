"""Draws many arms: what each learning rate does, and at what cost.

The numbers of these figures are chosen and checked in panels.py. In all of
them `key`, `label` and `description` are those of the Picture.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from bct_jax.evals.stats import t_interval
from bct_jax.report import text
from bct_jax.report.draw.arm_curves import (
  log_steps,
  percents,
  place,
  spread,
  step_spot,
)
from bct_jax.report.draw.picture import COLORS, INK, RATE_COLORS, Picture, Spot

Curve = Sequence[tuple[int, float]]  # (step, share)

_MARKS = "osD^vPX*"  # of learning rates, in turn
MAX_RATES = len(_MARKS)
_LABELS = 92  # room at the right for names of lines


def _color(index: int, count: int) -> str:
  """Returns the color of one of so many learning rates, far apart if few."""
  shades = list(RATE_COLORS.values())
  return shades[round(index * (len(shades) - 1) / max(count - 1, 1))]


def retention_curves(
  key: str,
  label: str,
  description: str,
  curves: Mapping[float, Sequence[Curve]],
  rates: Sequence[float],
) -> Picture:
  """Draws the initial rate by step for each learning rate.

  Each has the points of its seeds, a line for their mean, and from 3 seeds up
  a band: the t interval of the mean.

  Args:
    key, label, description: of the Picture.
    curves: learning rate -> the curve of each seed.
    rates: all learning rates of the group. Their places decide the colors, so
      that a learning rate has the same color in all figures of the group.
  """

  def draw(axes: Axes) -> None:
    ends: dict[float, float] = {}
    for lr, seeds in curves.items():
      i = rates.index(lr)
      color = _color(i, len(rates))
      for curve in seeds:
        axes.plot(
          [place(s) for s, _ in curve], [y for _, y in curve],
          linestyle="none", marker=_MARKS[i], markersize=4, color=color,
          alpha=0.75, clip_on=False,
        )  # fmt: skip
      mean = shared_steps(seeds)
      x = [place(s) for s, _ in mean]
      middle = [statistics.fmean(ys) for _, ys in mean]
      axes.plot(x, middle, color=color, linewidth=1.8)
      if len(seeds) > 2:
        low, high = zip(*(t_interval(ys) for _, ys in mean), strict=True)
        axes.fill_between(
          x, [max(v, 0.0) for v in low], [min(v, 1.0) for v in high],
          color=color, alpha=0.16, linewidth=0,
        )  # fmt: skip
      ends[lr] = middle[-1]
    steps = sorted(
      {s for seeds in curves.values() for c in seeds for s, _ in c}
    )
    log_steps(axes, steps)
    percents(axes)
    axes.set_ylabel("initial rate")
    _name_ends(axes, ends, rates)

  lines: dict[int, list[str]] = {}
  for lr, seeds in curves.items():
    for step, values in shared_steps(seeds):
      low, high = min(values), max(values)
      across = f", seeds {text.interval((low, high))}" if low < high else ""
      mean = text.percent(statistics.fmean(values))
      lines.setdefault(step, []).append(f"lr {text.number(lr)}: {mean}{across}")
  return _step_picture(draw, key, label, description, lines)


def _step_picture(
  draw: Callable[[Axes], None],
  key: str,
  label: str,
  description: str,
  lines: Mapping[int, Sequence[str]],
) -> Picture:
  """Makes a picture of learning rates by step, with room for their names.

  Args:
    draw, key, label, description: of the Picture.
    lines: step -> what a page says on hover there.
  """
  return Picture(
    draw,
    key,
    label,
    description,
    margins=(58, 14, _LABELS, 44),
    spots=[step_spot(step, lines[step]) for step in sorted(lines)],
  )


def shared_steps(
  seeds: Sequence[Curve],
) -> list[tuple[int, list[float]]]:
  """Finds the steps at which every seed has an eval.

  Returns:
    (step, the value of each seed) of each, ascending.
  """
  curves = [dict(curve) for curve in seeds]
  steps = sorted(set.intersection(*(set(c) for c in curves)))
  return [(step, [c[step] for c in curves]) for step in steps]


def _name_ends(
  axes: Axes, ends: Mapping[float, float], rates: Sequence[float]
) -> None:
  """Writes each learning rate at the end of its line, in its color."""
  labels = {f"lr {text.number(lr)}": lr for lr in ends}
  for name, y in spread(
    {n: ends[lr] for n, lr in labels.items()}, 0.085
  ).items():
    axes.annotate(
      name, (1.0, y), xycoords=("axes fraction", "data"), xytext=(8, 0),
      textcoords="offset points", va="center", annotation_clip=False,
      color=_color(rates.index(labels[name]), len(rates)),
    )  # fmt: skip


def crossing_steps(
  key: str,
  label: str,
  description: str,
  styles: Sequence[tuple[float, int, int]],
  losses: Sequence[tuple[float, int, int]],
  censored: Sequence[tuple[float, int]],
  product: float,
) -> Picture:
  """Draws style and loss steps by learning rate, all axes logarithmic.

  Args:
    key, label, description: of the Picture.
    styles: (learning rate, first step, step) of arms that reached the target.
    losses: the same of arms that lost the initial behavior.
    censored: (learning rate, last step) of arms that did not.
    product: of step and learning rate, along the line of the null.
  """
  kept = COLORS["initial"]
  kinds = (
    (styles, "^", COLORS["agreed_decorated"], "target reached"),
    (losses, "s", COLORS["alternate"], "behavior lost"),
  )

  def draw(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    rates = sorted({lr for lr, *_ in [*styles, *losses, *censored]})
    steps = [s for _, _, s in [*styles, *losses]] + [s for _, s in censored]
    low, high = min(steps) / 2.2, max(steps) * 2.2
    # Before the marks: matplotlib warns where those of one rate set limits.
    axes.set_xlim(rates[0] / 1.6, rates[-1] * 1.6)
    axes.set_ylim(low, high)
    axes.plot(rates, [product / lr for lr in rates], color=INK, linewidth=1,
              linestyle="--", label="null: lr x steps")  # fmt: skip
    for marks, marker, color, name in kinds:
      for lr, first, step in marks:
        axes.vlines(lr, max(first, low), step, color=color, linewidth=1.4)
      axes.plot([lr for lr, *_ in marks], [s for *_, s in marks], marker,
                color=color, markersize=6, label=name)  # fmt: skip
    if censored:
      xs, ys = [lr for lr, _ in censored], [s for _, s in censored]
      axes.plot(xs, ys, "o", color=kept, markersize=6, fillstyle="none",
                label="not lost by")  # fmt: skip
      for x, y in censored:
        axes.annotate(
          "", (x, y), xytext=(0, 20), textcoords="offset points",
          arrowprops={"arrowstyle": "<-", "color": kept},
        )  # fmt: skip
    _log_ticks(axes, rates, sorted(set(steps)))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("updates")
    axes.legend(
      frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2,
      borderaxespad=0, handletextpad=0.3, columnspacing=1, fontsize=10,
    )  # fmt: skip

  named = {name: marks for marks, *_, name in kinds}
  return Picture(draw, key, label, description, margins=(58, 46, 16, 44),
                 spots=_crossing_spots(named, censored))  # fmt: skip


def _crossing_spots(
  marks: Mapping[str, Sequence[tuple[float, int, int]]],
  censored: Sequence[tuple[float, int]],
) -> list[Spot]:
  """Says the values of `crossing_steps`: marks by what happened there."""
  spots = [
    Spot(
      f"lr {text.number(lr)}\n{name} at update "
      + (f"{step}" if first == step else f"{first} to {step}"),
      lr,
      step,
    )
    for name, of_name in marks.items()
    for lr, first, step in of_name
  ]
  spots += [
    Spot(f"lr {text.number(lr)}\nnot lost by update {step}", lr, step)
    for lr, step in censored
  ]
  return spots


def _log_ticks(axes: Axes, xs: Sequence[float], ys: Sequence[int]) -> None:
  """Puts ticks at the learning rates and steps, where there is room."""
  for axis, values, gap in ((axes.xaxis, xs, 0.15), (axes.yaxis, ys, 0.08)):
    low, high = axis.get_view_interval()
    width = math.log(high / low)
    ticks: list[float] = []
    for value in [values[0], values[-1], *values[1:-1]]:
      if all(abs(math.log(value / tick)) / width > gap for tick in ticks):
        ticks.append(value)
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_ticks(sorted(ticks))
    axis.set_major_formatter(FuncFormatter(lambda v, _: text.number(v)))


def removal(
  key: str,
  label: str,
  description: str,
  points: Mapping[float, Sequence[tuple[float, float]]],
  hull: Sequence[tuple[float, float]],
  rates: Sequence[float],
) -> Picture:
  """Draws removal of the initial behavior by the capability that remains.

  Args:
    key, label, description: of the Picture.
    points: learning rate -> (capability over the organism's, 1 - initial).
    hull: of all points, see summary.pareto_hull.
    rates: all learning rates of the group, see retention_curves.
  """

  def draw(axes: Axes) -> None:
    xs, ys = zip(*hull, strict=True)
    axes.plot(xs, ys, color=INK, linewidth=1.2, clip_on=False)
    axes.plot([0, 1], [1, 0], color=INK, linewidth=0.8, linestyle=":")
    for lr, pairs in points.items():
      i = rates.index(lr)
      axes.plot(
        [c for c, _ in pairs], [r for _, r in pairs], linestyle="none",
        marker=_MARKS[i], markersize=5, color=_color(i, len(rates)), alpha=0.75,
        clip_on=False, label=f"lr {text.number(lr)}",
      )  # fmt: skip
    right = max([1.0, *(c for pairs in points.values() for c, _ in pairs)])
    axes.axvline(0.9, color=COLORS["capability"], linewidth=1)
    axes.set_xlim(-0.02, right + 0.02)
    percents(axes)
    axes.set_xticks(
      [0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"]
    )
    axes.set_xlabel("capability, of the organism's")
    axes.set_ylabel("removal: 1 - initial")
    axes.legend(
      frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5),
      handletextpad=0.1, fontsize=10.5,
    )  # fmt: skip

  spots = [
    Spot(
      f"lr {text.number(lr)}\nremoval {text.percent(removed)}, capability"
      f" {text.percent(kept)} of the organism's",
      kept,
      removed,
    )
    for lr, pairs in points.items()
    for kept, removed in pairs
  ]
  return Picture(draw, key, label, description,
                 margins=(58, 14, _LABELS + 10, 44), spots=spots)  # fmt: skip


def survival_curves(
  key: str,
  label: str,
  description: str,
  curves: Mapping[float, Sequence[tuple[float, float]]],
  last: Mapping[float, int],
  rates: Sequence[float],
) -> Picture:
  """Draws the share of seeds that have not lost the behavior, by step.

  Args:
    key, label, description: of the Picture.
    curves: learning rate -> what summary.survival gives.
    last: learning rate -> the last step looked at.
    rates: all learning rates of the group, see retention_curves.
  """

  def draw(axes: Axes) -> None:
    ends: dict[float, float] = {}
    for lr, curve in curves.items():
      i = rates.index(lr)
      end = curve[-1][1] if curve else 1.0
      steps = [0.0, *(s for s, _ in curve), float(last[lr])]
      shares = [1.0, *(y for _, y in curve), end]
      axes.step(
        [place(s) for s in steps], shares, where="post", linewidth=2,
        color=_color(i, len(rates)), marker=_MARKS[i], markersize=4,
        clip_on=False,
      )  # fmt: skip
      ends[lr] = end
    marks = {0, *last.values()} | {
      int(s) for c in curves.values() for s, _ in c
    }
    log_steps(axes, sorted(marks))
    percents(axes)
    axes.set_ylabel("not lost")
    _name_ends(axes, ends, rates)

  lines: dict[int, list[str]] = {}
  for lr, curve in curves.items():
    for step, share in curve:
      line = f"lr {text.number(lr)}: {text.percent(share)} not lost"
      lines.setdefault(int(step), []).append(line)
  return _step_picture(draw, key, label, description, lines)
