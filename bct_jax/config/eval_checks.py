"""Rejects values of the sections about evals, gate and readings."""

import dataclasses

from bct_jax.config.eval_types import (
  EvalConfig,
  ReadingConfig,
  ReversalConfig,
  SamplingConfig,
)
from bct_jax.config.fields import choose, require_valid
from bct_jax.config.types import (
  TARGETS,
  ConfigError,
  ExperimentConfig,
)


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
  require_valid(
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
    (
      "weight_dtype",
      sampling.weight_dtype in ("auto", "int8"),
      "auto or int8",
    ),
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
  require_valid(
    evals,
    "eval",
    ("tasks", len({*evals.tasks}) == len(evals.tasks), "names each once"),
    ("task_steps", all(s >= 0 for s in evals.task_steps), "not negative"),
    ("task_limit", evals.task_limit >= 0, "0 (all) or above"),
  )


def check_reversal(reversal: ReversalConfig) -> None:
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
  require_valid(
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


def check_evals(config: ExperimentConfig) -> None:
  """Rejects values about evals, gate and readings that cannot be.

  Raises:
    ConfigError: a field is impossible; the message names it.
  """
  for name, value in dataclasses.asdict(config.gate).items():
    if not isinstance(value, bool) and not 0 <= value <= 1:
      raise ConfigError(f"gate.{name} = {value}: a share, must be from 0 to 1")
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
