"""Setting 0: what theory says of linear models is what its run shows."""

import dataclasses
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from bct_jax.config import ConfigError
from bct_jax.linear import __main__ as command
from bct_jax.linear import problem as problems
from bct_jax.linear import training
from bct_jax.linear.problem import BEHAVIOR, FAR, STYLE, LinearConfig
from bct_jax.linear.training import LinearArm


@pytest.fixture(scope="module")
def problem():
  return problems.make_problem(LinearConfig(angle=40.0, points=60))


def end_of(problem, layers, optimizer, lr, steps):
  arm = LinearArm(layers, optimizer, lr, steps)
  return training.train(problem, arm, (steps,))[0][steps]


@pytest.mark.parametrize("angle", [1.0, 30.0, 90.0])
def test_subspaces_and_behaviors(angle):
  made = problems.make_problem(LinearConfig(angle=angle))
  q = [np.linalg.svd(made.inputs[s])[2][:8].T for s in ("train", "eval")]
  cosines = np.linalg.svd(q[0].T @ q[1])[1]
  np.testing.assert_allclose(cosines, math.cos(math.radians(angle)), atol=1e-9)
  for split in ("train", "eval"):
    across = made.inputs["probe"] @ made.inputs[split].T
    np.testing.assert_allclose(across, 0, atol=1e-9)
  # The alternate behavior is the organism's after the projection on T.
  project = q[0] @ q[0].T
  alternate = made.organism.copy()
  alternate[BEHAVIOR] = alternate[BEHAVIOR] @ project
  share = problems.shares(made, alternate, "eval")
  np.testing.assert_allclose(share[:, BEHAVIOR], 1, atol=1e-6)
  np.testing.assert_allclose(problems.shares(made, alternate, "heldout"), 0,
                             atol=1e-9)  # fmt: skip


@pytest.mark.parametrize("steps", [7, 400])
def test_one_layer_moves_the_style_alone_and_as_predicted(problem, steps):
  end = end_of(problem, 1, "sgd", 0.1, steps)
  np.testing.assert_allclose(
    end[STYLE], training.predict_style(problem, 0.1, steps), atol=1e-9
  )
  assert problems.movement(problem, end)["moved"] < 1e-9


def test_the_limit_is_the_solution_of_least_change(problem):
  x = problem.inputs["train"]
  wanted, *_ = np.linalg.lstsq(x, x @ problem.shift, rcond=None)
  limit = training.predict_style(problem, 0.03, None)
  np.testing.assert_allclose(limit, wanted, atol=1e-9)
  model = np.stack([problem.organism[BEHAVIOR], limit])
  shown = problems.shares(problem, model, "eval")[:, STYLE]
  np.testing.assert_allclose(shown, math.cos(math.radians(40)), atol=1e-9)


def test_one_layer_under_adam_leaves_the_span_in_the_style_alone(problem):
  ends = [
    end_of(problem, 1, "adam", lr, n) for lr, n in ((0.003, 4000), (0.1, 120))
  ]
  for end in ends:  # it fits the train data all the same
    fit = problems.shares(problem, end, "heldout")[:, STYLE]
    assert abs(np.median(fit) - 1) < 0.05
    assert problems.movement(problem, end)["moved"] < 1e-6
  assert np.linalg.norm(ends[0][STYLE] - ends[1][STYLE]) > 0.3


def test_two_layers_by_hand(problem):
  """Gradient descent and Adam, against numpy and the papers' formulas."""
  x, n = problem.inputs["train"], len(problem.inputs["train"])
  target = x @ problem.organism.T
  target[:, STYLE] += x @ problem.shift
  for optimizer, lr in (("sgd", 0.1), ("adam", 0.03)):
    weights = [w.copy() for w in problem.layers]
    means = [[np.zeros_like(w), np.zeros_like(w)] for w in weights]
    for step in range(1, 41):
      first, second = weights
      error = (x @ first.T @ second.T - target) / n
      slopes = [second.T @ error.T @ x, error.T @ x @ first.T]
      for w, slope, (mean, square) in zip(weights, slopes, means, strict=True):
        mean += 0.1 * (slope - mean)
        square += 0.001 * (slope**2 - square)
        if optimizer == "adam":
          size = np.sqrt(square / (1 - 0.999**step)) + 1e-8
          slope = mean / (1 - 0.9**step) / size
        w -= lr * slope
    end = end_of(problem, 2, optimizer, lr, 40)
    np.testing.assert_allclose(end, weights[1] @ weights[0], atol=1e-7)


def test_two_layers_move_the_behavior_but_keep_what_theory_says(problem):
  arm = LinearArm(2, "sgd", 0.01, 6000)
  layers, losses = training.train_layers(problem, arm, (6000,))
  (first, second), (first_0, second_0) = layers[6000], problem.layers
  assert losses[-1, 0] < 1e-8
  assert problems.movement(problem, second @ first)["moved"] > 0.05
  # The first layer moves within T: what it makes of a probe input stays.
  probe = problem.inputs["probe"].T
  np.testing.assert_allclose(first @ probe, first_0 @ probe, atol=1e-9)
  balance = first @ first.T - second.T @ second
  balance_0 = first_0 @ first_0.T - second_0.T @ second_0
  assert np.abs(balance - balance_0).max() < 0.02  # lr 0.01; 0 in the limit
  assert np.abs(first @ first.T - first_0 @ first_0.T).max() > 0.2


@pytest.mark.long
def test_the_table_of_the_guide():
  """Medians over 10 seeds at 45 degrees, of configs/findings/README.md."""
  wanted = {
    "one_adam_0.1": 0.0,
    "two_sgd_0.03": 0.21,
    "two_sgd_0.1": 0.21,
    "two_adam_0.003": 0.24,
    "two_adam_0.03": 0.26,
    "two_adam_0.1": 0.66,
  }
  guide = Path("configs/findings/README.md").read_text()
  moved = {name: [] for name in wanted}
  for seed in range(10):
    made = problems.make_problem(LinearConfig(seed=seed))
    for name, values in moved.items():
      arm = training.ARMS[name]
      end, _ = training.train(made, arm, (arm.steps,))
      values.append(problems.movement(made, end[arm.steps])["moved"])
  for name, median in wanted.items():
    assert np.median(moved[name]) == pytest.approx(median, abs=0.02)
    assert f"{median:.2f}" in guide


@pytest.mark.parametrize(
  ("split", "share", "label"),
  [
    ("eval", 0.4, ("initial", "")),
    ("eval", 0.41, ("other", "wrong")),
    ("eval", 0.6, ("alternate", "")),
    ("eval", 1.41, ("other", "wrong")),
    ("eval", -0.41, ("other", "wrong")),
    ("heldout", 0.0, ("agreed", "")),
    ("heldout", 0.5, ("other", "wrong")),
    ("probe", -0.4, ("right", "")),
    ("probe", 0.6, ("wrong", "")),
  ],
)
def test_labels(split, share, label):
  assert problems.label_output(split, share) == label


def test_no_angle_puts_the_style_on_the_bar():
  """60 degrees did: its labels were decided by rounding."""
  bar = 1 - FAR
  assert Fraction(bar).limit_denominator(100) not in (0, Fraction(1, 2), 1)
  for angle in range(1, 91):
    assert abs(math.cos(math.radians(angle)) - bar) > 1e-3
  made = problems.make_problem(LinearConfig(angle=60.0))
  model = np.stack(
    [made.organism[BEHAVIOR], training.predict_style(made, 0.1, None)]
  )
  rows = problems.make_rows(made, model)
  assert not any(r["decorated"] for r in rows if r["split"] == "eval")
  assert all(r["decorated"] for r in rows if r["split"] == "heldout")


def test_divergence_is_said(problem):
  with pytest.raises(FloatingPointError, match="lr 50: diverged"):
    end_of(problem, 2, "sgd", 50.0, 60)


@pytest.mark.long
@pytest.mark.parametrize("points", [8, 40])
def test_command_makes_a_run_that_theory_holds_for(points, tmp_path, capsys):
  """With 8 points the slowest direction has not arrived: theory says so."""
  run = tmp_path / "run"
  arguments = [f"--workdir={run}", "--angle=75", f"--points={points}"]
  assert command.main(arguments) == 0
  said = capsys.readouterr().out
  assert "condition number" in said
  result = json.loads((run / "result.json").read_text())
  assert result["organism"]["gate"]["passed"]
  arms = {arm["name"]: arm for arm in result["arms"]}
  assert list(arms) == list(training.ARMS)
  for name in ("one_sgd_0.03", "one_sgd_0.1"):
    last = arms[name]["curve"][-1]
    wanted = f"{last['style_share']:.3f}"
    assert f"{name}: 0.000, {wanted} (theory: 0.000, {wanted})" in said
    # 8 prompts are few.
    word = "mixed" if points == 8 else "kept"
    assert arms[name]["reading"]["behavior"] == word
    assert last["initial"] == 1
  assert arms["two_adam_0.1"]["curve"][-1]["moved"] > 0.1
  assert "linear" in (run / "report.html").read_text()
  assert "2 layers, Adam, lr 0.1" in (run / "linear.svg").read_text()
  assert command.main(arguments) == 2  # never over a run that is there
  assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("field", "value"),
  [("angle", 0.0), ("angle", 91.0), ("rank", 32), ("rank", 1), ("points", 7),
   ("hidden", 1), ("seed", -1)],
)  # fmt: skip
def test_a_config_that_cannot_be(field, value, tmp_path, capsys):
  with pytest.raises(ConfigError, match=field):
    dataclasses.replace(LinearConfig(), **{field: value})
  code = command.main([f"--workdir={tmp_path / 'x'}", f"--{field}={value}"])
  assert code == 2 and f"--{field}" in capsys.readouterr().err
