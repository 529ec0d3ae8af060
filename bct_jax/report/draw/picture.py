"""Draws a figure as SVG in a page, as SVG in a file, or as PNG."""

import dataclasses
import io
import itertools
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bct_jax.report.draw.svg import svg_body

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
  "bad": "#a4161a",
}
# Learning rates in their order: the darker half of matplotlib's plasma, which
# is even in lightness for all kinds of color vision. Dark mode has the lighter.
RATE_COLORS = {
  "rate0": "#0d0887",
  "rate1": "#350498",
  "rate2": "#5302a3",
  "rate3": "#6f00a8",
  "rate4": "#8b0aa5",
  "rate5": "#a31e9a",
  "rate6": "#b83289",
  "rate7": "#cc4778",
}
# Marker and dash of a rate's line tell it apart where colour cannot.
LINE_STYLES = {
  "initial": ("o", "-"),
  "alternate": ("s", "-"),
  "other": ("^", "-"),
  "agreed": ("o", "-"),
  "agreed_decorated": ("D", "--"),
  "capability": ("v", "-."),
  "decorated": ("x", ":"),
}
# The rates of an arm's two figures, in the order in which they are drawn.
RATES = ("initial", "alternate", "other")
LEARNED = ("agreed", "agreed_decorated", "capability", "decorated")
INK, GRID = "#222222", "#d4d4d4"
_WIDTH, _HEIGHT = 440, 270  # of an SVG in its own units, of a 72nd inch
CAPTION: Any = {"fontsize": 8, "linespacing": 1.25, "va": "bottom"}
LINE = 11  # height of a line of a caption
_SETTINGS: dict[Any, Any] = {
  "font.family": "sans-serif",
  "font.size": 11.5,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.edgecolor": INK,
  "axes.labelcolor": INK,
  "axes.facecolor": "none",
  "xtick.color": INK,
  "ytick.color": INK,
  "text.color": INK,
  "text.parse_math": False,  # names of arms are not formulas
  "svg.fonttype": "none",
  "svg.hashsalt": "bct_jax",
  "grid.color": GRID,
}


@dataclasses.dataclass(frozen=True)
class Spot:
  """Holds what a page says where the mouse is.

  Attributes:
    text: with the values, in a few lines.
    x: in the units of the data.
    y: of one point; None is the whole height at x.
  """

  text: str
  x: float
  y: float | None = None


@dataclasses.dataclass(frozen=True)
class Picture:
  """Holds one axes that is drawn when it is asked for, in one of three forms.

  Attributes:
    draw: draws on the axes.
    key: unique in the page; all ids of its element start with it.
    label: what it shows, for readers who cannot see it.
    description: the same in numbers, where there is more to say.
    size: width and height in units of a 72nd inch.
    margins: around the axes: left, top, right, bottom.
    fixed: whether it has this size in the page too, where other pictures take
      the width that there is.
    caption: lines below the axes, for a file that is seen without its page.
    spots: the values that a page shows on hover; those without y ascend in x.
  """

  draw: Callable[[Axes], None]
  key: str
  label: str
  description: str = ""
  size: tuple[float, float] = (_WIDTH, _HEIGHT)
  margins: tuple[float, float, float, float] = (52, 14, 16, 44)
  fixed: bool = False
  caption: str = ""
  spots: Sequence[Spot] = ()

  def captioned(self, caption: str) -> "Picture":
    """Returns the picture with a text below, in as many lines as it needs."""
    width, height = self.size
    left, top, right, bottom = self.margins
    lines = wrap(caption, width)
    room = LINE * len(lines) + 4 if lines else 0
    return dataclasses.replace(
      self,
      size=(width, height + room),
      margins=(left, top, right, bottom + room),
      caption="\n".join(lines),
    )

  def __html__(self) -> Markup:
    """Writes an SVG element for a page, in the colors of the page."""
    body, places = self._body()
    for name, color in (COLORS | RATE_COLORS).items():
      body = body.replace(color, f"var(--{name})")
    body = body.replace(INK, "currentColor").replace(GRID, "var(--line)")
    size = f' class="fixed"{self._measures}' if self.fixed else ""
    hover = self._hover(places)
    return Markup(f"<svg{size}{self._head}{body}{hover}</svg>")

  def svg(self) -> str:
    """Writes an SVG file: black on white, in any sans-serif font."""
    return (
      '<svg xmlns="http://www.w3.org/2000/svg"'
      f' xmlns:xlink="http://www.w3.org/1999/xlink"{self._measures}'
      f' font-family="sans-serif"{self._head}'
      f'<rect width="100%" height="100%" fill="#ffffff"/>{self._body()[0]}'
      "</svg>\n"
    )

  def png(self) -> bytes:
    """Writes a PNG of 150 pixels per inch on white."""
    image = io.BytesIO()
    self._save(image, format="png", dpi=150, facecolor="white",
               metadata={"Software": None})  # fmt: skip
    return image.getvalue()

  @property
  def _measures(self) -> str:
    """Returns width and height as attributes of the SVG element."""
    return ' width="{:g}" height="{:g}"'.format(*self.size)

  @property
  def _head(self) -> str:
    """Returns the rest of the SVG element's tag, its title and description."""
    more = ""
    if self.description:
      more = f"<desc>{escape(self.description)}</desc>"
    return (
      ' role="img" viewBox="0 0 {:g} {:g}"'.format(*self.size)
      + f' aria-labelledby="{self.key}-title"><title id="{self.key}-title">'
      f"{escape(self.label)}</title>{more}"
    )

  def _save(self, out: Any, **options: Any) -> list[tuple[float, float]]:
    """Draws the figure and saves it with matplotlib's options.

    Returns:
      x and y of each spot in the SVG's units; y counts from the top.
    """
    (width, height), (left, top, right, bottom) = self.size, self.margins
    with matplotlib.rc_context():
      new_figure()
      figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
      axes = figure.add_axes(
        (
          left / width,
          bottom / height,
          (width - left - right) / width,
          (height - bottom - top) / height,
        )
      )
      self.draw(axes)
      figure.text(8 / width, 6 / height, self.caption, **CAPTION)
      figure.savefig(out, **options)
      base = axes.get_ylim()[0]
      points = [(s.x, base if s.y is None else s.y) for s in self.spots]
      scale = 72 / figure.dpi
      return [
        (x * scale, height - y * scale)
        for x, y in map(axes.transData.transform, points)
      ]

  def _body(self) -> tuple[str, list[tuple[float, float]]]:
    """Returns the content of the SVG element and the places of the spots."""
    file = io.StringIO()
    places = self._save(file, format="svg", metadata={"Date": None})
    return svg_body(file.getvalue(), self.key), places

  def _hover(self, places: Sequence[tuple[float, float]]) -> str:
    """Writes transparent shapes, which say their values under the mouse.

    A step has the strip of all that is nearer to it than to another; a point
    has a disk.

    Args:
      places: of the spots.
    """
    if not self.spots:
      return ""
    (width, height), (left, top, right, bottom) = self.size, self.margins
    strips = [x for s, (x, _) in zip(self.spots, places, strict=True)
              if s.y is None]  # fmt: skip
    middles = [(a + b) / 2 for a, b in itertools.pairwise(strips)]
    edges = iter([left, *middles, width - right])
    begin, shapes = next(edges), []
    for spot, (x, y) in zip(self.spots, places, strict=True):
      if spot.y is None:
        end = next(edges)
        shape, box = "rect", (
          f'x="{begin:.1f}" y="{top}" width="{max(end - begin, 0):.1f}"'
          f' height="{height - top - bottom}"'
        )  # fmt: skip
        begin = end
      else:
        shape, box = "circle", f'cx="{x:.1f}" cy="{y:.1f}" r="8"'
      words = escape(spot.text)
      shapes.append(f"<{shape} {box}><title>{words}</title></{shape}>")
    return f'<g class="spots">{"".join(shapes)}</g>'


def wrap(caption: str, width: float) -> list[str]:
  """Breaks a caption into lines below a figure of that width."""
  return textwrap.wrap(caption, int(width / 4.6))


def new_figure() -> None:
  """Sets matplotlib's parameters for a figure; call it in an rc_context.

  It starts from the defaults, so that a user's matplotlibrc changes no report.
  """
  matplotlib.rcdefaults()
  matplotlib.rcParams.update(_SETTINGS)
