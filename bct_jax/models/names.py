"""Names of parameters here and in Hugging Face checkpoints."""

from typing import NamedTuple

from bct_jax.models.config import ModelConfig


class HfName(NamedTuple):
  """Where a parameter is in a checkpoint.

  Attributes:
    template: the tensor's name with a {} for each leading dimension that is
      stacked here: the layer, and the expert behind it.
    transposed: stored as [out, in], while it is [in, out] here.
  """

  template: str
  transposed: bool

  @property
  def stacked(self) -> int:
    """Leading dimensions here that are separate tensors there."""
    return self.template.count("{}")


def hf_names(config: ModelConfig) -> dict[str, HfName]:
  """Slash-joined name of every parameter -> its place in a checkpoint."""
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

  for x in "qkv":
    linear(f"attn/{x}", f"self_attn.{x}_proj", config.qkv_bias)
  linear("attn/o", "self_attn.o_proj", config.out_bias)
  if config.qk_norm != "none":
    norm("attn/q_norm", "self_attn.q_norm")
    norm("attn/k_norm", "self_attn.k_norm")
  if config.norms == "pre":
    norm("attn_norm", "input_layernorm")
    norm("mlp_norm", "post_attention_layernorm")
  else:
    # The same word there as for what is a norm of the MLP's input elsewhere.
    norm("attn_post_norm", "post_attention_layernorm")
    norm("mlp_post_norm", "post_feedforward_layernorm")
  if config.norms == "both":
    norm("attn_norm", "input_layernorm")
    norm("mlp_norm", "pre_feedforward_layernorm")
  if config.num_experts:
    out["layers/mlp/router"] = HfName(f"{layer}mlp.gate.weight", True)
  for x in ("gate", "up", "down"):
    if config.num_experts:
      expert = f"{layer}mlp.experts.{{}}.{x}_proj.weight"
      out[f"layers/mlp/{x}"] = HfName(expert, True)
    else:
      linear(f"mlp/{x}", f"mlp.{x}_proj", config.mlp_bias)
  return out
