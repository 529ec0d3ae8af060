"""Rejects values of the configuration that cannot be.

Each check raises `ConfigError` with the field's name, its value and what it
must be.
"""

import datetime
import math
import re

from bct_jax.config.chips import CHIPS
from bct_jax.config.eval_checks import check_evals, check_reversal
from bct_jax.config.fields import choose, require_valid
from bct_jax.config.mixtures import FILE, check_mix
from bct_jax.config.types import (
  ATTENTION,
  KEEP,
  NORMALIZERS,
  OPTIMIZERS,
  REASONING,
  SCHEDULES,
  SOURCES,
  TURNS,
  ArmConfig,
  ConfigError,
  ExperimentConfig,
  LoraConfig,
  OnPolicyConfig,
  OptimConfig,
  OrganismConfig,
  TemplateConfig,
  TrainConfig,
)

_POSITIVE = (
  "train.steps train.batch_size train.accum train.num_examples "
  "train.checkpoint_every optim.lr optim.eps"
).split()


def check_arm(arm: ArmConfig | OrganismConfig, where: str) -> None:
  """Rejects fields of a training run that cannot be.

  Args:
    arm: an arm, or the organism.
    where: the name of its group of fields, for messages.

  Raises:
    ConfigError: a field is impossible; the message names it.
  """
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
  if (arm.train.source == "file") != (arm.train.file is not None):
    raise ConfigError(
      f"{where}.train.file = {arm.train.file!r}, train.source = "
      f"{arm.train.source!r}: a file needs the source 'file', and that source "
      "a file"
    )
  _check_reasoning(arm.train, f"{where}.train")
  check_mix(arm.train, getattr(arm, "control", ""), f"{where}.train")
  _check_on_policy(arm.train.on_policy, f"{where}.train.on_policy")
  _check_lora(arm.lora, where)
  _check_optim(arm.optim, arm.train.steps, f"{where}.optim")


def _check_reasoning(train: TrainConfig, where: str) -> None:
  """Rejects fields about thoughts and turns that do not go together."""
  choose(train.reasoning, REASONING, f"{where}.reasoning")
  choose(train.turns, TURNS, f"{where}.turns")
  if train.reasoning in ("own", "given") and (
    (train.reasoning == "own") != (train.source == "on_policy")
  ):
    raise ConfigError(
      f"{where}.reasoning = {train.reasoning!r}, source = {train.source!r}: "
      "the organism's own thoughts need the source 'on_policy', given ones "
      "'file' or 'template'"
    )
  has_file = any(name.startswith(FILE) for name, _ in train.mix)
  if train.turns != "last" and train.source != "file" and not has_file:
    raise ConfigError(
      f"{where}.turns = {train.turns!r}: is of the dialogues of train.file, "
      f"with the source 'file', not {train.source!r}; for those of the setting "
      "'file' set setting.options.turns"
    )
  if train.thought_tokens <= 0:
    raise ConfigError(f"{where}.thought_tokens: must be positive")


def _check_on_policy(draw: OnPolicyConfig, where: str) -> None:
  """Rejects fields of `train.on_policy` that cannot be."""
  require_valid(
    draw,
    where,
    ("temperature", draw.temperature >= 0, "0 (greedy) or above"),
    ("attempts", draw.attempts > 0, "positive"),
    ("min_tokens", draw.min_tokens > 0, "positive"),
    ("max_tokens", draw.max_tokens >= draw.min_tokens, "at least min_tokens"),
    ("paraphrases", draw.paraphrases > 0, "positive"),
    ("min_accepted", 0 < draw.min_accepted <= 1, "above 0, up to 1"),
  )


def _check_optim(optim: OptimConfig, steps: int, where: str) -> None:
  """Rejects fields of the optimizer that cannot be.

  Args:
    optim: those of an arm or of the organism.
    steps: updates of that training run.
    where: the name of the group of fields, for messages.
  """
  choose(optim.optimizer, OPTIMIZERS, f"{where}.optimizer")
  choose(optim.schedule, SCHEDULES, f"{where}.schedule")
  steps_left = steps - optim.warmup_steps
  wsd = optim.schedule == "wsd"
  require_valid(
    optim,
    where,
    (
      "warmup_steps",
      0 <= steps_left <= steps,
      f"between 0 and the {steps} steps",
    ),
    (
      "decay_steps",
      0 < optim.decay_steps <= steps_left if wsd else optim.decay_steps == 0,
      f"from 1 to the {steps_left} steps after the warm-up for the schedule "
      "wsd, 0 for others",
    ),
    ("b1", 0 <= optim.b1 < 1, "from 0 to below 1"),
    ("b2", 0 <= optim.b2 < 1, "from 0 to below 1"),
    ("weight_decay", optim.weight_decay >= 0, "0 (off) or above"),
    ("clip_norm", optim.clip_norm >= 0, "0 (off) or above"),
    ("ema_decay", 0 <= optim.ema_decay < 1, "from 0 (off) to below 1"),
  )
  for pattern, factor in optim.lr_groups:
    _check_pattern(pattern, f"{where}.lr_groups")
    if factor < 0:
      raise ConfigError(
        f"{where}.lr_groups: {pattern!r} multiplies the learning rate by "
        f"{factor}: must be 0 (frozen) or above"
      )


def _check_pattern(pattern: str, where: str) -> None:
  """Raises ConfigError unless a text is a regular expression."""
  try:
    re.compile(pattern)
  except re.error as e:
    raise ConfigError(
      f"{where} = {pattern!r}: not a regular expression: {e}"
    ) from None


def _check_lora(lora: LoraConfig, where: str) -> None:
  """Rejects fields of an adapter that cannot be."""
  if lora.rank < 0:
    raise ConfigError(f"{where}.lora.rank = {lora.rank}: 0 (full) or above")
  if lora.rank and lora.alpha <= 0:
    raise ConfigError(f"{where}.lora.alpha = {lora.alpha}: must be positive")
  _check_pattern(lora.targets, f"{where}.lora.targets")


def _check_adapters(config: ExperimentConfig) -> None:
  """Rejects arms that continue the organism's adapter in another shape.

  It also rejects a seed of an adapter where no adapter begins.
  """
  organism = config.organism
  continued = organism.keeps_adapter
  for where, run in (
    ("organism", organism),
    *((f"arms.{name}", arm) for name, arm in config.arms.items()),
  ):
    begins = run is organism or not continued
    if run.train.adapter_seed is not None and not (run.lora.rank and begins):
      why = f"{where}.lora.rank = {run.lora.rank}, so it trains no adapter"
      if not begins:
        why = "organism.merge_lora = False, so arms go on with its adapter"
      raise ConfigError(
        f"{where}.train.adapter_seed = {run.train.adapter_seed}: {why}; leave "
        "it at None"
      )
  if not continued:
    return
  for name, arm in config.arms.items():
    if organism.kind == "adapter" and arm.lora.rank:
      raise ConfigError(
        f"arms.{name}.lora.rank = {arm.lora.rank}: the arm goes on training "
        "organism.adapter, which says its own rank; leave it at 0, or set "
        "organism.merge_lora=True to train other weights"
      )
    if organism.kind != "adapter" and arm.lora != organism.lora:
      raise ConfigError(
        f"arms.{name}.lora = {arm.lora}: the arm goes on training the adapter "
        f"of the organism, which is {organism.lora}; set "
        "organism.merge_lora=True to train other weights"
      )


def _check_memorised(config: ExperimentConfig) -> None:
  """Requires that the probe `memorised` asks for no more than was taught."""
  count, kind = config.organism.memorised, config.organism.kind
  if count < 0 or (count and kind != "sft"):
    raise ConfigError(
      f"organism.memorised = {count}: 0 or above, and 0 for organism.kind = "
      f"{kind!r}: facts are taught by sft"
    )
  if config.eval.probe == "memorised" and config.eval.num_probe > count:
    raise ConfigError(
      f"eval.num_probe = {config.eval.num_probe}: the probe 'memorised' asks "
      f"for facts that were taught, of which organism.memorised = {count} are"
    )


def _check_template(model: TemplateConfig) -> None:
  """Rejects fields about the chat template that cannot be."""
  day, markers = model.template_date, model.thought_markers
  try:
    good = day is None or datetime.date.fromisoformat(day).isoformat() == day
  except ValueError:
    good = False
  if not good:
    raise ConfigError(
      f"model.template_date = {day!r}: must be a day as YYYY-MM-DD"
    )
  if markers and (len(markers) != 2 or not all(m.strip() for m in markers)):
    raise ConfigError(
      f"model.thought_markers = {markers!r}: must be the text before a thought "
      "and the text behind it, neither of them blank"
    )


def check(config: ExperimentConfig) -> None:
  """Rejects a configuration with a field, or a pair of fields, that cannot be.

  Raises:
    ConfigError: a field is impossible; the message names it.
  """
  _check_adapters(config)
  choose(config.model.param_dtype, ("float32", "bfloat16"), "model.param_dtype")
  choose(config.model.dtype, ("float32", "bfloat16"), "model.dtype")
  choose(config.model.remat, ("none", "dots", "full"), "model.remat")
  choose(config.model.attention, ATTENTION, "model.attention")
  _check_template(config.model)
  if config.mesh.chip is not None:
    choose(config.mesh.chip, CHIPS, "mesh.chip")
  choose(config.mesh.experts, ("weights", "tokens"), "mesh.experts")
  memory = config.mesh.memory_gib
  if memory is not None and not 0 < memory < math.inf:
    raise ConfigError(f"mesh.memory_gib = {memory}: must be above 0")
  choose(config.keep, KEEP, "keep")
  check_arm(config.organism, "organism")
  check_reversal(config.reversal)  # before the arms that are made of it
  for name, arm in config.arms.items():
    check_arm(arm, f"arms.{name}")
  _check_memorised(config)
  check_evals(config)
