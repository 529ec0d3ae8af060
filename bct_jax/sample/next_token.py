"""Chooses the next token from scores: greedy, temperature, top-k, top-p.

Cut-offs are exact and need no sorting of the vocabulary: the cut-off of top-p
comes from a bisection over the 32 bits of a float32. Tokens that tie with the
last token above a cut-off stay. A draw takes two uniform numbers, not one for
every token: it inverts the cumulative sum over chunks of the vocabulary, then
the one within the chunk.
"""

import jax
import jax.numpy as jnp

from bct_jax.config import SamplingConfig
from bct_jax.models.logprobs import logprobs_of

_HIDDEN = -jnp.inf


def choose_token(
  logits: jax.Array,  # [B, V] float32
  keys: jax.Array,  # [B, 2] uint32
  config: SamplingConfig,
) -> tuple[jax.Array, jax.Array]:  # [B] int32, [B] float32
  """Chooses the next token of each row; returns it and its log-probability.

  The log-probability is that of the model, in nats: neither tempered nor
  renormalised to what top-k, top-p and min-p leave over.
  """
  if config.temperature == 0:
    chosen = _argmax(logits)
  else:
    scores = truncate_logits(logits / config.temperature, config)
    chosen = _draw(scores, keys)
  return chosen, logprobs_of(logits, chosen)


def _argmax(scores: jax.Array) -> jax.Array:  # [B, V] -> [B]
  """Finds the first of the highest scores: the best chunk, then in it.

  A single argmax over the vocabulary is a scalar loop on CPU, 10 times slower.
  """
  chunks = _chunks(scores)
  at = jnp.argmax(jnp.max(chunks, axis=-1), axis=-1)
  chunk = jnp.take_along_axis(chunks, at[:, None, None], axis=1)[:, 0]
  return at * chunks.shape[-1] + jnp.argmax(chunk, axis=-1)


def _draw(scores: jax.Array, keys: jax.Array) -> jax.Array:
  """Draws a token of each row [B, V] with probabilities softmax(scores)."""
  chunks = _chunks(scores)
  uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)  # [B, 2]
  masses = jnp.exp(chunks - jnp.max(scores, axis=-1)[:, None, None])
  at = _invert(jnp.sum(masses, axis=-1), uniform[:, 0])
  chunk = jnp.take_along_axis(masses, at[:, None, None], axis=1)[:, 0]
  return at * chunks.shape[-1] + _invert(chunk, uniform[:, 1])


def _invert(masses: jax.Array, uniform: jax.Array) -> jax.Array:
  """Finds where the share `uniform` [B] of all mass in [B, n] is reached.

  A place without mass is never returned. The last sum is the whole mass, and a
  uniform number is below 1, but their product may round up to the whole: then
  the last place with mass is meant.
  """
  sums = jnp.cumsum(masses, axis=-1)
  at = jnp.sum(sums <= uniform[:, None] * sums[:, -1:], axis=-1)
  last = jnp.sum(sums < sums[:, -1:], axis=-1)
  return jnp.minimum(at, last)


def _chunks(scores: jax.Array) -> jax.Array:  # [B, V] -> [B, V / n, n]
  """Cuts the vocabulary into chunks of n, the largest power of 2 up to 512 that
  divides it."""
  rows, vocab = scores.shape
  return scores.reshape(rows, -1, min(512, vocab & -vocab))


def truncate_logits(scores: jax.Array, config: SamplingConfig) -> jax.Array:
  """Sets the scores [B, V] of tokens that may not be drawn to minus infinity.

  Applies top-k, then top-p (Holtzman et al. 2020, arXiv 1904.09751) among the
  tokens that stay, then min-p (Nguyen et al. 2024, arXiv 2407.01082), as in
  transformers.
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
  """Finds the highest score at or above which lies `top_p` of the mass."""
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
  # Rounding may put the whole mass just below top_p; then all tokens stay.
  return jnp.min(
    jnp.where(order >= low, scores, jnp.inf), axis=-1, keepdims=True
  )
