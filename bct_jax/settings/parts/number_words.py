"""Reads numbers that are written in words, in English and in Spanish."""

import functools
import re

from bct_jax.settings.parts import scorers

_UNITS = (
  "one two three four five six seven eight nine",
  "uno dos tres cuatro cinco seis siete ocho nueve",
)
_TEENS = (
  "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
  "nineteen",
  "diez once doce trece catorce quince dieciseis diecisiete dieciocho "
  "diecinueve",
)
_TENS = (
  "twenty thirty forty fifty sixty seventy eighty ninety",
  "veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa",
)
_BETWEEN = (" ", " y ")
_SEPARATOR = r"[\s-]+"


@functools.cache
def _table() -> dict[str, int]:
  """Returns the numbers from 10 to 99 by their words.

  Smaller ones are left out: "one" and "once" are words of much else.
  """
  out = {}
  for units, teens, tens, between in zip(
    _UNITS, _TEENS, _TENS, _BETWEEN, strict=True
  ):
    out |= {w: n for n, w in enumerate(teens.split(), 10) if w != "once"}
    for i, ten in enumerate(tens.split(), 2):
      out[ten] = 10 * i
      for j, unit in enumerate(units.split(), 1):
        out[f"{ten}{between}{unit}"] = 10 * i + j
        if ten == "veinte":
          out[f"veinti{unit}"] = 20 + j
  return out


@functools.cache
def _pattern() -> re.Pattern[str]:
  """Matches the longest words of a number first."""
  words = sorted(_table(), key=len, reverse=True)
  forms = "|".join(w.replace(" ", _SEPARATOR) for w in words)
  return re.compile(rf"(?<!\w)(?:{forms})(?!\w)")


def to_digits(text: str) -> str:
  """Returns a text, folded, with the numbers from 10 to 99 in digits."""
  table = _table()
  return _pattern().sub(
    lambda m: str(table[re.sub(_SEPARATOR, " ", m[0])]),
    scorers.fold_case(text),
  )
