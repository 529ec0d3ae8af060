"""The loop of training, for one run or several that are trained together."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from bct_jax.infra import processes, signals
from bct_jax.mesh import to_host
from bct_jax.train.step import NumericalError
from bct_jax.train.together import Update
from bct_jax.types import Batch, PyTree, TrainState


@dataclasses.dataclass(frozen=True)
class FitConfig:
  """The schedule of a run, in updates done."""

  steps: int
  eval_steps: tuple[int, ...]
  checkpoint_every: int
  saved_steps: tuple[int, ...] = ()  # further ones at which states are saved

  def observes(self, step: int, stopping: bool) -> bool:
    return step in self.eval_steps and (step == self.steps or not stopping)

  def saves(self, step: int) -> bool:
    every = step % self.checkpoint_every == 0
    return every or step == self.steps or step in self.saved_steps


class NextBatch(Protocol):
  def __call__(
    self, step: int, state: TrainState
  ) -> tuple[Batch, Sequence[str]]:
    """The batch of update `step`, counted from 0, and the ids of its rows.

    `state` is that of this step: what it makes the batch from is never older.
    May raise signals.Preempted, after which the state is saved.
    """
    ...


@dataclasses.dataclass(eq=False)
class Lane:
  """One arm in `fit`.

  Attributes:
    state: is that of the newest update; after `fit`, of the last one.
    next_batch: see NextBatch.
    learning_rate: of each update, counted from 0.
    observe: called with a state that is evaluated, before it is saved.
    save: called with a state that is due.
    log: called with the metrics of an update.
    config: its schedule.
    error: why it was not trained to the end.
    step: updates done.
    saved: those of the state saved last.
  """

  state: TrainState
  next_batch: NextBatch
  learning_rate: Callable[[int], float]
  observe: Callable[[int, TrainState], None]
  save: Callable[[TrainState], None]
  log: Callable[[dict[str, float]], None]
  config: FitConfig
  error: NumericalError | None = None
  step: int = dataclasses.field(init=False)
  saved: int = dataclasses.field(init=False)

  def __post_init__(self):
    self.step = self.saved = int(self.state.step)


Evaluate = Callable[[int, Sequence[Lane]], None]


def fit(
  lanes: Sequence[Lane], frozen: PyTree, update: Update, evaluate: Evaluate
) -> None:
  """Trains each lane from its state's step to its own last one.

  At step s, in this order: observe the states that are to be evaluated, save
  those that are due, evaluate the weights after s updates, then do update s of
  all lanes together. Observed is before saved, as a last state is not saved
  whole; a stop before the last step leaves it to the run that goes on. The
  metrics of an update are read after the next one is dispatched, so that
  logging does not hold up the device, but always before anything is saved or
  evaluated.

  A lane whose loss or gradient norm is not finite gets an `error`, and nothing
  of it is saved from then on; the others go on. Those at a later step than the
  others wait for them, and which lanes an update is compiled for follows from
  their last steps alone: what was killed goes on to the same numbers.

  A signal that asks to stop has the states saved as soon as no update is under
  way; all processes stop at the same step.

  Raises:
    signals.Preempted: a signal asked to stop; the states are saved.
  """
  log = _Log()

  def keep(t: int, due: Sequence[Lane]) -> None:
    if any(lane.saved < t for lane in due):
      log.flush()
    for lane in due:
      if lane.error is None and lane.saved < t:
        lane.save(lane.state)
        lane.saved = t

  last = max(lane.config.steps for lane in lanes)
  # Asked ahead of an update and read after the next is dispatched, like the
  # metrics. Alone, there is nobody to ask.
  stop = processes.vote(signals.stop_requested())
  for t in range(min(lane.step for lane in lanes), last + 1):
    here = [x for x in lanes if x.step == t and x.error is None]
    stopping = (
      signals.stop_requested() if processes.count() == 1 else bool(stop)
    )
    try:
      seen = [x for x in here if x.config.observes(t, stopping)]
      if seen:
        log.flush()
      for lane in seen:
        if lane.error is None:
          lane.observe(t, lane.state)
    except signals.Preempted:
      keep(t, here)
      raise
    keep(t, [x for x in here if stopping or x.config.saves(t)])
    if stopping:
      raise signals.Preempted(f"at step {t} of {last}")
    try:
      if any(t in x.config.eval_steps for x in here):
        log.flush()
        due = [x for x in here if t in x.config.eval_steps and x.error is None]
        if due:
          evaluate(t, due)
        log.clock = time.monotonic()
      # By their last steps alone, see above.
      running = [x for x in lanes if t < x.config.steps]
      given = [_next(t, x) if x in here else None for x in running]
    except signals.Preempted:
      keep(t, here)
      raise
    if not any(given):
      continue
    stop = processes.vote(signals.stop_requested())
    lrs = [x.learning_rate(t) for x in running]
    batches = [None if g is None else g[0] for g in given]
    states, metrics = update([x.state for x in running], frozen, batches, lrs)
    moved = []
    for lane, state, new, lr, found in zip(
      running, states, given, lrs, metrics, strict=True
    ):
      lane.state = state
      if new is not None:
        lane.step = t + 1
        moved.append(_Moved(lane, t + 1, new[1], lr, found))
    log.flush()
    log.pending = moved
  log.flush()


def _next(step: int, lane: Lane) -> tuple[Batch, Sequence[str]] | None:
  """The batch of a lane; None if it ends here."""
  if lane.error is not None:
    return None
  try:
    return lane.next_batch(step, lane.state)
  except NumericalError as e:
    lane.error = e
    return None


class _Moved(NamedTuple):
  """An update of a lane whose metrics are not read yet."""

  lane: Lane
  step: int
  ids: Sequence[str]
  lr: float
  metrics: dict[str, Any]


class _Log:
  """Reads and logs the metrics of one update of all lanes."""

  def __init__(self):
    self.pending: list[_Moved] = []
    self.clock = time.monotonic()

  def flush(self) -> None:
    pending, self.pending = self.pending, []
    if not pending:
      return
    name = f"metrics of update {pending[0].step}"
    read = to_host([x.metrics for x in pending], name)
    now = time.monotonic()
    # So that the sum over all lanes is the time that passed.
    seconds = (now - self.clock) / len(pending)
    self.clock = now
    for (lane, step, ids, lr, _), metrics in zip(pending, read, strict=True):
      if lane.error is not None:
        continue
      values = {k: float(v) for k, v in metrics.items()}
      if bad := [k for k, v in values.items() if not math.isfinite(v)]:
        lane.error = NumericalError(
          f"{', '.join(bad)} not finite at update {step} of "
          f"{lane.config.steps} (lr {lr:g}), examples {list(ids)}"
        )
        continue
      lane.log({"step": step, "lr": lr, **values, "seconds": seconds})
