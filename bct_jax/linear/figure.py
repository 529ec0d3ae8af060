"""Draws how far the behavior moves, against learning rate x steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from bct_jax.linear.training import ARMS
from bct_jax.report import text
from bct_jax.report.draw.picture import COLORS, INK, Picture

_HUES = ("initial", "alternate", "agreed", "agreed_decorated", "capability")
_MARKS = "osD^v"


def draw_movement(
  curves: Mapping[str, Sequence[Mapping[str, Any]]], angle: float
) -> Picture:
  """Draws each arm's movement of the behavior on eval inputs.

  If only the product of learning rate and steps counted, arms of one optimizer
  would share one line.

  Args:
    curves: arm -> its evals, with `step` and `moved`.
    angle: between train and eval inputs, in degrees, for the title.
  """

  def draw(axes: Axes) -> None:
    hues = iter(zip(_HUES, _MARKS, strict=True))
    words = "1 layer, all arms"
    for name, curve in curves.items():
      arm, color, mark, line = ARMS[name], INK, "None", ":"
      if arm.layers == 2:
        hue, mark = next(hues)
        optimizer = "Adam" if arm.optimizer == "adam" else "gradient descent"
        color, line = COLORS[hue], "-"
        words = f"2 layers, {optimizer}, lr {arm.lr:g}"
      points = [(arm.lr * p["step"], p["moved"]) for p in curve if p["step"]]
      axes.plot(*zip(*points, strict=True), color=color, marker=mark,
                markersize=4, linewidth=1.4, linestyle=line, clip_on=False,
                label=words)  # fmt: skip
      if arm.layers == 1:
        words = "_"  # matplotlib leaves it out of the legend
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: text.number(v)))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("learning rate x steps")
    axes.set_ylabel("behavior moved")
    axes.legend(
      frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=10
    )

  ends = {name: curve[-1]["moved"] for name, curve in curves.items()}
  return Picture(
    draw,
    "linear",
    f"Behavior moved on eval inputs at {angle:g} degrees",
    "At the end: " + ", ".join(f"{n} {end:.3f}" for n, end in ends.items()),
    size=(640, 270),
    margins=(52, 14, 218, 44),
  )
