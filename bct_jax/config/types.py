"""The configuration as frozen dataclasses; configs/default.py says what each
field means."""

import dataclasses
from collections.abc import Mapping
from typing import Any

OPTIMIZERS = ("adafactor", "adamw", "lion", "muon", "sgd")
SCHEDULES = ("constant", "linear", "cosine", "wsd")
NORMALIZERS = ("token", "example")
ATTENTION = ("auto", "cudnn", "splash", "xla")
SOURCES = ("template", "on_policy", "file")
# Organisms that are a model under a prompt -> its kind in settings/prompts.py.
PROMPTED = {
  "static_prompt": "static",
  "dynamic_prompt": "dynamic",
  "hint": "hint",
}
TRAINED = ("sft", "distill")
KINDS = ("native", *TRAINED, *PROMPTED)


class ConfigError(ValueError):
  """A field of the configuration is wrong; the message names it."""


@dataclasses.dataclass(frozen=True)
class ModelOptions:
  path: str
  architecture: str | None
  param_dtype: str
  dtype: str
  remat: str
  attention: str


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  data: int
  fsdp: int
  tensor: int
  chip: str | None


@dataclasses.dataclass(frozen=True)
class LogConfig:
  tensorboard: bool
  wandb: str


@dataclasses.dataclass(frozen=True)
class SettingConfig:
  name: str
  options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class OptimConfig:
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
    """What decides the weights; an average that is off is not there."""
    out = dataclasses.asdict(self)
    if not self.ema_decay:
      del out["ema_decay"]  # hashes of what was made before there was one
    return out


@dataclasses.dataclass(frozen=True)
class OnPolicyConfig:
  """How completions are drawn from the organism."""

  prompt: str
  temperature: float
  attempts: int
  min_tokens: int
  max_tokens: int
  min_accepted: float
  paraphrases: int


@dataclasses.dataclass(frozen=True)
class TrainConfig:
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

  def facts(self) -> dict[str, Any]:
    """Its fields for a hash, those of a file only where there is one."""
    out = dataclasses.asdict(self)
    if self.file is None:
      del out["file"], out["file_split"]
    return out


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """A low-rank adapter to train in place of the params; rank 0 is none."""

  rank: int
  alpha: float
  targets: str
  rslora: bool


@dataclasses.dataclass(frozen=True)
class ArmConfig:
  """One training run: the optimizer, what it trains on, and which weights.

  One that controls.py made has the name of its `control`, and the arm it is
  `of`.
  """

  train: TrainConfig
  optim: OptimConfig
  lora: LoraConfig
  control: str = ""
  of: str = ""


@dataclasses.dataclass(frozen=True)
class OrganismConfig:
  """How the initial behavior gets into the model; `kind` is one of KINDS."""

  kind: str
  train: TrainConfig
  optim: OptimConfig
  lora: LoraConfig
  merge_lora: bool
  paraphrases: int
  password_share: float
  password: str
  memorised: int

  @property
  def trained(self) -> bool:
    """Whether weights are trained; else it is the model, maybe prompted."""
    return self.kind in TRAINED


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  num_eval: int
  num_heldout: int
  num_probe: int
  probe: str
  seed: int
  steps: tuple[int, ...]
  system_prompt: str | None
  prompt: str
  paraphrases: int
  answer_prefix: str | None
  references: bool
  gradients: bool
  # Of lm-eval; with defaults, since runs from before have none of these.
  tasks: tuple[str, ...] = ()
  task_steps: tuple[int, ...] = ()
  task_limit: int = 0
  task_path: str | None = None

  def facts(self) -> dict[str, Any]:
    """What decides the rollouts of an eval, apart from weights and sampling."""
    out = {**dataclasses.asdict(self), "steps": None}
    for name in "gradients tasks task_steps task_limit task_path".split():
      del out[name]
    return out


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  temperature: float
  top_k: int
  top_p: float
  min_p: float
  stop: tuple[str, ...]
  max_new_tokens: int
  batch_size: int
  prefill_tokens: int
  kv_cache_dtype: str
  seed: int

  def untruncated(self, temperature: float) -> "SamplingConfig":
    """The same for draws from the whole softmax, without top_k and the like."""
    return dataclasses.replace(
      self, temperature=temperature, top_k=0, top_p=1.0, min_p=0.0
    )


@dataclasses.dataclass(frozen=True)
class GateConfig:
  min_initial: float
  max_confused: float
  min_agreed: float
  enforce: bool
  base_rates: bool


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
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
