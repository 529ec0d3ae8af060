"""Plans a run: makes model, prompts and data and checks them first."""

import dataclasses

from jax.sharding import Mesh

from bct_jax.config import ConfigError, ExperimentConfig
from bct_jax.data.batches import Dataset
from bct_jax.evals.evaluate import Prompt, make_prompts
from bct_jax.examples import Setting
from bct_jax.experiment.datasets import make_dataset
from bct_jax.interop.lm_eval_tasks import Tasks
from bct_jax.runtime.runtime import Runtime
from bct_jax.sample.sampler import check_prompts
from bct_jax.settings import make_setting
from bct_jax.settings.probes.capability import Probe, make_probe


@dataclasses.dataclass(frozen=True)
class Plan:
  """Holds everything that a run needs, made and checked before any training.

  Attributes:
    runtime: the model with its compiled functions, and the config.
    setting: of the config.
    probe: of capability.
    prompts: of every eval.
    install: what the organism is trained on; None if nothing installs it.
    arms: what each arm is trained on, by name.
    tasks: of lm-eval; None if evals have none.
    fall_back: whether damaged checkpoints are set aside.
  """

  runtime: Runtime
  setting: Setting
  probe: Probe
  prompts: tuple[Prompt, ...]
  install: Dataset | None
  arms: dict[str, Dataset]
  tasks: Tasks | None = None
  fall_back: bool = False

  @property
  def config(self) -> ExperimentConfig:
    """Returns the config of the experiment."""
    return self.runtime.config


def make_plan(
  config: ExperimentConfig, mesh: Mesh | None = None, fetch: bool = True
) -> Plan:
  """Reads the model's config and tokenizer and renders all data.

  Args:
    config: of the experiment.
    mesh: None is that of the config. An abstract mesh makes a plan to look at,
      which cannot be run.
    fetch: whether a hub may be asked for files that were not downloaded yet.

  Raises:
    ValueError: something would fail later: an unknown setting, a prompt that
      does not fit, an empty completion ...
  """
  runtime = Runtime.make(config, mesh, fetch)
  # Fails here for a mesh that does not fit, which is no fault of an arm.
  _ = runtime.abstract_params
  setting = make_setting(config.setting.name, config.setting.options)
  probe = make_probe(config.eval.probe)
  prompts = make_prompts(
    setting, probe, runtime.chat, config.eval, style_of(config)
  )
  context = runtime.model.config.max_length
  check_length(config, context)
  try:
    check_prompts(
      [p.ids for p in prompts], context, config.eval_sampling.max_new_tokens
    )
  except ValueError as e:
    raise ValueError(f"eval {e}") from None
  install = None
  if config.organism.trained:
    install = make_dataset(runtime, setting, config.organism, "organism")
  arms = {
    name: make_dataset(runtime, setting, arm, f"arms.{name}")
    for name, arm in config.arms.items()
  }
  tasks = Tasks(runtime) if config.eval.tasks else None
  return Plan(runtime, setting, probe, tuple(prompts), install, arms, tasks)


def style_of(config: ExperimentConfig) -> str:
  """Returns the style that an eval prompt can ask for, that of all arms.

  Controls are asked for the style of the arms, whatever they are trained on.

  Raises:
    ConfigError: eval prompts ask for a style, and the arms have several.
  """
  arms = [arm for arm in config.arms.values() if not arm.control]
  styles = sorted({arm.train.decoration for arm in arms})
  if config.eval.prompt == "inoculation" and len(styles) != 1:
    raise ConfigError(
      "eval.prompt = 'inoculation' asks for the style of the arms, which must "
      f"have one: train.decoration is {styles}"
    )
  return styles[0] if styles else "plain"


def check_length(config: ExperimentConfig, context: int) -> None:
  """Checks that rows are no longer than the model was made for.

  Raises:
    ValueError: they are; the message has both lengths.
  """
  if config.max_length > context:
    raise ValueError(
      f"max_length = {config.max_length}: the model was made for {context}"
    )
