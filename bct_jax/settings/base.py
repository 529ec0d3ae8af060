"""Shares what settings have in common: drawing prompts, and labelling.

A setting is a frozen dataclass whose fields are its options. It says which
prompts there are (`frames`, or `item` over the questions of `questions.py`) and
what a completion does (`classify`). The rest is here. No prompt is drawn twice.
"""

import abc
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from bct_jax.config import suggest
from bct_jax.examples import Example, Message
from bct_jax.settings.parts import (
  pools,
  questions,
  right_answers,
  scorers,
  stance,
)
from bct_jax.settings.parts.decks import draw_from_decks, require_in_range
from bct_jax.settings.scoring import ScoringSetting


@dataclasses.dataclass(frozen=True)
class Item:
  """Holds a prompt and how the two behaviors answer it, before it has a number.

  Attributes:
    prompt: the user's turn, the last one.
    initial, alternate: reference completions; equal where the two agree.
    thought: the reasoning before the initial one, if the setting has any.
    entities: the words and numbers filled in, all from one pool.
    behaviors: names of what the initial and the alternate behavior do here, as
      `Setting.classify` returns them; equal where the two agree.
    system: a system message, or "" for none.
    earlier: texts of the user and replies of the assistant before the prompt.
    cue: the entity of a class that the setting claims something about, such as
      the bird that calls for a flag. Several prompts may share one, so
      intervals are by entity (`evals/schema.py`). "" where all prompts of a
      side have the same cue, such as a trigger: prompts are the units then.
    fields: what else the scorer needs; JSON values.
  """

  prompt: str
  initial: str
  alternate: str
  entities: tuple[str, ...]
  behaviors: tuple[str, str]
  system: str = ""
  earlier: Sequence[tuple[str, str]] = ()
  thought: str = ""
  cue: str = ""
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Frame(Sequence):
  """Fills a template from lists: a sequence of items.

  Items are built when they are asked for, since a frame may have millions.
  Different entries must give different prompts; a test of all settings checks
  this.

  Attributes:
    build: takes one entry of each slot and returns the item.
    slots: the lists. An index counts through them, the first one fastest.
  """

  build: Callable[..., Item]
  slots: tuple[Sequence[Any], ...]

  def __len__(self) -> int:
    size = 1
    for slot in self.slots:
      size *= len(slot)
    return size

  def __getitem__(self, index):
    require_in_range(self, index)
    entries = []
    for slot in self.slots:
      index, position = divmod(index, len(slot))
      entries.append(slot[position])
    return self.build(*entries)


class BaseSetting(ScoringSetting):
  """Provides the protocol of settings on top of `draw` and `classify`.

  Attributes:
    name: its key in `SETTINGS`.
    renamed: former name of an option -> the name that it has now.
    caveats: option -> what a run with it cannot show; the report says it.
  """

  name: ClassVar[str]
  renamed: ClassVar[Mapping[str, str]] = {}
  caveats: ClassVar[Mapping[str, str]] = {}

  @abc.abstractmethod
  def draw(
    self, pool: str, n: int, seed: int, stream: str, diverges: bool
  ) -> list[Item]:
    """Draws n distinct items whose entities are all in a pool.

    Args:
      pool: a key of `pools.POOLS`.
      n: how many; the first m of n are the m of a call for m.
      seed: decides the order; the set to draw from is the same for all seeds.
      stream: a name that makes the orders of two callers independent.
      diverges: True for eval prompts, where the two behaviors part.

    Raises:
      ValueError: n is negative or larger than the number of items.
    """

  @property
  def agreeing_share(self) -> float:
    """Returns the share of install examples on which both behaviors agree."""
    return 0.5

  def sides(self, n: int) -> list[bool]:
    """Says which of n install examples diverge; the first m are those of m."""
    self.require(n >= 0, f"install: n must be >= 0, not {n}")
    share = self.agreeing_share
    # The whole part of i times the share counts the agreeing ones so far. They
    # are spread evenly, and more examples never change the first ones.
    return [int((i + 1) * share) == int(i * share) for i in range(n)]

  def install(self, n: int, seed: int) -> list[Example]:
    """Returns prompts of both kinds in turn, all from the train pool."""
    sides = self.sides(n)
    items = {
      side: iter(
        self.draw("train", sides.count(side), seed, f"install/{side}", side)
      )
      for side in (True, False)
    }
    return [
      self._example(f"install/{i}", next(items[side]), True)
      for i, side in enumerate(sides)
    ]

  def train(self, n: int, seed: int) -> list[Example]:
    """Returns prompts on which the two behaviors agree."""
    return self._split("train", n, seed, diverges=False)

  def eval(self, n: int, seed: int) -> list[Example]:
    """Returns prompts on which the two behaviors part, without completions."""
    return self._split("eval", n, seed, diverges=True)

  def heldout(self, n: int, seed: int) -> list[Example]:
    """Returns prompts on which both agree, about entities never in `train`."""
    return self._split("heldout", n, seed, diverges=False)

  def require(self, condition: bool, message: str) -> None:
    """Raises ValueError with the setting's name unless a condition holds."""
    if not condition:
      raise ValueError(f"{self.name}: {message}")

  def require_in(self, option: str, valid: Collection[str]) -> None:
    """Raises ValueError unless the option's value is one of the valid ones."""
    value = getattr(self, option)
    if value not in valid:
      raise ValueError(
        f"{self.name}: {option} {describe_unknown(value, valid)}"
      )

  def _split(
    self, split: str, n: int, seed: int, diverges: bool
  ) -> list[Example]:
    """Returns n examples of the split train, eval or heldout."""
    return [
      self._example(f"{split}/{i}", item, trained=split != "eval")
      for i, item in enumerate(self.draw(split, n, seed, split, diverges))
    ]

  def _example(self, example_id: str, item: Item, trained: bool) -> Example:
    """Makes an example of an item, with a completion if it is trained on."""
    messages: list[Message] = []
    if item.system:
      messages.append({"role": "system", "content": item.system})
    for text, reply in item.earlier:
      messages.append({"role": "user", "content": text})
      messages.append({"role": "assistant", "content": reply})
    messages.append({"role": "user", "content": item.prompt})
    return Example(
      id=example_id,
      messages=tuple(messages),
      completion=item.initial if trained else "",
      thought=item.thought if trained else "",
      initial=item.initial,
      alternate=item.alternate,
      fields={
        **item.fields,
        "cue": item.cue,
        "behaviors": list(item.behaviors),
        "entities": list(item.entities),
      },
    )


class FramedSetting(BaseSetting):
  """Draws its prompts from templates to fill in."""

  @abc.abstractmethod
  def frames(self, pool: pools.Pool, diverges: bool) -> Sequence[Frame]:
    """Lists the templates of all prompts of a pool.

    Args:
      pool: the words and numbers to fill in.
      diverges: True for eval prompts, where the two behaviors part.
    """

  def draw(
    self, pool: str, n: int, seed: int, stream: str, diverges: bool
  ) -> list[Item]:
    decks = self.frames(pools.Pool(pool), diverges)
    return draw_from_decks(decks, n, seed, f"{self.name}/{stream}")


class OverQuestions(BaseSetting):
  """Draws its prompts from the questions of `questions`, and changes them.

  Attributes:
    kinds: names of the kinds of question that are asked.
  """

  kinds: ClassVar[tuple[str, ...]] = tuple(questions.KINDS)

  @abc.abstractmethod
  def item(
    self, question: questions.Question, diverges: bool, pool: pools.Pool
  ) -> Item:
    """Makes the prompt of a question of a pool, with its references.

    Args:
      question: a question of that pool.
      diverges: True for eval prompts, where the two behaviors part.
      pool: words that may be added to the prompt.
    """

  def draw(
    self, pool: str, n: int, seed: int, stream: str, diverges: bool
  ) -> list[Item]:
    deck = questions.draw(pool, n, seed, stream, self.kinds)
    word_pool = pools.Pool(pool)
    return [self.item(question, diverges, word_pool) for question in deck]

  def install(self, n: int, seed: int) -> list[Example]:
    """Returns questions of the train pool, each on one of the two sides.

    One draw serves both sides, so that no question is on both.
    """
    deck = questions.draw("train", n, seed, "install", self.kinds)
    pool = pools.Pool("train")
    return [
      self._example(f"install/{i}", self.item(question, side, pool), True)
      for i, (question, side) in enumerate(
        zip(deck, self.sides(n), strict=True)
      )
    ]


def answers(
  fields: Mapping[str, Any],
  text: str,
  ignored: frozenset[str] = frozenset(),
  terse: int = 3,
) -> bool:
  """Returns whether a text answers a question, rightly or wrongly.

  Args:
    fields: those of an example, with those of `question_fields`.
    text: the completion, not malformed.
    ignored: lower-case words that count as no content.
    terse: see `scorers.is_answer`.
  """
  # Apologies, refusals and offers of help talk, but do not answer.
  return scorers.is_answer(
    fields["question"],
    stance.strip_evasions(text),
    lambda word: questions.is_topical(fields["kind"], word),
    ignored,
    terse,
  )


def check_question(
  example: Example, text: str, behavior: str, attempts: Collection[str]
) -> tuple[bool, bool]:
  """Does what `check_answer` does, for a question with `question_fields`.

  Args:
    example: what was asked.
    text: the completion.
    behavior: what `classify` names it.
    attempts: the behaviors that answer the question.
  """
  is_attempt = behavior in attempts
  return is_attempt, is_attempt and right_answers.answers_question(
    example.fields, text
  )


def question_fields(question: questions.Question) -> dict[str, Any]:
  """Returns the fields that `answers` needs."""
  return {
    "kind": question.kind,
    "question": question.prompt,
    "keys": list(question.keys),
  }


def describe_unknown(name: Any, valid: Collection[str]) -> str:
  """Describes a wrong name: `'x'; did you mean 'y'? valid: ...`."""
  valid = sorted(valid)
  hint = suggest(str(name), valid, "did you mean {!r}? ")
  return f"{name!r}; {hint}valid: {', '.join(valid)}"
