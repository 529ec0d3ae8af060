"""Training and decoding on an NVIDIA GPU, against its peak and transformers.

  python tests/benchmarks/gpu_check.py [--torch_python=PYTHON] [--rounds=5]
    [--rows=8] [--peak=FLOPS --bandwidth=BYTES] [--out=FILE] [--cpu]

A Llama shape of 1.24 billion parameters (that of Llama 3.2 1B) with random
weights in bfloat16, all weights trained by AdamW on rows of 2048 random ids,
all of them trained. Each way to run it is tried in a process of its own: ours
with each remat policy, transformers with and without gradient checkpointing
and with sdpa and, where flash_attn is installed, flash_attention_2. The fastest
of both then run twice in turn. Then our sampler decodes 128 rows.

  MFU = tokens/s x (6 N + 6 L T d) / peak, with N parameters, L layers, T
  positions of a row, d = heads x head_dim: causal, without what is recomputed
  (PaLM, arXiv 2204.02311, appendix B, with half its attention)
  bandwidth floor of a token = (bytes of the weights + of the keys and values of
  all rows at half of what is decoded) / bandwidth

--cpu runs all of it on a tiny shape, against rates measured here.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "support"), str(HERE.parent.parent)]

import trainers  # noqa: E402
from contenders import Contender, work  # noqa: E402

BATCH = 128  # rows that are decoded
BIG = {
  "vocab_size": 128256,
  "hidden_size": 2048,
  "intermediate_size": 8192,
  "num_hidden_layers": 16,
  "num_attention_heads": 32,
  "num_key_value_heads": 8,
  "head_dim": 64,
}
TINY = {
  "vocab_size": 512,
  "hidden_size": 64,
  "intermediate_size": 128,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 16,
}


# --- workers ------------------------------------------------------------------


def torch_model(task: dict):
  """Writes a folder with random weights, from which all contenders read."""
  import torch as t
  import transformers

  t.manual_seed(0)
  config = transformers.LlamaConfig(
    **task["shape"],
    max_position_embeddings=4096,
    tie_word_embeddings=True,
    rope_parameters={"rope_theta": 500000.0, "rope_type": "default"},
    torch_dtype="bfloat16",
  )
  t.set_default_dtype(t.bfloat16)
  model = transformers.LlamaForCausalLM(config)
  model.save_pretrained(task["model"])
  return lambda: model.num_parameters()


def device(task: dict):
  """What JAX runs on."""
  import jax

  found = jax.devices()[0]
  if found.platform != task["platform"]:
    raise SystemExit(f"JAX runs on {found.platform}, not {task['platform']}")
  return lambda: {"kind": found.device_kind, "jax": jax.__version__}


def copy(task: dict):
  """Reads and writes an array; for the bandwidth where none is known."""
  import jax
  import jax.numpy as jnp

  x = jnp.ones(task["size"], jnp.float32)
  move = jax.jit(lambda x: x + 1)
  return lambda: move(x).block_until_ready() is None


def decode(task: dict):
  """Random prompts of equal length, greedily, without a stop."""
  import jax
  import numpy as np
  from helpers import sampling

  from bct_jax.models.lora import Weights
  from bct_jax.sample import sampler

  model, params = trainers.load_ours(task)
  rng = np.random.default_rng(0)
  shape = (task["rows"], task["prompt"])
  prompts = rng.integers(1, task["vocab"], shape).tolist()
  config = sampling(
    max_new_tokens=task["new"], batch_size=task["rows"], prefill_tokens=4096
  )
  with jax.set_mesh(model.mesh):
    flat = model.decode_params(Weights(params))
    del params
    sample = sampler.make_sampler(
      model.model, config, frozenset({-1}), model.mesh
    )

  def run():
    with jax.set_mesh(model.mesh):
      made = sample(flat, prompts, range(len(prompts)), 0)
    return sum(len(c.tokens) for c in made)

  return run


WORKERS = {
  "torch-model": torch_model,
  "device": device,
  "copy": copy,
  "decode": decode,
  **trainers.WORKERS,
}


# --- the check ----------------------------------------------------------------


def once(name: str, task: dict, rounds: int, python: str = sys.executable):
  """A contender that did its rounds and is gone; None if it could not."""
  try:
    c = Contender(name, python, __file__, task)
  except SystemExit as e:
    print(f"{name}: {e} (does it fit?)", flush=True)
    return None
  for _ in range(rounds):
    c.round()
  c.end()
  if rounds:
    print(f"{name}: {c.median:.3f} s, first {c.first:.0f} s", flush=True)
  return c


def need(c: Contender | None) -> Contender:
  if c is None:
    raise SystemExit("this is needed for all that follows")
  return c


def training_tasks(folder: Path, shape: dict, options) -> list:
  """(name, python, task) of every way to run the same updates."""
  import numpy as np

  rng = np.random.default_rng(1)
  length, updates = options.length, options.updates
  shared = {"model": str(folder), "dtype": "bfloat16"}
  rows, parts = [], []
  for _ in range(updates):
    ids = rng.integers(1, shape["vocab_size"], (options.rows, length + 1))
    ones = np.ones((options.rows, length))
    positions = np.tile(np.arange(length), (options.rows, 1))
    arrays = (ids[:, :-1], ids[:, 1:], ones, positions, ones)
    rows.append([*(x.tolist() for x in arrays), length])
    parts.append(
      [{"ids": ids.tolist(), "weights": [[0, *[1] * length]] * options.rows}]
    )
  out = []
  for remat in ("none", "dots", "full"):
    task = {**shared, "rows": rows, "options": {"remat": remat}}
    out.append((f"ours remat={remat}", sys.executable, task))
  for attention in options.torch_attention.split(","):
    for checkpointing in (False, True):
      task = {
        **shared,
        "parts": parts,
        "trained": [options.rows * length] * updates,
        "collation": "padded",
        "device": "cpu" if options.cpu else "cuda",
        "attention": attention,
        "checkpointing": checkpointing,
        "compile": options.torch_compile,
      }
      name = f"torch {attention}" + (" checkpointing" if checkpointing else "")
      out.append((name, options.torch_python, task))
  return out


def check_training(folder: Path, shape: dict, peak: float, options) -> dict:
  """Tries all ways, then runs the fastest of both in turn; prints a table."""
  best: dict[str, tuple] = {}
  losses: dict[str, list] = {}
  for name, python, task in training_tasks(folder, shape, options):
    tried, kind = once(name, task, 1, python), name.split()[0]
    if tried is None:
      continue
    losses[kind] = tried.result
    if kind not in best or tried.median < best[kind][0]:
      best[kind] = (tried.median, (name, python, task))
  for kind in ("ours", "torch"):
    if kind not in best:
      raise SystemExit(f"no way of {kind} could be run")
  a, b = losses["ours"], losses["torch"]
  print(f"losses: ours {a}, torch {b}")
  if any(abs(x - y) > 0.01 * abs(x) for x, y in zip(a, b, strict=True)):
    raise SystemExit("the losses differ by more than a hundredth")
  seconds: dict[str, list[float]] = {}
  for _ in range(2):
    for _, (name, python, task) in best.values():
      done = need(once(name, task, options.rounds, python))
      seconds.setdefault(name, []).extend(done.seconds)
  return training_table(folder, seconds, peak, options)


def training_table(folder: Path, seconds: dict, peak: float, options) -> dict:
  import jax

  from bct_jax.models.config import from_hf
  from bct_jax.models.decoder import Decoder
  from bct_jax.sizing import sizes

  config = from_hf(folder)
  params = jax.eval_shape(Decoder(config).init, jax.random.PRNGKey(0))
  flops = sizes.flops_per_token(config, options.length, params)
  tokens = options.rows * options.length * options.updates
  print(
    f"\nFLOPs per token = 6 N + 6 L T d = {flops:.4g}: N = "
    f"{sizes.num_params(params):,}, L = {config.num_layers}, T = "
    f"{options.length}, d = {config.num_heads * config.head_dim}; MFU = "
    f"tokens/s x that / {peak / 1e12:.4g} TFLOP/s"
  )
  print("| training | tokens/s | seconds per update | MFU | ours over it |")
  print("|---|---|---|---|---|")
  medians = {k: statistics.median(v) for k, v in seconds.items()}
  mine = next(v for k, v in medians.items() if k.startswith("ours"))
  out = {}
  for name, median in medians.items():
    mfu = tokens / median * flops / peak
    print(
      f"| {name} | {tokens / median:,.0f} | {median / options.updates:.4f} | "
      f"{mfu:.1%} | {median / mine:.2f} |"
    )
    out[name] = {"tokens_per_second": tokens / median, "mfu": mfu}
  return out


def check_decode(folder: Path, bandwidth: float, options) -> dict:
  """Seconds of a token of 128 rows, and the least that memory allows.

  Of a longer and a shorter run the difference is decoding alone.
  """
  from bct_jax.models.config import from_hf

  config = from_hf(folder)
  # At lengths that fill the same number of slots of the cache.
  short, long = options.new // 4, options.new
  task = {
    "model": str(folder),
    "dtype": "bfloat16",
    "rows": BATCH,
    "prompt": options.prompt,
    "vocab": config.vocab_size,
  }
  found = []
  for new in (short, long):
    c = need(once(f"decode {new}", {**task, "new": new}, options.rounds))
    if c.result != BATCH * new:
      raise SystemExit(f"{c.result} tokens came out, not {BATCH * new}")
    found.append(c.median)
  each = (found[1] - found[0]) / (long - short)
  weights = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
  mean = options.prompt + (short + long) / 2
  per_position = config.num_layers * 2 * config.num_kv_heads * config.head_dim
  cache = int(BATCH * mean * per_position * 2)
  floor = (weights + cache) / bandwidth
  print(
    f"\ndecoding {BATCH} rows: {each * 1e3:.3f} ms per token, "
    f"{BATCH / each:,.0f} tokens/s; floor ({weights:,} bytes of weights + "
    f"{cache:,} of cache) / {bandwidth / 1e9:.4g} GB/s = {floor * 1e3:.3f} ms: "
    f"{floor / each:.0%} of what the bandwidth allows"
  )
  return {"seconds_per_token": each, "floor": floor, "share": floor / each}


def limits(kind: str, options) -> tuple[float, float]:
  """Peak FLOP/s in bfloat16 and bytes/s: given, of the chip, or measured."""
  from bct_jax.config.chips import CHIPS

  if options.peak and options.bandwidth:
    return options.peak, options.bandwidth
  if options.cpu:
    task = {"size": 512, "dtype": "bfloat16"}
    product = need(once("jax-products", task, 5))
    moved = need(once("copy", {"size": 2**24}, 5))
    return 2 * 512**3 / product.median, 2 * 4 * 2**24 / moved.median
  for name in CHIPS:
    if name in kind.lower():
      return CHIPS[name].flops, CHIPS[name].bandwidth
  raise SystemExit(f"{kind}: not in chips.py; give --peak and --bandwidth")


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--cpu", action="store_true")
  parser.add_argument("--torch_python", default=sys.executable)
  parser.add_argument("--torch_attention", default="sdpa")
  parser.add_argument("--torch_compile", action="store_true")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--updates", type=int, default=4)
  parser.add_argument("--rows", type=int, default=8)
  parser.add_argument("--peak", type=float)
  parser.add_argument("--bandwidth", type=float)
  parser.add_argument("--out")
  parser.add_argument("--worker", choices=WORKERS)
  options = parser.parse_args()
  options.length = 64 if options.cpu else 2048
  options.prompt, options.new = (8, 16) if options.cpu else (128, 256)
  return options


def main() -> None:
  options = parse()
  if options.worker:
    work(WORKERS, options.worker)
    return
  # Contenders take turns on the device and leave room; this process needs none.
  os.environ["JAX_PLATFORMS"] = "cpu" if options.cpu else "cuda"
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
  import jax

  jax.config.update("jax_platforms", "cpu")
  shape = TINY if options.cpu else BIG
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary) / "model"
    made = {"shape": shape, "model": str(folder)}
    need(once("torch-model", made, 0, options.torch_python))
    platform = "cpu" if options.cpu else "gpu"
    found = need(once("device", {"platform": platform}, 0)).result
    print(f"{found['kind']}, jax {found['jax']}", flush=True)
    peak, bandwidth = limits(found["kind"], options)
    out = {
      "device": found["kind"],
      "training": check_training(folder, shape, peak, options),
      "decoding": check_decode(folder, bandwidth, options),
    }
  if options.out:
    Path(options.out).write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
  main()
