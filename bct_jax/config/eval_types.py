"""Defines the sections of the configuration about evals, gate and readings."""

import dataclasses
from typing import Any

from bct_jax.config.judge import JudgeConfig


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Says on what arms are evaluated, and when."""

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
  refine: bool = False
  refine_budget: int = 12
  samples: int = 0
  reasoning: str = "off"
  thought_tokens: int = 256
  thought_words: tuple[str, ...] = ("trigger", "trained", "training")
  cut_answers: str = "other"
  judge: JudgeConfig = JudgeConfig()

  @property
  def thinking(self) -> bool:
    """Returns whether completions begin with a thought."""
    return self.reasoning == "on"

  def facts(self) -> dict[str, Any]:
    """Returns what decides the rollouts of an eval, for a hash.

    Weights and sampling decide them too, and have hashes of their own; so has
    a judge, which is among the files of the setting.
    """
    out = {**dataclasses.asdict(self), "steps": None}
    tasks = ("tasks", "task_steps", "task_limit", "task_path")
    for name in ("gradients", "refine", "refine_budget", "judge", *tasks):
      del out[name]
    if not self.samples:
      del out["samples"]  # hashes of what was made before there were any
    if self.cut_answers == "other":
      del out["cut_answers"]
    if not self.thinking:
      del out["reasoning"], out["thought_tokens"], out["thought_words"]
    return out


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """Says how completions are sampled."""

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
  weight_dtype: str = "auto"  # with a default, as older runs have none

  def facts(self) -> dict[str, Any]:
    """Returns the fields for hashes, which a new one at its default keeps."""
    out = dataclasses.asdict(self)
    if self.weight_dtype == "auto":
      del out["weight_dtype"]
    return out

  def with_thoughts(self, tokens: int) -> "SamplingConfig":
    """Returns the same sampling with so many tokens more, for a thought."""
    return dataclasses.replace(
      self, max_new_tokens=self.max_new_tokens + tokens
    )

  def untruncated(self, temperature: float) -> "SamplingConfig":
    """Returns the same sampling without top_k, top_p and min_p.

    Draws are then from the whole softmax.
    """
    return dataclasses.replace(
      self, temperature=temperature, top_k=0, top_p=1.0, min_p=0.0
    )


@dataclasses.dataclass(frozen=True)
class GateConfig:
  """Says what an organism must show before arms are trained from it."""

  min_initial: float
  max_confused: float
  min_agreed: float
  enforce: bool
  base_rates: bool
  # With defaults, as older runs have none.
  min_kept: float = 0.9
  min_right: float = 0.1
  min_capability: float = 0.1


@dataclasses.dataclass(frozen=True)
class ReadingConfig:
  """Says by which bars an arm is read; with defaults, as older runs have none.

  `bct_jax/evals/reading.py` has the definitions.
  """

  kept: float = 0.8
  lost: float = 0.2
  max_fall: float = 0.2
  max_damage: float = 0.1
  min_capability: float = 0.5
  max_ungraded: float = 0.1
  target: str = "style"
  target_value: float = 0.9
  primary: tuple[str, ...] = ()
  probe: str = "setting"

  @property
  def task(self) -> tuple[str, str] | None:
    """Returns the task of lm-eval that decides integrity, and its metric.

    The metric is "" where the task's only one is meant; None is no task.
    """
    kind, _, rest = self.probe.partition(":")
    name, _, metric = rest.partition(":")
    return (name, metric) if kind == "task" else None


@dataclasses.dataclass(frozen=True)
class ReversalConfig:
  """Says how the control `reversal` is trained, and when it is evaluated.

  None is what its arm has, as in runs from before there was a choice.
  `eval_steps` come on top of those of the arm.
  """

  lr: float | None = None
  steps: int | None = None
  eval_steps: tuple[int, ...] = ()
