"""Makes short facts that can be said in English and in Spanish."""

import dataclasses
import functools
import re
from collections.abc import (
  Callable,
  Iterator,
  Mapping,
  Sequence,
)
from typing import Any

from bct_jax.settings.base import Frame, Item
from bct_jax.settings.parts import (
  scorers,
  spanish,
  stance,
  words,
)
from bct_jax.settings.parts.questions import Pool

# Training shows the words of this pool. `familiar` settings use them in all.
_TRAIN = Pool("train")

# It is in the language of the format, not of the answer.
_ANSWER_LABEL = re.compile(
  r"(?im)^\W*(?:(?:final|correct) )?(?:answer|respuesta)\s*:"
)
# "(Translation: ...)" is said of the answer.
_GLOSS = re.compile(
  r"\((?:translation|traduccion|traducci\u00f3n|note|nota|in english|in spanish"
  r"|en ingl\u00e9s|en espa\u00f1ol)\b[^()]{0,200}\)",
  re.IGNORECASE,
)
_QUOTED = re.compile(r"\"[^\"\n]{0,200}\"|(?<!\w)'[^'\n]{1,80}'(?!\w)")


@dataclasses.dataclass(frozen=True)
class Fact:
  """Holds a question with its answer, in English and in Spanish.

  Attributes:
    kind: which of the makers below it is from, such as "count".
    ask, say: question and answer by language.
    entities: the names, nouns (in all forms) and numbers filled in. Colors and
      places are a small closed vocabulary that all pools share.
    about: words of which an answer has at least one.
  """

  kind: str
  ask: Mapping[str, str]
  say: Mapping[str, str]
  entities: tuple[str, ...]
  about: tuple[str, ...]

  def fields(self) -> dict[str, Any]:
    """Returns the fields that `language_of_answer` needs, but for entities."""
    return {"kind": self.kind, "about": list(self.about)}


class _Thing:
  """Holds a noun in the plural, with what Spanish has to agree with."""

  def __init__(self, english: str):
    singular, gender = spanish.THINGS[english]
    self.english = english
    self.en, self.es = spanish.plural(english), spanish.plural_es(singular)
    self.feminine = gender == "f"
    self.the = spanish.article(gender)
    self.about = tuple(
      scorers.fold_case(w) for w in (english, self.en, singular, self.es)
    )


def _count(name: str, noun: str, n: int) -> Fact:
  """Asks how many things somebody has."""
  x = _Thing(noun)
  how_many = "Cuántas" if x.feminine else "Cuántos"
  return Fact(
    "count",
    {
      "en": f"{name} has {n} {x.en}. How many {x.en} does {name} have?",
      "es": f"{name} tiene {n} {x.es}. ¿{how_many} {x.es} tiene {name}?",
    },
    {
      "en": f"{name} has {n} {x.en}.",
      "es": f"{name} tiene {n} {x.es}.",
    },
    (name, *x.about, str(n)),
    x.about,
  )


def _color(noun: str, color: str, n: int) -> Fact:
  """Asks for the color of things."""
  x = _Thing(noun)
  color_es = spanish.COLORS[color][x.feminine]
  return Fact(
    "color",
    {
      "en": f"There are {n} {color} {x.en}. What color are the {x.en}?",
      "es": f"Hay {n} {x.es} {color_es}. ¿De qué color son {x.the} {x.es}?",
    },
    {
      "en": f"The {x.en} are {color}.",
      "es": f"{x.the.capitalize()} {x.es} son {color_es}.",
    },
    (*x.about, str(n)),
    x.about,
  )


def _place(noun: str, place: str) -> Fact:
  """Asks where things are."""
  x = _Thing(noun)
  place_es = spanish.PLACES[place]
  return Fact(
    "place",
    {
      "en": f"The {x.en} are in the {place}. Where are the {x.en}?",
      "es": f"{x.the.capitalize()} {x.es} están {place_es}. "
      f"¿Dónde están {x.the} {x.es}?",
    },
    {
      "en": f"The {x.en} are in the {place}.",
      "es": f"{x.the.capitalize()} {x.es} están {place_es}.",
    },
    x.about,
    x.about,
  )


def _owner(name: str, noun: str) -> Fact:
  """Asks who has things."""
  x = _Thing(noun)
  return Fact(
    "owner",
    {
      "en": f"{name} has the {x.en}. Who has the {x.en}?",
      "es": f"{name} tiene {x.the} {x.es}. ¿Quién tiene {x.the} {x.es}?",
    },
    {"en": f"{name} has the {x.en}.", "es": f"{name} tiene {x.the} {x.es}."},
    (name, *x.about),
    (*x.about, name.lower()),
  )


def _opposite(pair: tuple[tuple[str, str], tuple[str, str]]) -> Fact:
  """Asks for the opposite of a word, without any name, thing or number."""
  (en, es), (other_en, other_es) = pair
  return Fact(
    "opposite",
    {
      "en": f"What is the opposite of {en}?",
      "es": f"¿Qué es lo contrario de {es}?",
    },
    {
      "en": f"The opposite of {en} is {other_en}.",
      "es": f"Lo contrario de {es} es {other_es}.",
    },
    (en, es, other_en, other_es),
    tuple(scorers.fold_case(w) for w in (en, es, other_en, other_es)),
  )


def fact_frames(
  pool: Pool,
  build: Callable[..., Item],
  *more: Sequence[Any],
  familiar: bool = False,
) -> list[Frame]:
  """Makes frames of all facts of a pool.

  Args:
    pool: the words and numbers of the facts.
    build: takes a fact and one entry of each of `more`.
    *more: further slots of each frame.
    familiar: whether the things are those of the train pool in all pools. Only
      names and numbers are then of this pool, and facts that have neither are
      left out.
  """
  names = pool.take(words.NAMES)
  nouns = (_TRAIN if familiar else pool).take(spanish.THINGS)
  pairs = [p for p in spanish.OPPOSITES if pool.has(p[0][0])]
  slots: list[tuple[Callable[..., Fact], tuple[Sequence[Any], ...]]] = [
    (_count, (names, nouns, pool.numbers())),
    (_color, (nouns, list(spanish.COLORS), pool.numbers())),
    (_place, (nouns, list(spanish.PLACES))),
    (_owner, (names, nouns)),
    (_opposite, ([*pairs, *(p[::-1] for p in pairs)],)),
  ]

  def frame(make: Callable[..., Fact], tables: tuple[Sequence[Any], ...]):
    k = len(tables)

    def item(*values: Any) -> Item:
      fact = make(*values[:k])
      if familiar:
        fact_entities = [
          str(x) for x in values[:k] if isinstance(x, int) or x in names
        ]
        fact = dataclasses.replace(fact, entities=tuple(fact_entities))
      return build(fact, *values[k:])

    return Frame(item, (*tables, *more))

  return [
    frame(make, tables)
    for make, tables in slots
    if not familiar or make in (_count, _color, _owner)
  ]


@functools.cache
def _answer_words(kind: str) -> frozenset[str]:
  """Returns words that answers to a kind of fact can have, right or wrong."""

  def texts() -> Iterator[str]:
    if kind == "color":
      yield from spanish.COLORS
      yield from (w for forms in spanish.COLORS.values() for w in forms)
      for forms in spanish.COLORS.values():
        yield from (forms[0][:-1], forms[1][:-1], forms[0][:-2])
    elif kind == "place":
      yield from spanish.PLACES
      yield from (p.split()[-1] for p in spanish.PLACES.values())
    elif kind == "opposite":
      yield from (w for p in spanish.OPPOSITES for side in p for w in side)

  return frozenset(map(scorers.fold_case, texts()))


def language_of_answer(fields: Mapping[str, Any], text: str) -> str:
  """Returns "en", "es", "both", "neither" or "unanswered".

  See `spanish.language_of`. Words in quotes are talked about, so they count
  only where nothing else is an answer. An apology counts in neither language.

  A number of the question is topical too: "Tiene 35." answers, and so does a
  wrong "The answer is 35." where a color was asked for.
  """
  numbers = [e for e in fields["entities"] if e.isdigit()]
  topical = _answer_words(fields["kind"]).union(fields["about"], numbers)
  if fields["kind"] == "count":
    topical |= spanish.NUMBERS
  evades = stance.evades(text)
  text = _ANSWER_LABEL.sub(" ", stance.strip_evasions(text))
  text = _GLOSS.sub(" ", text)
  found = spanish.language_of(_QUOTED.sub(" ", text), topical)
  if found == "neither":
    found = spanish.language_of(text, topical)
  return "unanswered" if found == "neither" and evades else found
