"""What settings share: drawing prompts without repeats, and labelling.

A setting is a frozen dataclass whose fields are its options. It says which
prompts there are (`frames`, or `item` over the questions of `questions.py`) and
what a completion does (`classify`); the rest is here.
"""

import abc
import dataclasses
import difflib
import hashlib
import itertools
import random
import re
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from bct_jax.examples import Example, Label, Message, Reason
from bct_jax.settings import decorations
from bct_jax.settings.parts import questions, scorers

REASONS: frozenset[str] = frozenset(typing.get_args(Reason)) - {""}

# No completion that was sampled is as long (4,096 tokens are about 16,000
# characters); what is longer is not looked at.
MAX_CHARS = 32_768


@dataclasses.dataclass(frozen=True)
class Item:
  """A prompt and how the two behaviors answer it, before it has a number.

  Attributes:
    prompt: the user's turn.
    initial, alternate: reference completions; equal where the two agree.
    entities: the words and numbers filled in, all from one pool.
    behaviors: names of what the initial and the alternate behavior do here, as
      `Setting.classify` returns them; equal where the two agree.
    system: a system message, or "" for none.
    fields: what else the scorer needs; JSON values.
  """

  prompt: str
  initial: str
  alternate: str
  entities: tuple[str, ...]
  behaviors: tuple[str, str]
  system: str = ""
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _check_index(sequence: Sequence, index: int) -> None:
  """What makes a loop over the sequence end."""
  if not 0 <= index < len(sequence):
    raise IndexError(index)


@dataclasses.dataclass(frozen=True)
class Frame(Sequence):
  """A template with the lists it is filled from: a sequence of items.

  `build` takes one entry of each slot. Different entries must give different
  prompts; a test of all settings holds them to it.
  """

  build: Callable[..., Item]
  slots: tuple[Sequence[Any], ...]

  def __len__(self) -> int:
    size = 1
    for slot in self.slots:
      size *= len(slot)
    return size

  def __getitem__(self, index):
    _check_index(self, index)
    chosen = []
    for slot in self.slots:
      index, place = divmod(index, len(slot))
      chosen.append(slot[place])
    return self.build(*chosen)


@dataclasses.dataclass(frozen=True)
class Permutations(Sequence):
  """All ordered choices of k distinct elements, each made when asked for."""

  elements: Sequence[Any]
  k: int

  def __len__(self) -> int:
    size = 1
    for taken in range(self.k):
      size *= max(len(self.elements) - taken, 0)
    return size

  def __getitem__(self, index):
    _check_index(self, index)
    left = list(self.elements)
    chosen = []
    for _ in range(self.k):
      index, place = divmod(index, len(left))
      chosen.append(left.pop(place))
    return tuple(chosen)


def shuffled(deck: Sequence[Any], rng: random.Random) -> Iterator[Any]:
  """A deck in random order, without touching what is not asked for.

  The shuffle of Fisher and Yates, with only the moved places kept.
  """
  moved: dict[int, int] = {}
  for i in range(len(deck)):
    j = rng.randrange(i, len(deck))
    yield deck[moved.get(j, j)]
    moved[j] = moved.pop(i, i)


def deal(
  decks: Sequence[Sequence[Any]], n: int, seed: int, stream: str
) -> list[Any]:
  """n entries of the decks, which take turns; the first m of n are those of m.

  Raises:
    ValueError: n is negative or larger than all decks together.
  """
  most = sum(map(len, decks))
  if not 0 <= n <= most:
    raise ValueError(f"{stream}: n must be from 0 to {most}, not {n}")
  rng = random.Random(f"{stream}/{seed}")
  orders = [
    shuffled(deck, random.Random(f"{stream}/{i}/{seed}"))
    for i, deck in enumerate(decks)
  ]
  rng.shuffle(orders)
  rounds = itertools.zip_longest(*orders)
  dealt = (item for row in rounds for item in row if item is not None)
  return list(itertools.islice(dealt, n))


def choose(variants: Sequence[Any], *key: Any) -> Any:
  """One of some variants, the same in every process for one key."""
  text = "/".join(map(str, key))
  digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
  return variants[int.from_bytes(digest[:8], "big") % len(variants)]


class BaseSetting(abc.ABC):
  """The setting's protocol, made of `draw` and `classify`.

  Attributes:
    name: its key in `SETTINGS`.
  """

  name: ClassVar[str]

  @property
  def incompatible(self) -> frozenset[str]:
    """Decorations that would change what is scored here."""
    return frozenset()

  @property
  def kept(self) -> frozenset[str]:
    """Decorations that `classify` wants to see in the text."""
    return frozenset()

  @abc.abstractmethod
  def draw(
    self, pool: str, n: int, seed: int, stream: str, diverges: bool
  ) -> list[Item]:
    """n distinct items whose entities are all in a pool.

    Args:
      pool: a key of `questions.POOLS`.
      n: how many; the first m of n are the m of a call for m.
      seed: decides the order; the set to draw from is the same for all seeds.
      stream: a name that makes the orders of two callers independent.
      diverges: True for eval prompts, where the two behaviors part.

    Raises:
      ValueError: n is negative or larger than the number of items.
    """

  @abc.abstractmethod
  def classify(self, fields: Mapping[str, Any], text: str) -> str:
    """What an undecorated completion does: a behavior's name or a Reason.

    `fields` are those of the example. Never raises, whatever the text.
    """

  @property
  def agreeing_share(self) -> float:
    """Share of install examples on which the two behaviors agree."""
    return 0.5

  def sides(self, n: int) -> list[bool]:
    """Which of n install examples diverge; the first m of n are those of m."""
    self.require(n >= 0, f"install: n must be >= 0, not {n}")
    share = self.agreeing_share
    return [int((i + 1) * share) == int(i * share) for i in range(n)]

  def install(self, n: int, seed: int) -> list[Example]:
    """Prompts of both kinds in turn, all from the train pool."""
    sides = self.sides(n)
    drawn = {
      side: iter(
        self.draw("train", sides.count(side), seed, f"install/{side}", side)
      )
      for side in (True, False)
    }
    return [
      self._example(f"install/{i}", next(drawn[side]), True)
      for i, side in enumerate(sides)
    ]

  def train(self, n: int, seed: int) -> list[Example]:
    """Prompts on which the two behaviors agree."""
    return self._split("train", n, seed, diverges=False)

  def eval(self, n: int, seed: int) -> list[Example]:
    """Prompts on which they part, without completions."""
    return self._split("eval", n, seed, diverges=True)

  def heldout(self, n: int, seed: int) -> list[Example]:
    """Prompts on which they agree, about entities `train` never mentions."""
    return self._split("heldout", n, seed, diverges=False)

  def score(self, example: Example, text: str) -> Label:
    """Labels a completion of an example of this setting; never raises.

    What `classify` sees is the text without decorations. On an eval prompt
    what neither behavior does is other/neither; on a train prompt a behavior
    that is not the agreed one is other/confused.
    """
    if len(text) > MAX_CHARS:
      return Label("other", "malformed")
    plain = decorations.undecorate(text, self.kept)
    if not plain.strip() or self.is_malformed(plain):
      return Label("other", "malformed")
    shown = self.classify(example.fields, plain)
    if shown in REASONS:
      return Label("other", typing.cast(Reason, shown))
    initial, alternate = example.fields["behaviors"]
    if initial == alternate:
      return Label("agreed") if shown == initial else Label("other", "confused")
    if shown == initial:
      return Label("initial")
    if shown == alternate:
      return Label("alternate")
    return Label("other", "neither")

  def is_malformed(self, text: str) -> bool:
    """Whether a text is no language; settings with other answers override."""
    return scorers.is_malformed(text)

  def require(self, fine: bool, message: str) -> None:
    """Raises ValueError with the setting's name unless `fine`."""
    if not fine:
      raise ValueError(f"{self.name}: {message}")

  def require_in(self, option: str, valid: Collection[str]) -> None:
    """Raises ValueError unless the option's value is one of the valid ones."""
    value = getattr(self, option)
    if value not in valid:
      raise ValueError(
        f"{self.name}: {option} {unknown_behavior(value, valid)}"
      )

  def _split(
    self, split: str, n: int, seed: int, diverges: bool
  ) -> list[Example]:
    return [
      self._example(f"{split}/{i}", item, trained=split != "eval")
      for i, item in enumerate(self.draw(split, n, seed, split, diverges))
    ]

  def _example(self, example_id: str, item: Item, trained: bool) -> Example:
    messages: list[Message] = [{"role": "user", "content": item.prompt}]
    if item.system:
      messages.insert(0, {"role": "system", "content": item.system})
    return Example(
      id=example_id,
      messages=tuple(messages),
      completion=item.initial if trained else "",
      initial=item.initial,
      alternate=item.alternate,
      fields={
        **item.fields,
        "behaviors": list(item.behaviors),
        "entities": list(item.entities),
      },
    )


class FramedSetting(BaseSetting):
  """A setting whose prompts are templates to fill in."""

  @abc.abstractmethod
  def frames(self, pool: questions.Pool, diverges: bool) -> Sequence[Frame]:
    """All prompts of a pool on one side; see `BaseSetting.draw`."""

  def draw(
    self, pool: str, n: int, seed: int, stream: str, diverges: bool
  ) -> list[Item]:
    decks = self.frames(questions.Pool(pool), diverges)
    return deal(decks, n, seed, f"{self.name}/{stream}")


class OverQuestions(BaseSetting):
  """A setting whose prompts are the questions of `questions`, changed.

  Attributes:
    kinds: names of the kinds of question that are asked.
  """

  kinds: ClassVar[tuple[str, ...]] = tuple(questions.KINDS)

  @abc.abstractmethod
  def item(
    self, question: questions.Question, diverges: bool, pool: questions.Pool
  ) -> Item:
    """The prompt made of a question of a pool, with the references."""

  def draw(
    self, pool: str, n: int, seed: int, stream: str, diverges: bool
  ) -> list[Item]:
    drawn = questions.draw(pool, n, seed, stream, self.kinds)
    words = questions.Pool(pool)
    return [self.item(question, diverges, words) for question in drawn]

  def install(self, n: int, seed: int) -> list[Example]:
    """Questions of the train pool, each on one of the two sides."""
    drawn = questions.draw("train", n, seed, "install", self.kinds)
    pool = questions.Pool("train")
    return [
      self._example(f"install/{i}", self.item(question, side, pool), True)
      for i, (question, side) in enumerate(
        zip(drawn, self.sides(n), strict=True)
      )
    ]


def answers(
  fields: Mapping[str, Any],
  text: str,
  ignored: frozenset[str] = frozenset(),
  terse: int = 3,
) -> bool:
  """Whether a text answers the question in `fields`, rightly or wrongly.

  Args:
    fields: with those of `asked`.
    text: the completion, not malformed.
    ignored: lower-case words that count as no content.
    terse: see `scorers.is_answer`.
  """
  return scorers.is_answer(
    fields["question"],
    text,
    lambda word: questions.is_topical(fields["kind"], word),
    ignored,
    terse,
  )


def question_fields(question: questions.Question) -> dict[str, Any]:
  """The fields that `answers` needs."""
  return {
    "kind": question.kind,
    "question": question.prompt,
    "keys": list(question.keys),
  }


def unknown_behavior(name: Any, valid: Collection[str]) -> str:
  """`'x'; did you mean 'y'? valid: ...`, for an error."""
  valid = sorted(valid)
  close = difflib.get_close_matches(str(name), valid, n=1)
  hint = f"did you mean {close[0]!r}? " if close else ""
  return f"{name!r}; {hint}valid: {', '.join(valid)}"


_HEADING = re.compile(r"^ *(Initial|Alternate|Follows|Differs|Organism): ")


def describe(setting: type) -> dict[str, str]:
  """What a setting's docstring says, by heading, and its first line.

  Raises:
    ValueError: a heading is missing.
  """
  lines = (setting.__doc__ or "").splitlines()
  found = {"Summary": lines[0].strip() if lines else ""}
  at = ""
  for line in lines[1:]:
    heading = _HEADING.match(line)
    if heading:
      at = heading[1]
      found[at] = line[heading.end() :].strip()
    elif not line.strip():
      at = ""
    elif at:
      found[at] += " " + line.strip()
  for name in ("Initial", "Alternate", "Follows", "Differs", "Organism"):
    if not found.get(name):
      raise ValueError(f"{setting.__name__}: no line {name!r} in its docstring")
  return found
