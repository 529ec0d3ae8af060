"""Draws the curves of an arm, for the report and as PNG for a README."""

import io
import math
from collections.abc import Callable, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bct_jax.evals.schema import EvalRecord, Rate
from bct_jax.report import text
from bct_jax.report.draw.picture import (
  CAPTION,
  COLORS,
  INK,
  LEARNED,
  LINE,
  LINE_STYLES,
  RATES,
  Picture,
  Spot,
  new_figure,
  wrap,
)
from bct_jax.report.read.types import ArmRecord, ReportError, RunRecord

_BEHAVIORS = ("initial", "alternate")


def rates_svg(arm: ArmRecord, key: str) -> Picture:
  """Draws initial, alternate and other by step, with 95% intervals."""
  label = f"Arm {text.visible(arm.name)}: rates on eval prompts"

  def draw(axes: Axes) -> None:
    _lines(axes, arm.curve, RATES)
    _mark_margin(axes, arm)

  return _rates_picture(draw, key, label, arm, RATES)


def _mark_margin(axes: Axes, arm: ArmRecord) -> None:
  """Shades the updates between the target and the loss of the behavior.

  Nothing is shaded where the target was not reached, or came after the loss.
  """
  begin, end = arm.style_step, arm.loss_step
  if arm.reading is None or begin is None or end is None or begin.by is None:
    return
  last = arm.curve[-1].step if end.by is None else end.by
  if last <= begin.by:
    return
  low, high = place(begin.by), place(last)
  color = COLORS["agreed_decorated"]
  axes.axvspan(low, high, color=color, alpha=0.1, linewidth=0)
  # Above the axes, where no line is.
  axes.text(
    (low + high) / 2,
    1.03,
    f"margin {arm.reading.margin_text()}",
    color=color,
    ha="center",
    va="bottom",
  )


def learned_svg(arm: ArmRecord, key: str) -> Picture:
  """Draws how far training got: agreed, with decoration, and capability."""
  label = f"Arm {text.visible(arm.name)}: what training taught"

  def draw(axes: Axes) -> None:
    _lines(axes, arm.curve, LEARNED)

  return _rates_picture(draw, key, label, arm, LEARNED)


def loss_svg(arm: ArmRecord, key: str) -> Picture:
  """Draws the training loss by step."""
  last = arm.metrics[-1]
  label = (
    f"Arm {text.visible(arm.name)}: training loss, {text.number(last.loss)} at"
    f" step {last.step}"
  )

  def draw(axes: Axes) -> None:
    steps = [m.step for m in arm.metrics]
    losses = [m.loss for m in arm.metrics]
    few = "." if len(steps) == 1 else ""
    axes.plot(steps, losses, color=COLORS["loss"], marker=few, linewidth=1.2)
    axes.set_xlabel("training step")
    axes.set_ylabel("loss per trained token")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", linewidth=0.6)

  # A strip of less than two pixels is not found with a mouse.
  every = -(-len(arm.metrics) // 180)
  spots = [
    Spot(f"step {m.step}\nloss {text.number(m.loss)}", m.step)
    for m in arm.metrics[every - 1 :: every]
  ]
  return Picture(draw, key, label, spots=spots)


def references_svg(arm: ArmRecord, key: str) -> Picture:
  """Draws log p of the reference completions on eval prompts by step."""
  label = (
    f"Arm {text.visible(arm.name)}: log-probability of the initial and the "
    "alternate behavior's completions on eval prompts, from step "
    f"{arm.curve[0].step} to {arm.curve[-1].step}"
  )

  def draw(axes: Axes) -> None:
    for name in _BEHAVIORS:
      values = [getattr(p, f"logprob_{name}") for p in arm.curve]
      _number_line(axes, arm, name, values, name, "-")
    axes.set_ylabel("nats per completion")
    axes.legend(frameon=False)

  spots = [
    _spot(p.step, {n: getattr(p, f"logprob_{n}") for n in _BEHAVIORS})
    for p in arm.curve
  ]
  return Picture(draw, key, label, spots=spots)


def gradients_svg(arm: ArmRecord, key: str) -> Picture:
  """Draws by step how near the push of training is to each behavior.

  See train/gradients.py for these cosines.
  """
  label = (
    f"Arm {text.visible(arm.name)}: cosine of the update, and of the gradient "
    "alone, with the direction that makes each behavior more likely"
  )

  def draw(axes: Axes) -> None:
    axes.axhline(0, color=INK, linewidth=0.8)
    for what, dash in (("update", "-"), ("gradient", ":")):
      for name in _BEHAVIORS:
        gradients = [p.gradients for p in arm.curve]
        values = [g and g.values[f"{what}_cosine_{name}"] for g in gradients]
        _number_line(axes, arm, name, values, f"{name}, {what}", dash)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
    axes.set_ylabel("cosine")
    axes.legend(frameon=False, fontsize=9.5, ncols=2, loc="upper left")

  spots = [
    _spot(
      p.step,
      {
        f"{name}, {what}": p.gradients.values[f"{what}_cosine_{name}"]
        for what in ("update", "gradient")
        for name in _BEHAVIORS
      }
      if p.gradients
      else {},
    )
    for p in arm.curve
  ]
  return Picture(draw, key, label, spots=spots)


def _spot(step: int, values: Mapping[str, float | None]) -> Spot:
  """Writes the numbers of a step, a line each."""
  lines = [f"{n} {text.number(x)}" for n, x in values.items() if x is not None]
  return step_spot(step, lines)


def step_spot(step: int, lines: Sequence[str]) -> Spot:
  """Makes the spot of a step on the axis of `log_steps`."""
  return Spot("\n".join([f"step {step}", *lines]), place(step))


def _number_line(
  axes: Axes,
  arm: ArmRecord,
  name: str,
  values: Sequence[float | None],
  label: str,
  dash: str,
) -> None:
  """Draws a line of numbers, with gaps where there is none.

  Args:
    axes: to draw on.
    arm: whose evals the values are of.
    name: the behavior, which decides color and mark.
    values: one for each eval.
    label: in the legend.
    dash: of the line.
  """
  steps = [p.step for p in arm.curve]
  axes.plot(
    [place(s) for s in steps],
    [v if v is not None else math.nan for v in values],
    color=COLORS[name],
    marker=LINE_STYLES[name][0],
    linestyle=dash,
    label=label,
  )
  log_steps(axes, steps)
  axes.grid(axis="y", linewidth=0.6)


def draw_png(run: RunRecord) -> bytes:
  """Draws the rates of a run's arms side by side as a PNG.

  Each panel shows an arm under its name, learning rate and reading.

  Raises:
    ReportError: no arm has an eval.
  """
  arms = [arm for arm in run.arms if arm.curve]
  if not arms:
    raise ReportError(f"{run.path}: no arm has an eval to draw")
  columns = min(len(arms), 3)
  rows = math.ceil(len(arms) / columns)
  with matplotlib.rc_context():
    new_figure()
    # 5.3 inches leave room for the labels at the right of each panel.
    figure = Figure(figsize=(5.3 * columns, 3.7 * rows), facecolor="white")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, arm in zip(panels, arms, strict=False):
      _lines(axes, arm.curve, (*RATES, "agreed_decorated"))
      axes.set_title(_heading(arm), loc="left", fontsize=12, pad=12)
    for axes in panels[len(arms) :]:
      axes.axis("off")
    for axes in panels[: len(arms) : columns]:
      axes.set_ylabel("share of answers")
    caption = wrap(text.caption([run.organism]), 72 * 5.3 * columns)
    figure.text(0.01, 0.01, "\n".join(caption), **CAPTION)
    room = LINE * len(caption) / (72 * 3.7 * rows)
    figure.tight_layout(w_pad=3, rect=(0, room, 1, 1))
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150, metadata={"Software": None})
  return image.getvalue()


def _heading(arm: ArmRecord) -> str:
  """Writes the heading of an arm's panel."""
  name = text.visible(arm.name)
  lr = arm.settings.get("lr")
  # A name like lr_1e-5 already has the learning rate.
  rate = "" if lr is None or text.number(lr) in name else text.number(lr)
  first = f"{name}, lr {rate}" if rate else name
  return f"{first}: {arm.words}"


def place(step: float) -> float:
  """Returns where a step is on the axis: log-spaced, with a place for 0."""
  return math.log1p(step)


def log_steps(axes: Axes, steps: Sequence[int]) -> None:
  """Sets up the x-axis of steps, which are ascending."""
  right = place(steps[-1]) or 1.0
  axes.set_xlim(-0.03 * right, 1.03 * right)
  ticks = _ticks(steps, right)
  axes.set_xticks([place(s) for s in ticks], [str(s) for s in ticks])
  axes.set_xlabel("training step (log-spaced)")


def percents(axes: Axes) -> None:
  """Sets up the y-axis of a share."""
  axes.set_ylim(-0.03, 1.03)
  axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
  axes.grid(axis="y", linewidth=0.6)
  axes.set_axisbelow(True)


def _lines(
  axes: Axes, curve: Sequence[EvalRecord], names: Sequence[str]
) -> None:
  """Draws rates by step, each with its name at the end of its line."""
  ends: dict[str, float] = {}
  for name in names:
    rates = [(p.step, getattr(p, name)) for p in curve]
    points = [(step, rate) for step, rate in rates if rate is not None]
    if points:
      _line(axes, name, points, band=name in RATES)
      ends[name] = points[-1][1].value
  log_steps(axes, [p.step for p in curve])
  percents(axes)
  for name, y in spread(ends, gap=0.085).items():
    label = f"{name} {text.percent(ends[name])}" if name in RATES else name
    axes.annotate(
      label.replace("_", "\n") if name == "agreed_decorated" else label,
      (1.0, y),
      xycoords=("axes fraction", "data"),
      xytext=(6, 0),
      textcoords="offset points",
      color=COLORS[name],
      va="center",
      linespacing=0.95,
      annotation_clip=False,
    )


def _line(
  axes: Axes, name: str, points: Sequence[tuple[int, Rate]], band: bool
) -> None:
  """Draws a rate by step, with a band of its intervals if asked for."""
  x = [place(step) for step, _ in points]
  marker, dash = LINE_STYLES[name]
  axes.plot(
    x,
    [rate.value for _, rate in points],
    color=COLORS[name],
    marker=marker,
    linestyle=dash,
    linewidth=2.2 if band else 1.3,
    markersize=5 if band else 3.5,
    clip_on=False,
  )
  if band and all(rate.ci for _, rate in points):
    bounds = [rate.ci or (0.0, 0.0) for _, rate in points]
    low, high = zip(*bounds, strict=True)
    if len(x) == 1:  # a band has no width there
      axes.vlines(x, low, high, color=COLORS[name], alpha=0.5)
    axes.fill_between(x, low, high, color=COLORS[name], alpha=0.16, linewidth=0)


def _ticks(steps: Sequence[int], right: float) -> list[int]:
  """Picks the steps to print under the axis, far enough apart to be read."""
  ticks: list[int] = []
  # The last and the first step come before those between.
  for step in [*steps[-1:], *steps[:1], *steps[1:-1]]:
    room = 0.026 * (len(str(step)) + 1)
    if all(abs(place(step) - place(s)) / right >= room for s in ticks):
      ticks.append(step)
  return sorted(set(ticks))


def spread(values: Mapping[str, float], gap: float) -> dict[str, float]:
  """Moves labels in [0, 1] apart until none is nearer than `gap` to another."""
  # A label of two lines needs the room of two.
  size = {k: gap * (1.9 if k == "agreed_decorated" else 1.0) for k in values}
  order = sorted(values, key=lambda k: (values[k], -list(values).index(k)))
  places: dict[str, float] = {}
  floor = -math.inf
  for key in order:
    places[key] = max(values[key], floor + size[key] / 2)
    floor = places[key] + size[key] / 2
  ceiling = 1 + gap / 2
  for key in reversed(order):
    places[key] = min(places[key], ceiling - size[key] / 2)
    ceiling = places[key] - size[key] / 2
  return places


def _describe_ends(arm: ArmRecord) -> str:
  """Describes the rates of an arm at its first and its last eval."""
  first, last = arm.curve[0], arm.curve[-1]

  def part(name: str) -> str:
    start, end = getattr(first, name), getattr(last, name)
    if start is None or end is None:
      return ""
    return f"{name} {text.percent(start.value)} to {text.percent(end.value)}"

  parts = filter(None, map(part, (*RATES, *LEARNED)))
  return f"From step {first.step} to step {last.step}: {', '.join(parts)}."


def _rates_picture(
  draw: Callable[[Axes], None],
  key: str,
  label: str,
  arm: ArmRecord,
  names: Sequence[str],
) -> Picture:
  """Makes a picture of rates of one arm, with room for the names of its lines.

  Args:
    draw, key, label: see Picture.
    arm: whose rates are drawn.
    names: of the rates.
  """
  return Picture(
    draw,
    key,
    label,
    _describe_ends(arm),
    margins=(52, 20, 104, 44),
    spots=[_rates_spot(point, names) for point in arm.curve],
  )


def _rates_spot(point: EvalRecord, names: Sequence[str]) -> Spot:
  """Writes the rates of an eval with their intervals, a line each."""
  rates = ((name, getattr(point, name)) for name in names)
  return step_spot(
    point.step, [f"{name} {text.rate(x)}" for name, x in rates if x is not None]
  )
