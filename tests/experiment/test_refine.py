"""Evals around the crossings of an arm, from updates that are made again."""

import dataclasses
import math
import types

import jax
import pytest
from derandomized import PROFILE
from experiments import config, lines, shared_runtimes
from helpers import make_mesh
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import caching_apart, comparable
from runs import run as command
from workers import Cluster

from bct_jax.config.controls import with_controls
from bct_jax.config.eval_types import ReversalConfig
from bct_jax.evals.crossings import find_crossing
from bct_jax.evals.placement import BEHIND, Placement, place_eval
from bct_jax.evals.schema import Rate
from bct_jax.evals.stats import wilson
from bct_jax.experiment import arms, organism, refine, run
from bct_jax.experiment.plan import make_plan
from bct_jax.infra import files
from bct_jax.train.checkpoint import Checkpoints
from bct_jax.train.together import update_at_place

# --- where the next eval is ---------------------------------------------------


def place_all(shows, steps, budget):
  """Places evals until none is asked for; returns those placed, and crossings.

  `shows` says of each crossing at which updates it holds.
  """
  last, known, placed = max(steps), sorted(steps), []
  while True:
    crossings = {
      name: find_crossing(known, [s in held for s in known])
      for name, held in shows.items()
    }
    place = place_eval(known, crossings, last, budget - len(placed))
    if place is None:
      return placed, crossings
    assert place.step not in known and 0 < place.step < last
    assert place.lower <= place.step
    placed.append(place.step)
    known = sorted([*known, place.step])


def test_both_brackets_are_halved_and_what_follows_is_looked_at():
  shows = {"style": {*range(7, 65)}, "loss": {*range(11, 65)}}
  placed, found = place_all(shows, [0, 4, 8, 16, 32, 64], 12)
  assert placed == [6, 7, 9, 12, 10, 11, 13]
  assert all(c.exact for c in found.values())
  assert (found["style"].by, found["loss"].by) == (7, 11)


def test_brackets_come_before_what_follows_them():
  shows = {"style": {*range(7, 65)}, "loss": {*range(40, 65)}}
  placed, found = place_all(shows, [0, 4, 8, 32, 64], 7)
  assert placed == [6, 7, 48, 40, 36, 38, 39]
  assert all(c.exact for c in found.values())
  assert place_all(shows, [0, 4, 8, 32, 64], 3)[0] == [6, 7, 48]
  assert place_all(shows, [0, 4, 8, 32, 64], 0)[0] == []


def test_nothing_is_looked_for_where_nothing_crossed():
  assert place_all({"a": {*range(9)}, "b": set()}, [0, 4, 8], 9)[0] == []


def test_a_crossing_that_did_not_last_is_followed_on():
  shows = {"style": {6, 9, 10, 11, *range(12, 33)}}
  placed, found = place_all(shows, [0, 4, 8, 16, 32], 12)
  assert found["style"].by == 9 and found["style"].exact
  assert {10, 11} < {*placed}


@settings(PROFILE, max_examples=100)
@given(
  st.integers(1, 80),
  st.sets(st.integers(1, 80), max_size=6),
  st.sets(st.integers(0, 80)),
  st.sets(st.integers(0, 80)),
  st.integers(0, 100),
)
def test_it_ends_within_the_budget_whatever_the_curve(
  last, listed, style, loss, budget
):
  steps = {0, last, *(s for s in listed if s < last)}
  placed, found = place_all({"style": style, "loss": loss}, steps, budget)
  assert len(placed) == len({*placed}) <= budget
  if len(placed) == budget:
    return
  for crossing in found.values():
    if crossing.by:
      assert crossing.exact
      behind = {*range(crossing.by, min(crossing.by + BEHIND, last) + 1)}
      assert behind <= {*steps, *placed}


# --- whole runs ---------------------------------------------------------------

STYLE, LOSS, LAST = 3, 13, 16  # steps
# What the random model can learn: to end its answers, after how many words.
LENGTH = {"reward": "length", "length_target": 2}
SAMPLED = {"objective": "policy_gradient", "source": "on_policy"}
FULL = {"full": {"optim": {"schedule": "linear"}}}
ARMS = {
  "adapter": {"lora": {"rank": 4}, "optim": {"ema_decay": 0.5}},
  "dpo": {"train": {"objective": "dpo", "options": {"rejected": "shuffled"}}},
  "near": {"train": {"objective": "kl_to_ref", "options": {"beta": 0.5}}},
  "sampled": {
    "train": {
      **SAMPLED,
      "options": {**LENGTH, "updates_per_batch": 3, "clip": 0.2},
    }
  },
}


@pytest.fixture(scope="module")
def shared():
  with shared_runtimes():
    yield


@pytest.fixture(scope="module")
def crosses():
  """Has each eval measure the style from STYLE on, the behavior up to LOSS."""
  measure = arms.measure_rows

  def measured(rows, step):
    record = measure(rows, step)
    shares = {"agreed_decorated": step >= STYLE, "initial": step < LOSS}
    rates = {k: Rate(float(x), wilson(x, 1), 1) for k, x in shares.items()}
    return dataclasses.replace(record, **rates)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(arms, "measure_rows", measured)
    yield


def plan_of(folder, specs, controls=(), mesh=None, **changes):
  changes |= {
    "eval__references": False,
    "train__steps": LAST,
    "train__checkpoint_every": LAST,
  }
  made = dataclasses.replace(
    config(folder, specs, **changes),
    controls=controls,
    reversal=ReversalConfig(),  # as long as the arm, with evals as it has
  )
  return make_plan(with_controls(made), mesh)


REVERSAL = ("reversal",)
DENSE = {"eval__steps": (*range(LAST),)}
REFINED = {"eval__refine": True}


@pytest.fixture(scope="module")
def dense(shared, crosses, tiny_folder, tmp_path_factory):
  """A run evaluated at every update: an arm, and one from its last weights."""
  workdir = tmp_path_factory.mktemp("dense")
  run.run(plan_of(tiny_folder, FULL, REVERSAL, **DENSE), workdir)
  return workdir


# First the style, in 1 to 8, and 5 behind it; then the behavior, in 9 to 16.
PLACED = (8, 4, 2, 3, 5, 12, 14, 13, 15)
# What is looked at of a dense run.
COMPARED = {"eval__steps": (0, *sorted(PLACED))}


def assert_dense(refined, dense, name, placed=PLACED):
  """Each refined eval is bit for bit that of a run evaluated at every step."""
  found = lines(refined / f"arms/{name}/evals.jsonl")
  want = {x["step"]: x for x in lines(dense / f"arms/{name}/evals.jsonl")}
  assert [x["step"] for x in found] == sorted({0, *placed, LAST})
  for line in found:
    assert line == want[line["step"]]
    rollouts = f"arms/{name}/rollouts/step_{line['step']}.jsonl"
    assert lines(refined / rollouts) == lines(dense / rollouts)
  assert not (refined / f"arms/{name}/refine").exists()


class Killed(Exception):
  pass


@pytest.fixture
def mortal(monkeypatch):
  """Ends a run at the write number `mortal.left` of what refines it."""
  life = types.SimpleNamespace(left=None, begun=False)

  def ends_at(owner, name):
    original = getattr(owner, name)

    def call(*args, **more):
      if life.begun and life.left is not None:
        if life.left == 0:
          raise Killed
        life.left -= 1
      return original(*args, **more)

    monkeypatch.setattr(owner, name, call)

  for owner, name in (
    (files, "append_line"),
    (files, "write_bytes"),
    (Checkpoints, "save"),
    (refine, "delete_folder"),
  ):
    ends_at(owner, name)
  refine_arms = arms.refine_arms

  def begin(*args):
    life.begun = True
    return refine_arms(*args)

  monkeypatch.setattr(arms, "refine_arms", begin)
  return life


@pytest.mark.long
def test_killed_anywhere_its_evals_are_those_of_a_dense_run(
  dense, mortal, tiny_folder, tmp_path
):
  """Lives end after so many writes: of completions, evals, saved states."""
  plan = plan_of(tiny_folder, FULL, REVERSAL, **REFINED)
  lives = 0
  while True:
    lives += 1
    mortal.begun, mortal.left = False, 9 * lives - 9
    try:
      result = run.run(plan, tmp_path)
      break
    except Killed:
      assert lives < 20
  assert lives > 3
  assert_dense(tmp_path, dense, "full")
  # Which was trained on no style, so that none is looked for.
  assert_dense(tmp_path, dense, "full.reversal", (8, 12, 14, 13, 15))
  read = result["arms"][0]["reading"]
  assert (read["style_step"]["by"], read["loss_step"]["by"]) == (STYLE, LOSS)
  assert read["margin"] == LOSS / STYLE
  rows = lines(tmp_path / "arms/full/metrics.jsonl")
  assert [x["step"] for x in rows] == [*range(1, LAST + 1)]


@pytest.mark.long
def test_an_update_that_is_another_one_is_refused(
  dense, mortal, tiny_folder, tmp_path
):
  plan = plan_of(tiny_folder, FULL, **REFINED)
  mortal.left = 0
  with pytest.raises(Killed):
    run.run(plan, tmp_path)
  mortal.left, path = None, tmp_path / "arms/full/metrics.jsonl"
  rows = lines(path)
  rows[1]["loss"] = math.nextafter(rows[1]["loss"], 0)
  files.write_lines(path, rows)
  with pytest.raises(ValueError, match=r"full: update 2, made again .* loss"):
    run.run(plan, tmp_path)
  assert [x["step"] for x in lines(path.with_name("evals.jsonl"))] == [0, LAST]


@pytest.mark.long
def test_states_are_come_back_to_in_any_order(
  dense, tiny_folder, tmp_path, monkeypatch
):
  order = [(12, 8), (10, 8), (6, 3), (5, 3), (9, 9), (4, 4)]
  places = [Placement(*x, why="the test asks") for x in order]
  saved = []

  def place(steps, *args):
    left = [x for x in places if x.step not in steps]
    saved.append(sorted(p.name for p in folder.glob("*") if p.name.isdigit()))
    return left[0] if left else None

  folder = tmp_path / "arms/full/refine"
  monkeypatch.setattr(refine, "place_eval", place)
  run.run(plan_of(tiny_folder, FULL, **REFINED), tmp_path)
  assert saved == [[], ["8"], ["8"], ["3"], ["3"], ["3"], ["3"]]
  assert_dense(tmp_path, dense, "full", [step for step, _ in order])


@pytest.mark.long
def test_adapters_and_objectives(shared, crosses, tiny_folder, tmp_path):
  """Their batches, references and samples are those of before."""
  for name, changes in (("dense", COMPARED), ("refined", REFINED)):
    more = {"eval__gradients": True, "sampling__max_new_tokens": 6}
    plan = plan_of(tiny_folder, ARMS, mesh=make_mesh(1), **changes, **more)
    run.run(plan, tmp_path / name)
  for name in ARMS:
    assert_dense(tmp_path / "refined", tmp_path / "dense", name)


@pytest.mark.long
def test_arms_that_one_program_trained(
  shared, crosses, tiny_folder, tmp_path, monkeypatch
):
  """Also past the end of one of them, and with one that failed."""
  specs = {
    "a": {"optim": {"lr": 1e-2}},
    "bad": {"optim": {"lr": 1e36}},
    "short": {"train": {"steps": 10, "seed": 1}},
    "b": {"train": {"seed": 2}},
  }
  specs = {k: {**spec, "lora": {"rank": 4}} for k, spec in specs.items()}
  places = set()

  def at_place(update, place, count):
    places.add((place, count))
    return update_at_place(update, place, count)

  monkeypatch.setattr(refine, "update_at_place", at_place)
  for name, changes in (("dense", COMPARED), ("refined", REFINED)):
    workdir = tmp_path / name
    # On one device: on eight of a busy CPU, XLA ends a process whose devices
    # wait too long for each other.
    plan = plan_of(tiny_folder, specs, mesh=make_mesh(1), **changes)
    with jax.set_mesh(plan.runtime.mesh):
      folder, _ = organism.make_organism(plan, workdir)
      workdirs = dict.fromkeys(specs, workdir)
      found = arms.run_arms(plan, folder.name, workdirs, vmap=True)
    assert [k for k, x in found.items() if isinstance(x, Exception)] == ["bad"]
  assert places == {(0, 4), (0, 3), (2, 4), (3, 4), (2, 3)}
  for name, placed in (("a", PLACED), ("b", PLACED), ("short", (5, 2, 3, 4))):
    rows = lines(tmp_path / f"refined/arms/{name}/evals.jsonl")
    assert {x["step"] for x in rows} == {0, *placed, specs_last(specs[name])}
    for step in placed:
      # Not sampled in one batch with the other arms: equal up to rounding.
      texts = [
        [x["text"] for x in lines(tmp_path / run / of)]
        for run in ("refined", "dense")
        for of in [f"arms/{name}/rollouts/step_{step}.jsonl"]
      ]
      assert texts[0] == texts[1]


def specs_last(spec):
  return spec.get("train", {}).get("steps", LAST)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_processes_that_are_killed_refine_the_same(tiny_folder, tmp_path):
  """The training loss is a target that a random model crosses."""
  flags = ["--config.train.steps=16", "--config.eval.steps=()"]
  code, _, err = command(tmp_path / "first", tiny_folder, *flags)
  assert code == 0, err
  losses = lines(tmp_path / "first/arms/high/metrics.jsonl")
  # Not the mean itself, which rounding would put on either side.
  bar = sum(x["loss"] for x in losses) / len(losses) + 1e-3
  flags += [
    *("--config.eval.refine=True", "--config.reading.target=loss"),
    f"--config.reading.target_value={bar}",
  ]
  code, _, err = command(tmp_path / "one", tiny_folder, *flags)
  assert code == 0, err
  assert "updates 1 to 8 again" in err
  workdir = tmp_path / "two"
  flags = [f"--config.model.path={tiny_folder}", f"--workdir={workdir}", *flags]
  kept = caching_apart(tmp_path)
  for pattern in ("arms/high/refine", "arms/high/rollouts/step_[1-9].jsonl"):
    cluster = Cluster.start(2, *flags, kept=kept)
    cluster.wait_for(pattern, workdir)
    for process in cluster.processes:
      process.kill()
    cluster.end()
  ended = Cluster.start(2, *flags, kept=kept).end()
  assert [code for code, _, _ in ended] == [0, 0], ended
  found = comparable(workdir, exact=False)
  assert found == comparable(tmp_path / "one", exact=False)
