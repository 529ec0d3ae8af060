import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CONFIG, OPTIM, make_mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bct_jax import mesh as meshes
from bct_jax import optim
from bct_jax.models import decoder, partition

PARAMS = {
  "w": {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)},
  "norm": {"scale": np.ones(4, np.float32)},
}


def gradients(step):
  rng = np.random.default_rng(step)
  return jax.tree.map(
    lambda p: (3 * rng.normal(size=p.shape)).astype(np.float32), PARAMS
  )


@pytest.mark.parity
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_ten_steps_equal_torch_adamw(clip):
  import torch

  lr, decay = 0.05, 0.1
  config = dataclasses.replace(OPTIM, clip_norm=clip, weight_decay=decay)
  tx = optim.make_optimizer(config)
  params = jax.tree.map(jnp.asarray, PARAMS)
  state = tx.init(params)
  theirs = {k: torch.tensor(*v.values()) for k, v in PARAMS.items()}
  for t in theirs.values():
    t.requires_grad_()
  options = {"betas": (config.b1, config.b2), "eps": config.eps, "lr": lr}
  adamw = torch.optim.AdamW(
    [
      {"params": [theirs["w"]], "weight_decay": decay},
      {"params": [theirs["norm"]], "weight_decay": 0.0},
    ],
    **options,
  )
  for step in range(10):
    grads = gradients(step)
    updates, state = tx.update(grads, state, params)
    params = jax.tree.map(lambda p, u: p - lr * u, params, updates)
    for k, t in theirs.items():
      t.grad = torch.tensor(*grads[k].values())
    if clip:
      torch.nn.utils.clip_grad_norm_(theirs.values(), clip)
    adamw.step()
  np.testing.assert_allclose(
    params["w"]["kernel"], theirs["w"].detach().numpy(), atol=1e-5
  )
  np.testing.assert_allclose(
    params["norm"]["scale"], theirs["norm"].detach().numpy(), atol=1e-5
  )


def test_schedules():
  def rates(**kwargs):
    config = dataclasses.replace(OPTIM, lr=1.0, **kwargs)
    return [optim.learning_rate(config, t, 8) for t in range(8)]

  assert rates() == [1.0] * 8
  warm = rates(warmup_steps=3)
  assert warm[:4] == [0.25, 0.5, 0.75, 1.0] and warm[4:] == [1.0] * 4
  linear = rates(schedule="linear", warmup_steps=3)
  np.testing.assert_allclose(linear[3:], [1, 0.8, 0.6, 0.4, 0.2])
  cosine = rates(schedule="cosine")
  assert cosine[0] == 1 and cosine[4] == pytest.approx(0.5)
  assert all(a > b > 0 for a, b in zip(cosine, cosine[1:], strict=False))


def test_decay_spares_norms_and_embeddings():
  params = jax.eval_shape(decoder.Decoder(CONFIG).init, jax.random.PRNGKey(0))
  mask = optim.decay_mask(params)
  flat = jax.tree_util.tree_flatten_with_path(mask)[0]
  for path, decayed in flat:
    assert decayed == meshes.path_name(path).endswith("kernel")


def test_moments_are_sharded_like_their_parameters():
  mesh = make_mesh(2, 2, 2)
  model = decoder.Decoder(CONFIG)
  params = jax.eval_shape(model.init, jax.random.PRNGKey(0))
  place = meshes.shardings(params, partition.rules(CONFIG, 2), mesh)
  replicated = NamedSharding(mesh, P())
  tx = optim.make_optimizer(OPTIM)
  out = optim.optimizer_shardings(tx, params, place, replicated)
  moments = [s for s in jax.tree.leaves(out) if s.spec != P()]
  wanted = [s for s in jax.tree.leaves(place) if s.spec != P()]
  assert moments == wanted * 2
