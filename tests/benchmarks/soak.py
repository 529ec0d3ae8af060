"""Runs thousands of updates with evals and saves, and watches the process.

  python tests/benchmarks/soak.py --steps=5000

Prints memory (RSS), open files and threads of the process at each tenth of the
first arm of configs/tiny.py, which is evaluated and saved twenty times. Ends
with code 1 if one of them grows after the second tenth: memory by more than 3%,
the others by more than 15, as in a save that is under way. Needs Linux.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


class Use(NamedTuple):
  """What a process holds."""

  mib: float
  files: int
  threads: int


def read_use(pid: int) -> Use:
  """Reads it from /proc."""
  status = dict(
    line.split(":", 1)
    for line in Path(f"/proc/{pid}/status").read_text().splitlines()
  )
  return Use(
    int(status["VmRSS"].split()[0]) / 1024,
    len(os.listdir(f"/proc/{pid}/fd")),
    int(status["Threads"]),
  )


def last_step(metrics: Path) -> int:
  """Returns the last update that is on record, 0 if none is."""
  if not metrics.exists():
    return 0
  lines = metrics.read_text().splitlines()
  return json.loads(lines[-1])["step"] if lines else 0


def main() -> int:
  """Runs, watches and judges; returns the exit code."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--steps", type=int, default=5000)
  steps = parser.parse_args().steps
  evals = tuple(range(steps // 20, steps, steps // 20))
  with tempfile.TemporaryDirectory() as folder:
    command = [
      *(sys.executable, "-m", "bct_jax.main", "--config=configs/tiny.py"),
      *(f"--workdir={folder}/run", f"--config.train.steps={steps}"),
      f"--config.eval.steps={evals}",
      f"--config.train.checkpoint_every={steps // 20}",
    ]
    with open(f"{folder}/log", "w") as log:
      process = subprocess.Popen(command, stdout=log, stderr=log)
    found: dict[int, Use] = {}
    metrics = Path(folder, "run", "arms", "low", "metrics.jsonl")
    while process.poll() is None and len(found) < 10:
      tenth = last_step(metrics) * 10 // steps
      if tenth and tenth not in found:
        found[tenth] = use = read_use(process.pid)
        print(
          f"update {tenth * steps // 10}: {use.mib:.1f} MiB, {use.files} "
          f"files, {use.threads} threads",
          flush=True,
        )
      time.sleep(0.2)
    process.terminate()
    process.wait()
    if 10 not in found:
      print(Path(folder, "log").read_text()[-2000:], file=sys.stderr)
      return 1
  first, last = found[2], found[10]
  grows = last.mib > 1.03 * first.mib or any(
    now > before + 15 for before, now in zip(first[1:], last[1:], strict=True)
  )
  print("it grows" if grows else "nothing grows")
  return int(grows)


if __name__ == "__main__":
  sys.exit(main())
