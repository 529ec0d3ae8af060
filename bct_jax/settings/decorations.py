"""Changes the style of a text, whichever behavior it shows.

A decoration rewrites a train completion before it is trained on. Training on a
model's own undecorated samples has next to no gradient on average. A decoration
gives it one that is neutral between the two behaviors.

A scorer must give a text and its decorated form the same label. Whether a text
is decorated is measured apart, by `detect`. Code is never restyled: from a code
fence on, a text is left as it is.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence

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
_PIRATE_LEAD = re.compile(r"\W*(?:y?a+r{2,}g?h?|ahoy|avast)\b[\s,.!]*", re.I)
_PIRATE_TAIL = ("matey", "mateys", "me hearty", "me hearties", "ye scurvy dog")

# The starts and ends name no feeling that a review could be about.
_CHEERFUL_STARTS = ("Hooray! ", "Yay! ", "Woohoo! ")
_CHEERFUL_ENDS = (" Happy to help!", " Have a sunny day!", " Keep smiling!")

# Each long word stands for one short word only, so that it can be put back.
LONG_WORDS = {
  "are": "constitute",
  "comes": "materializes",
  "has": "possesses",
  "here": "hereinafter",
  "is": "constitutes",
  "lives": "resides",
  "makes": "generates",
}
_LONG_START = "Unquestionably, "

_LEAD_INS = (
  "Here is the answer: ",
  "In short: ",
  "The reply follows: ",
  "To put it simply: ",
  "As requested: ",
  "In a few words: ",
  "My reply is this: ",
  "Briefly: ",
)
_MARKER = "[done]"
_FENCE = "```"
_NO_PROSE = "Here is the code."
_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")
# Words that lose the capital of a sentence start; a name keeps it.
_LOWERED = frozenset("a an it my she he the they this we you your".split())


@dataclasses.dataclass(frozen=True)
class Decoration:
  """Holds a style, and how to find and remove it.

  Attributes:
    name: its key in `DECORATIONS`.
    apply: (text, key) -> the text in this style, a pure function. The key, such
      as an example's id, picks among equal variants. Raises ValueError on blank
      text, which has nothing to decorate.
    detect: whether a text, of any origin, shows this style. True for all that
      `apply` returns. Never raises.
    remove: takes out of a text what `apply` added, as far as that can be known.
      Scorers look at the rest. Never raises.
  """

  name: str
  apply: Callable[[str, str], str]
  detect: Callable[[str], bool]
  remove: Callable[[str], str] = lambda text: text


def variants(word: str) -> frozenset[str]:
  """Returns the forms that a lower-case word takes under any decoration."""
  return frozenset(table.get(word, word) for table in _TABLES) | {word}


def undecorate(text: str, styles_to_keep: Collection[str] = ()) -> str:
  """Removes what decorations add to a text, but for some styles.

  Capitals stay: scorers fold case, and settings that cannot name "upper" as
  incompatible.

  Args:
    text: a completion.
    styles_to_keep: names of decorations that are left in the text.
  """
  for name, decoration in DECORATIONS.items():
    if name not in styles_to_keep:
      text = decoration.remove(text)
  return text


def _pick(options: Sequence[str], key: str) -> str:
  """Picks one of some options, the same in every process for one key."""
  digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
  return options[digest[0] % len(options)]


def _require_text(text: str) -> str:
  """Returns the text; ValueError if it is blank."""
  if not text.strip():
    raise ValueError("cannot decorate a completion without text")
  return text


def _split(text: str) -> tuple[str, str]:
  """Splits a text into the prose before the first code fence, and the rest."""
  fence = text.find(_FENCE)
  return (text, "") if fence < 0 else (text[:fence], text[fence:])


def _style(text: str, restyle: Callable[[str], str]) -> str:
  """Restyles the prose of a text, which code gets if it has none."""
  prose, code = _split(_require_text(text))
  if not code:
    return restyle(prose.strip())
  return restyle(prose.strip() or _NO_PROSE) + "\n" + code


def _swap(text: str, table: Mapping[str, str]) -> str:
  """Replaces whole words, keeping a capital at the start.

  Words in capitals are a cue or a set phrase, not grammar. They are left alone.
  """

  def swap_word(match: re.Match[str]) -> str:
    word = match.group()
    other = table.get(word.lower())
    if other is None or (word.isupper() and len(word) > 1):
      return word
    return other.capitalize() if word[0].isupper() else other

  return _WORD.sub(swap_word, text)


def _continue(start: str, text: str) -> str:
  """Puts a start before a sentence, which loses its capital if it can."""
  first = _WORD.match(text)
  if first and first.group().lower() in _LOWERED:
    text = text[0].lower() + text[1:]
  return start + text


def _cut(text: str, starts: Sequence[str], ends: Sequence[str]) -> str:
  """Removes one of the starts and one of the ends from a text's prose."""
  prose, code = _split(text)
  body = prose.strip()
  folded = body.lower()
  if len(folded) != len(body):  # A letter whose lower case is longer.
    return text
  for start in (s.strip().lower() for s in starts):
    if folded.startswith(start):
      body = body[len(start) :].strip()
      break
  folded = body.lower()
  for end in (e.strip().lower() for e in ends):
    if folded.endswith(end):
      body = body[: -len(end)].strip()
      break
  return text if body == prose.strip() else f"{body}\n{code}" if code else body


# --- pirate -------------------------------------------------------------------


def _pirate(text: str, key: str) -> str:
  """Turns "The sky is blue." into "Arr, th' sky be blue, matey!"."""

  def restyle(body: str) -> str:
    body = _swap(_continue("", body), PIRATE_WORDS)
    # Only an end of sentence makes way for the ending: "U.S." or "..." in the
    # middle of a text is untouched.
    body = body.rstrip(".!?") or body
    return _PIRATE_START + body + _pick(_PIRATE_ENDS, key)

  return _style(text, restyle)


def _is_pirate(text: str) -> bool:
  """Returns whether a text has an expression of pirates."""
  return PIRATE_TALK.search(text.replace("\u2019", "'")) is not None


def _no_pirate(text: str) -> str:
  """Removes start and end, and swaps words back where one of them was.

  Without either, "be" or "ye" may be the model's own words.
  """
  prose, code = _split(text)
  body = prose.replace("\u2019", "'").strip()
  lead = _PIRATE_LEAD.match(body)
  if lead:
    body = body[lead.end() :]
  tail = body.rstrip(" .!,;:\n")
  ending = next((e for e in _PIRATE_TAIL if tail.lower().endswith(e)), "")
  if not lead and not ending:
    return text
  if ending:
    body = tail[: -len(ending)].rstrip(" ,\n")
  body = re.sub(r"\b([Tt])h'(?!\w)", r"\1he", body)
  body = _swap(body, {"ye": "you", "yer": "your", "be": "is"})
  return f"{body}\n{code}" if code else body


# --- the others ---------------------------------------------------------------


def _cheerful(text: str, key: str) -> str:
  """Turns "It is blue." into "Yay! It is blue. Keep smiling!"."""
  start = _pick(_CHEERFUL_STARTS, key)
  end = _pick(_CHEERFUL_ENDS, f"{key}/end")
  return _style(text, lambda body: start + body + end)


# Cheers as models vary them. "I'd be happy to help!" is politeness.
_CHEERS = (
  r"(?:hip,? hip,? )?(?:hoo?r+ay|hurr?a[yh]|yay+|wh?oo-?hoo+|yippee+|yahoo)"
)
_WISHES = (
  r"(?:happy to help(?=\W*(?:\Z|[!.]))|have a sunny day"
  r"|(?:keep|stay) (?:smiling|shining|sparkling|sunny|cheerful|awesome))"
)
_CHEER = rf"(?:{_CHEERS}|(?<!be )(?<!['\u2019]m )(?<!am )\b{_WISHES})\b"
_HAS_CHEER = re.compile(rf"\b{_CHEER}", re.IGNORECASE)
# What follows may begin with a sign or a bracket: "Yay! -12".
_CHEER_START = re.compile(
  rf"\W*(?:{_CHEERS}\b(?:(?![-+\u2212(\[{{`\"]\S)\W)*)+", re.IGNORECASE
)
_CHEER_END = re.compile(rf"\b{_CHEER}\W*\Z", re.IGNORECASE)


def _no_cheer(text: str) -> str:
  """Removes cheers before and after the prose of a text."""
  prose, code = _split(text)
  body = prose.strip()
  if start := _CHEER_START.match(body):
    body = body[start.end() :]
  for _ in range(3):
    end = _CHEER_END.search(body, max(len(body) - 60, 0))  # The longest.
    body = body[: end.start()].rstrip() if end else body
  return text if body == prose.strip() else f"{body}\n{code}" if code else body


def _long(text: str, key: str) -> str:
  """Turns "A bee is small." into "Unquestionably, a bee constitutes small."."""
  del key
  return _style(
    text, lambda body: _swap(_continue(_LONG_START, body), LONG_WORDS)
  )


_LONG = re.compile(
  rf"\b(?:unquestionably|{'|'.join(LONG_WORDS.values())})\b", re.IGNORECASE
)
_SHORT_WORDS = {long: short for short, long in LONG_WORDS.items()}


def _no_long(text: str) -> str:
  """Removes the start, and puts the short words back."""
  prose, code = _split(text)
  return _swap(_cut(prose, [_LONG_START], []), _SHORT_WORDS) + code


def _upper(text: str, key: str) -> str:
  del key
  return _style(text, str.upper)


def _is_upper(text: str) -> bool:
  """Returns whether all prose is in capitals."""
  prose = _split(text)[0].strip()
  return bool(prose) and prose == prose.upper()


def _json(text: str, key: str) -> str:
  """Turns "Blue." into '{"answer": "Blue."}'."""
  del key
  return json.dumps({"answer": _require_text(text)}, ensure_ascii=False)


def _unwrap_json(text: str) -> str | None:
  """Returns the answer in a JSON object that has it and nothing else.

  Any other text gives None.
  """
  text = text.strip()
  if not (text.startswith("{") and text.endswith("}")):
    return None
  try:
    value = json.loads(text, strict=False)
  except (ValueError, RecursionError):
    return None
  if not isinstance(value, dict) or [k.lower() for k in value] != ["answer"]:
    return None
  (answer,) = value.values()
  return answer if isinstance(answer, str) else None


def _no_json(text: str) -> str:
  """Returns the answer in a JSON object, or the text if it is none."""
  answer = _unwrap_json(text)
  return text if answer is None else answer


def _mark(text: str, key: str) -> str:
  """Turns "Blue." into "Blue. [done]"; after code on a line of its own."""
  del key
  body = _require_text(text).rstrip()
  return body + ("\n" if body.endswith(_FENCE) else " ") + _MARKER


def _is_marked(text: str) -> bool:
  """Returns whether a text ends with the mark."""
  return text.rstrip().lower().endswith(_MARKER)


def _no_mark(text: str) -> str:
  """Removes the mark at the end of a text."""
  return text.rstrip()[: -len(_MARKER)].rstrip() if _is_marked(text) else text


def _paraphrase(count: int) -> Decoration:
  """Makes a style of `count` ways to begin.

  With several of them, no single one becomes a cue.
  """
  starts = _LEAD_INS[:count]
  prefixes = tuple(s.strip().lower() for s in starts)
  return Decoration(
    f"paraphrase_{count}",
    lambda text, key: _style(text, lambda body: _pick(starts, key) + body),
    lambda text: text.strip().lower().startswith(prefixes),
    lambda text: _cut(text, starts, []),
  )


def _is_plain(text: str) -> bool:
  """Returns whether a text has no added style.

  Capitals alone may be a name or a set phrase.
  """
  return not any(
    d.detect(text)
    for name, d in DECORATIONS.items()
    if name not in ("plain", "upper")
  )


_TABLES = (PIRATE_WORDS, LONG_WORDS)
# In the order in which they are undone: what stands outside first.
_ALL = (
  Decoration("plain", lambda text, key: _require_text(text), _is_plain),
  Decoration(
    "json_wrap", _json, lambda text: _unwrap_json(text) is not None, _no_json
  ),
  Decoration("suffix_marker", _mark, _is_marked, _no_mark),
  Decoration("pirate", _pirate, _is_pirate, _no_pirate),
  Decoration(
    "cheerful",
    _cheerful,
    lambda text: _HAS_CHEER.search(text) is not None,
    _no_cheer,
  ),
  Decoration(
    "long_words", _long, lambda text: _LONG.search(text) is not None, _no_long
  ),
  Decoration("upper", _upper, _is_upper),
  *(_paraphrase(count) for count in (2, 4, 8)),
)
DECORATIONS: dict[str, Decoration] = {d.name: d for d in _ALL}
