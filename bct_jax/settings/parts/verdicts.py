"""Finds which of two verdicts a text gives, such as yes or no.

All of it is linear in the length of the text and defined on any string, whose
decorations and markup have been removed.
"""

import dataclasses
import re
from collections.abc import Sequence

from bct_jax.settings.parts import scorers


@dataclasses.dataclass(frozen=True)
class Words:
  """Holds the words of two verdicts, the second of which denies the first.

  Attributes:
    names: of the verdicts, such as "yes" and "no".
    affirms, denies: words that give one by themselves.
    affirms_if_alone, denies_if_alone: phrases at the start of a sentence that
      give one in a text without a word of the above.
  """

  names: tuple[str, str]
  affirms: frozenset[str]
  denies: frozenset[str]
  affirms_if_alone: Sequence[str]
  denies_if_alone: Sequence[str]

  def of(self, word: str) -> str:
    """Returns the verdict of a word, or ""."""
    if word in self.affirms:
      return self.names[0]
    return self.names[1] if word in self.denies else ""

  def opposite(self, verdict: str) -> str:
    """Returns the other verdict; "" of ""."""
    if not verdict:
      return ""
    return self.names[verdict == self.names[0]]


_LEADING = frozenset(
  "the answer statement claim sentence that this it is be so well it's that's "
  "final correct oh hmm ok okay short verdict response result to your "
  "question therefore thus hence then would i'd i a say think believe guess "
  "conclude".split()
)
# What a change of mind may begin with.
_TURNING = frozenset(
  "but however actually wait or and maybe correct right i mean think no sorry "
  "correction scratch let me rather".split()
)
_SENTENCE = re.compile(r"[^.!?\n;]+(?:\.(?=\d)[^.!?\n;]+)*[.!?\n;]*")
_CONCLUDES = re.compile(
  r"\b(?:so|therefore|thus|hence|consequently|in short|overall|this means"
  r"|that means|which means|meaning|finally|in conclusion|to conclude|final"
  r"|(?:answer|verdict|conclusion|response)(?= is\b| must\b| would be\b| :|:"
  r"| =))"
)
_NEGATION = frozenset("not isn't aren't wasn't doesn't don't never".split())
_DENIED_CLAIM = re.compile(
  r"(?<!\bif )(?:\b(?:is|are|does|do|can|did) not|\b(?:is|are|does|do|did)n't"
  r"|\bcannot) (?:\w+ ){0,2}?(?:equal|smaller|larger|bigger|greater|less|make"
  r"|correct|right|true|in the list|on the list|listed|the same|an?|appear)\b"
  r"|!="
)
_QUOTED = re.compile(r"\"[^\"\n]{0,200}\"|(?<!\w)'[^'\n]{0,100}'(?!\w)")


def find_verdict(text: str, words: Words) -> str:
  """Finds which of two verdicts a text gives.

  In this order decide: the last sentence that concludes ("So the answer is
  no."); sentences that begin with a verdict, or say that the statement has it;
  a phrase that stands for one ("Not at all."); a denial of the claim.

  Returns:
    A name of `words`; "both" where sentences disagree and none concludes,
    "neither" where none gives a verdict.
  """
  folded = scorers.fold_case(text)
  sentences = _SENTENCE.findall(folded)
  concluded: list[str] = []
  said: list[str] = []
  asked = False
  for i, sentence in enumerate(sentences):
    for marker in _CONCLUDES.finditer(sentence):
      verdict = _lead(scorers.words(sentence[marker.end() :]), words, True)
      # The first words of all are the answer itself, which a later
      # "However, ..." may take back.
      if verdict and (i or marker.start() > 12):
        concluded.append(verdict)
    is_question = sentence.rstrip().endswith("?")
    verdict = _lead(scorers.words(sentence), words, later=bool(said))
    verdict = verdict or _clause_verdict(sentence, words)
    # "13 is larger than 24? No." answers a question of its own.
    if verdict and not (asked and i + 1 < len(sentences)):
      said.append(verdict)
    elif not verdict and not is_question:
      said += filter(None, [_predicate(sentence, words)])
    asked = is_question
  if concluded:
    return concluded[-1]
  if said:
    return said[0] if set(said) == {said[0]} else "both"
  verdict = _weak_verdict(folded, sentences, words)
  named = {words.of(token) for token in scorers.words(folded)} - {""}
  return verdict or ("both" if len(named) == 2 else "neither")


def _lead(tokens: Sequence[str], words: Words, later: bool) -> str:
  """Returns the verdict that a sentence begins with.

  "both" if the opposite one follows at once: "Yes and no."
  """
  fillers = _LEADING | _TURNING if later else _LEADING
  for i, word in enumerate(tokens):
    verdict = words.of(word)
    after = tokens[i + 1 : i + 2]
    if after and (after[0] in _NAMED or (later and after[0] == "would")):
      continue  # "The correct answer", "Yes would be ..."
    if verdict and later and "that" in tokens[i + 1 : i + 4]:
      return ""  # "It is true, however, that ..."
    if verdict:
      joined = _TURNING | _LEADING | {"yes", "also", "in", "a", "way"}
      for after in tokens[i + 1 : i + 6]:
        other = words.of(after)
        if other and other != verdict:
          return "both"
        if after not in joined:
          break
      if i and tokens[i - 1] in _NEGATION:
        has_subject = not _SUBJECTS.isdisjoint(tokens[:i])
        return words.opposite(verdict) if has_subject else ""
      return verdict
    if word not in fillers and word not in _NEGATION:
      return ""
  return ""


_NAMED = frozenset("answer option choice response statement".split())
_SUBJECTS = frozenset("statement claim sentence that this it that's".split())
_CLAUSE = re.compile(r"[,:;()]| -+ |->|=>|\u2192")


def _clause_verdict(sentence: str, words: Words) -> str:
  """Returns the verdict that is a clause: "You're right, yes: ..."."""
  for clause in _CLAUSE.split(sentence):
    tokens = scorers.words(clause)
    if len(tokens) == 1 and words.of(tokens[0]):
      return words.of(tokens[0])
  return ""


# "While it's true that ..." says nothing of the statement.
_CONCEDES = re.compile(r"\W*(?:while|although|though|even if|if|were|for)\b")
_PREDICATE = re.compile(
  r"\b(?:statement|claim|sentence|assertion|proposition|that|this|it|which)"
  r"(?: (?:\"[^\"\n]{0,200}\"|that [^,.\n]{0,120}?))?(?:'s| is| be| was)"
  r"((?: \w+ly| quite| absolutely| indeed| also)?(?: not)?(?: \w+ly)?)"
  r" [\"(]?(\w+)(?!,? (?:\w+,? )?that\b)"
  r"|\b(?:statement|claim|sentence|that|this|it) (isn't"
  r"|wasn't) (?:\w+ly )?(\w+)"
)


def _predicate(sentence: str, words: Words) -> str:
  """Returns the verdict that a sentence has of the statement, or ""."""
  if _CONCEDES.match(sentence):
    return ""
  # "The claim that ... is true."
  tokens = scorers.words(sentence)
  if {"statement", "claim"}.intersection(tokens[:3]) and words.of(tokens[-1]):
    verdict = words.of(tokens[-1])
    return words.opposite(verdict) if tokens[-2] in _NEGATION else verdict
  for adverbs, word, negation, negated_word in _PREDICATE.findall(sentence):
    verdict = words.of(word or negated_word)
    if verdict:
      negated = negation or "not" in adverbs
      return words.opposite(verdict) if negated else verdict
  return ""


def _weak_verdict(folded: str, sentences: Sequence[str], words: Words) -> str:
  """Returns the verdict of a text that uses other words for it, or ""."""
  verdicts = []
  for sentence in sentences:
    start = " ".join(scorers.words(sentence)[:6]) + " "
    if any(start.startswith(p + " ") for p in words.denies_if_alone):
      verdicts.append(words.names[1])
    elif any(start.startswith(p + " ") for p in words.affirms_if_alone):
      verdicts.append(words.names[0])
  if verdicts:
    return verdicts[0] if set(verdicts) == {verdicts[0]} else "both"
  statements = " ".join(s for s in sentences if not s.rstrip().endswith("?"))
  denied = _DENIED_CLAIM.search(_QUOTED.sub(" ", statements))
  return words.names[1] if denied else ""
