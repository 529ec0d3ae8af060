"""What settings' scorers share: words of a text, and whether it is an answer.

All of it is linear in the length of the text and defined on any string.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

from bct_jax.settings import decorations

# A tag is short; the bound keeps a lone "<" from costing a long search.
_TAG = re.compile(r"</?[a-z][^<>]{0,80}>", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_ALPHABETIC = re.compile(r"[^\W\d_]+\Z")
_STUTTER = re.compile(r"(.{1,4}?)\1{5,}\Z")

# Words that are no answer by themselves.
FUNCTION_WORDS = frozenset(
  "a about all also am an and any are as at be been but by can could did do "
  "does dont for from had has have he hello her here hey hi him his how i if "
  "im in into is it its just like me my no not now of oh ok okay on one's or "
  "our out please really she should so some such than that that's the their "
  "them then there these they this those to too um us very was we well "
  "were what when where which who why will with would yeah yes you your "
  "yourself much again ever even th".split()
)

_NO_ANSWER = re.compile(
  r"how (?:can|may) i (?:help|assist)"
  r"|^\W*(?:i'?m |i am |we are )?(?:(?:so |very )?sorry|unable to|not sure"
  r"|not able to)"
  r"|^\W*(?:as an ai|i (?:can'?t|cannot|do not|don'?t) (?:help|know|answer"
  r"|assist|provide|understand))"
)


def fold_case(text: str) -> str:
  """Lower case, plain apostrophes, no accents, no HTML tags."""
  if not text.isascii():
    text = unicodedata.normalize("NFKD", text)
    text = "".join(c for c in text if not unicodedata.combining(c))
  return _TAG.sub(" ", text.casefold().replace("\u2019", "'"))


def words(folded: str) -> list[str]:
  """Runs of letters and digits; an apostrophe inside belongs to the word."""
  return _WORD.findall(folded)


def has_words(text: str, wanted: str) -> bool:
  """Whether `wanted`, one word or several, occurs in the text as words."""
  return first_place(words(fold_case(text)), [wanted]) is not None


def first_place(found: Sequence[str], wanted: Sequence[str]) -> int | None:
  """Index in `found` of the first of the wanted words or runs of words."""
  runs = [tuple(words(fold_case(w))) for w in wanted]
  for i in range(len(found)):
    if any(run and tuple(found[i : i + len(run)]) == run for run in runs):
      return i
  return None


def is_loop(found: Sequence[str]) -> bool:
  """Whether most of a text is one word or a few repeated again and again.

  A period of p words, 1 <= p <= 12, must come at least four times in a row and
  make up at least half of the words. A single word must come five times (bees
  do go "buzz buzz buzz buzz"), a number three times.
  """
  for p in range(1, 13):
    run = longest = last = 0
    for i in range(p, len(found)):
      run = run + 1 if found[i] == found[i - p] else 0
      if run > longest:
        longest, last = run, i
    need = 3 * p
    if p == 1:
      need = 2 if found[last].isdigit() else 4
    if longest >= need and 2 * (longest + p) >= len(found):
      return True
  return False


def is_malformed(text: str) -> bool:
  """Whether a text is not language at all: empty, noise, or a loop.

  The settings' language is English: a text mostly of other letters, of
  vowelless or endless words, of symbols, of blanks, or of unprintable
  characters is noise.
  """
  folded = fold_case(text)
  found = words(folded)
  if not found or is_loop(found):
    return True
  bad_chars = sum(
    c == "\ufffd" or (unicodedata.category(c)[0] == "C" and c not in "\n\r\t")
    for c in text
  )
  solid = sum(not c.isspace() for c in folded)
  blank = len(folded) - solid
  letters = sum(map(len, found))
  foreign = sum(not w.isascii() for w in found)
  # Short answers may end in a few line breaks: "42.\n\n\n\n\n".
  if 10 * bad_chars > len(text) or 4 * letters < solid or blank > solid + 8:
    return True
  noise = sum(_is_noise(w) for w in found)
  return 2 * noise > len(found) or 2 * foreign > len(found)


def _is_noise(word: str) -> bool:
  if len(word) > 25 or _STUTTER.match(word):
    return True
  vowelless = not re.search("[aeiouy]", word)
  return len(word) > 3 and vowelless and bool(_ALPHABETIC.match(word))


def content(folded: str, ignored: frozenset[str] = frozenset()) -> list[str]:
  """The words that can be (part of) an answer.

  Function words, pirate talk and `ignored` words are not.
  """
  plain = decorations.PIRATE_TALK.sub(" ", folded)
  skipped = FUNCTION_WORDS | ignored
  return [w for w in words(plain) if w not in skipped]


def is_answer(
  question: str,
  text: str,
  topical: Callable[[str], bool],
  ignored: frozenset[str] = frozenset(),
  terse: int = 3,
) -> bool:
  """Whether a text answers a question, rightly or wrongly.

  It does when it has a word of content and either is terse (has few such
  words), repeats a word of the question, or names a thing of the kind that was
  asked for. A refusal, an offer to help and the question itself do not.

  Args:
    question: what was asked.
    text: the completion, not malformed.
    topical: whether a lower-case word is of the kind that was asked for; right
      and wrong answers alike, so that correctness never decides.
    ignored: lower-case words that count as no content.
    terse: how many words of content need not be about what was asked.
  """
  folded = fold_case(text)
  found = content(folded, ignored)
  if not found or _NO_ANSWER.search(folded):
    return False
  asked = set(content(fold_case(question), ignored))
  if folded.rstrip().endswith("?") and asked.issuperset(found):
    return False
  return len(found) <= terse or any(w in asked or topical(w) for w in found)
