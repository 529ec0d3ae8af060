"""What every stage of a run shares: mesh, model, tokenizer, compiled functions.

Making a Runtime checks everything that can be checked before any training, and
allocates nothing but what the tokenizer needs.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bct_jax import optim
from bct_jax.config import ExperimentConfig, ModelOptions, OptimConfig
from bct_jax.data.chat import Chat
from bct_jax.mesh import make_mesh, shardings
from bct_jax.models import decoder, partition
from bct_jax.models.config import ModelConfig, from_hf
from bct_jax.models.decoder import Decoder
from bct_jax.models.demo import resolve
from bct_jax.models.hf_weights import load_params
from bct_jax.objectives import OBJECTIVES
from bct_jax.sampler import Sample, make_sampler
from bct_jax.train import Step, make_train_step
from bct_jax.types import PyTree, TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class MeshModel:
  """A model as arrays on a mesh, without a folder, weights or a tokenizer.

  For shapes alone the mesh may be an abstract one, see mesh.abstract_mesh.
  """

  config: ExperimentConfig
  model: Decoder
  mesh: Mesh

  @functools.cached_property
  def abstract_params(self) -> PyTree:
    """Shapes of the params, float32, with their shardings."""
    shapes = jax.eval_shape(self.model.init, jax.random.PRNGKey(0))
    return _with_sharding(shapes, self.params_sharding)

  @functools.cached_property
  def params_sharding(self) -> PyTree:
    shapes = jax.eval_shape(self.model.init, jax.random.PRNGKey(0))
    rules = partition.rules(self.model.config, self.mesh.shape["tensor"])
    return shardings(shapes, rules, self.mesh)

  @functools.cached_property
  def decode_sharding(self) -> PyTree:
    return jax.tree.map(lambda a: a.sharding, self.abstract_decode)

  @functools.cached_property
  def abstract_decode(self) -> PyTree:
    """Shapes of the copy that the sampler uses, see decode_params."""
    shapes = jax.eval_shape(self._to_decode, self.abstract_params)
    tensor = self.mesh.shape["tensor"]
    rules = partition.rules(self.model.config, tensor, decode=True)
    return _with_sharding(shapes, shardings(shapes, rules, self.mesh))

  def _to_decode(self, params: PyTree) -> PyTree:
    dtype = self.model.dtype
    return decoder.unstack(jax.tree.map(lambda x: x.astype(dtype), params))

  @functools.cached_property
  def _relayout(self):
    return jax.jit(self._to_decode, out_shardings=self.decode_sharding)

  def decode_params(self, params: PyTree) -> PyTree:
    """A copy laid out for the sampler: unstacked, compute dtype, no fsdp."""
    return self._relayout(params)

  def abstract_state(self, config: OptimConfig) -> TrainState:
    """Shapes, dtypes and shardings of a training state."""
    tx = optim.make_optimizer(config)
    replicated = NamedSharding(self.mesh, P())
    opt_sharding = optim.optimizer_shardings(
      tx, self.abstract_params, self.params_sharding, replicated
    )
    opt_shapes = jax.eval_shape(tx.init, self.abstract_params)
    scalar = functools.partial(jax.ShapeDtypeStruct, sharding=replicated)
    return TrainState(
      step=scalar((), jnp.int32),
      params=self.abstract_params,
      opt_state=_with_sharding(opt_shapes, opt_sharding),
      rng=scalar((2,), jnp.uint32),
    )

  def init_state(
    self, params: PyTree, config: OptimConfig, seed: int
  ) -> TrainState:
    """A state at step 0. Takes the params over: do not use them again."""
    tx = optim.make_optimizer(config)
    place = jax.tree.map(lambda a: a.sharding, self.abstract_state(config))

    def make(params, key):
      return TrainState(jnp.int32(0), params, tx.init(params), key)

    # The key is made inside jit too, since an eager array is on one device.
    init = jax.jit(
      lambda params, seed: make(params, jax.random.PRNGKey(seed)),
      out_shardings=place,
      donate_argnums=0,
    )
    return init(params, jnp.uint32(seed))

  def step(self, objective: str, accum: int, config: OptimConfig) -> Step:
    """The compiled train step; runs that differ in lr only share one."""
    same = dataclasses.replace(config, lr=1.0, schedule="", warmup_steps=0)
    return _step(self, objective, accum, same)


@dataclasses.dataclass(frozen=True, eq=False)
class Runtime(MeshModel):
  """One model on one mesh, with the folder and tokenizer it comes from."""

  folder: Path
  chat: Chat

  @classmethod
  def make(
    cls,
    config: ExperimentConfig,
    mesh: Mesh | None = None,
    fetch: bool = True,
  ) -> "Runtime":
    """Finds the model and reads its config and tokenizer.

    Args:
      config: of the experiment.
      mesh: None is the one that the config says, over the devices here.
      fetch: False takes from a hub only what was downloaded before.

    Raises:
      ModelSourceError: there is no such model.
      ValueError: the model folder, tokenizer or mesh does not fit.
    """
    options = config.model
    folder = resolve(options.path, fetch=fetch)
    architecture = from_hf(folder)
    if options.architecture is not None:
      check_equal(read_architecture(options.architecture), architecture, folder)
    if mesh is None:
      mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    chat = Chat(folder, architecture.vocab_size)
    return cls(config, make_decoder(architecture, options), mesh, folder, chat)

  def load(self) -> PyTree:
    """The params of the model folder."""
    return load_params(
      self.folder, self.model.config, self.abstract_params, self.params_sharding
    )

  @functools.cached_property
  def sampler(self) -> Sample:
    return make_sampler(
      self.model,
      self.config.sampling,
      self.chat.stop_ids,
      self.decode_sharding,
      self.mesh,
    )

  @functools.cached_property
  def model_hash(self) -> str:
    """Content hash of the model folder's config and weights."""
    digest = hashlib.sha256()
    files = [self.folder / "config.json"]
    files += sorted(self.folder.glob("*.safetensors"))
    for path in files:
      digest.update(path.name.encode())
      with open(path, "rb") as f:
        digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()


@functools.lru_cache(maxsize=8)
def _step(
  runtime: MeshModel, objective: str, accum: int, config: OptimConfig
) -> Step:
  state = runtime.abstract_state(config)
  return make_train_step(
    OBJECTIVES[objective],
    runtime.model,
    optim.make_optimizer(config),
    jax.tree.map(lambda a: a.sharding, state),
    None,
    runtime.mesh,
    accum,
  )


def make_decoder(architecture: ModelConfig, options: ModelOptions) -> Decoder:
  return Decoder(architecture, jnp.dtype(options.dtype), options.remat)


def read_architecture(name: str) -> ModelConfig:
  """The architecture in a file of `configs/`, or at an absolute path."""
  return from_hf(Path(__file__).parent.parent / "configs" / name)


def check_equal(given: ModelConfig, own: ModelConfig, folder: Path) -> None:
  """Raises ValueError unless model.architecture is what the folder says."""
  a, b = dataclasses.asdict(given), dataclasses.asdict(own)
  wrong = [f"{k} {a[k]!r:.80}, not {b[k]!r:.80}" for k in a if a[k] != b[k]]
  if wrong:
    raise ValueError(
      f"model.architecture is not that of {folder}: it has {'; '.join(wrong)}"
    )


def _with_sharding(shapes: PyTree, place: PyTree) -> PyTree:
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    shapes,
    place,
  )
