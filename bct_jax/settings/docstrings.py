"""Reads what settings say of themselves in their docstrings."""

import re

HEADINGS = ("Initial", "Alternate", "Right", "Follows", "Differs", "Organism")
_HEADING = re.compile(rf"^ *({'|'.join((*HEADINGS, 'Length'))}): ")


def docstring_fields(setting: type) -> dict[str, str]:
  """Reads the fields of a setting's docstring, and its first line.

  Returns:
    The text by each of `HEADINGS`, and the first line as `Summary`. `Length` is
      there where the length of a prompt tells its side.

  Raises:
    ValueError: a heading is missing.
  """
  lines = (setting.__doc__ or "").splitlines()
  fields = {"Summary": lines[0].strip() if lines else ""}
  heading_name = ""
  for line in lines[1:]:
    heading = _HEADING.match(line)
    if heading:
      heading_name = heading[1]
      fields[heading_name] = line[heading.end() :].strip()
    elif not line.strip():
      heading_name = ""
    elif heading_name:
      fields[heading_name] += " " + line.strip()
  for name in HEADINGS:
    if not fields.get(name):
      raise ValueError(f"{setting.__name__}: no line {name!r} in its docstring")
  return fields
