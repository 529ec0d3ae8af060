"""Tells whether a text gives the answer that was asked for.

A right answer is about its own prompt: a sentence that a model gives to every
prompt, or the right answer to another one, gives the key of few. All of it is
linear in the length of the text and defined on any string, whose decorations
have been removed.
"""

import functools
import re
from collections.abc import (
  Callable,
  Collection,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
from typing import Any

from bct_jax.examples import Example
from bct_jax.settings import decorations
from bct_jax.settings.parts import (
  extract,
  number_words,
  questions,
  scorers,
  spanish,
  words,
)

_SENTENCE_END = re.compile(r"[.!?;:\n]+")
_CLAUSE_END = re.compile(r"[,()\u2014]+|\s-+\s")
# A sentence about "it" is about what the prompt is about.
_PRONOUNS = re.compile(r"(?:it|he|she|they|that|this)(?:'s|'re)?\b")
# Before a word that is denied: "not Lima", "unlike Ben", "rather than a metal".
_DENIALS = frozenset("not unlike isn't than cannot never no nor wasn't".split())
# What follows takes back what came before.
_CORRECTIONS = frozenset("actually wait no sorry correction rather".split())
# Words of an answer that say nothing of what was asked.
_FILLERS = frozenset(
  "answer right correct result sure yes certainly course say called word "
  "it's that's they're he's she's there's i'd i'm think believe got "
  "verily forsooth hath doth thy tis nay".split()
)
# What a verdict is about, and how it is said.
_VERDICT_WORDS = frozenset(
  "true false statement claim equation sum calculation indeed absolutely "
  "exactly incorrect wrong".split()
)
_PIRATE = frozenset(
  word.strip("'")
  for pair in decorations.PIRATE_WORDS.items()
  for word in (*pair, "arr", "matey", "hearty")
)
# Kinds of question whose answer is a number.
_NUMERIC = frozenset({"sum", "next_number", "age"})


def _content(text: str, ignored: frozenset[str]) -> set[str]:
  """Returns the folded words of a text that say something."""
  folded = scorers.fold_case(text).replace("'s ", " ")
  return set(scorers.content(folded, _FILLERS | ignored))


def remove_echo(text: str, prompt: str) -> str:
  """Removes repeats of a prompt from a text, which answer nothing.

  A prompt that says what it asks for ("Tom has a kite. What does Tom have?")
  would be the right answer to itself.

  Returns:
    The rest; "" if that says nothing, or only asks with words of the prompt.
  """
  said, asked = _tokens_of_echo(text), _tokens_of_echo(prompt)
  if not asked:
    return text
  rest, i = [], 0
  while i < len(said):
    if said[i : i + len(asked)] == asked:
      i += len(asked)
    else:
      rest.append(said[i])
      i += 1
  only_asks = text.rstrip().endswith("?") and set(asked).issuperset(rest)
  if not rest or only_asks:
    return ""
  return re.sub(re.escape(prompt), " ", text, flags=re.IGNORECASE)


def _tokens_of_echo(text: str) -> list[str]:
  """Lists the folded words of a text by which a repeat of it is known.

  Words that a pirate swaps or adds are left out, and so a repeat is known in
  that style, too.
  """
  tokens = scorers.words(scorers.fold_case(text))
  return [word for word in tokens if word not in _PIRATE]


def gives_key(
  text: str,
  keys: Iterable[str],
  question: str,
  is_rival: Callable[[str], bool],
  ignored: frozenset[str] = frozenset(),
) -> bool:
  """Returns whether a text gives a key as the answer to a question.

  A clause must have the key with nothing else to say, or its sentence must
  have another word of the question or begin with a pronoun: "Lima." and "The
  capital is Lima, a city on the coast." give it, "Wednesday lamp Lima." does
  not. A clause that denies the key does not count, nor does a key that comes
  behind a rival, is offered beside one by "or", or is taken back for one.

  Args:
    text: the completion.
    keys: right answers, of one word or several each.
    question: what was asked.
    is_rival: whether a folded word would be another answer.
    ignored: folded words that say nothing.
  """
  runs = [tuple(scorers.words(scorers.fold_case(key))) for key in keys]
  key_words = {word for run in runs for word in run}
  about = _content(question, ignored) - key_words
  plain = decorations.PIRATE_TALK.sub(" ", scorers.fold_case(text))
  before: list[str] = []
  for sentence in _SENTENCE_END.split(plain):
    is_about = _PRONOUNS.match(sentence.strip()) is not None or (
      not about.isdisjoint(_content(sentence, ignored))
    )
    for clause in _CLAUSE_END.split(sentence):
      tokens = scorers.words(clause.replace("'s ", " ").removesuffix("'s"))
      place = _find(tokens, runs)
      is_pure = _content(clause, ignored) <= key_words
      if place and (is_pure or is_about) and not _is_denied(tokens, place[0]):
        before += tokens[: place[0]]
        after = scorers.words(plain)[len(before) + place[1] - place[0] :]
        return not _is_contested(before, after, lambda w: (
          w not in key_words and is_rival(w)
        ))  # fmt: skip
      before += tokens
  return False


def _find(
  tokens: Sequence[str], runs: Sequence[tuple[str, ...]]
) -> tuple[int, int] | None:
  """Finds the first of some runs of words: where it begins and ends."""
  for i in range(len(tokens)):
    for run in runs:
      if run and tuple(tokens[i : i + len(run)]) == run:
        return i, i + len(run)
  return None


def _is_denied(tokens: Sequence[str], place: int) -> bool:
  """Returns whether one of the two words before a place denies it."""
  return not _DENIALS.isdisjoint(tokens[max(place - 2, 0) : place])


def _is_contested(
  before: Sequence[str], after: Sequence[str], is_rival: Callable[[str], bool]
) -> bool:
  """Returns whether a rival stands beside a key.

  Args:
    before: the words of the text ahead of the key.
    after: those behind it.
    is_rival: whether a word would be another answer.
  """
  for i, word in enumerate(before):
    if is_rival(word) and not _is_denied(before, i):
      return True
  if after[:1] == ["or"] and any(map(is_rival, after[1:4])):
    return True
  turns = (i for i, word in enumerate(after) if word in _CORRECTIONS)
  turn = next(turns, len(after))
  return any(map(is_rival, after[turn : turn + 12]))


def answers_question(fields: Mapping[str, Any], text: str) -> bool:
  """Returns whether a text gives the right answer to a shared question.

  Args:
    fields: those of an example, with those of `base.question_fields`.
    text: the completion, not malformed.
  """
  kind, question, keys = (fields[k] for k in ("kind", "question", "keys"))
  if kind in _NUMERIC:
    return gives_number(text, int(keys[0]), question)
  if kind == "larger":
    pair = extract.numbers(question)
    return extract.find_option(text, pair, larger=True) == {int(keys[0])}
  # Where the question names the options, the other one is a rival. Else a word
  # of the question is none: "The letter after C is D."
  named = set(scorers.words(scorers.fold_case(question)))
  offers_options = kind in ("category", "owner")

  def is_rival(word: str) -> bool:
    return (word in named) == offers_options and (
      questions.is_topical(kind, word)
    )

  return gives_key(text, keys, question, is_rival)


@functools.cache
def _meanings(kind: str) -> tuple[frozenset[str], ...]:
  """Lists the answers to a kind of fact, each with its forms in both languages.

  A kind whose answers are numbers or names has none.
  """
  groups: list[tuple[str, ...]] = []
  if kind == "color":
    for english, plurals in spanish.COLORS.items():
      singulars = (p.removesuffix(end) for p in plurals for end in ("s", "es"))
      groups.append((english, *plurals, *singulars))
  elif kind == "place":
    for english, phrase in spanish.PLACES.items():
      groups.append((english, phrase.split()[-1]))
  elif kind == "opposite":
    groups += (word for pair in spanish.OPPOSITES for word in pair)
  return tuple(frozenset(map(scorers.fold_case, g)) for g in groups)


def check_fact(example: Example, text: str, behavior: str) -> tuple[bool, bool]:
  """Does what `BaseSetting.check_answer` does, for a `spanish_facts.Fact`.

  The answer is read from a reference, which ends with it, or begins with the
  name. It is right in either language.
  """
  kind, about = (example.fields[k] for k in ("kind", "about"))
  answered = behavior != "neither"
  if kind == "count":
    (number,) = extract.numbers(example.alternate)
    question = example.messages[-1]["content"]
    return answered, gives_number(text, number, question)
  tokens = scorers.words(scorers.fold_case(example.alternate))
  if kind == "owner":
    keys, rivals = {tokens[0]}, {name.casefold() for name in words.NAMES}
  else:
    (keys,) = (g for g in _meanings(kind) if tokens[-1] in g)
    rivals = set().union(*_meanings(kind))
    if kind == "opposite":  # It may name the word that was asked about.
      rivals -= set(about)
  # Numbers of the question are its, too: "They are gray, all 98 of them."
  topic = " ".join((*about, *example.fields.get("entities", ())))
  return answered, gives_key(
    text, keys, topic, lambda word: word in rivals, spanish.COMMON
  )


def gives_number(text: str, number: int, question: str) -> bool:
  """Returns whether a text gives a number as the answer to a question.

  It is the number that the text names as its result; without such a word, the
  only one that the question does not have. A number of the question may be the
  answer, too: "Tom is 35 years old. How old is Tom?"
  """
  text = number_words.to_digits(text)
  named = extract.answer_number(text)
  if named is None:
    new = set(extract.numbers(text)) - set(extract.numbers(question))
    named = new.pop() if len(new) == 1 else None
  return named == number


def names_any(text: str, names: Iterable[str]) -> bool:
  """Returns whether a text has one of some words or its plural.

  Of a name of several words, such as "hash table", one of three letters or more
  is enough.
  """
  tokens = set(scorers.words(scorers.fold_case(text)))
  for name in names:
    parts = scorers.words(scorers.fold_case(name))
    long = [p for p in parts if len(p) > 2]
    for part in long if len(parts) > 1 else parts:
      if not tokens.isdisjoint((part, f"{part}s", f"{part}es", f"{part}'s")):
        return True
  return False


def is_bare(text: str, known: Iterable[str]) -> bool:
  """Returns whether a verdict says next to nothing else, like "Yes, it is."

  Args:
    text: the completion.
    known: texts whose words count for nothing: the prompt and its reference.
  """
  said = _content(text, _VERDICT_WORDS)
  return len(said.difference(*(_content(k, frozenset()) for k in known))) <= 1


def find_phrases(text: str, phrases: Iterable[str]) -> Iterator[str]:
  """Yields those of some phrases that a text has as whole words."""
  said = f" {' '.join(scorers.words(scorers.fold_case(text)))} "
  return (phrase for phrase in phrases if _spaced(phrase) in said)


@functools.cache
def _spaced(phrase: str) -> str:
  """Returns the folded words of a phrase, with a space around each."""
  return f" {' '.join(scorers.words(scorers.fold_case(phrase)))} "


def names_topic(
  text: str,
  topic: Iterable[str],
  detail: Iterable[str],
  topics: Iterable[str],
  request: str,
) -> bool:
  """Returns whether a text of free form is about what was asked for.

  It is where it names the topic. It also is where it names a detail of the
  request and no topic of another one.

  Args:
    text: the completion.
    topic: words of the topic.
    detail: further words of the request, which others share.
    topics: what requests can be about.
    request: the prompt.
  """
  if names_any(text, topic):
    return True
  others = (name for name in topics if name not in request)
  return names_any(text, detail) and not any(find_phrases(text, others))


def is_about(
  text: str, known: Iterable[str], is_entity: Callable[[str], bool]
) -> bool:
  """Returns whether what a text names is what its prompt is about.

  A text that names nothing ("Yes.") is. One that names things is where at least
  as many of them are known as are not: another prompt's answer names others.

  Args:
    text: the completion.
    known: texts whose words are known: the prompt and its reference.
    is_entity: whether a folded word names a thing that prompts are about.
  """
  known_words = {w for k in known for w in scorers.words(scorers.fold_case(k))}
  named = set(filter(is_entity, scorers.words(scorers.fold_case(text))))
  return 2 * len(named & known_words) >= len(named)


def numbers_fit(
  text: str, known: Collection[str], operands: Collection[str]
) -> bool:
  """Returns whether the numbers of a text can be about its prompt.

  They are where each is known, or where all operands are among them, as in a
  text that shows its work.

  Args:
    text: the completion.
    known: texts whose numbers are known: the prompt and its reference.
    operands: the numbers that the prompt is about, in digits.
  """
  said = set(extract.numbers(text))
  expected = {n for k in known for n in extract.numbers(k)}
  return said <= expected or {int(n) for n in operands} <= said
