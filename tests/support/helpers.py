"""What several tests need: a small model, batches and a state on a mesh."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bct_jax import mesh as meshes
from bct_jax.config import LoraConfig, OptimConfig, SamplingConfig
from bct_jax.experiment.run_state import TrainRun
from bct_jax.experiment.training import train_runs
from bct_jax.models import decoder, lora, partition
from bct_jax.models.architecture import (
  DeltaNet,
  GlobalAttention,
  Layer,
  ModelConfig,
)
from bct_jax.models.rope import Rope
from bct_jax.objectives import data_needs
from bct_jax.train import optim
from bct_jax.train.params_view import Frozen, ParamsView
from bct_jax.train.step import make_train_step
from bct_jax.types import Rows, TrainState

CONFIG = ModelConfig(
  vocab_size=96,
  width=32,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_width=64,
  norm_eps=1e-5,
  max_length=256,
  tied=True,
  layers=(Layer(None, Rope(10000.0)),) * 2,
)
# As Qwen3.5: linear layers between others, which are gated and turn in part.
HYBRID = dataclasses.replace(
  CONFIG,
  layers=(Layer(None, None, "deltanet"), Layer(None, Rope(1e4, share=0.5))) * 2,
  qk_norm="head",
  norm_plus_one=True,
  attn_gate=True,
  delta=DeltaNet(
    key_heads=2, value_heads=4, key_dim=8, value_dim=12, window=4, fused=False
  ),
)
# Mixtures, whose experts have the two forms of models/moe.py.
GATED = dataclasses.replace(
  CONFIG, num_experts=8, experts_per_token=2, mlp_width=24, renormalize=True
)
CLAMPED = dataclasses.replace(
  GATED, expert_form="clamped", swiglu_alpha=1.7, swiglu_limit=0.5
)
# As Gemma 4: layers without a window have other heads, whose keys are values.
TWO_SHAPES = dataclasses.replace(
  CONFIG,
  layers=(
    Layer(8, Rope(1e4)),
    Layer(None, Rope(1e6, "proportional", share=0.5), "global_attn"),
  )
  * 2,
  qk_norm="head",
  value_norm=True,
  query_scale=1.0,
  layer_scalar=True,
  global_attn=GlobalAttention(16, 1, key_is_value=True),
)
OPTIM = OptimConfig(
  optimizer="adamw",
  lr=1e-2,
  lr_groups=(),
  schedule="constant",
  warmup_steps=0,
  decay_steps=0,
  b1=0.9,
  b2=0.99,
  eps=1e-8,
  weight_decay=0.1,
  clip_norm=1.0,
  ema_decay=0.0,
)
LORA = LoraConfig(rank=4, alpha=8.0, targets="_proj$", rslora=False)


def sampling(**changes) -> SamplingConfig:
  """Greedy and small, but for what is changed."""
  small = SamplingConfig(
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    stop=(),
    max_new_tokens=8,
    batch_size=8,
    prefill_tokens=32,
    kv_cache_dtype="auto",
    seed=0,
  )
  return dataclasses.replace(small, **changes)


def make_mesh(data=1, fsdp=1, tensor=1) -> Mesh:
  """A mesh over the first devices; the rest stay unused."""
  count = data * fsdp * tensor
  devices = np.array(jax.devices()[:count]).reshape(data, fsdp, tensor)
  return Mesh(devices, meshes.AXES, axis_types=(AxisType.Auto,) * 3)


def make_rows(
  batch=8, length=16, seed=0, vocab=96, lengths=None, spread=True
) -> Rows:
  """Random rows of very unequal real and trained length."""
  rng = np.random.default_rng(seed)
  lengths = lengths or [
    2 + (i * 5) % (length - 1) if spread else length for i in range(batch)
  ]
  valid = np.arange(length)[None] < np.array(lengths)[:, None]
  start = np.array([max(0, n - 1 - i % 5) for i, n in enumerate(lengths)])
  trained = valid & (np.arange(length)[None] >= start[:, None])

  def draw():
    return rng.integers(0, vocab, (batch, length)).astype(np.int32)

  return Rows(
    tokens=draw() * valid,
    targets=draw() * valid,
    weights=trained.astype(np.float32),
    positions=(np.arange(length, dtype=np.int32)[None] * valid).astype(
      np.int32
    ),
    segments=valid.astype(np.int32),
    num_trained=8,
  )


def rules_of(model, mesh, decode=False):
  """The partition rules of a decoder's params on a mesh."""
  fsdp = mesh.shape["fsdp"] if model.experts == "tokens" else None
  return partition.rules(model.config, mesh.shape["tensor"], decode, fsdp)


def init_params(model, mesh, seed=0):
  """Random params, larger than usual so that their effects are not tiny."""
  shapes = jax.eval_shape(model.init, jax.random.PRNGKey(0))
  place = meshes.shardings(shapes, rules_of(model, mesh), mesh)

  def larger(path, x):
    if path[-1].key == "a_log":  # so that memories last
      return jnp.full_like(x, -2)
    return x * 3 if x.ndim > 1 else x

  def init(key):
    return jax.tree_util.tree_map_with_path(larger, model.init(key))

  # Made on one device, so that every mesh starts from equal numbers.
  host = jax.jit(init)(jax.random.PRNGKey(seed))
  return jax.tree.map(lambda x, s: meshes.put(np.asarray(x), s), host, place)


def abstract(tree):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


def random_adapter(params, model=CONFIG, config=LORA, seed=0):
  """An adapter in which B is not zero, so that it changes something."""
  shapes = lora.abstract_adapter(abstract(params), model, config)
  made = lora.init_adapter(shapes, seed)

  def fill(x):
    noise = np.random.default_rng(x.size).normal(0, 0.1, x.shape)
    return jax.device_put(noise.astype(np.float32), x.sharding)

  return jax.tree.map(fill, made)


def make_step(
  objective,
  mesh,
  accum=1,
  config=None,
  remat="none",
  tx=None,
  experts="weights",
):
  """A model, its train step and a state at step 0, on a mesh."""
  model = decoder.Decoder(config or CONFIG, jnp.float32, remat, experts=experts)
  tx = tx or optim.make_optimizer(OPTIM)
  with jax.set_mesh(mesh):
    params = init_params(model, mesh)
    replicated = NamedSharding(mesh, P())
    params_sharding = jax.tree.map(lambda x: x.sharding, params)
    abstract = jax.eval_shape(lambda: params)
    place = TrainState(
      step=replicated,
      params=params_sharding,
      opt_state=optim.optimizer_shardings(
        tx, abstract, params_sharding, replicated
      ),
      rng=replicated,
    )
    state = jax.jit(
      lambda p: TrainState(jnp.int32(0), p, tx.init(p), jax.random.PRNGKey(0)),
      out_shardings=place,
    )(params)
    frozen = None
    view = ParamsView(reference=data_needs(objective).uses_reference)
    if view.reference:
      frozen = Frozen(init_params(model, mesh, seed=1))
    step = make_train_step(
      objective,
      model,
      tx,
      place,
      frozen and Frozen(params_sharding),
      mesh,
      accum,
      view,
    )
  return types.SimpleNamespace(
    model=model, step=step, state=state, mesh=mesh, frozen=frozen
  )


def run_steps(setup, rows_list, lr=1e-3, fetch=True):
  """Metrics of each step, the final params on the host, the final state."""
  state, out = setup.state, []
  with jax.set_mesh(setup.mesh):
    for rows in rows_list:
      batch = meshes.put_batch(rows, setup.mesh)
      state, metrics = setup.step(state, setup.frozen, batch, jnp.float32(lr))
      out.append({k: float(v) for k, v in metrics.items()})
  return out, fetch and jax.tree.map(np.asarray, state.params), state


def train_evaluated(plan, run: TrainRun, start, evaluate):
  """Trains one run; `evaluate` gets (step, weights) at its eval steps."""

  def look(step, due):
    evaluate(step, due[run.name])
    return {}

  found = train_runs(plan, [run], start, look)[run.name]
  if isinstance(found, Exception):
    raise found
  return found


def untied(config=CONFIG):
  return dataclasses.replace(config, tied=False)


def dense_loss(model, params, batch):
  """The textbook form: logits everywhere, weighted sum."""
  hidden = model.hidden(params, batch.tokens, batch.positions, batch.segments)
  logprobs = jax.nn.log_softmax(model.logits(params, hidden))
  picked = jnp.take_along_axis(logprobs, batch.targets[..., None], -1)[..., 0]
  return -jnp.sum(picked * batch.weights)
