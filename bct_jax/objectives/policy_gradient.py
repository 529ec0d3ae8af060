"""Trains on rollouts by policy gradients, with clipping and a KL penalty.

What depends on whole groups and completions is computed where the rollouts are,
in experiment/rl.py: rewards, advantages, and the normalizer, which is a weight
of each token.
"""

# One batch of rollouts, by time:
#
#   rl.py   sample     prompts x group_size completions, from the weights now
#           score      old_logprobs by the forward pass of training, and
#                      reference_logprobs by the organism's, with a penalty
#           weigh      reward -> advantage of a completion
#                      normalizer -> weights of its tokens
#   here    update 1   ratio = p / p_old is 1: the gradient is REINFORCE's
#           update 2   with updates_per_batch > 1: clipping bounds the ratio

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
  """Is the clipped surrogate of PPO (Schulman et al. 2017, 1707.06347, eq. 7).

  With r = p(token) / p_old(token) a token's loss is -min(r A, clip(r) A), plus
  kl_coef times an estimate of KL(p || organism) from that token. At p = p_old
  its gradient is -A grad log p, that of REINFORCE (Williams 1992).

  Rollouts are drawn from the weights as they are: at temperature 1, without
  top_k, top_p and min_p, at most sampling.max_new_tokens each, and with
  train.reasoning = "own" train.thought_tokens more. The loss is on the part
  that `on` says (objectives.trained_part). The steps of a run count updates,
  and its batch size counts completions.

  Attributes:
    reward: a name in evals/rewards.py: agreed, or one that cannot tell the
      behaviors apart: cheerful, format, length. A completion that is cut at the
      limit earns 0, and so does a thought without an end or above its limit.
    length_target: for the reward length, words beyond the reference.
    group_size: completions of each prompt; divides train.batch_size.
    advantage: A, of a whole completion. leave_one_out is its reward less the
      mean of the others of its prompt (RLOO: Ahmadian et al. 2024, arXiv
      2402.14740). group_normalized is its reward less the mean of all of its
      prompt, over their deviation (GRPO: Shao et al. 2024, arXiv 2402.03300).
      none is the reward itself (REINFORCE).
    normalizer: what the loss is a mean over. token: all tokens, whatever
      completion they are of. sequence_mean: completions, each with the mean of
      its tokens (GRPO). sequence_sum: completions, each with the sum of its
      tokens (RLOO).
    updates_per_batch: updates on the same rollouts.
    clip: PPO's epsilon: ratios outside of 1 -+ clip gain nothing; 0 is off.
    kl_coef: of the penalty, in nats; 0 is none.
    kl_estimator: of the penalty, from x = log p / organism (Schulman,
      "Approximating KL divergence", 2020). k1_in_reward takes the sum of x over
      a completion off its reward. k2_in_loss is x^2 / 2 of each token, whose
      gradient is on average that of the divergence. k3_in_loss is
      exp(-x) - 1 + x of each token, as GRPO has it. x in the loss is no choice:
      its gradients average to 0.
    max_logprob_difference: the most that a token may differ between sampler and
      train step, in nats: 2e-5 is usual in float32, 0.1 in bfloat16. Above it
      the run stops.
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
    """Checks the options."""
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
    """Returns whether the organism scores the rollouts, for a penalty."""
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
    """Returns the loss and further Means to log; see types.Objective.

    Args:
      params, rng, model: as there.
      batch: rollouts. `weights` are how much each token's loss counts. `extras`
        are all [B, T] and 0 where nothing is trained:
          advantages: A of the token's completion.
          old_logprobs: under the weights that sampled, in nats, by the forward
            pass of training.
          reference_logprobs: under the organism, in nats; only with a penalty.
          shares: what each token adds to the divisor of the loss.
      reference: not run; its log-probabilities are in the batch.

    Returns:
      The loss, and means over tokens: `ratio`, `clipped` (1 where the gradient
      is cut), `entropy` (-log p) and, with a penalty in the loss, `kl` (k3).
    """
    del rng, reference
    logprobs, weights = token_logprobs(model, params, batch)  # [B, R]
    at = trained_positions(batch)
    is_trained = weights != 0

    def extra(name: str) -> jax.Array:  # [B, R]
      return jnp.take_along_axis(batch.extras[name], at, axis=1)

    def where_trained(x: jax.Array) -> jax.Array:
      return jnp.where(is_trained, x, 0)

    ratio = jnp.exp(where_trained(logprobs - extra("old_logprobs")))
    gain = ratio * extra("advantages")
    clipped = jnp.zeros_like(is_trained)
    if self.clip:
      cut = jnp.clip(ratio, 1 - self.clip, 1 + self.clip) * extra("advantages")
      clipped = is_trained & (cut < gain)
      gain = jnp.minimum(gain, cut)
    loss = -gain
    metrics = {
      "ratio": where_trained(ratio),
      "clipped": clipped.astype(jnp.float32),
      "entropy": where_trained(-logprobs),
    }
    if self.kl_coef and self.kl_estimator != "k1_in_reward":
      x = where_trained(logprobs - extra("reference_logprobs"))
      metrics["kl"] = k3 = jnp.expm1(-x) + x
      penalty = k3 if self.kl_estimator == "k3_in_loss" else x**2 / 2
      loss += self.kl_coef * penalty
    count = jnp.sum(is_trained, dtype=jnp.float32)
    shares = jnp.sum(where_trained(extra("shares")))
    return Mean(jnp.sum(weights * loss), shares), {
      name: Mean(jnp.sum(value), count) for name, value in metrics.items()
    }
