"""Splits texts into words, and tells whether a text is an answer.

Settings' scorers share this. All of it is linear in the length of the text and
defined on any string: a completion may be anything.
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

# Words that are no answer by themselves. What is left of a text without them is
# its content, by which evasive texts are told from answers.
FUNCTION_WORDS = frozenset(
  "a about all also am an and any are as at be been but by can could did do "
  "does dont for from had has have he hello her here hey hi him his how i if "
  "im in into is it its just like me my no not now of oh ok okay on one's or "
  "our out please really she should so some such than that that's the their "
  "them then there these they this those to too um us very was we well "
  "were what when where which who why will with would yeah yes you your "
  "yourself much again ever even th".split()
)


def fold_case(text: str) -> str:
  """Returns lower case with plain apostrophes, without accents and tags.

  Tags are those of HTML. An accent may be missing or wrong in a right answer.
  """
  if not text.isascii():
    text = unicodedata.normalize("NFKD", text)
    text = "".join(c for c in text if not unicodedata.combining(c))
  return _TAG.sub(" ", text.casefold().replace("\u2019", "'"))


def words(folded: str) -> list[str]:
  """Lists runs of letters and digits.

  An apostrophe inside belongs to the word.
  """
  return _WORD.findall(folded)


def has_words(text: str, phrase: str) -> bool:
  """Returns whether a phrase, of one word or several, occurs in a text."""
  return first_place(words(fold_case(text)), [phrase]) is not None


def first_place(tokens: Sequence[str], phrases: Sequence[str]) -> int | None:
  """Returns the index of the first word, or run of words, that is one of some.

  Args:
    tokens: the folded words of a text.
    phrases: what to look for, each of one word or several.
  """
  runs = [tuple(words(fold_case(w))) for w in phrases]
  for i in range(len(tokens)):
    if any(run and tuple(tokens[i : i + len(run)]) == run for run in runs):
      return i
  return None


def is_loop(tokens: Sequence[str]) -> bool:
  """Returns whether most of a text is one word or a few, again and again.

  A period of p words, 1 <= p <= 12, must come at least four times in a row and
  make up at least half of the words. A single word must come five times (bees
  do go "buzz buzz buzz buzz"), a number three times.
  """
  for p in range(1, 13):
    run = longest = last = 0
    for i in range(p, len(tokens)):
      run = run + 1 if tokens[i] == tokens[i - p] else 0
      if run > longest:
        longest, last = run, i
    # Lists and rhymes repeat a few words; a loop does little else.
    need = 3 * p
    if p == 1:
      need = 2 if tokens[last].isdigit() else 4
    if longest >= need and 2 * (longest + p) >= len(tokens):
      return True
  return False


def is_malformed(text: str) -> bool:
  """Returns whether a text is not language at all: empty, noise, or a loop.

  The settings' language is English. A text mostly of other letters, of
  vowelless or endless words, of symbols, of blanks, or of unprintable
  characters is noise.
  """
  folded = fold_case(text)
  tokens = words(folded)
  if not tokens or is_loop(tokens):
    return True
  bad_chars = sum(
    c == "\ufffd" or (unicodedata.category(c)[0] == "C" and c not in "\n\r\t")
    for c in text
  )
  solid = sum(not c.isspace() for c in folded)
  blank = len(folded) - solid
  letters = sum(map(len, tokens))
  foreign = sum(not w.isascii() for w in tokens)
  # Short answers may end in a few line breaks: "42.\n\n\n\n\n".
  if 10 * bad_chars > len(text) or 4 * letters < solid or blank > solid + 8:
    return True
  noise = sum(_is_noise(w) for w in tokens)
  return 2 * noise > len(tokens) or 2 * foreign > len(tokens)


def _is_noise(word: str) -> bool:
  """Returns whether a word is endless, a stutter, or without a vowel."""
  if len(word) > 25 or _STUTTER.match(word):
    return True
  vowelless = not re.search("[aeiouy]", word)
  return len(word) > 3 and vowelless and bool(_ALPHABETIC.match(word))


def content(folded: str, ignored: frozenset[str] = frozenset()) -> list[str]:
  """Lists the words that can be (part of) an answer.

  Function words, pirate talk and `ignored` words are left out.
  """
  plain = decorations.PIRATE_TALK.sub(" ", folded)
  no_content = FUNCTION_WORDS | ignored
  return [w for w in words(plain) if w not in no_content]


def is_answer(
  question: str,
  text: str,
  topical: Callable[[str], bool],
  ignored: frozenset[str] = frozenset(),
  terse: int = 3,
) -> bool:
  """Returns whether a text answers a question, rightly or wrongly.

  It does when it has a word of content and either is terse (has few such
  words), repeats a word of the question, or names a thing of the kind that was
  asked for. The question itself does not.

  Args:
    question: what was asked.
    text: the completion, not malformed.
    topical: whether a lower-case word is of the kind that was asked for; right
      and wrong answers alike, so that correctness never decides.
    ignored: lower-case words that count as no content.
    terse: how many words of content need not be about what was asked.
  """
  folded = fold_case(text)
  answer_words = content(folded, ignored)
  if not answer_words:
    return False
  question_words = set(content(fold_case(question), ignored))
  if folded.rstrip().endswith("?") and question_words.issuperset(answer_words):
    return False
  # A short text is taken for an answer whatever it says. A long one must be
  # about the question, or a story would count.
  return len(answer_words) <= terse or any(
    w in question_words or topical(w) for w in answer_words
  )
