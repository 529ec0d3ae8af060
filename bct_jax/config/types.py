"""Defines the configuration as frozen dataclasses.

The comments of `configs/default.py` say what each field means.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bct_jax.config.chips import CHIPS
from bct_jax.config.eval_types import (
  EvalConfig,
  GateConfig,
  ReadingConfig,
  ReversalConfig,
  SamplingConfig,
)

OPTIMIZERS = ("adafactor", "adamw", "lion", "muon", "sgd")
SCHEDULES = ("constant", "linear", "cosine", "wsd")
NORMALIZERS = ("token", "example")
TARGETS = ("style", "reward", "loss")
ATTENTION = ("auto", "cudnn", "splash", "xla")
SOURCES = ("template", "on_policy", "file")
REASONING = ("none", "empty", "own", "given")
TURNS = ("last", "all")
KEEP = ("all", "weights", "results")
# Organisms that are a model under a prompt -> its kind in settings/prompts.py.
PROMPTED = {
  "static_prompt": "static",
  "dynamic_prompt": "dynamic",
  "hint": "hint",
}
TRAINED = ("sft", "distill", "documents")
KINDS = ("native", "adapter", *TRAINED, *PROMPTED)


class ConfigError(ValueError):
  """Is raised when a field of the configuration is wrong.

  The message names the field.
  """


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemplateConfig:
  """Says how messages are rendered as text; all fields have defaults."""

  chat_template: str | None = None
  template_options: Mapping[str, Any] = dataclasses.field(
    default_factory=dict, hash=False
  )
  template_date: str | None = None
  system_in_user: bool = False
  thought_markers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ModelOptions(TemplateConfig):
  """Says which model is loaded, and how it computes."""

  path: str
  architecture: str | None
  param_dtype: str
  dtype: str
  remat: str
  attention: str


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Says how many devices each axis of the mesh has, which, and what moves."""

  data: int
  fsdp: int
  tensor: int
  chip: str | None
  memory_gib: float | None = None
  experts: str = "weights"

  @property
  def memory(self) -> int | None:
    """Returns the bytes of a device; None where the config does not say."""
    if self.memory_gib is not None:
      return int(self.memory_gib * 2**30)
    return CHIPS[self.chip].memory if self.chip else None


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """Says where logged values go besides the run directory."""

  tensorboard: bool
  wandb: str


@dataclasses.dataclass(frozen=True)
class SettingConfig:
  """Names a setting of `bct_jax/settings` with its options."""

  name: str
  options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """Says how gradients become updates."""

  optimizer: str
  lr: float
  lr_groups: tuple[tuple[str, float], ...]
  schedule: str
  warmup_steps: int
  decay_steps: int
  b1: float
  b2: float
  eps: float
  weight_decay: float
  clip_norm: float
  ema_decay: float

  def facts(self) -> dict[str, Any]:
    """Returns what decides the weights, for a hash.

    An average that is off is left out: hashes from before there was one stay.
    """
    out = dataclasses.asdict(self)
    if not self.ema_decay:
      del out["ema_decay"]  # hashes of what was made before there was one
    return out


@dataclasses.dataclass(frozen=True)
class OnPolicyConfig:
  """Says how completions are drawn from the organism."""

  prompt: str
  temperature: float
  attempts: int
  min_tokens: int
  max_tokens: int
  min_accepted: float
  paraphrases: int


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Says what one training run trains on, and for how long."""

  objective: str
  options: Mapping[str, Any]
  normalizer: str
  steps: int
  batch_size: int
  pack: bool
  accum: int
  num_examples: int
  source: str
  file: str | None
  file_split: str
  on_policy: OnPolicyConfig
  decoration: str
  seed: int
  system_prompt: str | None
  prompt: str
  paraphrases: int
  checkpoint_every: int
  # With a default, since runs from before have none.
  adapter_seed: int | None = None
  # With defaults, since runs from before have none of these.
  reasoning: str = "none"
  thought_tokens: int = 256
  turns: str = "last"
  mix: tuple[tuple[str, float], ...] = ()

  def facts(self) -> dict[str, Any]:
    """Returns the fields for a hash.

    Those of a file, a mixture, and the adapter's own seed, are among them only
    where there is one.
    """
    out = dataclasses.asdict(self)
    if self.file is None:
      del out["file"]
    if self.file is None and not self.mix:
      del out["file_split"]
    if not self.mix:
      del out["mix"]
    if self.adapter_seed is None:
      del out["adapter_seed"]
    if self.reasoning == "none":
      del out["reasoning"]
    if self.reasoning != "own":
      del out["thought_tokens"]
    if self.turns == "last":
      del out["turns"]
    return out

  @property
  def has_style(self) -> bool:
    """Returns whether completions are trained on in a style."""
    return self.decoration != "plain"

  @property
  def seed_of_adapter(self) -> int:
    """Returns the seed of a new adapter."""
    return self.seed if self.adapter_seed is None else self.adapter_seed


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Describes a low-rank adapter to train in place of the params.

  Rank 0 means that there is none.
  """

  rank: int
  alpha: float
  targets: str
  rslora: bool
  # With a default, since runs from before have none.
  split_rank: bool = False

  def facts(self) -> dict[str, Any]:
    """Returns the fields for a hash; `split_rank` is among them where set."""
    out = dataclasses.asdict(self)
    if not self.split_rank:
      del out["split_rank"]
    return out


@dataclasses.dataclass(frozen=True)
class ArmConfig:
  """Describes one training run: data, optimizer, and which weights it trains.

  An arm of `controls.py` names its `control`, and the arm that it is a control
  `of`.
  """

  train: TrainConfig
  optim: OptimConfig
  lora: LoraConfig
  control: str = ""
  of: str = ""


@dataclasses.dataclass(frozen=True)
class OrganismConfig:
  """Says how the initial behavior gets into the model.

  `kind` is one of KINDS.
  """

  kind: str
  train: TrainConfig
  optim: OptimConfig
  lora: LoraConfig
  merge_lora: bool
  paraphrases: int
  password_share: float
  password: str
  memorised: int
  # With a default, since runs from before have none.
  from_run: str | None = None
  adapter: str | None = None

  @property
  def has_weights(self) -> bool:
    """Returns whether the organism has other weights than the model."""
    return self.trained or self.kind == "adapter"

  @property
  def keeps_adapter(self) -> bool:
    """Returns whether arms begin with an adapter and go on training it."""
    has_adapter = self.kind == "adapter" or (self.trained and self.lora.rank)
    return bool(has_adapter) and not self.merge_lora

  @property
  def trained(self) -> bool:
    """Returns whether weights are trained to show the behavior.

    Otherwise the organism is the model itself, maybe under a prompt.
    """
    return self.kind in TRAINED


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
  """Holds the whole configuration of an experiment."""

  name: str
  model: ModelOptions
  mesh: MeshConfig
  compilation_cache: str | None
  log: LogConfig
  setting: SettingConfig
  max_length: int
  organism: OrganismConfig
  arms: Mapping[str, ArmConfig]
  controls: tuple[str, ...]
  control_style: str
  eval: EvalConfig
  sampling: SamplingConfig
  gate: GateConfig
  reading: ReadingConfig = ReadingConfig()
  reversal: ReversalConfig = ReversalConfig()
  keep: str = "all"

  def eval_steps(self, arm: ArmConfig) -> tuple[int, ...]:
    """Returns the steps that the config lists for an arm's evals."""
    more = self.reversal.eval_steps if arm.control == "reversal" else ()
    return (*self.eval.steps, *more)

  @property
  def measures_base(self) -> bool:
    """Returns whether the gate evaluates the model before the install, too.

    Nothing was done to a native organism: it is that model.
    """
    return self.gate.base_rates and self.organism.kind != "native"

  @property
  def eval_sampling(self) -> SamplingConfig:
    """Returns how evals sample: with room for a thought if they have one."""
    tokens = self.eval.thought_tokens if self.eval.thinking else 0
    return self.sampling.with_thoughts(tokens)
