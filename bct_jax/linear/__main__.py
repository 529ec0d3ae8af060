"""Runs setting 0: the experiment on linear models, where much is known.

  python -m bct_jax.linear --workdir=runs/linear [--angle=45] [--seed=0]

`problem.py` says what is trained and labelled, `training.py` what theory says.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from bct_jax.config import ConfigError, GateConfig, ReadingConfig
from bct_jax.config.eval_steps import eval_steps
from bct_jax.evals import outcome
from bct_jax.evals.crossings import mean_losses
from bct_jax.evals.evaluate import summarize_rows
from bct_jax.evals.gate import check_gate, first_failures
from bct_jax.evals.reading import read_arm, words_of
from bct_jax.evals.schema import terminal_line
from bct_jax.infra import files
from bct_jax.infra.done_file import write_done
from bct_jax.infra.progress import log_line
from bct_jax.linear.figure import draw_movement
from bct_jax.linear.problem import (
  STYLE,
  LinearConfig,
  Problem,
  make_problem,
  make_rows,
  movement,
)
from bct_jax.linear.training import ARMS, LinearArm, predict_style, train
from bct_jax.report import write_report

GATE = GateConfig(
  min_initial=0.95,
  max_confused=0.02,
  min_agreed=0.9,
  enforce=True,
  base_rates=False,
)


def run_arm(problem: Problem, name: str, arm: LinearArm, folder: Path):
  """Trains and reads one arm, writes its files and returns its result."""
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
  curve, evals = [], []
  for step in stops:
    rows = make_rows(problem, weights[step])
    files.write_lines(folder / "rollouts" / f"step_{step}.jsonl", rows)
    record = summarize_rows(rows, step) | movement(problem, weights[step])
    curve.append(record)
    evals.append(rows)
  files.write_lines(folder / "evals.jsonl", curve)
  files.write_text(
    folder / "mask_audit.txt", f"trained {n} outputs of {n} inputs\n"
  )
  log_line(f"{name} {terminal_line(curve[-1])}")
  before, after = evals[0], evals[-1]
  read = read_arm(
    curve, before, after, ReadingConfig(), mean_losses(lines, stops)
  )
  record = {
    "schema": outcome.SCHEMA,
    "name": name,
    "objective": f"least squares, {arm.layers} layers, {arm.optimizer}",
    "lr": arm.lr,
    "rank": None,
    "source": "template",
    "decoration": "shift",
    "seed": 0,
    "steps": arm.steps,
    "curve": curve,
    "reading": read.to_json(),
    **outcome.summarize_arm(curve, before, after),
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
  rows = make_rows(problem, problem.organism)
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
    "model": {"path": f"linear, {config.width} inputs"},
    "arms": arms,
  }
  files.write_json(
    workdir / "config.json", {"config": config_facts, "overrides": {}}
  )
  files.write_json(workdir / "env.json", {"versions": {"jax": jax.__version__}})
  result = {
    "schema": outcome.SCHEMA,
    "setting": "linear",
    "model": config_facts["model"]["path"],
    "organism": {
      "kind": "native",
      "hash": name,
      "provenance": {**facts, "condition": problem.condition()},
      "gate": gate,
    },
    "arms": [
      run_arm(problem, name, arm, workdir / "arms" / name)
      for name, arm in ARMS.items()
    ],
  }
  files.write_json(workdir / "result.json", result)
  write_done(workdir, name)
  curves = {arm["name"]: arm["curve"] for arm in result["arms"]}
  picture = draw_movement(curves, config.angle)
  files.write_text(workdir / "linear.svg", picture.svg())
  files.write_bytes(workdir / "linear.png", picture.png())
  write_report([workdir], workdir / "report.html")
  return result


def predicted_share(problem: Problem, arm: LinearArm, step: int) -> str:
  """Says what share of the style gradient descent must show after a step.

  "": theory says nothing of such an arm.
  """
  if arm.layers != 1 or arm.optimizer != "sgd":
    return ""
  model = problem.organism.copy()
  model[STYLE] = predict_style(problem, arm.lr, step)
  return f"{movement(problem, model)['style_share']:.3f}"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the experiment; returns 0, or 2 after one line about bad input."""
  parser = argparse.ArgumentParser(
    prog="python -m bct_jax.linear",
    description="Setting 0: linear models, where much is known.",
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
    config = LinearConfig(**arguments)
    result = run(config, workdir)
  except ConfigError as e:
    print(f"error: --{e}", file=sys.stderr)
    return 2
  problem = make_problem(config)
  print(
    f"train inputs: condition number {problem.condition():.3g} of their second "
    "moment"
  )
  print("eval inputs: behavior moved (of initial to alternate), style shown")
  for arm in result["arms"]:
    last = arm["curve"][-1]
    expected = predicted_share(problem, ARMS[arm["name"]], last["step"])
    print(
      f"  {arm['name']}: {last['moved']:.3f}, {last['style_share']:.3f}"
      + (f" (theory: 0.000, {expected})" if expected else "")
      + f", {words_of(arm)}"
    )
  print(f"report: {workdir / 'report.html'}; figure: {workdir / 'linear.svg'}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
