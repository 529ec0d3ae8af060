"""Sampling speed against transformers and Tunix, side by side.

  python tests/benchmarks/sample.py [--model=FOLDER] [--rounds=3] [--out=FILE]
    [--tunix_python=PYTHON] [--workloads=a,b1,b4]
    [--batches=64,128,192] [--torch_batches=32,64,128]

Each contender is a fresh process that gets the same token ids and compiles
before it is timed; rounds are interleaved and medians compared. After the first
round each kind goes on with its fastest batch size. Parity comes first: greedy
ids must be equal, but for rows where two tokens tie. Workloads:
a: 64 prompts x 32 new tokens, no early stop. b1, b4: 200 prompts of 20 to 120
tokens, the end of the turn respected, up to 64 new tokens, 1 and 4 samples.
`ratio` in FILE is our rows per second over the faster peer's. A floor is the
larger of two times: of all products, each prompt and each new token once; and
of reading the weights once for each step that the batch size takes at least.
What the machine can do is measured first, with torch and XLA.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "support"), str(HERE.parent.parent)]

from contenders import Contender, work  # noqa: E402
from samplers import WORKERS  # noqa: E402

WORKLOADS = {
  "a": {"samples": 1, "new": 32, "stop": False},
  "b1": {"samples": 1, "new": 64, "stop": True},
  "b4": {"samples": 4, "new": 64, "stop": True},
}
BATCHES = {"batches": (64, 128, 192), "torch_batches": (32, 64, 128)}


def make_prompts(chat, name: str) -> list[list[int]]:
  """Questions of the settings' world behind a few facts, as chat prompts."""
  from bct_jax.settings.probes.capability import make_probe

  probe = make_probe("recall")
  facts = [
    e.messages[-1]["content"].split(". ")[0] + "."
    for e in probe.examples(600, 7)
  ]
  questions = [e.messages[-1]["content"] for e in probe.examples(400, 8)]
  out, i = [], 0
  count = 64 if name == "a" else 200
  while len(out) < count:
    others = i % (7 if name == "a" else 15)
    text = " ".join([*facts[i : i + others], questions[i % len(questions)]])
    system = {"role": "system", "content": "Answer briefly."}
    ids = chat.prompt([system, {"role": "user", "content": text}])
    if 20 <= len(ids) <= 120:
      out.append(ids)
    i += 1
  return out


def measure() -> tuple[float, float]:
  """Operations per second of a large product and bytes per second read."""
  import jax
  import torch as t

  def seconds(run) -> float:
    times = []
    for _ in range(7):
      start = time.monotonic()
      run()
      times.append(time.monotonic() - start)
    return min(times)

  with jax.default_device(jax.devices("cpu")[0]):
    own = jax.numpy.ones((1024, 1024))
  product = jax.jit(jax.numpy.matmul)
  ones, many = t.ones(1024, 1024), t.ones(1 << 27)
  fastest = min(
    seconds(lambda: product(own, own).block_until_ready()),
    seconds(lambda: ones @ ones),
  )
  rate = 2 * 1024**3 / fastest
  bandwidth = 4 * len(many) / seconds(many.sum)
  print(f"{rate / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s in float32")
  return rate, bandwidth


def make_floor(task: dict, rate: float, bandwidth: float):
  """Least seconds of a contender by products and by weights read."""
  import jax

  from bct_jax.models.config import from_hf
  from bct_jax.models.decoder import Decoder
  from bct_jax.sizing.sizes import num_params

  config = from_hf(Path(task["model"]))
  head = config.vocab_size * config.width
  shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0))
  body = num_params(shapes["layers"])

  def floor(contender: Contender) -> float:
    new = sum(map(len, contender.result))
    passed = sum(map(len, task["prompts"])) + new
    longest = max(map(len, contender.result))
    steps = max(longest, new / contender.task["batch"])
    return max(
      2 * (body * passed + head * new) / rate,
      4 * (body + head) * steps / bandwidth,
    )

  return floor


def compare(name: str, task: dict, limits, options) -> dict:
  """Runs one workload with all contenders and prints a table."""
  here = sys.executable
  plan = [(f"ours {n}", here, {"batch": n}) for n in options.batches]
  for batch in options.torch_batches:
    plan.append((f"torch {batch}", here, {"batch": batch, "cache": "dynamic"}))
  if options.static:
    batch = options.torch_batches[-1]
    plan.append(
      (f"torch static {batch}", here, {"batch": batch, "cache": "static"})
    )
  if options.tunix_python:
    plan.append(("tunix 64", options.tunix_python, {"batch": 64}))
  runners = []
  for label, python, extra in plan:
    greedy = {**task, **extra, "temperature": 0.0}
    tempered = {**greedy, "temperature": 1.0 if task["samples"] > 1 else 0.0}
    runners.append(Contender(label, python, __file__, tempered))
  if task["samples"] == 1:
    agree(runners, task["stop_ids"])
  best: dict[str, Contender] = {}  # of each kind
  for i in range(options.rounds):
    for runner in best.values() if i else runners:
      runner.round()
    if not i:
      for r in sorted(runners, key=lambda r: -r.median):
        best[r.kind] = r
  own, floor = best["ours"], make_floor(task, *limits)
  rows = len(task["prompts"]) * task["samples"]
  print(f"\n### {name}: {rows} rows, up to {task['new']} new tokens")
  print(
    "| contender, batch | rounds | rows/s | seconds | first run "
    "| mean new tokens | floor, seconds | share | ratio |"
  )
  print("|---|---|---|---|---|---|---|---|---|")
  for r in runners:
    least = floor(r)
    print(
      f"| {r.name} | {len(r.seconds)} | {rows / r.median:.2f} | "
      f"{r.median:.1f} | {r.first:.1f} | "
      f"{statistics.mean(map(len, r.result)):.1f} | "
      f"{least:.1f} | {least / r.median:.0%} | "
      f"{r.median / own.median:.2f} |",
      flush=True,
    )
    r.end()
  rates = {r.name: rows / r.median for r in runners}
  peer = min(r.median for kind, r in best.items() if kind != "ours")
  return {"ratio": peer / own.median, "rates": rates}


def agree(runners: list[Contender], stop_ids: list[int]) -> None:
  """Greedy rows equal ours, or part where a tie may be."""
  for r in runners[1:]:
    pairs = list(zip(runners[0].result, r.result, strict=True))
    # Tunix leaves the end of the turn out.
    ends = ([], *([i] for i in stop_ids))
    different = [
      i
      for i, (a, b) in enumerate(pairs)
      if a[len(b) :] not in ends or a[: len(b)] != b
    ]
    print(f"parity: {r.name}: {len(different)} of {len(pairs)} rows differ")
    if len(different) > 0.03 * len(pairs):
      raise SystemExit(f"{r.name} does not give the same greedy text")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--model", default="demo:smollm2")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--out")
  parser.add_argument("--tunix_python")
  parser.add_argument("--static", action="store_true")
  parser.add_argument("--workloads", default="a,b1,b4")
  for flag, default in BATCHES.items():
    parser.add_argument(
      f"--{flag}",
      type=lambda s: tuple(map(int, s.split(","))),
      default=default,
    )
  parser.add_argument("--worker", choices=tuple(WORKERS))
  options = parser.parse_args()
  if options.worker:
    work(WORKERS, options.worker)
    return
  from bct_jax.data.chat import Chat
  from bct_jax.models import demo
  from bct_jax.models.config import from_hf

  folder = demo.resolve(options.model)
  chat = Chat(folder, from_hf(folder).vocab_size)
  out: dict = {"ratio": {}, "rates": {}}
  limits = measure()
  for name in options.workloads.split(","):
    workload = WORKLOADS[name]
    task = {
      "model": str(folder),
      "prompts": make_prompts(chat, name),
      "samples": workload["samples"],
      "new": workload["new"],
      "stop_ids": sorted(chat.stop_ids) if workload["stop"] else [],
    }
    found = compare(name, task, limits, options)
    out["ratio"][name], out["rates"][name] = found["ratio"], found["rates"]
    if options.out:
      Path(options.out).write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
  main()
