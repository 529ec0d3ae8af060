"""Policy gradients on rollouts, with PPO's clipping and a KL penalty.

What depends on whole groups and completions is made where the rollouts are, in
rl.py: rewards, advantages, and the normalizer, which is a weight of each token.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from bct_jax.models.logprobs import token_logprobs, trained_positions
from bct_jax.objectives.base import WithOptions
from bct_jax.types import Batch, Mean, Model, PyTree

REWARDS = ("agreed", "cheerful", "format", "length")
ADVANTAGES = ("group_normalized", "leave_one_out", "none")
NORMALIZERS = ("sequence_mean", "sequence_sum", "token")
KL_ESTIMATORS = ("k1_in_reward", "k2_in_loss", "k3_in_loss")


@dataclasses.dataclass(frozen=True)
class PolicyGradient(WithOptions):
  """The clipped surrogate of PPO (Schulman et al. 2017, arXiv 1707.06347, 7).

  With r = p(token) / p_old(token) a token's loss is -min(r A, clip(r) A), plus
  kl_coef times an estimate of KL(p || organism) from that token. At p = p_old
  its gradient is -A grad log p, that of REINFORCE.

  Rollouts are drawn from the weights as they are: at temperature 1, without
  top_k, top_p and min_p, at most sampling.max_new_tokens each. The steps of
  a run count updates, its batch size completions.

  Attributes:
    reward: a name in rewards.py: agreed, or one that cannot tell the behaviors
      apart: cheerful, format, length. What is cut at the limit earns 0.
    length_target: for the reward length, words beyond the reference.
    group_size: completions of each prompt; divides train.batch_size.
    advantage: A, of a whole completion. leave_one_out is the reward less the
      mean of the others of its prompt (RLOO), group_normalized less the mean of
      all of them, over their deviation (GRPO), none the reward (REINFORCE).
    normalizer: what the loss is a mean over: tokens, whatever completion they
      are of; sequence_mean, the mean of each completion's tokens (GRPO);
      sequence_sum, the sum of each completion's (RLOO).
    updates_per_batch: updates on the same rollouts.
    clip: PPO's epsilon: ratios outside of 1 -+ clip gain nothing; 0 is off.
    kl_coef: of the penalty, in nats; 0 is none.
    kl_estimator: with x = log p / organism: k1_in_reward takes the sum of x
      over a completion off its reward; k2_in_loss is x^2 / 2 of each token, the
      gradient of which is on average that of the divergence; k3_in_loss is
      exp(-x) - 1 + x, as GRPO has it (Schulman, "Approximating KL divergence",
      2020). The gradients of x itself average to 0, so it is not offered.
    max_logprob_difference: of a token between sampler and train step, in nats:
      2e-5 in float32, 0.1 in bfloat16. Above it the run stops.
  """

  trains_on_own_samples: ClassVar[bool] = True

  reward: str = "agreed"
  length_target: int = 8
  group_size: int = 4
  advantage: str = "leave_one_out"
  normalizer: str = "sequence_sum"
  updates_per_batch: int = 1
  clip: float = 0.0
  kl_coef: float = 0.0
  kl_estimator: str = "k3_in_loss"
  max_logprob_difference: float = 0.5

  def __post_init__(self):
    self.require_in("reward", REWARDS)
    self.require_in("advantage", ADVANTAGES)
    self.require_in("normalizer", NORMALIZERS)
    self.require_in("kl_estimator", KL_ESTIMATORS)
    least = 1 if self.advantage == "none" else 2
    self.require("length_target", self.length_target > 0, "positive")
    self.require(
      "group_size",
      self.group_size >= least,
      f"{least} or more with the advantage {self.advantage}",
    )
    self.require("updates_per_batch", self.updates_per_batch > 0, "positive")
    self.require("clip", 0 <= self.clip < 1, "from 0 (off) to below 1")
    self.require(
      "clip",
      self.clip > 0 or self.updates_per_batch == 1,
      f"above 0: updates_per_batch = {self.updates_per_batch} leaves the "
      "policy that the rollouts are of",
    )
    self.require("kl_coef", self.kl_coef >= 0, "0 (off) or above")
    self.require(
      "max_logprob_difference", self.max_logprob_difference > 0, "positive"
    )

  @property
  def uses_reference(self) -> bool:  # pyright: ignore
    """The rollouts are scored by the organism if there is a penalty."""
    return self.kl_coef > 0

  def __call__(
    self,
    params: PyTree,
    batch: Batch,
    rng: jax.Array,
    model: Model,
    *,
    reference: PyTree = None,
  ) -> tuple[Mean, dict[str, Mean]]:
    """See types.Objective.

    Args:
      params, rng, model: as there.
      batch: rollouts. `weights` are what each token's loss counts; `extras`,
        all [B, T] and 0 where nothing is trained:
          advantages: A of the token's completion.
          old_logprobs: under the weights that sampled, in nats, by the forward
            pass of training.
          reference_logprobs: under the organism; only with a penalty.
          shares: what each token adds to the number the loss is divided by.
      reference: not run again, its log-probabilities are in the batch.

    Returns:
      The loss, and means over tokens: `ratio`, `clipped` (share whose gradient
      is cut), `entropy` (-log p of what was sampled) and, with a penalty in the
      loss, `kl` (k3).
    """
    del rng, reference
    logprobs, weights = token_logprobs(model, params, batch)  # [B, R]
    at = trained_positions(batch)
    trained = weights != 0

    def extra(name: str) -> jax.Array:  # [B, R]
      return jnp.take_along_axis(batch.extras[name], at, axis=1)

    def where_trained(x: jax.Array) -> jax.Array:
      return jnp.where(trained, x, 0)

    ratio = jnp.exp(where_trained(logprobs - extra("old_logprobs")))
    gain = ratio * extra("advantages")
    clipped = jnp.zeros_like(trained)
    if self.clip:
      cut = jnp.clip(ratio, 1 - self.clip, 1 + self.clip) * extra("advantages")
      clipped = trained & (cut < gain)
      gain = jnp.minimum(gain, cut)
    loss = -gain
    measured = {
      "ratio": where_trained(ratio),
      "clipped": clipped.astype(jnp.float32),
      "entropy": where_trained(-logprobs),
    }
    if self.kl_coef and self.kl_estimator != "k1_in_reward":
      x = where_trained(logprobs - extra("reference_logprobs"))
      k3 = jnp.expm1(-x) + x
      loss += self.kl_coef * (
        k3 if self.kl_estimator == "k3_in_loss" else x**2 / 2
      )
      measured["kl"] = k3
    count = jnp.sum(trained, dtype=jnp.float32)
    shares = jnp.sum(where_trained(extra("shares")))
    return Mean(jnp.sum(weights * loss), shares), {
      name: Mean(jnp.sum(value), count) for name, value in measured.items()
    }
