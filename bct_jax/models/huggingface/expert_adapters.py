"""Says how `peft` names and arranges the adapters of a mixture's experts.

There are two forms:

* apart: A [r, in] and B [out, r] of each matrix of each expert, such as
  mlp.experts.7.up_proj.lora_A.weight. So adapters of Qwen3's mixtures are
  published, vLLM reads them, and `peft` turns them into the other form. It does
  not where a model has a shared expert, too.
* fused: of all experts of a block, A [E r, in] and B [out, r E], which `peft`
  makes for `target_parameters`. Row e r + k of A and column k E + e of B are
  those of expert e. gate and up are one matrix, of gpt-oss in alternate columns
  and of Qwen3 one behind the other. Of two adapted matrices of a module the
  first is named base_layer: mlp.experts.base_layer.lora_A.weight is of
  gate_up_proj where down_proj is adapted, too.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bct_jax.models.architecture import ModelConfig
from bct_jax.models.lora import expert_layers

MODULE = "mlp.experts"
# The matrices of the fused form, in the order of their names in a module.
PARAMETERS = ("gate_up_proj", "down_proj")
_ONE = re.compile(r"experts\.(\d+)\.")


def fused_layers(model: ModelConfig, parameter: str) -> tuple[str, ...]:
  """Lists our layers that a matrix of the fused form holds, in their order."""
  if parameter == "down_proj":
    return ("mlp/down",)
  return tuple(x for x in expert_layers(model) if x != "mlp/down")


def split_module(module: str) -> tuple[str, int | None]:
  """Splits the name of an expert's module: "mlp.experts.{}.up_proj" and 7."""
  found = _ONE.search(module)
  if found is None:
    return module, None
  return module.replace(found[0], "experts.{}.", 1), int(found[1])


def module_of(parameter: str, adapted: Sequence[str]) -> str:
  """Returns the module of a fused matrix's adapter, in a block.

  Args:
    parameter: one of PARAMETERS.
    adapted: those that have an adapter.
  """
  inner = len(adapted) > 1 and parameter == PARAMETERS[0]
  return f"{MODULE}.base_layer" if inner else MODULE


def is_parameter(config: Mapping[str, Any], name: str) -> bool:
  """Tells whether a config adapts a parameter, as `peft` decides it.

  See _inject_parameters in peft/tuners/tuners_utils.py.

  Args:
    config: of the adapter.
    name: whole, as "model.layers.0.mlp.experts.down_proj".
  """
  return any(
    name == target or name.endswith(f".{target}")
    for target in config.get("target_parameters") or ()
  )


def fuse(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Arranges [E, in, r] and [E, r, out] as A [E r, in] and B [out, r E]."""
  fused_a = np.swapaxes(a, 1, 2).reshape(-1, a.shape[1])
  return fused_a, b.transpose(2, 1, 0).reshape(b.shape[2], -1)


def take_apart(kind: str, fused: np.ndarray, count: int) -> np.ndarray:
  """Arranges a fused A as [E, in, r], or B as [E, r, out].

  Args:
    kind: "A" or "B".
    fused: as in a file.
    count: E.
  """
  if kind == "A":
    return np.swapaxes(fused.reshape(count, -1, fused.shape[1]), 1, 2)
  return fused.reshape(fused.shape[0], -1, count).transpose(2, 1, 0)
