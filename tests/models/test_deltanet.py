"""The gated delta rule in chunks, against a loop over tokens in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import long_but

from bct_jax.models import deltanet
from bct_jax.models.architecture import DeltaNet
from bct_jax.models.deltanet import State

NET = DeltaNet(
  key_heads=2, value_heads=6, key_dim=8, value_dim=5, window=4, fused=False
)
K, R = 2, 3


def unit(x):
  return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def silu(x):
  return x / (1 + np.exp(-x))


def by_token(inputs, kernels, decay, rate, segments, begin):
  """What each token of a row reads, and the state after each token.

  All in float64, for one row, as the formulas of the module say.
  """
  past = kernels[0].shape[-1] - 1
  start = [np.moveaxis(x, -1, 0) for x in begin[:3]]  # the oldest first
  out, states, seen, memory = [], [], [], begin[3].copy()
  for t in range(len(segments)):
    if t == 0 or segments[t] != segments[t - 1]:
      seen, memory = [list(x) for x in start], begin[3].copy()
    mixed = []
    for x, kernel, old in zip(inputs, kernels, seen, strict=True):
      old.append(x[t])
      newest = np.stack(old[-past - 1 :], axis=-1)
      mixed.append(silu((newest * kernel).sum(-1)))
    q, k, v = mixed
    q, k = unit(q) / np.sqrt(q.shape[-1]), unit(k)
    read = np.zeros_like(v)
    for h in range(v.shape[0]):
      for r in range(v.shape[1]):
        s = np.exp(decay[t, h, r]) * memory[h, r]
        s += np.outer(k[h], rate[t, h, r] * (v[h, r] - s.T @ k[h]))
        memory[h, r] = s
        read[h, r] = s.T @ q[h]
    out.append(read)
    windows = [np.stack(old[len(old) - past :], axis=-1) for old in seen]
    states.append((*windows, memory.copy()))
  return np.stack(out), states


def draw(rows, length, seed=0, slow=0.1):
  """Inputs of a layer; keys are alike, so that values are really replaced."""
  rng = np.random.default_rng(seed)
  shapes = (K, 8), (K, 8), (K, R, 5)
  inputs = [rng.normal(size=(rows, length, *s)) for s in shapes]
  inputs[1] += 1
  kernels = [rng.normal(size=(*s, NET.window)) for s in shapes]
  decay = -slow * rng.exponential(size=(rows, length, K, R))
  rate = rng.uniform(0.3, 1, size=(rows, length, K, R))
  return inputs, kernels, decay, rate


def draw_state(rows, seed=9):
  rng = np.random.default_rng(seed)
  empty = deltanet.empty_state(NET, rows, jnp.float32)
  return State(*(jnp.asarray(rng.normal(size=x.shape)) for x in empty))


def compare(segments, ends, begin=None, slow=0.1):
  """Runs both forms, and requires equal outputs and states at `ends`."""
  segments = np.asarray(segments)
  rows, length = segments.shape
  inputs, kernels, decay, rate = draw(rows, length, slow=slow)
  found, state = jax.jit(deltanet.mix_rows)(
    *jax.tree.map(jnp.float32, (inputs, kernels, decay, rate)),
    jnp.asarray(segments),
    jax.tree.map(jnp.float32, begin),
    jnp.asarray(ends),
  )
  states = []
  before = begin or jax.tree.map(jnp.zeros_like, draw_state(rows))
  for i in range(rows):
    first = jax.tree.map(lambda x, i=i: np.float64(x[i]), before)
    row = ([x[i] for x in inputs], kernels, decay[i], rate[i])
    want, of_row = by_token(*row, segments[i], first)
    np.testing.assert_allclose(found[i], want, atol=1e-4)
    states += of_row
  for a, end in enumerate(ends):
    for ours, theirs in zip(state, states[end], strict=True):
      np.testing.assert_allclose(ours[a], theirs, atol=1e-4)


def runs(*lengths):
  """Segments of a row, of which number 0 is padding."""
  return np.concatenate([np.full(n, number) for number, n in lengths])


@pytest.mark.parametrize(
  "length", long_but([3, 65], [1, 2, 3, 63, 64, 65, 130])
)
def test_one_segment_of_any_length(length):
  compare([[1] * length], [length - 1, 0])


ROWS = [
  # Begins in a chunk, at its first and at its last token, and is one token.
  runs((1, 10), (2, 54), (3, 63), (4, 1), (5, 1), (6, 20), (0, 1)),
  # Padding on the left and between, and a segment over three chunks.
  runs((0, 7), (1, 140), (0, 1), (2, 2)),
]


@pytest.mark.parametrize("slow", long_but([1e-3], [1e-3, 30.0]))
@pytest.mark.parametrize("begins", long_but([True], [False, True]))
def test_segments_anywhere(begins, slow):
  """Also with a past that all segments of a row begin with."""
  ends = [9, 63, 64, 126, 127, 128, 148, 150 + 7, 150 + 146, 150 + 149]
  compare(ROWS, ends, draw_state(2) if begins else None, slow)


@pytest.mark.long
def test_tokens_one_by_one():
  """The state after the tokens of a row goes on by single tokens."""
  inputs, kernels, decay, rate = jax.tree.map(jnp.float32, draw(2, 80))
  ones = jnp.ones((2, 80), jnp.int32)
  whole, _ = deltanet.mix_rows(inputs, kernels, decay, rate, ones)
  for n in (1, 2, 70):
    _, state = deltanet.mix_rows(
      [x[:, :n] for x in inputs],
      kernels,
      *(decay[:, :n], rate[:, :n], ones[:, :n]),
      ends=jnp.array([n - 1, 2 * n - 1]),
    )
    step = jax.jit(deltanet.mix_token)
    for t in range(n, n + 6):
      y, state = step(
        [x[:, t] for x in inputs], kernels, decay[:, t], rate[:, t], state
      )
      np.testing.assert_allclose(y, whole[:, t], atol=2e-5)


def test_gradients_are_those_of_the_loop():
  """Of the same function without chunks, by automatic differentiation."""
  arrays = jax.tree.map(jnp.float32, draw(2, 70))
  segments = jnp.asarray([runs((1, 30), (2, 40)), runs((0, 5), (1, 65))])

  def loop(inputs, kernels, decay, rate):
    def step(state, xs):
      new, inputs, decay, rate = xs
      state = jax.tree.map(
        lambda x: jnp.where(new.reshape(-1, *[1] * (x.ndim - 1)), 0, x), state
      )
      y, state = deltanet.mix_token(inputs, kernels, decay, rate, state)
      return state, y

    new = deltanet.places(segments) == 0
    xs = jax.tree.map(lambda x: x.swapaxes(0, 1), (new, inputs, decay, rate))
    start = deltanet.empty_state(NET, 2, jnp.float32)
    return jax.lax.scan(step, start, xs)[1].swapaxes(0, 1)

  def total(run, arrays):
    return jnp.sum(jnp.sin(run(*arrays)))

  chunks = functools.partial(deltanet.mix_rows, segments=segments)
  ours = jax.jit(jax.grad(lambda a: total(lambda *x: chunks(*x)[0], a)))(arrays)
  theirs = jax.jit(jax.grad(lambda a: total(loop, a)))(arrays)
  for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
    assert np.abs(b).max() > 1e-3
    np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())
