"""One training run in its folder: resumed, logged, checkpointed."""

from collections.abc import Callable
from pathlib import Path

import jax

from bct_jax import metrics, optim
from bct_jax.checkpoint import Checkpoints
from bct_jax.config import ArmConfig, OrganismConfig
from bct_jax.data.batches import Dataset
from bct_jax.data.chat import mask_audit
from bct_jax.mesh import put_batch
from bct_jax.plan import Plan
from bct_jax.progress import Stage, say, stage
from bct_jax.runtime import Runtime
from bct_jax.train import FitConfig, fit
from bct_jax.types import PyTree, TrainState


def train_run(
  plan: Plan,
  name: str,
  folder: Path,
  arm: ArmConfig | OrganismConfig,
  dataset: Dataset,
  start: Callable[[], PyTree],
  eval_steps: tuple[int, ...] = (),
  evaluate: Callable[[int, PyTree], None] = lambda step, params: None,
) -> PyTree:
  """Trains one run in its folder, or goes on where its checkpoints end.

  Args:
    plan: for the model and its compiled functions.
    name: of the run, for the terminal.
    folder: gets checkpoints/, metrics.jsonl and mask_audit.txt.
    arm: the optimizer and the schedule.
    dataset: what it trains on.
    start: gives the params to start from; called only for a new run.
    eval_steps: when to call `evaluate`.
    evaluate: called with (step, params).

  Returns:
    The params after the last step.

  Raises:
    ValueError: the checkpoint there is of other data, or cannot be read.
    train.NumericalError: the loss or gradient of an update is not finite.
  """
  runtime, steps = plan.runtime, arm.train.steps
  checkpoints = Checkpoints(folder / "checkpoints")
  state = _first_state(runtime, checkpoints, arm, dataset, start)
  resumed = int(state.step)
  if resumed:
    say(f"{name}: continuing at step {resumed} of {steps}")
  metrics.keep_until(folder / "metrics.jsonl", resumed)
  metrics.keep_until(folder / "evals.jsonl", resumed)
  metrics.write_text(
    folder / "mask_audit.txt", mask_audit(runtime.chat, dataset.examples)
  )

  def next_batch(step: int, state: TrainState):
    del state
    rows = dataset.batch(step)
    return put_batch(rows, runtime.mesh), dataset.batch_ids(step)

  def log(values: dict[str, float]) -> None:
    counts = dataset.counts(int(values["step"]) - 1)
    metrics.append_line(folder / "metrics.jsonl", {**values, **counts})
    bar(loss=f"{values['loss']:.3f}")

  def save(state: TrainState) -> None:
    meta = {"data_hash": dataset.hash}
    checkpoints.save(state, meta, final=int(state.step) == steps)

  bar: Stage
  with stage(f"train {name}", steps - resumed, "steps") as bar:
    state = fit(
      state,
      None,
      runtime.step(arm.train.objective, arm.train.accum, arm.optim),
      next_batch,
      lambda t: optim.learning_rate(arm.optim, t, steps),
      evaluate,
      save,
      log,
      FitConfig(steps, eval_steps, arm.train.checkpoint_every),
    )
  checkpoints.close()
  return state.params


def _first_state(
  runtime: Runtime,
  checkpoints: Checkpoints,
  arm: ArmConfig | OrganismConfig,
  dataset: Dataset,
  start: Callable[[], PyTree],
) -> TrainState:
  """The newest checkpoint's state, else step 0 of the params to start from."""
  latest = checkpoints.latest()
  if latest is None:
    return runtime.init_state(start(), arm.optim, arm.train.seed)
  if checkpoints.meta()["data_hash"] != dataset.hash:
    raise ValueError(
      f"{checkpoints.folder}: was made from other training data than the "
      "config gives now (a changed setting, tokenizer or template); use "
      "another --workdir"
    )
  abstract = runtime.abstract_state(arm.optim)
  if latest < arm.train.steps:
    return checkpoints.restore(abstract)
  # A finished run kept its params only; what remains is to evaluate them.
  params = checkpoints.restore_params(abstract.params)
  return TrainState(jax.numpy.int32(latest), params, None, None)
