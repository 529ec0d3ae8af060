"""One training run in its folder: resumed, logged, checkpointed."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import jax

from bct_jax import live, metrics, optim, processes
from bct_jax.checkpoint import Checkpoints, Damaged
from bct_jax.config import ArmConfig, LogConfig, OrganismConfig
from bct_jax.data.batches import Dataset
from bct_jax.data.chat import mask_audit
from bct_jax.gradient_log import FILE, GradientLog
from bct_jax.mesh import put_batch
from bct_jax.models.lora import Frozen, Weights
from bct_jax.objectives import asks, objective_of, on_rollouts
from bct_jax.plan import Plan
from bct_jax.progress import Stage, say, stage
from bct_jax.rl import Rollouts
from bct_jax.runtime import Runtime
from bct_jax.train import FitConfig, NumericalError, fit, kept
from bct_jax.types import Batch, PyTree, TrainState


def train_run(
  plan: Plan,
  name: str,
  folder: Path,
  arm: ArmConfig | OrganismConfig,
  dataset: Dataset,
  start: Callable[[], Weights],
  eval_steps: tuple[int, ...] = (),
  evaluate: Callable[[int, Weights], None] = lambda step, weights: None,
) -> Weights:
  """Trains one run in its folder, or goes on where its checkpoints end.

  Args:
    plan: for the model and its compiled functions.
    name: of the run, for the terminal.
    folder: gets checkpoints/, metrics.jsonl and mask_audit.txt.
    arm: the optimizer and the schedule.
    dataset: what it trains on.
    start: gives the weights to start from, which are taken over; called for a
      new run, and for the params that an adapter is over.
    eval_steps: when to call `evaluate`; with `eval.gradients` the folder gets
      gradients.jsonl then too.
    evaluate: called with (step, weights).

  Returns:
    The weights after the last step, averaged if `arm.optim` asks for it, as
    they are in its evals and in its last checkpoint.

  Raises:
    ValueError: the checkpoint there is of other data, or cannot be read (then
      `plan.fall_back` sets it aside); or `log.wandb` does not begin.
    OSError: a checkpoint cannot be written.
    signals.Preempted: a signal asked to stop; the state is saved.
    train.NumericalError: the loss or gradient of an update is not finite.
  """
  runtime, steps = plan.runtime, arm.train.steps
  checkpoints = Checkpoints(folder / "checkpoints")
  state, frozen, continued = _first_state(
    plan, checkpoints, arm, dataset, start
  )

  def weights(trained: PyTree) -> Weights:
    if not arm.lora.rank or frozen is None:
      return Weights(trained)
    return Weights(frozen.params, trained, arm.lora)

  resumed = int(state.step)
  if resumed:
    say(f"{name}: continuing at step {resumed} of {steps}")
  feed: Feed = _Examples(runtime, folder, dataset)
  if policy := on_rollouts(arm):
    reference = None
    if frozen is not None and policy.uses_reference:
      own = None if frozen.adapter is None else arm.lora
      reference = Weights(frozen.params, frozen.adapter, own)
    feed = Rollouts(plan, arm, folder, dataset, weights, reference)
  processes.first(f"begin of {name}", lambda: _begin(folder, resumed, feed))
  processes.barrier(f"begin of {name}")

  gradients = GradientLog(
    plan, arm, dataset, folder, frozen, continued, feed.next_batch
  )

  def observe(step: int, state: TrainState) -> None:
    if plan.config.eval.gradients:
      gradients(step, state)

  def log(values: dict[str, float]) -> None:
    counts = feed.counts(int(values["step"]) - 1)
    if processes.is_first():
      metrics.append_line(folder / "metrics.jsonl", {**values, **counts})
    tell()
    bar(loss=f"{values['loss']:.3f}")

  def save(state: TrainState) -> None:
    meta, final = {"data_hash": dataset.hash}, int(state.step) == steps
    if final:
      state = dataclasses.replace(state, params=kept(state))
    checkpoints.save(state, meta, final)

  def look(step: int, trained: PyTree) -> None:
    evaluate(step, weights(trained))
    tell()

  bar: Stage
  tell: Callable[[], None]
  to = plan.config.log if processes.is_first() else LogConfig(False, "")
  title = f"{plan.config.name} {name}"
  with (
    live.follow(to, folder, title, dataclasses.asdict(arm)) as tell,
    stage(f"train {name}", steps - resumed, "steps") as bar,
  ):
    try:
      state = fit(
        state,
        frozen,
        runtime.step(arm, continued),
        feed.next_batch,
        lambda t: optim.learning_rate(arm.optim, t, steps),
        look,
        observe,
        save,
        log,
        FitConfig(steps, eval_steps, arm.train.checkpoint_every),
      )
    except NumericalError as e:
      last = checkpoints.latest()
      where = (
        "none yet" if last is None else f"{checkpoints.folder / str(last)}"
      )
      raise NumericalError(f"{name}: {e}; last checkpoint: {where}") from e
  checkpoints.close()
  return weights(kept(state))


class Feed(Protocol):
  """Where the batches of a run come from."""

  def begin(self, resumed: int) -> None:
    """Readies its files for going on at a step; in the first process only."""
    ...

  def next_batch(
    self, step: int, state: TrainState
  ) -> tuple[Batch, Sequence[str]]:
    """See train.NextBatch."""
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

  def begin(self, resumed: int) -> None:
    del resumed
    audit = mask_audit(self.runtime.chat, self.dataset.examples)
    metrics.write_text(self.folder / "mask_audit.txt", audit)

  def next_batch(
    self, step: int, state: TrainState
  ) -> tuple[Batch, Sequence[str]]:
    del state
    batch = put_batch(self.dataset.batch(step), self.runtime.mesh)
    return batch, self.dataset.batch_ids(step)

  def counts(self, step: int) -> Mapping[str, float]:
    return self.dataset.counts(step)


def _begin(folder: Path, resumed: int, feed: Feed) -> None:
  """Readies the files of a run that begins or goes on."""
  metrics.keep_until(folder / "metrics.jsonl", resumed)
  metrics.keep_until(folder / "evals.jsonl", resumed)
  metrics.keep_until(folder / FILE, resumed)
  feed.begin(resumed)


def _first_state(
  plan: Plan,
  checkpoints: Checkpoints,
  arm: ArmConfig | OrganismConfig,
  dataset: Dataset,
  start: Callable[[], Weights],
) -> tuple[TrainState, Frozen | None, bool]:
  """The state to go on from, what is frozen, and whether an adapter goes on."""
  while True:
    try:
      return _newest_state(plan.runtime, checkpoints, arm, dataset, start)
    except Damaged as e:
      if not plan.fall_back:
        raise
      say(f"{e}: set aside as {checkpoints.set_aside(e.step)}")


def _newest_state(
  runtime: Runtime,
  checkpoints: Checkpoints,
  arm: ArmConfig | OrganismConfig,
  dataset: Dataset,
  start: Callable[[], Weights],
) -> tuple[TrainState, Frozen | None, bool]:
  """The newest checkpoint's state, else step 0; what is frozen; whether the
  adapter is one that `start` gave."""
  latest = checkpoints.latest()
  meta = {} if latest is None else checkpoints.meta()
  if latest is not None and meta["data_hash"] != dataset.hash:
    raise ValueError(
      f"{checkpoints.folder}: was made from other training data than the "
      "config gives now (a changed setting, tokenizer or template); use "
      "another --workdir"
    )
  if latest is None:
    return fresh_state(runtime, arm, start())
  frozen, continued = None, False
  if _freezes(arm):
    begin = start()
    frozen, continued = _frozen(arm, begin), begin.adapter is not None
  if meta["devices"] != jax.device_count():
    say(
      f"{checkpoints.folder}: saved on {meta['devices']} devices, read on "
      f"{jax.device_count()}: what follows is the same up to rounding"
    )
  abstract = runtime.abstract_state(arm.optim, arm.lora)
  if latest < arm.train.steps:
    return checkpoints.restore(abstract), frozen, continued
  # A finished run kept what it trained only; what remains is to evaluate it.
  trained = checkpoints.restore_params(abstract.params)
  state = TrainState(jax.numpy.int32(latest), trained, None, None)
  return state, frozen, continued


def fresh_state(
  runtime: Runtime, arm: ArmConfig | OrganismConfig, begin: Weights
) -> tuple[TrainState, Frozen | None, bool]:
  """As `_first_state`, at step 0 from weights that are taken over."""
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
