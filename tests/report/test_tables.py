"""Tables of results, for papers, spreadsheets and notebooks."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys

import pytest
from fake_run import HOSTILE, STEPS, N, fake_run, hostile_run, schema_1

import bct_jax
from bct_jax.report import ReportError, tables
from bct_jax.report.__main__ import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return fake_run(tmp_path_factory.mktemp("runs") / "plain")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
  return hostile_run(tmp_path_factory.mktemp("runs") / "hostile")


def test_load_results_has_a_dict_for_each_eval(run):
  rows = bct_jax.load_results([run])
  assert rows == bct_jax.load_results(str(run))
  assert [r["step"] for r in rows] == [*STEPS, *STEPS]
  assert len({tuple(r) for r in rows}) == 1
  last = rows[-1]
  assert (last["arm"], last["alternate"], last["n"]) == ("lr_1e-4", 1.0, N)
  assert 0.8 < last["alternate_low"] < 1.0 == last["alternate_high"]
  assert (last["behavior"], last["integrity"]) == ("replaced", "intact")
  assert (last["loss_after"], last["loss_by"]) == (4, 8)
  assert (last["style_after"], last["style_by"]) == (8, 16)
  assert last["margin"] is None and last["margin_high"] == 8 / 9
  kept = rows[0]
  assert (kept["behavior"], kept["loss_by"]) == ("kept", None)
  assert kept["censored_at"] == 40 and kept["margin_high"] is None
  assert kept["verdict"] is None
  assert kept["rank"] is None and kept["logprob_initial"] is None


def test_load_results_has_all_seeds(run, tmp_path):
  other = shutil.copytree(run, tmp_path / "other")
  record = json.loads((other / "config.json").read_text())
  record["config"] |= {
    "organism": {"kind": "sft", "train": {"seed": 3}},
    "train": {"adapter_seed": 4},
    "eval": {"seed": 5},
  }
  (other / "config.json").write_text(json.dumps(record))
  names = ("organism_seed", "adapter_seed", "eval_seed")
  found = {tuple(r[k] for k in names) for r in bct_jax.load_results(other)}
  assert found == {(3, None, 5)}  # all weights are trained: no adapter
  path = other / "result.json"
  result = json.loads(path.read_text())
  for arm, seed in zip(result["arms"], (6, 7), strict=True):
    arm |= {"rank": 2, "seed": seed}
  path.write_text(json.dumps(result))
  assert {r["adapter_seed"] for r in bct_jax.load_results(other)} == {4}
  del record["config"]["train"]["adapter_seed"]
  (other / "config.json").write_text(json.dumps(record))
  assert {r["adapter_seed"] for r in bct_jax.load_results(other)} == {6, 7}


def test_load_results_imports_little():
  code = "import bct_jax, sys; bct_jax.load_results([]); "
  code += "print({'jax', 'matplotlib', 'jinja2', 'scipy'} & {*sys.modules})"
  output = subprocess.check_output([sys.executable, "-c", code], text=True)
  assert output.strip() == "set()"


def test_csv_of_evals_reads_back(run):
  rows = list(csv.DictReader(io.StringIO(tables.evals_csv([run]))))
  wanted = bct_jax.load_results([run])
  assert len(rows) == len(wanted)
  for found, want in zip(rows, wanted, strict=True):
    assert float(found["initial"]) == want["initial"]
    assert found["rank"] == "" and float(found["lr"]) == want["lr"]


def test_tables_have_a_row_for_each_arm(run):
  latex = tables.reading_table([run], "latex")
  assert latex.count(r"\\") == 3 and "lr\\_1e-4" in latex
  assert "100\\% [89\\%, 100\\%]" in latex and "5 to 8" in latex
  markdown = tables.reading_table([run], "markdown").splitlines()
  assert len(markdown) == 4
  cells = {len(re.findall(r"(?<!\\)\|", line)) for line in markdown}
  assert cells == {17}
  rows = list(csv.reader(io.StringIO(tables.reading_table([run], "csv"))))
  assert [r[1] for r in rows] == ["arm", "lr_1e-5", "lr_1e-4"]
  assert rows[1][-4:] == ["kept, intact", "9 to 16", "> 40", "above 2.6"]


def test_a_run_of_schema_1_has_its_word(run, tmp_path):
  old = schema_1(shutil.copytree(run, tmp_path / "old"))
  lines = bct_jax.load_results([old])
  assert lines[-1]["verdict"] == "transferred"
  assert lines[-1]["behavior"] is None
  # Both follow from the curve.
  assert (lines[-1]["loss_after"], lines[-1]["loss_by"]) == (4, 8)
  assert "| transferred | 9 to 16 | 5 to 8 | - |" in (
    tables.reading_table([old], "markdown")
  )


def test_table_where_training_got_equally_far(run):
  def steps(*at):
    table = tables.reading_table([run], "csv", *at)
    return [row["step"] for row in csv.DictReader(io.StringIO(table))]

  curves = {}
  for row in bct_jax.load_results([run]):
    curves.setdefault(row["arm"], []).append(row)
  level = 0.5
  first = [
    next(r["step"] for r in curve if r["step"] and r["decorated"] >= level)
    for curve in curves.values()
  ]
  assert steps(("decorated", level)) == [str(s) for s in first]
  assert max(first) < STEPS[-1] and steps() == [str(STEPS[-1])] * 2
  # At step 0 it is the organism, which no arm has trained.
  assert steps(("initial", 0.01))[0] == str(STEPS[1])
  assert steps(("other", 1.0)) == [f"{STEPS[-1]} (other below 100%)"] * 2
  with pytest.raises(ReportError, match="speed: no such rate"):
    tables.reading_table([run], "csv", ("speed", 0.9))
  for wrong in ("--at=agreed", "--at=agreed=2"):
    with pytest.raises(SystemExit, match="2"):
      main([str(run), "--table=csv", wrong])


def test_hostile_strings_stay_inert(hostile):
  for row in csv.reader(io.StringIO(tables.evals_csv([hostile]))):
    assert not any(re.match(r"[=@\t\r]", cell) for cell in row)
  markdown = tables.reading_table([hostile], "markdown")
  assert len(markdown.splitlines()) == 4 and "<script" not in markdown
  latex = tables.reading_table([hostile], "latex")
  assert "<" not in latex and latex.count("\n") == 8


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@A1", "\t=1", *HOSTILE])
def test_no_cell_is_a_formula(cell):
  found = next(csv.reader(io.StringIO(tables._csv([[cell, 2.5]]))))
  assert not found[0][:1].startswith(("=", "+", "-", "@", "\t", "\r"))
  assert found[1] == "2.5"


def test_command_prints_a_table_or_says_what_is_wrong(run, tmp_path, capsys):
  file = tmp_path / "evals.csv"
  assert main([str(run), "--table=markdown", f"--evals={file}"]) == 0
  assert capsys.readouterr().out == tables.reading_table([run], "markdown")
  assert file.read_text() == tables.evals_csv([run])
  assert main([str(tmp_path / "none"), "--table=csv"]) == 2
  assert "no such run directory" in capsys.readouterr().err
  with pytest.raises(ReportError, match="no arm"):
    tables.evals_csv([])
