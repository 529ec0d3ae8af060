"""A process of a run in which one process goes missing, as main.py ends it.

Arguments: rank, how many processes there are, port, the rank that goes missing,
how it does, and in what the others wait for it.
"""

import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bct_jax import main
from bct_jax.infra import processes

rank, count, port, lost = map(int, sys.argv[1:5])
how, what = sys.argv[5:]


def sums():
  """Sums an array over all processes, without end."""
  devices = Mesh(np.array(jax.devices()), "a")
  place = NamedSharding(devices, P("a"))
  ones = jax.make_array_from_callback(
    (len(jax.devices()),), place, lambda index: np.ones(1)
  )
  add = jax.jit(jnp.sum, out_shardings=NamedSharding(devices, P()))
  while True:
    with processes.deadline("metrics of update 7"):
      total = float(add(ones))
    yield total


def work(config, raw, overrides, where):
  processes.join(f"127.0.0.1:{port}", count, rank, timeout=10)
  processes.barrier("both are here")
  processes._State.timeout = 4
  endless = sums()
  next(endless)
  if rank == lost:
    if how == "slow":
      time.sleep(2)  # less than what the others wait
    elif how == "hangs":
      time.sleep(30)
    else:
      number = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}[how]
      os.kill(os.getpid(), number)
  if how == "stopped" and what != "sums":
    processes._State.timeout = 40  # longer than JAX bears silence
  if what == "barrier":
    processes.barrier("end of the export")
  elif what == "agree":
    processes.agree("the plan", {})
  elif what == "value":
    processes.run_on_first("gate.json", lambda: time.sleep(how == "slow"))
  elif what == "work":
    time.sleep(40)  # no wait at all: compiling, say
  else:
    for _ in endless:
      if how == "slow":
        break


main._dispatch = work
code = main._run(None, {}, {}, {})  # pyright: ignore[reportArgumentType]
processes.leave(code)
