"""Lists the cells of a sweep with their sizes and times: a dry run."""

import time
from collections.abc import Sequence
from typing import Any

from bct_jax.config import ArmConfig, ConfigError
from bct_jax.infra.formats import duration
from bct_jax.sweep.cells import Cell, group_by_organism
from bct_jax.sweep.groups import plan_of


def plan_lines(
  cells: Sequence[Cell],
  timed: bool,
  together: int = 1,
  vmap: bool | None = None,
  price: str | None = None,
) -> list[str]:
  """Lists what would be run: cells by organism, with tokens, bytes and seconds.

  Where the config names a chip, hours of it are estimated, with evals. Other
  seconds are those of the updates alone. A compiled step is timed on this
  machine, once for the first cell of each organism. Checkpoints keep weights
  and, until an arm is done, the state of the optimizer.

  Args:
    cells: of the sweep.
    timed: whether to time a step.
    together: how many cells are trained at a time.
    vmap: see groups.can_share_program.
    price: of an hour of a chip, see cost.parse_prices.

  Raises:
    ConfigError: the price is none.
  """
  from bct_jax.experiment.cost_lines import cost_lines, find_costs
  from bct_jax.sizing import cost
  from bct_jax.sweep import groups

  chip = cells[0].config.mesh.chip
  prices = cost.parse_prices(price, chip) if price is not None else {}
  lines, total, costs, runtime = [], 0.0, [], None
  for number, group in enumerate(group_by_organism(cells), 1):
    plan = plan_of(group)
    install = plan.install
    note = "" if install is None else (
      f", {plan.config.organism.train.steps} updates of the install"
    )  # fmt: skip
    lines.append(f"organism {number}, {len(group)} cells{note}")
    parts = groups.groups_trained_together(group, together)
    if together > 1:
      experts = plan.runtime.model.config.num_experts > 0
      forms = [groups.can_share_program(part, vmap, experts) for part in parts]
      lines += [f"  {line}" for line in groups.describe_groups(parts, forms)]
    runtime = plan.runtime
    costs += find_costs(runtime, plan)
    step = _step_seconds(plan, group[0].name) if timed else None
    for cell in group:
      for name, arm in cell.config.arms.items():  # with its controls
        line = _arm_line(plan, name, arm)
        if step is not None:
          seconds = arm.train.steps * step
          total += seconds
          line += f", {duration(seconds)}"
        lines.append(line)
  if runtime is not None:
    lines += cost_lines(runtime, costs, prices, each=False)
  if timed:
    lines.append(f"updates of all cells: {duration(total)}; evals come on top")
  return lines


def _arm_line(plan: Any, name: str, arm: ArmConfig) -> str:
  """Describes the updates, tokens and bytes of an arm of a plan."""
  from bct_jax.sizing import sizes

  data, steps = plan.arms[name], arm.train.steps
  tokens = sum(data.counts(s)["trained_tokens"] for s in range(steps))
  state = plan.runtime.abstract_state(arm.optim, arm.lora)
  memory = sizes.device_bytes(state.params)
  memory += sizes.device_bytes(state.opt_state)
  return (
    f"  {name}: {steps} updates, {tokens:,} trained tokens, "
    f"{memory / 2**20:,.0f} MiB of trained weights and optimizer state "
    "on a device and, until it is done, on disk"
  )


def _step_seconds(plan: Any, name: str) -> float:
  """Times an update of an arm, in seconds, from the model's own weights.

  Raises:
    ConfigError: the batch needs the organism, which is not made in a dry run.
  """
  import jax
  import jax.numpy as jnp

  from bct_jax.experiment.run_state import init_run_state
  from bct_jax.mesh import put_batch
  from bct_jax.objectives import data_needs, objective_of
  from bct_jax.runtime.weights import load_weights

  runtime, arm = plan.runtime, plan.config.arms[name]
  needs = data_needs(objective_of(arm))
  if needs.trains_on_own_samples or needs.scored:
    raise ConfigError(
      f"cell {name}: an update of {arm.train.objective} needs what the "
      "organism gives, so none can be timed here; add --notime"
    )
  with jax.set_mesh(runtime.mesh):
    weights = load_weights(runtime, None)
    state, frozen, view = init_run_state(runtime, arm, weights)
    step = runtime.step(arm, view)
    batch = put_batch(plan.arms[name].batch(0), runtime.mesh)
    seconds = []
    for _ in range(3):  # the first one compiles
      start = time.monotonic()
      state, _ = step(state, frozen, batch, jnp.float32(0))
      jax.block_until_ready(state)
      seconds.append(time.monotonic() - start)
  return min(seconds[1:])
