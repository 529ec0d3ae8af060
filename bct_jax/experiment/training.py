"""Trains runs in their folders: resumed, logged and saved on the way."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from bct_jax.config import ArmConfig, LogConfig, OrganismConfig
from bct_jax.data.batches import Dataset, Layout, widest_layout
from bct_jax.data.chat import mask_audit
from bct_jax.experiment.gradient_log import FILE, GradientLog
from bct_jax.experiment.plan import Plan
from bct_jax.experiment.rl import RolloutFeed
from bct_jax.experiment.run_state import TrainRun, begin_states, restore_newest
from bct_jax.infra import memory, processes, shared_files, trackers
from bct_jax.infra.progress import Stage, log_line, stage
from bct_jax.interop import lm_eval_tasks
from bct_jax.mesh import put_batch
from bct_jax.models.lora import Weights
from bct_jax.objectives import data_needs, objective_of
from bct_jax.runtime.runtime import Runtime
from bct_jax.train import optim
from bct_jax.train.checkpoint import Checkpoints
from bct_jax.train.loop import FitConfig, Lane, fit
from bct_jax.train.params_view import Frozen, ParamsView
from bct_jax.train.step import NumericalError, eval_params
from bct_jax.train.together import update_in_one_program, update_in_turn
from bct_jax.types import Batch, PyTree, TrainState

# What ends one run while those that are trained with it go on.
Failure = ValueError | NumericalError
# Called with a step and the weights of the runs whose evals are due; returns
# the errors of runs that end here.
Evaluate = Callable[[int, dict[str, Weights]], dict[str, NumericalError]]


def train_run(
  plan: Plan,
  name: str,
  folder: Path,
  arm: ArmConfig | OrganismConfig,
  dataset: Dataset,
  start: Callable[[], Weights],
) -> Weights:
  """Trains one run without evals and returns its weights; see train_runs.

  Raises:
    ValueError, train.NumericalError: what ended it.
  """
  run = TrainRun(name, folder, arm, dataset)
  outcome = train_runs(plan, [run], start)[name]
  if isinstance(outcome, Exception):
    raise outcome
  return outcome


def train_runs(
  plan: Plan,
  runs: Sequence[TrainRun],
  start: Callable[[], Weights],
  evaluate: Evaluate = lambda step, due: {},
  vmap: bool = False,
) -> dict[str, Weights | Failure]:
  """Trains runs together, each from where its checkpoints end.

  Args:
    plan: for the model and its compiled functions.
    runs: several must be such that one program can train them, see
      cells.VALUES.
    start: loads the weights to start from, which are taken over. It is called
      for new runs, and for runs that leave some of these weights frozen.
    evaluate: see Evaluate.
    vmap: whether one program updates all runs at once, see together.py, which
      needs their batches in one layout. Else a program for one run updates each
      in turn.

  Returns:
    For each run its weights after the last step, or the error that ended it.
    Weights are averaged if the optimizer keeps an average, as in the evals and
    in the last checkpoint. A run ends at a loss or gradient that is not finite,
    at a checkpoint of other data, and at one that cannot be read, unless
    `plan.fall_back` sets that aside.

  Raises:
    ValueError: `log.wandb` does not begin.
    OSError: a checkpoint cannot be written.
    signals.Preempted: a signal asked to stop; the states are saved.
  """
  jobs, failures = _begin_jobs(plan, runs, start, vmap)
  if not jobs:
    return failures
  arm, frozen = jobs[0].run.arm, jobs[0].frozen
  step = plan.runtime.step(arm, jobs[0].view)
  title = ", ".join(job.run.name for job in jobs)
  num_updates = sum(job.run.arm.train.steps - job.resumed for job in jobs)
  with contextlib.ExitStack() as contexts:
    for job in jobs:
      job.update_trackers = contexts.enter_context(job.open_trackers())
    which = ", ".join(_which(plan, job.run.name) for job in jobs)
    bar = contexts.enter_context(stage(f"train {which}", num_updates, "steps"))
    lanes = {job.lane(bar): job for job in jobs}

    def evaluate_lanes(step: int, due: Sequence[Lane]) -> None:
      weights = {
        lanes[x].run.name: lanes[x].weights(eval_params(x.state)) for x in due
      }
      errors = evaluate(step, weights)
      for lane in due:
        lane.error = errors.get(lanes[lane].run.name)
        lanes[lane].update_trackers()

    update = update_in_one_program(step) if vmap else update_in_turn(step)
    with memory.name_shortage(f"training {title}", _less_memory(arm)):
      fit([*lanes], frozen, update, evaluate_lanes)
  return failures | {job.run.name: job.end(lane) for lane, job in lanes.items()}


def _which(plan: Plan, name: str) -> str:
  """Returns the name of a run; of one of several arms, which one it is."""
  arms = [*plan.config.arms]
  if name not in arms or len(arms) == 1:
    return name
  return f"{name} ({arms.index(name) + 1} of {len(arms)})"


def _begin_jobs(
  plan: Plan,
  runs: Sequence[TrainRun],
  start: Callable[[], Weights],
  vmap: bool,
) -> tuple[list["Job"], dict[str, Weights | Failure]]:
  """Begins runs, or goes on with them from their newest checkpoints.

  Args:
    plan, runs, start, vmap: see `train_runs`.

  Returns:
    The runs, which leave the same weights frozen; and by name the errors of
    those whose checkpoints end them.
  """
  failures: dict[str, Weights | Failure] = {}
  restored = []
  for run in runs:
    checkpoints = Checkpoints(run.folder / "checkpoints")
    try:
      state = restore_newest(plan, run, checkpoints)
      restored.append((run, checkpoints, state))
    except ValueError as e:
      failures[run.name] = e
  if not restored:
    return [], failures
  states, frozen, view = begin_states(
    plan.runtime, [(run.arm, state) for run, _, state in restored], start
  )
  layouts = [run.dataset.layout for run, *_ in restored]
  layout = widest_layout(layouts) if vmap else None
  jobs = [
    Job(plan, run, checkpoints, state, frozen, view, layout)
    for (run, checkpoints, _), state in zip(restored, states, strict=True)
  ]
  # Runs that are behind the furthest one make the same states again. Evals of
  # these states are saved already and stay.
  furthest = max(job.resumed for job in jobs)
  for job in jobs:
    job.begin(furthest)
  return jobs, failures


def _less_memory(arm: ArmConfig | OrganismConfig) -> str:
  """Lists the flags with which an update of a run needs less memory."""
  whose = "" if isinstance(arm, ArmConfig) else "organism."
  return (
    f"--config.{whose}train.accum={2 * arm.train.accum}, "
    "--config.model.remat=full, --config.mesh.fsdp=2 or "
    f"--config.{whose}lora.rank=16"
  )


class Job:
  """Holds a run that is trained, with its files.

  With `again` its updates were done before: what was drawn for them is read.
  """

  def __init__(
    self,
    plan: Plan,
    run: TrainRun,
    checkpoints: Checkpoints,
    state: TrainState,
    frozen: Frozen | None,
    view: ParamsView,
    layout: Layout | None,
    again: bool = False,
  ):
    self.plan, self.run = plan, run
    self.checkpoints, self.state = checkpoints, state
    self.frozen, self.view, self.resumed = frozen, view, int(state.step)
    arm, folder, dataset = run.arm, run.folder, run.dataset
    self.feed: Feed = _Examples(plan.runtime, folder, dataset, layout)
    if data_needs(objective_of(arm)).trains_on_own_samples:
      reference = view.reference_weights(frozen) if view.reference else None
      self.feed = RolloutFeed(
        plan, arm, folder, dataset, self.weights, reference, again
      )
    self.gradients = GradientLog(
      plan, arm, dataset, folder, frozen, view, self.feed.next_batch
    )
    # Replaced by what `open_trackers` yields.
    self.update_trackers: Callable[[], None] = lambda: None

  def open_trackers(
    self,
  ) -> contextlib.AbstractContextManager[Callable[[], None]]:
    """Opens the trackers of the config, in the first process only."""
    config, run = self.plan.config, self.run
    log = config.log if processes.is_first() else LogConfig(False, "")
    title = f"{config.name} {run.name}"
    return trackers.open_trackers(
      log, run.folder, title, dataclasses.asdict(run.arm)
    )

  def weights(self, trained: PyTree) -> Weights:
    """Joins what the run trains with what it leaves frozen."""
    return self.view.model_weights(trained, self.frozen)

  def begin(self, furthest: int) -> None:
    """Prepares the files for training from the state's step on.

    Args:
      furthest: the last step whose eval stays.
    """
    name, folder = self.run.name, self.run.folder
    if self.resumed:
      steps = self.run.arm.train.steps
      log_line(f"{name}: continuing at step {self.resumed} of {steps}")
    shared_files.drop_after(folder / "metrics.jsonl", self.resumed)
    for file in ("evals.jsonl", FILE, lm_eval_tasks.FILE):
      shared_files.drop_after(folder / file, furthest)
    self.feed.begin(self.resumed)
    processes.barrier(f"begin of {name}")

  def observe(self, step: int, state: TrainState) -> None:
    """Logs what the config asks for of a state that is evaluated."""
    if self.plan.config.eval.gradients:
      self.gradients(step, state)

  def learning_rate(self, step: int) -> float:
    """Returns the learning rate of an update, counted from 0."""
    arm = self.run.arm
    return optim.learning_rate(arm.optim, step, arm.train.steps)

  def lane(self, bar: Stage) -> Lane:
    """Makes what `fit` needs of this run.

    Args:
      bar: shows the progress of all runs.
    """
    arm, steps = self.run.arm, self.run.arm.train.steps

    def log(values: dict[str, float]) -> None:
      counts = self.feed.counts(int(values["step"]) - 1)
      path = self.run.folder / "metrics.jsonl"
      shared_files.append_line_unawaited(path, {**values, **counts})
      self.update_trackers()
      bar(loss=f"{values['loss']:.3f}")

    def save(state: TrainState) -> None:
      meta, final = {"data_hash": self.run.dataset.hash}, state.step == steps
      if final:
        state = dataclasses.replace(state, params=eval_params(state))
      # Before the state, which a run would go on from without these lines.
      shared_files.sync_lines(self.run.folder / "metrics.jsonl")
      self.checkpoints.save(state, meta, final=bool(final))

    return Lane(
      self.state,
      self.feed.next_batch,
      self.learning_rate,
      self.observe,
      save,
      log,
      FitConfig(
        steps,
        self.run.eval_steps,
        arm.train.checkpoint_every,
        self.run.task_steps,
      ),
    )

  def end(self, lane: Lane) -> Weights | NumericalError:
    """Closes the checkpoints; returns the weights, or what ended the run."""
    if (error := lane.error) is not None:
      last = self.checkpoints.latest()
      path = self.checkpoints.folder / str(last)
      error = NumericalError(
        f"{self.run.name}: {lane.error}; last checkpoint: "
        f"{'none yet' if last is None else path}"
      )
    self.checkpoints.close()
    return error or self.weights(eval_params(lane.state))


class Feed(Protocol):
  """Gives a run its batches."""

  def begin(self, resumed: int) -> None:
    """Prepares its files for training from a step on."""
    ...

  def next_batch(
    self, step: int, state: TrainState
  ) -> tuple[Batch, Sequence[str]]:
    """Returns the batch of an update, see loop.NextBatch."""
    ...

  def counts(self, step: int) -> Mapping[str, float]:
    """Returns what to log of the batch of a step, one of the newest two."""
    ...


@dataclasses.dataclass(frozen=True)
class _Examples:
  """Gives batches of examples that are there before training."""

  runtime: Runtime
  folder: Path
  dataset: Dataset
  layout: Layout | None  # of the batches; None is the dataset's own

  def begin(self, resumed: int) -> None:
    """Writes which tokens of a few examples are trained."""
    del resumed
    audit = mask_audit(self.runtime.chat, self.dataset.examples)
    shared_files.write_text(self.folder / "mask_audit.txt", audit)

  def next_batch(
    self, step: int, state: TrainState
  ) -> tuple[Batch, Sequence[str]]:
    """Returns the batch of an update and the ids of its examples."""
    del state
    rows = self.dataset.batch(step, self.layout)
    return put_batch(rows, self.runtime.mesh), self.dataset.batch_ids(step)

  def counts(self, step: int) -> Mapping[str, float]:
    """Returns the numbers of tokens in the batch of a step."""
    return self.dataset.counts(step)
