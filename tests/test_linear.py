"""Setting 0: what theory says of a linear model is what its run shows."""

import dataclasses
import json
import math

import numpy as np
import pytest

from bct_jax import linear
from bct_jax.config import ConfigError

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def problem():
  return linear.make_problem(linear.LinearConfig(angle=40.0, points=60))


def end_of(problem, optimizer, lr, steps):
  arm = linear.LinearArm(optimizer, lr, steps)
  return linear.train(problem, arm, (steps,))[0][steps]


@pytest.mark.parametrize("angle", [0.0, 30.0, 75.0, 90.0])
def test_subspaces_are_at_the_angle(angle):
  made = linear.make_problem(linear.LinearConfig(angle=angle))
  q = [np.linalg.svd(made.inputs[s])[2][:8].T for s in ("train", "eval")]
  cosines = np.linalg.svd(q[0].T @ q[1])[1]
  np.testing.assert_allclose(cosines, math.cos(math.radians(angle)), atol=1e-9)
  for split in ("train", "eval"):
    across = made.inputs["probe"] @ made.inputs[split].T
    np.testing.assert_allclose(across, 0, atol=1e-9)


def test_gradient_descent_ends_where_theory_says_at_any_learning_rate(problem):
  want = linear.closed_form(problem)
  for lr, steps in ((0.03, 1500), (0.3, 150)):
    end = end_of(problem, "sgd", lr, steps)
    np.testing.assert_allclose(end, want, atol=1e-4)
  share = linear.shares(problem, want, "eval")
  np.testing.assert_allclose(share, math.cos(math.radians(40)), atol=1e-9)


def test_gradient_descent_on_the_way_is_the_known_series(problem):
  """w_s = w_0 + (I - (I - lr H)^s) shift, H the second moment of inputs."""
  x, lr = problem.inputs["train"], 0.1
  hessian = x.T @ x / len(x)
  left = np.linalg.matrix_power(np.eye(len(hessian)) - lr * hessian, 7)
  want = problem.organism + problem.shift - left @ problem.shift
  np.testing.assert_allclose(
    end_of(problem, "sgd", lr, 7), want, atol=1e-5, rtol=0
  )


def test_adam_leaves_the_span_and_ends_elsewhere_at_each_learning_rate(problem):
  ends = [
    end_of(problem, "adam", lr, n) for lr, n in ((0.003, 3000), (0.3, 90))
  ]
  for end in ends:  # it fits the train data all the same
    fit = linear.shares(problem, end, "heldout")
    assert abs(np.median(fit) - 1) < 0.05
    assert np.linalg.norm(end - linear.closed_form(problem)) > 0.3
  assert np.linalg.norm(ends[0] - ends[1]) > 0.3


@pytest.mark.parametrize(
  ("split", "share", "label"),
  [
    ("eval", 0.5, ("initial", "")),
    ("eval", 0.51, ("alternate", "")),
    ("eval", 1.51, ("other", "wrong")),
    ("eval", -0.51, ("other", "wrong")),
    ("heldout", 0.0, ("agreed", "")),
    ("heldout", 2.0, ("other", "wrong")),
    ("probe", -0.4, ("right", "")),
    ("probe", 0.6, ("wrong", "")),
  ],
)
def test_labels(split, share, label):
  assert linear._label(split, share) == label


def test_command_makes_a_run_with_verdicts_and_report(tmp_path, capsys):
  run = tmp_path / "run"
  arguments = [f"--workdir={run}", "--angle=75", "--points=40"]
  assert linear.main(arguments) == 0
  said = capsys.readouterr().out
  assert "must show 0.259 of the shift" in said
  result = json.loads((run / "result.json").read_text())
  assert result["organism"]["gate"]["passed"]
  arms = {arm["name"]: arm for arm in result["arms"]}
  assert list(arms) == list(linear.ARMS)
  for name in ("sgd_0.03", "sgd_0.1", "sgd_0.3"):
    assert arms[name]["verdict"] == "retained"
    assert arms[name]["curve"][-1]["share"] == pytest.approx(0.2588, abs=1e-4)
    assert arms[name]["curve"][-1]["agreed_decorated"] > 0.95
  assert "linear" in (run / "report.html").read_text()
  assert linear.main(arguments) == 2  # never over a run that is there
  assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("field", "value"), [("angle", 91.0), ("rank", 32), ("points", 7)]
)
def test_a_config_that_cannot_be(field, value, tmp_path, capsys):
  with pytest.raises(ConfigError, match=field):
    dataclasses.replace(linear.LinearConfig(), **{field: value})
  code = linear.main([f"--workdir={tmp_path / 'x'}", f"--{field}={value}"])
  assert code == 2 and f"--{field}" in capsys.readouterr().err
