"""Rejects values of the configuration that cannot be.

Each check raises `ConfigError` with the field's name, its value and what it
must be.
"""

import dataclasses
import datetime
import math
import re
from typing import Any

from bct_jax.config.chips import CHIPS
from bct_jax.config.fields import choose
from bct_jax.config.mixtures import FILE, check_mix
from bct_jax.config.types import (
  ATTENTION,
  KEEP,
  NORMALIZERS,
  OPTIMIZERS,
  REASONING,
  SCHEDULES,
  SOURCES,
  TARGETS,
  TURNS,
  ArmConfig,
  ConfigError,
  EvalConfig,
  ExperimentConfig,
  LoraConfig,
  OnPolicyConfig,
  OptimConfig,
  OrganismConfig,
  ReadingConfig,
  ReversalConfig,
  SamplingConfig,
  TemplateConfig,
  TrainConfig,
)

_POSITIVE = (
  "train.steps train.batch_size train.accum train.num_examples "
  "train.checkpoint_every optim.lr optim.eps"
).split()


def _require_valid(
  group: Any, where: str, *checks: tuple[str, bool, str]
) -> None:
  """Rejects the first value of a group of fields that cannot be.

  Args:
    group: has the fields.
    where: its name, for messages.
    checks: field, whether its value can be, and what it must be.

  Raises:
    ConfigError: a value cannot be; the message names the field.
  """
  for field, is_valid, requirement in checks:
    if not is_valid:
      value = getattr(group, field)
      raise ConfigError(f"{where}.{field} = {value!r}: must be {requirement}")


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


def _check_eval_reasoning(evals: EvalConfig) -> None:
  """Rejects fields of `eval` about thoughts that do not go together."""
  choose(evals.reasoning, ("off", "on"), "eval.reasoning")
  choose(evals.cut_answers, ("other", "scored"), "eval.cut_answers")
  if evals.thought_tokens <= 0:
    raise ConfigError("eval.thought_tokens: must be positive")
  if not all(evals.thought_words):
    raise ConfigError("eval.thought_words: must not be empty texts")
  if evals.thinking and evals.answer_prefix is not None:
    raise ConfigError(
      "eval.answer_prefix: what an answer begins with cannot be said where a "
      "thought comes first, which is eval.reasoning = 'on'"
    )


def _check_on_policy(draw: OnPolicyConfig, where: str) -> None:
  """Rejects fields of `train.on_policy` that cannot be."""
  _require_valid(
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
  _require_valid(
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


def check_sampling(sampling: SamplingConfig) -> None:
  """Rejects values of sampling that mean nothing.

  Raises:
    ConfigError: a field is impossible; the message names it.
  """
  for field in ("max_new_tokens", "batch_size", "prefill_tokens"):
    if getattr(sampling, field) <= 0:
      raise ConfigError(f"sampling.{field}: must be positive")
  if sampling.temperature < 0:
    raise ConfigError("sampling.temperature: must be 0 (greedy) or above")
  _require_valid(
    sampling,
    "sampling",
    ("top_k", sampling.top_k >= 0, "0 (off) or above"),
    ("top_p", 0 < sampling.top_p <= 1, "above 0, up to 1 (off)"),
    ("min_p", 0 <= sampling.min_p < 1, "from 0 (off) to below 1"),
    ("stop", all(sampling.stop), "strings that are not empty"),
    (
      "kv_cache_dtype",
      sampling.kv_cache_dtype in ("auto", "int8"),
      "auto or int8",
    ),
  )


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


def _check_tasks(evals: EvalConfig, bars: ReadingConfig) -> None:
  """Rejects fields of lm-eval's tasks that cannot be."""
  if bars.task is None and bars.probe != "setting":
    raise ConfigError(
      f"reading.probe = {bars.probe!r}: must be 'setting', 'task:NAME' or "
      "'task:NAME:METRIC'"
    )
  if bars.task is not None and bars.task[0] not in evals.tasks:
    raise ConfigError(
      f"reading.probe = {bars.probe!r}: {bars.task[0]!r} is not one of "
      f"eval.tasks = {evals.tasks!r}"
    )
  _require_valid(
    evals,
    "eval",
    ("tasks", len({*evals.tasks}) == len(evals.tasks), "names each once"),
    ("task_steps", all(s >= 0 for s in evals.task_steps), "not negative"),
    ("task_limit", evals.task_limit >= 0, "0 (all) or above"),
  )


def _check_reversal(reversal: ReversalConfig) -> None:
  """Rejects a reversal that cannot be."""
  if reversal.lr is not None and not reversal.lr > 0:
    raise ConfigError(f"reversal.lr = {reversal.lr}: must be above 0")
  if reversal.steps is not None and reversal.steps < 1:
    raise ConfigError(f"reversal.steps = {reversal.steps}: must be 1 or more")
  if any(step < 1 for step in reversal.eval_steps):
    raise ConfigError(
      f"reversal.eval_steps = {reversal.eval_steps}: must be 1 or more"
    )


def _check_reading(bars: ReadingConfig) -> None:
  """Rejects bars of a reading that cannot be."""
  choose(bars.target, TARGETS, "reading.target")
  is_rate = bars.target != "style" or 0 < bars.target_value <= 1
  _require_valid(
    bars,
    "reading",
    ("kept", 0.5 < bars.kept < 1, "above 0.5, below 1"),
    ("lost", 0 < bars.lost < 0.5, "above 0, below 0.5"),
    ("max_fall", 0 < bars.max_fall < 1, "above 0, below 1"),
    ("max_damage", 0 < bars.max_damage < 1, "above 0, below 1"),
    ("min_capability", 0 <= bars.min_capability <= 1, "from 0 to 1"),
    ("max_ungraded", 0 <= bars.max_ungraded <= 1, "from 0 to 1"),
    ("target_value", is_rate, "above 0, up to 1 for the target 'style'"),
  )


def _check_primary(config: ExperimentConfig) -> None:
  """Rejects a primary comparison that is not of two arms."""
  names = config.reading.primary
  for name in names:
    choose(name, config.arms, "reading.primary")
  if len(names) not in (0, 2) or len({*names}) < len(names):
    raise ConfigError(
      f"reading.primary = {names!r}: must name two arms, or none"
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
  memory = config.mesh.memory_gib
  if memory is not None and not 0 < memory < math.inf:
    raise ConfigError(f"mesh.memory_gib = {memory}: must be above 0")
  choose(config.keep, KEEP, "keep")
  check_arm(config.organism, "organism")
  _check_reversal(config.reversal)
  for name, arm in config.arms.items():
    check_arm(arm, f"arms.{name}")
  for name, value in dataclasses.asdict(config.gate).items():
    if not isinstance(value, bool) and not 0 <= value <= 1:
      raise ConfigError(f"gate.{name} = {value}: a share, must be from 0 to 1")
  _check_memorised(config)
  for field in ("num_eval", "num_heldout", "num_probe", "refine_budget"):
    if getattr(config.eval, field) <= 0:
      raise ConfigError(f"eval.{field}: must be positive")
  if config.eval.samples < 0:
    raise ConfigError(
      f"eval.samples = {config.eval.samples}: must be 0 (none) or above"
    )
  if config.eval.seed < 0:
    raise ConfigError(f"eval.seed = {config.eval.seed}: must be 0 or more")
  check_sampling(config.sampling)
  _check_reading(config.reading)
  _check_primary(config)
  if any(s < 0 for s in config.eval.steps):
    raise ConfigError(f"eval.steps = {config.eval.steps}: must not be negative")
  _check_tasks(config.eval, config.reading)
  if fault := config.eval.judge.find_fault():
    raise ConfigError(fault)
  _check_eval_reasoning(config.eval)
