"""Policy gradients against torch, written from the papers' formulas."""

import jax
import numpy as np
import parity
import pytest
from cases import long_but
from helpers import make_mesh

from bct_jax.data.batches import Dataset
from bct_jax.data.chat import Tokens
from bct_jax.experiment import rollout_rows
from bct_jax.mesh import put_batch
from bct_jax.objectives import PolicyGradient

GROUP, GROUPS, LONGEST = 4, 3, 12
RNG = np.random.default_rng(7)
PROMPTS = [
  RNG.integers(8, 250, n).tolist()
  for n in RNG.integers(3, 20, GROUPS)
  for _ in range(GROUP)
]
COMPLETIONS = [
  RNG.integers(8, 250, n).tolist()
  for n in RNG.integers(1, LONGEST + 1, len(PROMPTS))
]
# Of each completion the tokens of its thought: in the middle, none, or all.
THOUGHTS = [
  (len(c) // 2, 0, len(c), len(c) // 3)[i % 4]
  for i, c in enumerate(COMPLETIONS)
]
REWARDS = RNG.integers(0, 4, len(PROMPTS)) / 3
# What the policy said when it sampled, as differences from what it says now:
# large enough that many ratios are clipped.
MOVED = [RNG.normal(0, 0.3, len(c)) for c in COMPLETIONS]
APART = [RNG.normal(0, 0.5, len(c)) for c in COMPLETIONS]


def options(**changes):
  return PolicyGradient(group_size=GROUP, **changes)


# --- torch --------------------------------------------------------------------


def torch_logprobs(model):
  """log p of each token of each completion, one row at a time."""
  import torch

  out = []
  for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
    ids = torch.tensor([[*prompt, *completion]])
    logprobs = model(ids).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
    out.append(logprobs.gather(1, torch.tensor(completion)[:, None])[:, 0])
  return out


def rloo(now, old, reference, c):
  """Ahmadian et al. 2024, section 4: (1 / k) sum over i of
  [R_i - 1 / (k - 1) sum over j != i of R_j] grad log p(y_i | x), with R the
  reward less beta log p(y | x) / p_ref(y | x), as in equation 3."""
  total = 0
  for start in range(0, len(now), GROUP):
    group = range(start, start + GROUP)
    returns = {
      i: REWARDS[i] - c.kl_coef * float((old[i] - reference[i]).sum())
      for i in group
    }
    for i in group:
      others = [returns[j] for j in group if j != i]
      baseline = sum(others) / (GROUP - 1)
      total = total - (returns[i] - baseline) * now[i].sum()
  return total / len(now)


def grpo(now, old, reference, c):
  """Shao et al. 2024, equations 3 and 4, for several questions."""
  import torch

  total = 0
  for start in range(0, len(now), GROUP):
    rewards = torch.tensor(REWARDS[start : start + GROUP])
    scores = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    objective = 0
    for i, score in zip(range(start, start + GROUP), scores, strict=True):
      ratio = (now[i] - old[i]).exp()
      clipped = ratio.clamp(1 - c.clip, 1 + c.clip)
      u = (reference[i] - now[i]).exp()  # p_ref / p
      kl = u - u.log() - 1
      gain = torch.minimum(ratio * score, clipped * score) - c.kl_coef * kl
      objective = objective + gain.sum() / max(1, len(now[i]))
    total = total - objective / GROUP
  return total / GROUPS


def ppo(now, old, reference, c):
  """Schulman et al. 2017, equation 7, mean over tokens, with the advantage the
  reward itself and Schulman's k2 = (log p / p_ref)^2 / 2 as the penalty."""
  import torch

  gains = []
  for i, reward in enumerate(REWARDS):
    ratio = (now[i] - old[i]).exp()
    clipped = ratio.clamp(1 - c.clip, 1 + c.clip)
    kl = (now[i] - reference[i]) ** 2 / 2
    gains.append(
      torch.minimum(ratio * reward, clipped * reward) - c.kl_coef * kl
    )
  return -torch.cat(gains).mean()


CASES = {
  "rloo": (
    rloo,
    options(
      advantage="leave_one_out",
      normalizer="sequence_sum",
      kl_coef=0.2,
      kl_estimator="k1_in_reward",
    ),
  ),
  "rloo, no penalty": (rloo, options(normalizer="sequence_sum")),
  "grpo": (
    grpo,
    options(
      advantage="group_normalized",
      normalizer="sequence_mean",
      clip=0.2,
      updates_per_batch=2,
      kl_coef=0.3,
      kl_estimator="k3_in_loss",
    ),
  ),
  "ppo": (
    ppo,
    options(
      advantage="none",
      normalizer="token",
      clip=0.1,
      updates_per_batch=4,
      kl_coef=0.5,
      kl_estimator="k2_in_loss",
    ),
  ),
}


@pytest.fixture(scope="module")
def models(tiny_folder):
  mesh = make_mesh(2, 2, 2)
  with jax.set_mesh(mesh):
    model, params = parity.load(tiny_folder, mesh)
  return mesh, model, params, parity.load_torch(tiny_folder)


def tensors(arrays):
  import torch

  return [torch.tensor(a, dtype=torch.float32) for a in arrays]


@pytest.mark.parity
@pytest.mark.parametrize(
  ("name", "pack", "part"),
  long_but(
    [("grpo", True, "answer"), ("ppo", False, "thought")],
    [
      *(("rloo", True, "answer"), ("grpo", True, "answer")),
      *(("grpo", True, "whole"), ("ppo", False, "thought")),
      *(("rloo, no penalty", True, "both"), ("rloo", False, "whole")),
      *(("ppo", True, "answer"), ("grpo", False, "thought")),
    ],
  ),
)
def test_loss_and_gradients_are_those_of_torch(name, pack, part, models):
  """Also of a part of each completion, which some completions have not."""
  formula, c = CASES[name]
  mesh, model, params, reference = models
  reference.zero_grad()
  now = torch_logprobs(reference)
  # RLOO takes one update per batch: what sampled is what is trained.
  stay = 0 if c.updates_per_batch == 1 else 1
  old = [
    x.detach() + stay * m for x, m in zip(now, tensors(MOVED), strict=True)
  ]
  ref = [x.detach() + a for x, a in zip(now, tensors(APART), strict=True)]
  thoughts = [n * (part != "whole") for n in THOUGHTS]
  cut = {"thought": lambda x, n: x[:n], "answer": lambda x, n: x[n:]}.get(
    part, lambda x, n: x
  )
  loss = formula(
    *(
      [cut(x, n) for x, n in zip(xs, thoughts, strict=True)]
      for xs in (now, old, ref)
    ),
    c,
  )
  loss.backward()
  rollouts = [
    {
      "reward": REWARDS[i],
      "tokens": completion,
      "thought_tokens": thoughts[i],
      "logprobs": old[i].tolist(),
      "reference_logprobs": ref[i].tolist(),
    }
    for i, completion in enumerate(COMPLETIONS)
  ]
  rows = rollout_rows.make_rows(
    dataset(pack), PROMPTS, rollouts, c, 4, "both" if part == "whole" else part
  )
  with jax.set_mesh(mesh):
    batch = put_batch(rows, mesh)

    def mean(params):
      ours, metrics = c(params, batch, jax.random.PRNGKey(0), model)
      return ours.value(), metrics

    (value, metrics), grads = jax.jit(jax.value_and_grad(mean, has_aux=True))(
      params
    )
  if formula is rloo:
    # At a ratio of 1 the surrogate is the advantage: equal gradients, and
    # another value, which the formula gives with a baseline that is constant.
    assert float(metrics["clipped"].total) == 0
  else:
    assert float(value) == pytest.approx(float(loss.detach()), abs=1e-4)
    assert float(metrics["clipped"].value()) > 0.1
  theirs = parity.torch_gradients(reference)
  ours = parity.hf_tensors(grads, model.config)
  assert set(ours) == set(theirs)
  for at, grad in theirs.items():
    largest = np.abs(grad).max()
    assert largest > 0
    np.testing.assert_allclose(ours[at], grad, atol=1e-4 * largest)


def dataset(pack, prompts=PROMPTS):
  """As plan.py makes it: room for completions that are all the longest."""
  examples = [
    Tokens((*p, *(0,) * LONGEST), (0.0,) * len(p) + (1.0,) * LONGEST)
    for p in prompts[::GROUP]
  ]
  ids = [str(i) for i in range(len(examples))]
  return Dataset.make(
    ids, examples, len(prompts), 0, 64, 1, pack, 4, repeat=GROUP
  )


# --- what it is made of -------------------------------------------------------


def test_advantages_of_one_group_by_hand():
  rewards = np.array([[1.0, 0.0, 0.0, 0.5], [1.0, 1.0, 1.0, 1.0]])
  np.testing.assert_allclose(
    rollout_rows.advantages(rewards, "leave_one_out"),
    [[1 - 0.5 / 3, -0.5, -0.5, 0.5 - 1 / 3], [0, 0, 0, 0]],
  )
  scores = rollout_rows.advantages(rewards, "group_normalized")
  assert np.std(scores[0], ddof=1) == pytest.approx(1, abs=1e-3)
  assert (scores[1] == 0).all()
  assert rollout_rows.advantages(rewards, "none") is rewards


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "padded"])
def test_batches_of_short_completions_are_smaller(pack):
  prompts = PROMPTS * 8
  data = dataset(pack, prompts)

  def rows(length):
    rollouts = [
      {"reward": 0.0, "tokens": [9] * length, "logprobs": [-1.0] * length}
      for _ in prompts
    ]
    return rollout_rows.make_rows(data, prompts, rollouts, options(), 4)

  short, long = rows(1), rows(LONGEST)
  assert long.tokens.shape == (data.layout.rows, data.layout.length)
  assert (short.tokens.size < long.tokens.size) == pack
  assert len(short.tokens) % 4 == 0
  assert short.weights.sum() == len(prompts)
  assert long.weights.sum() == len(prompts) * LONGEST
  assert long.extras["shares"].sum() == pytest.approx(len(prompts))
