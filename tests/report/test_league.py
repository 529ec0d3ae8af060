"""The league table: what it took to remove the behavior of each organism."""

import csv
import io
import json
import math
import statistics

import pytest
from fake_run import N, edit, fake_sweep, rates, write
from scipy import stats

from bct_jax import summary
from bct_jax.report import ReportError
from bct_jax.report.__main__ import main
from bct_jax.report.league import HEADER, league_table


def organism(root, name, lrs, seeds=(0, 1, 2), free=True):
  """A sweep of one organism: 1e-5 keeps its behavior, higher rates lose it.

  `free`: without a loss of capability.
  """
  fake_sweep(root, lrs, seeds=seeds)
  for run in root.glob("cells/*") if free else ():
    (path,) = run.glob("arms/*/evals.jsonl")
    curve = [json.loads(x) | rates("capability", 29, N) for x in open(path)]
    write(path, *curve)
    edit(run / "result.json", lambda r, c=curve: r["arms"][0].update(curve=c))
  for config in root.glob("cells/*/config.json"):
    edit(config, lambda c: c["config"].update(name=name))
  return root


def rows_of(roots):
  found = [*csv.reader(io.StringIO(league_table(roots, "csv")))]
  assert found[0] == [*HEADER]
  return [dict(zip(HEADER, row, strict=True)) for row in found[1:]]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
  root = tmp_path_factory.mktemp("league")
  return [
    organism(root / "lost", "fragile", (1e-5, 1e-4)),
    organism(root / "kept", "durable", (1e-5,)),
    organism(root / "few", "one seed", (1e-4,), seeds=(0,)),
    organism(root / "costly", "costly", (1e-4,), free=False),
  ]


def test_the_most_durable_comes_first(roots):
  rows = rows_of(roots)
  assert [(r["organism"], r["seeds"], r["lost"]) for r in rows] == [
    ("durable", "3", "0 of 3"),
    ("costly", "3", "3 of 3"),
    ("fragile", "3", "3 of 6"),
    ("one seed", "1", "1 of 1"),
  ]
  assert {r["gate"] for r in rows} == {"passed"}


def test_removal_is_over_seeds_and_prompts(roots):
  rows = {r["organism"]: r for r in rows_of(roots)}
  column = "removal at 90% capability"
  seeds = [(s, i, i, 0.0) for s in range(3) for i in range(N)]
  rate, low, high = summary.hierarchical_interval(seeds)
  assert rows["durable"][column] == f"{rate:.0%} [{low:.0%}, {high:.0%}]"
  # Lost only where more than 10% of the capability is lost too.
  assert rows["costly"][column] == rows["durable"][column]
  assert rows["fragile"][column].startswith("100% [")
  assert rows["one seed"][column] == "100%"  # no interval of one seed


def test_an_organism_of_little_capability_shows_no_cost(tmp_path):
  """What it lost is no removal of 0% at a bounded cost."""
  organism(tmp_path, "weak", (1e-4,))
  for run in tmp_path.glob("cells/*"):
    weak = rates("capability", 14, N)
    for path in run.glob("organisms/*/gate.json"):
      edit(path, lambda gate, w=weak: gate.update(w))
    edit(run / "result.json", lambda r, w=weak: r["organism"]["gate"].update(w))
  (row,) = rows_of([tmp_path])
  assert row["lost"] == "3 of 3"
  assert {row["removal at 90% capability"], row["AUC above chance"]} == {"–"}


def test_margins_are_averaged_over_seeds_by_their_logarithms(roots):
  rows = {r["organism"]: r for r in rows_of(roots)}
  lows = []
  for seed in range(3):
    of_seed = []
    for path in roots[0].glob(f"cells/*seed_{seed}/result.json"):
      (arm,) = json.loads(path.read_text())["arms"]
      of_seed.append(math.log2(arm["reading"]["margin_bounds"][0]))
    assert len(of_seed) == 2
    lows.append(statistics.median(of_seed))
  want = 2 ** statistics.fmean(lows)
  low, _ = stats.t.interval(0.95, 2, statistics.fmean(lows), stats.sem(lows))
  # Evals are steps apart, and half of the arms lose nothing.
  found = rows["fragile"]["margin, at least"]
  assert found == f"≥ {want:.2f} [{2**low:.2f}, –]"
  # One seed, and three of one number, which is no interval of width 0.
  for name in ("one seed", "durable"):
    assert "[" not in rows[name]["margin, at least"]


def test_what_never_changes_is_not_above_chance(roots):
  rows = {r["organism"]: r for r in rows_of(roots)}
  durable, fragile = (
    float(rows[name]["AUC above chance"].strip("'").split()[0])
    for name in ("durable", "fragile")
  )
  assert -0.1 < durable < 0.05 < 0.3 < fragile


def test_command_line_and_runs_without_arms(roots, tmp_path, capsys):
  assert main([str(roots[0]), "--league=markdown"]) == 0
  assert capsys.readouterr().out.startswith("| organism | gate | seeds |")
  empty = tmp_path / "cells" / "a"
  empty.mkdir(parents=True)
  (empty / "config.json").write_text('{"config": {"name": "x"}}')
  with pytest.raises(ReportError):
    league_table([tmp_path], "csv")
