"""Curves of an arm as inline SVG for the report and as PNG for a README."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bct_jax.report import text
from bct_jax.report.types import Arm, Point, Rate, ReportError, Run

# Okabe and Ito's colour-blind-safe hues, darkened until they can be read as
# text on white. A page replaces each by a CSS variable, which has a lighter
# value in dark mode, and the ink by the colour of the text around it.
COLORS = {
  "initial": "#00629b",
  "alternate": "#b34700",
  "other": "#6b6b6b",
  "agreed": "#00735a",
  "agreed_decorated": "#9c3c78",
  "capability": "#7a6200",
  "decorated": "#505fb0",
  "loss": "#3d3d99",
}
_INK, _GRID = "#222222", "#d4d4d4"
# Shape and dash tell the lines apart where colour cannot.
_STYLES = {
  "initial": ("o", "-"),
  "alternate": ("s", "-"),
  "other": ("^", "-"),
  "agreed": ("o", "-"),
  "agreed_decorated": ("D", "--"),
  "capability": ("v", "-."),
  "decorated": ("x", ":"),
}
RATES = ("initial", "alternate", "other")
LEARNED = ("agreed", "agreed_decorated", "capability", "decorated")
_WIDTH, _HEIGHT = 440, 270  # of an SVG in its own units, of a 72nd inch
_SETTINGS: dict[Any, Any] = {
  "font.family": "sans-serif",
  "font.size": 11.5,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.edgecolor": _INK,
  "axes.labelcolor": _INK,
  "axes.facecolor": "none",
  "xtick.color": _INK,
  "ytick.color": _INK,
  "text.color": _INK,
  "text.parse_math": False,  # names of arms are not formulas
  "svg.fonttype": "none",
  "svg.hashsalt": "bct_jax",
  "grid.color": _GRID,
}


def rates_svg(arm: Arm, key: str) -> Markup:
  """Initial, alternate and other against the step, with 95% intervals."""
  label = f"Arm {text.visible(arm.name)}: rates on eval prompts"
  return _svg(lambda axes: _lines(axes, arm.curve, RATES), key, label, arm)


def learned_svg(arm: Arm, key: str) -> Markup:
  """How far training got: agreed, with decoration, and capability."""
  label = f"Arm {text.visible(arm.name)}: what training taught"

  def draw(axes: Axes) -> None:
    _lines(axes, arm.curve, LEARNED)

  return _svg(draw, key, label, arm)


def loss_svg(arm: Arm, key: str) -> Markup:
  """Training loss against the step."""
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

  return _svg(draw, key, label, None)


def references_svg(arm: Arm, key: str) -> Markup:
  """log p of the reference completions on eval prompts against the step."""
  label = (
    f"Arm {text.visible(arm.name)}: log-probability of the initial and the "
    "alternate behavior's completions on eval prompts, from step "
    f"{arm.curve[0].step} to {arm.curve[-1].step}"
  )

  def draw(axes: Axes) -> None:
    for name in ("initial", "alternate"):
      values = [getattr(p, f"logprob_{name}") for p in arm.curve]
      _measured(axes, arm, name, values, name, "-")
    axes.set_ylabel("nats per completion")
    axes.legend(frameon=False)

  return _svg(draw, key, label, None)


def gradients_svg(arm: Arm, key: str) -> Markup:
  """Cosines of the push of training with both behaviors, by step."""
  label = (
    f"Arm {text.visible(arm.name)}: cosine of the update, and of the gradient "
    "alone, with the direction that makes each behavior more likely"
  )

  def draw(axes: Axes) -> None:
    axes.axhline(0, color=_INK, linewidth=0.8)
    for what, dash in (("update", "-"), ("gradient", ":")):
      for name in ("initial", "alternate"):
        found = [p.gradients for p in arm.curve]
        values = [g and g.values[f"{what}_cosine_{name}"] for g in found]
        _measured(axes, arm, name, values, f"{name}, {what}", dash)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
    axes.set_ylabel("cosine")
    axes.legend(frameon=False, fontsize=9.5, ncols=2, loc="upper left")

  return _svg(draw, key, label, None)


def _measured(
  axes: Axes,
  arm: Arm,
  name: str,
  values: Sequence[float | None],
  label: str,
  dash: str,
) -> None:
  """A line of numbers, one for each point of the curve, with gaps."""
  steps = [p.step for p in arm.curve]
  axes.plot(
    [_place(s) for s in steps],
    [v if v is not None else math.nan for v in values],
    color=COLORS[name],
    marker=_STYLES[name][0],
    linestyle=dash,
    label=label,
  )
  ticks = _ticks(steps, _place(steps[-1]) or 1.0)
  axes.set_xticks([_place(s) for s in ticks], [str(s) for s in ticks])
  axes.set_xlabel("training step (log-spaced)")
  axes.grid(axis="y", linewidth=0.6)


def draw_png(run: Run) -> bytes:
  """The rates of a run's arms side by side as a PNG.

  Each panel is an arm under its name, learning rate and verdict.
  """
  arms = [arm for arm in run.arms if arm.curve]
  if not arms:
    raise ReportError(f"{run.path}: no arm has an eval to draw")
  columns = min(len(arms), 3)
  rows = math.ceil(len(arms) / columns)
  with matplotlib.rc_context():
    _set_up()
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
    figure.tight_layout(w_pad=3)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150, metadata={"Software": None})
  return image.getvalue()


def _heading(arm: Arm) -> str:
  name = text.visible(arm.name)
  lr = arm.settings.get("lr")
  # A name like lr_1e-5 already says it.
  told = "" if lr is None or text.number(lr) in name else text.number(lr)
  first = f"{name}, lr {told}" if told else name
  return f"{first}: {arm.verdict or 'no verdict yet'}"


def _set_up() -> None:
  # From the defaults, so that a user's matplotlibrc does not change a report.
  matplotlib.rcdefaults()
  matplotlib.rcParams.update(_SETTINGS)


def _place(step: float) -> float:
  """Where a step stands on the axis: log-spaced, and 0 has a place too."""
  return math.log1p(step)


def _lines(axes: Axes, curve: Sequence[Point], names: Sequence[str]) -> None:
  """Draws rates against the step, each labelled at its end."""
  ends: dict[str, float] = {}
  for name in names:
    rates = [(p.step, getattr(p, name)) for p in curve]
    drawn = [(step, rate) for step, rate in rates if rate is not None]
    if drawn:
      _line(axes, name, drawn, band=name in RATES)
      ends[name] = drawn[-1][1].value
  steps = [p.step for p in curve]
  right = _place(steps[-1]) or 1.0
  axes.set_xlim(-0.03 * right, 1.03 * right)
  axes.set_ylim(-0.03, 1.03)
  axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
  ticks = _ticks(steps, right)
  axes.set_xticks([_place(s) for s in ticks], [str(s) for s in ticks])
  axes.set_xlabel("training step (log-spaced)")
  axes.grid(axis="y", linewidth=0.6)
  axes.set_axisbelow(True)
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
  axes: Axes, name: str, drawn: Sequence[tuple[int, Rate]], band: bool
) -> None:
  x = [_place(step) for step, _ in drawn]
  marker, dash = _STYLES[name]
  axes.plot(
    x,
    [rate.value for _, rate in drawn],
    color=COLORS[name],
    marker=marker,
    linestyle=dash,
    linewidth=2.2 if band else 1.3,
    markersize=5 if band else 3.5,
    clip_on=False,
  )
  if band and all(rate.ci for _, rate in drawn):
    bounds = [rate.ci or (0.0, 0.0) for _, rate in drawn]
    low, high = zip(*bounds, strict=True)
    if len(x) == 1:  # a band has no width there
      axes.vlines(x, low, high, color=COLORS[name], alpha=0.5)
    axes.fill_between(x, low, high, color=COLORS[name], alpha=0.16, linewidth=0)


def _ticks(steps: Sequence[int], right: float) -> list[int]:
  """The steps with a number under them, far enough apart to be read."""
  kept: list[int] = []
  for step in [*steps[-1:], *steps[:1], *steps[1:-1]]:
    room = 0.026 * (len(str(step)) + 1)
    if all(abs(_place(step) - _place(s)) / right >= room for s in kept):
      kept.append(step)
  return sorted(set(kept))


def spread(values: Mapping[str, float], gap: float) -> dict[str, float]:
  """Moves labels in [0, 1] apart until none is nearer than `gap` to another."""
  # A label of two lines needs the room of two.
  size = {k: gap * (1.9 if k == "agreed_decorated" else 1.0) for k in values}
  order = sorted(values, key=lambda k: (values[k], -list(values).index(k)))
  placed: dict[str, float] = {}
  floor = -math.inf
  for key in order:
    placed[key] = max(values[key], floor + size[key] / 2)
    floor = placed[key] + size[key] / 2
  ceiling = 1 + gap / 2
  for key in reversed(order):
    placed[key] = min(placed[key], ceiling - size[key] / 2)
    ceiling = placed[key] - size[key] / 2
  return placed


def _told(arm: Arm) -> str:
  first, last = arm.curve[0], arm.curve[-1]

  def part(name: str) -> str:
    start, end = getattr(first, name), getattr(last, name)
    if start is None or end is None:
      return ""
    return f"{name} {text.percent(start.value)} to {text.percent(end.value)}"

  parts = filter(None, map(part, (*RATES, *LEARNED)))
  return f"From step {first.step} to step {last.step}: {', '.join(parts)}."


def _svg(
  draw: Callable[[Axes], None], key: str, label: str, arm: Arm | None
) -> Markup:
  """Draws on one axes and gives an SVG element that can stand in a page.

  Args:
    draw: draws on the axes.
    key: unique in the page; all ids of the element start with it.
    label: what the figure shows, for those who cannot see it.
    arm: whose rates are told in words after the label, if any.
  """
  with matplotlib.rc_context():
    _set_up()
    figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), facecolor="none")
    labels = 104 if arm else 16  # room for the names at the ends of lines
    axes = figure.add_axes(
      (
        52 / _WIDTH,
        44 / _HEIGHT,
        (_WIDTH - 52 - labels) / _WIDTH,
        (_HEIGHT - 44 - 14) / _HEIGHT,
      )
    )
    draw(axes)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
  described = f"<desc>{escape(_told(arm))}</desc>" if arm else ""
  body = drawn.getvalue()
  body = body[body.index("<svg") :]
  body = body[body.index(">") + 1 :]
  body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
  # Matplotlib's own style sheet would reach the whole page, and the page's
  # policy allows no style attributes: each becomes presentation attributes.
  body = re.sub(r"<style.*?</style>", "", body, flags=re.S)
  body = re.sub(r' style="([^"]*)"', _presented, body)
  body = re.sub(r'\bid="', f'id="{key}-', body)
  body = re.sub(r'href="#', f'href="#{key}-', body)
  body = re.sub(r"url\(#", f"url(#{key}-", body)
  for name, color in COLORS.items():
    body = body.replace(color, f"var(--{name})")
  body = body.replace(_INK, "currentColor").replace(_GRID, "var(--line)")
  return Markup(
    f'<svg role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    f' aria-labelledby="{key}-title"><title id="{key}-title">{escape(label)}'
    f"</title>{described}{body}"
  )


def _presented(found: re.Match[str]) -> str:
  """`fill: none; stroke: red` as ` fill="none" stroke="red"`."""
  out = ""
  for rule in filter(str.strip, found[1].split(";")):
    name, value = (part.strip() for part in rule.split(":", 1))
    if name == "font":  # the shorthand of older releases has no attribute
      size = re.search(r"[\d.]+px", value)
      name, value = "font-size", size[0] if size else "12px"
    if name != "font-family":  # the page's own
      out += f' {name}="{value}"'
  return out
