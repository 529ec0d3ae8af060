"""Runs a mode and says how it ended, by an exit code and a line."""

from collections.abc import Callable

from bct_jax.evals.gate import GateError
from bct_jax.infra import memory, processes, signals
from bct_jax.infra.exit_codes import (
  DONE,
  INTERRUPTED,
  MACHINE,
  MEMORY,
  NUMERICAL,
  PREEMPTED,
  fail,
)
from bct_jax.train.step import NumericalError


def code_of(run: Callable[[], None]) -> int:
  """Runs a mode that has a config; prints what ended it, returns its code."""
  try:
    with processes.name_losses(), memory.name_shortage("running", ""):
      run()
  except (ValueError, GateError) as e:
    return fail(str(e))
  except NumericalError as e:
    return fail(str(e), NUMERICAL)
  except memory.OutOfMemory as e:
    return fail(str(e), MEMORY)
  except (OSError, processes.ProcessError) as e:
    return fail(str(e), MACHINE)
  except signals.Preempted as e:
    return fail(f"stopped {e}; the same command goes on from here", PREEMPTED)
  except KeyboardInterrupt:
    return fail("interrupted", INTERRUPTED)
  return DONE
