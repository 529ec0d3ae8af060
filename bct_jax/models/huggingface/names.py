"""Maps names of parameters here to names in Hugging Face checkpoints."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bct_jax.models.architecture import ModelConfig


class HfName(NamedTuple):
  """Says where a parameter is in a checkpoint.

  Attributes:
    template: the tensor's name, with a {} for each leading dimension that is
      stacked here: the layer, and the expert behind it.
    transposed: whether it is [out, in] there; here it is [in, out].
  """

  template: str
  transposed: bool

  @property
  def stacked(self) -> int:
    """Counts leading dimensions here that are separate tensors there."""
    return self.template.count("{}")


# Norms of a block. One name is of the MLP's input in some, and in others of the
# output of attention.
_NORMS = {
  "pre": {"attn_norm": "input", "mlp_norm": "post_attention"},
  "post": {
    "attn_post_norm": "post_attention",
    "mlp_post_norm": "post_feedforward",
  },
  "both": {
    "attn_norm": "input",
    "attn_post_norm": "post_attention",
    "mlp_norm": "pre_feedforward",
    "mlp_post_norm": "post_feedforward",
  },
}
# Parameters of a gated DeltaNet that are no linear layer.
_DELTANET = {"conv": "conv1d.weight", "a_log": "A_log", "dt_bias": "dt_bias"}


def hf_names(config: ModelConfig) -> dict[str, HfName]:
  """Maps the slash-joined name of every parameter to its HfName."""
  layer = "model.layers.{}."
  out = {
    "embed": HfName("model.embed_tokens.weight", False),
    "norm/scale": HfName("model.norm.weight", False),
  }
  if not config.tied:
    out["head"] = HfName("lm_head.weight", True)

  def linear(ours: str, theirs: str, bias: bool) -> None:
    out[f"layers/{ours}/kernel"] = HfName(f"{layer}{theirs}.weight", True)
    if bias:
      out[f"layers/{ours}/bias"] = HfName(f"{layer}{theirs}.bias", False)

  def norm(ours: str, theirs: str) -> None:
    out[f"layers/{ours}/scale"] = HfName(f"{layer}{theirs}.weight", False)

  for mixer in config.mixers:
    if mixer == "deltanet":
      continue
    for x in "qk" if config.with_heads(mixer).key_is_value else "qkv":
      linear(f"{mixer}/{x}", f"self_attn.{x}_proj", config.qkv_bias)
    linear(f"{mixer}/o", "self_attn.o_proj", config.out_bias)
    if config.qk_norm != "none":
      norm(f"{mixer}/q_norm", "self_attn.q_norm")
      norm(f"{mixer}/k_norm", "self_attn.k_norm")
  if config.layer_scalar:
    out["layers/scalar"] = HfName(f"{layer}layer_scalar", False)
  for ours, theirs in _NORMS[config.norms].items():
    norm(ours, f"{theirs}_layernorm")
  if config.delta:
    names = ("qkvz", "ba") if config.delta.fused else ("qkv", "z", "b", "a")
    for x in names:
      linear(f"deltanet/{x}", f"linear_attn.in_proj_{x}", False)
    linear("deltanet/out", "linear_attn.out_proj", False)
    norm("deltanet/norm", "linear_attn.norm")
    for ours, theirs in _DELTANET.items():
      name = HfName(f"{layer}linear_attn.{theirs}", False)
      out[f"layers/deltanet/{ours}"] = name
  if config.shared_width:
    for x in ("gate", "up", "down"):
      linear(f"shared/{x}", f"mlp.shared_expert.{x}_proj", False)
    linear("shared/weight", "mlp.shared_expert_gate", False)
  if config.sinks:
    out["layers/attn/sinks"] = HfName(f"{layer}self_attn.sinks", False)
  if config.expert_form == "clamped":
    return out | _clamped_experts(layer)
  if config.num_experts:
    out["layers/mlp/router"] = HfName(f"{layer}mlp.gate.weight", True)
  for x in ("gate", "up", "down"):
    if config.num_experts:
      expert = f"{layer}mlp.experts.{{}}.{x}_proj.weight"
      out[f"layers/mlp/{x}"] = HfName(expert, True)
    else:
      linear(f"mlp/{x}", f"mlp.{x}_proj", config.mlp_bias)
  return out


def _clamped_experts(layer: str) -> dict[str, HfName]:
  """Names the experts of gpt-oss, which a layer has in one tensor each."""
  out = {
    "router": HfName(f"{layer}mlp.router.weight", True),
    "router_bias": HfName(f"{layer}mlp.router.bias", False),
  }
  for x in ("gate_up", "down"):
    out[x] = HfName(f"{layer}mlp.experts.{x}_proj", False)
    out[f"{x}_bias"] = HfName(f"{layer}mlp.experts.{x}_proj_bias", False)
  return {f"layers/mlp/{x}": name for x, name in out.items()}


class Part(NamedTuple):
  """Describes one tensor of a checkpoint, as a part of a parameter.

  Attributes:
    name: in the checkpoint.
    leaf: slash-joined name of the parameter.
    index: of the tensor among the stacked entries (and experts) of the leaf.
    shape: in the checkpoint, so transposed where HfName says so.
  """

  name: str
  leaf: str
  index: tuple[int, ...]
  shape: tuple[int, ...]


def hf_parts(
  config: ModelConfig, shapes: Mapping[str, Sequence[int]]
) -> list[Part]:
  """Lists all tensors of a checkpoint: embedding, layer by layer, the rest.

  Args:
    config: the architecture.
    shapes: of every parameter here, by its slash-joined name.

  Raises:
    ValueError: a parameter has no name in a checkpoint.
  """
  names = hf_names(config)
  out: list[tuple[tuple[int, ...], Part]] = []
  for leaf, shape in shapes.items():
    if leaf not in names:
      raise ValueError(
        f"parameter {leaf} {tuple(shape)} has no name in a checkpoint of the "
        f"family {config.family}"
      )
    template, transposed = names[leaf]
    inner = tuple(shape[names[leaf].stacked :])
    inner = inner[::-1] if transposed else inner
    numbers = config.layers_of(leaf.removeprefix("layers/"))
    for at in itertools.product(*map(range, shape[: names[leaf].stacked])):
      if not at:
        order = (0,) if leaf == "embed" else (2,)
        out.append((order, Part(template, leaf, at, inner)))
        continue
      number = numbers[at[0]]
      name = template.format(number, *at[1:])
      out.append(((1, number), Part(name, leaf, at, inner)))
  return [part for _, part in sorted(out, key=lambda x: x[0])]


# Families of which some models have an image encoder.
_WITH_IMAGES = (
  *("gemma3_text", "mistral", "ministral3"),
  *("qwen3_5_text", "qwen3_5_moe_text", "gemma4_text", "gemma4_unified_text"),
)
# Families published with layers that predict further tokens.
_WITH_MORE_TOKENS = ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next")
# Prefixes in these models, as transformers writes them since version 4.52, and
# as it wrote them before.
_LANGUAGE = ("model.language_model.", "language_model.model.")
_HEADS = ("language_model.lm_head.",)
_LEFT_OUT = {
  "the image encoder": re.compile(
    r"^(model\.)?(vision_tower|multi_modal_projector|visual|embed_vision"
    r"|vision_embedder)\."
  ),
  "the audio encoder": re.compile(r"^(model\.)?(audio_tower|embed_audio)\."),
  "what predicts further tokens (mtp)": re.compile(r"^mtp\."),
}


def language_part(
  config: ModelConfig, names: Iterable[str]
) -> tuple[dict[str, str], dict[str, int]]:
  """Picks the language model's tensors of a checkpoint that may hold more.

  Args:
    config: the architecture of the language model.
    names: of all tensors of the checkpoint.

  Returns:
    The name that a tensor has in a checkpoint of the language model alone ->
    its name in this one; and how many tensors there are of what is left out.
  """
  if config.family not in (*_WITH_IMAGES, *_WITH_MORE_TOKENS):
    return {name: name for name in names}, {}
  out: dict[str, str] = {}
  left_out: dict[str, int] = {}
  for name in names:
    what = next((k for k, form in _LEFT_OUT.items() if form.match(name)), None)
    if what is not None:
      left_out[what] = left_out.get(what, 0) + 1
      continue
    plain = name
    for prefix in _LANGUAGE:
      if name.startswith(prefix):
        plain = "model." + name.removeprefix(prefix)
    for prefix in _HEADS:
      if name.startswith(prefix):
        plain = "lm_head." + name.removeprefix(prefix)
    out[plain] = name
  return out, left_out
