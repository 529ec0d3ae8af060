"""Compares margins of paired arms, and draws them."""

import io
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bct_jax.evals.crossings import compare_bounds
from bct_jax.evals.stats import t_interval
from bct_jax.infra.formats import number
from bct_jax.report.draw.picture import COLORS, new_figure

Record = Mapping[str, Any]
_MARKS = "osD^v"  # of organisms
_EVENTS = {
  "style": (COLORS["agreed_decorated"], "the style was reached"),
  "loss": (COLORS["initial"], "the trigger was lost"),
}


def compare_rates(records: Sequence[Record]) -> Iterator[dict[str, Any]]:
  """Compares the margins of two learning rates, pair by pair.

  A pair is an organism and an order of the data. Where a margin is known
  between bounds, so is the ratio of two: `higher`, `lower` and `open` count the
  pairs whose ratio is above 1, below it, or not known. `ratio` is the geometric
  mean over organisms of the means over their arms, each margin taken at its
  lower bound; `ratio_ci` Student's interval over organisms, which are the
  units, since arms of one organism share its chance.

  Args:
    records: of cells named "organismN-armM-...", see margin_smollm2.read_steps.

  Yields:
    A record for each two rates that have a pair.
  """
  rates = sorted({r["lr"] for r in records})
  for low, high in itertools.combinations(rates, 2):
    bounds = {
      lr: {_pair(r): r["margin_bounds"] for r in records
           if r["lr"] == lr and r["margin_bounds"]}
      for lr in (low, high)
    }  # fmt: skip
    pairs = sorted(bounds[low].keys() & bounds[high].keys())
    if not pairs:
      continue
    signs = [compare_bounds(bounds[low][p], bounds[high][p]) for p in pairs]
    logs: dict[str, list[float]] = {}
    for p in pairs:
      ratio = math.log(bounds[low][p][0] / bounds[high][p][0])
      logs.setdefault(p[0], []).append(ratio)
    means = [statistics.fmean(values) for values in logs.values()]
    interval = t_interval(means) if len(means) > 2 else None
    yield {
      "comparison": f"margin at {number(low)} over margin at {number(high)}",
      "pairs": len(pairs),
      "organisms": len(means),
      "higher": signs.count(1),
      "lower": signs.count(-1),
      "open": signs.count(0),
      "ratio": math.exp(statistics.fmean(means)),
      "ratio_ci": interval and [math.exp(end) for end in interval],
    }


def _pair(record: Record) -> tuple[str, str]:
  """Returns organism and arm of a cell: ("organism0", "arm1")."""
  organism, arm, *_ = record["cell"].split("-")
  return organism, arm


def draw_margins(records: Sequence[Record]) -> bytes:
  """Draws both steps and the margin by learning rate, pair by pair, as a PNG.

  An organism has one mark, and its arms a line each. A hollow mark is a step
  that had not come by the last update, or a margin that is larger than that.
  """
  rates = sorted({r["lr"] for r in records})
  pairs = sorted({_pair(r) for r in records})
  organisms = sorted({organism for organism, _ in pairs})
  with matplotlib.rc_context():
    new_figure()
    figure = Figure(figsize=(9.6, 3.9), facecolor="white")
    panels = figure.subplots(1, 2)
    for i, pair in enumerate(pairs):
      mark = _MARKS[organisms.index(pair[0]) % len(_MARKS)]
      # The marks of a rate lie beside each other.
      shift = 1.02 ** (i - (len(pairs) - 1) / 2)
      for axes, draw in zip(panels, (_draw_steps, _draw_margin), strict=True):
        draw(axes, [r for r in records if _pair(r) == pair], shift, mark)
    titles = ("Update at which ...", "Margin: loss over style")
    ticks = ((5, 10, 20, 50, 100, 200, 400), (1, 1.5, 2, 3, 5, 8, 12))
    for axes, title, marks in zip(panels, titles, ticks, strict=True):
      axes.set_xscale("log")
      axes.set_yscale("log")
      axes.set_xticks(rates, [number(lr) for lr in rates])
      axes.set_yticks(marks, [number(tick) for tick in marks])
      axes.minorticks_off()
      axes.set_xlabel("learning rate")
      axes.set_title(title, loc="left", fontsize=12)
      axes.grid(axis="y", linewidth=0.6)
    for color, words in _EVENTS.values():
      panels[0].plot([], [], "o", color=color, label=words, markersize=4.5)
    panels[0].legend(frameon=False, fontsize=10)
    figure.tight_layout(w_pad=3)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150, metadata={"Software": None})
  return image.getvalue()


def _draw_steps(
  axes: Axes, records: Sequence[Record], shift: float, mark: str
) -> None:
  """Draws the style step and the loss step of the arms of one pair."""
  for event, (color, _) in _EVENTS.items():
    for record in records:
      step = record[f"{event}_step"]
      by = step["by"] or step["censored_at"]
      axes.plot(
        record["lr"] * shift, by, mark, color=color, markersize=4.5,
        fillstyle="full" if step["by"] else "none",
      )  # fmt: skip


def _draw_margin(
  axes: Axes, records: Sequence[Record], shift: float, mark: str
) -> None:
  """Draws the margins of the arms of one pair, and a line through them."""
  color = _EVENTS["loss"][0]
  known = sorted(
    (r["lr"] * shift, *r["margin_bounds"])
    for r in records
    if r["margin_bounds"]
  )
  axes.plot([x for x, *_ in known], [low for _, low, _ in known], color=color,
            linewidth=0.8, alpha=0.5)  # fmt: skip
  for x, low, high in known:
    axes.plot(x, low, mark, color=color, markersize=4.5,
              fillstyle="none" if high is None else "full")  # fmt: skip
