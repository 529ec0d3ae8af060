import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import long_but
from helpers import CONFIG, init_params, make_mesh, make_rows

from bct_jax.models import attention
from bct_jax.models.architecture import Layer
from bct_jax.models.decoder import Decoder
from bct_jax.models.layers import rope_angles
from bct_jax.models.moe import Experts
from bct_jax.models.rope import Rope

MODEL = Decoder(CONFIG)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def params():
  return init_params(MODEL, make_mesh())


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens, positions, segments):
  hidden = model.hidden(params, tokens, positions, segments)
  return model.logits(params, hidden)


def logits(params, tokens, positions=None, segments=None, model=MODEL):
  tokens = jnp.asarray(tokens)
  if positions is None:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  if segments is None:
    segments = jnp.ones_like(tokens)
  positions, segments = jnp.asarray(positions), jnp.asarray(segments)
  return np.asarray(forward(model, params, tokens, positions, segments))


def random_tokens(*shape):
  return RNG.integers(0, CONFIG.vocab_size, shape).astype(np.int32)


def test_a_token_changes_nothing_before_it(params):
  tokens = random_tokens(1, 12)
  other = tokens.copy()
  other[0, 7] = (other[0, 7] + 1) % CONFIG.vocab_size
  a, b = logits(params, tokens), logits(params, other)
  np.testing.assert_array_equal(a[:, :7], b[:, :7])
  assert np.abs(a[:, 7:] - b[:, 7:]).max() > 1e-3


def test_packed_equals_unpacked(params):
  parts = [random_tokens(1, n) for n in (5, 7, 3)]
  packed = np.concatenate([*parts, np.zeros((1, 2), np.int32)], axis=1)
  positions = np.concatenate([np.arange(n) for n in (5, 7, 3, 2)])[None]
  segments = np.repeat([1, 2, 3, 0], [5, 7, 3, 2])[None]
  whole = logits(params, packed, positions, segments)
  start = 0
  for part in parts:
    end = start + part.shape[1]
    np.testing.assert_allclose(
      whole[:, start:end], logits(params, part), atol=2e-5
    )
    start = end


def test_left_padded_equals_unpadded_and_pad_ids_do_not_matter(params):
  tokens = random_tokens(1, 6)
  segments = np.array([[0] * 4 + [1] * 6])
  positions = np.maximum(np.cumsum(segments, 1) - 1, 0)
  for pad in (0, 17):
    padded = np.concatenate([np.full((1, 4), pad, np.int32), tokens], axis=1)
    out = logits(params, padded, positions, segments)
    np.testing.assert_allclose(out[:, 4:], logits(params, tokens), atol=2e-5)


def test_both_forms_of_attention_are_one(params):
  """With padding, and the gradients of it all."""
  rows = make_rows()
  arrays = [jnp.asarray(x) for x in (rows.tokens, rows.positions)]
  segments = jnp.asarray(rows.segments)

  def run(attention):
    model = Decoder(CONFIG, attention=attention)

    def total(params):
      x = model.hidden(params, *arrays, segments) * (segments > 0)[..., None]
      return jnp.sum(jnp.sin(x)), x

    return jax.jit(jax.value_and_grad(total, has_aux=True))(params)

  ((_, one), one_grads), ((_, two), two_grads) = run("xla"), run("grouped")
  np.testing.assert_allclose(one, two, atol=2e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4),
    one_grads,
    two_grads,
  )


@pytest.mark.parametrize(
  ("windows", "dtype"),
  [
    ((None, None), jnp.float32),
    ((3, None), jnp.float32),
    ((3, None), jnp.int8),
  ],
  ids=["plain", "window", "int8"],
)
def test_decoding_equals_the_whole_forward(params, windows, dtype):
  """With a prefix run once, and rows at different positions."""
  rope = CONFIG.layers[0].rope
  config = dataclasses.replace(
    CONFIG, layers=tuple(Layer(w, rope) for w in windows)
  )
  model = Decoder(config)
  tokens = random_tokens(2, 12)
  tokens[:, :4] = tokens[0, :4]
  at = jnp.broadcast_to(jnp.arange(12), (2, 12))
  ones = jnp.ones((2, 12), jnp.int32)
  hidden = jax.jit(model.hidden)(params, tokens, at, ones)
  whole = np.asarray(model.logits(params, hidden))
  flat = model.unstack(params)
  prefill, decode = jax.jit(model.prefill), jax.jit(model.decode)
  _, kvs = prefill(flat, tokens[:1, :4], at[:1, :4], ones[:1, :4])
  prefix = [attention.Prefix(*kv) for kv in kvs]
  # The second row has two tokens less to begin with.
  lengths = np.array([8, 6])
  segments = (np.arange(4, 8) < lengths[:, None]).astype(np.int32)
  hidden, kvs = prefill(flat, tokens[:, 4:8], at[:, 4:8], segments, prefix)
  begun = model.logits(params, hidden)
  for row, length in enumerate(lengths):
    np.testing.assert_allclose(
      begun[row, : length - 4], whole[row, 4:length], atol=2e-5
    )
  slots = []
  for (k, v), p in zip(kvs, prefix, strict=True):
    k, v = (
      jnp.pad(
        jnp.concatenate([jnp.repeat(p_, 2, axis=0), x], axis=1),
        [(0, 0), (0, 5), (0, 0), (0, 0)],
        constant_values=9,  # what is not written yet must not be seen
      )
      for p_, x in zip(p, (k, v), strict=True)
    )
    slots.append(attention.as_slots(k, v, dtype))
  rows = np.arange(2)
  for _ in range(4):
    new = jnp.asarray(tokens[rows, lengths])
    hidden, slots = decode(flat, new, jnp.asarray(lengths), slots)
    found = model.logits(params, hidden) - whole[rows, lengths]
    if dtype == jnp.int8:  # rounded, by less than 1/254 of the largest
      assert 1e-4 < np.abs(found).max() < 0.02 * np.abs(whole).max()
      assert slots[0].keys.dtype == slots[1].values.dtype == jnp.int8
    else:
      np.testing.assert_allclose(found, 0, atol=2e-5)
    lengths = lengths + 1


def test_rotary_angles_by_hand():
  """The formula of the paper, in float64, far out."""
  positions = np.array([[0, 1, 100, 8000]])
  cos, sin = rope_angles(jnp.asarray(positions), Rope(1e5), 64)
  for i in range(32):
    angle = positions[0].astype(np.float64) / 1e5 ** (2 * i / 64)
    np.testing.assert_allclose(cos[0, :, i], np.cos(angle), atol=1e-3)
    np.testing.assert_allclose(sin[0, :, i], np.sin(angle), atol=1e-3)


def test_rows_of_padding_have_finite_gradients(params):
  rows = make_rows()

  def loss(params):
    x = MODEL.hidden(
      params,
      jnp.asarray(rows.tokens),
      jnp.asarray(rows.positions),
      jnp.zeros_like(jnp.asarray(rows.segments)),
    )
    return jnp.sum(x**2)

  for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
    assert np.isfinite(np.asarray(leaf)).all()


@pytest.mark.parametrize("remat", long_but(["full"], ["dots", "full"]))
def test_remat_changes_nothing(params, remat):
  tokens = random_tokens(2, 8)

  def grads(model):
    def f(p):
      at = jnp.broadcast_to(jnp.arange(8), (2, 8))
      ones = jnp.ones((2, 8), jnp.int32)
      return jnp.sum(jnp.tanh(model.hidden(p, jnp.asarray(tokens), at, ones)))

    return jax.jit(jax.grad(f))(params)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4),
    grads(Decoder(CONFIG, jnp.float32, "none")),
    grads(Decoder(CONFIG, jnp.float32, remat)),
  )


@pytest.mark.parametrize(
  "param_dtype", long_but([jnp.bfloat16], [jnp.float32, jnp.bfloat16])
)
def test_weights_cast_layer_by_layer_are_those_cast_before(params, param_dtype):
  """And so are their gradients; a list of layers is run without a scan."""
  model = dataclasses.replace(MODEL, dtype=jnp.bfloat16)
  tokens = jnp.asarray(random_tokens(2, 8))
  ones = jnp.ones_like(tokens)
  positions = jnp.cumsum(ones, axis=1) - 1

  def total(params, unstack):
    if unstack:
      params = model.unstack(params)
    hidden = model.hidden(params, tokens, positions, ones)
    return jnp.sum(jnp.sin(hidden.astype(jnp.float32)))

  params = jax.tree.map(lambda x: x.astype(param_dtype), params)
  grad = jax.jit(jax.grad(total), static_argnums=1)
  for a, b in zip(
    jax.tree.leaves(grad(params, False)),
    jax.tree.leaves(grad(params, True)),
    strict=True,
  ):
    assert a.dtype == b.dtype == param_dtype
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max(), rtol=0)


def test_unknown_remat_is_refused():
  with pytest.raises(ValueError, match="remat 'ful'"):
    Decoder(CONFIG, jnp.float32, "ful")


@pytest.mark.parametrize(
  "axes",
  [
    (1, 2, 4),
    pytest.param((1, 1, 1), marks=pytest.mark.long),
    pytest.param((2, 1, 2), marks=pytest.mark.long),
  ],
  ids=str,
)
def test_experts_and_their_gradients_do_not_depend_on_the_mesh(axes):
  config = dataclasses.replace(CONFIG, num_experts=4, experts_per_token=2)
  experts = Experts(config, jnp.float32, jax.nn.silu)
  x, toward = jax.random.normal(jax.random.PRNGKey(1), (2, 2, 8, 32))
  params = experts.init(jax.random.PRNGKey(0), x)
  params = jax.tree.map(lambda p: 10 * p, params)

  @jax.jit
  def run(params, x):
    y, back = jax.vjp(experts.apply, params, x)
    return y, back(toward)

  expected = run(params, x)
  with jax.set_mesh(make_mesh(*axes)):
    found = run(params, x)
  for ours, theirs in zip(
    *map(jax.tree.leaves, (found, expected)), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
