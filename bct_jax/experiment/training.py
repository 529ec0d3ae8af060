"""Training runs in their folders: resumed, logged, checkpointed."""

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
from bct_jax.infra import processes, shared_files, trackers
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

# What ends a run and not those that are trained with it.
Failure = ValueError | NumericalError
# Called with a step and the weights of the runs that are due; returns what is
# wrong with those that end here.
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
  found = train_runs(plan, [run], start)[name]
  if isinstance(found, Exception):
    raise found
  return found


def train_runs(
  plan: Plan,
  runs: Sequence[TrainRun],
  start: Callable[[], Weights],
  evaluate: Evaluate = lambda step, due: {},
  vmap: bool = False,
) -> dict[str, Weights | Failure]:
  """Trains runs together, or goes on where the checkpoints of each end.

  Args:
    plan: for the model and its compiled functions.
    runs: several must be such as one program can train, see cells.VALUES.
    start: gives the weights to start from, which are taken over; called for
      new runs, and for the params that adapters are over.
    evaluate: see Evaluate.
    vmap: updates all in one program, see together.py, which wants the batches
      in one layout; else the program of one runs for each in turn.

  Returns:
    The weights of each after its last step, averaged if its optimizer keeps an
    average, as they are in its evals and in its last checkpoint; or what ended
    it: a loss or gradient that is not finite; a checkpoint of other data, or
    one that cannot be read (`plan.fall_back` sets it aside instead).

  Raises:
    ValueError: `log.wandb` does not begin.
    OSError: a checkpoint cannot be written.
    signals.Preempted: a signal asked to stop; the states are saved.
  """
  out: dict[str, Weights | Failure] = {}
  found = []
  for run in runs:
    checkpoints = Checkpoints(run.folder / "checkpoints")
    try:
      found.append((run, checkpoints, restore_newest(plan, run, checkpoints)))
    except ValueError as e:
      out[run.name] = e
  if not found:
    return out
  arm = found[0][0].arm
  states, frozen, view = begin_states(
    plan.runtime, [(run.arm, state) for run, _, state in found], start
  )
  layout = (
    widest_layout([run.dataset.layout for run, *_ in found]) if vmap else None
  )
  jobs = [
    _Job(plan, run, checkpoints, state, frozen, view, layout)
    for (run, checkpoints, _), state in zip(found, states, strict=True)
  ]
  # Those that are behind make the same states again, whose evals are known.
  furthest = max(job.resumed for job in jobs)
  for job in jobs:
    job.begin(furthest)
  step = plan.runtime.step(arm, view)
  title = ", ".join(job.run.name for job in jobs)
  left = sum(job.run.arm.train.steps - job.resumed for job in jobs)
  with contextlib.ExitStack() as opened:
    for job in jobs:
      job.tell = opened.enter_context(job.follow())
    bar = opened.enter_context(stage(f"train {title}", left, "steps"))
    lanes = {job.lane(bar): job for job in jobs}

    def evaluate_lanes(step: int, due: Sequence[Lane]) -> None:
      weights = {
        lanes[x].run.name: lanes[x].weights(eval_params(x.state)) for x in due
      }
      errors = evaluate(step, weights)
      for lane in due:
        lane.error = errors.get(lanes[lane].run.name)
        lanes[lane].tell()

    update = update_in_one_program(step) if vmap else update_in_turn(step)
    fit([*lanes], frozen, update, evaluate_lanes)
  return out | {job.run.name: job.end(lane) for lane, job in lanes.items()}


class _Job:
  """A run that is trained, and its files."""

  def __init__(
    self,
    plan: Plan,
    run: TrainRun,
    checkpoints: Checkpoints,
    state: TrainState,
    frozen: Frozen | None,
    view: ParamsView,
    layout: Layout | None,
  ):
    self.plan, self.run = plan, run
    self.checkpoints, self.state = checkpoints, state
    self.frozen, self.view, self.resumed = frozen, view, int(state.step)
    arm, folder, dataset = run.arm, run.folder, run.dataset
    self.feed: Feed = _Examples(plan.runtime, folder, dataset, layout)
    if data_needs(objective_of(arm)).trains_on_own_samples:
      reference = view.reference_weights(frozen) if view.reference else None
      self.feed = RolloutFeed(
        plan, arm, folder, dataset, self.weights, reference
      )
    self.gradients = GradientLog(
      plan, arm, dataset, folder, frozen, view, self.feed.next_batch
    )
    self.tell: Callable[[], None] = lambda: None  # see live.follow

  def follow(self) -> contextlib.AbstractContextManager[Callable[[], None]]:
    """Passes on what is logged, in the first process."""
    config, run = self.plan.config, self.run
    to = config.log if processes.is_first() else LogConfig(False, "")
    title = f"{config.name} {run.name}"
    return trackers.open_trackers(
      to, run.folder, title, dataclasses.asdict(run.arm)
    )

  def weights(self, trained: PyTree) -> Weights:
    return self.view.model_weights(trained, self.frozen)

  def begin(self, furthest: int) -> None:
    """Readies the files; evals up to a step are kept."""
    name, folder = self.run.name, self.run.folder
    if self.resumed:
      steps = self.run.arm.train.steps
      log_line(f"{name}: continuing at step {self.resumed} of {steps}")
    shared_files.drop_after(folder / "metrics.jsonl", self.resumed)
    for file in ("evals.jsonl", FILE, lm_eval_tasks.FILE):
      shared_files.drop_after(folder / file, furthest)
    self.feed.begin(self.resumed)
    processes.barrier(f"begin of {name}")

  def lane(self, bar: Stage) -> Lane:
    """What `fit` asks for."""
    arm, steps = self.run.arm, self.run.arm.train.steps

    def log(values: dict[str, float]) -> None:
      counts = self.feed.counts(int(values["step"]) - 1)
      path = self.run.folder / "metrics.jsonl"
      shared_files.append_line_unawaited(path, {**values, **counts})
      self.tell()
      bar(loss=f"{values['loss']:.3f}")

    def observe(step: int, state: TrainState) -> None:
      if self.plan.config.eval.gradients:
        self.gradients(step, state)

    def save(state: TrainState) -> None:
      meta, final = {"data_hash": self.run.dataset.hash}, state.step == steps
      if final:
        state = dataclasses.replace(state, params=eval_params(state))
      self.checkpoints.save(state, meta, final=bool(final))

    return Lane(
      self.state,
      self.feed.next_batch,
      lambda t: optim.learning_rate(arm.optim, t, steps),
      observe,
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
    """What it was trained to, or why it was not."""
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
  """Where the batches of a run come from."""

  def begin(self, resumed: int) -> None:
    """Readies its files for going on at a step."""
    ...

  def next_batch(
    self, step: int, state: TrainState
  ) -> tuple[Batch, Sequence[str]]:
    """See loop.NextBatch."""
    ...

  def counts(self, step: int) -> Mapping[str, float]:
    """What to log of the batch of a step, that of the newest two."""
    ...


@dataclasses.dataclass(frozen=True)
class _Examples:
  """Batches of given examples."""

  runtime: Runtime
  folder: Path
  dataset: Dataset
  layout: Layout | None  # of the batches; None is the dataset's own

  def begin(self, resumed: int) -> None:
    del resumed
    audit = mask_audit(self.runtime.chat, self.dataset.examples)
    shared_files.write_text(self.folder / "mask_audit.txt", audit)

  def next_batch(
    self, step: int, state: TrainState
  ) -> tuple[Batch, Sequence[str]]:
    del state
    rows = self.dataset.batch(step, self.layout)
    return put_batch(rows, self.runtime.mesh), self.dataset.batch_ids(step)

  def counts(self, step: int) -> Mapping[str, float]:
    return self.dataset.counts(step)
