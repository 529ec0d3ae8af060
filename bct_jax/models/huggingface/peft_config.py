"""Reads adapter_config.json of `peft`: which modules it adapts, and how.

The fields are those of https://huggingface.co/docs/peft/package_reference/lora.
A field that would change the model and is not supported is refused by name.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bct_jax.infra.files import read_object

CONFIG = "adapter_config.json"
MERGE = (
  "merge it where torch is installed (peft: merge_and_unload, then "
  "save_pretrained) and use the folder as a model"
)
# Fields that say nothing about what the adapter computes.
_SILENT = {
  *("auto_mapping", "base_model_name_or_path", "inference_mode"),
  *("lora_dropout", "megatron_core", "peft_version", "qalora_group_size"),
  *("revision", "runtime_config", "eva_config", "ensure_weight_tying"),
}
_READ = {
  *("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "bias"),
  *("rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"),
  "target_parameters",
  *("layers_to_transform", "layers_pattern", "init_lora_weights"),
}
# Field -> the values that are supported, and what to do about others.
_VALUES: dict[str, tuple[tuple[Any, ...], str]] = {
  "peft_type": (("LORA",), MERGE),
  "task_type": ((None, "CAUSAL_LM"), "the model is a causal language model"),
  "bias": ((None, "none"), MERGE),
  "init_lora_weights": (
    (None, True, False, "gaussian", "eva", "orthogonal"),
    "this beginning changed the weights below the adapter; save it as a plain "
    "LoRA (path_initial_model_for_weight_conversion of save_pretrained)",
  ),
}
_LISTS = (
  *("target_modules", "exclude_modules", "layers_pattern"),
  "target_parameters",
)


def read_config(folder: Path) -> dict[str, Any]:
  """Reads adapter_config.json of a folder and checks its fields.

  Raises:
    ValueError: a field is not supported, or cannot be; names file and field.
  """
  path = folder / CONFIG
  config = read_object(path)
  for field, (values, why) in _VALUES.items():
    value = config.get(field)
    if value not in values:
      raise ValueError(f"{path}: {field} = {value!r} is not supported: {why}")
  for field, value in config.items():
    if value and field not in _SILENT | _READ:
      raise ValueError(f"{path}: {field} = {value!r} is not supported: {MERGE}")
  for field in _LISTS:
    value = config.get(field)
    if value is not None and not _is_pattern(value):
      raise ValueError(
        f"{path}: {field} = {value!r}: a regular expression or a list of names "
        "is needed"
      )
  numbers: dict[str, Any] = {k: config.get(k) for k in ("r", "lora_alpha")}
  for field in ("rank_pattern", "alpha_pattern"):
    patterns = config.get(field) or {}
    if not isinstance(patterns, dict):
      raise ValueError(f"{path}: {field} = {patterns!r}: an object is needed")
    for key, value in patterns.items():
      if not _is_pattern(key):
        raise ValueError(f"{path}: {field}: {key!r} is no regular expression")
      numbers[f"{field}[{key!r}]"] = value
  for field, value in numbers.items():
    kinds = (int,) if field.startswith("r") else (int, float)
    if type(value) not in kinds or not value > 0:
      raise ValueError(f"{path}: {field} = {value!r}: must be above 0")
  return config


def _is_pattern(value: Any) -> bool:
  """Tells whether a value is a regular expression or a list of texts."""
  if isinstance(value, list):
    return all(isinstance(x, str) for x in value)
  try:
    re.compile(value)
  except (re.error, TypeError):
    return False
  return True


def is_target(config: Mapping[str, Any], module: str) -> bool:
  """Tells whether a config adapts a linear layer, as `peft` decides it.

  See check_target_module_exists in peft/tuners/tuners_utils.py.

  Args:
    config: from `read_config`.
    module: the layer's whole name, as "model.layers.0.self_attn.q_proj".
  """
  targets, excluded = (
    config.get("target_modules"),
    config.get("exclude_modules"),
  )
  if excluded and _names(excluded, module):
    return False
  if targets == "all-linear":
    return True
  if not targets or not _names(targets, module):
    return False
  blocks = config.get("layers_to_transform")
  if isinstance(targets, str) or blocks in (None, []):
    return True
  patterns = config.get("layers_pattern") or [r"[^.]*"]
  for pattern in [patterns] if isinstance(patterns, str) else patterns:
    found = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module)
    if found is not None:
      return int(found[1]) in (blocks if isinstance(blocks, list) else [blocks])
  return False


def _names(names: str | Sequence[str], module: str) -> bool:
  """Tells whether a pattern, or a list of ends of names, names a module."""
  if isinstance(names, str):
    return re.fullmatch(names, module) is not None
  return any(module == x or module.endswith(f".{x}") for x in names)


def rank_of(config: Mapping[str, Any], module: str) -> int:
  """Returns the rank of an adapted layer, by its whole name."""
  return _find(config.get("rank_pattern"), module, config["r"])


def alpha_of(config: Mapping[str, Any], module: str) -> float:
  """Returns the alpha of an adapted layer, by its whole name."""
  return float(_find(config.get("alpha_pattern"), module, config["lora_alpha"]))


def _find(patterns: Mapping[str, Any] | None, module: str, other: Any) -> Any:
  """Returns the value of the first pattern that fits, as `peft` does.

  See get_pattern_key in peft/utils/other.py.
  """
  for key, value in (patterns or {}).items():
    if re.match(rf"(.*\.)?({key})$", module):
      return value
  return other
