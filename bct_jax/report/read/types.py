"""What the report knows about a run: plain values, read and checked."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bct_jax.evals.schema import EvalRecord, Rate


class ReportError(ValueError):
  """A run that cannot be shown; the message is one line naming the file."""


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A number with an interval that is not a share of completions."""

  value: float
  ci: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Crossing:
  """The step at which something first happened.

  Attributes:
    step: None where it never happened.
    censored_at: the last step looked at, where it never happened.
  """

  step: int | None
  censored_at: int | None


@dataclasses.dataclass(frozen=True)
class Row:
  """One completion.

  Attributes:
    split: eval, heldout or probe.
    label: of the split's own set of labels.
    decorated: None where it was not scored.
    stop: why the sampler stopped, "" where not recorded.
  """

  id: str
  split: str
  prompt: tuple[tuple[str, str], ...]  # (role, content)
  text: str
  label: str
  reason: str
  decorated: bool | None = None
  stop: str = ""
  step: int | None = None


@dataclasses.dataclass(frozen=True)
class TrainStep:
  """One line of the training log."""

  step: int
  loss: float
  grad_norm: float
  seconds: float


@dataclasses.dataclass(frozen=True)
class ArmRecord:
  """One training run from the organism.

  Attributes:
    settings: objective, lr, rank, source, decoration, seed, as far as known,
      and of a control which one; rank is None for full fine-tuning.
    verdict: "" as long as there is none.
    missing: files of an unfinished arm that are not there yet.
  """

  name: str
  finished: bool
  settings: Mapping[str, Any]
  curve: tuple[EvalRecord, ...]
  verdict: str
  why: str
  retention: Estimate | None
  transfer: Estimate | None
  transfer_step: Crossing | None
  deployment_length: Crossing | None
  returned: bool
  trained_tokens: int | None
  seconds: float | None
  metrics: tuple[TrainStep, ...]
  rollouts: Mapping[int, tuple[Row, ...]]
  mask_audit: str
  missing: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class GateRecord:
  """The check of the organism before any arm was trained.

  `base` has rates of the model before the behavior was installed, if asked for.
  """

  passed: bool
  enforced: bool
  thresholds: Mapping[str, float]
  rates: Mapping[str, Rate]
  worst: tuple[Row, ...]
  base: Mapping[str, Rate]


@dataclasses.dataclass(frozen=True)
class OrganismRecord:
  """The model that holds the initial behavior; parts not yet known empty."""

  kind: str
  hash: str
  provenance: Mapping[str, Any]
  gate: GateRecord | None
  made: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """One run directory.

  Attributes:
    finished: whether `result.json` is there.
    notes: what a reader must know before reading numbers, a line each.
    leaks: what training data shares with what is asked, a line for each run.
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
