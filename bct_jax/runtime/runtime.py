"""Joins a model folder, its tokenizer and its compiled programs."""

import dataclasses
import functools
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bct_jax.config import ExperimentConfig
from bct_jax.config.chips import CHIPS
from bct_jax.config.config_files import shipped_folder
from bct_jax.data.chat import Chat
from bct_jax.infra import memory
from bct_jax.infra.progress import log_line
from bct_jax.mesh import make_mesh
from bct_jax.models.architecture import ModelConfig
from bct_jax.models.attention import choose_form
from bct_jax.models.config import from_hf
from bct_jax.models.decoder import Decoder
from bct_jax.models.demo import resolve
from bct_jax.models.huggingface.load import load_params
from bct_jax.runtime.programs import MeshModel, sharding_of
from bct_jax.sample.sampler import Sample, make_sampler
from bct_jax.sample.score import Score, make_scorer
from bct_jax.types import PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Runtime(MeshModel):
  """Holds one model on one mesh, with its folder and its tokenizer."""

  folder: Path
  chat: Chat

  @classmethod
  def make(
    cls,
    config: ExperimentConfig,
    mesh: Mesh | None = None,
    fetch: bool = True,
    need_template: bool = True,
  ) -> "Runtime":
    """Finds the model and reads its config and tokenizer.

    Args:
      config: of the experiment.
      mesh: None makes the mesh that the config says, over the devices here.
      fetch: whether a model may be downloaded; False takes from a hub only
        what was downloaded before.
      need_template: see Chat.

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
    chat = Chat(folder, architecture.vocab_size, options, need_template)
    return cls(config, make_decoder(architecture, config), mesh, folder, chat)

  def load(self) -> PyTree:
    """Loads the params of the model folder."""
    knobs = "--config.mesh.fsdp=2 or --config.model.param_dtype=bfloat16"
    with memory.name_shortage(f"loading {self.folder}", knobs):
      return load_params(
        self.folder,
        self.model.config,
        self.abstract_params,
        sharding_of(self.abstract_params),
      )

  @functools.cached_property
  def sampler(self) -> Sample:
    """Returns what samples as the config says, for evals."""
    return make_sampler(
      self.model, self.config.eval_sampling, self.chat.stop_ids, self.mesh
    )

  def make_policy_sampler(self, thought_tokens: int) -> Sample:
    """Makes what samples without temperature and truncation, once for a length.

    Policy gradients are estimated with such samples, see experiment/rl.py.

    Args:
      thought_tokens: room for a thought, besides that for the answer.
    """
    if thought_tokens not in self._policy_samplers:
      sampling = self.config.sampling.untruncated(1.0)
      self._policy_samplers[thought_tokens] = make_sampler(
        self.model,
        sampling.with_thoughts(thought_tokens),
        self.chat.stop_ids,
        self.mesh,
      )
    return self._policy_samplers[thought_tokens]

  @functools.cached_property
  def _policy_samplers(self) -> dict[int, Sample]:
    """Holds those that were made, by the length of thoughts."""
    return {}

  @property
  def eval_sampler(self) -> Sample:
    """Returns what samples as policies do, thoughts of evals included."""
    evals = self.config.eval
    return self.make_policy_sampler(evals.thought_tokens * evals.thinking)

  @functools.cached_property
  def scorer(self) -> Score:
    """Returns what scores completions, see sample/score.py."""
    return make_scorer(self.model, self.mesh)

  @functools.cached_property
  def model_hash(self) -> str:
    """Returns a content hash of the model folder's config and weights."""
    digest = hashlib.sha256()
    files = [self.folder / "config.json"]
    files += sorted(self.folder.glob("*.safetensors"))
    for path in files:
      digest.update(path.name.encode())
      with open(path, "rb") as f:
        digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()


def make_decoder(
  architecture: ModelConfig, config: ExperimentConfig
) -> Decoder:
  """Makes the decoder for the config's chips, or else for the devices here.

  Raises:
    ValueError: the attention or the dtype of sampling that is asked for does
      not apply, or experts are to stay where they are and the model has none.
  """
  options, chip, experts = config.model, config.mesh.chip, config.mesh.experts
  if experts == "tokens" and not architecture.num_experts:
    raise ValueError(
      f'mesh.experts = "tokens": {options.path} has no experts; leave it out'
    )
  platform = CHIPS[chip].platform if chip else jax.default_backend()
  dtype = jnp.dtype(options.dtype)
  form, why = choose_form(options.attention, architecture, dtype, platform)
  if form == "cudnn" and jax.default_backend() != "gpu":
    # JAX looks for the library when it traces.
    form, why = "xla", "sizes alone: there is no GPU here to trace cudnn for"
  if architecture.num_experts and config.sampling.weight_dtype == "int8":
    raise ValueError(
      "sampling.weight_dtype = 'int8': most weights of this model are experts, "
      "which are not rounded; take 'auto'"
    )
  log_line(f"attention: {form} ({why})")
  return Decoder(architecture, dtype, options.remat, form, experts)


def read_architecture(name: str) -> ModelConfig:
  """Reads an architecture from a file of `configs/` or an absolute path."""
  return from_hf(shipped_folder() / "configs" / name)


def check_equal(
  configured: ModelConfig, in_folder: ModelConfig, folder: Path
) -> None:
  """Raises ValueError unless model.architecture is what the folder says."""
  a, b = dataclasses.asdict(configured), dataclasses.asdict(in_folder)
  wrong = [f"{k} {a[k]!r:.80}, not {b[k]!r:.80}" for k in a if a[k] != b[k]]
  if wrong:
    raise ValueError(
      f"model.architecture is not that of {folder}: it has {'; '.join(wrong)}"
    )
