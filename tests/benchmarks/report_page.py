"""Times the report of a large sweep: its making, and its opening in Chromium.

    python tests/benchmarks/report_page.py

300 arms and 230,400 completions, no two alike, as in a sweep over ten
learning rates and thirty seeds. The times of a page are from its navigation:
to its first paint, to its load event, and until its answers can be searched.
"""

import argparse
import json
import random
import statistics
import string
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "support"), str(HERE.parent.parent)]

from chromium import Tab, chromium  # noqa: E402
from fake_run import fake_sweep  # noqa: E402

from bct_jax.infra import done_file  # noqa: E402
from bct_jax.report import write_report  # noqa: E402

READY = "document.getElementById('browse-tools')?.hidden === false"
TIMES = """(() => {
  const [navigation] = performance.getEntriesByType("navigation");
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  return [paint ? paint.startTime : -1, navigation.loadEventEnd];
})()"""


def make_texts_differ(cell: Path) -> None:
  """Adds twenty random words of four letters to each completion of a cell."""
  for path in cell.glob("arms/*/rollouts/*.jsonl"):
    rng = random.Random(str(path))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
      letters = rng.choices(string.ascii_lowercase, k=80)
      words = ["".join(letters[i : i + 4]) for i in range(0, 80, 4)]
      row["text"] += " " + " ".join(words)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  (cell / "done.json").unlink()
  done_file.write_done(cell, "0a1b2c3d")


def time_page(tab: Tab, page: Path) -> tuple[float, float, float]:
  """Returns seconds to the first paint, the load event, and the browser."""
  tab.open(Path("/dev/null"))
  begin = time.perf_counter()
  tab.call("Page.navigate", url=page.as_uri())
  tab.wait(READY)
  usable = time.perf_counter() - begin
  paint, loaded = tab.run(TIMES)
  return paint / 1000, loaded / 1000, usable


def main() -> None:
  parser = argparse.ArgumentParser(description="Times a large report.")
  parser.add_argument("--rates", type=int, default=10)
  parser.add_argument("--seeds", type=int, default=30)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--keep", type=Path, help="folder that stays")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    root = args.keep or Path(temporary)
    sweep, page = root / "sweep", root / "report.html"
    if not sweep.is_dir():
      rates = [1e-5 * 1.6**i for i in range(args.rates)]
      fake_sweep(sweep, rates, seeds=tuple(range(args.seeds)))
      for cell in (sweep / "cells").iterdir():
        make_texts_differ(cell)
    begin = time.perf_counter()
    write_report([sweep], page)
    print(f"written in {time.perf_counter() - begin:.1f} s,"
          f" {page.stat().st_size / 1e6:.1f} MB")  # fmt: skip
    with chromium(Path(temporary) / "profile") as tab:
      rounds = [time_page(tab, page) for _ in range(args.rounds)]
    names = ("first paint", "load event", "answers can be searched")
    for name, seconds in zip(names, zip(*rounds, strict=True), strict=True):
      print(f"{name}: {statistics.median(seconds):.2f} s")


if __name__ == "__main__":
  main()
