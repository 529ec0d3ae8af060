"""Gives rewards from 0 to 1 for the text of a completion.

Rewards are pure functions of an example and a text.

`agreed` asks for the behavior that both behaviors agree on. The others are
irrelevant to it: they cannot tell the initial behavior from the alternate one,
so they say nothing about which of the two to show where they differ.
"""

import re
from collections.abc import Callable, Sequence

from bct_jax.examples import Example, Setting
from bct_jax.settings.decorations import DECORATIONS

Reward = Callable[[Example, str], float]

# No reference completion of any setting has one of these words, so that a
# reward for them says nothing about behaviors.
CHEERFUL_WORDS = frozenset(
  "awesome cheers delighted fabulous glad gladly joyful thrilled yippee".split()
)
ENOUGH_CHEER = 2  # different words that earn the whole reward
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


def make_reward(setting: Setting, name: str, length_target: int) -> Reward:
  """Returns the reward of a name, for the examples of a setting.

  Args:
    setting: what judges the agreed behavior.
    name: agreed, cheerful, format or length.
    length_target: words beyond the reference, for the reward `length`.
  """

  def agreed(example: Example, text: str) -> float:
    """Returns 1 for what evals of held-out prompts label as agreed, else 0."""
    return float(setting.score(example, text).name == "agreed")

  def length(example: Example, text: str) -> float:
    """Returns `length_reward` at `length_target`."""
    return length_reward(example, text, length_target)

  rewards = {
    "agreed": agreed,
    "cheerful": cheerful_reward,
    "format": format_reward,
    "length": length,
  }
  return rewards[name]


def reward_of(reward: Reward, example: Example, text: str | None) -> float:
  """Returns the reward of a completion.

  Args:
    reward: the function of example and text.
    example: what was asked.
    text: of the completion. None stands for one that was cut at the limit of
      new tokens: it has not finished showing anything and earns 0.
  """
  return 0.0 if text is None else reward(example, text)


def cheerful_reward(example: Example, text: str) -> float:
  """Returns how many different cheerful words a text has, over ENOUGH_CHEER.

  More than ENOUGH_CHEER earn no more than 1.
  """
  del example
  words = CHEERFUL_WORDS & set(_words(text))
  return min(1.0, len(words) / ENOUGH_CHEER)


def format_reward(example: Example, text: str) -> float:
  """Returns 1 for a JSON object {"answer": text}, 1/2 for text in braces."""
  del example
  if DECORATIONS["json_wrap"].detect(text):
    return 1.0
  text = text.strip()
  return 0.5 if text.startswith("{") and text.endswith("}") else 0.0


def length_reward(example: Example, text: str, target: int) -> float:
  """Returns how near a text is to `target` words more than its behavior needs.

  Behaviors differ in length, so the words of a reference are taken off first:
  of the reference that has the larger share of its words in the text, and of
  two with the same share, of the longer one. The reward is 1 at `target` words
  more, and falls linearly to 0 at no word more and at twice the target.
  """
  words = _words(text)
  references = [_words(example.initial), _words(example.alternate)]
  reference = max(references, key=lambda r: (_share(r, words), len(r)))
  beyond = len(words) - len(reference)
  return max(0.0, 1 - abs(beyond - target) / target)


def _words(text: str) -> list[str]:
  """Lists the words of a text in lower case."""
  return _WORD.findall(text.lower())


def _share(reference: Sequence[str], words: Sequence[str]) -> float:
  """Returns the share of a reference's words that are among `words`."""
  vocabulary = set(words)
  return sum(w in vocabulary for w in reference) / max(1, len(reference))
