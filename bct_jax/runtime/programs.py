"""Makes the compiled programs of a model on a mesh, and their arrays' shapes.

Nothing is allocated or compiled before it is used.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bct_jax.config import (
  ArmConfig,
  ExperimentConfig,
  LoraConfig,
  OptimConfig,
  OrganismConfig,
)
from bct_jax.infra import memory
from bct_jax.infra.progress import log_line
from bct_jax.mesh import path_name, shardings
from bct_jax.models import lora, partition
from bct_jax.models.decoder import Decoder
from bct_jax.models.lora import Weights
from bct_jax.models.modules import quantize
from bct_jax.objectives import data_needs, objective_of
from bct_jax.train import optim
from bct_jax.train.gradients import Measure, make_measure
from bct_jax.train.params_view import Frozen, ParamsView
from bct_jax.train.step import Step, make_gradient, make_train_step
from bct_jax.types import Objective, PyTree, TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class MeshModel:
  """Describes a model on a mesh, without a folder, weights or a tokenizer.

  For shapes alone the mesh may be an abstract one, see mesh.abstract_mesh.
  """

  config: ExperimentConfig
  model: Decoder
  mesh: Mesh

  @functools.cached_property
  def abstract_params(self) -> PyTree:
    """Returns shapes and shardings of the params, in `model.param_dtype`."""
    shapes = jax.eval_shape(self.model.init, jax.random.PRNGKey(0))
    rules = partition.rules(
      self.model.config, self.mesh.shape["tensor"], False, self._experts_fsdp
    )
    dtype = jnp.dtype(self.config.model.param_dtype)
    shapes = jax.tree.map(lambda x: x.update(dtype=dtype), shapes)
    return _with_sharding(shapes, shardings(shapes, rules, self.mesh))

  @property
  def _experts_fsdp(self) -> int | None:
    """Returns the devices on fsdp if experts stay on theirs, see partition."""
    return self.mesh.shape["fsdp"] if self.model.experts == "tokens" else None

  def abstract_trained(self, config: LoraConfig | None) -> PyTree:
    """Returns shapes and shardings of what a run trains.

    Args:
      config: of the adapter; None, or one of rank 0, means all params.
    """
    if config is None or not config.rank:
      return self.abstract_params
    return lora.abstract_adapter(
      self.abstract_params, self.model.config, config
    )

  def abstract_decode(self, config: LoraConfig | None = None) -> PyTree:
    """Returns shapes and shardings of the sampler's copy of the params.

    Its adapters are whole on every device, but for those of experts, which
    are where their experts are.
    """
    adapter = None if config is None else self.abstract_trained(config)
    relayout = functools.partial(_to_decode, self, (config,))
    shapes = jax.eval_shape(relayout, self.abstract_params, [adapter])
    return _with_sharding(shapes, self._decode_place(shapes))

  def _decode_place(self, shapes: PyTree) -> PyTree:
    """Returns the shardings of the sampler's copy."""
    args = self.model.config, self.mesh.shape["tensor"]
    rules = partition.rules(*args, True, self._experts_fsdp)
    experts = "|".join(lora.expert_layers(self.model.config)) or "none"
    of_expert = re.compile(rf"/({experts})/lora_[ab]$")
    layout = partition.expert_layout(*args, self._experts_fsdp)
    low = {
      path_name(path): x.ndim
      for path, x in jax.tree_util.tree_flatten_with_path(shapes)[0]
      if "lora_" in str(path[-1])
    }
    if low:
      rules = [*rules, (rf"/(?!{experts})\w+/\w+/lora_[ab]$", P())]
    # [E, in, r], or of several arms [arms, E, in, r]
    found = {
      match[0]: n
      for name, n in low.items()
      if (match := of_expert.search(name))
    }
    for name, n in found.items():
      part = name.removeprefix("/mlp/")
      place = P("tensor") if layout is None else layout.spec(part)
      rules = [*rules, (f"{name}$", P(*[None] * (n - 3), *place))]
    if self.config.sampling.weight_dtype == "int8":
      rules = [*rules, *partition.scale_rules(rules)]
    return shardings(shapes, rules, self.mesh)

  def decode_params(self, *arms: Weights) -> PyTree:
    """Copies weights for the sampler: unstacked, compute dtype, no fsdp.

    Args:
      arms: the weights of one arm, or of several that are sampled together:
        adapters over the params of the first, of which each row chooses one by
        `arms` (see make_sampler).

    Raises:
      ValueError: arms are over other params than the first.
    """
    params = arms[0].params
    if any(arm.params is not params for arm in arms):
      raise ValueError("arms are sampled together over the same params only")
    relayout = _relayout(self, tuple(arm.lora for arm in arms))
    return relayout(params, [arm.adapter for arm in arms])

  def merge_adapter(self, weights: Weights) -> Weights:
    """Makes an adapter part of the params; the old params are donated."""
    if weights.lora is None:
      return weights
    merge = jax.jit(
      lambda params, adapter: lora.merge_adapter(
        Weights(params, adapter, weights.lora)
      ),
      out_shardings=sharding_of(self.abstract_params),
      donate_argnums=0,
    )
    return Weights(merge(weights.params, weights.adapter))

  def abstract_state(
    self, config: OptimConfig, lora_config: LoraConfig | None
  ) -> TrainState:
    """Returns shapes, dtypes and shardings of a training state."""
    tx = optim.make_optimizer(config)
    trained = self.abstract_trained(lora_config)
    replicated = NamedSharding(self.mesh, P())
    opt_sharding = optim.optimizer_shardings(
      tx, trained, sharding_of(trained), replicated
    )
    opt_shapes = jax.eval_shape(tx.init, trained)
    scalar = functools.partial(jax.ShapeDtypeStruct, sharding=replicated)
    ema = None
    if config.ema_decay:
      ema = jax.tree.map(lambda x: x.update(dtype=jnp.float32), trained)
    return TrainState(
      step=scalar((), jnp.int32),
      params=trained,
      opt_state=_with_sharding(opt_shapes, opt_sharding),
      rng=scalar((2,), jnp.uint32),
      ema=ema,
    )

  def abstract_frozen(self, view: ParamsView) -> Frozen | None:
    """Returns shapes and shardings of what a step leaves frozen."""
    begin = Weights(self.abstract_params)
    if view.continued:
      begin = begin._replace(adapter=self.abstract_trained(view.lora))
    return view.frozen_part(begin)

  def init_state(
    self, weights: Weights, arm: ArmConfig | OrganismConfig
  ) -> TrainState:
    """Makes a state at step 0; donates the weights that are trained."""
    tx = optim.make_optimizer(arm.optim)
    abstract = self.abstract_state(arm.optim, arm.lora)
    trained = weights.params
    if arm.lora.rank:
      trained = weights.adapter
      if trained is None:
        trained = lora.init_adapter(abstract.params, arm.train.seed_of_adapter)

    def make(trained, seed):
      ema = None
      if arm.optim.ema_decay:
        ema = jax.tree.map(lambda x: x.astype(jnp.float32), trained)
      # Made inside of jit, since an eager array is on one device.
      key = jax.random.PRNGKey(seed)
      return TrainState(jnp.int32(0), trained, tx.init(trained), key, ema)

    init = jax.jit(make, out_shardings=sharding_of(abstract), donate_argnums=0)
    return init(trained, jnp.uint32(arm.train.seed))

  def step(
    self, arm: ArmConfig | OrganismConfig, view: ParamsView | None = None
  ) -> Step:
    """Returns the compiled train step; arms that differ in lr share one.

    Args:
      arm: says what to train.
      view: None is that of a run that begins without an adapter.
    """
    return self._programs(arm, view)[0]

  def measure(
    self, arm: ArmConfig | OrganismConfig, view: ParamsView | None = None
  ) -> Measure:
    """Returns what measures an arm's updates (train/gradients.py); see
    `step`."""
    return self._programs(arm, view)[1]

  def _programs(
    self, arm: ArmConfig | OrganismConfig, view: ParamsView | None
  ) -> tuple[Step, Measure]:
    """Returns the programs of an arm, shared by arms that need the same."""
    # A step gets the learning rate as an argument, so its schedule is no part.
    same = dataclasses.replace(
      arm.optim, lr=1.0, schedule="", warmup_steps=0, decay_steps=0
    )
    return _programs(
      self,
      objective_of(arm),
      arm.train.accum,
      same,
      params_view(arm) if view is None else view,
    )


def params_view(
  arm: ArmConfig | OrganismConfig, continued: bool = False
) -> ParamsView:
  """Returns which params the updates of an arm train and compare with.

  Args:
    arm: says what to train.
    continued: whether the run begins with an adapter and goes on training it.
  """
  return ParamsView(
    lora=arm.lora if arm.lora.rank else None,
    reference=data_needs(objective_of(arm)).uses_reference,
    continued=continued,
    ema_decay=arm.optim.ema_decay,
  )


def forget_programs() -> None:
  """Frees compiled programs, which JAX keeps as long as the process lives.

  They take half a GiB for each setting of a sweep over settings with SmolLM2.
  """
  _programs.cache_clear()
  _relayout.cache_clear()
  jax.clear_caches()
  memory.release_memory()


@functools.lru_cache(maxsize=8)
def _programs(
  runtime: MeshModel,
  objective: Objective,
  accum: int,
  config: OptimConfig,
  view: ParamsView,
) -> tuple[Step, Measure]:
  """Makes the update of a run and what measures it.

  Neither compiles before its first use. The arguments are all that the two
  depend on, so runs that agree in them share both.
  """
  shared = (
    runtime.model,
    optim.make_optimizer(config),
    sharding_of(runtime.abstract_state(config, view.lora)),
    sharding_of(runtime.abstract_frozen(view)),
    runtime.mesh,
  )
  step = make_train_step(objective, *shared, accum, view)
  gradient = make_gradient(objective, runtime.model, accum, view)
  return step, make_measure(gradient, *shared, view)


@functools.lru_cache(maxsize=8)
def _relayout(model: MeshModel, configs: tuple[LoraConfig | None, ...]):
  """Compiles (params, adapters) -> the params that the sampler runs."""
  make = functools.partial(_to_decode, model, configs)
  adapters = [config and model.abstract_trained(config) for config in configs]
  shapes = jax.eval_shape(make, model.abstract_params, adapters)
  return jax.jit(make, out_shardings=model._decode_place(shapes))


def _to_decode(
  model: MeshModel,
  configs: Sequence[LoraConfig | None],
  params: PyTree,
  adapters: Sequence[PyTree],
) -> PyTree:
  """Attaches adapters, unstacks the layers, casts to the compute dtype."""
  # An adapter stays beside its kernel, as in training: merged into bfloat16
  # kernels, a small one would be rounded away.
  arms = [
    Weights(params, adapter, config)
    for adapter, config in zip(adapters, configs, strict=True)
  ]
  joined = (
    lora.attach_adapter(arms[0])
    if len(arms) == 1
    else lora.attach_adapters(arms)
  )
  dtype = model.model.dtype

  def cast(path: Any, x: jax.Array) -> jax.Array:
    # Logs of decays are few, and rounded ones would be others after a while.
    exact = str(path[-1].key) in ("a_log", "dt_bias")
    return x if exact else x.astype(dtype)

  cast_params = jax.tree_util.tree_map_with_path(cast, joined)
  if model.config.sampling.weight_dtype == "int8":
    layers = quantize_kernels(joined["layers"], cast_params["layers"])
    cast_params = {**cast_params, "layers": layers}
  return model.model.unstack(cast_params)


def quantize_kernels(exact: PyTree, cast: PyTree) -> PyTree:
  """Rounds the matrices of linear layers to int8, with a scale of each column.

  Args:
    exact: params before they are cast, or a part of them.
    cast: the same in the compute dtype, which the rest keeps.
  """
  if not isinstance(cast, Mapping):
    return cast
  out = {name: quantize_kernels(exact[name], cast[name]) for name in cast}
  if "kernel" in cast:
    out["kernel"], out["kernel_scale"] = quantize(exact["kernel"], -2)
  return out


def sharding_of(abstract: PyTree) -> PyTree:
  """Returns the sharding of each array of a tree of shapes."""
  return jax.tree.map(lambda x: x.sharding, abstract)


def set_compilation_cache(folder: str | None) -> None:
  """Has JAX keep compiled programs in a folder, and read them from there.

  Args:
    folder: None keeps none.

  Raises:
    OSError: the folder cannot be made or written to.
  """
  if folder is None:
    return
  path = Path(folder).expanduser().resolve()
  path.mkdir(parents=True, exist_ok=True)
  if not os.access(path, os.W_OK | os.X_OK):
    raise PermissionError(f"compilation_cache = {path}: cannot be written to")
  jax.config.update("jax_compilation_cache_dir", str(path))
  # Small programs too: a run has dozens, and all of them wait for the compiler.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  count = sum(1 for _ in path.glob("*-cache"))
  log_line(f"compiled programs are kept in {path} ({count} there)")


def _with_sharding(shapes: PyTree, place: PyTree) -> PyTree:
  """Joins shapes and shardings to ShapeDtypeStructs."""
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    shapes,
    place,
  )
