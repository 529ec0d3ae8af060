"""--mode=calibrate: answers to label, and what their labels say of a scorer."""

import collections
import csv
import io
import json
import shutil

import pytest
from fake_run import fake_run

import bct_jax
from bct_jax.modes.calibrate import measure_labels, run_calibrate, write_answers
from bct_jax.report import write_report
from bct_jax.report.tables import reading_table


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  run = fake_run(tmp_path_factory.mktemp("runs") / "plain")
  config = json.loads((run / "config.json").read_text())
  config["config"]["eval"] = {"seed": 3}
  (run / "config.json").write_text(json.dumps(config))
  said = write_answers(run, 60)
  assert "wrote 60 answers" in said
  return run


@pytest.fixture
def run(written, tmp_path):
  return shutil.copytree(written, tmp_path / "run")


def sample_of(run):
  lines = (run / "calibration" / "sample.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def rows_of(run):
  text = (run / "calibration" / "answers.csv").read_text()
  return list(csv.DictReader(io.StringIO(text)))


def save(path, rows, delimiter=","):
  out = io.StringIO()
  writer = csv.DictWriter(out, rows[0], delimiter=delimiter)
  writer.writeheader()
  writer.writerows(rows)
  path.write_text(out.getvalue(), encoding="utf-8-sig")
  return path


def by_hand(run, change=lambda row: row["scorer"]):
  """Rows with a label by hand, which a function of the sample's row gives."""
  labels = {row["answer"]: change(row) for row in sample_of(run)}
  return [{**r, "label": labels[int(r["answer"])]} for r in rows_of(run)]


def test_a_sample_has_all_labels_and_hides_them(run, tmp_path):
  sample, rows = sample_of(run), rows_of(run)
  counts = collections.Counter((r["split"], r["scorer"]) for r in sample)
  assert len(rows) == 60 and min(counts.values()) >= 10
  assert {k for k, _ in counts} == {"eval", "heldout"}
  total = collections.Counter()
  for row in sample:
    total[row["split"]] += row["weight"]
  saved = [
    json.loads(line)["split"]
    for path in [
      *run.glob("organisms/*/rollouts.jsonl"),
      *run.glob("arms/*/rollouts/*.jsonl"),
    ]
    for line in path.read_text().splitlines()
  ]
  assert total["eval"] == pytest.approx(saved.count("eval"), rel=0.15)
  assert {r["label"] for r in rows} == {""} and "scorer" not in rows[0]
  page = (run / "calibration" / "answers.html").read_text()
  assert page.count('class="sample"') == 60
  assert "default-src 'none'" in page and "<script" not in page
  with pytest.raises(ValueError, match="is there already"):
    write_answers(run, 60)
  again = shutil.copytree(run, tmp_path / "again")
  shutil.rmtree(again / "calibration")
  write_answers(again, 60)
  assert sample_of(again) == sample


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_labels_that_agree_correct_nothing(run, delimiter):
  rows = [{**r, "label": f" {r['label'].upper()}"} for r in by_hand(run)]
  said = measure_labels(run, save(run / "l.csv", rows, delimiter))
  assert "kappa 1.00 [0." in said and "sensitivity 100% [" in said
  for line in bct_jax.load_results(run):
    assert line["agreed_corrected"] is None  # by hand all are
    for name in ("initial", "alternate"):
      low, high = (line[f"{name}_corrected_{x}"] for x in ("low", "high"))
      assert line[f"{name}_corrected"] == pytest.approx(line[name])
      assert low <= line[name] <= high


def test_rates_stand_beside_corrected_ones(run):
  def fooled(row):
    wrong = row["scorer"] == "alternate" and row["answer"] % 3 == 0
    return "initial" if wrong else row["scorer"]

  assert "alternate_corrected" in bct_jax.load_results(run)[0]
  assert bct_jax.load_results(run)[0]["alternate_corrected"] is None
  assert "corrected" not in reading_table([run], "csv")
  measure_labels(run, save(run / "l.csv", by_hand(run, fooled)))
  lines = [r for r in bct_jax.load_results(run) if 0 < r["alternate"] < 1]
  assert lines
  for line in lines:
    assert line["alternate_corrected"] < line["alternate"]
    assert line["initial_corrected"] > line["initial"] or not line["initial"]
  table = reading_table([run], "markdown")
  assert "| initial corrected | alternate corrected |" in table
  page = write_report([run], run / "r.html").read_text()
  assert "How good the labels are" in page and "specificity" in page
  found = json.loads((run / "calibration.json").read_text())
  assert found["rates"]["alternate"]["specificity"] < 1
  assert found["splits"]["eval"]["kappa"] < 1


def broken(rows, kind):
  first = dict(rows[0])
  if kind == "label":
    return [{**first, "label": "inital"}, *rows[1:]]
  if kind == "empty":
    return [*rows[:1], {**rows[1], "label": ""}, *rows[2:]]
  if kind == "missing":
    return rows[1:]
  if kind == "twice":
    return [*rows, first]
  if kind == "unknown":
    return [{**first, "answer": "61"}, *rows[1:]]
  return [{k: v for k, v in r.items() if k != "label"} for r in rows]


@pytest.mark.parametrize(
  "kind, error",
  [
    ("label", "label = 'inital': of eval answers it must be one of"),
    ("empty", "label = '': of eval answers"),
    ("missing", "1 answers have no row, the first is 1"),
    ("twice", "answer 1 is there twice"),
    ("unknown", "answer = '61': is none of the 60"),
    ("column", "needs one column 'label'"),
  ],
)
def test_wrong_labels_are_said_with_their_line(run, kind, error):
  path = save(run / "l.csv", broken(by_hand(run), kind))
  with pytest.raises(ValueError) as e:
    run_calibrate(run, path, None)
  where, _, said = str(e.value).partition(": ")
  assert said.startswith(error)
  if kind != "missing":
    file, _, line = where.rpartition(":")
    assert file == str(path)
    starts = {"label": "1,", "empty": "2,", "unknown": "61,", "twice": "1,"}
    # Prompts have several lines, and so have rows.
    text = path.read_text("utf-8-sig").splitlines()[int(line) - 1]
    assert text.startswith(starts.get(kind, "answer,"))
  assert not (run / "calibration.json").exists()
