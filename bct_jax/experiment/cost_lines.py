"""Describes what a run will cost in hours, money and disk: --mode=dry_run."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax

from bct_jax.config import ArmConfig, ExperimentConfig, OrganismConfig
from bct_jax.config.chips import CHIPS, Chip
from bct_jax.config.eval_steps import observed_steps
from bct_jax.experiment.plan import COUNTS, Plan
from bct_jax.experiment.run_sizes import (
  find_sizes,
  find_slots,
  find_work,
  list_runs,
  run_flops,
)
from bct_jax.infra.formats import duration, number, percent, size
from bct_jax.objectives import data_needs, objective_of, policy_of
from bct_jax.runtime.programs import MeshModel
from bct_jax.sizing import cost, sizes
from bct_jax.sizing.sizes import Sizes
from bct_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class RunCost:
  """Holds what one training run works on.

  Attributes:
    name: of the run.
    tokens: positions of all its updates.
    model: of its products and reads.
    draws: completions that it is trained on.
    evals: how many it has, and at most has more (eval.refine).
    refined: the latter.
    sampling: of one eval.
    state: bytes of weights, gradients and optimizer, of one copy.
  """

  name: str
  tokens: int
  model: cost.Model
  draws: cost.Sampling
  evals: int
  refined: int
  sampling: cost.Sampling
  state: int

  def seconds(self, chip: Chip) -> tuple[float, float]:
    """Returns the seconds of its updates, and of all its sampling at most."""
    of_eval = cost.sample_seconds(self.model, self.sampling, chip)
    draws = cost.sample_seconds(self.model, self.draws, chip)
    evals = (self.evals + self.refined) * of_eval
    return cost.train_seconds(self.model, self.tokens, chip), draws + evals


def find_costs(model: MeshModel, plan: Plan | None) -> list[RunCost]:
  """Finds what each training run works on.

  Args:
    model: of the config.
    plan: of the run; without it rows and prompts are taken to be as long as
      they may be.
  """
  config, work = model.config, find_work(model, plan)
  parts = find_sizes(model, work, find_slots(config, plan))
  if plan is None:
    prompts = sum(getattr(config.eval, field) for field in COUNTS)
    length = float(config.max_length)
  else:
    prompts = len(plan.prompts)
    length = sum(len(p.ids) for p in plan.prompts) / prompts
  of_eval = cost.Sampling(
    prompts + config.eval.samples * config.eval.num_eval,
    length,
    config.eval_sampling.max_new_tokens,
    config.sampling.batch_size,
  )
  out = []
  for name, run, data in list_runs(config, plan):
    rows, width = (
      (data.layout.rows, data.layout.length)
      if data is not None
      else (work.rows, work.length)
    )
    draws = dataclasses.replace(of_eval, completions=_num_drawn(run))
    evals, refined = _num_evals(config, run)
    out.append(
      RunCost(
        name,
        run.train.steps * rows * width,
        _model(model, run, width, parts),
        draws,
        evals,
        refined,
        of_eval,
        (parts.state + parts.gradients)
        * model.mesh.size
        // model.mesh.shape["data"],
      )
    )
  return out


def _model(
  model: MeshModel, run: ArmConfig | OrganismConfig, length: int, parts: Sizes
) -> cost.Model:
  """Counts the FLOPs and bytes of a run's tokens."""
  c, params = model.model.config, model.abstract_params
  return cost.Model(
    run_flops(model, run, length),
    # A third: the backward pass takes two products where forward takes one.
    sizes.flops_per_token(c, length, params) / 3,
    parts.decode_weights + parts.cache + 2 * parts.states,
    model.mesh.size,
  )


def _num_drawn(run: ArmConfig | OrganismConfig) -> int:
  """Counts the completions that a run is trained on and draws itself."""
  if data_needs(objective_of(run)).trains_on_own_samples:
    batches = -(-run.train.steps // policy_of(run).updates_per_batch)
    return batches * run.train.batch_size
  return run.train.num_examples if run.train.source == "on_policy" else 0


def _num_evals(
  config: ExperimentConfig, run: ArmConfig | OrganismConfig
) -> tuple[int, int]:
  """Counts the evals of a run, and those that eval.refine may add."""
  if not isinstance(run, ArmConfig):
    return 1 + config.measures_base, 0  # the gate
  observed, more = len(observed_steps(config, run)), 0
  if config.eval.refine:
    more = min(config.eval.refine_budget, run.train.steps + 1 - observed)
  return observed - 1, more  # that of update 0 is the gate's


def cost_lines(
  model: MeshModel,
  runs: Sequence[RunCost],
  prices: Mapping[str, float],
  each: bool = True,
) -> list[str]:
  """Describes hours, what evals are of them, and money.

  Args:
    model: of the config, whose chip is named if there are hours.
    runs: see `find_costs`; of a sweep those of all its cells.
    prices: of an hour of a chip, by chip.
    each: whether each run has a line.
  """
  chip = model.config.mesh.chip
  hours = [] if chip is None else _hour_lines(model, runs, CHIPS[chip])
  if not each:
    hours = hours[:1] + hours[-1:]
  return hours + _price_lines(model, runs, prices)


def _hour_lines(
  model: MeshModel, runs: Sequence[RunCost], chip: Chip
) -> list[str]:
  """Describes the time of each run and of all."""
  out = [
    f"time, with products at {percent(cost.TRAIN_SHARE)} of the peak of "
    f"bfloat16 and decoding at {percent(cost.DECODE_SHARE)} of the memory's "
    "bandwidth, all completions as long as they may be, without compiling and "
    "checkpoints:"
  ]
  train = sampling = 0.0
  for run in runs:
    updates, evals = run.seconds(chip)
    train, sampling = train + updates, sampling + evals
    up_to = f" to {run.evals + run.refined}" if run.refined else ""
    drawn = run.draws.completions
    draws = f" and {drawn:,} drawn completions" if drawn else ""
    out.append(
      f"  {run.name}: updates {duration(updates)}, {run.evals}{up_to} evals"
      f"{draws} {duration(evals)}"
    )
  whole = train + sampling
  hours = _chip_hours(whole, model)
  share = sampling / whole if whole else 0.0
  out.append(
    f"  in all {duration(whole)}, {hours:,.2f} chip-hours; sampling "
    f"is {percent(share)} of it. Half of eval.num_eval, num_heldout and "
    f"num_probe saves up to {duration(sampling / 2)}; so does half of "
    "sampling.max_new_tokens"
  )
  return out


def _price_lines(
  model: MeshModel, runs: Sequence[RunCost], prices: Mapping[str, float]
) -> list[str]:
  """Describes what the runs cost on each chip with a price."""
  hours, lines = {}, []
  for name, price in prices.items():
    seconds = sum(sum(run.seconds(CHIPS[name])) for run in runs)
    hours[name] = _chip_hours(seconds, model)
    least = max(run.state for run in runs) / CHIPS[name].memory
    lines.append(
      f"price on {name}: {hours[name] * price:,.2f} = {hours[name]:,.2f} "
      f"chip-hours x {number(price)}; weights, gradients and optimizer alone "
      f"need {math.ceil(least)} or more"
    )
  if len(prices) > 1:
    lines.append(
      f"cheapest: {cost.cheapest(hours, prices)}; what fits and what links "
      "cost, --config.mesh.chip and --topology say"
    )
  return lines


def _chip_hours(seconds: float, model: MeshModel) -> float:
  """Returns the hours of all chips together."""
  return seconds * model.mesh.size / 3600


def disk_line(model: MeshModel) -> str:
  """Describes the weights that stay, and the most that training adds."""
  kept, most = 0, 0
  for _, run, _ in list_runs(model.config):
    state = model.abstract_state(run.optim, run.lora)
    weights = _num_bytes(state.params)
    kept += weights if model.config.keep != "results" else 0
    most = max(most, _num_bytes(state))
  return (
    f"disk: {size(kept)} of weights in the end (keep = "
    f"{model.config.keep!r}), up to {size(2 * most)} more while a checkpoint "
    "takes the place of the one before"
  )


def _num_bytes(tree: PyTree) -> int:
  """Counts the bytes of all leaves, once for the whole mesh."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
