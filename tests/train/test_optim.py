"""Optimizers against torch and published formulas, and over a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import long_but
from helpers import CONFIG, LORA, OPTIM, init_params, make_mesh, make_rows
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bct_jax import mesh as meshes
from bct_jax.config import OPTIMIZERS, from_dict
from bct_jax.models import decoder, lora, partition
from bct_jax.models.lora import Weights
from bct_jax.runtime.programs import MeshModel
from bct_jax.train import optim
from bct_jax.train.checkpoint import Checkpoints
from bct_jax.train.params_view import Frozen
from configs import tiny

# Two layers, with two experts each; large enough for Adafactor's factors.
PARAMS = {
  "embed": np.ones((6, 4)),
  "layers": {
    "gate": np.ones((2, 2, 128, 129)),
    "norm": {"scale": np.ones((2, 130))},
    "q": {"kernel": np.ones((2, 130, 150))},
  },
}
LR, DECAY, STEPS = 0.02, 0.1, 4


def gradients(step):
  """Of another size in every layer, so that a norm over all would show."""
  rng = np.random.default_rng(step)

  def one(p):
    size = 10.0 ** np.arange(len(p)).reshape(-1, *[1] * (p.ndim - 1))
    return (size * rng.normal(size=p.shape)).astype(np.float32)

  return jax.tree.map(one, PARAMS)


def start():
  return jax.tree.map(lambda g: 0.01 * g, gradients(99))


def alone(tree):
  """Name -> array of every matrix and vector, each by itself."""
  out = {}
  for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name, x = meshes.path_name(path), np.asarray(x)
    stacked = max(1, x.ndim - 2) if name.startswith("layers/") else 0
    for i in np.ndindex(x.shape[:stacked]):
      out[f"{name}{i}"] = x[i]
  return out


def decayed(name):
  return DECAY if "kernel" in name or "gate" in name else 0.0


def ours(config):
  tx = optim.make_optimizer(config)
  params = jax.tree.map(jnp.asarray, start())
  state, update = tx.init(params), jax.jit(tx.update)
  for step in range(STEPS):
    updates, state = update(gradients(step), state, params)
    params = jax.tree.map(lambda p, u: p - LR * u, params, updates)
  return alone(params)


def in_torch(make, manual_decay=False, clip=0.0):
  """make(a list of (name, tensor)) -> optimizers, decaying by themselves."""
  import torch

  # A matrix too small for Adafactor's factors is a vector to torch's.
  tensors = {
    k: torch.tensor(x if min(x.shape) >= 128 else x.ravel(), requires_grad=True)
    for k, x in alone(start()).items()
  }
  optimizers = make(list(tensors.items()))
  for step in range(STEPS):
    for k, g in alone(gradients(step)).items():
      tensors[k].grad = torch.tensor(g).reshape(tensors[k].shape)
    if clip:
      torch.nn.utils.clip_grad_norm_(tensors.values(), clip)
    if manual_decay:
      with torch.no_grad():
        for k, t in tensors.items():
          t.mul_(1 - LR * decayed(k))
    for optimizer in optimizers:
      optimizer.step()
  shapes = alone(start())
  return {
    k: t.detach().numpy().reshape(shapes[k].shape) for k, t in tensors.items()
  }


def assert_close(found, wanted, atol):
  assert found.keys() == wanted.keys()
  for name, x in wanted.items():
    assert np.abs(x - alone(start())[name]).max() > 10 * atol
    np.testing.assert_allclose(
      found[name], x, rtol=1e-6, atol=atol, err_msg=name
    )


def changed(name, **fields):
  fields = {"weight_decay": DECAY, "clip_norm": 0.0, **fields}
  return dataclasses.replace(OPTIM, optimizer=name, **fields)


def groups(named, **options):
  return [
    {"params": [t], "weight_decay": decayed(k), "lr": LR, **options}
    for k, t in named
  ]


@pytest.mark.parity
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_adamw_equals_torch(clip):
  import torch

  config = changed("adamw", clip_norm=clip)
  betas = (config.b1, config.b2)
  want = in_torch(
    lambda named: [
      torch.optim.AdamW(groups(named), betas=betas, eps=config.eps)
    ],
    clip=clip,
  )
  assert_close(ours(config), want, 1e-5)


@pytest.mark.parity
def test_sgd_equals_torch_with_decoupled_decay():
  import torch

  want = in_torch(
    lambda named: [torch.optim.SGD([t for _, t in named], LR, momentum=0.9)],
    manual_decay=True,
  )
  assert_close(ours(changed("sgd")), want, 1e-4)


@pytest.mark.parity
def test_adafactor_equals_torch_in_every_layer():
  import torch

  want = in_torch(lambda named: [torch.optim.Adafactor(groups(named))])
  assert_close(ours(changed("adafactor")), want, 2e-6)


def test_lion_equals_the_papers_algorithm_2():
  config = changed("lion")
  want, moment = alone(start()), {}
  for step in range(STEPS):
    for k, g in alone(gradients(step)).items():
      m = moment.get(k, np.zeros_like(g))
      mixed = np.float32(config.b1) * m + np.float32(1 - config.b1) * g
      want[k] = want[k] - LR * (np.sign(mixed) + decayed(k) * want[k])
      moment[k] = config.b2 * m + (1 - config.b2) * g
  assert_close(ours(config), want, 1e-5)


@pytest.mark.parity
def test_muon_equals_torch_on_matrices_of_layers_and_adam_elsewhere():
  """Without momentum, which torch does not correct for its start."""
  import torch

  def make(named):
    matrices = [(k, t) for k, t in named if t.ndim == 2]
    rest = [(k, t) for k, t in named if t.ndim != 2]
    rule = {"momentum": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    return [
      torch.optim.Muon(groups(matrices), **rule),
      torch.optim.AdamW(groups(rest), betas=(0.0, OPTIM.b2), eps=OPTIM.eps),
    ]

  found, want = ours(changed("muon", b1=0.0)), in_torch(make)
  for k, x in want.items():
    if x.ndim == 1 or "embed" in k:
      np.testing.assert_allclose(found[k], x, atol=1e-5, err_msg=k)
    else:  # torch orthogonalizes in bfloat16, whose singular values differ.
      moved, theirs = (y - alone(start())[k] for y in (found[k], x))
      error = np.linalg.norm(moved - theirs) / np.linalg.norm(theirs)
      assert error < 0.03, k


def test_muon_equals_its_formula_with_momentum():
  """Momentum as in NAdam (Dozat 2016), five quintic Newton-Schulz steps."""
  config, want = changed("muon"), alone(start())
  b, moment = config.b1, {}
  names = [k for k in want if decayed(k)]
  for step in range(STEPS):
    grads = alone(gradients(step))
    for k in names:
      g = grads[k].astype(np.float64)
      m = moment[k] = b * moment.get(k, 0) + (1 - b) * g
      t = step + 1
      x = b * m / (1 - b ** (t + 1)) + (1 - b) * g / (1 - b**t)
      x = x / np.linalg.norm(x)
      for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
      x = 0.2 * np.sqrt(max(x.shape)) * x
      want[k] = want[k] - LR * (x + DECAY * want[k])
  found = ours(config)
  assert_close({k: found[k] for k in names}, {k: want[k] for k in names}, 2e-4)


# --- groups, schedules, decay -------------------------------------------------


def test_groups_move_by_their_factor():
  def moved(*pairs):
    tx = optim.make_optimizer(changed("adamw", lr_groups=pairs))
    params = start()
    return alone(tx.update(gradients(0), tx.init(params), params)[0])

  plain, found = moved(), moved(("^embed$", 0.0), ("kernel|gate", 0.5))
  for k, x in found.items():
    factor = {"e": 0.0}.get(k[0], 1.0 if "norm" in k else 0.5)
    np.testing.assert_allclose(x, factor * plain[k], rtol=1e-6, err_msg=k)


def test_wrong_groups_are_named():
  def factors(*pairs):
    return optim.lr_factors(changed("adamw", lr_groups=pairs), PARAMS)

  assert factors(("scale", 2.0))["layers"]["norm"]["scale"] == 2.0
  with pytest.raises(ValueError, match="matches no.*did you mean 'embed'"):
    factors(("embde", 1.0))
  with pytest.raises(ValueError, match="2 patterns match layers/q/kernel"):
    factors(("kernel", 1.0), ("layers/q", 2.0))


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
  stable = rates(schedule="wsd", warmup_steps=3, decay_steps=3)
  assert stable == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
  # All of it warm-up and decay.
  steep = rates(schedule="wsd", decay_steps=8)
  np.testing.assert_allclose(steep, [(8 - t) / 9 for t in range(8)])


def test_decay_spares_norms_and_embeddings():
  params = jax.eval_shape(decoder.Decoder(CONFIG).init, jax.random.PRNGKey(0))
  mask = optim.decay_mask(params)
  flat = jax.tree_util.tree_flatten_with_path(mask)[0]
  for path, decayed in flat:
    assert decayed == meshes.path_name(path).endswith("kernel")


# --- on a mesh ----------------------------------------------------------------

WIDE = dataclasses.replace(CONFIG, width=128, mlp_width=192, vocab_size=256)
MOE = dataclasses.replace(WIDE, num_experts=4, experts_per_token=2, tied=False)


def placed(model, mesh, adapter):
  """Shapes of what is trained, with shardings."""
  shapes = jax.eval_shape(decoder.Decoder(model).init, jax.random.PRNGKey(0))
  place = meshes.shardings(shapes, partition.rules(model, 2), mesh)
  shapes = jax.tree.map(lambda x, s: x.update(sharding=s), shapes, place)
  return lora.abstract_adapter(shapes, model, LORA) if adapter else shapes


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["dense", "moe", "adapter"])
def test_state_is_sharded_like_its_parameter(kind, name):
  mesh = make_mesh(2, 2, 2)
  params = placed(MOE if kind == "moe" else WIDE, mesh, kind == "adapter")
  tx = optim.make_optimizer(changed(name))
  state = jax.eval_shape(tx.init, params)
  place = optim.optimizer_shardings(
    tx,
    params,
    jax.tree.map(lambda x: x.sharding, params),
    NamedSharding(mesh, P()),
  )
  named = {
    meshes.path_name(path): x
    for path, x in jax.tree_util.tree_flatten_with_path(params)[0]
  }
  seen, factors = set(), 0
  for (path, x), at in zip(
    jax.tree_util.tree_flatten_with_path(state)[0],
    jax.tree.leaves(place),
    strict=True,
  ):
    full = meshes.path_name(path)
    owner = next((k for k in named if full.endswith(f"/{k}")), None)
    if owner is None or x.shape[-1] == 1:  # constants, and unused places
      assert x.size < 32
      continue
    p = named[owner]
    spec = (*p.sharding.spec, *[None] * p.ndim)[: p.ndim]
    if x.shape == p.shape:
      assert at.is_equivalent_to(p.sharding, x.ndim), full
      seen.add(owner)
    elif x.ndim == p.ndim - 1:  # factors, over rows or columns
      cut = {
        P(*spec[:i], *spec[i + 1 :])
        for i in range(p.ndim)
        if p.shape[:i] + p.shape[i + 1 :] == x.shape
      }
      wanted = [NamedSharding(mesh, c) for c in cut]
      assert any(at.is_equivalent_to(w, x.ndim) for w in wanted), full
      seen.add(owner)
      factors += 1
    if x.size > 1024 and not p.sharding.is_fully_replicated:
      assert not at.is_fully_replicated, full
  assert seen == set(named)
  assert (factors > 0) == (name == "adafactor" and kind != "adapter")


@pytest.mark.parametrize("name", long_but(["muon"], OPTIMIZERS))
def test_updates_are_equal_on_one_device_and_eight(name):
  tx = optim.make_optimizer(changed(name, clip_norm=1.0))

  def two_updates(mesh):
    shapes = placed(WIDE, mesh, False)
    place = jax.tree.map(lambda x: x.sharding, shapes)
    at = optim.optimizer_shardings(tx, shapes, place, NamedSharding(mesh, P()))

    def draw(seed):
      rng = np.random.default_rng(seed)
      return jax.tree.map(
        lambda x: meshes.put(rng.normal(size=x.shape), x.sharding), shapes
      )

    with jax.set_mesh(mesh):
      params = draw(0)
      state = jax.jit(tx.init, out_shardings=at)(params)
      update = jax.jit(tx.update, out_shardings=(place, at))
      for seed in (1, 2):
        out, state = update(draw(seed), state, params)
    return jax.tree.map(np.asarray, out)

  one, eight = two_updates(make_mesh()), two_updates(make_mesh(2, 2, 2))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4),
    one,
    eight,
  )


@pytest.mark.long
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_adapters_train_and_resume_from_a_checkpoint(name, tmp_path):
  mesh = make_mesh(2, 2, 2)
  model = MeshModel(
    from_dict(tiny.get_config().to_dict()), decoder.Decoder(CONFIG), mesh
  )
  arm = model.config.arms["low"]
  rates = {"lion": 1e-2, "sgd": 1.0, "adafactor": 3.0}
  config, lr = changed(name, clip_norm=1.0), rates.get(name, 3e-2)
  if name == "adafactor":  # relative to B, which starts at zero, and to A
    config = dataclasses.replace(config, lr_groups=(("lora_a$", 0.03),))
  arm = dataclasses.replace(arm, optim=config, lora=LORA)
  with jax.set_mesh(mesh):
    frozen = init_params(model.model, mesh)
    state = model.init_state(Weights(frozen), arm)
    step, batch = model.step(arm), meshes.put_batch(make_rows(), mesh)
    losses, checkpoints = [], Checkpoints(tmp_path)
    for i in range(4):
      if i == 3:
        checkpoints.save(state, {})
        again = checkpoints.restore(model.abstract_state(config, LORA))
        jax.tree.map(np.testing.assert_array_equal, again, state)
        state = again
      state, metrics = step(state, Frozen(frozen), batch, jnp.float32(lr))
      losses.append(float(metrics["loss"]))
    checkpoints.close()
  # The first update finds B at zero.
  assert losses[3] < losses[0] - 0.05, losses
