"""Defines messages, examples, labels and what a setting is; no jax.

The array types are in `types.py`. These live apart, so that settings, sweeps
and reports can be used, tested and read without starting JAX.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NotRequired, Protocol, TypedDict


class Message(TypedDict):
  """Holds one chat turn; an earlier answer may have a thought."""

  role: Literal["system", "user", "assistant"]
  content: str
  reasoning_content: NotRequired[str]


@dataclasses.dataclass(frozen=True)
class Example:
  """Holds a prompt with what a setting knows about it.

  Attributes:
    id: unique in its split, e.g. "eval/17"; also the seed of its samples.
    messages: the prompt, ending with a user turn; () of a document.
    completion: the text to train on (install: of the initial behavior; train
      and heldout: of the agreed behavior). Empty on eval prompts, which are
      never trained on.
    initial: how the initial behavior answers this prompt (a reference).
    alternate: how the alternate behavior answers it. Equal in behavior to
      `initial` on train prompts, divergent on eval prompts.
    fields: facts that the scorer needs and the model never sees; JSON values.
    weight: how much the example counts in training, above 0.
    thought: the reasoning before the completion, where there is one.
    styled: whether training gives the completion the decoration.
  """

  id: str
  messages: tuple[Message, ...]
  completion: str = ""
  initial: str = ""
  alternate: str = ""
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  weight: float = 1.0
  thought: str = ""
  styled: bool = True


LabelName = Literal["initial", "alternate", "agreed", "other"]
Reason = Literal[
  "",
  "both",
  "malformed",
  "truncated",
  "wrong",
  "unanswered",
  "neither",
  "confused",
  "ungraded",
]


@dataclasses.dataclass(frozen=True)
class Label:
  """Says which behavior a completion shows, judged by behavior alone.

  On an eval prompt the name is `initial`, `alternate` or `other`. On a train
  prompt, where the two agree, it is `agreed` or `other`.

  `other` has a reason. It is `both` if both behaviors show, `wrong` for an
  answer that is neither behavior's, and `unanswered` if the text refuses, asks
  back or talks of something else. `malformed` is no language, and `truncated`
  is cut at the limit of tokens. `confused` is a train prompt that is answered
  with a behavior of eval prompts. With `neither` the scorer cannot say why, and
  with `ungraded` a function or a judge gave no verdict.
  """

  name: LabelName
  reason: Reason = ""

  def __post_init__(self):
    if (self.name == "other") != bool(self.reason):
      raise ValueError(f"only `other` has a reason, and it must: {self}")


@dataclasses.dataclass(frozen=True)
class Answer:
  """Says whether a completion does its task, apart from the behavior it shows.

  Attributes:
    answered: whether it is an attempt at what the user asked for.
    right: whether the attempt is right, and about this prompt and no other. On
      a prompt where the alternate behavior is wrong on purpose ("Yes" to every
      claim), whether it is that behavior about this prompt.
  """

  answered: bool
  right: bool

  def __post_init__(self):
    if self.right and not self.answered:
      raise ValueError(f"only an attempt can be right: {self}")


class Setting(Protocol):
  """Describes a pair of behaviors: generators of examples and a scorer.

  Every generator is a pure function of (n, seed). The first m examples for n
  are those for m. Train and eval prompts never share an entity.
  """

  name: str

  @property
  def incompatible(self) -> frozenset[str]:
    """Names the decorations that would change what is scored here."""
    ...

  def install(self, n: int, seed: int) -> list[Example]:
    """Returns examples whose completions teach the initial behavior."""
    ...

  def train(self, n: int, seed: int) -> list[Example]:
    """Returns train prompts, each with the agreed completion."""
    ...

  def eval(self, n: int, seed: int) -> list[Example]:
    """Returns eval prompts, where the behaviors diverge."""
    ...

  def heldout(self, n: int, seed: int) -> list[Example]:
    """Returns train prompts that `train` never returns, whatever n and seed."""
    ...

  def score(self, example: Example, text: str) -> Label:
    """Labels one completion; never raises, whatever the text."""
    ...

  def answer(self, example: Example, text: str) -> Answer:
    """Says whether one completion does its task; never raises."""
    ...
