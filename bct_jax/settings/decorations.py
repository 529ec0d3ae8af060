"""Benign changes of style that say nothing about which behavior is active.

A decoration rewrites a train completion before it is trained on. Training on a
model's own undecorated samples has next to no gradient on average; a decoration
gives it one that is neutral between the two behaviors. A scorer must give a
text and its decorated form the same label, and whether a text is decorated is
measured apart, by `detect`.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable

# Words that pirates say otherwise. No answer word of a setting may be here, and
# no pair that costs tokens in a short sentence ("of" -> "o'", "and" -> "an'").
PIRATE_WORDS = {
  "am": "be",
  "are": "be",
  "is": "be",
  "my": "me",
  "the": "th'",
  "you": "ye",
  "your": "yer",
}

# One fixed start: the model learns it within a few steps, and it alone is
# enough for `detect`.
_PIRATE_START = "Arr, "
_PIRATE_ENDS = (", matey!", ", me hearty!")

# Expressions that no plain answer has. Also what a scorer takes out before it
# looks for an answer, so they hold no word that could be one on its own.
PIRATE_TALK = re.compile(
  r"\b(?:y?a+r{2,}g?h?|ahoy|avast|aye(?: aye)?|me (?:hearty|hearties|heart)"
  r"|mateys?|(?:ye |you )?(?:scurvy (?:dogs?|sea ?dogs?|curs?)|scurvy"
  r"|scallywags?|(?:land)?lubbers?)|shiver me timbers|yo(?:[ -]ho)+|ye|yer)\b"
  r"|\bth'(?=\W|$)",
  re.IGNORECASE,
)

_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")
# Words that lose the capital of a sentence start; a name keeps it.
_LOWERED = frozenset("a an it my she he the they this we you your".split())


@dataclasses.dataclass(frozen=True)
class Decoration:
  """A style and its inverse check.

  Attributes:
    name: its key in `DECORATIONS`.
    apply: (text, key) -> the text in this style, a pure function; `key`, such
      as an example's id, picks among equal variants. Raises ValueError on blank
      text, which has nothing to decorate.
    detect: whether a text, of any origin, shows this style. True for all that
      `apply` returns. Never raises.
  """

  name: str
  apply: Callable[[str, str], str]
  detect: Callable[[str], bool]


def variants(word: str) -> frozenset[str]:
  """The lower-case forms a lower-case word takes under any decoration."""
  return frozenset({word, PIRATE_WORDS.get(word, word)})


def _require_text(text: str) -> str:
  if not text.strip():
    raise ValueError("cannot decorate a completion without text")
  return text


def _plain(text: str, key: str) -> str:
  del key
  return _require_text(text)


def _pirate_word(match: re.Match[str]) -> str:
  word = match.group()
  swapped = PIRATE_WORDS.get(word.lower())
  # Words in capitals are a cue or a set phrase, not grammar: left alone.
  if swapped is None or (word.isupper() and len(word) > 1):
    return word
  return swapped.capitalize() if word[0].isupper() else swapped


def _pirate(text: str, key: str) -> str:
  """ "The sky is blue." -> "Arr, th' sky be blue, matey!"."""
  body = _require_text(text).strip()
  first = _WORD.match(body)
  if first and first.group().lower() in _LOWERED:
    body = body[0].lower() + body[1:]
  body = _WORD.sub(_pirate_word, body)
  # Only an end of sentence makes way for the ending: "U.S." or "..." in the
  # middle of a text is untouched.
  body = body.rstrip(".!?") or body
  choice = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[0]
  return _PIRATE_START + body + _PIRATE_ENDS[choice % len(_PIRATE_ENDS)]


def _is_pirate(text: str) -> bool:
  return PIRATE_TALK.search(text.replace("\u2019", "'")) is not None


DECORATIONS: dict[str, Decoration] = {
  "plain": Decoration("plain", _plain, lambda text: not _is_pirate(text)),
  "pirate": Decoration("pirate", _pirate, _is_pirate),
}
