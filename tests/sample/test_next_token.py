"""Cut-offs of sampling, against sorting and against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import sampling

from bct_jax.sample.next_token import choose_token, truncate_logits

SCORES = np.random.default_rng(0).normal(0, 3, (16, 500)).astype(np.float32)


def kept(scores, **config):
  out = truncate_logits(jnp.asarray(scores), sampling(**config))
  return np.isfinite(np.asarray(out))


@pytest.mark.parametrize("k", [1, 7, 500, 900])
def test_top_k_by_sorting(k):
  order = np.argsort(np.argsort(-SCORES, axis=1), axis=1)
  np.testing.assert_array_equal(kept(SCORES, top_k=k), order < k)


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_top_p_by_sorting(p):
  """The fewest of the likeliest tokens that hold p, never one less."""
  wide = np.exp(SCORES.astype(np.float64))
  probs = wide / wide.sum(1, keepdims=True)
  for row, found in zip(probs, kept(SCORES, top_p=p), strict=True):
    order = np.argsort(-row)
    mass = np.cumsum(row[order])
    count = 500 if p == 1 else int(np.searchsorted(mass, p)) + 1
    # Sums differ in the last bit of float32.
    assert abs(int(found.sum()) - count) <= (1 if p > 0.99 else 0)
    assert found[order[: found.sum()]].all()


def test_min_p_by_hand():
  probs = np.exp(SCORES) / np.exp(SCORES).sum(1, keepdims=True)
  want = probs >= 0.05 * probs.max(1, keepdims=True)
  np.testing.assert_array_equal(kept(SCORES, min_p=0.05), want)


def test_ties_and_extremes():
  equal = np.zeros((1, 8), np.float32)
  assert kept(equal, top_p=0.3).all() and kept(equal, top_k=2).all()
  far = np.array([[-1e30, 0.0, 80.0, -0.0]], np.float32)
  np.testing.assert_array_equal(kept(far, top_p=0.9), [[0, 0, 1, 0]])
  below = np.array([[-5.0, -6.0, -900.0]], np.float32)
  np.testing.assert_array_equal(kept(below, top_p=0.99), [[1, 1, 0]])


@pytest.mark.parity
@pytest.mark.parametrize(
  "config",
  [
    {"top_k": 20, "top_p": 0.7},
    {"top_k": 9, "min_p": 0.1},
    {"top_p": 0.8, "min_p": 0.02},
    {"top_k": 50, "top_p": 0.95, "min_p": 0.01},
  ],
)
def test_together_as_in_transformers(config):
  import torch
  from transformers import generation as g

  scores = torch.tensor(SCORES)
  for name, warper in (
    ("top_k", g.TopKLogitsWarper),
    ("top_p", g.TopPLogitsWarper),
    ("min_p", g.MinPLogitsWarper),
  ):
    if name in config:
      scores = warper(config[name])(None, scores)
  want = np.isfinite(scores.numpy())
  np.testing.assert_array_equal(kept(SCORES, **config), want)


def test_draws_follow_what_is_left():
  """Frequencies of many draws; log-probabilities stay those of the model."""
  count = 4000
  scores = jnp.asarray(np.repeat(SCORES[:1, :12], count, axis=0))
  keys = jax.vmap(jax.random.PRNGKey)(jnp.arange(count))
  config = sampling(temperature=2.0, top_k=4)
  chosen, logprob = choose_token(scores, keys, config)
  left = truncate_logits(scores[:1] / 2, config)
  want = np.asarray(jax.nn.softmax(left[0]))
  found = np.bincount(np.asarray(chosen), minlength=12) / count
  spread = np.sqrt(want * (1 - want) / count) + 1e-3
  assert (np.abs(found - want) < 5 * spread).all()
  assert (found[want == 0] == 0).all()
  whole = jax.nn.log_softmax(scores[0])
  np.testing.assert_allclose(logprob, whole[chosen], atol=1e-5)
