"""Hours, money and disk of a run, against counts by hand."""

import copy
import math

import pytest

from bct_jax.config import ConfigError, from_dict
from bct_jax.config.chips import CHIPS
from bct_jax.experiment.cost_lines import cost_lines, disk_line, find_costs
from bct_jax.experiment.plan import make_plan
from bct_jax.modes.dry_run import run_dry_run
from bct_jax.sizing import cost
from configs import tiny

MODEL = cost.Model(6e9, 2e9, 4 * 2**30, 8)
V5E = CHIPS["v5e"]


def test_updates_take_their_flops_at_forty_percent_of_the_peak():
  seconds = cost.train_seconds(MODEL, 1e6, V5E)
  assert seconds == pytest.approx(1e6 * 6e9 / (0.4 * 197e12 * 8))


@pytest.mark.parametrize(
  ("completions", "rounds"), [(0, 0), (3, 1), (64, 1), (96, 1.5), (640, 10)]
)
def test_completions_take_reads_of_the_memory(completions, rounds):
  """A batch that is not full takes as many steps as a full one."""
  sampling = cost.Sampling(completions, 100, 24, 64)
  step = 4 * 2**30 / (0.5 * 819e9)
  prefill = completions * 100 * 2e9 / (0.4 * 197e12 * 8)
  assert cost.sample_seconds(MODEL, sampling, V5E) == pytest.approx(
    prefill + rounds * 24 * step
  )


def test_prices_are_of_chips():
  assert cost.parse_prices("1.5", "v5e") == {"v5e": 1.5}
  two = cost.parse_prices("v5e=1.2, h100=2.5", None)
  assert two == {"v5e": 1.2, "h100": 2.5}
  assert cost.cheapest({"v5e": 10, "h100": 2}, two) == "h100"
  assert cost.cheapest({"v5e": 2, "h100": 2}, two) == "v5e"


@pytest.mark.parametrize(
  ("text", "chip", "why"),
  [
    ("1.5", None, "set mesh.chip"),
    ("v5e=x", None, "'x' is no price"),
    ("0", "v5e", "no price above 0"),
    ("inf", "v5e", "no price above 0"),
    ("v9=2", None, "v9"),
  ],
)
def test_prices_that_are_none(text, chip, why):
  with pytest.raises(ConfigError, match=why):
    cost.parse_prices(text, chip)


def plan_of(folder, **changes):
  raw = copy.deepcopy(tiny.get_config().to_dict())
  raw["model"]["path"] = str(folder)
  for path, value in changes.items():
    *groups, field = path.split("__")
    at = raw
    for group in groups:
      at = at[group]
    at[field] = value
  return make_plan(from_dict(raw))


def test_what_a_run_works_on(tiny_folder):
  """Updates, and the evals that the guides list: gate, steps, refine."""
  plan = plan_of(
    tiny_folder,
    mesh__chip="v5e",
    eval__refine=True,
    eval__samples=2,
    train__objective="policy_gradient",
    train__source="on_policy",
    train__options={
      "group_size": 4,
      "updates_per_batch": 2,
      "clip": 0.2,
    },
  )
  runs = {run.name: run for run in find_costs(plan.runtime, plan)}
  assert {*runs} == {"organism", "arm low", "arm high"}
  install, low = runs["organism"], runs["arm low"]
  assert plan.install is not None
  layout = plan.install.layout
  assert install.tokens == 4 * layout.rows * layout.length
  assert (install.evals, install.refined) == (2, 0)  # and the model's own
  assert (low.evals, low.refined) == (2, 2)  # after 2 and 4, then 1 and 3
  assert low.sampling.completions == len(plan.prompts) + 2 * 8
  assert install.draws.completions == 0
  assert low.draws.completions == 2 * 8  # two batches of four updates
  chip = CHIPS["v5e"]
  updates, sampling = low.seconds(chip)
  assert updates == cost.train_seconds(low.model, low.tokens, chip)
  each = cost.sample_seconds(low.model, low.sampling, chip)
  drawn = cost.sample_seconds(low.model, low.draws, chip)
  assert sampling == pytest.approx(4 * each + drawn)
  lines = cost_lines(plan.runtime, [*runs.values()], {"v5e": 2.0, "b200": 4.0})
  whole = sum(sum(run.seconds(chip)) for run in runs.values())
  hours = whole * plan.runtime.mesh.size / 3600
  assert any(f" {hours:,.2f} chip-hours; sampling is" in x for x in lines)
  assert any(x.startswith(f"price on v5e: {2 * hours:,.2f} =") for x in lines)
  assert lines[-1].startswith("cheapest: ")
  assert any("2 to 4 evals and 16 drawn completions" in x for x in lines)


def test_disk_is_what_checkpoints_hold(finished, tiny_folder):
  """Within a tenth and 200 KiB of a run's own files, which have metadata."""
  plan = plan_of(tiny_folder)
  line = disk_line(plan.runtime)
  run = finished[0]
  on_disk = sum(
    f.stat().st_size
    for folder in ("organisms", "arms")
    for f in run.glob(f"{folder}/*/checkpoints/**/*")
    if f.is_file()
  )
  said = float(line.split()[1]) * {"KiB": 2**10, "MiB": 2**20}[line.split()[2]]
  assert math.isclose(said, on_disk, rel_tol=0.1, abs_tol=200 * 2**10)
  dropped = plan_of(tiny_folder, keep="results")
  assert disk_line(dropped.runtime).startswith("disk: 0 bytes")


@pytest.mark.long
def test_memory_of_a_device_that_is_no_chip(tiny_folder, capsys):
  def config(memory, chip=None):
    raw = copy.deepcopy(tiny.get_config().to_dict())
    raw["model"]["path"] = str(tiny_folder)
    raw["mesh"] |= {"memory_gib": memory, "chip": chip}
    return from_dict(raw)

  run_dry_run(config(8.0))
  out = capsys.readouterr().out
  assert "of 8 GiB" in out and "time, with" not in out
  with pytest.raises(ConfigError, match="does not fit on a device by"):
    run_dry_run(config(1e-4))
  with pytest.raises(ConfigError, match="does not fit on v5e by"):
    run_dry_run(config(1e-4, "v5e"))
  with pytest.raises(ConfigError, match="mesh.memory_gib = -1"):
    config(-1.0)
