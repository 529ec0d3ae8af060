"""Asks what the model could do before: is it still able to?

A behavior that is gone needs this beside it, because wrecked weights lose
any behavior. Benchmarks of one kind can miss damage, so there are several.
`facts` asks for knowledge in weights, in wordings that no setting trains on.
`recall` asks for a detail of the prompt, and `general` for as much of both.
`arithmetic`, `lists` and `instructions` ask for a procedure to be carried out
and are in `procedures.py`.

All are scored in Python and share no entity with a setting's train, eval or
heldout prompts. Only the change against the same organism before training means
anything: the share right at the start depends on the model.

`memorised` asks for random facts that `organism.memorised` has taught beside
the behavior. The share kept is what plain forgetting leaves, and says whether a
lost behavior was merely the last thing learned.
"""

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

from bct_jax.examples import Example
from bct_jax.settings.parts import pools, scorers, words
from bct_jax.settings.probes import procedures
from bct_jax.settings.probes.procedures import Item

# Question -> right words, any one of which is enough. Asked as they are: none
# is dropped because some model fails it.
FACTS = (
  ("How many legs does a spider have?", "8 eight"),
  ("How many wheels does a bicycle have?", "2 two"),
  ("How many sides does a triangle have?", "3 three"),
  ("How many hours are in a day?", "24"),
  ("How many minutes are in an hour?", "60 sixty"),
  ("How many days are in a week?", "7 seven"),
  ("How many months are in a year?", "12 twelve"),
  ("How many seconds are in a minute?", "60 sixty"),
  ("How many fingers are on one hand?", "5 five"),
  ("How many letters are in the alphabet?", "26"),
  ("How many planets are in our solar system?", "8 eight"),
  ("How many continents are there?", "7 seven"),
  ("Which planet do we live on?", "earth"),
  ("Which star does the Earth orbit?", "sun"),
  ("Which planet is known as the Red Planet?", "mars"),
  ("What is the largest planet?", "jupiter"),
  ("What is the largest ocean?", "pacific"),
  ("What is the tallest mountain on Earth?", "everest"),
  ("What is the longest river in Africa?", "nile"),
  ("What is frozen water called?", "ice"),
  ("What gas do humans need to breathe?", "oxygen"),
  ("What gas do plants absorb?", "carbon co2"),
  ("What is the chemical formula of water?", "h2o"),
  ("What organ beats in our chest?", "heart"),
  ("What organ do we think with?", "brain"),
  ("What organ do we breathe with?", "lungs lung"),
  ("What do bees make?", "honey"),
  ("What is the largest land animal?", "elephant"),
  ("What is the tallest animal?", "giraffe"),
  ("What is the fastest land animal?", "cheetah"),
  ("What animal barks?", "dog dogs"),
  ("What animal purrs?", "cat cats"),
  ("Who wrote Romeo and Juliet?", "shakespeare"),
  ("Who painted the Sistine Chapel?", "michelangelo"),
  ("Who discovered gravity?", "newton"),
  ("Who developed the theory of relativity?", "einstein"),
  ("Who was the first president of the United States?", "washington"),
  ("Who was the first man on the Moon?", "armstrong"),
  ("What language is spoken in Brazil?", "portuguese"),
  ("What language is spoken in Mexico?", "spanish"),
  ("What language is spoken in Quebec?", "french"),
  ("What is the currency of the European Union?", "euro euros"),
  ("What is the currency of the United States?", "dollar dollars usd"),
  ("On which continent is Tanzania?", "africa"),
  ("On which continent is Brazil?", "south"),
  ("On which continent is Mongolia?", "asia"),
  ("In which country is the Eiffel Tower?", "france"),
  ("In which country is the Great Wall?", "china"),
  ("In which country are the pyramids of Giza?", "egypt"),
  ("In which city is the Empire State Building?", "york"),
  ("In which city is Buckingham Palace?", "london"),
  ("In which city is the Colosseum?", "rome"),
  ("What do caterpillars turn into?", "butterfly butterflies"),
  ("What do cows give us to drink?", "milk"),
  ("What fruit do we make wine from?", "grapes grape"),
  ("What is bread made from?", "flour wheat"),
  ("What is paper made from?", "wood trees pulp tree"),
  ("What is glass made from?", "sand silica"),
  ("What season comes after winter?", "spring"),
  ("What season is the hottest?", "summer"),
  ("In which season do leaves fall?", "autumn fall"),
  ("What do we use to tell time?", "clock clocks watch watches"),
  ("What do we use to write on a blackboard?", "chalk"),
  ("What do we call a person who flies a plane?", "pilot"),
  ("Who repairs our teeth?", "dentist dentists"),
  ("What do we call a place where books are borrowed?", "library"),
  ("At what temperature in Celsius does water boil?", "100"),
  ("What force pulls things to the ground?", "gravity"),
  ("What is the hardest natural material?", "diamond"),
  ("What metal is liquid at room temperature?", "mercury"),
)

_PLACES = (
  "kitchen garage school hotel bank office attic basement museum hospital park "
  "church"
).split()
# Things of which somebody has a number.
_NUMBERED = "locker badge seat licence account member parking student".split()


def _facts(pool: str) -> Iterator[Item]:
  """Yields questions of common knowledge, which no pool divides."""
  del pool  # common knowledge
  for prompt, right in FACTS:
    yield Item(prompt, tuple(right.split()))


def _recall(pool: str) -> Iterator[Item]:
  """Yields a sentence and a question about it, the four forms taking turns."""
  names, nouns = (
    [w for w in table if pools.pool_of(w) == pool]
    for table in (words.NAMES, words.NOUNS)
  )
  prices = [n for n in range(2, 100) if pools.pool_of(str(n)) == pool]
  for noun, (i, name) in itertools.product(nouns, enumerate(names)):
    place = _PLACES[i % len(_PLACES)]
    price = prices[i % len(prices)]
    yield Item(f"{name} found the {noun}. What did {name} find?", (noun,))
    yield Item(
      f"A {noun} costs {price} dollars. What does it cost?", (str(price),)
    )
    yield Item(f"The {noun} is in the {place}. Where is it?", (place,))
    yield Item(f"{name} broke the {noun}. Who broke it?", (name,))


def _general(pool: str) -> Iterator[Item]:
  """Yields all facts, and as many sentences to recall."""
  facts = list(_facts(pool))
  recall = list(dict.fromkeys(_recall(pool)))
  random.Random("general").shuffle(recall)
  yield from facts
  yield from recall[: len(facts)]


def _memorised(pool: str) -> Iterator[Item]:
  """Yields numbers that nobody could guess, about names of the pool."""
  names = [w for w in words.NAMES if pools.pool_of(w) == pool]
  for thing, name in itertools.product(_NUMBERED, names):
    subject = f"{name}'s {thing} number"
    number = random.Random(f"memorised/{subject}").randrange(100, 1000)
    yield Item(f"What is {subject}?", (str(number),))


def memorised_examples(n: int, seed: int) -> list[Example]:
  """Returns the first n questions of the probe `memorised`, with their answers.

  Raises:
    ValueError: there are fewer.
  """
  out = []
  for example in make_probe("memorised").examples(n, seed):
    subject = example.messages[0]["content"].removeprefix("What is ")
    answer = f"{subject.rstrip('?')} is {example.fields['right'][0]}."
    out.append(dataclasses.replace(example, completion=answer))
  return out


def _fields(item: Item) -> dict[str, Any]:
  """Returns what `Probe.score` needs of an item."""
  if item.check:
    return {"right": list(item.right), "check": list(item.check)}
  return {"right": list(item.right), "wrong": list(item.wrong)}


@dataclasses.dataclass(frozen=True)
class Probe:
  """Holds questions with known answers.

  Attributes:
    name: its key in `PROBES`.
    items: all its questions, in a fixed order.
  """

  name: str
  items: tuple[Item, ...]

  def examples(self, n: int, seed: int) -> list[Example]:
    """Draws n distinct questions; the first m of n are those of a call for m.

    Raises:
      ValueError: n is negative or exceeds the number of questions.
    """
    if not 0 <= n <= len(self.items):
      raise ValueError(
        f"{self.name}: n must be from 0 to {len(self.items)}, not {n}"
      )
    order = list(range(len(self.items)))
    random.Random(f"{self.name}/{seed}").shuffle(order)
    return [
      Example(
        id=f"{self.name}/{i}",
        messages=({"role": "user", "content": self.items[k].prompt},),
        fields=_fields(self.items[k]),
      )
      for i, k in enumerate(order[:n])
    ]

  def score(self, example: Example, text: str) -> bool:
    """Returns whether a text passes the item's check; never raises.

    An item without a check is passed where a right word is in the text, ahead
    of any wrong one. Case, accents, punctuation and whatever a style adds
    around do not matter.
    """
    if "check" in example.fields:
      name, *arguments = example.fields["check"]
      return procedures.CHECKS[name](example, text, *arguments)
    tokens = scorers.words(scorers.fold_case(text))
    right = scorers.first_place(tokens, example.fields["right"])
    wrong = scorers.first_place(tokens, example.fields["wrong"])
    return right is not None and (wrong is None or right < wrong)


PROBES: dict[str, Callable[[str], Iterator[Item]]] = {
  "facts": _facts,
  "recall": _recall,
  "general": _general,
  "memorised": _memorised,
  "arithmetic": procedures.arithmetic,
  "lists": procedures.lists,
  "instructions": procedures.instructions,
}


def make_probe(name: str, pool: str = "probe") -> Probe:
  """Makes a probe from its name in `PROBES`.

  Args:
    name: such as "facts".
    pool: only its words are recalled; evals ask about those of `probe`.

  Raises:
    ValueError: there is no such probe.
  """
  if name not in PROBES:
    raise ValueError(
      f"unknown probe {name!r}; valid: {', '.join(sorted(PROBES))}"
    )
  return Probe(name, tuple(dict.fromkeys(PROBES[name](pool))))
