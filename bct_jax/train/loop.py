"""Trains one run, or several that are trained together, step by step."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from bct_jax.infra import processes, signals
from bct_jax.infra.formats import number
from bct_jax.mesh import to_host
from bct_jax.train.step import NumericalError
from bct_jax.train.together import Update
from bct_jax.types import Batch, PyTree, TrainState


@dataclasses.dataclass(frozen=True)
class FitConfig:
  """Says at which steps a run is evaluated and saved, in updates done."""

  steps: int
  eval_steps: tuple[int, ...]
  checkpoint_every: int
  saved_steps: tuple[int, ...] = ()  # further ones at which states are saved

  def observes(self, step: int, stopping: bool) -> bool:
    """Returns whether a state is observed; see `fit`."""
    return step in self.eval_steps and (step == self.steps or not stopping)

  def saves(self, step: int) -> bool:
    """Returns whether a state is saved without any signal."""
    regular = step % self.checkpoint_every == 0
    return regular or step == self.steps or step in self.saved_steps


class NextBatch(Protocol):
  """Makes the batches of one run."""

  def __call__(
    self, step: int, state: TrainState
  ) -> tuple[Batch, Sequence[str]]:
    """Returns the batch of update `step` and the ids of its rows.

    Args:
      step: counted from 0.
      state: that of this step, never an older one.

    Raises:
      signals.Preempted: a signal asked to stop; `fit` then saves the state.
    """
    ...


@dataclasses.dataclass(eq=False)
class Lane:
  """Holds one arm that `fit` trains.

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
    begun: those of the state that it begins with here.
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
  begun: int = dataclasses.field(init=False)

  def __post_init__(self):
    self.step = self.saved = self.begun = int(self.state.step)


Evaluate = Callable[[int, Sequence[Lane]], None]


# The schedule, with an eval at step 4 and a save at step 6. State t is the one
# after t updates; update t makes state t + 1 and has loss t. An update is
# dispatched, not waited for: the device runs it while the host goes on.
#
#   t = 3               batch 3 | dispatch update 3 | read loss 2
#   t = 4  read loss 3 | observe, evaluate state 4 | batch 4 | dispatch update 4
#   t = 5               batch 5 | dispatch update 5 | read loss 4
#   t = 6  read loss 5 | save state 6 | batch 6 | dispatch update 6
#
# A loss is read before the state that it led to is observed, saved or
# evaluated, so one that is not finite ends its lane before anything is kept.
# After a signal, the next t reads its loss, saves its state, and fit raises.
def fit(
  lanes: Sequence[Lane], frozen: PyTree, update: Update, evaluate: Evaluate
) -> None:
  """Trains each lane from its state's step to its own last one.

  At step t, in this order: observes the states that are evaluated at t, saves
  the states that are due, evaluates, and does update t of all lanes together.
  A state is observed before it is saved, as the last state is not saved whole.
  A stop before the last step leaves observing to the run that goes on.

  A lane whose loss or gradient norm is not finite gets an `error`, and nothing
  of the lane is saved from then on; the other lanes go on. Lanes at a later
  step than the others wait for them. Which lanes an update is compiled for
  follows from their last steps alone, so that a killed run goes on to the same
  numbers.

  A signal that asks to stop has the states saved as soon as no update is under
  way; all processes stop at the same step.

  Args:
    lanes: at one step or at several.
    frozen: what the updates of all lanes read and leave as it is.
    update: see together.py.
    evaluate: called with a step and the lanes that are evaluated there; may set
      a lane's `error`.

  Raises:
    signals.Preempted: a signal asked to stop; the states are saved.
  """
  log = _Log()
  last = max(lane.config.steps for lane in lanes)
  # All processes must stop at the same step, so they vote. The vote begins
  # before an update and is read at the next step, when it has long arrived.
  stop = processes.vote(signals.stop_requested())
  for t in range(min(lane.step for lane in lanes), last + 1):
    here = [x for x in lanes if x.step == t and x.error is None]
    # A process that is alone need not wait for a vote.
    stopping = (
      signals.stop_requested()
      if processes.count() == 1
      else processes.read_vote(stop)
    )
    with _save_on_signal(t, here, log):
      _observe(t, [x for x in here if x.config.observes(t, stopping)], log)
    _save(t, [x for x in here if stopping or x.config.saves(t)], log)
    if stopping:
      raise signals.Preempted(f"at step {t} of {last}")
    with _save_on_signal(t, here, log):
      _evaluate(t, [x for x in here if t in x.config.eval_steps], evaluate, log)
      # Also lanes that wait or have failed: see above on what is compiled.
      running = [x for x in lanes if t < x.config.steps]
      batches = [_next_batch(t, x) if x in here else None for x in running]
    if any(batches):
      stop = processes.vote(signals.stop_requested())
      metrics = _update(t, running, batches, frozen, update)
      log.flush()  # of the update before, while the device runs this one
      log.pending = metrics
  log.flush()


@contextlib.contextmanager
def _save_on_signal(
  step: int, lanes: Sequence[Lane], log: "_Log"
) -> Iterator[None]:
  """Saves the states of lanes if a signal stops what is done inside."""
  try:
    yield
  except signals.Preempted:
    _save(step, lanes, log)
    raise


def _observe(step: int, lanes: Sequence[Lane], log: "_Log") -> None:
  """Has lanes observe their states, once the newest losses are known."""
  if lanes:
    log.flush()
  for lane in lanes:
    if lane.error is None:
      lane.observe(step, lane.state)


def _save(step: int, lanes: Sequence[Lane], log: "_Log") -> None:
  """Saves states that are not saved yet, once the newest losses are known."""
  if any(lane.saved < step for lane in lanes):
    log.flush()
  for lane in lanes:
    if lane.error is None and lane.saved < step:
      lane.save(lane.state)
      lane.saved = step


def _evaluate(
  step: int, lanes: Sequence[Lane], evaluate: Evaluate, log: "_Log"
) -> None:
  """Evaluates the lanes that the newest losses leave without an error."""
  if not lanes:
    return
  log.flush()
  if finite := [x for x in lanes if x.error is None]:
    evaluate(step, finite)
  log.clock = time.monotonic()  # an eval is no part of an update's seconds


def _next_batch(step: int, lane: Lane) -> tuple[Batch, Sequence[str]] | None:
  """Makes the batch of a lane and its ids; None if the lane ends here."""
  if lane.error is not None:
    return None
  try:
    return lane.next_batch(step, lane.state)
  except NumericalError as e:
    lane.error = e
    return None


class _Metrics(NamedTuple):
  """Holds the metrics of an update of one lane, still on the devices."""

  lane: Lane
  step: int  # updates done with this one
  ids: Sequence[str]
  lr: float
  metrics: dict[str, Any]


def _update(
  step: int,
  lanes: Sequence[Lane],
  batches: Sequence[tuple[Batch, Sequence[str]] | None],
  frozen: PyTree,
  update: Update,
) -> list[_Metrics]:
  """Dispatches update `step` of the lanes that have a batch."""
  lrs = [lane.learning_rate(step) for lane in lanes]
  # The first update compiles, for as long as that takes. On CPUs the others
  # wait here for the processes that an update adds over.
  compiles = any(lane.begun == lane.step for lane in lanes)
  name = f"update {step + 1}"
  with contextlib.nullcontext() if compiles else processes.deadline(name):
    states, metrics = update(
      [lane.state for lane in lanes],
      frozen,
      [None if b is None else b[0] for b in batches],
      lrs,
    )
  out = []
  for i, (lane, batch) in enumerate(zip(lanes, batches, strict=True)):
    lane.state = states[i]
    if batch is not None:
      lane.step = step + 1
      out.append(_Metrics(lane, step + 1, batch[1], lrs[i], metrics[i]))
  return out


class _Log:
  """Reads and logs the metrics of the newest update of all lanes."""

  def __init__(self):
    self.pending: list[_Metrics] = []
    self.clock = time.monotonic()

  def flush(self) -> None:
    """Waits for the pending metrics, and logs them or sets a lane's error."""
    pending, self.pending = self.pending, []
    if not pending:
      return
    name = f"metrics of update {pending[0].step}"
    on_host = to_host([x.metrics for x in pending], name)
    now = time.monotonic()
    # So that the sum over all lanes is the time that passed.
    seconds = (now - self.clock) / len(pending)
    self.clock = now
    for (lane, step, ids, lr, _), metrics in zip(pending, on_host, strict=True):
      if lane.error is not None:
        continue
      values = {k: float(v) for k, v in metrics.items()}
      if bad := [k for k, v in values.items() if not math.isfinite(v)]:
        lane.error = NumericalError(
          f"{', '.join(bad)} not finite at update {step} of "
          f"{lane.config.steps} (lr {number(lr)}), examples {list(ids)}"
        )
        continue
      lane.log({"step": step, "lr": lr, **values, "seconds": seconds})
