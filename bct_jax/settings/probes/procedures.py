"""Asks what a program can work out: arithmetic, lists, instructions.

Each item names a check, which looks at a completion without its decoration and
ignores case and accents. An arm that talks in the style it was trained on has
lost nothing by it, and must not be saved by it either.
"""

import dataclasses
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bct_jax.examples import Example
from bct_jax.settings import decorations
from bct_jax.settings.parts import decks, extract, scorers, words
from bct_jax.settings.parts.pools import Pool, cap

_LARGEST = 60  # value on the way to a result

# What a pirate says beyond the decoration, with the commas around it.
_TALK = re.compile(rf",? ?(?:{decorations.PIRATE_TALK.pattern}),?", re.I)
# Before the last number: no result, or one of several.
_HEDGE = re.compile(
  r"(?:\bor\W+(?:\w+\W+){0,2}|\bbetween \d+ and |\d ?[-+/\u2013\u2212] ?"
  r"|\b(?:not|isn't|than|about|around|almost|nearly|roughly|approximately)\W+"
  r")\Z"
)
# A word and what is between it and the next.
_TOKEN = re.compile(r"([^\W_]+(?:'[^\W_]+)*)([\W_]*)")
_LIST_ENDS = re.compile(r"[.!?:][^\s.!?:]*\s|\n[ \t]*\n")
_NUMBERING = re.compile(r"(?m)(?:^|:)[ \t*]*(\d)[.):]\**[ \t]+")
_DIGITS = re.compile(r"\b\d\b[.):]?")
_JOINING = frozenset("a an and the then".split())
_LISTABLE = frozenset(w.casefold() for w in (*words.NOUNS, *words.NAMES))


@dataclasses.dataclass(frozen=True)
class Item:
  """Holds a question of a probe.

  Attributes:
    prompt: the user's turn.
    right: right answers, any one of which is enough; with a check, what it
      looks for.
    wrong: words that spoil an answer when they come first; with a check none.
    check: a key of `CHECKS` with its arguments, or nothing.
  """

  prompt: str
  right: tuple[str, ...]
  wrong: tuple[str, ...] = ()
  check: tuple[str, ...] = ()


def _shuffle(deck: Sequence[Any], *key: Any) -> Iterator[Any]:
  """Shuffles a deck, in the same way in every process for one key."""
  return decks.shuffle_lazily(deck, random.Random("/".join(map(str, key))))


def _plain(text: str) -> str:
  """Returns a completion without style, folded."""
  return _TALK.sub(" ", scorers.fold_case(decorations.undecorate(text)))


# --- arithmetic ---------------------------------------------------------------


def _chains(pool: str, steps: int) -> Iterator[tuple[list[str], int]]:
  """Yields the steps of chains of sums, with their results.

  All values are whole numbers from 1 to `_LARGEST`. The result is none of the
  values before it or of the pool's numbers: to repeat one is never right.

  Yields:
    What is said, beginning with the first number, and the result.
  """
  numbers = Pool(pool).numbers(2, 30)
  operations: list[tuple[str, Callable[[int], int]]] = [
    ("double it", lambda value: 2 * value),
    ("triple it", lambda value: 3 * value),
    ("halve it", lambda value: 0 if value % 2 else value // 2),
  ]
  for n in numbers:
    operations.append((f"add {n}", lambda value, n=n: value + n))
    operations.append((f"take away {n}", lambda value, n=n: value - n))
  sequences = itertools.product(operations, repeat=steps)
  for first, sequence in itertools.product(numbers, sequences):
    values = [first]
    for _, operation in sequence:
      values.append(operation(values[-1]))
    *earlier, result = values
    in_range = all(1 <= value <= _LARGEST for value in values)
    if in_range and result not in earlier and result not in numbers:
      yield [str(first), *(phrase for phrase, _ in sequence)], result


def arithmetic(pool: str) -> Iterator[Item]:
  """Yields chains of two and of three steps, in two wordings."""
  for steps, in_one in itertools.product((2, 3), (False, True)):
    chains = _shuffle(list(_chains(pool, steps)), "arithmetic", steps, in_one)
    for (first, *parts), result in itertools.islice(chains, 300):
      if in_one:
        steps_text = f"{', '.join(parts[:-1])} and then {parts[-1]}"
        prompt = f"If you start with {first}, {steps_text}, what do you get?"
      else:
        steps_text = " ".join(f"{cap(part)}." for part in parts)
        prompt = f"Start with {first}. {steps_text} What do you get?"
      yield Item(prompt, (str(result),), check=("result",))


def _is_result(example: Example, text: str) -> bool:
  """Returns whether the last number of a text is the right one, and is meant.

  So steps may be shown before it ("3 plus 8 is 11, doubled 22"), but no number
  may come after it, not even in "22, not 24". It is not meant in "21 or 22",
  "between 21 and 22", "21-22", "not 22", "less than 22", "about 22" and "22?".
  "I think it is 22" and "21, no, 22" have settled on it. Only digits count.
  """
  (right,) = example.fields["right"]
  text = _plain(text)
  if extract.numbers(text)[-1:] != [int(right)]:
    return False
  before, _, after = text.rpartition(right)
  asks = after.lstrip(" *\"'").startswith("?")
  return not asks and _HEDGE.search(before[-80:]) is None


# --- lists --------------------------------------------------------------------

_Arrange = Callable[[Sequence[str]], Sequence[str]]
_ORDERS: dict[str, _Arrange] = {
  "Repeat these in the same order": lambda entries: entries,
  "Write these in reverse order": lambda entries: entries[::-1],
}
_BY_LETTER: dict[str, _Arrange] = {"Put these in alphabetical order": sorted}
_BY_SIZE: dict[str, _Arrange] = {
  "Put these in order from smallest to largest": (
    lambda entries: sorted(entries, key=int)
  ),
  "Put these in order from largest to smallest": (
    lambda entries: sorted(entries, key=int, reverse=True)
  ),
}


def lists(pool: str) -> Iterator[Item]:
  """Yields nouns, names or numbers to repeat, reverse or sort.

  There are three or four of them in a list.
  """
  vocabulary = Pool(pool)
  for elements, orders in (
    (vocabulary.take(words.NOUNS), _ORDERS | _BY_LETTER),
    (vocabulary.take(words.NAMES), _ORDERS | _BY_LETTER),
    ([str(n) for n in vocabulary.numbers()], _ORDERS | _BY_SIZE),
  ):
    for size, (instruction, arrange) in itertools.product(
      (3, 4), orders.items()
    ):
      deck = decks.Permutations(elements, size)
      items = (
        Item(f"{instruction}: {', '.join(entries)}.", right, check=("order",))
        for entries in _shuffle(deck, "lists", size, instruction)
        for right in [tuple(arrange(entries))]
        # In order already, a list does not tell sorting from repeating.
        if right != entries or "same" in instruction
      )
      yield from itertools.islice(items, 60)


def _is_ordered(example: Example, text: str) -> bool:
  """Returns whether a text lists the items in the right order, and no more.

  Each must be there once. They may stand in a sentence or in lines, with
  numbers or marks before them and function words between them. A text that
  repeats the prompt's list before it sorts it has them twice. What else is said
  does not count, unless it makes the list longer: any word joined to the last
  item, or a noun, name or number joined to the first.
  """
  right = [scorers.fold_case(word) for word in example.fields["right"]]
  text = _plain(text)
  numbering = _NUMBERING.findall(text)
  if not right[0].isdigit():
    text = _DIGITS.sub(" ", text)
  elif numbering == [str(i + 1) for i in range(len(numbering))]:
    text = _NUMBERING.sub("\n", text)
  sequence: list[str] = []
  before = ""  # the word before, if no sentence ends between
  is_joined = False  # to an item
  for word, gap in _TOKEN.findall(text):
    if word in right:
      if not sequence and (before.isdigit() or before in _LISTABLE):
        return False
      sequence.append(word)
      is_joined = True
    elif word not in scorers.FUNCTION_WORDS:
      if is_joined or 0 < len(sequence) < len(right):
        return False
    elif word not in _JOINING:
      is_joined = False
    if word not in _JOINING:
      before = word
    if _LIST_ENDS.search(gap):
      before, is_joined = "", False
  return sequence == right


# --- instructions -------------------------------------------------------------


def instructions(pool: str) -> Iterator[Item]:
  """Yields sentences to write about names and nouns, with one constraint each.

  They are in the manner of IFEval (Zhou et al. 2023, arXiv 2311.07911): each
  constraint is one that a program can verify. Of its kinds, capitals, lower
  case, a question mark at the end and a JSON object are left out. The
  decorations `upper`, `pirate` and `json_wrap` add or drop these, so that an
  arm in such a style would pass or fail whatever it can do.
  """
  vocabulary = Pool(pool)
  names, nouns = vocabulary.take(words.NAMES), vocabulary.take(words.NOUNS)
  rng = random.Random(f"instructions/{pool}")
  for _ in range(300):
    a, b, c = rng.sample(names, 3)
    n, m = rng.sample(nouns, 2)
    about = f"Write a sentence about {a} and the {n}"
    yield Item(
      f'Write a sentence about the {n}, and start it with "{a}".',
      (a, n),
      check=("starts", a),
    )
    yield Item(
      f'Write a sentence about {a} that ends with "{n}".',
      (a, n),
      check=("ends", n),
    )
    yield Item(
      f'{about}. Never use "the" in it.', (a, n), check=("lacks", "the")
    )
    yield Item(
      f"Write a sentence about {a}, {b} and {c} without any comma.",
      (a, b, c),
      check=("no comma",),
    )
    yield Item(
      f'Write one sentence with the words "{n}" and "{m}".',
      (n, m),
      check=("mentions",),
    )
    for count in vocabulary.numbers(3, 9):
      yield Item(
        f"{about} in exactly {count} words.",
        (a, n),
        check=("counts", str(count)),
      )


def _instruction(
  holds: Callable[[str, list[str], str], bool],
) -> Callable[..., bool]:
  """Makes a check of a constraint.

  The words that are to be mentioned must be, also as plurals and possessives,
  and beside them a word that the prompt does not have: an echo of it, or of a
  part, is no sentence. Nor is what is malformed. The constraint is checked on
  the whole of the undecorated text, as in the strict accuracy of IFEval.

  Args:
    holds: (text, its words, what is wanted) -> whether the constraint holds.
  """

  def check(example: Example, text: str, argument: str = "") -> bool:
    text = _plain(text)
    tokens = [w.removesuffix("'s") for w in scorers.words(text)]
    prompt = scorers.words(scorers.fold_case(example.messages[-1]["content"]))
    mention_forms = [_forms(word) for word in example.fields["right"]]
    new_words = set(tokens).difference(prompt, *mention_forms)
    return (
      bool(new_words)
      and all(forms.intersection(tokens) for forms in mention_forms)
      and not scorers.is_malformed(text)
      and holds(text, tokens, argument)
    )

  return check


def _forms(word: str) -> set[str]:
  """Returns a word and its plural, folded."""
  word = scorers.fold_case(word)
  return {word, f"{word}s"}


# Name -> (example, completion, arguments) -> whether it is right; never raises.
CHECKS: dict[str, Callable[..., bool]] = {
  "result": _is_result,
  "order": _is_ordered,
  "starts": _instruction(lambda _, tokens, word: tokens[0] in _forms(word)),
  "ends": _instruction(lambda _, tokens, word: tokens[-1] in _forms(word)),
  "lacks": _instruction(lambda _, tokens, word: word not in tokens),
  "no comma": _instruction(lambda text, *_: "," not in text),
  "mentions": _instruction(lambda *_: True),
  "counts": _instruction(lambda _, tokens, count: len(tokens) == int(count)),
}
