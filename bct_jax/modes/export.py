"""Writes weights or data sets for other programs: --mode=export."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from bct_jax.config import ConfigError, ExperimentConfig, choose
from bct_jax.data.open_setting import open_setting
from bct_jax.experiment.datasets import setting_splits
from bct_jax.infra import processes
from bct_jax.models.huggingface import export, hub, peft
from bct_jax.runtime.runtime import Runtime
from bct_jax.runtime.weights import (
  adapter_base,
  base_params,
  load_weights,
)


def run_export(
  config: ExperimentConfig,
  params: Path | None,
  out: Path | None,
  dtype: str | None,
  form: str | None = None,
) -> None:
  """Writes weights as a Hugging Face folder, or an adapter as one of peft."""
  if out is None:
    raise ConfigError("--mode=export needs --out=FOLDER")
  choose(form or "merged", ("merged", "adapter"), "--format")
  if dtype is not None:
    choose(dtype, export.DTYPES, "--dtype")
  export.check_target(out)  # before minutes of loading
  runtime = Runtime.make(config)
  about = {"model": config.model.path, "params": params and str(params)}
  with jax.set_mesh(runtime.mesh):
    if form == "adapter":
      folder = _export_adapter(runtime, params, out, dtype, about)
      if processes.is_first():
        print(f"wrote {folder}: an adapter over {config.model.path}")
      return
    whole = base_params(runtime, params)  # with an adapter folded in
    given = config.model.chat_template is not None
    written = export.export_hf(
      whole,
      runtime.model.config,
      runtime.folder,
      out,
      dtype,
      about=about,
      chat_template=runtime.chat.template.text if given else None,
    )
  if processes.is_first():
    print(f"wrote {written}")


def run_export_data(
  config: ExperimentConfig, out: Path | None, form: str | None = None
) -> None:
  """Writes the examples that a run takes from its setting.

  No model is needed. Completions are undecorated: an arm decorates what it
  reads.

  Args:
    config: of the experiment.
    out: the folder.
    form: `tfds`, a data set of TFDS as array_record, or `jsonl`, a file of JSON
      lines for each split. None is tfds.
  """
  if out is None:
    raise ConfigError("--mode=export_data needs --out=FOLDER")
  choose(form or "tfds", ("tfds", "jsonl"), "--format")
  setting = open_setting(config.setting).setting
  splits = setting_splits(config, setting)
  about = {"setting": dataclasses.asdict(config.setting)}

  def write() -> None:
    """Writes the data set and prints where it is."""
    from bct_jax.data import builder  # TFDS takes a second

    if form == "jsonl":
      folder = builder.write_jsonl(out, splits)
    else:
      folder = builder.write(out, setting.name, splits, about)
    counts = ", ".join(f"{len(rows)} {k}" for k, rows in splits.items())
    print(f"wrote {folder}: {counts}")

  processes.run_on_first("data set", write)


def _export_adapter(
  runtime: Runtime,
  params: Path | None,
  out: Path,
  dtype: str | None,
  about: dict[str, Any],
) -> Path:
  """Writes an adapter as a folder of peft; returns the folder.

  Raises:
    ConfigError: there is no adapter, or no hub has what it is over.
  """
  if dtype is not None:
    raise ConfigError("--dtype: an adapter is written as it is kept, float32")
  if params is None or adapter_base(params) is not None:
    reason = "the model has none" if params is None else (
      f"that of {params} is over an organism's weights, which no hub has"
    )  # fmt: skip
    raise ConfigError(
      f"--format=adapter: {reason}; use --format=merged to write all weights"
    )
  weights = load_weights(runtime, params)
  if weights.lora is None:
    raise ConfigError(
      f"--format=adapter: {params} holds all params and no adapter; use "
      "--format=merged"
    )
  path = runtime.config.model.path
  return peft.export_adapter(
    out,
    weights,
    runtime.model.config,
    base=path if hub.is_id(path) else str(runtime.folder),
    about=about,
  )
