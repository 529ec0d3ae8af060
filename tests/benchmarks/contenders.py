"""What the benchmarks share: contenders in processes of their own.

A benchmark starts itself once for each contender, with --worker=KIND. The
worker reads its task, runs it once, which compiles, and then once for each line
that it gets, so that rounds of several contenders can be interleaved.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Contender:
  """A process that runs a task each time it is asked to.

  Attributes:
    name: its first word is the kind of worker.
    kind: that word.
    task: what it was given.
    result: what the first run gave.
    first: seconds of the first run, with what it compiled.
    seconds: of each round.
  """

  def __init__(self, name: str, python: str, script: str, task: dict):
    self.name, self.kind, self.task = name, name.split()[0], task
    self.seconds: list[float] = []
    self.process = subprocess.Popen(
      [python, script, f"--worker={self.kind}"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env={"JAX_PLATFORMS": "cpu", **os.environ},
    )
    self._write(json.dumps(task))
    begun = self._read()
    self.result, self.first = begun["result"], begun["first"]

  def _write(self, line: str) -> None:
    assert self.process.stdin
    self.process.stdin.write(line + "\n")
    self.process.stdin.flush()

  def _read(self) -> dict:
    assert self.process.stdout
    while line := self.process.stdout.readline():
      if line.startswith("{"):
        return json.loads(line)
    raise SystemExit(f"{self.name} ended without a result")

  def round(self) -> None:
    self._write("")
    self.seconds.append(self._read()["seconds"])

  @property
  def median(self) -> float:
    return statistics.median(self.seconds)

  def end(self) -> None:
    self.process.kill()
    self.process.wait()


def work(workers: dict[str, Callable[[dict], Callable[[], Any]]], kind: str):
  """What a worker does: makes its task ready, runs it and goes on when asked.

  Args:
    workers: kind -> function from a task to what is timed. Its result must not
      come before its arrays do.
    kind: of this worker.
  """
  run = workers[kind](json.loads(sys.stdin.readline()))

  def clocked() -> tuple[Any, float]:
    start = time.monotonic()
    result = run()
    return result, time.monotonic() - start

  result, seconds = clocked()
  first = {"result": result, "first": seconds}
  print(json.dumps(first, default=lambda x: x.tolist()), flush=True)
  while sys.stdin.readline():
    print(json.dumps({"seconds": clocked()[1]}), flush=True)


def load_tunix(folder: str, dtype: str = "float32"):
  """Tunix's config, mesh and model of a Llama folder with a tied head."""
  import functools

  import jax
  from tunix.models.llama3 import model as llama
  from tunix.models.llama3 import params as llama_params

  raw = json.loads((Path(folder) / "config.json").read_text())
  # Tunix 0.1.7 does not hand its configuration's rotary base on.
  theta = raw["rope_theta"]
  llama.apply_rope = functools.partial(llama.apply_rope, rope_theta=theta)
  config = llama.ModelConfig(
    num_layers=raw["num_hidden_layers"],
    vocab_size=raw["vocab_size"],
    embed_dim=raw["hidden_size"],
    hidden_dim=raw["intermediate_size"],
    num_heads=raw["num_attention_heads"],
    head_dim=raw["head_dim"],
    num_kv_heads=raw["num_key_value_heads"],
    norm_eps=raw["rms_norm_eps"],
    rope_theta=theta,
    weight_tying=True,
  )
  mesh = jax.make_mesh(
    (1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  with mesh:
    model = llama_params.create_model_from_safe_tensors(
      folder, config, mesh, dtype=jax.numpy.dtype(dtype)
    )
  return config, mesh, model
