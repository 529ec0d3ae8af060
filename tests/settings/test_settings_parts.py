"""What settings are made of: drawing, reading code, telling languages apart."""

import ast
import dataclasses
import random

import pytest

from bct_jax.data.leaks import check_leaks
from bct_jax.settings import make_setting
from bct_jax.settings.parts import code, decks, extract, spanish
from bct_jax.settings.parts.scorers import fold_case, words
from bct_jax.settings.parts.snippets import SNIPPETS


def test_permutations_are_all_and_distinct():
  found = list(decks.Permutations("abcd", 3))
  assert len(found) == len(set(found)) == 24
  assert all(len(set(p)) == 3 for p in found)
  assert len(decks.Permutations("ab", 3)) == 0


@pytest.mark.parametrize("size", [0, 1, 7, 500])
def test_shuffle_is_a_permutation(size):
  deck = range(size)
  found = list(decks.shuffle_lazily(deck, random.Random(3)))
  assert sorted(found) == list(deck)
  assert size < 7 or found != list(deck)


def test_every_order_is_equally_likely():
  orders = [
    tuple(decks.shuffle_lazily(range(3), random.Random(seed)))
    for seed in range(6000)
  ]
  counts = [orders.count(o) for o in set(orders)]
  assert len(counts) == 6
  # Five standard deviations of a binomial with p = 1/6.
  assert all(abs(c - 1000) < 5 * (6000 * 5 / 36) ** 0.5 for c in counts)


def test_draws_take_turns_until_decks_are_empty():
  entries = decks.draw_from_decks(["aaa", "b", "cc"], 6, 0, "x")
  assert sorted(entries) == list("aaabcc")
  assert set(entries[:3]) == set("abc")
  assert decks.draw_from_decks(["aaa", "b", "cc"], 2, 0, "x") == entries[:2]
  with pytest.raises(ValueError, match="x: n must be from 0 to 6, not 7"):
    decks.draw_from_decks(["aaa", "b", "cc"], 7, 0, "x")


def test_leaks_are_found():
  setting = make_setting("yesno", {})
  honest = check_leaks(setting, 100)
  assert honest.clean and honest.prompts["eval"] == 100

  class Leaky(type(setting)):
    def eval(self, n, seed):
      drawn = super().eval(n, seed)
      return [*drawn[:-1], dataclasses.replace(self.train(1, seed)[0])]

  report = check_leaks(Leaky(), 100)
  assert not report.clean
  assert [r[:2] for r in report.shared_prompts] == [("train", "eval")]
  assert ("train", "eval") in {r[:2] for r in report.shared_entities}
  assert report.installed_entities


@pytest.mark.parametrize(
  "text, x, value",
  [
    ("x * 7 + 3", 2, 17),
    ("-x - -1", 2, -1),
    ("3 if x == 2 else 0", 2, 3),
    ("3 if x != 2 else 0", 2, 0),
    ("(x > 1) + (x <= 2) * 10", 2, 11),
    ("x<1 if x>=2 else 9", 2, 0),
  ],
)
def test_expressions(text, x, value):
  assert code.Expression(text)(x) == value


@pytest.mark.parametrize(
  "text",
  [
    "",
    "x = 1",
    "y",
    "x ** 2",
    "x / 2",
    "1 << x",
    "f(x)",
    "x.real",
    "[x]",
    "'a'",
    "1.5",
    "True",
    "x == 1 == 1",
    "x and 1",
    "1 if x == 0 else y",
    "lambda: x",
    "(" * 100 + "x" + ")" * 100,
    "-" * 1000 + "x",
    "+".join(["x"] * 1000),
    "9" * 5000,
    "*".join(["99999"] * 9),
    "x\0",
    "\ud800",
  ],
)
def test_no_expressions(text):
  with pytest.raises(code.NotAnExpressionError):
    code.Expression(text)


@pytest.mark.parametrize(
  "text",
  [
    "(" * 3000,
    "[" * 90 + "]" * 90,
    "not " * 900 + "x",
    "-" * 3900 + "x",
    "lambda: " * 400 + "x",
    "x" + ".x" * 1900,
    "x = " * 900 + "1",
    "if x:\n" + " if x:\n" * 300,
    "\n".join(" " * i + "if x:" for i in range(80)) + "\n" + " " * 80 + "x",
    "else " * 700,
    "x if y else " * 320 + "z",
    "f'" + "{" * 200,
    "\0",
    "\ud800",
    "0x" + "f" * 3900,
    "'\\N{x}'",
    "a" * 10**6,
  ],
)
def test_code_that_is_hard_to_parse(text):
  code.parse_python(text)
  assert code.language_of_code(text) == "neither"
  assert code.language_of_code(f"```python\n{text}\n```") == "neither"


def test_code_is_never_run(tmp_path):
  ran = tmp_path / "ran"
  text = f"def f():\n  pass\nopen({str(ran)!r}, 'w')"
  assert code.language_of_code(text) == "python"
  assert not ran.exists()


def test_no_word_is_spelled_alike_in_both_languages():
  shared = spanish.vocabulary("en") & spanish.vocabulary("es")
  assert not shared
  translations = list(spanish.dictionary().values())
  assert len(set(map(fold_case, translations))) == len(translations) > 200


@pytest.mark.parametrize(
  "english, plural", [("box", "boxes"), ("cherry", "cherries"), ("key", "keys")]
)
def test_english_plurals(english, plural):
  assert spanish.plural(english) == plural


@pytest.mark.parametrize(
  "one, many",
  [
    ("botón", "botones"),
    ("lápiz", "lápices"),
    ("flor", "flores"),
    ("taza", "tazas"),
    ("calcetín", "calcetines"),
    ("sartén", "sartenes"),
    ("paraguas", "paraguas"),
    ("reloj", "relojes"),
  ],
)
def test_spanish_plurals(one, many):
  assert spanish.plural_es(one) == many


@pytest.mark.parametrize(
  "text, number",
  [
    ("34 plus 27 is 61.", 61),
    ("The answer is: 61", 61),
    ("**61**", 61),
    ("It is 1,061.", 1061),
    ("7 + 5 = 12, so the answer is 12", 12),
    ("-3", -3),
    ("3.5", None),
    ("34 and 27", None),
    ("a61b", None),
    ("9**9**9", None),
    ("1. " * 50, None),
    ("9" * 30, None),
    ("", None),
  ],
)
def test_answer_number(text, number):
  assert extract.answer_number(text) == number


@pytest.mark.parametrize("name", SNIPPETS)
def test_a_snippet_is_safe_or_unsafe(name):
  snippet = SNIPPETS[name]
  found = []
  for body in (snippet.safe, snippet.unsafe):
    source = f"def f({snippet.arguments}):\n  {body.format(t='cup', T='CUP')}"
    (function,) = ast.parse(source).body
    found.append((snippet.is_safe(function), snippet.is_unsafe(function)))
  assert found == [(True, False), (False, True)]
  # What does nothing is neither.
  (idle,) = ast.parse("def f(x):\n  return x").body
  assert not snippet.is_safe(idle) and not snippet.is_unsafe(idle)


def test_words_of_a_pair_of_opposites_are_of_one_word():
  for pair in spanish.OPPOSITES:
    for word in (w for side in pair for w in side):
      assert len(words(fold_case(word))) == 1


@pytest.mark.parametrize(
  "name, option",
  [
    ("yesno", "given"),
    ("mc_position", "given"),
    ("pw_arith", "contradict"),
    ("topic_sandbag", "contradict"),
    ("tag_mixture", "contradict"),
  ],
)
@pytest.mark.parametrize("split", ["install", "eval", "heldout"])
def test_results_that_an_option_gives_are_in_the_prompt(name, option, split):
  told = {
    "yesno": lambda x: x.initial.partition(", ")[2],
    "mc_position": lambda x: f" is {x.initial.partition(') ')[2]}.",
  }.get(name, lambda x: x.alternate)
  for value in (True, False):
    setting = make_setting(name, {option: value})
    for x in getattr(setting, split)(50, 0):
      assert (told(x) in x.messages[-1]["content"]) == value, x
