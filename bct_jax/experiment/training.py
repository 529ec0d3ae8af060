"""Training runs in their folders: resumed, logged, checkpointed."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import jax

from bct_jax.config import ArmConfig, LogConfig, OrganismConfig
from bct_jax.data.batches import Dataset, Layout, widest
from bct_jax.data.chat import mask_audit
from bct_jax.experiment.gradient_log import FILE, GradientLog
from bct_jax.experiment.plan import Plan
from bct_jax.experiment.rl import Rollouts
from bct_jax.infra import files, processes, trackers
from bct_jax.infra.progress import Stage, say, stage
from bct_jax.interop import lm_eval_tasks
from bct_jax.mesh import put_batch
from bct_jax.models.lora import Frozen, Weights
from bct_jax.objectives import asks, objective_of, on_rollouts
from bct_jax.runtime.programs import Runtime
from bct_jax.train import optim
from bct_jax.train.checkpoint import Checkpoints, Damaged
from bct_jax.train.loop import FitConfig, Lane, fit, in_turn
from bct_jax.train.step import NumericalError, kept
from bct_jax.train.together import vmapped
from bct_jax.types import Batch, PyTree, TrainState


@dataclasses.dataclass(frozen=True)
class Run:
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
  run = Run(name, folder, arm, dataset)
  found = train_runs(plan, [run], start)[name]
  if isinstance(found, Exception):
    raise found
  return found


def train_runs(
  plan: Plan,
  runs: Sequence[Run],
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
    vmap: updates all in one program, see population.py, which wants the batches
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
      found.append((run, checkpoints, _saved_state(plan, run, checkpoints)))
    except ValueError as e:
      out[run.name] = e
  if not found:
    return out
  arm = found[0][0].arm
  states, frozen, continued = _states(
    plan.runtime, [(run.arm, state) for run, _, state in found], start
  )
  layout = widest([run.dataset.layout for run, *_ in found]) if vmap else None
  jobs = [
    _Job(plan, run, checkpoints, state, frozen, continued, layout)
    for (run, checkpoints, _), state in zip(found, states, strict=True)
  ]
  # Those that are behind make the same states again, whose evals are known.
  furthest = max(job.resumed for job in jobs)
  for job in jobs:
    job.begin(furthest)
  step = plan.runtime.step(arm, continued)
  title = ", ".join(job.run.name for job in jobs)
  left = sum(job.run.arm.train.steps - job.resumed for job in jobs)
  with contextlib.ExitStack() as opened:
    for job in jobs:
      job.tell = opened.enter_context(job.follow())
    bar = opened.enter_context(stage(f"train {title}", left, "steps"))
    lanes = {job.lane(bar): job for job in jobs}

    def evaluate_lanes(step: int, due: Sequence[Lane]) -> None:
      weights = {
        lanes[x].run.name: lanes[x].weights(kept(x.state)) for x in due
      }
      errors = evaluate(step, weights)
      for lane in due:
        lane.error = errors.get(lanes[lane].run.name)
        lanes[lane].tell()

    update = vmapped(step) if vmap else in_turn(step)
    fit([*lanes], frozen, update, evaluate_lanes)
  return out | {job.run.name: job.end(lane) for lane, job in lanes.items()}


class _Job:
  """A run that is trained, and its files."""

  def __init__(
    self,
    plan: Plan,
    run: Run,
    checkpoints: Checkpoints,
    state: TrainState,
    frozen: Frozen | None,
    continued: bool,
    layout: Layout | None,
  ):
    self.plan, self.run = plan, run
    self.checkpoints, self.state = checkpoints, state
    self.frozen, self.resumed = frozen, int(state.step)
    arm, folder, dataset = run.arm, run.folder, run.dataset
    self.feed: Feed = _Examples(plan.runtime, folder, dataset, layout)
    if policy := on_rollouts(arm):
      reference = None
      if frozen is not None and policy.uses_reference:
        own = None if frozen.adapter is None else arm.lora
        reference = Weights(frozen.params, frozen.adapter, own)
      self.feed = Rollouts(plan, arm, folder, dataset, self.weights, reference)
    self.gradients = GradientLog(
      plan, arm, dataset, folder, frozen, continued, self.feed.next_batch
    )
    self.tell: Callable[[], None] = lambda: None  # see live.follow

  def follow(self) -> contextlib.AbstractContextManager[Callable[[], None]]:
    """Passes on what is logged, in the first process."""
    config, run = self.plan.config, self.run
    to = config.log if processes.is_first() else LogConfig(False, "")
    title = f"{config.name} {run.name}"
    return trackers.follow(to, run.folder, title, dataclasses.asdict(run.arm))

  def weights(self, trained: PyTree) -> Weights:
    if not self.run.arm.lora.rank or self.frozen is None:
      return Weights(trained)
    return Weights(self.frozen.params, trained, self.run.arm.lora)

  def begin(self, furthest: int) -> None:
    """Readies the files; evals up to a step are kept."""
    name, folder = self.run.name, self.run.folder
    if self.resumed:
      steps = self.run.arm.train.steps
      say(f"{name}: continuing at step {self.resumed} of {steps}")

    def ready() -> None:
      files.keep_until(folder / "metrics.jsonl", self.resumed)
      for name in ("evals.jsonl", FILE, lm_eval_tasks.FILE):
        files.keep_until(folder / name, furthest)
      self.feed.begin(self.resumed)

    processes.first(f"begin of {name}", ready)
    processes.barrier(f"begin of {name}")

  def lane(self, bar: Stage) -> Lane:
    """What `fit` asks for."""
    arm, steps = self.run.arm, self.run.arm.train.steps

    def log(values: dict[str, float]) -> None:
      counts = self.feed.counts(int(values["step"]) - 1)
      if processes.is_first():
        path = self.run.folder / "metrics.jsonl"
        files.append_line(path, {**values, **counts})
      self.tell()
      bar(loss=f"{values['loss']:.3f}")

    def observe(step: int, state: TrainState) -> None:
      if self.plan.config.eval.gradients:
        self.gradients(step, state)

    def save(state: TrainState) -> None:
      meta, final = {"data_hash": self.run.dataset.hash}, state.step == steps
      if final:
        state = dataclasses.replace(state, params=kept(state))
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
    return error or self.weights(kept(lane.state))


class Feed(Protocol):
  """Where the batches of a run come from."""

  def begin(self, resumed: int) -> None:
    """Readies its files for going on at a step; in the first process only."""
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
    files.write_text(self.folder / "mask_audit.txt", audit)

  def next_batch(
    self, step: int, state: TrainState
  ) -> tuple[Batch, Sequence[str]]:
    del state
    rows = self.dataset.batch(step, self.layout)
    return put_batch(rows, self.runtime.mesh), self.dataset.batch_ids(step)

  def counts(self, step: int) -> Mapping[str, float]:
    return self.dataset.counts(step)


def _saved_state(
  plan: Plan, run: Run, checkpoints: Checkpoints
) -> TrainState | None:
  """The newest checkpoint's state; None if there is none."""
  while True:
    try:
      return _newest_state(plan.runtime, run, checkpoints)
    except Damaged as e:
      if not plan.fall_back:
        raise
      say(f"{e}: set aside as {checkpoints.set_aside(e.step)}")


def _newest_state(
  runtime: Runtime, run: Run, checkpoints: Checkpoints
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
    say(
      f"{checkpoints.folder}: saved on {meta['devices']} devices, read on "
      f"{jax.device_count()}: what follows is the same up to rounding"
    )
  abstract = runtime.abstract_state(arm.optim, arm.lora)
  if latest < arm.train.steps:
    return checkpoints.restore(abstract)
  # A finished run kept what it trained only; what remains is to evaluate it.
  trained = checkpoints.restore_params(abstract.params)
  return TrainState(jax.numpy.int32(latest), trained, None, None)


def _states(
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
      state, frozen, continued = fresh_state(runtime, new[-1], begin)
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
    return begin._replace(adapter=copy(begin.adapter))
  return Weights(copy(begin.params))


def fresh_state(
  runtime: Runtime, arm: ArmConfig | OrganismConfig, begin: Weights
) -> tuple[TrainState, Frozen | None, bool]:
  """A state at step 0 from weights that are taken over, what is frozen, and
  whether it goes on training an adapter of theirs."""
  frozen = None
  if _freezes(arm):
    frozen = _frozen(arm, begin)
    # A copy, where the state takes over what it is of.
    params = frozen.params if arm.lora.rank else copy(frozen.params)
    frozen = Frozen(params, copy(frozen.adapter))
  return runtime.init_state(begin, arm), frozen, begin.adapter is not None


def _freezes(arm: ArmConfig | OrganismConfig) -> bool:
  """Whether a step needs params that it does not train."""
  return arm.lora.rank > 0 or asks(objective_of(arm)).uses_reference


def _frozen(arm: ArmConfig | OrganismConfig, begin: Weights) -> Frozen:
  compares = asks(objective_of(arm)).uses_reference
  return Frozen(begin.params, begin.adapter if compares else None)


@jax.jit
def copy(tree: PyTree) -> PyTree:
  """The same arrays in memory of their own."""
  return jax.tree.map(jax.numpy.copy, tree)
