"""What `eval.gradients` logs of an arm: how its updates push on both behaviors.

At the step of every eval, of the params as they are trained (not of their
average), and of the update that comes next: of the batch it uses, with its
learning rate. At the last step none comes; there it is the last one's batch and
learning rate, with the params and the optimizer state that it left. The lines
are kept in a file of their own, written before the state is saved, and become
part of those of the evals: what is saved of the last state has no optimizer.
"""

import dataclasses
from pathlib import Path
from typing import Any

from bct_jax.config import ArmConfig, OrganismConfig
from bct_jax.data.batches import Dataset
from bct_jax.experiment.eval_rollouts import references
from bct_jax.experiment.plan import Plan
from bct_jax.infra import files, shared_files
from bct_jax.infra.progress import log_line
from bct_jax.mesh import num_row_shards
from bct_jax.sample.score import TOKENS, fill_alike
from bct_jax.train import optim
from bct_jax.train.loop import NextBatch
from bct_jax.train.params_view import Frozen, ParamsView
from bct_jax.types import Rows, TrainState

FILE = "gradients.jsonl"


def read_gradients(folder: Path, step: int) -> dict[str, Any]:
  """What was logged at a step, as gradients.make_measure gives it.

  Raises:
    ValueError: nothing was.
  """
  path = folder / FILE
  for line in files.read_lines(path):
    if line.pop("step") == step:
      return line
  raise _missing_line(path, step)


def _missing_line(path: Path, step: int) -> ValueError:
  return ValueError(
    f"{path}: no line of step {step}, and its optimizer state is not kept; "
    "was the file removed? Remove the arm's folder too to train it again"
  )


@dataclasses.dataclass(frozen=True)
class GradientLog:
  """Called by loop.fit with each state that is evaluated.

  Attributes:
    plan, arm, dataset: of the run.
    folder: of the run, which gets FILE.
    frozen, view: what the step leaves frozen, and which params it sees.
    next_batch: gives the batch of an update.
  """

  plan: Plan
  arm: ArmConfig | OrganismConfig
  dataset: Dataset
  folder: Path
  frozen: Frozen | None
  view: ParamsView
  next_batch: NextBatch

  def __call__(self, step: int, state: TrainState) -> None:
    path, steps = self.folder / FILE, self.arm.train.steps
    if step in [line["step"] for line in shared_files.read_lines(path)]:
      return
    if state.opt_state is None:
      raise _missing_line(path, step)
    log_line(f"gradients of step {step}")
    update = min(step, steps - 1)
    batch, _ = self.next_batch(update, state)
    lr = optim.learning_rate(self.arm.optim, update, steps)
    measure = self.plan.runtime.measure(self.arm, self.view)
    found = measure(state, self.frozen, batch, lr, self._references())
    line = {"step": step, **found}
    shared_files.append_line(path, line)

  def _references(self) -> dict[str, list[Rows]]:
    """Batches of both behaviors' completions, no larger than a microbatch of
    training unless one completion is."""
    layout, runtime = self.dataset.layout, self.plan.runtime
    shards = num_row_shards(runtime.mesh)
    trained = layout.rows * layout.length // (self.arm.train.accum * shards)
    names = ("initial", "alternate")
    filled = fill_alike(
      [references(self.plan, name) for name in names],
      runtime.model.config.max_length,
      shards,
      min(TOKENS, trained),
    )
    return dict(zip(names, filled, strict=True))
