"""Describes the architecture of a decoder: its shapes and its maths."""

import dataclasses
import math

from bct_jax.models.rope import Rope

# Attention; attention of a second shape (GlobalAttention); a gated DeltaNet.
MIXERS = ("attn", "global_attn", "deltanet")


@dataclasses.dataclass(frozen=True)
class Layer:
  """Describes what may differ between the layers of a model.

  Attributes:
    window: keys that a query sees, itself included (Mistral, arXiv 2310.06825);
      None is all before it.
    rope: its rotary positions; None is a layer without positions.
    mixer: the part of its block that mixes positions, one of MIXERS.
  """

  window: int | None
  rope: Rope | None
  mixer: str = "attn"

  @property
  def linear(self) -> bool:
    """Tells whether it has linear attention: no keys, window and rope."""
    return self.mixer == "deltanet"


@dataclasses.dataclass(frozen=True)
class DeltaNet:
  """Describes the linear attention of a model, see deltanet.py.

  Attributes:
    key_heads: heads of queries and keys.
    value_heads: heads of values, a multiple of these.
    key_dim: width of a query, and of a key.
    value_dim: width of a value.
    window: inputs that the convolution sees, the newest included.
    fused: whether the projections of a key head are one (Qwen3-Next).
  """

  key_heads: int
  value_heads: int
  key_dim: int
  value_dim: int
  window: int
  fused: bool


@dataclasses.dataclass(frozen=True)
class GlobalAttention:
  """Describes the heads of layers without a window, where these differ.

  Attributes:
    head_dim: width of a head.
    num_kv_heads: heads of keys and values.
    key_is_value: whether values are the projected keys, before their norm and
      their rotation (Gemma 4).
  """

  head_dim: int
  num_kv_heads: int
  key_is_value: bool


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Describes the shape and maths of a decoder-only transformer."""

  vocab_size: int
  width: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_width: int  # of one expert, in a mixture of experts
  norm_eps: float
  max_length: int  # positions the model was made for
  tied: bool  # the head is the transposed embedding
  layers: tuple[Layer, ...]
  family: str = "llama"  # model_type in config.json
  norms: str = "pre"  # of each sublayer: its input (pre), output (post) or both
  norm_plus_one: bool = False  # norms multiply by 1 + scale
  norm_float32: bool = False  # norms multiply before they round to the dtype
  qk_norm: str = "none"  # none, each "head", or "all" heads as one vector
  value_norm: bool = False  # values of a head are normalized, without a scale
  key_is_value: bool = False  # see GlobalAttention
  qkv_bias: bool = False
  out_bias: bool = False  # of the projection behind attention
  mlp_bias: bool = False
  activation: str = "silu"  # or gelu_tanh
  embed_scale: float = 1.0  # of embeddings before the first layer
  query_scale: float | None = None  # of scores; None is head_dim ** -0.5
  attn_softcap: float | None = None  # scores are cap * tanh(scores / cap)
  final_softcap: float | None = None  # the same for the logits
  num_experts: int = 0  # 0 is a dense MLP
  experts_per_token: int = 0
  renormalize: bool = False  # the weights of a token's experts sum to 1
  # "gated" MLPs, or "clamped" ones with biases (gpt-oss); see moe.py.
  expert_form: str = "gated"
  swiglu_alpha: float = 1.0  # of clamped experts
  swiglu_limit: float = math.inf
  sinks: bool = False  # a score for each head that stands for no key
  # Outputs of heads are multiplied by sigmoid(gate), a part of their query's
  # projection.
  attn_gate: bool = False
  delta: DeltaNet | None = None  # of linear layers
  global_attn: GlobalAttention | None = None
  # Outputs of a block are multiplied by a number, which is not trained.
  layer_scalar: bool = False
  shared_width: int = 0  # of an MLP beside the experts; 0 is none

  @property
  def num_layers(self) -> int:
    """Returns L."""
    return len(self.layers)

  @property
  def score_scale(self) -> float:
    """Returns the factor of attention scores before their softmax."""
    scale = self.query_scale
    return self.head_dim**-0.5 if scale is None else scale

  @property
  def attending(self) -> tuple[Layer, ...]:
    """Returns the layers that have attention, all but the linear ones."""
    return tuple(layer for layer in self.layers if not layer.linear)

  @property
  def period(self) -> int:
    """Returns after how many layers their mixers repeat."""
    kinds = [layer.mixer for layer in self.layers]
    return next(
      n
      for n in range(1, len(kinds) + 1)
      if len(kinds) % n == 0 and kinds == kinds[:n] * (len(kinds) // n)
    )

  def layers_of(self, name: str) -> tuple[int, ...]:
    """Lists the layers that have a part of a block, such as "attn/q".

    So a parameter that is stacked has one entry for each of them.
    """
    part = name.split("/")[0]
    return tuple(
      i
      for i, layer in enumerate(self.layers)
      if part not in MIXERS or layer.mixer == part
    )

  @property
  def mixers(self) -> tuple[str, ...]:
    """Returns the mixers that some layer has, in the order of MIXERS."""
    there = {layer.mixer for layer in self.layers}
    return tuple(x for x in MIXERS if x in there)

  def with_heads(self, mixer: str) -> "ModelConfig":
    """Returns the config with the heads of layers that have this mixer."""
    if mixer != "global_attn":
      return self
    assert self.global_attn is not None
    return dataclasses.replace(self, **dataclasses.asdict(self.global_attn))
