"""Declares what the report knows about a run: plain values, all checked."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bct_jax.config import CONTROLS
from bct_jax.evals import crossings
from bct_jax.evals import reading as readings
from bct_jax.evals.calibration import Errors, Share
from bct_jax.evals.control_check import MISSED, ControlCheck, check_control
from bct_jax.evals.schema import EvalRecord, Rate


class ReportError(ValueError):
  """Is raised for a run that cannot be shown, with one line naming the file."""


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Holds a number with an interval that is not a share of completions."""

  value: float
  ci: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Crossing:
  """Holds the step at which an event first happened.

  Attributes:
    step: None where the event never happened.
    censored_at: the last step looked at, where the event never happened.
  """

  step: int | None
  censored_at: int | None


@dataclasses.dataclass(frozen=True)
class Row:
  """Holds one completion.

  Attributes:
    id: of the prompt.
    split: eval, heldout or probe.
    prompt: (role, content) of each message.
    label: of the split's own set of labels.
    decorated: None where it was not scored.
    stop: why the sampler stopped, "" where not recorded.
    right: whether the task is done right, None where that was not scored.
    step: of the eval, None for a completion of the gate.
  """

  id: str
  split: str
  prompt: tuple[tuple[str, str], ...]
  text: str
  label: str
  reason: str
  decorated: bool | None = None
  stop: str = ""
  step: int | None = None
  right: bool | None = None


@dataclasses.dataclass(frozen=True)
class TrainStep:
  """Holds one line of the training log."""

  step: int
  loss: float
  grad_norm: float
  seconds: float


@dataclasses.dataclass(frozen=True)
class ArmRecord:
  """Holds one training run from the organism.

  Attributes:
    settings: objective, lr, rank, source, decoration, seed, as far as known,
      and `control`, where the arm is one; rank is None for full fine-tuning.
    curve: its evals, ascending in steps.
    reading: None as long as there is none, and in a run of schema 1.
    verdict: the word of schema 1, which is shown where there is no reading.
    style_step, loss_step: those of the reading; else as the curve has them, for
      the style at 0.9. None without a curve.
    metrics: the training log, ascending in steps.
    rollouts: step -> the completions of its eval.
    missing_files: those of an unfinished arm that are not there yet.
  """

  name: str
  finished: bool
  settings: Mapping[str, Any]
  curve: tuple[EvalRecord, ...]
  reading: readings.Reading | None
  verdict: str
  why: str
  retention: Estimate | None
  transfer: Estimate | None
  style_step: crossings.Crossing | None
  loss_step: crossings.Crossing | None
  deployment_length: Crossing | None
  returned: bool
  trained_tokens: int | None
  seconds: float | None
  metrics: tuple[TrainStep, ...]
  rollouts: Mapping[int, tuple[Row, ...]]
  mask_audit: str
  missing_files: tuple[str, ...] = ()

  @property
  def check(self) -> ControlCheck | None:
    """Compares a control with what is expected; None of all other arms."""
    control, read = self.settings.get("control"), self.reading
    if control not in CONTROLS or read is None:
      return None
    return check_control(control, read.behavior, read.integrity, read.progress)

  @property
  def behavior(self) -> str:
    """Returns the first word of the reading, or the verdict of schema 1."""
    return self.reading.behavior if self.reading else self.verdict

  @property
  def words(self) -> str:
    """Returns what a table shows of the arm: "kept, intact", "unfinished"."""
    if self.reading is not None:
      missed = self.check is not None and self.check.status == "missed"
      return self.reading.words + (f", {MISSED}" if missed else "")
    return self.verdict or ("no reading" if self.finished else "unfinished")


@dataclasses.dataclass(frozen=True)
class GateRecord:
  """Holds the check of the organism before any arm was trained.

  Attributes:
    thresholds: rate -> the bar that it had to reach.
    rates: of the organism.
    worst: completions that speak against the organism.
    base: rates of the model before the behavior was installed; empty unless the
      run measured them.
  """

  passed: bool
  enforced: bool
  thresholds: Mapping[str, float]
  rates: Mapping[str, Rate]
  worst: tuple[Row, ...]
  base: Mapping[str, Rate]


@dataclasses.dataclass(frozen=True)
class OrganismRecord:
  """Describes the model that holds the initial behavior.

  Attributes:
    kind, hash: empty as long as they are not known.
    provenance: what the organism was made from.
    install: content of made.json: how the organism was made.
  """

  kind: str
  hash: str
  provenance: Mapping[str, Any]
  gate: GateRecord | None
  install: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class CalibrationRecord:
  """Holds how far the labels of a run agree with those of a person.

  Attributes:
    agreement: by split: answers, share with the same label, and Cohen's kappa
      with its interval, None where it is not defined.
    errors: of the scorer, by label.
  """

  agreement: Mapping[
    str, tuple[int, Share, float | None, tuple[float, float] | None]
  ]
  errors: Mapping[str, Errors]


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """Holds what a run directory says.

  Attributes:
    finished: whether `result.json` is there.
    notes: what a reader must know before reading numbers, a line each.
    damage: those of the notes that are about lost and damaged files.
    leaks: what training data shares with the prompts of evals, a line for each
      training run.
    judge: that gave the labels; empty where none did.
    calibration: None where there was none.
  """

  path: Path
  finished: bool
  setting: str
  model: str
  organism: OrganismRecord
  arms: tuple[ArmRecord, ...]
  config: Mapping[str, Any]
  overrides: Mapping[str, Any]
  env: Mapping[str, Any]
  notes: tuple[str, ...]
  leaks: tuple[str, ...] = ()
  judge: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  calibration: CalibrationRecord | None = None
  damage: tuple[str, ...] = ()
