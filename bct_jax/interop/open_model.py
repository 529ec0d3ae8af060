"""Opens a model by its folder, of a run or any other.

All packages that ask for a model by name load it here.
"""

import dataclasses
from pathlib import Path
from typing import Any, cast

import jax

from bct_jax.config import (
  PROMPTED,
  TRAINED,
  ConfigError,
  ExperimentConfig,
  MeshConfig,
  ModelOptions,
  SamplingConfig,
  check_sampling,
  choose,
  from_dict,
)
from bct_jax.data.open_setting import open_setting
from bct_jax.infra import files
from bct_jax.infra.progress import log_line
from bct_jax.infra.remote_runs import local_copy
from bct_jax.interop.local_model import LocalModel
from bct_jax.models.huggingface import hub
from bct_jax.models.huggingface.adapter_folder import is_adapter
from bct_jax.models.huggingface.peft_config import CONFIG, read_config
from bct_jax.models.lora import Weights
from bct_jax.runtime.runtime import Runtime
from bct_jax.runtime.weights import load_weights
from bct_jax.settings.prompts import prompt_wordings

# How a folder that is of no run is sampled, unless the package says otherwise.
SAMPLING = SamplingConfig(
  temperature=0.0,
  top_k=0,
  top_p=1.0,
  min_p=0.0,
  stop=(),
  max_new_tokens=256,
  batch_size=32,
  prefill_tokens=512,
  kv_cache_dtype="auto",
  seed=0,
)


@dataclasses.dataclass(frozen=True)
class _Parts:
  """Holds the parts of a config that a Runtime reads."""

  model: ModelOptions
  mesh: MeshConfig
  sampling: SamplingConfig


def open_model(path: str | Path, **options: Any) -> LocalModel:
  """Opens a model for other packages, which add no prompt of the run.

  Args:
    path, **options: see `open_weights`.

  Raises:
    ConfigError, ValueError: as `open_weights`.
  """
  thinking = None
  if (config := config_of_run(path)) is not None:
    _tell_prompt(config, Path(path))
    thinking = config.eval.thinking
  return LocalModel(*open_weights(path, **options), thinking=thinking)


def config_of_run(path: str | Path) -> ExperimentConfig | None:
  """Reads the config of the run whose arm or organism a folder is, else None.

  Raises:
    ConfigError: the run's config.json is of another version, or damaged.
  """
  folder = local_copy(path)
  run = folder.resolve().parent.parent / "config.json"
  if folder.parent.name in ("arms", "organisms") and run.is_file():
    return from_dict(files.read_json(run)["config"])
  return None


def open_weights(
  path: str | Path,
  *,
  base: str | None = None,
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  dtype: str | None = None,
  param_dtype: str | None = None,
  batch_size: int | None = None,
  prefill_tokens: int | None = None,
) -> tuple[Runtime, Weights]:
  """Loads a model by its folder.

  Args:
    path: organisms/HASH or arms/NAME of a run, which is read as its own
      config.json says; else what `model.path` of a config takes; or an adapter
      that `peft` wrote, a folder or a hub id.
    base: the model that such an adapter is over; None is the one that its
      adapter_config.json names.
    data, fsdp, tensor: devices per axis of the mesh.
    dtype, param_dtype: as in a config; None is the run's, else float32.
    batch_size, prefill_tokens: of the sampler; None as above.

  Raises:
    ConfigError: there is no such model or run, or an option is wrong.
    ValueError: the model does not fit the mesh, or cannot be read.
  """
  folder, params = local_copy(path), None
  if (run := config_of_run(path)) is not None:
    params = folder if _has_weights(folder) else None
    options, sampling = run.model, run.sampling
  else:
    model, params = _model_and_adapter(path, base)
    options = ModelOptions(model, None, "float32", "float32", "none", "auto")
    sampling, base = SAMPLING, None
  if base is not None:
    raise ConfigError(
      f"base = {base!r}: {path} is of a run, which says its own"
    )
  names = {"dtype": dtype, "param_dtype": param_dtype}
  for name, value in names.items():
    if value is not None:
      choose(value, ("float32", "bfloat16"), name)
  sizes = {"batch_size": batch_size, "prefill_tokens": prefill_tokens}
  config = _Parts(
    dataclasses.replace(options, **{k: v for k, v in names.items() if v}),
    MeshConfig(data, fsdp, tensor, None),
    dataclasses.replace(
      sampling, **{k: v for k, v in sizes.items() if v is not None}
    ),
  )
  check_sampling(config.sampling)
  # Other packages may score plain text, for which no template is needed.
  runtime = Runtime.make(cast(ExperimentConfig, config), need_template=False)
  with jax.set_mesh(runtime.mesh):
    return runtime, load_weights(runtime, params)


def _model_and_adapter(
  path: str | Path, base: str | None
) -> tuple[str, Path | None]:
  """Returns the model to load, and the folder of an adapter over it, if any.

  Raises:
    ConfigError: a base is given for a whole model, or none for an adapter that
      names none.
  """
  text = str(path)
  folder = Path(text).expanduser()
  if not folder.exists() and hub.is_id(text):
    folder = hub.download(text)
  if not is_adapter(folder):
    if base is not None:
      raise ConfigError(f"base = {base!r}: {path} is no adapter")
    return text, None
  config = read_config(folder)
  named, revision = (
    config.get("base_model_name_or_path"),
    config.get("revision"),
  )
  if named and revision and hub.is_id(named) and "@" not in named:
    named = f"{named}@{revision}"
  if not (base or named):
    raise ConfigError(
      f"{folder / CONFIG}: base_model_name_or_path is missing; give `base`, "
      "the model that the adapter is over"
    )
  return str(base or named), folder


def _has_weights(folder: Path) -> bool:
  """Tells whether a folder of a run has weights of its own.

  An organism that is the model itself, maybe under a prompt, has none.
  """
  facts = folder / "provenance.json"
  if not facts.is_file():
    return True
  return files.read_json(facts)["kind"] in (*TRAINED, "adapter")


def _tell_prompt(config: ExperimentConfig, folder: Path) -> None:
  """Logs the prompt of the run's evals, which the user has to give here."""
  kind = config.eval.prompt
  if kind in PROMPTED.values():
    setting = open_setting(config.setting).setting
    text = prompt_wordings(kind, "eval", setting, "plain")[0]
    what = "before each question" if kind == "hint" else "as system message"
    log_line(
      f"{folder}: the run's evals are under a prompt, which is not added here; "
      f"give it {what}: {text!r}"
    )
