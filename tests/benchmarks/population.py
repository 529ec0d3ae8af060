"""Six learning rates together against one after another.

  python tests/benchmarks/population.py [--model=FOLDER] [--rounds=3]
    [--updates=2] [--arms=6] [--rank=8] [--prompts=32] [--out=FILE]

Adapters over SmolLM2 in float32, rows of 16 x 64 tokens of which a quarter is
trained: `updates` updates of each arm, and an eval of each arm's adapter on
`prompts` prompts of 24 new tokens. Each way is a fresh process that compiles
before it is timed; rounds are interleaved and medians count:

  alone    one arm after another, as separate runs share a compiled step
  turn     together, by the program of one arm in turn
  vmap     together, in one program
  eval     each adapter's eval after the other
  evals    all adapters in one batch

Losses and sampled tokens must agree with those of separate runs. `ratio` in
FILE maps the ways to train together to the seconds of `alone` over theirs, with
`evals` for `eval` over `evals`: above 1 together is faster. `compile` has the
seconds of each first round less its median, which is what it compiled.
"""

import argparse
import dataclasses
import functools
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "support"), str(HERE.parent.parent)]

from contenders import Contender, work  # noqa: E402
from trainers import load_ours  # noqa: E402

RATES = (1e-4, 2e-4, 4e-4, 8e-4, 1.5e-3, 3e-3)
NEW = 24


def make(task: dict):
  """The model, the base and a state at step 0 of each arm."""
  import jax

  from bct_jax.models.lora import Weights
  from bct_jax.train.params_view import Frozen

  model, params = load_ours(task)
  arm = model.config.arms["bench"]
  lora = dataclasses.replace(arm.lora, rank=task["rank"])

  def of(seed: int):
    train = dataclasses.replace(arm.train, seed=seed)
    return dataclasses.replace(arm, train=train, lora=lora)

  with jax.set_mesh(model.mesh):
    states = [
      model.init_state(Weights(params), of(i)) for i in range(task["arms"])
    ]
  return model, of(0), Frozen(params), states


def train(together, task: dict):
  """All updates of all arms: `together` is an Update, None is one by one."""
  import jax
  import numpy as np
  from helpers import make_rows

  from bct_jax.mesh import put_batch
  from bct_jax.train.together import update_in_turn

  model, arm, frozen, states = make(task)
  step = model.step(arm)
  vocab = model.model.config.vocab_size
  weights = np.tile(np.arange(64) >= 48, (16, 1)).astype(np.float32)

  def batch(seed: int):
    rows = make_rows(16, 64, seed, vocab, spread=False)
    return put_batch(rows._replace(weights=weights, num_trained=16), model.mesh)

  every = range(len(states))
  update = (together or update_in_turn)(step)
  groups = [every] if together else [[i] for i in every]

  def run():
    losses = []
    with jax.set_mesh(model.mesh):
      for group in groups:
        for t in range(task["updates"]):
          new, metrics = update(
            [states[i] for i in group],
            frozen,
            [batch(100 * t + i) for i in group],
            [RATES[i % len(RATES)] for i in group],
          )
          for i, state, found in zip(group, new, metrics, strict=True):
            states[i] = state
            losses.append((i, t, found["loss"]))
      jax.block_until_ready(states)
    return [float(x) for *_, x in sorted(losses, key=lambda x: x[:2])]

  return run


def turn(task: dict):
  from bct_jax.train.together import update_in_turn

  return train(update_in_turn, task)


def vmap(task: dict):
  from bct_jax.train.together import update_in_one_program

  return train(update_in_one_program, task)


def sample(together: bool, task: dict):
  """Completions of every arm's adapter."""
  import jax
  import numpy as np

  from bct_jax.models.lora import Weights
  from bct_jax.sample.sampler import make_sampler

  model, arm, frozen, states = make(task)
  rng = np.random.default_rng(0)
  vocab = model.model.config.vocab_size
  count = task["prompts"]
  prompts = [rng.integers(0, vocab, 24 + i % 24).tolist() for i in range(count)]
  sampling = dataclasses.replace(
    model.config.sampling, temperature=0.0, max_new_tokens=NEW
  )
  # Completions end at unequal lengths, as those of a model that was trained.
  limits = [4 + (i * 7) % (NEW - 4) for i in range(count)]
  sampler = make_sampler(model.model, sampling, frozenset(), model.mesh)
  weights = [Weights(frozen.params, s.params, arm.lora) for s in states]
  groups = [weights] if together else [[w] for w in weights]

  def run():
    tokens = []
    with jax.set_mesh(model.mesh):
      for group in groups:
        of = [i for i in range(len(group)) for _ in range(count)]
        found = sampler(
          model.decode_params(*group),
          prompts * len(group),
          [*range(count)] * len(group),
          0,
          limits=limits * len(group),
          arms=of if len(group) > 1 else None,
        )
        tokens += [list(c.tokens) for c in found]
    return tokens

  return run


WORKERS = {
  "alone": functools.partial(train, None),
  "turn": turn,
  "vmap": vmap,
  "eval": functools.partial(sample, False),
  "evals": functools.partial(sample, True),
}


def check(ways: dict[str, Contender]) -> None:
  """Losses and tokens of all arms are those of them alone."""
  for name in ("turn", "vmap"):
    pairs = zip(ways[name].result, ways["alone"].result, strict=True)
    worst = max(abs(a - b) / abs(b) for a, b in pairs)
    print(f"{name}: losses within {worst:.1e} of those alone", flush=True)
    if worst > 1e-5:
      raise SystemExit(f"{name} does not give the same losses")
  if ways["evals"].result != ways["eval"].result:
    raise SystemExit("evals together do not give the same tokens")


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--model", default="demo:smollm2")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--updates", type=int, default=2)
  parser.add_argument("--arms", type=int, default=len(RATES))
  parser.add_argument("--rank", type=int, default=8)
  parser.add_argument("--prompts", type=int, default=32)
  parser.add_argument("--out")
  parser.add_argument("--worker")
  options = parser.parse_args()
  if options.worker:
    work(WORKERS, options.worker)
    return
  from bct_jax.models.demo import resolve

  folder = str(resolve(options.model))
  task = {**vars(options), "model": folder, "dtype": "float32"}
  ways = {k: Contender(k, sys.executable, __file__, task) for k in WORKERS}
  try:
    check(ways)
    for _ in range(options.rounds):
      for way in ways.values():
        way.round()
  finally:
    for way in ways.values():
      way.end()
  seconds = {k: way.median for k, way in ways.items()}
  compiled = {k: max(0.0, w.first - w.median) for k, w in ways.items()}
  base = {"turn": "alone", "vmap": "alone", "evals": "eval"}
  ratio = {k: seconds[b] / seconds[k] for k, b in base.items()}
  for k in ways:
    line = f"{k:6} {seconds[k]:7.2f} s, compiled {compiled[k]:6.1f} s"
    if k in ratio:
      line += f", {ratio[k]:.2f} times as fast as {base[k]}"
    print(line)
  if options.out:
    record = {"seconds": seconds, "compile": compiled, "ratio": ratio}
    Path(options.out).write_text(json.dumps({**record, "task": task}, indent=1))


if __name__ == "__main__":
  main()
