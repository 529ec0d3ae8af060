"""Splash attention against the XLA form, and which form a run takes."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CONFIG, TWO_SHAPES, init_params, make_mesh

from bct_jax.models import layers
from bct_jax.models.architecture import Layer
from bct_jax.models.attention import attend, choose_form
from bct_jax.models.decoder import Decoder
from bct_jax.models.splash import Segments, attend_splash

IDS = np.array([[1] * 70 + [2] * 50 + [0] * 30, [1] * 150], np.int32)


def arrays():
  rng = np.random.default_rng(0)
  shapes = [(2, 150, 4, 128), (2, 150, 2, 128), (2, 150, 2, 128)]
  return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("spread", [False, True], ids=["one", "mesh"])
def test_splash_is_the_xla_form(window, spread):
  """Packed and padded rows, a length that is no multiple; with gradients."""
  at = np.arange(150)
  distance = at[:, None] - at
  mask = (IDS[:, :, None] == IDS[:, None]) & (distance >= 0)
  if window is not None:
    mask &= distance < window
  real = jnp.asarray(IDS > 0)[:, :, None, None]

  def run(form):
    def total(q, k, v):
      y = form(q, k, v) * real
      return jnp.sum(jnp.sin(y)), y

    return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(
      *arrays()
    )

  def splash(q, k, v):
    ids = Segments(jnp.asarray(IDS), window)
    return attend_splash(q, k, v, ids, 0.1, None, interpret=True)

  def xla(q, k, v):
    return attend(q, k, v, jnp.asarray(mask)[:, None], 0.1, None, "xla")

  (_, want), want_grads = run(xla)
  if spread:
    with jax.set_mesh(make_mesh(1, 2, 2)):
      (_, got), grads = run(splash)
  else:
    (_, got), grads = run(splash)
  np.testing.assert_allclose(got, want, atol=1e-5)
  for a, b in zip(grads, want_grads, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.long
def test_splash_of_heads_of_two_shapes(monkeypatch):
  """Each kind of layer has its own window and its own mask."""
  monkeypatch.setattr(
    layers, "attend_splash", functools.partial(attend_splash, interpret=True)
  )
  rng, mesh = np.random.default_rng(0), make_mesh()
  tokens = jnp.asarray(rng.integers(3, 96, (2, 40)))
  positions = jnp.tile(
    jnp.concatenate([jnp.arange(25), jnp.arange(15)]), (2, 1)
  )
  segments = jnp.tile(
    jnp.repeat(jnp.asarray([1, 2]), np.array([25, 15])), (2, 1)
  )
  with jax.set_mesh(mesh):
    params = init_params(Decoder(TWO_SHAPES), mesh)
    want, got = (
      jax.jit(Decoder(TWO_SHAPES, attention=form).hidden)(
        params, tokens, positions, segments
      )
      for form in ("xla", "splash")
    )
  np.testing.assert_allclose(got, want, atol=1e-4)


MIXED = dataclasses.replace(CONFIG, layers=(Layer(8, None), Layer(None, None)))


@pytest.mark.parametrize(
  ("config", "dtype", "platform", "form", "why"),
  [
    (CONFIG, "float32", "tpu", "splash", "for tpu"),
    (MIXED, "float32", "tpu", "xla", "windows"),
    (TWO_SHAPES, "float32", "tpu", "splash", "for tpu"),
    (CONFIG, "bfloat16", "gpu", "cudnn", "for gpu"),
    (CONFIG, "float32", "gpu", "xla", "model.dtype is float32"),
    (CONFIG, "float32", "cpu", "grouped", "no kernel"),
  ],
)
def test_form_for_the_devices(config, dtype, platform, form, why):
  found, reason = choose_form("auto", config, dtype, platform)
  assert found == form
  assert re.search(why, reason)


@pytest.mark.parametrize("wanted", ["splash", "cudnn"])
def test_a_form_that_cannot_be_is_refused(wanted):
  with pytest.raises(ValueError, match=f"{wanted}.*this is cpu.*'auto'"):
    choose_form(wanted, CONFIG, "bfloat16", "cpu")
