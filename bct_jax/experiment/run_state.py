"""Restores or initializes the training states of runs."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from bct_jax.config import ArmConfig, OrganismConfig
from bct_jax.data.batches import Dataset
from bct_jax.experiment.plan import Plan
from bct_jax.infra.progress import log_line
from bct_jax.models.lora import Weights
from bct_jax.runtime.programs import params_view
from bct_jax.runtime.runtime import Runtime
from bct_jax.train.checkpoint import Checkpoints, DamagedCheckpoint
from bct_jax.train.params_view import Frozen, ParamsView
from bct_jax.types import PyTree, TrainState


@dataclasses.dataclass(frozen=True)
class TrainRun:
  """Describes one training run.

  Attributes:
    name: for the terminal.
    folder: gets checkpoints/, metrics.jsonl and mask_audit.txt.
    arm: the optimizer and the schedule.
    dataset: the examples that the run trains on.
    eval_steps: when the run is evaluated; with `eval.gradients` the folder gets
      gradients.jsonl then too.
    task_steps: eval steps whose evals take long. The state is saved before, so
      that a run killed there need not train and evaluate again.
  """

  name: str
  folder: Path
  arm: ArmConfig | OrganismConfig
  dataset: Dataset
  eval_steps: tuple[int, ...] = ()
  task_steps: tuple[int, ...] = ()


def restore_newest(
  plan: Plan, run: TrainRun, checkpoints: Checkpoints
) -> TrainState | None:
  """Restores the newest state that can be read; None without a checkpoint.

  With `plan.fall_back` damaged checkpoints are set aside.

  Raises:
    ValueError: the checkpoint was made from other training data.
    DamagedCheckpoint: it cannot be read, without `plan.fall_back`.
  """
  while True:
    try:
      return _newest_state(plan.runtime, run, checkpoints)
    except DamagedCheckpoint as e:
      if not plan.fall_back:
        raise
      log_line(f"{e}: set aside as {checkpoints.set_aside(e.step)}")


def _newest_state(
  runtime: Runtime, run: TrainRun, checkpoints: Checkpoints
) -> TrainState | None:
  """Restores the newest checkpoint; see `restore_newest`."""
  arm, latest = run.arm, checkpoints.latest()
  if latest is None:
    return None
  meta = checkpoints.meta()
  if meta["data_hash"] != run.dataset.hash:
    raise ValueError(
      f"{checkpoints.folder}: was made from other training data than the "
      "config gives now (a changed setting, tokenizer or template); use "
      "another --workdir"
    )
  if meta["devices"] != jax.device_count():
    log_line(
      f"{checkpoints.folder}: saved on {meta['devices']} devices, read on "
      f"{jax.device_count()}: what follows is the same up to rounding"
    )
  abstract = runtime.abstract_state(arm.optim, arm.lora)
  if latest < arm.train.steps:
    return checkpoints.restore(abstract)
  # A finished run saved what it trained alone: it can only be evaluated.
  trained = checkpoints.restore_params(abstract.params)
  return TrainState(jax.numpy.int32(latest), trained, None, None)


def begin_states(
  runtime: Runtime,
  saved: Sequence[tuple[ArmConfig | OrganismConfig, TrainState | None]],
  start: Callable[[], Weights],
) -> tuple[list[TrainState], Frozen | None, ParamsView]:
  """Begins the runs that have no saved state.

  Args:
    runtime: for the model and its mesh.
    saved: each run's arm, and its newest state if it has one. One step serves
      all of them.
    start: loads the weights to begin with. It is called for new runs, and for
      runs that leave some of these weights frozen.

  Returns:
    The states, saved and new, in the order of `saved`; what is frozen for all
    of them; and which params their step sees.
  """
  first_arm = saved[0][0]
  new_arms = [arm for arm, state in saved if state is None]
  view = params_view(first_arm)
  if not new_arms and not view.freezes:
    return [state for _, state in saved if state is not None], None, view
  begin = start()
  # The last new run takes over the arrays that the others have copies of.
  new = [runtime.init_state(_own(begin, arm), arm) for arm in new_arms[:-1]]
  if new_arms:
    state, frozen, view = init_run_state(runtime, new_arms[-1], begin)
    new.append(state)
  else:
    view = params_view(first_arm, begin.adapter is not None)
    frozen = view.frozen_part(begin)
  new_states = iter(new)
  states = [next(new_states) if s is None else s for _, s in saved]
  return states, frozen, view


def _own(begin: Weights, arm: ArmConfig | OrganismConfig) -> Weights:
  """Copies what an arm trains of the weights that it begins with."""
  if arm.lora.rank:
    return begin._replace(adapter=copy_tree(begin.adapter))
  return Weights(copy_tree(begin.params))


def init_run_state(
  runtime: Runtime, arm: ArmConfig | OrganismConfig, begin: Weights
) -> tuple[TrainState, Frozen | None, ParamsView]:
  """Makes a state at step 0 from weights that are taken over.

  Returns:
    The state, what is frozen beside it, and which params a step sees.
  """
  view = params_view(arm, begin.adapter is not None)
  frozen = view.frozen_part(begin)
  if frozen is not None:
    # The state takes over what is trained, so what is frozen needs a copy of
    # that: of all params, or of the adapter.
    params = frozen.params if view.lora else copy_tree(frozen.params)
    frozen = Frozen(params, copy_tree(frozen.adapter))
  return runtime.init_state(begin, arm), frozen, view


@jax.jit
def copy_tree(tree: PyTree) -> PyTree:
  """Copies arrays into memory of their own."""
  return jax.tree.map(jax.numpy.copy, tree)
