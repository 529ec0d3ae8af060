"""Samplers as workers of contenders.py: ours, transformers', Tunix's.

Each makes ready the task it is given, a dict of JSON values, and returns a
function that samples all its rows and gives the token ids of each.
"""

from pathlib import Path

from contenders import load_tunix


def ours(task: dict):
  from bct_jax.infra import memory

  memory.keep_pages()  # as a run does, before JAX starts
  import jax
  from helpers import make_mesh, sampling
  from parity import load

  from bct_jax.sample import sampler

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
    flat = jax.jit(model.unstack)(params)
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


WORKERS = {"ours": ours, "torch": torch, "tunix": tunix}
