"""Prints the rates of one set of weights: --mode=eval."""

import json
from pathlib import Path

import jax

from bct_jax.config import ExperimentConfig
from bct_jax.evals import evaluate
from bct_jax.experiment import rundir
from bct_jax.experiment.eval_rollouts import is_finite, sample_rows
from bct_jax.infra import processes, shared_files
from bct_jax.interop import judge
from bct_jax.runtime.weights import load_weights
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.train.step import NumericalError


def run_eval(
  config: ExperimentConfig, params: Path | None, out: Path | None
) -> None:
  """Prints the rates of one set of weights.

  The rate of decorated answers is about the decoration of the arms, if they
  share one.

  Args:
    config: of the experiment.
    params: organisms/HASH or arms/NAME of a run; None is the model itself.
    out: JSONL file for the rollouts; None saves none.
  """
  plan = rundir.make_agreed_plan(config)
  if plan.judge is not None and params is not None:
    plan.judge.open(params.parent.parent / judge.FILE)
  arms = [arm for arm in config.arms.values() if not arm.control]
  names = {arm.train.decoration for arm in arms}
  decoration = DECORATIONS[names.pop() if len(names) == 1 else "plain"]
  with jax.set_mesh(plan.runtime.mesh):
    weights = load_weights(plan.runtime, params)
    rows = sample_rows(plan, weights, "eval")
  if not is_finite(rows):
    raise NumericalError(
      f"log-probabilities are not finite; are the weights of "
      f"{params or config.model.path} whole?"
    )
  rows = evaluate.mark_decorated(rows, decoration)
  record = evaluate.summarize_rows(rows, 0)
  record.pop("step")
  if out is not None:
    shared_files.write_lines(out, rows)
  if processes.is_first():
    print(json.dumps(record, indent=1))
