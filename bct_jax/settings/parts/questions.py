"""Asks short questions with short true answers, in pools that share no entity.

A question is a template filled with entities: words of `words.py` or numbers.
Every entity has one pool (pools.py), and a prompt belongs to a pool only if all
its entities do. So what training shows about an entity cannot answer an eval
prompt.

The answer's own words are held to this only where they can also be asked for
(the two words of an opposite pair). A sum such as 12 may be an answer in one
pool and an entity of another.
"""

import dataclasses
import functools
import itertools
import random
from collections.abc import Callable, Iterable, Iterator

from bct_jax.settings.parts import words
from bct_jax.settings.parts.pools import POOLS, Pool, an, cap


@dataclasses.dataclass(frozen=True)
class Question:
  """Holds a prompt with its true answer.

  Attributes:
    kind: the name of its generator, a key of `KINDS`.
    prompt: what the user asks.
    answer: one short true sentence.
    keys: the words that make an answer right; any one of them is enough.
    entities: the words and numbers that were filled in, all from one pool.
  """

  kind: str
  prompt: str
  answer: str
  keys: tuple[str, ...]
  entities: tuple[str, ...]


# What a kind yields: prompt, answer, keys, entities.
_Row = tuple[str, str, tuple[str, ...], tuple[str, ...]]


def _capital(pool: Pool) -> Iterator[_Row]:
  """Asks for the capital of a country."""
  for country, city in pool.facts(words.CAPITALS):
    article = "the " if country == "Netherlands" else ""
    yield (
      f"What is the capital of {article}{country}?",
      f"The capital of {article}{country} is {city}.",
      (city,),
      (country,),
    )


def _opposite(pool: Pool) -> Iterator[_Row]:
  """Asks for the opposite of either word of a pair."""
  for pair in pool.pairs(words.OPPOSITES):
    for a, b in (pair, pair[::-1]):
      yield (
        f"What is the opposite of {a}?",
        f"The opposite of {a} is {b}.",
        (b,),
        (a, b),
      )


def _color(pool: Pool) -> Iterator[_Row]:
  """Asks for the color of a thing."""
  for thing, color in pool.facts(words.COLORS_OF):
    yield (
      f"What color is {thing}?",
      f"{cap(thing)} is {color}.",
      (color,),
      (thing,),
    )


def _sound(pool: Pool) -> Iterator[_Row]:
  """Asks for the sound of an animal."""
  for animal, sound in pool.facts(words.SOUNDS):
    yield (
      f"What sound does {an(animal)} make?",
      f"{cap(an(animal))} makes the sound {sound}.",
      (sound, sound + "s", sound + "ing"),
      (animal,),
    )


def _plural(pool: Pool) -> Iterator[_Row]:
  """Asks for the plural of a noun."""
  for noun in pool.take(words.NOUNS):
    yield (
      f"What is the plural of {noun}?",
      f"The plural of {noun} is {noun}s.",
      (noun + "s",),
      (noun,),
    )


def _first_letter(pool: Pool) -> Iterator[_Row]:
  """Asks for the first letter of a noun."""
  for noun in pool.take(words.NOUNS):
    if noun[0] in "ai":
      continue  # A bare "A" or "I" reads as an article or a pronoun.
    yield (
      f"What is the first letter of {noun}?",
      f"The first letter of {noun} is {noun[0].upper()}.",
      (noun[0],),
      (noun,),
    )


def _sum(pool: Pool) -> Iterator[_Row]:
  """Asks for the sum of two numbers."""
  small = [n for n in pool.numbers() if n <= 30]
  for a, b in itertools.product(small, repeat=2):
    yield (
      f"What is {a} plus {b}?",
      f"{a} plus {b} is {a + b}.",
      (str(a + b),),
      (str(a), str(b)),
    )


def _next_number(pool: Pool) -> Iterator[_Row]:
  """Asks for the number after another."""
  for n in pool.numbers():
    yield (
      f"What number comes after {n}?",
      f"The number after {n} is {n + 1}.",
      (str(n + 1),),
      (str(n),),
    )


def _larger(pool: Pool) -> Iterator[_Row]:
  """Asks for the larger of two numbers."""
  for a, b in itertools.permutations(pool.numbers(), 2):
    yield (
      f"Which number is larger, {a} or {b}?",
      f"The larger number is {max(a, b)}.",
      (str(max(a, b)),),
      (str(a), str(b)),
    )


def _neighbour(
  pool: Pool, what: str, pairs: Iterable[tuple[str, str]]
) -> Iterator[_Row]:
  """Asks for the day, month or letter before or after another."""
  for a, b in pool.pairs(pairs):
    for word, way, neighbour in ((a, "after", b), (b, "before", a)):
      yield (
        f"What {what} comes {way} {word}?",
        f"The {what} {way} {word} is {neighbour}.",
        (neighbour,),
        (a, b),
      )


def _category(pool: Pool) -> Iterator[_Row]:
  """Asks which of two categories a thing belongs to."""
  categories = sorted(set(words.KINDS_OF_THING.values()))
  for thing, category in pool.facts(words.KINDS_OF_THING):
    # Mass nouns and games go without an article.
    subject = thing if category in ("metal", "sport", "fish") else an(thing)
    for other in categories:
      if other == category or {other, category} <= {"animal", "bird", "fish"}:
        continue
      first, second = sorted((category, other), key=lambda c: len(thing + c))
      yield (
        f"Is {subject} {an(first)} or {an(second)}?",
        f"{cap(subject)} is {an(category)}.",
        (category,),
        (thing,),
      )


def _own_name(pool: Pool) -> Iterator[_Row]:
  """Asks for the name that the prompt has said."""
  for name in pool.take(words.NAMES):
    yield (
      f"My name is {name}. What is my name?",
      f"Your name is {name}.",
      (name,),
      (name,),
    )


def _has(pool: Pool) -> Iterator[_Row]:
  """Asks for the thing that the prompt says somebody has."""
  for name, noun in itertools.product(
    pool.take(words.NAMES), pool.take(words.NOUNS)
  ):
    yield (
      f"{name} has {an(noun)}. What does {name} have?",
      f"{name} has {an(noun)}.",
      (noun,),
      (name, noun),
    )


def _job(pool: Pool) -> Iterator[_Row]:
  """Asks for the job that the prompt says somebody has."""
  for name, job in itertools.product(
    pool.take(words.NAMES), pool.take(words.JOBS)
  ):
    yield (
      f"{name} is {an(job)}. What is the job of {name}?",
      f"{name} is {an(job)}.",
      (job,),
      (name, job),
    )


def _home(pool: Pool) -> Iterator[_Row]:
  """Asks for the country that the prompt says somebody lives in."""
  for name, country in itertools.product(
    pool.take(words.NAMES), pool.take(words.CAPITALS)
  ):
    yield (
      f"{name} lives in {country}. Where does {name} live?",
      f"{name} lives in {country}.",
      (country,),
      (name, country),
    )


def _age(pool: Pool) -> Iterator[_Row]:
  """Asks for the age that the prompt says somebody has."""
  for name, n in itertools.product(pool.take(words.NAMES), pool.numbers()):
    yield (
      f"{name} is {n} years old. How old is {name}?",
      f"{name} is {n} years old.",
      (str(n),),
      (name, str(n)),
    )


def _say(pool: Pool) -> Iterator[_Row]:
  """Asks to repeat a word."""
  for noun in pool.take(words.NOUNS):
    yield f"Say the word {noun}.", f"{cap(noun)}.", (noun,), (noun,)


def _owner(pool: Pool) -> Iterator[_Row]:
  """Asks which of two people has a thing."""
  names = pool.take(words.NAMES)
  nouns = pool.take(words.NOUNS)
  for (i, a), (j, noun) in itertools.product(
    enumerate(names), enumerate(nouns)
  ):
    b = names[i - 1]
    # Both orders, so that neither the first name nor the last is always right.
    opening = f"{a}, not {b}," if (i + j) % 2 else f"Unlike {b}, {a}"
    yield (
      f"{opening} has {an(noun)}. Who has it?",
      f"{a} has the {noun}.",
      (a,),
      (a, b, noun),
    )


KINDS: dict[str, Callable[[Pool], Iterator[_Row]]] = {
  "capital": _capital,
  "opposite": _opposite,
  "color": _color,
  "sound": _sound,
  "plural": _plural,
  "first_letter": _first_letter,
  "sum": _sum,
  "next_number": _next_number,
  "larger": _larger,
  "day": lambda pool: _neighbour(pool, "day", words.DAYS),
  "month": lambda pool: _neighbour(pool, "month", words.MONTHS),
  "letter": lambda pool: _neighbour(pool, "letter", words.LETTERS),
  "category": _category,
  "own_name": _own_name,
  "has": _has,
  "job": _job,
  "home": _home,
  "age": _age,
  "say": _say,
  "owner": _owner,
}


# For settings in which an animal means something.
WITHOUT_ANIMALS = tuple(k for k in KINDS if k not in ("sound", "category"))


@functools.cache
def questions(pool: str, kind: str) -> tuple[Question, ...]:
  """Returns all questions of a kind in a pool, in a fixed order."""
  return tuple(Question(kind, *row) for row in KINDS[kind](Pool(pool)))


_NUMBER_WORDS = frozenset(
  "zero one two three four five six seven eight nine ten eleven twelve "
  "thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty "
  "thirty forty fifty sixty seventy eighty ninety hundred thousand".split()
)


@functools.cache
def _answer_words(kind: str) -> frozenset[str]:
  """Returns lower-case words of all answers to a kind, of every pool."""
  return frozenset(
    word
    for pool in POOLS
    for question in questions(pool, kind)
    for key in question.keys
    for word in key.casefold().split()
  )


def is_topical(kind: str, word: str) -> bool:
  """Returns whether a kind of question asks for such a lower-case word.

  A word is of the kind when it is part of an answer to any question of that
  kind. A number is of every kind whose answers are numbers.
  """
  answers = _answer_words(kind)
  if word in answers:
    return True
  number = word.isdigit() or word in _NUMBER_WORDS
  return number and any(w.isdigit() for w in answers)


def draw(
  pool: str, n: int, seed: int, stream: str, kinds: Iterable[str] = KINDS
) -> list[Question]:
  """Draws n distinct questions of a pool, the kinds taking turns.

  Each kind's questions are shuffled, and each round draws one of every kind
  that has one left. So the first questions cover all kinds evenly, and the
  kinds with many questions supply the rest.

  Args:
    pool: a key of `POOLS`.
    n: how many; the first m of n are the m of a call for m.
    seed: decides the order; the set to draw from is the same for all seeds.
    stream: a name that makes the orders of two callers independent.
    kinds: names of the kinds to draw from.

  Raises:
    ValueError: n is negative or larger than the number of questions.
  """
  rng = random.Random(f"{stream}/{pool}/{seed}")
  decks = []
  for kind in kinds:
    deck = list(questions(pool, kind))
    rng.shuffle(deck)
    decks.append(deck)
  rng.shuffle(decks)
  rounds = itertools.zip_longest(*decks)
  in_turn = (q for row in rounds for q in row if q is not None)
  selection = list(itertools.islice(in_turn, max(n, 0)))
  if n < 0 or len(selection) < n:
    total = sum(map(len, decks))
    raise ValueError(f"{stream}: n must be from 0 to {total}, not {n}")
  return selection
