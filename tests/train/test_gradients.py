"""How updates push on both behaviors: against torch, and what then happens."""

import functools
import json
import math

import jax
import numpy as np
import pytest
from helpers import make_mesh, train_evaluated

from bct_jax.config import from_dict
from bct_jax.evals.evaluate import label_rollouts
from bct_jax.experiment import arms, gradient_log
from bct_jax.experiment import organism as organisms
from bct_jax.experiment.eval_rollouts import references
from bct_jax.experiment.gradient_log import GradientLog
from bct_jax.experiment.plan import make_plan
from bct_jax.experiment.reference_logprobs import with_logprobs
from bct_jax.experiment.run_sizes import find_sizes
from bct_jax.experiment.run_state import TrainRun, init_run_state
from bct_jax.infra import files, signals
from bct_jax.mesh import put_batch
from bct_jax.runtime.weights import load_weights
from bct_jax.sizing.sizes import Work, device_bytes
from bct_jax.train import gradients
from bct_jax.types import Completion
from configs import tiny

pytestmark = pytest.mark.long

STEPS = 4
ARMS = {
  "full": {"train": {"accum": 2}},
  "off": {"train": {"accum": 2}},
  "adapter": {
    "train": {"objective": "kl_to_ref"},
    "lora": {"rank": 4},
    # Small, for the gain is to first order.
    "optim": {"lr": 5e-4},
  },
  "dpo": {"train": {"objective": "dpo", "decoration": "pirate"}},
  "policy": {
    "train": {
      "objective": "policy_gradient",
      "source": "on_policy",
      "decoration": "plain",
      "options": {"reward": "length", "length_target": 2, "kl_coef": 0.1},
    }
  },
  "average": {"train": {"accum": 2}, "optim": {"ema_decay": 0.9}},
}


def make(folder, mesh, on=True):
  values = tiny.get_config().to_dict()
  values["model"]["path"] = str(folder)
  values["setting"]["name"] = "cot_suppression"
  values["organism"]["kind"] = "native"
  values["train"] |= {"steps": STEPS, "checkpoint_every": 3}
  # What a random model says then ends at times, as a reward of length needs.
  values["sampling"] |= {"stop": tuple("aeiou"), "max_new_tokens": 24}
  values["optim"] |= {"lr": 1e-4, "schedule": "linear", "weight_decay": 0.1}
  values["eval"] |= {"num_eval": 5, "num_heldout": 2, "num_probe": 2}
  values["eval"] |= {"steps": (1, 2, 3), "gradients": on}
  values["arms"] = ARMS
  return make_plan(from_dict(values), make_mesh(*mesh))


@pytest.fixture(scope="module")
def plan(tiny_folder):
  return make(tiny_folder, (1, 1, 1))


def train(plan, name, folder, evaluate=lambda step, weights: None):
  def start():
    return load_weights(plan.runtime, None)

  arm, data = plan.config.arms[name], plan.arms[name]
  with jax.set_mesh(plan.runtime.mesh):
    scores = folder / "reference_logprobs.jsonl"
    data = with_logprobs(plan, name, arm, data, scores, "organism", start)
    run = TrainRun(name, folder, arm, data, tuple(range(STEPS + 1)))
    out = train_evaluated(plan, run, start, evaluate)
  return jax.tree.map(np.asarray, out.adapter or out.params)


def likelihoods(plan, weights):
  """J of both behaviors, by the scorer of the evals."""
  out = {}
  for name in ("initial", "alternate"):
    scored = plan.runtime.scorer(weights, *references(plan, name))
    out[name] = sum(sum(s.logprobs) for s in scored) / len(scored)
  return out


@pytest.fixture(scope="module")
def runs(plan, tmp_path_factory):
  """Lines and likelihoods at each step, and what came out."""

  @functools.cache
  def run(name):
    folder, seen = tmp_path_factory.mktemp(name), {}
    out = train(
      plan,
      name,
      folder,
      lambda step, weights: seen.update({step: likelihoods(plan, weights)}),
    )
    text = (folder / gradient_log.FILE).read_text()
    return [json.loads(x) for x in text.splitlines()], seen, out, text

  return run


def slow(*names):
  return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", ["full", *slow("adapter", "dpo", "policy")])
def test_the_gain_is_what_the_next_update_brings(runs, name):
  """As the step does it, with what Adam remembers, and the sign."""
  lines, seen, _, _ = runs(name)
  assert [x["step"] for x in lines] == list(range(STEPS + 1))
  for line in lines[:-1]:
    t = line["step"]
    for b in ("initial", "alternate"):
      change = seen[t + 1][b] - seen[t][b]
      gain = line[f"update_gain_{b}"]
      assert gain == pytest.approx(change, rel=0.05, abs=2e-4)
      assert abs(change) > 1e-3
      assert math.copysign(1, gain) == math.copysign(
        1, line[f"update_cosine_{b}"]
      )
  # The last has no next update: that of the one before, with its lr.
  ratio = lines[-1]["update_norm"]["all"] / lines[-2]["update_norm"]["all"]
  assert 0.5 < ratio < 2


def begin(plan, name):
  """What the log is given at step 0, and its line."""
  arm, data = plan.config.arms[name], plan.arms[name]
  with jax.set_mesh(plan.runtime.mesh):
    state, frozen, view = init_run_state(
      plan.runtime, arm, load_weights(plan.runtime, None)
    )
    log = GradientLog(plan, arm, data, None, frozen, view, None)  # pyright: ignore
    batch = put_batch(data.batch(0), plan.runtime.mesh)
    measure = plan.runtime.measure(arm, view)
    return measure(state, frozen, batch, arm.optim.lr, log._references())


def test_a_dry_run_counts_four_trees(plan, tiny_folder):
  found = [
    find_sizes(p.runtime, Work(8, 64, 64, 2), 64)
    for p in (plan, make(tiny_folder, (1, 1, 1), on=False))
  ]
  one = device_bytes(plan.runtime.abstract_params)
  assert [x.gradients for x in found] == [4 * one, 2 * one]
  assert found[0].training - found[1].training == 2 * one


def test_groups_name_the_layers():
  assert list(gradients.depths(30)) == [
    "layers 0-9", "layers 10-19", "layers 20-29"
  ]  # fmt: skip
  assert list(gradients.depths(1)) == ["layer 0"]
  assert gradients.depths(4) == {
    "layers 0-1": slice(0, 2),
    "layer 2": slice(2, 3),
    "layer 3": slice(3, 4),
  }


@pytest.mark.parity
def test_norms_and_cosines_equal_torchs(plan, tiny_folder):
  """Its autograd, clipping and AdamW, an example at a time."""
  import torch
  from parity import load_torch

  found = begin(plan, "full")
  model, chat = load_torch(tiny_folder), plan.runtime.chat
  params = dict(model.named_parameters())

  def logprobs(ids, weights):
    out = model(torch.tensor([ids])).logits.log_softmax(-1)[0, :-1]
    picked = out.gather(1, torch.tensor(ids)[1:, None])[:, 0]
    return (picked * torch.tensor(weights[1:])).sum()

  def gradient(value):
    grads = torch.autograd.grad(value, list(params.values()))
    return dict(zip(params, grads, strict=True))

  def dot(a, b, names=params):
    return sum(float((a[n].double() * b[n].double()).sum()) for n in names)

  pushes = {}
  for name in ("initial", "alternate"):
    total = 0
    evals = [p for p in plan.prompts if p.split == "eval"]
    for p in evals:
      text = chat.encode(getattr(p.example, name))
      rest = [*text, chat.end_of_turn]
      ids = [*p.ids, *rest]
      total += logprobs(ids, [0.0] * len(p.ids) + [1.0] * len(rest))
    pushes[name] = gradient(total / len(evals))
  data, arm = plan.arms["full"], plan.config.arms["full"]
  rows = [data.examples[i] for i in data.indices(0)]
  count = sum(sum(r.weights) for r in rows)
  loss = -sum(logprobs(r.ids, r.weights) for r in rows) / count
  g = gradient(loss)
  o = arm.optim
  decayed = [p for n, p in params.items() if n.endswith("_proj.weight")]
  others = [p for n, p in params.items() if not n.endswith("_proj.weight")]
  optimizer = torch.optim.AdamW(
    [
      {"params": decayed, "weight_decay": o.weight_decay},
      {"params": others, "weight_decay": 0.0},
    ],
    lr=o.lr, betas=(o.b1, o.b2), eps=o.eps,
  )  # fmt: skip
  for n, p in params.items():
    p.grad = g[n].clone()
  torch.nn.utils.clip_grad_norm_(list(params.values()), o.clip_norm)
  before = {n: p.detach().clone() for n, p in params.items()}
  optimizer.step()
  moved = {n: p.detach() - before[n] for n, p in params.items()}

  def norm(x, names=params):
    return math.sqrt(dot(x, x, names))

  for name, h in pushes.items():
    cosine = -dot(g, h) / norm(g) / norm(h)
    assert found[f"gradient_cosine_{name}"] == pytest.approx(cosine, abs=1e-4)
    assert abs(cosine) > 0.01
    cosine = dot(moved, h) / norm(moved) / norm(h)
    assert found[f"update_cosine_{name}"] == pytest.approx(cosine, abs=1e-3)
    assert found[f"update_gain_{name}"] == pytest.approx(
      dot(moved, h), rel=1e-2
    )
  groups = {
    "all": list(params),
    "embed": ["model.embed_tokens.weight"],
    "layer 0": [n for n in params if ".layers.0." in n],
    "layer 1": [n for n in params if ".layers.1." in n],
    "output": ["model.norm.weight"],
  }
  assert sum(map(len, groups.values())) == 2 * len(params)
  for key, x in (("gradient_norm", g), ("update_norm", moved)):
    want = {k: norm(x, names) for k, names in groups.items()}
    assert list(found[key]) == list(want)
    assert found[key] == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("name", ["full", *slow("adapter")])
def test_one_device_and_eight_agree(plan, tiny_folder, name):
  one, eight = begin(plan, name), begin(make(tiny_folder, (2, 2, 2)), name)
  assert one.keys() == eight.keys() and len(one) == 8
  for key, value in one.items():
    assert eight[key] == pytest.approx(value, rel=1e-4)


def test_training_is_the_same_bit_for_bit(plan, runs, tiny_folder, tmp_path):
  off = train(make(tiny_folder, (1, 1, 1), on=False), "off", tmp_path)
  assert not (tmp_path / gradient_log.FILE).exists()
  jax.tree.map(np.testing.assert_array_equal, off, runs("full")[2])


@pytest.mark.slow
def test_they_are_of_the_params_and_not_of_their_average(runs):
  params, average = runs("full"), runs("average")
  assert average[1][STEPS] != pytest.approx(params[1][STEPS], rel=1e-4)
  for a, b in zip(average[0], params[0], strict=True):
    for key, value in b.items():
      assert a[key] == pytest.approx(value, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, STEPS])
def test_a_stopped_policy_gradient_has_the_same_lines(plan, runs, tmp_path, at):
  def stop(step, weights):
    if step == at:
      raise signals.Preempted("here")

  with pytest.raises(signals.Preempted):
    train(plan, "policy", tmp_path, stop)
  train(plan, "policy", tmp_path)
  assert (tmp_path / gradient_log.FILE).read_text() == runs("policy")[3]


class Killed(Exception):
  pass


def test_lines_of_evals_are_those_of_an_uninterrupted_run(
  plan, tmp_path, monkeypatch
):
  """Stopped or killed in each eval, also in the last, when what is saved has
  no optimizer."""
  lives = []

  def sample_rows(plan, weights, name, partial=None, kept=None):
    if name != "gate" and lives and name not in lives[0][1]:
      lives[0][1].append(name)
      raise lives[0][0]("here")
    if partial is not None:
      partial.parent.mkdir(parents=True, exist_ok=True)
      partial.touch()
    end = Completion((plan.runtime.chat.end_of_turn,), (0.0,), True)
    drawn = [end] * len(plan.prompts)
    parts = plan.runtime.chat, plan.setting, plan.probe
    return label_rollouts(plan.prompts, drawn, *parts)

  def sample_arms(plan, weights, name, partial=None, kept=None):
    return [sample_rows(plan, one, name, partial) for one in weights]

  monkeypatch.setattr(organisms, "sample_rows", sample_rows)
  monkeypatch.setattr(arms, "sample_arms", sample_arms)

  def run(workdir):
    with jax.set_mesh(plan.runtime.mesh):
      organism, _ = organisms.make_organism(plan, workdir)
      found = arms.run_arms(plan, organism.name, {"full": workdir})["full"]
    if isinstance(found, Exception):
      raise found
    return workdir / "arms" / "full"

  want = run(tmp_path / "whole")
  for kind in (signals.Preempted, Killed):
    lives[:] = [(kind, [])]
    for _ in range(STEPS):
      with pytest.raises(kind):
        run(tmp_path / kind.__name__)
      if kind is Killed and len(lives[0][1]) == 1:  # nothing of it was saved
        path = tmp_path / "Killed/arms/full" / gradient_log.FILE
        assert [x["step"] for x in files.read_lines(path)] == [0, 1]
        files.write_lines(path, [{"step": 1, "of": "what is trained anew"}])
    folder = run(tmp_path / kind.__name__)
    for file in ("evals.jsonl", gradient_log.FILE):
      assert (folder / file).read_text() == (want / file).read_text()
  lines = (want / gradient_log.FILE).read_text().splitlines()
  curve = (want / "evals.jsonl").read_text().splitlines()
  for line, point in zip(map(json.loads, lines), curve, strict=True):
    point = json.loads(point)
    assert point["gradients"] == {k: v for k, v in line.items() if k != "step"}
  # Without its line, the last state cannot be measured again.
  (folder / "done.json").unlink()
  (folder / gradient_log.FILE).unlink()
  with pytest.raises(ValueError, match=r"gradients\.jsonl is missing: restore"):
    run(tmp_path / "Killed")
