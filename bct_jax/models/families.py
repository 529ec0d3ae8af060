"""Describes how the config.json of each model family is read."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

# Fields of any config.json that do not change the forward pass of a decoder.
HARMLESS = frozenset(
  """
  _attn_implementation_autoset _name_or_path architectures attention_dropout
  bos_token_id cache_implementation dtype eos_token_id initializer_range
  is_llama_config model_type output_router_logits pad_token_id
  router_aux_loss_coef torch_dtype transformers.js_config transformers_version
  unsloth_fixed unsloth_version use_cache
  """.split()
)
# How transformers generated, before it had files of their own for that.
HARMLESS |= frozenset(
  """
  bad_words_ids begin_suppress_tokens chunk_size_feed_forward
  decoder_start_token_id diversity_penalty do_sample early_stopping
  encoder_no_repeat_ngram_size exponential_decay_length_penalty
  forced_bos_token_id forced_eos_token_id
  id2label label2id length_penalty max_length max_new_tokens min_length
  no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
  output_attentions output_hidden_states output_scores prefix problem_type
  remove_invalid_values repetition_penalty return_dict
  return_dict_in_generate sep_token_id suppress_tokens task_specific_params
  temperature tokenizer_class top_k top_p torchscript typical_p
  """.split()
)
# Fields that all families share, read by config.py.
COMMON = frozenset(
  """
  head_dim hidden_act hidden_size intermediate_size max_position_embeddings
  num_attention_heads num_hidden_layers num_key_value_heads rms_norm_eps
  rope_parameters rope_scaling rope_theta tie_word_embeddings vocab_size
  """.split()
)

# A function takes a configuration of transformers, and returns the fields of
# ModelConfig in which its family differs from Llama without biases.


def _biases(hf: Any) -> dict[str, Any]:
  """Reads whether all four projections of attention have a bias."""
  bias = bool(hf.attention_bias)
  return {"qkv_bias": bias, "out_bias": bias}


def _llama(hf: Any) -> dict[str, Any]:
  """Reads the flags of Llama (arXiv 2407.21783) and SmolLM3."""
  return {**_biases(hf), "mlp_bias": bool(hf.mlp_bias)}


def _qwen3(hf: Any) -> dict[str, Any]:
  """Reads the flags of Qwen3 (arXiv 2505.09388)."""
  return {**_biases(hf), "qk_norm": "head"}


def _qwen3_moe(hf: Any) -> dict[str, Any]:
  """Reads the flags of Qwen3's mixtures of experts."""
  return {
    **_qwen3(hf),
    "mlp_width": hf.moe_intermediate_size,
    "num_experts": hf.num_experts,
    "experts_per_token": hf.num_experts_per_tok,
    "renormalize": bool(hf.norm_topk_prob),
  }


def _qwen3_5(hf: Any) -> dict[str, Any]:
  """Reads the flags of Qwen3.5 to 3.8; of every fourth layer, the others have
  linear attention."""
  return {**_qwen3(hf), "norm_plus_one": True, "attn_gate": True}


def _qwen3_5_moe(hf: Any) -> dict[str, Any]:
  """Reads the flags of mixtures of Qwen3-Next and Qwen3.5.

  The former may leave the weights of experts as they are.
  """
  return {
    **_qwen3_5(hf),
    "mlp_width": hf.moe_intermediate_size,
    "num_experts": hf.num_experts,
    "experts_per_token": hf.num_experts_per_tok,
    "renormalize": bool(getattr(hf, "norm_topk_prob", True)),
    "shared_width": hf.shared_expert_intermediate_size,
  }


def _gpt_oss(hf: Any) -> dict[str, Any]:
  """Reads the flags of gpt-oss (arXiv 2508.10925).

  Its weights of experts are the softmax of the highest scores. That is the
  softmax of all, made to sum to 1 again.
  """
  return {
    **_biases(hf),
    "sinks": True,
    "num_experts": hf.num_local_experts,
    "experts_per_token": hf.num_experts_per_tok,
    "renormalize": True,
    "expert_form": "clamped",
    "swiglu_alpha": hf.swiglu_alpha,
    "swiglu_limit": hf.swiglu_limit,
  }


def _olmo2(hf: Any) -> dict[str, Any]:
  """Reads the flags of OLMo 2 (arXiv 2501.00656) and OLMo 3 (2512.13961)."""
  return {
    **_biases(hf),
    "qk_norm": "all",
    "norms": "post",
  }


def _gemma(hf: Any) -> dict[str, Any]:
  """Reads the flags that Gemma 2 to 4 share."""
  return {
    **_biases(hf),
    "norms": "both",
    "embed_scale": hf.hidden_size**0.5,
    "final_softcap": hf.final_logit_softcapping,
  }


def _gemma2(hf: Any) -> dict[str, Any]:
  """Reads the flags of Gemma 2 (arXiv 2408.00118)."""
  return {
    **_gemma(hf),
    "norm_plus_one": True,
    "query_scale": hf.query_pre_attn_scalar**-0.5,
    "attn_softcap": hf.attn_logit_softcapping,
  }


def _gemma3(hf: Any) -> dict[str, Any]:
  """Reads the flags of Gemma 3 (arXiv 2503.19786)."""
  return {**_gemma2(hf), "qk_norm": "head"}


def _gemma4(hf: Any) -> dict[str, Any]:
  """Reads the flags of the dense models of Gemma 4, as transformers has them.

  Queries and keys are normalized, and their scores not scaled.
  """
  return {
    **_gemma(hf),
    "norm_float32": True,
    "qk_norm": "head",
    "value_norm": True,
    "query_scale": 1.0,
    "layer_scalar": True,
  }


@dataclasses.dataclass(frozen=True)
class Family:
  """Describes how the config.json of a model family is read.

  Attributes:
    fields: names of its fields besides COMMON and HARMLESS, by spaces.
    only: field -> the values that are supported.
    flags: a configuration of transformers -> fields of ModelConfig.
    quantizations: forms of quantized weights that are read, as bfloat16.
    dense: whether a width of an MLP outside of experts is needed.
  """

  fields: str
  only: Mapping[str, Any]
  flags: Callable[[Any], dict[str, Any]]
  quantizations: tuple[str, ...] = ()
  dense: bool = True


_WINDOWS = "sliding_window layer_types"
_QWEN = f"{_WINDOWS} use_sliding_window max_window_layers"
_GEMMA = (
  f"{_WINDOWS} attention_bias query_pre_attn_scalar hidden_activation "
  "attn_logit_softcapping final_logit_softcapping use_bidirectional_attention"
)
# Embeddings for each layer, keys of other layers and experts are not supported.
_GEMMA4 = (
  f"{_WINDOWS} attention_bias hidden_activation final_logit_softcapping "
  "use_bidirectional_attention global_head_dim num_global_key_value_heads "
  "per_layer_config attention_k_eq_v num_kv_shared_layers use_double_wide_mlp "
  "hidden_size_per_layer_input vocab_size_per_layer_input enable_moe_block "
  "num_experts top_k_experts moe_intermediate_size"
)
_GEMMA4_ONLY = {
  "use_bidirectional_attention": (None, "vision"),  # of tokens of images
  "num_kv_shared_layers": (0,),
  "use_double_wide_mlp": (False,),
  "hidden_size_per_layer_input": (0,),
  "enable_moe_block": (False,),
}
_MIXTURE = (
  "moe_intermediate_size num_experts num_local_experts num_experts_per_tok "
  "norm_topk_prob decoder_sparse_step mlp_only_layers"
)
_ALL_SPARSE = {"decoder_sparse_step": (1,), "mlp_only_layers": ([], None)}
# Of prediction of further tokens (mtp) no weights are read.
_HYBRID = (
  "layer_types full_attention_interval attention_bias attn_output_gate "
  "linear_conv_kernel_dim linear_key_head_dim linear_num_key_heads "
  "linear_num_value_heads linear_value_head_dim mamba_ssm_dtype "
  "mtp_num_hidden_layers mtp_use_dedicated_embeddings output_gate_type "
  "partial_rotary_factor unsloth_fixed_mtp"
)
_GATED = {
  "attn_output_gate": (True,),
  "mamba_ssm_dtype": ("float32",),
  "output_gate_type": ("swish",),
}
_CAUSAL = {"use_bidirectional_attention": (None, False)}
FAMILIES = {
  "llama": Family(
    "attention_bias mlp_bias pretraining_tp rope_interleaved",
    {"pretraining_tp": (1, None), "rope_interleaved": (False, None)},
    _llama,
  ),
  "mistral": Family("sliding_window", {}, lambda hf: {}),
  "ministral3": Family("sliding_window", {}, lambda hf: {}),
  "qwen2": Family(
    f"{_QWEN} use_mrope", {"use_mrope": (False,)}, lambda hf: {"qkv_bias": True}
  ),
  "qwen3": Family(f"{_QWEN} attention_bias", {}, _qwen3),
  "qwen3_moe": Family(
    f"{_QWEN} attention_bias {_MIXTURE}", _ALL_SPARSE, _qwen3_moe
  ),
  "qwen3_5_text": Family(
    f"{_HYBRID} mlp_only_layers", {**_GATED, **_ALL_SPARSE}, _qwen3_5
  ),
  "qwen3_5_moe_text": Family(
    f"{_HYBRID} {_MIXTURE} shared_expert_intermediate_size",
    {**_GATED, **_ALL_SPARSE, "norm_topk_prob": (True,)},
    _qwen3_5_moe,
    dense=False,
  ),
  "qwen3_next": Family(
    f"{_HYBRID} {_MIXTURE} shared_expert_intermediate_size",
    {**_GATED, **_ALL_SPARSE},
    _qwen3_5_moe,
    dense=False,
  ),
  "gemma2": Family(_GEMMA, _CAUSAL, _gemma2),
  "gemma3_text": Family(
    f"{_GEMMA} rope_local_base_freq sliding_window_pattern "
    "_sliding_window_pattern",
    _CAUSAL,
    _gemma3,
  ),
  "gemma4_text": Family(_GEMMA4, _GEMMA4_ONLY, _gemma4),
  "gemma4_unified_text": Family(_GEMMA4, _GEMMA4_ONLY, _gemma4),
  "smollm3": Family(
    f"{_WINDOWS} use_sliding_window max_window_layers no_rope_layers "
    "no_rope_layer_interval attention_bias mlp_bias pretraining_tp",
    {"pretraining_tp": (1, 2, None)},  # not used in its forward pass
    _llama,
  ),
  "olmo2": Family("attention_bias", {}, _olmo2),
  "gpt_oss": Family(
    f"{_WINDOWS} attention_bias num_local_experts num_experts "
    "num_experts_per_tok experts_per_token swiglu_alpha swiglu_limit "
    "initial_context_length quantization_config",
    {},
    _gpt_oss,
    ("mxfp4",),
  ),
  "olmo3": Family(f"{_WINDOWS} attention_bias", {}, _olmo2),
}
