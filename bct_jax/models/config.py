"""The architecture of a decoder, read from a Hugging Face config.json."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

# Fields of a Llama config.json that do not change the forward pass, or whose
# effect is checked in `from_hf`. Anything else is refused by name.
_KNOWN = frozenset(
  """
  architectures attention_bias attention_dropout bos_token_id dtype
  eos_token_id head_dim hidden_act hidden_size initializer_range
  intermediate_size is_llama_config max_position_embeddings mlp_bias model_type
  num_attention_heads num_hidden_layers num_key_value_heads pad_token_id
  pretraining_tp rms_norm_eps rope_interleaved rope_parameters rope_scaling
  rope_theta tie_word_embeddings torch_dtype transformers_version
  transformers.js_config use_cache vocab_size _name_or_path unsloth_fixed
  """.split()
)
_REQUIRED = (
  "vocab_size hidden_size num_hidden_layers num_attention_heads "
  "intermediate_size rms_norm_eps max_position_embeddings"
).split()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape and maths of a decoder-only transformer of the Llama family."""

  vocab_size: int
  num_layers: int
  width: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_width: int
  norm_eps: float
  rope_theta: float
  max_length: int  # positions the model was made for
  tied: bool  # the head is the transposed embedding

  @property
  def num_params(self) -> int:
    """Parameters, with a tied head counted once."""
    d, h = self.width, self.head_dim
    attn = d * h * (2 * self.num_heads + 2 * self.num_kv_heads)
    layer = attn + 3 * d * self.mlp_width + 2 * d
    heads = self.vocab_size * d * (1 if self.tied else 2)
    return heads + self.num_layers * layer + d


def from_hf(folder: Path) -> ModelConfig:
  """Reads config.json of a model folder.

  Raises:
    ValueError: the file is missing or broken, the architecture or a field that
      changes the maths is not supported, or sizes contradict each other.
  """
  path = Path(folder) / "config.json"
  try:
    raw = json.loads(path.read_text("utf-8"))
  except FileNotFoundError:
    raise ValueError(f"{path} is missing: not a Hugging Face folder") from None
  except json.JSONDecodeError as e:
    raise ValueError(f"{path}:{e.lineno}: not JSON: {e.msg}") from None

  def refuse(field: str, why: str) -> NoReturn:
    raise ValueError(f"{path}: {field} = {raw.get(field)!r}: {why}")

  if raw.get("model_type") != "llama":
    refuse("model_type", "supported architectures: llama")
  unknown = sorted(set(raw) - _KNOWN)
  if unknown:
    refuse(unknown[0], "unknown field, it may change the model")
  missing = [k for k in _REQUIRED if k not in raw]
  if missing:
    refuse(missing[0], "required field is missing")
  for field in ("attention_bias", "mlp_bias", "rope_interleaved"):
    if raw.get(field):
      refuse(field, "not supported, must be false")
  if raw.get("hidden_act", "silu") != "silu":
    refuse("hidden_act", "supported: silu")
  if raw.get("pretraining_tp", 1) != 1:
    refuse("pretraining_tp", "supported: 1")
  return ModelConfig(
    vocab_size=raw["vocab_size"],
    num_layers=raw["num_hidden_layers"],
    width=raw["hidden_size"],
    num_heads=raw["num_attention_heads"],
    num_kv_heads=_kv_heads(raw, refuse),
    head_dim=raw.get("head_dim")
    or raw["hidden_size"] // raw["num_attention_heads"],
    mlp_width=raw["intermediate_size"],
    norm_eps=raw["rms_norm_eps"],
    rope_theta=_rope_theta(raw, refuse),
    max_length=raw["max_position_embeddings"],
    tied=bool(raw.get("tie_word_embeddings", False)),
  )


def _kv_heads(raw: dict[str, Any], refuse) -> int:
  heads = raw["num_attention_heads"]
  kv_heads = raw.get("num_key_value_heads") or heads
  if heads % kv_heads:
    refuse("num_key_value_heads", f"must divide num_attention_heads = {heads}")
  return kv_heads


def _rope_theta(
  raw: dict[str, Any], refuse: Callable[[str, str], NoReturn]
) -> float:
  """The rotary base, from either spelling; scaled kinds are refused."""
  for field in ("rope_parameters", "rope_scaling"):
    rope = raw.get(field) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
      refuse(field, "supported rope_type: default")
  # transformers 5 writes rope_parameters, older releases a top-level field.
  theta = (raw.get("rope_parameters") or {}).get("rope_theta")
  theta = theta if theta is not None else raw.get("rope_theta")
  if not isinstance(theta, (int, float)):
    refuse("rope_theta", "no number here or in rope_parameters")
  return float(theta)
