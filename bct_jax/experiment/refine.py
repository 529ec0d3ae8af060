"""Evaluates a trained arm more closely where it changes: `eval.refine`.

The evals of the config leave brackets of steps, `evals/placement.py` says where
the next eval is. The states between them were not kept, so updates are made
again. With evals at 0, 4, 8, 16, a style that lasts from 7 on, and an initial
behavior that is gone from 11 on:

  updates made again      evals   what is then known
  1 to 4, saved, 5, 6     6       style in 7 to 8: the evals at 4, 6 miss it
  7                       7       style step 7: 8 shows it too
  8, 9                    9       that it lasts; behavior gone in 10 to 16
  saved, 10, 11, 12       12      gone in 10 to 12
  9 again, 10             10      gone in 11 to 12
  11                      11      loss step 11
  12, 13                  13      that it lasts

The state at the lower end of a bracket is saved in the folder `refine` of the
arm, one at a time, to come back to. Each update must give the very numbers that
metrics.jsonl has of it. Which evals are there, and that state, are all that a
run needs to go on after a kill.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bct_jax.data.batches import widest_layout
from bct_jax.evals.crossings import find_loss, find_progress, mean_losses
from bct_jax.evals.placement import Placement, place_eval
from bct_jax.experiment.plan import Plan
from bct_jax.experiment.run_state import TrainRun, begin_states, restore_newest
from bct_jax.experiment.training import Evaluate, Failure, Job
from bct_jax.infra import files, memory, processes, shared_files
from bct_jax.infra.progress import Stage, log_line, stage
from bct_jax.infra.shared_files import delete_folder
from bct_jax.models.lora import Weights
from bct_jax.train.checkpoint import Checkpoints
from bct_jax.train.loop import FitConfig, Lane, fit
from bct_jax.train.step import NumericalError, eval_params
from bct_jax.train.together import (
  Update,
  update_at_place,
  update_in_one_program,
  update_in_turn,
)
from bct_jax.types import TrainState

FOLDER = "refine"
# Target of the reading -> what the step that it is reached at is called.
_STEPS = {
  "style": "style step",
  "reward": "reward step",
  "loss": "step of the training loss",
}


def refine_arms(
  plan: Plan,
  runs: Sequence[TrainRun],
  failures: Mapping[str, Failure | None],
  start: Callable[[], Weights],
  evaluate: Evaluate,
  vmap: bool,
) -> dict[str, Failure | None]:
  """Evaluates arms around their crossings, one arm after the other.

  None of them may count as done before all are: what goes on after a kill needs
  to know which arms one program trained.

  Args:
    plan, runs, start, evaluate, vmap: as given to training.train_runs.
    failures: what ended each run; None for those that were trained to the end.

  Returns:
    The failures, with those of arms that ended here.
  """
  out = dict(failures)
  # Where one program trains all, those that failed in it had a place too.
  there = [r for r in runs if not isinstance(failures[r.name], ValueError)]
  for run in runs:
    if failures[run.name] is None:
      together = there if vmap else None
      out[run.name] = _refine_arm(plan, run, start, evaluate, together)
  return out


def _refine_arm(
  plan: Plan,
  run: TrainRun,
  start: Callable[[], Weights],
  evaluate: Evaluate,
  together: Sequence[TrainRun] | None,
) -> Failure | None:
  """Evaluates an arm around its crossings, within `eval.refine_budget`.

  Args:
    plan: of the experiment.
    run: of the arm, which is trained to its end.
    start: loads the weights that it began with.
    evaluate: see training.Evaluate; adds a line to evals.jsonl.
    together: the runs that one program trained, this one among them; None if
      the arm was trained by a program of its own.

  Returns:
    What ended it: an update that is not what it was, an error of an eval.

  Raises:
    signals.Preempted: a signal asked to stop.
  """
  replay = None
  try:
    while (place := _next_place(plan, run)) is not None:
      log_line(f"{run.name}: {place.why}: eval {place.step}")
      if replay is None:
        replay = _Replay(plan, run, start, together)
      replay.go_to(place, evaluate)
  except (ValueError, NumericalError) as e:
    return e
  finally:
    if replay is not None:
      replay.close()
  delete_folder(run.folder / FOLDER)
  memory.release_memory()
  return None


def _next_place(plan: Plan, run: TrainRun) -> Placement | None:
  """Chooses the next eval from the files of an arm."""
  config, arm = plan.config, run.arm

  def place() -> dict[str, Any] | None:
    curve = files.read_lines(run.folder / "evals.jsonl")
    steps = [point["step"] for point in curve]
    lines = files.read_lines(run.folder / "metrics.jsonl")
    target, _ = find_progress(
      curve,
      config.reading,
      mean_losses(lines, steps),
      arm.train.has_style,
    )
    crossings = {
      _STEPS[config.reading.target]: target,
      "loss step": find_loss(curve),
    }
    spent = len(set(steps) - set(run.eval_steps))
    left = config.eval.refine_budget - spent
    found = place_eval(steps, crossings, arm.train.steps, left)
    return None if found is None else dataclasses.asdict(found)

  found = processes.run_on_first(f"next eval of {run.name}", place)
  return None if found is None else Placement(**found)


class _Replay:
  """Makes the updates of an arm again, onwards or from a saved state."""

  def __init__(
    self,
    plan: Plan,
    run: TrainRun,
    start: Callable[[], Weights],
    together: Sequence[TrainRun] | None,
  ):
    self.plan, self.run = plan, run
    self.start, self.together = start, together
    self.checkpoints = Checkpoints(run.folder / FOLDER)
    lines = shared_files.read_lines(run.folder / "metrics.jsonl")
    self.lines = {line["step"]: line for line in lines}
    self.job: Job | None = None
    self.step = 0  # of the job's state

  def go_to(self, place: Placement, evaluate: Evaluate) -> None:
    """Makes the state of an eval and evaluates it.

    If evals between `place.lower` and this one may follow, saves the state at
    `place.lower` on the way.

    Raises:
      ValueError: an update is not what it was.
      NumericalError: numbers of the eval are not finite.
    """
    if self.job is None or self.step > place.lower:
      self.job = None  # frees its memory before there is another one
      memory.release_memory()
      self.job = self._begin(place.lower)
      self.step = int(self.job.state.step)
    if place.step - place.lower > 1:
      self._advance(self.job, place.lower)
      self._save(self.job.state)
    self._advance(self.job, place.step)
    self._fit(self.job, place.step, evaluate=evaluate)

  def close(self) -> None:
    """Ends Orbax's threads."""
    self.checkpoints.close()

  def _begin(self, limit: int) -> Job:
    """Begins with the saved state, unless it is behind a step, or anew."""
    saved, state = self.checkpoints.latest(), None
    if saved is not None and saved <= limit:
      state = restore_newest(self.plan, self.run, self.checkpoints)
    runtime, arm = self.plan.runtime, self.run.arm
    (state,), frozen, view = begin_states(runtime, [(arm, state)], self.start)
    layout = None
    if self.together is not None:
      layout = widest_layout([run.dataset.layout for run in self.together])
    return Job(
      *(self.plan, self.run, self.checkpoints, state, frozen, view, layout),
      again=True,
    )

  def _save(self, state: TrainState) -> None:
    """Saves a state in place of the one that was saved."""
    saved = self.checkpoints.latest()
    if self.step in (0, saved):
      return  # anew from the beginning costs no more
    if saved is not None and saved > self.step:  # which Orbax would keep
      self.checkpoints.close()
      delete_folder(self.run.folder / FOLDER)
      self.checkpoints = Checkpoints(self.run.folder / FOLDER)
    self.checkpoints.save(state, {"data_hash": self.run.dataset.hash})

  def _advance(self, job: Job, step: int) -> None:
    """Makes the updates up to a step, where the state is not there yet."""
    first, count = self.step + 1, step - self.step
    if not count:
      return
    which = f"update {step}" if count == 1 else f"updates {first} to {step}"
    with stage(f"{self.run.name}: {which} again", count, "steps") as bar:
      # Where arms end, a program of fewer arms goes on.
      ends = {run.arm.train.steps for run in self.together or ()}
      for end in sorted({step, *(x for x in ends if first <= x < step)}):
        self._fit(job, end, bar)

  def _fit(
    self,
    job: Job,
    step: int,
    bar: Stage | None = None,
    evaluate: Evaluate | None = None,
  ) -> None:
    """Makes the updates up to a step by one program, and evaluates there."""

    def compare(values: dict[str, float]) -> None:
      self._compare(values)
      if bar is not None:
        bar(loss=f"{values['loss']:.3f}")

    def evaluate_lane(step: int, lanes: Sequence[Lane]) -> None:
      if evaluate is not None and lanes:
        weights = job.weights(eval_params(lane.state))
        lane.error = evaluate(step, {self.run.name: weights}).get(self.run.name)

    lane = Lane(
      job.state,
      job.feed.next_batch,
      job.learning_rate,
      job.observe,
      lambda state: None,  # `_save` keeps the one that is needed
      compare,
      FitConfig(step, (step,) if evaluate else (), step + 1),
    )
    fit([lane], job.frozen, self._update(job), evaluate_lane)
    job.state, self.step = lane.state, lane.step
    if lane.error is not None:
      raise lane.error

  def _update(self, job: Job) -> Update:
    """Returns the program that trained the arm at this step."""
    runs = self.together or [self.run]
    step = self.plan.runtime.step(runs[0].arm, job.view)
    if self.together is None:
      return update_in_turn(step)
    there = [run for run in runs if run.arm.train.steps > self.step]
    place = [run.name for run in there].index(self.run.name)
    return update_at_place(update_in_one_program(step), place, len(there))

  def _compare(self, values: Mapping[str, float]) -> None:
    """Checks that an update gave the numbers that it gave before.

    Raises:
      ValueError: it did not; the message has the first that differs.
    """
    number, path = int(values["step"]), self.run.folder / "metrics.jsonl"
    then = self.lines.get(number, {})
    for key, value in values.items():
      if key != "seconds" and then.get(key) != value:
        raise ValueError(
          f"{self.run.name}: update {number}, made again for eval.refine, has "
          f"{key} {value!r}, and {path} has {then.get(key)!r}: evals of it "
          "would be of another arm. Go on with the devices and the versions "
          f"that trained it (env.json), or remove {self.run.folder} to train "
          "it again"
        )
