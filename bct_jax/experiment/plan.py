"""Plans a run: makes model, prompts and data and checks them first."""

import dataclasses
from collections.abc import Mapping, Sequence

from jax.sharding import Mesh

from bct_jax.config import ConfigError, ExperimentConfig
from bct_jax.data.batches import Dataset
from bct_jax.data.chat import Tokens
from bct_jax.data.open_setting import open_setting
from bct_jax.evals.evaluate import Prompt, make_prompts
from bct_jax.examples import Setting
from bct_jax.experiment.datasets import make_dataset
from bct_jax.infra import files, processes
from bct_jax.interop.judge import InspectJudge, make_judge
from bct_jax.interop.lm_eval_tasks import Tasks
from bct_jax.models.huggingface.adapter_folder import StoredAdapter
from bct_jax.runtime.runtime import Runtime
from bct_jax.runtime.weights import open_adapter
from bct_jax.sample.sampler import check_prompts
from bct_jax.settings.probes.capability import Probe

# Field of `eval` -> the split whose prompts it counts.
COUNTS = {"num_eval": "eval", "num_heldout": "heldout", "num_probe": "probe"}


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
    adapter: that is the organism; None if it is of another kind.
    tasks: of lm-eval; None if evals have none.
    setting_files: of the user's, see `OpenSetting.files`.
    judge: that grades; None if none does.
    fall_back: whether damaged checkpoints are set aside.
    earlier: how many prompts of each split the run had before, for each time
      that some were added, see growth.py.
  """

  runtime: Runtime
  setting: Setting
  probe: Probe
  prompts: tuple[Prompt, ...]
  install: Dataset | None
  arms: dict[str, Dataset]
  tasks: Tasks | None = None
  adapter: StoredAdapter | None = None
  setting_files: Mapping[str, Sequence[str]] = dataclasses.field(
    default_factory=dict
  )
  judge: InspectJudge | None = None
  fall_back: bool = False
  earlier: tuple[Mapping[str, int], ...] = ()

  @property
  def row_ids(self) -> list[int]:
    """Returns the row id of each prompt, which its random keys follow from.

    Prompts that were added come behind all that were there, which keep theirs.
    """
    counts = [*self.earlier, {}]  # of the last all prompts are taken
    places: dict[str, list[int]] = {}
    for i, prompt in enumerate(self.prompts):
      places.setdefault(prompt.split, []).append(i)
    taken = {
      i: None
      for count in counts
      for split, of_split in places.items()
      for i in of_split[: count.get(split)]
    }
    ids = {i: number for number, i in enumerate(taken)}
    return [ids[i] for i in range(len(self.prompts))]

  @property
  def config(self) -> ExperimentConfig:
    """Returns the config of the experiment."""
    return self.runtime.config

  def setting_facts(self) -> dict[str, str]:
    """Hashes the user's files that decide prompts and labels, if any do."""
    if not self.setting_files:
      return {}  # so that hashes of runs without such files stay
    return {"setting_files": files.digest(self.setting_files)}


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
  runtime, adapter = _make_runtime(config, mesh, fetch)
  config = runtime.config
  # Fails here for a mesh that does not fit, which is no fault of an arm.
  _ = runtime.abstract_params
  judge = make_judge(config)
  opened = open_setting(config.setting, judge)
  if judge is not None and processes.is_first():
    judge.check()
  setting, probe = opened.setting, opened.make_probe(config.eval.probe)
  prompts = make_prompts(
    setting, probe, runtime.chat, config.eval, style_of(config)
  )
  if config.eval.references or config.eval.gradients:
    _require_references(prompts)
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
  rendered: dict[str, list[Tokens]] = {}
  arms = {
    name: make_dataset(runtime, setting, arm, f"arms.{name}", rendered=rendered)
    for name, arm in config.arms.items()
  }
  tasks = Tasks(runtime) if config.eval.tasks else None
  return Plan(
    runtime,
    setting,
    probe,
    tuple(prompts),
    install,
    arms,
    tasks,
    adapter,
    opened.files,
    judge,
  )


def _make_runtime(
  config: ExperimentConfig, mesh: Mesh | None, fetch: bool
) -> tuple[Runtime, StoredAdapter | None]:
  """Makes the runtime; reads the adapter if the organism is one.

  Arms that go on training the adapter get its ranks and layers in their config.
  """
  runtime = Runtime.make(config, mesh, fetch)
  if config.organism.kind != "adapter":
    return runtime, None
  adapter = open_adapter(runtime, str(config.organism.adapter), fetch)
  if config.organism.keeps_adapter:
    arms = {
      name: dataclasses.replace(arm, lora=adapter.lora)
      for name, arm in config.arms.items()
    }
    config = dataclasses.replace(config, arms=arms)
    runtime = dataclasses.replace(runtime, config=config)
  return runtime, adapter


def _require_references(prompts: Sequence[Prompt]) -> None:
  """Checks that eval prompts have completions of both behaviors.

  Raises:
    ConfigError: one has not, as in files that do not say them.
  """
  for prompt in prompts:
    for name in ("initial", "alternate"):
      if prompt.split == "eval" and not getattr(prompt.example, name):
        raise ConfigError(
          "eval.references and eval.gradients need what both behaviors say, "
          f"and the eval prompt {prompt.example.id!r} has no `{name}`"
        )


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
