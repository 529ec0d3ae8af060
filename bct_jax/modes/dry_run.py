"""Checks what can be checked and prints sizes: --mode=dry_run."""

import dataclasses

from bct_jax.config import ConfigError, ExperimentConfig
from bct_jax.config.chips import CHIPS, Chip
from bct_jax.experiment.cost_lines import cost_lines, disk_line, find_costs
from bct_jax.experiment.plan import check_length, make_plan
from bct_jax.experiment.run_sizes import (
  find_sizes,
  find_slots,
  find_work,
  largest_run,
  run_flops,
)
from bct_jax.infra.whole_folder import ModelSourceError
from bct_jax.mesh import abstract_mesh, make_mesh, num_row_shards
from bct_jax.modes.dry_run_lines import (
  data_lines,
  expert_lines,
  model_lines,
  size_lines,
  speed_lines,
)
from bct_jax.runtime.programs import MeshModel
from bct_jax.runtime.runtime import make_decoder, read_architecture
from bct_jax.sizing import cost, sizes, topology
from bct_jax.sizing.sizes import Work

_GIB = 2**30


def run_dry_run(
  config: ExperimentConfig,
  slice_name: str | None = None,
  price: str | None = None,
) -> None:
  """Prints sizes and, where the model is at hand, data and prompts.

  With the name of a TPU slice or of GPUs, such as v5e:4x4 or h100:2x8 (hosts x
  GPUs), the train step, the prefill and the decode step are also compiled for
  it, see sizing/topology.py.

  With a price, see cost.parse_prices, it says what the run costs. The mesh may
  be larger than what is here. With `model.architecture` neither
  weights nor tokenizer are needed; the data is then not checked.

  Raises:
    ValueError: the config does not fit the model, the mesh, the data or the
      memory of the chip that it names.
  """
  axes = config.mesh
  if slice_name is None:
    mesh = abstract_mesh(axes.data, axes.fsdp, axes.tensor)
  else:
    axes = dataclasses.replace(axes, chip=topology.chip_of(slice_name))
    config = dataclasses.replace(config, mesh=axes)
    devices = topology.devices_of(slice_name)
    mesh = make_mesh(axes.data, axes.fsdp, axes.tensor, devices)
  prices = cost.parse_prices(price, axes.chip) if price is not None else {}
  architecture, plan, reason = config.model.architecture, None, ""
  try:
    plan = make_plan(config, mesh, fetch=architecture is None)
  except ModelSourceError as e:
    if architecture is None:
      raise
    reason = str(e)
    decoder = make_decoder(read_architecture(architecture), config)
    check_length(config, decoder.config.max_length)
    model = MeshModel(config, decoder, mesh)
  else:
    model = plan.runtime
  work = find_work(model, plan)
  slots = find_slots(config, plan)
  print("\n".join(model_lines(model, work)))
  parts = find_sizes(model, work, slots)
  print("\n".join(size_lines(model, parts, slots)))
  print("\n".join([*speed_lines(model, work), *expert_lines(model, work)]))
  costs = cost_lines(model, find_costs(model, plan), prices)
  print("\n".join([*costs, disk_line(model)]))
  if plan is None:
    print(f"data and prompts are not checked: {reason}")
  else:
    print("\n".join(data_lines(plan)))
  if slice_name is not None:
    _print_programs(model, work, slots)
  elif axes.memory:
    over = max(parts.training, parts.sampling) - axes.memory
    if over > 0:
      knobs = "\n".join(_knobs(model, work, slots))
      fault = f"does not fit on {axes.chip or 'a device'} by {over / _GIB:.2f}"
      raise ConfigError(f"{fault} GiB:\n{knobs}")


def _print_programs(model: MeshModel, work: Work, slots: int) -> None:
  """Compiles each program for the chips and prints the memory it takes.

  Raises:
    ConfigError: a program does not fit; the message has options that save
      memory.
  """
  run, chip = largest_run(model), CHIPS[str(model.config.mesh.chip)]
  lora = run.lora if run.lora.rank else None
  memory = model.config.mesh.memory or chip.memory
  try:
    train = topology.compile_train(model, run, work)
    print("\n".join(topology.lines(train, memory)))
    print(_roofline(model, work, train, chip), flush=True)
    params = model.abstract_decode(lora)
    for program in topology.compile_sampler(model, params, slots):
      print("\n".join(topology.lines(program, memory)), flush=True)
  except topology.DoesNotFit as e:
    by = "" if e.over is None else f" by {e.over / _GIB:.2f} GiB"
    raise ConfigError(
      f"does not fit{by}: {e}\n" + "\n".join(_knobs(model, work, slots))
    ) from None


def _roofline(model: MeshModel, work: Work, program, chip: Chip) -> str:
  """Bounds the time of an update by its products and by its links."""
  tokens = work.rows * work.length / model.mesh.size
  flops = run_flops(model, largest_run(model), work.length)
  # Full recomputation is one more forward pass, a third of all products.
  recompute = 4 / 3 if model.model.remat == "full" else 1.0
  compute = tokens * flops * recompute / chip.flops
  received = sum(x.times * x.received for x in program.collectives)
  afar = sum(x.times * x.network for x in program.collectives)
  links = (received - afar) / chip.links
  # Of TPUs nothing comes from afar: links join a slice.
  network = afar / chip.network if chip.network else 0.0
  from_hosts = (
    f", from other hosts {network:.3f} s ({afar / _GIB:.2f} GiB / "
    f"{chip.network / 1e9:.0f} GB/s)"
    if chip.network and afar
    else ""
  )
  return (
    f"roofline of an update: {max(compute, links, network):.3f} s at least: "
    f"products {compute:.3f} s ({tokens:,.0f} tokens x {flops:.3g} FLOPs"
    f"{' x 4/3 for remat' if recompute > 1 else ''} / {chip.flops / 1e12:.0f} "
    f"TFLOP/s), received {links:.3f} s ({(received - afar) / _GIB:.2f} GiB / "
    f"{chip.links / 1e9:.0f} GB/s){from_hosts}"
  )


def _knobs(model: MeshModel, work: Work, slots: int) -> list[str]:
  """Lists options that save memory, by the sizes of sizing/sizes.py."""
  config, c = model.config, model.model
  now = find_sizes(model, work, slots)
  out = []

  def add(option: str, saved: int) -> None:
    """Adds an option if it saves anything."""
    if saved > 0:
      out.append(f"  {option} saves about {saved / _GIB:.2f} GiB on a chip")

  axes = model.mesh.shape
  if c.remat != "full":
    full = dataclasses.replace(c, remat="full")
    less = sizes.activation_bytes(full, axes, work)
    add("--config.model.remat=full", now.activations - less)
  parts = num_row_shards(model.mesh) * work.accum * 2
  if work.rows % parts == 0:
    half = dataclasses.replace(work, accum=work.accum * 2)
    less = sizes.activation_bytes(c, axes, half)
    trained = model.abstract_trained(largest_run(model).lora)
    more = sizes.gradient_bytes(trained, 2) - now.gradients
    add(f"train.accum={half.accum}", now.activations - less - more)
  add(
    "optimizer=lion in place of adamw",
    (
      now.optimizer // 2 if largest_run(model).optim.optimizer == "adamw" else 0
    ),
  )
  if config.model.param_dtype == "float32":
    add("--config.model.param_dtype=bfloat16", now.weights // 2)
  add(
    "twice the chips on mesh.fsdp",
    (now.state + now.gradients) // 2,
  )
  add("half of sampling.batch_size", now.cache // 2)
  return out
