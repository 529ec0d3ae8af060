"""Sampling speed against transformers and Tunix, side by side.

  python tests/benchmarks/sample.py [--model=FOLDER] [--rounds=3] [--out=FILE]
    [--tunix_python=PYTHON] [--workloads=a,b1,b4]

Each contender is a fresh process that gets the same token ids and compiles
before it is timed; rounds are interleaved and medians compared. After the first
round each kind goes on with its fastest batch size. Parity comes first: greedy
ids must be equal, but for rows where two tokens tie. Workloads:
a: 64 prompts x 32 new tokens, no early stop. b1, b4: 200 prompts of 20 to 120
tokens, the end of the turn respected, up to 64 new tokens, 1 and 4 samples.
`ratio` in FILE is our rows per second over the faster peer's.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from contenders import Contender, load_tunix, work  # noqa: E402

WORKLOADS = {
  "a": {"samples": 1, "new": 32, "stop": False},
  "b1": {"samples": 1, "new": 64, "stop": True},
  "b4": {"samples": 4, "new": 64, "stop": True},
}
BATCHES = (64, 128, 192)
TORCH_BATCHES = (32, 64, 128)


def make_prompts(chat, name: str) -> list[list[int]]:
  """Questions of the settings' world behind a few facts, as chat prompts."""
  from bct_jax.settings.capability import make_probe

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


# --- contenders, each in a process of its own ---------------------------------


def ours(task: dict):
  from bct_jax import allocator

  allocator.keep_pages()  # as a run does, before JAX starts
  import jax
  from helpers import make_mesh, sampling
  from parity import load

  from bct_jax import sampler
  from bct_jax.models import decoder

  mesh = make_mesh()
  model, params = load(Path(task["model"]), mesh)
  rows = [p for p in task["prompts"] for _ in range(task["samples"])]
  config = sampling(
    temperature=task["temperature"],
    max_new_tokens=task["new"],
    batch_size=task["batch"],
    prefill_tokens=512,
  )
  stop = frozenset(task["stop_ids"]) or frozenset({-1})
  sample = sampler.make_sampler(model, config, stop, mesh)
  with jax.set_mesh(mesh):
    flat = jax.jit(decoder.unstack)(params)
    del params

    def run():
      return [c.tokens for c in sample(flat, rows, range(len(rows)), 0)]

    return run


def torch(task: dict):
  import torch as t
  import transformers

  t.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    task["model"], dtype=t.float32
  ).eval()
  prompts, samples, batch = task["prompts"], task["samples"], task["batch"]
  stop = task["stop_ids"]
  order = sorted(range(len(task["prompts"])), key=lambda i: len(prompts[i]))
  settings = {
    "max_new_tokens": task["new"],
    "do_sample": task["temperature"] > 0,
    "num_return_sequences": samples,
    "eos_token_id": stop or None,
    "pad_token_id": 0,
  }
  if not stop:
    settings["min_new_tokens"] = task["new"]
    model.generation_config.eos_token_id = None
  if task["temperature"] > 0:
    settings |= {"temperature": task["temperature"], "top_k": 0, "top_p": 1.0}
  if task["cache"] == "static":
    settings["cache_implementation"] = "static"

  def run():
    out: list = [None] * (len(prompts) * samples)
    step = max(1, batch // samples)
    for start in range(0, len(order), step):
      members = order[start : start + step]
      longest = max(len(prompts[i]) for i in members)
      ids = t.zeros(len(members), longest, dtype=t.long)
      mask = t.zeros_like(ids)
      for r, i in enumerate(members):
        ids[r, longest - len(prompts[i]) :] = t.tensor(prompts[i])
        mask[r, longest - len(prompts[i]) :] = 1
      with t.no_grad():
        made = model.generate(ids, attention_mask=mask, **settings)
      for r, row in enumerate(made[:, longest:].tolist()):
        ends = [n for n, token in enumerate(row) if token in stop]
        at = members[r // samples] * samples + r % samples
        out[at] = row[: ends[0] + 1] if ends else row
    return out

  return run


def tunix(task: dict):
  """Tunix's sampler; it wants Python 3.12 and an environment of its own."""
  import numpy as np
  from tunix.generate import sampler as tunix_sampler

  config, _, model = load_tunix(task["model"])

  class Tokenizer:
    """Ids as text, so that no tokenizer's time is counted."""

    def encode(self, text, **_):
      return [int(x) for x in text.split()]

    def decode(self, ids, **_):
      return " ".join(map(str, np.asarray(ids).tolist()))

    def pad_id(self):
      return 0

    def bos_id(self):
      return None

    def eos_id(self):
      return task["stop_ids"][0] if task["stop_ids"] else -1

  prompts, samples = task["prompts"], task["samples"]
  longest = max(map(len, prompts))
  cache = tunix_sampler.CacheConfig(
    cache_size=longest + task["new"] + 8,
    num_layers=config.num_layers,
    num_kv_heads=config.num_kv_heads,
    head_dim=config.head_dim,
  )
  sample = tunix_sampler.Sampler(model, Tokenizer(), cache)
  order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
  rows = [i for i in order for _ in range(samples)]

  def run():
    out: list = [None] * len(rows)
    seen: dict[int, int] = {}
    for start in range(0, len(rows), task["batch"]):
      members = rows[start : start + task["batch"]]
      made = sample(
        input_strings=[" ".join(map(str, prompts[i])) for i in members],
        max_generation_steps=task["new"],
        max_prompt_length=longest,
        temperature=task["temperature"],
        top_p=1.0 if task["temperature"] else None,
        eos_tokens=task["stop_ids"] or [-1],
        echo=False,
      )
      for i, tokens in zip(members, made.tokens, strict=True):
        k = seen[i] = seen.get(i, -1) + 1
        out[i * samples + k] = np.asarray(tokens).tolist()
    return out

  return run


# --- the comparison -----------------------------------------------------------


def compare(name: str, task: dict, options) -> dict:
  """Runs one workload with all contenders and prints a table."""
  here = sys.executable
  plan = [(f"ours {batch}", here, {"batch": batch}) for batch in BATCHES]
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
  own = best["ours"]
  rows = len(task["prompts"]) * task["samples"]
  print(f"\n### {name}: {rows} rows, up to {task['new']} new tokens")
  print(
    "| contender, batch | rounds | rows/s | seconds | first run "
    "| mean new tokens | ratio |"
  )
  print("|---|---|---|---|---|---|---|")
  for r in runners:
    mean = statistics.mean(map(len, r.result))
    print(
      f"| {r.name} | {len(r.seconds)} | {rows / r.median:.2f} | "
      f"{r.median:.1f} | {r.first:.1f} | {mean:.1f} | "
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
  parser.add_argument(
    "--torch_batches",
    type=lambda s: tuple(map(int, s.split(","))),
    default=TORCH_BATCHES,
  )
  parser.add_argument("--worker", choices=("ours", "torch", "tunix"))
  options = parser.parse_args()
  if options.worker:
    work({"ours": ours, "torch": torch, "tunix": tunix}, options.worker)
    return
  from bct_jax.data.chat import Chat
  from bct_jax.models import demo
  from bct_jax.models.config import from_hf

  folder = demo.resolve(options.model)
  chat = Chat(folder, from_hf(folder).vocab_size)
  out: dict = {"ratio": {}, "rates": {}}
  for name in options.workloads.split(","):
    workload = WORKLOADS[name]
    task = {
      "model": str(folder),
      "prompts": make_prompts(chat, name),
      "samples": workload["samples"],
      "new": workload["new"],
      "stop_ids": sorted(chat.stop_ids) if workload["stop"] else [],
    }
    found = compare(name, task, options)
    out["ratio"][name], out["rates"][name] = found["ratio"], found["rates"]
    if options.out:
      Path(options.out).write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
  main()
