"""Checks what can be checked and prints sizes: --mode=dry_run."""

import dataclasses

from bct_jax.config import (
  ArmConfig,
  ConfigError,
  ExperimentConfig,
  OrganismConfig,
)
from bct_jax.config.chips import CHIPS, Chip
from bct_jax.config.eval_steps import observed_steps, task_steps
from bct_jax.data.batches import Dataset
from bct_jax.data.leaks import describe_overlap
from bct_jax.data.mixture import describe_mix
from bct_jax.experiment.datasets import measure_leaks
from bct_jax.experiment.plan import Plan, check_length, make_plan
from bct_jax.infra.formats import number, percent
from bct_jax.infra.whole_folder import ModelSourceError
from bct_jax.mesh import abstract_mesh, make_mesh, num_row_shards
from bct_jax.runtime.programs import MeshModel
from bct_jax.runtime.runtime import make_decoder, read_architecture
from bct_jax.sample.decode import kv_dtype
from bct_jax.sample.prompt_packing import num_slots
from bct_jax.sizing import sizes, topology
from bct_jax.sizing.sizes import Sizes, Work
from bct_jax.train.optim import state_note

_GIB = 2**30
Run = tuple[str, ArmConfig | OrganismConfig, Dataset | None]


def run_dry_run(
  config: ExperimentConfig, slice_name: str | None = None
) -> None:
  """Prints sizes and, where the model is at hand, data and prompts.

  With the name of a TPU slice or of GPUs, such as v5e:4x4 or h100:2x8 (hosts x
  GPUs), the train step, the prefill and the decode step are also compiled for
  it, see sizing/topology.py.

  The mesh may be larger than what is here. With `model.architecture` neither
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
  work = _work(model, plan)
  slots = _slots(config, plan)
  print("\n".join(_model_lines(model, work)))
  parts = find_sizes(model, work, slots)
  print("\n".join(_size_lines(model, parts, slots)))
  print("\n".join(_speed_lines(model, work)))
  if plan is None:
    print(f"data and prompts are not checked: {reason}")
  else:
    print("\n".join(_data_lines(plan)))
  if slice_name is not None:
    _print_programs(model, work, slots)
  elif axes.chip:
    over = max(parts.training, parts.sampling) - CHIPS[axes.chip].memory
    if over > 0:
      knobs = "\n".join(_knobs(model, work, slots))
      raise ConfigError(
        f"does not fit on {axes.chip} by {over / _GIB:.2f} GiB:\n{knobs}"
      )


def _print_programs(model: MeshModel, work: Work, slots: int) -> None:
  """Compiles each program for the chips and prints the memory it takes.

  Raises:
    ConfigError: a program does not fit; the message has options that save
      memory.
  """
  run, chip = _largest(model), CHIPS[str(model.config.mesh.chip)]
  lora = run.lora if run.lora.rank else None
  try:
    train = topology.compile_train(model, run, work)
    print("\n".join(topology.lines(train, chip.memory)))
    print(_roofline(model, work, train, chip), flush=True)
    params = model.abstract_decode(lora)
    for program in topology.compile_sampler(model, params, slots):
      print("\n".join(topology.lines(program, chip.memory)), flush=True)
  except topology.DoesNotFit as e:
    by = "" if e.over is None else f" by {e.over / _GIB:.2f} GiB"
    raise ConfigError(
      f"does not fit{by}: {e}\n" + "\n".join(_knobs(model, work, slots))
    ) from None


def _roofline(model: MeshModel, work: Work, program, chip: Chip) -> str:
  """Bounds the time of an update by its products and by its links."""
  run, params = _largest(model), model.abstract_params
  trained, frozen = params, None
  if run.lora.rank:
    trained, frozen = model.abstract_trained(run.lora), params
  c, tokens = model.model.config, work.rows * work.length / model.mesh.size
  flops = sizes.flops_per_token(c, work.length, trained, frozen)
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
    trained = model.abstract_trained(_largest(model).lora)
    more = sizes.gradient_bytes(trained, 2) - now.gradients
    add(f"train.accum={half.accum}", now.activations - less - more)
  add(
    "optimizer=lion in place of adamw",
    (now.optimizer // 2 if _largest(model).optim.optimizer == "adamw" else 0),
  )
  if config.model.param_dtype == "float32":
    add("--config.model.param_dtype=bfloat16", now.weights // 2)
  add(
    "twice the chips on mesh.fsdp",
    (now.state + now.gradients) // 2,
  )
  add("half of sampling.batch_size", now.cache // 2)
  return out


def find_sizes(model: MeshModel, work: Work, slots: int) -> Sizes:
  """Computes the bytes on one device, see sizing/sizes.py."""
  axes, sampling = model.mesh.shape, model.config.sampling
  run = _largest(model)
  state = model.abstract_state(run.optim, run.lora)
  params, lora = model.abstract_params, run.lora if run.lora.rank else None
  adapter = sizes.device_bytes(state.params) if lora else 0
  gradients = sizes.gradient_bytes(state.params, work.accum)
  if model.config.eval.gradients and isinstance(run, ArmConfig):
    gradients = max(gradients, sizes.pushes_bytes(state.params))
  return Sizes(
    weights=sizes.device_bytes(params) + adapter,
    gradients=gradients,
    optimizer=sizes.device_bytes(state.opt_state),
    average=sizes.device_bytes(state.ema),
    activations=sizes.activation_bytes(model.model, axes, work),
    decode_weights=sizes.device_bytes(model.abstract_decode(lora)),
    cache=sizes.cache_bytes(
      model.model.config,
      kv_dtype(sampling, model.model.dtype),
      axes,
      sampling.batch_size,
      slots,
    ),
  )


def _runs(config: ExperimentConfig, plan: Plan | None = None) -> list[Run]:
  """Lists all training runs; without any, the organism stands for them."""
  out: list[Run] = []
  if config.organism.trained or not config.arms:
    data = plan.install if plan else None
    out.append(("organism", config.organism, data))
  for name, arm in config.arms.items():
    data = plan.arms[name] if plan else None
    out.append((f"arm {name}", arm, data))
  return out


def _largest(model: MeshModel) -> ArmConfig | OrganismConfig:
  """Finds the run whose trained weights and optimizer need most memory."""

  def memory(run: ArmConfig | OrganismConfig) -> int:
    """Returns the bytes of a run's state on one device."""
    return sizes.device_bytes(model.abstract_state(run.optim, run.lora))

  # Arms come last in the list. Of equal sizes an arm is taken.
  return max((run for _, run, _ in reversed(_runs(model.config))), key=memory)


def _work(model: MeshModel, plan: Plan | None) -> Work:
  """Finds the update that needs most memory, of all runs.

  Without the data, rows are taken to be as long as they may be, with one
  example in each and a loss at every position.

  Raises:
    ValueError: rows that are not packed do not divide over the devices.
  """
  length = model.config.max_length

  def work_of(name: str, run: ArmConfig | OrganismConfig, data: Dataset | None):
    """Returns the sizes of a run's update."""
    train = run.train
    if data is not None:
      layout = data.layout
      return Work(layout.rows, layout.length, layout.num_trained, train.accum)
    parts = num_row_shards(model.mesh) * train.accum
    if not train.pack and train.batch_size % parts:
      raise ValueError(
        f"{name}: batch_size {train.batch_size} does not divide into {parts} "
        "parts (data x fsdp devices times train.accum)"
      )
    rows = -(-train.batch_size // parts) * parts
    return Work(rows, length, length, train.accum)

  def memory(work: Work) -> int:
    """Returns the bytes of gradients and activations on one device."""
    trained = model.abstract_trained(_largest(model).lora)
    return sizes.gradient_bytes(trained, work.accum) + sizes.activation_bytes(
      model.model, model.mesh.shape, work
    )

  return max((work_of(*run) for run in _runs(model.config, plan)), key=memory)


def _slots(config: ExperimentConfig, plan: Plan | None) -> int:
  """Counts the positions of a row in the KV cache.

  They hold the longest prompt and the new tokens. Without the prompts, a prompt
  is taken to be as long as a training row may be.
  """
  new = config.eval_sampling.max_new_tokens
  if plan is not None:
    return num_slots([p.ids for p in plan.prompts], [new] * len(plan.prompts))
  return num_slots([range(config.max_length)], [new])


# --- lines --------------------------------------------------------------------


def _model_lines(model: MeshModel, work: Work) -> list[str]:
  """Describes the model, the mesh and an update."""
  config, c = model.config, model.model.config
  axes, chip = model.mesh.shape, config.mesh.chip
  total = sizes.num_params(model.abstract_params)
  active = ""
  if c.num_experts:
    count = sizes.active_params(c, model.abstract_params)
    active = f", {count:,} active per token"
  each = f" {chip}" if chip else ""
  parts = num_row_shards(model.mesh) * work.accum
  return [
    f"model {config.model.path}: {total:,} parameters{active}",
    f"mesh {' '.join(f'{k}={v}' for k, v in axes.items())}: "
    f"{model.mesh.size}{each} devices",
    f"update: {work.rows} rows of {work.length} positions, {work.num_trained} "
    f"of them trained; {work.rows // parts} at a time on a device, remat "
    f"{config.model.remat}, {config.model.dtype}",
  ]


def _size_lines(model: MeshModel, parts: Sizes, slots: int) -> list[str]:
  """Describes the bytes on a device, part by part."""
  config, c = model.config, model.model.config
  chip = config.mesh.chip
  memory = CHIPS[chip].memory if chip else None
  cached = kv_dtype(config.sampling, model.model.dtype).itemsize

  def line(name: str, size: int, note: str) -> str:
    return f"  {name:<15}{size / _GIB:8.2f}  {note}".rstrip()

  def total(name: str, size: int, of: str) -> str:
    if memory is None:
      return line(name, size, of)
    fits = "" if size <= memory else ", DOES NOT FIT"
    share = f"{percent(size / memory)} of {memory / _GIB:.0f} GiB{fits}"
    return line(name, size, f"{of}: {share}")

  dtype = config.model.dtype
  return [
    "GiB on each device:",
    line("weights", parts.weights, "shards x bytes of each leaf"),
    line(
      "gradients",
      parts.gradients,
      "as weights; twice with microbatches"
      + ("; four in float32 at evals" if config.eval.gradients else ""),
    ),
    line("optimizer", parts.optimizer, state_note(_largest(model).optim)),
    *(
      [line("average", parts.average, "float32, as trained weights")]
      if parts.average
      else []
    ),
    line(
      "activations",
      parts.activations,
      "estimate: layers x saved + max(rest of a block, head) + embedding",
    ),
    total("= training", parts.training, "all of the above"),
    line("decode weights", parts.decode_weights, f"{dtype}, tensor axis only"),
    line(
      "KV cache",
      parts.cache,
      f"{c.num_layers} layers x {config.sampling.batch_size} rows / (data x "
      f"fsdp) x {slots} slots x {c.num_kv_heads} heads / tensor x "
      f"2 x {c.head_dim} x {cached} bytes"
      + (" + scales" if cached == 1 else ""),
    ),
    total("= sampling", parts.sampling, "these two with the training state"),
  ]


def _speed_lines(model: MeshModel, work: Work) -> list[str]:
  """Describes the FLOPs of a token and the speed that follows from them."""
  c, chip = model.model.config, model.config.mesh.chip
  params, frozen = model.abstract_params, None
  lora = _runs(model.config)[-1][1].lora
  if lora.rank:
    params, frozen = model.abstract_trained(lora), params
  flops = sizes.flops_per_token(c, work.length, params, frozen)
  active = sizes.active_params(c, model.abstract_params, embed=False)
  windows = any(layer.window is not None for layer in c.layers)
  keys = "12 d sum of m (1 - m / 2T), m = min(T, window)" if windows else ""
  out = [
    f"FLOPs per token = 6 N + {keys or '6 L T d'} = {flops:.3g}: N = "
    f"{active:,} active parameters"
    + ("" if c.tied else " without the embedding look-up")
    + f", L = {c.num_layers}, T = {work.length}, d = heads x head_dim = "
    f"{c.num_heads * c.head_dim}"
  ]
  if chip:
    peak, devices = CHIPS[chip].flops, model.mesh.size
    rate = sizes.tokens_per_second(flops, peak, devices)
    out.append(
      f"at 40% MFU: {rate:,.0f} tokens/s = 0.4 x {devices} devices x "
      f"{peak / 1e12:.0f} TFLOP/s (bfloat16) / FLOPs per token"
    )
  return out


def _data_lines(plan: Plan) -> list[str]:
  """Describes the data of each run, the evals and the leaks."""
  config, out = plan.config, []
  if plan.adapter is not None:
    merged = config.organism.merge_lora
    out.append(
      f"organism: adapter {plan.adapter.folder} of rank "
      f"{plan.adapter.lora.rank} over {plan.adapter.base}, "
      + ("made part of the weights" if merged else "which arms go on training")
    )
  for name, run, data in _runs(config, plan):
    if data is not None:
      out.append(
        f"{name}: {run.train.steps} updates of {data.batch_size} examples in "
        f"{data.layout.rows} x {data.layout.length} positions, lr "
        f"{number(run.optim.lr)}, {len(data.examples)} examples in all"
        + (f": {describe_mix(run.train)}" if run.train.mix else "")
      )
  lengths = [len(p.ids) for p in plan.prompts]
  out.append(
    f"each eval: {len(lengths)} prompts of {min(lengths)} to {max(lengths)} "
    f"tokens, up to {config.eval_sampling.max_new_tokens} new tokens each"
  )
  if samples := config.eval.samples:
    count = samples * config.eval.num_eval
    out[-1] += (
      f"; and {samples} samples of each of the {config.eval.num_eval} eval "
      f"prompts, {count} completions more (eval.samples)"
    )
  before = " and that before the install" if config.measures_base else ""
  out.append(f"gate: an eval of the organism{before}")
  for name, arm in config.arms.items():
    last, evals = arm.train.steps, config.eval
    observed = observed_steps(config, arm)
    line = f"arm {name}: evals after {', '.join(map(str, observed))} updates"
    if steps_with_tasks := task_steps(evals, last):
      after = ", ".join(map(str, steps_with_tasks))
      line += f", with {', '.join(evals.tasks)} after {after}"
    if evals.refine:
      count = min(evals.refine_budget, last + 1 - len(observed))
      line += f"; then up to {count} around its crossings (eval.refine)"
    out.append(line)
  leaks = measure_leaks(config, plan.setting, config.arms)
  return [
    *out,
    *(f"leaks of {describe_overlap(k, v)}" for k, v in leaks.items()),
  ]
