import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import long_but
from helpers import CONFIG, dense_loss, init_params, make_mesh, make_rows

from bct_jax.mesh import put_batch
from bct_jax.models import logprobs as models_logprobs
from bct_jax.models.decoder import Decoder
from bct_jax.objectives import sft


@pytest.mark.parametrize("chunk", long_but([3, 64], [1, 3, 8, 64]))
def test_chunked_loss_and_gradients_equal_the_dense_form(chunk, monkeypatch):
  monkeypatch.setattr(models_logprobs, "CHUNK", chunk)
  model, mesh = Decoder(CONFIG), make_mesh()
  params, batch = init_params(model, mesh), put_batch(make_rows(), mesh)

  def ours(params):
    logprobs, weights = models_logprobs.token_logprobs(
      model, params, batch, chunk
    )
    return -jnp.sum(logprobs * weights)

  a, grads_a = jax.jit(jax.value_and_grad(ours))(params)
  b, grads_b = jax.jit(
    jax.value_and_grad(lambda p: dense_loss(model, p, batch))
  )(params)
  np.testing.assert_allclose(a, b, rtol=1e-6)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, y, atol=1e-6 * float(jnp.abs(y).max()) + 1e-12
    ),
    grads_a,
    grads_b,
  )


def test_weights_and_positions_are_those_of_the_batch():
  mesh = make_mesh()
  batch = put_batch(make_rows(), mesh)
  index = models_logprobs.trained_positions(batch)
  weights = np.take_along_axis(np.asarray(batch.weights), np.asarray(index), 1)
  assert weights.sum() == np.asarray(batch.weights).sum()
  assert index.shape == (8, 8)


def test_fractional_weights_are_not_rescaled():
  model, mesh = Decoder(CONFIG), make_mesh()
  params, rows = init_params(model, mesh), make_rows()
  full, _ = sft(params, put_batch(rows, mesh), jax.random.PRNGKey(0), model)
  small = rows._replace(weights=rows.weights * np.float32(1e-3))
  part, _ = sft(params, put_batch(small, mesh), jax.random.PRNGKey(0), model)
  np.testing.assert_allclose(part.value(), full.value(), rtol=1e-5)
