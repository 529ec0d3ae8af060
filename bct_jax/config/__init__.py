"""Holds the configuration as frozen dataclasses, checked before JAX starts.

Configs are written as ml_collections files. `from_dict` turns their resolved
values into the types of `types.py`. So no module below `main.py` and the sweep
sees ml_collections.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bct_jax.config.checks import check, check_arm
from bct_jax.config.controls import CONTROLS, with_controls
from bct_jax.config.eval_checks import check_sampling
from bct_jax.config.eval_types import (
  EvalConfig,
  GateConfig,
  ReadingConfig,
  SamplingConfig,
)
from bct_jax.config.fields import build, choose, merge, set_field, suggest
from bct_jax.config.judge import JudgeConfig
from bct_jax.config.organisms import resolve
from bct_jax.config.types import (
  KINDS,
  NORMALIZERS,
  OPTIMIZERS,
  PROMPTED,
  SCHEDULES,
  SOURCES,
  TRAINED,
  TURNS,
  ArmConfig,
  ConfigError,
  ExperimentConfig,
  LogConfig,
  LoraConfig,
  MeshConfig,
  ModelOptions,
  OnPolicyConfig,
  OptimConfig,
  OrganismConfig,
  SettingConfig,
  TemplateConfig,
  TrainConfig,
)

__all__ = [
  "ArmConfig",
  "CONTROLS",
  "ConfigError",
  "EvalConfig",
  "KINDS",
  "PROMPTED",
  "ExperimentConfig",
  "GateConfig",
  "JudgeConfig",
  "LogConfig",
  "LoraConfig",
  "MeshConfig",
  "ModelOptions",
  "NORMALIZERS",
  "OPTIMIZERS",
  "OnPolicyConfig",
  "OptimConfig",
  "OrganismConfig",
  "ReadingConfig",
  "SCHEDULES",
  "SOURCES",
  "SamplingConfig",
  "SettingConfig",
  "TRAINED",
  "TURNS",
  "TemplateConfig",
  "TrainConfig",
  "check_sampling",
  "choose",
  "from_dict",
  "set_field",
  "suggest",
]


def from_dict(values: Mapping[str, Any]) -> ExperimentConfig:
  """Builds and checks the configuration of an experiment.

  An arm overrides parts of the sections `train`, `optim` and `lora`. Behind
  each arm come the arms that `controls` derives from it.

  Args:
    values: the fields as nested mappings, as `configs/default.py` has them.

  Returns:
    The configuration, with each arm and each prompt spelled out.

  Raises:
    ConfigError: a field is unknown, missing, of the wrong type or impossible.
  """
  values = dict(values)
  shared = {k: values.pop(k, {}) for k in ("train", "optim", "lora")}
  # Checked also when every arm overrides them.
  check_arm(build(ArmConfig, shared, "config"), "config")
  overrides = values.pop("arms", {})
  arms = {}
  for name, arm in overrides.items():
    if not name or not all(c.isalnum() or c in "._-" for c in name):
      raise ConfigError(
        f"arms.{name}: a name of letters, digits, '.', '_' and '-' is needed, "
        "it becomes a folder"
      )
    arms[name] = merge(shared, arm, f"arms.{name}")
  values["arms"] = {}
  config = build(ExperimentConfig, values, "config")
  config = dataclasses.replace(
    config,
    arms={
      name: build(ArmConfig, arm, f"arms.{name}") for name, arm in arms.items()
    },
  )
  config = with_controls(config)
  check(config)
  return resolve(config)
