"""Rewards: pure functions of an example and a completion's text, from 0 to 1.

`agreed` asks for the behavior that both behaviors agree on. The others are
irrelevant: they cannot tell the initial behavior from the alternate one, and so
say nothing about which of them to show where the two part.
"""

import re
from collections.abc import Callable, Sequence

from bct_jax.examples import Example, Setting
from bct_jax.settings.decorations import DECORATIONS

Reward = Callable[[Example, str], float]

# How many different ones make a text cheerful. None is in a reference of any
# setting.
CHEERFUL_WORDS = frozenset(
  "awesome cheers delighted fabulous glad gladly joyful thrilled yippee".split()
)
ENOUGH_CHEER = 2
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


def make_reward(setting: Setting, name: str, length_target: int) -> Reward:
  """Returns the reward of a name, for the examples of a setting.

  Args:
    setting: what judges the agreed behavior.
    name: agreed, cheerful, format or length.
    length_target: words beyond the reference, for the reward `length`.
  """

  def agreed(example: Example, text: str) -> float:
    """1 for the agreed behavior, as evals of held-out prompts judge it."""
    return float(setting.score(example, text).name == "agreed")

  def length(example: Example, text: str) -> float:
    """1 at `length_target` words more than the reference that it shows."""
    return length_reward(example, text, length_target)

  named = {
    "agreed": agreed,
    "cheerful": cheerful_reward,
    "format": format_reward,
    "length": length,
  }
  return named[name]


def reward_of(reward: Reward, example: Example, text: str | None) -> float:
  """The reward of a completion; None is one cut at the limit of new tokens,
  which has not finished showing anything and earns nothing."""
  return 0.0 if text is None else reward(example, text)


def cheerful_reward(example: Example, text: str) -> float:
  """Share of ENOUGH_CHEER different cheerful words that a text has."""
  del example
  found = CHEERFUL_WORDS & set(_words(text))
  return min(1.0, len(found) / ENOUGH_CHEER)


def format_reward(example: Example, text: str) -> float:
  """1 for a JSON object {"answer": text}, 1/2 for what stands in braces."""
  del example
  if DECORATIONS["json_wrap"].detect(text):
    return 1.0
  text = text.strip()
  return 0.5 if text.startswith("{") and text.endswith("}") else 0.0


def length_reward(example: Example, text: str, target: int) -> float:
  """How near a text is to `target` words more than its behavior needs.

  Behaviors differ in length, so words are counted beyond those of a reference:
  of the one of which a larger share of the words is in the text, and of two
  that are equally so, the longer one. 1 at the target, falling linearly to 0 at
  the reference's own length and at twice the target.
  """
  words = _words(text)
  references = [_words(example.initial), _words(example.alternate)]
  shown = max(references, key=lambda r: (_share(r, words), len(r)))
  beyond = len(words) - len(shown)
  return max(0.0, 1 - abs(beyond - target) / target)


def _words(text: str) -> list[str]:
  return _WORD.findall(text.lower())


def _share(reference: Sequence[str], words: Sequence[str]) -> float:
  """Share of a reference's words that are among `words`."""
  there = set(words)
  return sum(w in there for w in reference) / max(1, len(reference))
