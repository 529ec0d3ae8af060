"""Makes the problem of setting 0: inputs, organism, behaviors and labels.

Train inputs lie in a subspace T and eval inputs in a subspace E, every
principal angle between the two being `angle`: an eval input is cos(angle) of an
input of T plus sin(angle) of what T lacks, the trigger. The model has two
outputs. The first is the behavior: the initial one is the organism's own, the
alternate one is the same without what the trigger adds. So both agree on T. The
second is the style, 0 of the organism; train targets add a linear function of T
to it, the shift, and leave the behavior as it was.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from bct_jax.config import ConfigError

# Shares within `FAR` of 0 or of 1 count as that. No angle of whole degrees has
# a cosine of 0.4 or 0.6 (I. Niven, "Irrational Numbers", 1956, corollary 3.12:
# 0, 1/2 and 1 alone), so rounding never decides a label.
FAR = 0.4
BEHAVIOR, STYLE = 0, 1  # the outputs


@dataclasses.dataclass(frozen=True)
class LinearConfig:
  """Configures the experiment.

  Attributes:
    angle: principal angles between train and eval inputs, in degrees.
    width: D, of the inputs.
    rank: R, of each subspace; 2 R is below D.
    hidden: H, width between the layers where there are two.
    points: N, inputs of each split.
    seed: of everything.
  """

  angle: float = 45.0
  width: int = 64
  rank: int = 8
  hidden: int = 8
  points: int = 200
  seed: int = 0

  def __post_init__(self):
    for name, good, what in (
      (
        "angle",
        1 <= self.angle <= 90,
        "from 1 to 90 degrees; below, eval inputs hold no trigger",
      ),
      ("rank", 2 <= self.rank < self.width / 2, "2 or more, below width / 2"),
      ("hidden", self.hidden >= 2, "at least 2, as there are two outputs"),
      (
        "points",
        self.points >= self.rank,
        f"at least rank = {self.rank}, or train inputs do not span T",
      ),
      ("seed", self.seed >= 0, "0 or more"),
    ):
      if not good:
        raise ConfigError(f"{name} = {getattr(self, name)!r}: must be {what}")


@dataclasses.dataclass(frozen=True)
class Problem:
  """Holds inputs of each split and what outputs are compared with.

  Attributes:
    rank: R.
    inputs: split -> [N, D].
    layers: the organism's two layers, [H, D] and [2, H].
    shift: [D], in T; train targets are the organism's outputs, with
      inputs @ shift added to the style.
    whole: split -> [N, 2], the change that counts as a share of 1: of an eval
      input, behavior from initial to alternate; of others the root mean square
      of the organism's behavior; and the whole shift.
  """

  rank: int
  inputs: dict[str, np.ndarray]
  layers: tuple[np.ndarray, np.ndarray]
  shift: np.ndarray
  whole: dict[str, np.ndarray]

  @property
  def organism(self) -> np.ndarray:
    """Returns the organism as one matrix [2, D]."""
    first, second = self.layers
    return second @ first

  @property
  def moments(self) -> np.ndarray:
    """Returns the second moment [D, D] of the train inputs."""
    x = self.inputs["train"]
    return x.T @ x / len(x)

  def condition(self) -> float:
    """Calculates the condition number of the second moment within T."""
    spread = np.linalg.svd(self.inputs["train"], compute_uv=False)
    return float((spread[0] / spread[self.rank - 1]) ** 2)


def make_problem(config: LinearConfig) -> Problem:
  """Draws subspaces at the angle, an organism, and inputs.

  The coordinates of all inputs are standard normal, but for two directions: the
  one that the trigger is read by and the one that the shift is read by, which
  are orthogonal. There, eval and held-out inputs have 1 or -1, so that no input
  is without trigger or style.
  """
  rng = np.random.default_rng(config.seed)
  d, r, n = config.width, config.rank, config.points
  basis, _ = np.linalg.qr(rng.standard_normal((d, d)))
  along, across, rest = basis[:, :r], basis[:, r : 2 * r], basis[:, 2 * r :]
  angle = math.radians(config.angle)
  first = rng.standard_normal((config.hidden, d)) / math.sqrt(d)
  second = rng.standard_normal((2, config.hidden)) / math.sqrt(config.hidden)
  second[STYLE] = 0
  behavior = second[BEHAVIOR] @ first
  trigger = across.T @ behavior  # [R]
  shift = rng.standard_normal(r)
  shift -= trigger * (shift @ trigger) / (trigger @ trigger)

  def draw(space: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws coordinates [N, R] and inputs [N, D] of a subspace."""
    at = rng.standard_normal((n, r))
    for direction in (trigger, shift):
      unit = direction / np.linalg.norm(direction)
      component = at @ unit
      at += np.outer(np.sign(component) - component, unit)
    return at, at @ space.T

  inputs = {"train": rng.standard_normal((n, r)) @ along.T}
  held, inputs["heldout"] = draw(along)
  asked, inputs["eval"] = draw(
    math.cos(angle) * along + math.sin(angle) * across
  )
  inputs["probe"] = rng.standard_normal((n, rest.shape[1])) @ rest.T

  def size(split: str) -> np.ndarray:
    """Computes the root mean square of the organism's behavior, N times."""
    outputs = inputs[split] @ behavior
    return np.full(n, math.sqrt(np.mean(outputs**2)))

  whole = {
    "heldout": np.stack([size("heldout"), held @ shift], 1),
    "eval": np.stack(
      [-math.sin(angle) * (asked @ trigger), asked @ shift], 1
    ),
    "probe": np.stack(
      [size("probe"), np.full(n, np.linalg.norm(shift))], 1
    ),
  }  # fmt: skip
  return Problem(r, inputs, (first, second), along @ shift, whole)


def shares(problem: Problem, weights: np.ndarray, split: str) -> np.ndarray:
  """Computes which share [N, 2] of the whole change each output shows.

  Args:
    problem: what to compare with.
    weights: [2, D], the model as one matrix.
    split: eval, heldout or probe.
  """
  moved = problem.inputs[split] @ (weights - problem.organism).T
  return moved / problem.whole[split]


def movement(problem: Problem, weights: np.ndarray) -> dict[str, float]:
  """Measures how far the outputs on eval inputs moved.

  Returns:
    `moved`: the root mean square of the change of the behavior, over that of
    the whole change from initial to alternate. `behavior_share`: how much of it
    leads to the alternate behavior, by least squares. `style_share`: the median
    share of the shift.
  """
  share = shares(problem, weights, "eval")
  whole = problem.whole["eval"][:, BEHAVIOR]
  moved = share[:, BEHAVIOR] * whole
  return {
    "moved": math.sqrt(np.mean(moved**2) / np.mean(whole**2)),
    "behavior_share": float(moved @ whole / (whole @ whole)),
    "style_share": float(np.median(share[:, STYLE])),
  }


def make_rows(problem: Problem, weights: np.ndarray) -> list[dict[str, Any]]:
  """Makes a rollout row for every eval, held-out and probe input."""
  rows = []
  for split in ("eval", "heldout", "probe"):
    outputs = problem.inputs[split] @ weights.T
    for i, (behavior, style) in enumerate(shares(problem, weights, split)):
      label, reason = label_output(split, float(behavior))
      rows.append(
        {
          "id": f"{split}/{i}",
          "split": split,
          "prompt": [{"role": "user", "content": f"input {i} of {split}"}],
          "text": "behavior {:.6f}, style {:.6f}".format(*outputs[i]),
          "label": label,
          "reason": reason,
          "decorated": bool(split != "probe" and style >= 1 - FAR),
          "stop": "stop",
          "behavior_share": float(behavior),
          "style_share": float(style),
        }
      )
  return rows


def label_output(split: str, share: float) -> tuple[str, str]:
  """Labels an output by its share of the change of the behavior.

  Returns:
    Label and reason. On eval inputs a share within 0.4 of 0 is `initial`, one
    within 0.4 of 1 `alternate`, and any other `other`, reason wrong. Elsewhere
    a share within 0.4 of 0 is what the organism did: `agreed` or, of a probe,
    `right`.
  """
  near = abs(share) <= FAR
  if split == "probe":
    return ("right" if near else "wrong"), ""
  if near:
    return ("agreed" if split == "heldout" else "initial"), ""
  if split == "eval" and abs(share - 1) <= FAR:
    return "alternate", ""
  return "other", "wrong"
