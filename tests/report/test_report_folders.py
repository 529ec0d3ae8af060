"""Reports of sweeps, of runs that go on, and of runs that lost a file."""

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from fake_run import (
  each_file_gone,
  edit,
  fake_run,
  fake_sweep,
  hostile_run,
  told,
)

import bct_jax
from bct_jax.report import ReportError, watch, write_report
from bct_jax.report.__main__ import main
from bct_jax.report.read import folders
from bct_jax.report.read.types import OrganismRecord
from bct_jax.report.text import describe_install

RATES = (1e-5, 1e-4)


@pytest.fixture
def sweep(tmp_path):
  return fake_sweep(tmp_path / "sweep", RATES)


def cells(root):
  return sorted((root / "cells").iterdir())


# --- sweeps -------------------------------------------------------------------


def test_a_sweep_is_all_its_cells(sweep, capsys):
  rows = bct_jax.load_results([sweep])
  assert rows == bct_jax.load_results(cells(sweep))
  assert {r["lr"] for r in rows} == set(RATES)
  assert main([str(sweep), "--table=csv"]) == 0
  assert len(capsys.readouterr().out.splitlines()) == 3


def test_cells_that_have_not_begun_are_named(sweep, tmp_path):
  (sweep / "cells" / "made").mkdir()
  plan = {"cells": [*(c.name for c in cells(sweep)), "later"]}
  (sweep / "cells.json").write_text(json.dumps(plan))
  runs, notes = folders.load_runs([sweep])
  assert len(runs) == 2
  assert "2 of 4 cells" in notes[0] and notes[0].endswith("made, later")
  page = write_report([sweep], tmp_path / "r.html").read_text("utf-8")
  assert "2 of 4 cells" in page and "makes this file again" in page
  (sweep / "cells.json").write_text('{"cells": 3}')
  with pytest.raises(ReportError, match=r"cells\.json: cells should be"):
    folders.load_runs([sweep])


def test_a_cell_that_cannot_be_read_hides_no_other(sweep, tmp_path, capsys):
  cell = cells(sweep)[0]
  text = (cell / "result.json").read_text()
  (cell / "result.json").write_text(text[:-9])
  lines = bct_jax.load_results([sweep])
  assert lines == bct_jax.load_results([cells(sweep)[1]])
  said = f"The cell {cell.name} is left out: {cell / 'result.json'}"
  assert f"warning: {said}" in capsys.readouterr().err
  page = write_report([sweep], tmp_path / "r.html").read_text("utf-8")
  assert said in page
  with pytest.raises(ReportError, match="result.json"):
    bct_jax.load_results([cell])


def test_an_unfinished_page_says_so_and_a_finished_one_does_not(
  sweep, tmp_path
):
  def page():
    return write_report([sweep], tmp_path / "r.html").read_text("utf-8")

  assert "may be reloaded" not in page()
  cell = cells(sweep)[0]
  for name in ("result.json", "done.json", "env.json"):
    (cell / name).unlink()
  said = " ".join(page().split())
  assert "Made while 1 of 2 runs were unfinished." in said
  assert "env.json is not there yet" in said


def test_a_failed_cell_says_why(sweep, tmp_path):
  cell = cells(sweep)[0]
  for path in (cell / "done.json", cell / "result.json"):
    path.unlink()
  (cell / "error.json").write_text('{"error": "loss is <not> finite"}')
  page = write_report([sweep], tmp_path / "r.html").read_text("utf-8")
  assert "sweep failed: loss is &lt;not&gt; finite" in page


# --- files beside the report --------------------------------------------------


@pytest.mark.long
def test_every_figure_and_table_is_a_file(sweep, tmp_path):
  out, folder = tmp_path / "r.html", tmp_path / "new" / "figures"
  assert main([str(sweep), f"--out={out}", f"--figures={folder}"]) == 0
  svgs = sorted(folder.glob("*.svg"))
  page = out.read_text("utf-8")
  assert len(svgs) == page.count("<svg ") > 6
  for path in svgs:
    root = ET.parse(path).getroot()  # a file of its own, for any reader
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("width")
    content = path.read_text("utf-8")
    assert "var(" not in content and "currentColor" not in content
    assert "organism: sft, adamw, lr 5e-5, 60 updates, batch 8" in content
    png = path.with_suffix(".png").read_bytes()
    assert png.startswith(b"\x89PNG")
  names = {p.name for p in folder.glob("*.csv")}
  assert names == {"evals.csv", "readings.csv", "gates.csv"}
  gates = list(csv.DictReader((folder / "gates.csv").open()))
  assert {g["run"] for g in gates} == {str(c) for c in cells(sweep)}
  agreed = next(g for g in gates if g["rate"] == "agreed")
  assert float(agreed["measured"]) == 31 / 32 and agreed["bar"] == "0.9"
  again = {p.name: p.read_bytes() for p in folder.iterdir()}
  assert main([str(sweep), f"--out={out}", f"--figures={folder}"]) == 0
  assert again == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_caption_says_how_organisms_were_made_and_in_what_they_differ():
  made = {
    "optimizer": "adamw", "lr": 5e-4, "steps": 60, "samples": 512, "rank": 8,
    "merged": False, "seed": 0, "data_hash": "d" * 64, "source": "template",
  }  # fmt: skip
  one = OrganismRecord("sft", "h", {}, None, made)
  other = dataclasses.replace(one, install={**made, "lr": 5e-5, "seed": 1})
  told = "60 updates, 512 samples, rank 8"
  assert describe_install([one, one]) == (
    f"sft, adamw, lr 5e-4, {told}, seed 0, data dddddddd, adapter not merged"
  )
  assert describe_install([one, other]) == (
    f"sft, adamw, {told}, data dddddddd, adapter not merged, they differ in lr,"
    " seed"
  )
  whole = dataclasses.replace(one, install={"rank": None, "merged": None})
  assert describe_install([whole]) == "sft, all weights"
  assert describe_install([OrganismRecord("hint", "h", {}, None)]) == "hint"
  assert describe_install([OrganismRecord("", "", {}, None)]) == ""


def test_hostile_names_make_plain_files_of_text(tmp_path):
  run, folder = hostile_run(tmp_path / "run"), tmp_path / "figures"
  write_report([run], tmp_path / "r.html", folder)
  for path in folder.iterdir():
    assert (
      path.stem.replace("-", "").replace("_", "").replace(".", "").isalnum()
    )
    if path.suffix == ".svg":
      tags = {e.tag.split("}")[1] for e in ET.parse(path).iter()}
      assert not {"script", "image", "foreignObject"} & tags
    if path.suffix == ".csv":
      for row in csv.reader(path.open()):
        assert not any(cell[:1] in ("=", "@", "\t", "\r") for cell in row)


# --- runs that go on ----------------------------------------------------------


@pytest.mark.long
def test_watch_remakes_what_changed_until_all_is_done(
  sweep, tmp_path, monkeypatch, capsys
):
  first, second = cells(sweep)
  held = shutil.move(second, tmp_path / "held")
  plan = {"cells": [first.name, second.name]}
  (sweep / "cells.json").write_text(json.dumps(plan))
  out, seen, written = tmp_path / "r.html", [], []

  def begin():
    (second / "arms").mkdir(parents=True)
    (second / "config.json").write_text((held / "config.json").read_text())

  def cut():
    (second / "env.json").write_text("{")

  def finish():
    shutil.rmtree(second)
    shutil.copytree(held, second)

  changes = [lambda: None, begin, cut, finish]

  def sleep(seconds):
    assert seconds == 0.5
    seen.append(out.read_text("utf-8"))
    changes.pop(0)()

  real = watch.write_report
  monkeypatch.setattr(watch.time, "sleep", sleep)
  monkeypatch.setattr(
    watch,
    "write_report",
    lambda *args: [written.append(len(seen)), real(*args)][1],
  )
  assert main([str(sweep), f"--out={out}", "--watch=0.5"]) == 0
  # At once; not for nothing; after the begin, the damage and the end.
  assert written == [0, 2, 3, 4] and changes == []
  assert f"not begun: {second.name}" in seen[0] and seen[1] == seen[0]
  assert "These arms have not begun" in seen[2]
  assert seen[3] == seen[2]
  # An open page reloads itself, until there is nothing more to come.
  assert all('data-reload="2.0"' in page for page in seen)
  assert all("location.reload()" in page for page in seen)
  last = out.read_text("utf-8")
  assert "unfinished" not in last.split("<main>")[0]
  assert last == write_report([sweep], tmp_path / "b.html").read_text("utf-8")
  said = capsys.readouterr()
  assert "env.json: not JSON" in said.err and said.out.count("r.html (") == 3


def test_watch_ends_with_an_interrupt_or_a_wrong_folder(
  tmp_path, monkeypatch, capsys
):
  run = fake_run(tmp_path / "run")
  (run / "done.json").unlink()

  def interrupt(seconds):
    raise KeyboardInterrupt

  monkeypatch.setattr(watch.time, "sleep", interrupt)
  out = tmp_path / "r.html"
  assert main([str(run), f"--out={out}", "--watch"]) == 0 and out.exists()
  assert main([str(tmp_path / "none"), "--watch"]) == 2
  assert "no such run directory" in capsys.readouterr().err
  for bad in (["--watch=0"], ["--watch", "--table=csv"]):
    with pytest.raises(SystemExit, match="2"):
      main([str(run), *bad])


# --- files that are gone ------------------------------------------------------


def test_each_file_that_is_gone_is_named(tmp_path):
  run = fake_run(tmp_path / "run")
  assert told(run) == ""
  names = each_file_gone(run, lambda name: told(run))
  assert len(names) > 20
  shutil.rmtree(run / "arms" / "lr_1e-4")
  assert "Missing, though the run is done: arms/lr_1e-4\n" in told(run)


def test_a_lost_file_that_no_figure_needs_is_a_note_in_the_page(tmp_path):
  run = fake_run(tmp_path / "run")
  edit(run / "done.json", lambda d: d["files"].append("arms/a/checkpoints/4/x"))
  page = write_report([run], tmp_path / "r.html").read_text("utf-8")
  assert "Missing, though the run is done: arms/a" in page


def test_command_line_has_no_traceback_for_a_lost_file(tmp_path):
  run = fake_run(tmp_path / "run")
  (run / "arms/lr_1e-4/metrics.jsonl").unlink()
  done = subprocess.run(
    [sys.executable, "-m", "bct_jax.report", str(run)],
    capture_output=True,
    text=True,
    cwd=tmp_path,
  )
  assert done.returncode == 2 and done.stderr.count("\n") == 1
  assert "metrics.jsonl: missing" in done.stderr
