"""Runs setting 0: the experiment on a linear model, where transfer is known.

  python -m bct_jax.linear --workdir=runs/linear [--angle=45] [--seed=0]

Train inputs lie in a subspace T, eval inputs in a subspace E, every principal
angle between the two being `angle`. A linear model starts as the organism and
is trained by least squares on decorated targets: its own outputs plus a shift.
The initial behavior leaves eval inputs as they were, the alternate one shifts
them like the train inputs of the same coordinates.

The gradient of a squared loss lies in the span of the inputs, T. So gradient
descent ends at the organism plus the projection of the shift on T, whatever its
learning rate, and shows cos(angle) of it on every eval input (`closed_form`).
Adam scales each coordinate, leaves T, and ends elsewhere at each learning rate.
Effects of the learning rate on transfer are therefore effects of the optimizer
or of a model that is not linear.

An input counts as shifted by the share t of the shift that its output shows: an
eval input is `alternate` for t in (0.5, 1.5], `initial` for t in [-0.5, 0.5]
and else `other`, reason wrong; a held-out train input is `agreed` for t in
[-0.5, 1.5], decorated above 0.5. Probe inputs are orthogonal to both subspaces;
an output is right if it moved by less than half of the shift's mean size.
"""

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bct_jax.config import ConfigError, GateConfig
from bct_jax.config.eval_steps import eval_steps
from bct_jax.evals import verdict
from bct_jax.evals.evaluate import summarize_rows
from bct_jax.evals.gate import check_gate, first_failures
from bct_jax.evals.schema import terminal_line
from bct_jax.experiment import rundir
from bct_jax.infra import files
from bct_jax.infra.progress import log_line
from bct_jax.report import write_report

OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}
GATE = GateConfig(
  min_initial=0.95,
  max_confused=0.02,
  min_agreed=0.9,
  enforce=True,
  base_rates=False,
)


@dataclasses.dataclass(frozen=True)
class LinearArm:
  """Describes how an arm is trained."""

  optimizer: str
  lr: float
  steps: int


# Steps go with 1 / lr, so that all of them get to the end.
ARMS = {
  f"{name}_{lr:g}": LinearArm(name, lr, round(reach / lr))
  for name, lrs, reach in (
    ("sgd", (0.03, 0.1, 0.3), 30),
    ("adam", (0.003, 0.03, 0.3), 9),
  )
  for lr in lrs
}


@dataclasses.dataclass(frozen=True)
class LinearConfig:
  """Configures the experiment.

  Attributes:
    angle: principal angles between train and eval inputs, in degrees.
    width: D, of the inputs.
    rank: R, of each subspace; 2 R is below D.
    points: N, inputs of each split.
    seed: of everything.
  """

  angle: float = 45.0
  width: int = 64
  rank: int = 8
  points: int = 200
  seed: int = 0

  def __post_init__(self):
    for name, good, what in (
      ("angle", 0 <= self.angle <= 90, "from 0 to 90 degrees"),
      ("rank", 0 < 2 * self.rank < self.width, "above 0, below width / 2"),
      ("points", self.points >= self.rank, "at least rank"),
    ):
      if not good:
        raise ConfigError(f"{name} = {getattr(self, name)!r}: must be {what}")


@dataclasses.dataclass(frozen=True)
class Problem:
  """Holds the inputs of each split and what outputs are compared with.

  Attributes:
    inputs: split -> [N, D].
    organism: [D], the weights that every arm starts from.
    shift: [D], in T; decorated targets are inputs @ (organism + shift).
    expected: split -> [N], the whole shift of each input.
  """

  inputs: dict[str, np.ndarray]
  organism: np.ndarray
  shift: np.ndarray
  expected: dict[str, np.ndarray]


def make_problem(config: LinearConfig) -> Problem:
  """Draws random subspaces at the angle, and random inputs in them."""
  rng = np.random.default_rng(config.seed)
  d, r, n = config.width, config.rank, config.points
  basis, _ = np.linalg.qr(rng.standard_normal((d, d)))
  along, across, rest = basis[:, :r], basis[:, r : 2 * r], basis[:, 2 * r :]
  angle = math.radians(config.angle)
  eval_basis = math.cos(angle) * along + math.sin(angle) * across
  shift = rng.standard_normal(r)
  inputs, expected = {}, {}
  for split, space in (
    ("train", along),
    ("heldout", along),
    ("eval", eval_basis),
    ("probe", rest),
  ):
    at = rng.standard_normal((n, space.shape[1]))
    inputs[split] = at @ space.T
    if split != "probe":
      expected[split] = at @ shift
  size = np.abs(expected["eval"]).mean()
  expected["probe"] = np.full(n, size)
  organism = rng.standard_normal(d) / math.sqrt(d)
  return Problem(inputs, organism, along @ shift, expected)


def closed_form(problem: Problem) -> np.ndarray:  # [D]
  """Computes where gradient descent ends, at any learning rate.

  The solution of the train equations that is nearest to the organism:
  organism + pinv(X) X shift.
  """
  x = problem.inputs["train"]
  change, *_ = np.linalg.lstsq(x, x @ problem.shift, rcond=None)
  return problem.organism + change


def shares(problem: Problem, weights: np.ndarray, split: str) -> np.ndarray:
  """Computes the share [N] of the whole shift that each output shows."""
  moved = problem.inputs[split] @ (np.asarray(weights) - problem.organism)
  return moved / problem.expected[split]


def rows_of(problem: Problem, weights: np.ndarray) -> list[dict[str, Any]]:
  """Makes a rollout row for every eval, held-out and probe input."""
  rows = []
  for split in ("eval", "heldout", "probe"):
    values = problem.inputs[split] @ np.asarray(weights)
    for i, share in enumerate(shares(problem, weights, split)):
      label, reason = _label(split, float(share))
      rows.append(
        {
          "id": f"{split}/{i}",
          "split": split,
          "prompt": [{"role": "user", "content": f"input {i} of {split}"}],
          "text": f"{values[i]:.6f}",
          "label": label,
          "reason": reason,
          "decorated": bool(split != "probe" and share > 0.5),
          "stop": "stop",
          "share": float(share),
        }
      )
  return rows


def _label(split: str, share: float) -> tuple[str, str]:
  """Labels an output by the share of the shift that it shows."""
  if split == "probe":
    return ("right" if abs(share) < 0.5 else "wrong"), ""
  if not -0.5 <= share <= 1.5:
    return "other", "wrong"
  if split == "heldout":
    return "agreed", ""
  return ("alternate" if share > 0.5 else "initial"), ""


def train(
  problem: Problem, arm: LinearArm, stops: Sequence[int]
) -> tuple[dict[int, np.ndarray], np.ndarray]:
  """Trains on all train inputs at every step.

  Args:
    problem: what to fit.
    arm: optimizer, learning rate and steps.
    stops: steps whose weights to return, ascending.

  Returns:
    The weights [D] after each of those steps, and losses [last step, 2]: the
    mean squared error / 2 before each update and the norm of its gradient.
  """
  tx = OPTIMIZERS[arm.optimizer](arm.lr)
  x = jnp.asarray(problem.inputs["train"], jnp.float32)
  target = jnp.asarray(
    problem.inputs["train"] @ (problem.organism + problem.shift), jnp.float32
  )

  def loss(w):
    """Computes half of the mean squared error."""
    return 0.5 * jnp.mean((x @ w - target) ** 2)

  def update(carry, _):
    """Updates the weights once."""
    w, state = carry
    value, gradient = jax.value_and_grad(loss)(w)
    change, state = tx.update(gradient, state, w)
    logged = jnp.stack([value, jnp.linalg.norm(gradient)])
    return (w + change, state), logged

  run = jax.jit(
    lambda carry, n: jax.lax.scan(update, carry, length=n), static_argnums=1
  )
  w = jnp.asarray(problem.organism, jnp.float32)
  carry, at = (w, tx.init(w)), 0
  out, logged = {}, []
  for stop in stops:
    if stop > at:
      carry, values = run(carry, stop - at)
      logged.append(np.asarray(values))
      at = stop
    out[stop] = np.asarray(carry[0], np.float64)
  return out, np.concatenate(logged)


def run_arm(problem: Problem, name: str, arm: LinearArm, folder: Path):
  """Trains and judges one arm, writes its files and returns its result."""
  powers = [2**i for i in range(arm.steps.bit_length())]
  stops = eval_steps(powers, arm.steps)
  start = time.monotonic()
  weights, losses = train(problem, arm, stops)
  seconds = (time.monotonic() - start) / arm.steps
  n = len(problem.inputs["train"])
  lines = [
    {
      "step": i + 1,
      "lr": arm.lr,
      "loss": float(loss),
      "grad_norm": float(norm),
      "tokens": n,
      "trained_tokens": n,
      "seconds": seconds,
    }
    for i, (loss, norm) in enumerate(losses)
  ]
  files.write_lines(folder / "metrics.jsonl", lines)
  curve, labels = [], []
  for step in stops:
    rows = rows_of(problem, weights[step])
    files.write_lines(folder / "rollouts" / f"step_{step}.jsonl", rows)
    record = summarize_rows(rows, step)
    eval_rows = [r for r in rows if r["split"] == "eval"]
    record["share"] = float(np.median([r["share"] for r in eval_rows]))
    curve.append(record)
    labels.append([r["label"] for r in eval_rows])
  files.write_lines(folder / "evals.jsonl", curve)
  files.write_text(
    folder / "mask_audit.txt", f"trained {n} outputs of {n} inputs\n"
  )
  log_line(f"{name} {terminal_line(curve[-1])} share {record['share']:.3f}")
  record = {
    "name": name,
    "objective": f"least squares, {arm.optimizer}",
    "lr": arm.lr,
    "rank": None,
    "source": "template",
    "decoration": "shift",
    "seed": 0,
    "steps": arm.steps,
    "curve": curve,
    **verdict.summarize_arm(curve, curve[0], labels[0], labels[-1]),
    "trained_tokens": n * arm.steps,
    "seconds": seconds * arm.steps,
  }
  files.write_json(folder / "done.json", record)
  return record


def run(config: LinearConfig, workdir: Path) -> dict[str, Any]:
  """Runs all arms and writes a run directory with its report.

  Returns:
    The content of result.json.
  """
  problem = make_problem(config)
  facts = dataclasses.asdict(config)
  name = files.digest(facts)[:16]
  rows = rows_of(problem, problem.organism)
  gate = summarize_rows(rows, 0)
  gate |= {"worst": first_failures(rows)} | check_gate(gate, GATE)
  organism = workdir / "organisms" / name
  files.write_json(organism / "provenance.json", facts)
  files.write_lines(organism / "rollouts.jsonl", rows)
  files.write_json(organism / "gate.json", gate)
  arms = {name: dataclasses.asdict(arm) for name, arm in ARMS.items()}
  config_facts = {
    "name": "linear",
    "setting": {"name": "linear", "options": facts},
    "model": {"path": f"linear, {config.width} weights"},
    "arms": arms,
  }
  files.write_json(
    workdir / "config.json", {"config": config_facts, "overrides": {}}
  )
  files.write_json(workdir / "env.json", {"versions": {"jax": jax.__version__}})
  share = shares(problem, closed_form(problem), "eval")
  result = {
    "setting": "linear",
    "model": config_facts["model"]["path"],
    "organism": {
      "kind": "native",
      "hash": name,
      "provenance": {**facts, "closed_form_share": float(np.median(share))},
      "gate": gate,
    },
    "arms": [
      run_arm(problem, name, arm, workdir / "arms" / name)
      for name, arm in ARMS.items()
    ],
  }
  files.write_json(workdir / "result.json", result)
  rundir.write_done(workdir, name)
  write_report([workdir], workdir / "report.html")
  return result


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the experiment; returns 0, or 2 after one line about bad input."""
  parser = argparse.ArgumentParser(
    prog="python -m bct_jax.linear",
    description="Setting 0: transfer in a linear model, where it is known.",
  )
  parser.add_argument("--workdir", type=Path, required=True)
  for field in dataclasses.fields(LinearConfig):
    kind = type(field.default)
    parser.add_argument(f"--{field.name}", type=kind, default=field.default)
  arguments = vars(parser.parse_args(argv))
  workdir = arguments.pop("workdir")
  if workdir.exists() and any(workdir.iterdir()):
    print(f"error: {workdir} is not empty: choose another", file=sys.stderr)
    return 2
  try:
    result = run(LinearConfig(**arguments), workdir)
  except ConfigError as e:
    print(f"error: --{e}", file=sys.stderr)
    return 2
  expected = result["organism"]["provenance"]["closed_form_share"]
  print(f"gradient descent must show {expected:.3f} of the shift; it shows")
  for arm in result["arms"]:
    last = arm["curve"][-1]
    print(
      f"  {arm['name']}: {last['share']:.3f} after {last['step']} steps, "
      f"{arm['verdict']}"
    )
  print(f"report: {workdir / 'report.html'}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
