"""Draws a figure as SVG in a page, as SVG in a file, or as PNG."""

import dataclasses
import io
import re
import textwrap
from collections.abc import Callable
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
  """

  draw: Callable[[Axes], None]
  key: str
  label: str
  description: str = ""
  size: tuple[float, float] = (_WIDTH, _HEIGHT)
  margins: tuple[float, float, float, float] = (52, 14, 16, 44)
  fixed: bool = False
  caption: str = ""

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
    body = self._body()
    for name, color in COLORS.items():
      body = body.replace(color, f"var(--{name})")
    body = body.replace(INK, "currentColor").replace(GRID, "var(--line)")
    size = f' class="fixed"{self._measures}' if self.fixed else ""
    return Markup(f"<svg{size}{self._head}{body}")

  def svg(self) -> str:
    """Writes an SVG file: black on white, in any sans-serif font."""
    return (
      '<svg xmlns="http://www.w3.org/2000/svg"'
      f' xmlns:xlink="http://www.w3.org/1999/xlink"{self._measures}'
      f' font-family="sans-serif"{self._head}'
      f'<rect width="100%" height="100%" fill="#ffffff"/>{self._body()}\n'
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

  def _save(self, out: Any, **options: Any) -> None:
    """Draws the figure and saves it with matplotlib's options."""
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

  def _body(self) -> str:
    """Returns the content of the SVG element and its closing tag."""
    file = io.StringIO()
    self._save(file, format="svg", metadata={"Date": None})
    body = file.getvalue()
    body = body[body.index("<svg") :]
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    # Matplotlib's own style sheet would reach the whole page, and the page's
    # policy allows no style attributes: each becomes presentation attributes.
    body = re.sub(r"<style.*?</style>", "", body, flags=re.S)
    body = re.sub(r' style="([^"]*)"', _presentation_attributes, body)
    body = re.sub(r'\bid="', f'id="{self.key}-', body)
    body = re.sub(r'href="#', f'href="#{self.key}-', body)
    return re.sub(r"url\(#", f"url(#{self.key}-", body)


def wrap(caption: str, width: float) -> list[str]:
  """Breaks a caption into lines below a figure of that width."""
  return textwrap.wrap(caption, int(width / 4.6))


def new_figure() -> None:
  """Sets matplotlib's parameters for a figure; call it in an rc_context.

  It starts from the defaults, so that a user's matplotlibrc changes no report.
  """
  matplotlib.rcdefaults()
  matplotlib.rcParams.update(_SETTINGS)


def _presentation_attributes(style: re.Match[str]) -> str:
  """Rewrites `fill: none; stroke: red` as ` fill="none" stroke="red"`."""
  out = ""
  for rule in filter(str.strip, style[1].split(";")):
    name, value = (part.strip() for part in rule.split(":", 1))
    if name == "font":  # the shorthand of older releases has no attribute
      size = re.search(r"[\d.]+px", value)
      name, value = "font-size", size[0] if size else "12px"
    if name != "font-family":  # the page's own
      out += f' {name}="{value}"'
  return out
