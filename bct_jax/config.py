"""The configuration as frozen dataclasses, checked before JAX starts.

Configs are written as ml_collections files (see configs/default.py, which says
what each field means). `from_dict` turns the resolved values into these types,
so that no module below main.py sees ml_collections.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from bct_jax.chips import CHIPS

OPTIMIZERS = ("adafactor", "adamw", "lion", "muon", "sgd")
SCHEDULES = ("constant", "linear", "cosine", "wsd")
NORMALIZERS = ("token", "example")
SOURCES = ("template", "on_policy")


class ConfigError(ValueError):
  """A field of the configuration is wrong; the message names it."""


@dataclasses.dataclass(frozen=True)
class ModelOptions:
  path: str
  architecture: str | None
  param_dtype: str
  dtype: str
  remat: str


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  data: int
  fsdp: int
  tensor: int
  chip: str | None


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


@dataclasses.dataclass(frozen=True)
class OnPolicyConfig:
  """How completions are drawn from the organism."""

  prompt: str
  temperature: float
  attempts: int
  min_tokens: int
  max_tokens: int
  min_accepted: float


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
  on_policy: OnPolicyConfig
  decoration: str
  seed: int
  system_prompt: str | None
  prompt: str
  paraphrases: int
  checkpoint_every: int


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """A low-rank adapter to train in place of the params; rank 0 is none."""

  rank: int
  alpha: float
  targets: str
  rslora: bool


@dataclasses.dataclass(frozen=True)
class ArmConfig:
  """One training run: the optimizer, what it trains on, and which weights."""

  train: TrainConfig
  optim: OptimConfig
  lora: LoraConfig


@dataclasses.dataclass(frozen=True)
class OrganismConfig:
  """How the initial behavior gets into the model: `native` or `sft`."""

  kind: str
  train: TrainConfig
  optim: OptimConfig
  lora: LoraConfig
  merge_lora: bool


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


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
  name: str
  model: ModelOptions
  mesh: MeshConfig
  compilation_cache: str | None
  setting: SettingConfig
  max_length: int
  organism: OrganismConfig
  arms: Mapping[str, ArmConfig]
  eval: EvalConfig
  sampling: SamplingConfig
  gate: GateConfig


def suggest(name: str, valid: typing.Iterable[str]) -> str:
  """ " (did you mean 'x'?)", or nothing when no name is near."""
  near = difflib.get_close_matches(name, list(valid), 1)
  return f" (did you mean {near[0]!r}?)" if near else ""


def choose(name: str, options: typing.Iterable[str], what: str) -> str:
  """Returns `name` if it is one of the options.

  Raises:
    ConfigError: naming what was asked for, the nearest and all options.
  """
  options = sorted(options)
  if name not in options:
    raise ConfigError(
      f"{what} = {name!r}: not one of {options}{suggest(name, options)}"
    )
  return name


def from_dict(values: Mapping[str, Any]) -> ExperimentConfig:
  """Builds and checks the configuration of an experiment.

  Each arm is a partial override of the sections `train`, `optim` and `lora`.

  Raises:
    ConfigError: a field is unknown, missing, of the wrong type or impossible.
  """
  values = dict(values)
  shared = {k: values.pop(k, {}) for k in ("train", "optim", "lora")}
  # Checked also when every arm overrides them.
  _check_arm(_build(ArmConfig, shared, "config"), "config")
  overrides = values.pop("arms", {})
  arms = {}
  for name, arm in overrides.items():
    if not name or not all(c.isalnum() or c in "._-" for c in name):
      raise ConfigError(
        f"arms.{name}: a name of letters, digits, '.', '_' and '-' is needed, "
        "it becomes a folder"
      )
    arms[name] = _merge(shared, arm, f"arms.{name}")
  values["arms"] = {}
  config = _build(ExperimentConfig, values, "config")
  config = dataclasses.replace(
    config,
    arms={
      name: _build(ArmConfig, arm, f"arms.{name}") for name, arm in arms.items()
    },
  )
  _check(config)
  return config


def _merge(base: Mapping, override: Mapping, where: str) -> dict:
  out = dict(base)
  if override.get("objective", base.get("objective")) != base.get("objective"):
    out["options"] = {}  # those of another objective
  for key, value in override.items():
    if key == "options":  # which there are is the objective's to say
      _group(value, f"{where}.{key}")
      out[key] = {**out[key], **value}
      continue
    if key not in base:
      raise ConfigError(f"{where}.{key}: unknown{suggest(key, base)}")
    nested = isinstance(value, Mapping) and isinstance(base[key], Mapping)
    out[key] = _merge(base[key], value, f"{where}.{key}") if nested else value
  return out


def _build(cls: Any, values: Any, where: str) -> Any:
  """A dataclass from a mapping, with every field checked against its type."""
  _group(values, where)
  hints = typing.get_type_hints(cls)
  for key in values:
    if key not in hints:
      raise ConfigError(f"{where}.{key}: unknown{suggest(key, hints)}")
  missing = [k for k in hints if k not in values]
  if missing:
    raise ConfigError(f"{where}.{missing[0]}: missing")
  return cls(
    **{k: _convert(hints[k], values[k], f"{where}.{k}") for k in hints}
  )


def _group(values: Any, where: str) -> None:
  if not isinstance(values, Mapping):
    raise ConfigError(f"{where}: a group of fields is needed, found {values!r}")


def _convert(hint: Any, value: Any, where: str) -> Any:
  if dataclasses.is_dataclass(hint):
    return _build(hint, value, where)
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    if value is None:
      return None
    hint = next(a for a in args if a is not type(None))
    return _convert(hint, value, where)
  if origin is tuple:
    if not isinstance(value, (tuple, list)):
      raise ConfigError(f"{where}: a tuple is needed, found {value!r}")
    if args[-1] is Ellipsis:
      args = (args[0],) * len(value)
    if len(value) != len(args):
      raise ConfigError(f"{where}: {len(args)} values are needed: {value!r}")
    return tuple(map(_convert, args, value, [where] * len(args)))
  if origin is not None:  # Mapping[str, ...]
    _group(value, where)
    return dict(value)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if type(value) is not hint:
    raise ConfigError(
      f"{where}: {hint.__name__} is needed, found "
      f"{type(value).__name__} {value!r}"
    )
  if hint is float and not math.isfinite(value):
    raise ConfigError(f"{where}: must be finite, found {value!r}")
  return value


_POSITIVE = (
  "train.steps train.batch_size train.accum train.num_examples "
  "train.checkpoint_every optim.lr optim.eps"
).split()


def _check_arm(arm: ArmConfig | OrganismConfig, where: str) -> None:
  for field in _POSITIVE:
    group, name = field.split(".")
    value = getattr(getattr(arm, group), name)
    # A learning rate of zero is the control arm in which nothing may change.
    if value < 0 or (value == 0 and field != "optim.lr"):
      raise ConfigError(f"{where}.{field} = {value!r}: must be positive")
  if arm.train.batch_size % arm.train.accum:
    raise ConfigError(
      f"{where}.train.accum = {arm.train.accum}: must divide batch_size "
      f"{arm.train.batch_size}"
    )
  if arm.train.num_examples < arm.train.batch_size:
    raise ConfigError(
      f"{where}.train.num_examples = {arm.train.num_examples}: at least one "
      f"batch of {arm.train.batch_size} is needed"
    )
  choose(arm.train.normalizer, NORMALIZERS, f"{where}.train.normalizer")
  choose(arm.train.source, SOURCES, f"{where}.train.source")
  _check_on_policy(arm.train.on_policy, f"{where}.train.on_policy")
  _check_lora(arm.lora, where)
  _check_optim(arm.optim, arm.train.steps, f"{where}.optim")


def _check_on_policy(draw: OnPolicyConfig, where: str) -> None:
  for field, good, what in (
    ("temperature", draw.temperature >= 0, "0 (greedy) or above"),
    ("attempts", draw.attempts > 0, "positive"),
    ("min_tokens", draw.min_tokens > 0, "positive"),
    ("max_tokens", draw.max_tokens >= draw.min_tokens, "at least min_tokens"),
    ("min_accepted", 0 < draw.min_accepted <= 1, "above 0, up to 1"),
  ):
    if not good:
      value = getattr(draw, field)
      raise ConfigError(f"{where}.{field} = {value!r}: must be {what}")


def _check_optim(optim: OptimConfig, steps: int, where: str) -> None:
  choose(optim.optimizer, OPTIMIZERS, f"{where}.optimizer")
  choose(optim.schedule, SCHEDULES, f"{where}.schedule")
  last = steps - optim.warmup_steps
  wsd = optim.schedule == "wsd"
  for field, good, what in (
    ("warmup_steps", 0 <= last <= steps, f"between 0 and the {steps} steps"),
    (
      "decay_steps",
      0 < optim.decay_steps <= last if wsd else optim.decay_steps == 0,
      f"from 1 to the {last} steps after the warm-up for the schedule wsd, "
      "0 for others",
    ),
    ("b1", 0 <= optim.b1 < 1, "from 0 to below 1"),
    ("b2", 0 <= optim.b2 < 1, "from 0 to below 1"),
    ("weight_decay", optim.weight_decay >= 0, "0 (off) or above"),
    ("clip_norm", optim.clip_norm >= 0, "0 (off) or above"),
  ):
    if not good:
      value = getattr(optim, field)
      raise ConfigError(f"{where}.{field} = {value!r}: must be {what}")
  for pattern, factor in optim.lr_groups:
    _check_pattern(pattern, f"{where}.lr_groups")
    if factor < 0:
      raise ConfigError(
        f"{where}.lr_groups: {pattern!r} multiplies the learning rate by "
        f"{factor}: must be 0 (frozen) or above"
      )


def _check_pattern(pattern: str, where: str) -> None:
  try:
    re.compile(pattern)
  except re.error as e:
    raise ConfigError(
      f"{where} = {pattern!r}: not a regular expression: {e}"
    ) from None


def check_sampling(sampling: SamplingConfig) -> None:
  """Raises ConfigError for values that mean nothing."""
  for field in ("max_new_tokens", "batch_size", "prefill_tokens"):
    if getattr(sampling, field) <= 0:
      raise ConfigError(f"sampling.{field}: must be positive")
  if sampling.temperature < 0:
    raise ConfigError("sampling.temperature: must be 0 (greedy) or above")
  for field, good, what in (
    ("top_k", sampling.top_k >= 0, "0 (off) or above"),
    ("top_p", 0 < sampling.top_p <= 1, "above 0, up to 1 (off)"),
    ("min_p", 0 <= sampling.min_p < 1, "from 0 (off) to below 1"),
    ("stop", all(sampling.stop), "strings that are not empty"),
    (
      "kv_cache_dtype",
      sampling.kv_cache_dtype in ("auto", "int8"),
      "auto or int8",
    ),
  ):
    if not good:
      value = getattr(sampling, field)
      raise ConfigError(f"sampling.{field} = {value!r}: must be {what}")


def _check_lora(lora: LoraConfig, where: str) -> None:
  if lora.rank < 0:
    raise ConfigError(f"{where}.lora.rank = {lora.rank}: 0 (full) or above")
  if lora.rank and lora.alpha <= 0:
    raise ConfigError(f"{where}.lora.alpha = {lora.alpha}: must be positive")
  _check_pattern(lora.targets, f"{where}.lora.targets")


def _check_adapters(config: ExperimentConfig) -> None:
  """Arms that go on training the organism's adapter must have its shape."""
  organism = config.organism
  if organism.kind != "sft" or not organism.lora.rank or organism.merge_lora:
    return
  for name, arm in config.arms.items():
    if arm.lora != organism.lora:
      raise ConfigError(
        f"arms.{name}.lora = {arm.lora}: the arm goes on training the adapter "
        f"of the organism, which is {organism.lora}; set "
        "organism.merge_lora=True to train other weights"
      )


def _check(config: ExperimentConfig) -> None:
  _check_adapters(config)
  choose(config.model.param_dtype, ("float32", "bfloat16"), "model.param_dtype")
  choose(config.model.dtype, ("float32", "bfloat16"), "model.dtype")
  choose(config.model.remat, ("none", "dots", "full"), "model.remat")
  if config.mesh.chip is not None:
    choose(config.mesh.chip, CHIPS, "mesh.chip")
  choose(config.organism.kind, ("native", "sft"), "organism.kind")
  _check_arm(config.organism, "organism")
  for name, arm in config.arms.items():
    _check_arm(arm, f"arms.{name}")
  for field in ("num_eval", "num_heldout", "num_probe"):
    if getattr(config.eval, field) <= 0:
      raise ConfigError(f"eval.{field}: must be positive")
  check_sampling(config.sampling)
  if any(s < 0 for s in config.eval.steps):
    raise ConfigError(f"eval.steps = {config.eval.steps}: must not be negative")
