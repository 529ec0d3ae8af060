"""Reads the architecture of a decoder from a Hugging Face config.json."""

import math
from pathlib import Path
from typing import Any, NoReturn

from bct_jax.infra.files import read_object
from bct_jax.models.architecture import (
  DeltaNet,
  GlobalAttention,
  Layer,
  ModelConfig,
)
from bct_jax.models.families import COMMON, FAMILIES, HARMLESS, Family
from bct_jax.models.rope import Refuse, read_rope

# What a family may not leave to the default of a library.
_REQUIRED = (
  "hidden_size num_hidden_layers num_attention_heads intermediate_size".split()
)
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


# Models with an image encoder -> the decoder that they have where their
# text_config does not say.
WITH_IMAGES = {
  "gemma3": "gemma3_text",
  "gemma4": "gemma4_text",
  "gemma4_unified": "gemma4_unified_text",
  "mistral3": "mistral",
  "qwen3_5": "qwen3_5_text",
  "qwen3_5_moe": "qwen3_5_moe_text",
}


def text_config(raw: dict[str, Any]) -> dict[str, Any]:
  """Returns the language model's part of a config, which may be all of it.

  Gemma 3 above 1B, Gemma 4, Mistral Small since 3.1, Ministral 3 and Qwen3.5
  are published with encoders of images or sound beside the decoder.
  """
  kind, text = raw.get("model_type"), raw.get("text_config")
  if not isinstance(kind, str) or not isinstance(text, dict):
    return raw
  if kind not in WITH_IMAGES:
    return raw
  outer = ("eos_token_id", "dtype", "torch_dtype", "tie_word_embeddings")
  return {
    **{k: raw[k] for k in outer if k in raw},
    "model_type": WITH_IMAGES[kind],
    **text,
  }


def from_hf(path: Path) -> ModelConfig:
  """Reads the architecture of a model.

  Fields that the file leaves out have the defaults of the family's
  configuration class in transformers. Some models rely on them.

  Args:
    path: a model folder with a config.json, or such a file itself.

  Raises:
    ValueError: the file is missing or broken, the architecture or a field that
      changes the maths is not supported, or sizes contradict each other.
  """
  path = Path(path)
  path = path / "config.json" if path.is_dir() or not path.suffix else path
  whole = read_object(path)
  raw = text_config(whole)

  def refuse(field: str, why: str) -> NoReturn:
    raise ValueError(f"{path}: {field} = {raw.get(field)!r}: {why}")

  family = FAMILIES.get(str(raw.get("model_type")))
  if family is None:
    refuse("model_type", f"supported architectures: {', '.join(FAMILIES)}")
  _check_fields(raw, family, raw is not whole, refuse)
  hf = _normalized(raw, path)
  _check_defaults(hf, family, refuse)
  activation = getattr(hf, "hidden_activation", None) or hf.hidden_act
  if activation not in _ACTIVATIONS:
    refuse("hidden_act", f"{activation} given, supported: {[*_ACTIVATIONS]}")
  layers = _layers(hf, refuse)
  heads, own = hf.num_attention_heads, _plain_heads(hf, layers)
  kv_heads = own.num_key_value_heads or heads
  if heads % kv_heads:
    refuse("num_key_value_heads", f"must divide num_attention_heads = {heads}")
  head_dim = getattr(own, "head_dim", None) or hf.hidden_size // heads
  global_attn = _global_attn(hf, layers, refuse)
  fields = {
    "vocab_size": hf.vocab_size,
    "width": hf.hidden_size,
    "num_heads": heads,
    "num_kv_heads": kv_heads,
    "head_dim": head_dim,
    "mlp_width": getattr(hf, "intermediate_size", 0),
    "norm_eps": hf.rms_norm_eps,
    "max_length": hf.max_position_embeddings,
    "tied": bool(hf.tie_word_embeddings),
    "layers": layers,
    "delta": _delta(hf, layers, refuse),
    "global_attn": global_attn,
    "family": raw["model_type"],
    "activation": _ACTIVATIONS[activation],
  }
  out = ModelConfig(**{**fields, **family.flags(hf)})
  for layer in layers:
    width = out.with_heads(layer.mixer).head_dim
    turning = layer.rope.turning(width) if layer.rope else width
    if turning % 2 or not turning:
      refuse("head_dim", f"rotary positions need an even number, not {turning}")
  return out


def _check_fields(
  raw: dict[str, Any], family: Family, is_part: bool, refuse: Refuse
) -> None:
  """Refuses fields that are unknown, missing, or of a value that is not read.

  Args:
    raw: the fields of the decoder.
    family: of the model.
    is_part: whether they are a part of the config of a model with images.
    refuse: raises the error.
  """
  valid = HARMLESS | COMMON | set(family.fields.split())
  for field in sorted(set(raw) - valid):
    if raw[field] is None:
      continue  # not set, as older versions of transformers wrote it
    if field == "auto_map":
      refuse(
        field,
        "the model is code of the folder, which is never run. If it computes "
        f"what {raw['model_type']} does, remove this field from a copy",
      )
    refuse(field, "unknown field, it may change the model")
  for field in _REQUIRED:
    # Gemma 3 4B is published without its heads, which are the default.
    if is_part and field == "num_attention_heads":
      continue
    if field == "intermediate_size" and not family.dense:
      continue
    if field not in raw:
      refuse(field, "required field is missing")
  _check_numbers(raw, refuse)
  for field, allowed in family.only.items():
    if field in raw and raw[field] not in allowed:
      refuse(field, f"supported: {' or '.join(map(str, allowed))}")
  if quantization := raw.get("quantization_config"):
    known = isinstance(quantization, dict) and (
      quantization.get("quant_method") in family.quantizations
    )
    if not known:
      refuse("quantization_config", "weights of this form are not read")


def _check_defaults(hf: Any, family: Family, refuse: Refuse) -> None:
  """Refuses defaults of transformers for fields of which others are read."""
  for field, allowed in family.only.items():
    default = getattr(hf, field, allowed[0])
    if default not in allowed:
      known = " or ".join(map(str, allowed))
      refuse(field, f"supported: {known}, not the default of {default}")


# Whole numbers, each with the largest one that is no mistake.
_MOST = {
  "num_hidden_layers": 1_000,
  "num_attention_heads": 10_000,
  "num_key_value_heads": 10_000,
  "head_dim": 100_000,
  "hidden_size": 1_000_000,
  "intermediate_size": 10_000_000,
  "vocab_size": 10_000_000,
  "max_position_embeddings": 1_000_000_000,
  "num_experts": 100_000,
  "moe_intermediate_size": 10_000_000,
  "shared_expert_intermediate_size": 10_000_000,
  "global_head_dim": 100_000,
  "num_global_key_value_heads": 10_000,
  "linear_num_key_heads": 10_000,
  "linear_num_value_heads": 10_000,
  "linear_key_head_dim": 100_000,
  "linear_value_head_dim": 100_000,
  "linear_conv_kernel_dim": 1_000,
}


def _check_numbers(raw: dict[str, Any], refuse: Refuse) -> None:
  """Refuses sizes out of range, and numbers that are not finite."""
  for field, most in _MOST.items():
    value = raw.get(field)
    if value is not None and (type(value) is not int or not 0 < value <= most):
      refuse(field, f"a whole number from 1 to {most:,} is needed")
  for field, value in raw.items():
    if isinstance(value, float) and not math.isfinite(value):
      refuse(field, "a finite number is needed")
  eps = raw.get("rms_norm_eps")
  if eps is not None and not (type(eps) in (int, float) and 0 <= eps < 1):
    refuse("rms_norm_eps", "a number from 0 to below 1 is needed")


def _normalized(raw: dict[str, Any], path: Path) -> Any:
  """Makes the configuration object of transformers.

  It fills in defaults, and translates old spellings of rotary fields and of
  kinds of layers.
  """
  from transformers import CONFIG_MAPPING  # Slow to import.

  fields = {k: v for k, v in raw.items() if k != "quantization_config"}
  try:
    return CONFIG_MAPPING[raw["model_type"]].from_dict(fields)
  except Exception as e:  # It checks types and sizes by several libraries.
    reason = " ".join(str(e).split())
    raise ValueError(f"{path}: not a valid configuration: {reason}") from None


def _layers(hf: Any, refuse: Refuse) -> tuple[Layer, ...]:
  """Reads window and rotary positions of each layer."""
  count = hf.num_hidden_layers
  window = getattr(hf, "sliding_window", None)
  kinds = getattr(hf, "layer_types", None)
  if kinds is None:
    kinds = ["full_attention" if window is None else "sliding_attention"]
    kinds = kinds * count
  rotates = getattr(hf, "no_rope_layers", None) or [1] * count
  if len(kinds) != count:
    refuse("layer_types", f"{len(kinds)} entries for {count} layers")
  if len(rotates) < count:
    refuse("no_rope_layers", f"{len(rotates)} entries for {count} layers")
  growing, hybrid = hf.model_type == "ministral3", _is_hybrid(hf)
  known = ["full_attention"]
  known.append("linear_attention" if hybrid else "sliding_attention")
  out = []
  for kind, rotate in zip(kinds, rotates, strict=False):
    if kind not in known:
      refuse("layer_types", f"{kind}; {', '.join(known)} known")
    if kind == "linear_attention":
      out.append(Layer(None, None, "deltanet"))
      continue
    mixer = "attn"
    if kind == "full_attention" and _has_global_heads(hf):
      mixer = "global_attn"
    sliding = kind == "sliding_attention"
    if sliding and not isinstance(window, int):
      refuse("sliding_window", "a number is needed for its layers")
    rope = hf.rope_parameters
    if "full_attention" in rope:  # one for each kind of layer
      rope = rope.get(kind)
      if not isinstance(rope, dict):
        refuse("rope_parameters", f"{kind} is missing")
    out.append(
      Layer(
        window if sliding else None,
        read_rope(rope, refuse, growing, hybrid) if rotate else None,
        mixer,
      )
    )
  if all(layer.linear for layer in out):
    refuse("layer_types", "at least one layer of full_attention is needed")
  if all(layer.mixer == "global_attn" for layer in out):
    refuse("layer_types", "at least one layer of sliding_attention is needed")
  return tuple(out)


def _has_global_heads(hf: Any) -> bool:
  """Tells whether layers without a window have heads of their own shape."""
  return hf.model_type in ("gemma4_text", "gemma4_unified_text")


def _plain_heads(hf: Any, layers: tuple[Layer, ...]) -> Any:
  """Returns the configuration that has the heads of ordinary attention."""
  if not _has_global_heads(hf):
    return hf
  return hf.per_layer_config[[layer.mixer for layer in layers].index("attn")]


def _global_attn(
  hf: Any, layers: tuple[Layer, ...], refuse: Refuse
) -> GlobalAttention | None:
  """Reads the heads of layers without a window, if theirs are others."""
  if not _has_global_heads(hf):
    return None
  named = hf.to_dict().get("per_layer_config") or {}
  for field in sorted({field for own in named.values() for field in own}):
    if field not in ("head_dim", "num_key_value_heads"):
      refuse("per_layer_config", f"{field} of a layer may change the model")
  shapes: dict[str, set[tuple[int, int]]] = {}
  for layer, own in zip(layers, hf.per_layer_config, strict=True):
    shape = own.head_dim, own.num_key_value_heads
    shapes.setdefault(layer.mixer, set()).add(shape)
  if any(len(shape) > 1 for shape in shapes.values()):
    refuse("per_layer_config", "layers of a kind need heads of one shape")
  ((head_dim, kv_heads),) = shapes["global_attn"]
  if hf.num_attention_heads % kv_heads:
    refuse(
      "num_global_key_value_heads",
      f"must divide num_attention_heads = {hf.num_attention_heads}",
    )
  return GlobalAttention(head_dim, kv_heads, bool(hf.attention_k_eq_v))


def _is_hybrid(hf: Any) -> bool:
  """Tells whether some layers of a family have linear attention."""
  return hasattr(hf, "linear_num_value_heads")


def _delta(
  hf: Any, layers: tuple[Layer, ...], refuse: Refuse
) -> DeltaNet | None:
  """Reads the linear attention of a model, if it has such layers."""
  if not any(layer.linear for layer in layers):
    return None
  if hf.linear_num_value_heads % hf.linear_num_key_heads:
    refuse(
      "linear_num_value_heads",
      f"must be a multiple of linear_num_key_heads = {hf.linear_num_key_heads}",
    )
  return DeltaNet(
    key_heads=hf.linear_num_key_heads,
    value_heads=hf.linear_num_value_heads,
    key_dim=hf.linear_key_head_dim,
    value_dim=hf.linear_value_head_dim,
    window=hf.linear_conv_kernel_dim,
    fused=hf.model_type == "qwen3_next",
  )
