"""Restores or initializes the training states of runs."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from bct_jax.config import ArmConfig, OrganismConfig
from bct_jax.data.batches import Dataset
from bct_jax.experiment.plan import Plan
from bct_jax.infra.progress import log_line
from bct_jax.models.lora import Frozen, Weights
from bct_jax.objectives import data_needs, objective_of
from bct_jax.runtime.runtime import Runtime
from bct_jax.train.checkpoint import Checkpoints, DamagedCheckpoint
from bct_jax.types import PyTree, TrainState


@dataclasses.dataclass(frozen=True)
class TrainRun:
  """One training run.

  Attributes:
    name: for the terminal.
    folder: gets checkpoints/, metrics.jsonl and mask_audit.txt.
    arm: the optimizer and the schedule.
    dataset: what it trains on.
    eval_steps: when it is evaluated; with `eval.gradients` the folder gets
      gradients.jsonl then too.
    task_steps: those of them whose evals take long, so that a kill in one must
      not train and evaluate again: the state is saved before.
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
  """The newest checkpoint's state; None if there is none."""
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
  # A finished run kept what it trained only; what remains is to evaluate it.
  trained = checkpoints.restore_params(abstract.params)
  return TrainState(jax.numpy.int32(latest), trained, None, None)


def begin_states(
  runtime: Runtime,
  saved: Sequence[tuple[ArmConfig | OrganismConfig, TrainState | None]],
  start: Callable[[], Weights],
) -> tuple[list[TrainState], Frozen | None, bool]:
  """Saved states and fresh ones, what is frozen for all of them, and whether
  they go on training an adapter that `start` gave."""
  new = [arm for arm, state in saved if state is None]
  frozen, continued, fresh = None, False, []
  if new or _freezes(saved[0][0]):
    begin = start()
    # The last one takes over what the others have copies of.
    fresh = [runtime.init_state(_own(begin, arm), arm) for arm in new[:-1]]
    if new:
      state, frozen, continued = init_run_state(runtime, new[-1], begin)
      fresh.append(state)
    else:
      frozen = _frozen(saved[0][0], begin)
      continued = begin.adapter is not None
  rest = iter(fresh)
  states = [next(rest) if state is None else state for _, state in saved]
  return states, frozen, continued


def _own(begin: Weights, arm: ArmConfig | OrganismConfig) -> Weights:
  """Weights of which what is trained may be taken over."""
  if arm.lora.rank:
    return begin._replace(adapter=copy_tree(begin.adapter))
  return Weights(copy_tree(begin.params))


def init_run_state(
  runtime: Runtime, arm: ArmConfig | OrganismConfig, begin: Weights
) -> tuple[TrainState, Frozen | None, bool]:
  """A state at step 0 from weights that are taken over, what is frozen, and
  whether it goes on training an adapter of theirs."""
  frozen = None
  if _freezes(arm):
    frozen = _frozen(arm, begin)
    # A copy, where the state takes over what it is of.
    params = frozen.params if arm.lora.rank else copy_tree(frozen.params)
    frozen = Frozen(params, copy_tree(frozen.adapter))
  return runtime.init_state(begin, arm), frozen, begin.adapter is not None


def _freezes(arm: ArmConfig | OrganismConfig) -> bool:
  """Whether a step needs params that it does not train."""
  return arm.lora.rank > 0 or data_needs(objective_of(arm)).uses_reference


def _frozen(arm: ArmConfig | OrganismConfig, begin: Weights) -> Frozen:
  compares = data_needs(objective_of(arm)).uses_reference
  return Frozen(begin.params, begin.adapter if compares else None)


@jax.jit
def copy_tree(tree: PyTree) -> PyTree:
  """The same arrays in memory of their own."""
  return jax.tree.map(jax.numpy.copy, tree)
