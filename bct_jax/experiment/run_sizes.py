"""Finds what the runs of a config work on, and the bytes that they take."""

from bct_jax.config import ArmConfig, ExperimentConfig, OrganismConfig
from bct_jax.data.batches import Dataset
from bct_jax.experiment.plan import Plan
from bct_jax.mesh import num_row_shards
from bct_jax.runtime.programs import MeshModel
from bct_jax.sample.decode import kv_dtype
from bct_jax.sample.prompt_packing import num_slots
from bct_jax.sizing import sizes
from bct_jax.sizing.sizes import Sizes, Work

Run = tuple[str, ArmConfig | OrganismConfig, Dataset | None]


def find_sizes(model: MeshModel, work: Work, slots: int) -> Sizes:
  """Computes the bytes on one device, see sizing/sizes.py."""
  axes, sampling = model.mesh.shape, model.config.sampling
  run = largest_run(model)
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
    states=sizes.state_bytes(
      model.model.config, model.model.dtype, axes, sampling.batch_size
    ),
  )


def run_flops(
  model: MeshModel, run: ArmConfig | OrganismConfig, length: int
) -> float:
  """Counts the FLOPs of a token of a run's updates, see sizing/sizes.py."""
  trained, frozen = model.abstract_params, None
  if run.lora.rank:
    trained, frozen = model.abstract_trained(run.lora), trained
  return sizes.flops_per_token(model.model.config, length, trained, frozen)


def list_runs(config: ExperimentConfig, plan: Plan | None = None) -> list[Run]:
  """Lists all training runs; without any, the organism stands for them."""
  out: list[Run] = []
  if config.organism.trained or not config.arms:
    data = plan.install if plan else None
    out.append(("organism", config.organism, data))
  for name, arm in config.arms.items():
    data = plan.arms[name] if plan else None
    out.append((f"arm {name}", arm, data))
  return out


def largest_run(model: MeshModel) -> ArmConfig | OrganismConfig:
  """Finds the run whose trained weights and optimizer need most memory."""

  def memory(run: ArmConfig | OrganismConfig) -> int:
    """Returns the bytes of a run's state on one device."""
    return sizes.device_bytes(model.abstract_state(run.optim, run.lora))

  # Arms come last in the list. Of equal sizes an arm is taken.
  return max(
    (run for _, run, _ in reversed(list_runs(model.config))), key=memory
  )


def find_work(model: MeshModel, plan: Plan | None) -> Work:
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
    trained = model.abstract_trained(largest_run(model).lora)
    return sizes.gradient_bytes(trained, work.accum) + sizes.activation_bytes(
      model.model, model.mesh.shape, work
    )

  return max(
    (work_of(*run) for run in list_runs(model.config, plan)), key=memory
  )


def find_slots(config: ExperimentConfig, plan: Plan | None) -> int:
  """Counts the positions of a row in the KV cache.

  They hold the longest prompt and the new tokens. Without the prompts, a prompt
  is taken to be as long as a training row may be.
  """
  new = config.eval_sampling.max_new_tokens
  if plan is not None:
    return num_slots([p.ids for p in plan.prompts], [new] * len(plan.prompts))
  return num_slots([range(config.max_length)], [new])
