"""Logs how an arm's updates push on both behaviors: `eval.gradients`.

A line is written at the step of every eval. It is about the params as they are
trained, not their average, and about the update that comes next, with its batch
and its learning rate. After the last step no update comes: that line takes
batch and learning rate of the last update, with the params and the optimizer
state after it.

The lines have a file of their own and are written before the state is saved,
since the last state is saved without its optimizer. They become part of the
lines of evals.jsonl.
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
  """Reads what was logged at a step; call in the first process.

  Returns:
    What the function of gradients.make_measure returned.

  Raises:
    ValueError: there is no line of that step.
  """
  path = folder / FILE
  for line in files.read_lines(path):
    if line.pop("step") == step:
      return line
  raise _missing_line(path, step)


def _missing_line(path: Path, step: int) -> ValueError:
  """Makes the error for a line that cannot be made again."""
  return ValueError(
    f"{path}: no line of step {step}, and its optimizer state is not kept; "
    "was the file removed? Remove the arm's folder too to train it again"
  )


@dataclasses.dataclass(frozen=True)
class GradientLog:
  """Measures and logs each state that is evaluated; loop.fit calls it.

  Attributes:
    plan, arm, dataset: of the run.
    folder: of the run, which gets FILE.
    frozen, view: what the step leaves frozen, and which params it sees.
    next_batch: returns the batch of an update.
  """

  plan: Plan
  arm: ArmConfig | OrganismConfig
  dataset: Dataset
  folder: Path
  frozen: Frozen | None
  view: ParamsView
  next_batch: NextBatch

  def __call__(self, step: int, state: TrainState) -> None:
    """Logs a state, unless its line is there.

    Raises:
      ValueError: the line is missing and the state has no optimizer to make it.
    """
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
    pushes = measure(state, self.frozen, batch, lr, self._references())
    line = {"step": step, **pushes}
    shared_files.append_line(path, line)

  def _references(self) -> dict[str, list[Rows]]:
    """Makes batches of both behaviors' completions.

    A batch is no larger than a microbatch of training, unless one completion
    is.
    """
    layout, runtime = self.dataset.layout, self.plan.runtime
    shards = num_row_shards(runtime.mesh)
    microbatch = layout.rows * layout.length // (self.arm.train.accum * shards)
    names = ("initial", "alternate")
    batches = fill_alike(
      [references(self.plan, name) for name in names],
      runtime.model.config.max_length,
      shards,
      min(TOKENS, microbatch),
    )
    return dict(zip(names, batches, strict=True))
