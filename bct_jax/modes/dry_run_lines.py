"""Describes model, bytes, speed and data of a run, for --mode=dry_run."""

import collections

from bct_jax.config.chips import CHIPS
from bct_jax.config.eval_steps import observed_steps, task_steps
from bct_jax.data.leaks import describe_overlap
from bct_jax.data.mixture import describe_mix
from bct_jax.experiment.datasets import measure_leaks
from bct_jax.experiment.plan import Plan
from bct_jax.experiment.run_sizes import largest_run, list_runs, run_flops
from bct_jax.infra.formats import number, percent
from bct_jax.mesh import num_row_shards
from bct_jax.models.architecture import ModelConfig
from bct_jax.runtime.programs import MeshModel
from bct_jax.sample.decode import kv_dtype
from bct_jax.sizing import sizes
from bct_jax.sizing.expert_traffic import expert_traffic
from bct_jax.sizing.sizes import Sizes, Work
from bct_jax.train.optim import state_note

_GIB = 2**30


def model_lines(model: MeshModel, work: Work) -> list[str]:
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
    f"{model.mesh.size}{each} device{'' if model.mesh.size == 1 else 's'}",
    f"update: {work.rows} rows of {work.length} positions, {work.num_trained} "
    f"of them trained; {work.rows // parts} at a time on a device, remat "
    f"{config.model.remat}, {config.model.dtype}",
  ]


def size_lines(model: MeshModel, parts: Sizes, slots: int) -> list[str]:
  """Describes the bytes on a device, part by part."""
  config, c = model.config, model.model.config
  memory = config.mesh.memory
  cached = kv_dtype(config.sampling, model.model.dtype).itemsize

  def line(name: str, size: int, note: str) -> str:
    return f"  {name:<15}{size / _GIB:8.2f}  {note}".rstrip()

  def total(name: str, size: int, of: str) -> str:
    if memory is None:
      return line(name, size, of)
    fits = "" if size <= memory else ", DOES NOT FIT"
    share = f"{percent(size / memory)} of {number(memory / _GIB)} GiB{fits}"
    return line(name, size, f"{of}: {share}")

  dtype = config.model.dtype
  axes = "tensor axis only"
  if model.model.experts == "tokens":
    axes += ", experts on fsdp too"
  return [
    "GiB on each device:",
    line("weights", parts.weights, "shards x bytes of each leaf"),
    line(
      "gradients",
      parts.gradients,
      "as weights; twice with microbatches"
      + ("; four in float32 at evals" if config.eval.gradients else ""),
    ),
    line("optimizer", parts.optimizer, state_note(largest_run(model).optim)),
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
    line(
      "decode weights",
      parts.decode_weights,
      f"{dtype}, "
      + ("matrices int8, " * (config.sampling.weight_dtype == "int8"))
      + axes,
    ),
    line(
      "KV cache",
      parts.cache,
      f"{_heads_note(c)} x {config.sampling.batch_size} rows / (data x fsdp) "
      f"x {slots} slots / tensor x 2 x {cached} bytes"
      + (" + scales" if cached == 1 else ""),
    ),
    *([line("states", parts.states, _states_note(model))] if c.delta else []),
    total("= sampling", parts.sampling, "these with the training state"),
  ]


def _heads_note(c: ModelConfig) -> str:
  """Says how many layers have which key/value heads: layers x heads x width."""
  count = collections.Counter(layer.mixer for layer in c.attending)
  notes = []
  for mixer, layers in count.items():
    own = c.with_heads(mixer)
    notes.append(f"{layers} layers x {own.num_kv_heads} heads x {own.head_dim}")
  return notes[0] if len(notes) == 1 else f"({' + '.join(notes)})"


def _states_note(model: MeshModel) -> str:
  """Says what the states of linear layers are."""
  c = model.model.config
  net = c.delta
  assert net is not None
  return (
    f"{c.num_layers - len(c.attending)} linear layers x "
    f"{model.config.sampling.batch_size} rows / (data x fsdp) x "
    f"{net.value_heads} heads / tensor x {net.key_dim} x {net.value_dim} x 4 "
    "bytes, and inputs of convolutions"
  )


def speed_lines(model: MeshModel, work: Work) -> list[str]:
  """Describes the FLOPs of a token and the speed that follows from them."""
  c, chip = model.model.config, model.config.mesh.chip
  _, run, _ = list_runs(model.config)[-1]
  flops = run_flops(model, run, work.length)
  active = sizes.active_params(c, model.abstract_params, embed=False)
  windows = any(layer.window is not None for layer in c.layers)
  keys = "12 sum of d m (1 - m / 2T), m = min(T, window)" if windows else ""
  widths = {c.num_heads * c.with_heads(x.mixer).head_dim for x in c.attending}
  memory = sizes.memory_size(c)
  out = [
    f"FLOPs per token = 6 N + {keys or '6 L T d'}"
    + (" + 18 s" if memory else "")
    + f" = {flops:.3g}: N = "
    f"{active:,} active parameters"
    + ("" if c.tied else " without the embedding look-up")
    + f", L = {len(c.attending)}, T = {work.length}, d = heads x head_dim = "
    + " or ".join(map(str, sorted(widths)))
    + (f", s = {memory:,} numbers in memories" if memory else "")
  ]
  if chip:
    peak, devices = CHIPS[chip].flops, model.mesh.size
    rate = sizes.tokens_per_second(flops, peak, devices)
    out.append(
      f"at 40% MFU: {rate:,.0f} tokens/s = 0.4 x {devices} devices x "
      f"{peak / 1e12:.0f} TFLOP/s (bfloat16) / FLOPs per token"
    )
  return out


def expert_lines(model: MeshModel, work: Work) -> list[str]:
  """Says what an update receives for experts, by either way to move them."""
  if not model.model.config.num_experts or model.mesh.shape["fsdp"] == 1:
    return []
  trained = not largest_run(model).lora.rank
  weights, tokens = expert_traffic(
    model.model, model.abstract_params, model.mesh.shape, work, trained
  )
  out = (
    f"experts: an update receives about {weights / _GIB:.2f} GiB on a device "
    "if their weights are gathered"
  )
  if tokens is None:
    return [f"{out}; they do not divide over fsdp, so tokens cannot be sent"]
  better = "tokens" if tokens < weights else "weights"
  return [
    f"{out}, and {tokens / _GIB:.2f} GiB if tokens are sent, times the largest "
    "load of a pair of devices over the mean, rounded up; mesh.experts is "
    f"{model.model.experts}, less at an even load is {better}"
  ]


def data_lines(plan: Plan) -> list[str]:
  """Describes the data of each run, the evals and the leaks."""
  config, out = plan.config, []
  if plan.adapter is not None:
    merged = config.organism.merge_lora
    out.append(
      f"organism: adapter {plan.adapter.folder} of rank "
      f"{plan.adapter.lora.rank} over {plan.adapter.base}, "
      + ("made part of the weights" if merged else "which arms go on training")
    )
  for name, run, data in list_runs(config, plan):
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
