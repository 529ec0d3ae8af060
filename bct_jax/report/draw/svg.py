"""Writes matplotlib's SVG anew: fewer elements, no style, ids of one page.

Half of what matplotlib writes has no effect: groups for its own classes, ids
that nothing refers to, invisible backgrounds, and six decimals of a pixel.
A report of 300 arms has 900 figures, and a browser reads all of them.
"""

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from markupsafe import escape

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+\.\d+")


def svg_body(drawn: str, key: str) -> str:
  """Writes the content of the SVG element that matplotlib drew.

  It has presentation attributes in place of style, which the policy of a page
  forbids; a style sheet would reach the whole page.

  Args:
    drawn: the whole SVG file.
    key: begins every id.
  """
  root = ElementTree.fromstring(drawn)
  used = set(re.findall(r'"#([^"]+)"|url\(#([^)]+)\)', drawn))
  ids = {a or b: f"{key}-{i}" for i, (a, b) in enumerate(sorted(used))}
  return "".join(part for child in root for part in _write(child, ids))


def _write(node: ElementTree.Element, ids: dict[str, str]) -> Iterator[str]:
  """Writes an element and all in it.

  Args:
    node: of matplotlib's file.
    ids: old id -> new id, of what is referred to.

  Yields:
    Parts of the text.
  """
  tag = node.tag.removeprefix(_SVG)
  if tag in ("metadata", "style"):
    return
  attributes = dict(_attributes(node, ids))
  inside = [part for child in node for part in _write(child, ids)]
  if tag in ("g", "defs") and not inside:
    return
  if tag == "g" and not attributes:
    yield from inside
    return
  if tag == "path" and attributes.get("fill") == "none":
    # The background of a figure without one; a mark's outline has an id.
    if "stroke" not in attributes and "id" not in attributes:
      return
  written = "".join(f' {k}="{escape(v)}"' for k, v in attributes.items())
  content = "".join(inside) + str(escape(node.text if tag == "text" else ""))
  end = f">{content}</{tag}>" if content else "/>"
  yield f"<{tag}{written}{end}"


def _attributes(
  node: ElementTree.Element, ids: dict[str, str]
) -> Iterator[tuple[str, str]]:
  """Lists the attributes that have an effect, numbers in hundredths."""
  for name, value in node.attrib.items():
    if name == "id":
      if value in ids:
        yield "id", ids[value]
    elif name == "style":
      yield from _presentation_attributes(value)
    elif name == _LINK:
      yield "xlink:href", f"#{ids[value[1:]]}"
    elif name == "clip-path":
      yield name, f"url(#{ids[value[5:-1]]})"
    elif name in ("d", "points", "x", "y", "width", "height"):
      yield name, _NUMBER.sub(_round, " ".join(value.split()))
    elif name == "transform":
      moved = re.sub(r"rotate\(-?0 [^)]*\)", "", value).strip()
      if moved:
        yield name, _NUMBER.sub(_round, moved)
    else:
      yield name, value


def _round(number: re.Match[str]) -> str:
  """Rounds to hundredths of a 72nd inch: "60.037736" is "60.04"."""
  return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _presentation_attributes(style: str) -> Iterator[tuple[str, str]]:
  """Splits `fill: none; stroke: red` into ("fill", "none") and the other."""
  for rule in filter(str.strip, style.split(";")):
    name, value = (part.strip() for part in rule.split(":", 1))
    if name == "font":  # the shorthand of older releases has no attribute
      size = re.search(r"[\d.]+px", value)
      name, value = "font-size", size[0] if size else "12px"
    if name != "font-family":  # the page's own
      yield name, value
