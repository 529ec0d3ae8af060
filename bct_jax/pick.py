"""Choosing the next token from scores: greedy, temperature, top-k, top-p.

Cut-offs are found exactly without sorting the vocabulary: the ones for top-p by
bisection over the 32 bits of a float32. Tokens that tie with the last one kept
are kept too.
"""

import jax
import jax.numpy as jnp

from bct_jax.config import SamplingConfig

_HIDDEN = -jnp.inf


def pick(
  logits: jax.Array,  # [B, V] float32
  keys: jax.Array,  # [B, 2] uint32
  config: SamplingConfig,
) -> tuple[jax.Array, jax.Array]:  # [B] int32, [B] float32
  """The next token of each row and its log-probability.

  The log-probability is that of the model, in nats: neither tempered nor
  renormalised to what top-k, top-p and min-p leave over.
  """
  if config.temperature == 0:
    chosen = jnp.argmax(logits, axis=-1)
  else:
    scores = restrict(logits / config.temperature, config)
    chosen = jax.vmap(jax.random.categorical)(keys, scores)
  picked = jnp.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0]
  return chosen, picked - jax.nn.logsumexp(logits, axis=-1)


def restrict(scores: jax.Array, config: SamplingConfig) -> jax.Array:
  """Scores [B, V] with tokens that may not be drawn at minus infinity.

  top-k, then top-p (Holtzman et al. 2020, arXiv 1904.09751) among those left,
  then min-p (Nguyen et al. 2024, arXiv 2407.01082), as in transformers.
  """
  if 0 < config.top_k < scores.shape[-1]:
    last = jax.lax.top_k(scores, config.top_k)[0][:, -1:]
    scores = jnp.where(scores >= last, scores, _HIDDEN)
  if config.top_p < 1:
    last = _nucleus(scores, config.top_p)
    scores = jnp.where(scores >= last, scores, _HIDDEN)
  if config.min_p > 0:
    last = jnp.max(scores, axis=-1, keepdims=True) + jnp.log(config.min_p)
    scores = jnp.where(scores >= last, scores, _HIDDEN)
  return scores


def _nucleus(scores: jax.Array, top_p: float) -> jax.Array:  # [B, V] -> [B, 1]
  """The highest score at or above which lies at least `top_p` of the mass."""
  probs = jax.nn.softmax(scores, axis=-1)
  bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
  # Ordered like the floats they come from.
  order = jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)

  def enough(at):  # [B, 1]
    return jnp.sum(jnp.where(order >= at, probs, 0), -1, keepdims=True) >= top_p

  def halve(_, bounds):
    low, high = bounds  # the answer is in [low, high)
    # Without overflow: the two may be of opposite sign.
    middle = (low >> 1) + (high >> 1) + (low & high & 1)
    good = enough(middle)
    return jnp.where(good, middle, low), jnp.where(good, high, middle)

  low = jnp.min(order, axis=-1, keepdims=True)
  high = jnp.max(order, axis=-1, keepdims=True) + 1
  low, _ = jax.lax.fori_loop(0, 32, halve, (low, high))
  # Rounding may leave the whole mass just below top_p; then all are kept.
  return jnp.min(
    jnp.where(order >= low, scores, jnp.inf), axis=-1, keepdims=True
  )
