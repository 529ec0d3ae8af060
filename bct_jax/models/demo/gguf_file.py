"""Converts a GGUF file of a Llama model into a Hugging Face folder.

Weights become float32, which holds every dequantised value (scale * integer +
minimum, computed in float32) exactly where float16 and bfloat16 would round it
a second time.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import tqdm

from bct_jax.infra.whole_folder import ModelSourceError
from bct_jax.models.huggingface import files

# GGUF name -> Hugging Face name; {} is the layer.
_GLOBAL_NAMES = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
}
_LAYER_NAMES = {
  "attn_norm.weight": "model.layers.{}.input_layernorm.weight",
  "attn_q.weight": "model.layers.{}.self_attn.q_proj.weight",
  "attn_k.weight": "model.layers.{}.self_attn.k_proj.weight",
  "attn_v.weight": "model.layers.{}.self_attn.v_proj.weight",
  "attn_output.weight": "model.layers.{}.self_attn.o_proj.weight",
  "ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
  "ffn_gate.weight": "model.layers.{}.mlp.gate_proj.weight",
  "ffn_up.weight": "model.layers.{}.mlp.up_proj.weight",
  "ffn_down.weight": "model.layers.{}.mlp.down_proj.weight",
}


def import_gguf() -> Any:
  """Imports the package gguf, an extra that only this module needs."""
  try:
    import gguf
  except ImportError as error:
    raise ModelSourceError(
      "the demo model is read with the package gguf, which is not installed: "
      "pip install 'bct_jax[demo]'"
    ) from error
  return gguf


def convert(path: Path, folder: Path) -> None:
  """Writes a Llama GGUF file with tied head as a Hugging Face folder.

  Args:
    path: architecture llama, tokenizer gpt2 with pre-tokenizer smollm.
    folder: an existing folder.

  Raises:
    ModelSourceError: the file is of another kind, or lacks a tensor.
  """
  reader = import_gguf().GGUFReader(path)
  facts = {name: field.contents() for name, field in reader.fields.items()}
  for name, expected in (
    ("general.architecture", "llama"),
    ("tokenizer.ggml.model", "gpt2"),
    ("tokenizer.ggml.pre", "smollm"),
    ("tokenizer.ggml.add_bos_token", False),
  ):
    if facts.get(name) != expected:
      raise ModelSourceError(
        f"{path}: {name} is {facts.get(name)!r}, only {expected!r} can be "
        "converted"
      )
  config = _gguf_config(facts)
  tokenizer, tokenizer_config = _gguf_tokenizer(facts)
  files.write_model(folder, config, _gguf_weights(path, reader, config))
  files.write_tokenizer(folder, tokenizer, tokenizer_config)


def _gguf_config(facts: Mapping[str, Any]) -> dict[str, Any]:
  """Makes the config.json of a Llama from GGUF metadata."""
  return files.llama_config(
    layers=facts["llama.block_count"],
    width=facts["llama.embedding_length"],
    mlp=facts["llama.feed_forward_length"],
    heads=facts["llama.attention.head_count"],
    kv_heads=facts["llama.attention.head_count_kv"],
    head_dim=facts["llama.rope.dimension_count"],
    vocab=facts["llama.vocab_size"],
    positions=facts["llama.context_length"],
    rope_theta=_shortest(facts["llama.rope.freq_base"]),
    norm_eps=_shortest(facts["llama.attention.layer_norm_rms_epsilon"]),
    tied=True,
    bos=facts["tokenizer.ggml.bos_token_id"],
    eos=facts["tokenizer.ggml.eos_token_id"],
    pad=facts["tokenizer.ggml.padding_token_id"],
  )


def _shortest(value: float) -> float:
  """Returns the number that was meant by a float32, as GGUF stores it.

  It is the one with the fewest digits: 1e-05 for 9.999999747378752e-06.
  """
  return float(str(np.float32(value)))


def _gguf_weights(
  path: Path, reader: Any, config: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Reads float32 weights under Hugging Face names; matrices are [out, in].

  Raises:
    ModelSourceError: a tensor is unknown or missing.
  """
  dequantize = import_gguf().quants.dequantize
  heads = {
    "attn_q.weight": config["num_attention_heads"],
    "attn_k.weight": config["num_key_value_heads"],
  }
  weights = {}
  bar = tqdm.tqdm(
    reader.tensors, "converting weights", disable=None, leave=False
  )
  for tensor in bar:
    layer, kind = 0, tensor.name
    if match := re.fullmatch(r"blk\.(\d+)\.(.+)", tensor.name):
      layer, kind = int(match[1]), match[2]
    pattern = _LAYER_NAMES.get(kind) or _GLOBAL_NAMES.get(kind)
    if pattern is None:
      raise ModelSourceError(f"{path}: unknown {tensor.name}")
    value = dequantize(tensor.data, tensor.tensor_type)
    if kind in heads:
      value = unpermute(value, heads[kind])
    # Copied, as a float32 tensor is a view of the file, which is deleted.
    weights[pattern.format(layer)] = np.array(value, np.float32, order="C")
  layers = config["num_hidden_layers"]
  expected = set(_GLOBAL_NAMES.values())
  for pattern in _LAYER_NAMES.values():
    expected |= {pattern.format(layer) for layer in range(layers)}
  if odd := expected ^ weights.keys():
    raise ModelSourceError(f"{path}: not as expected: {odd}")
  return weights


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
  """Puts the rows of a q or k projection back in the order of Hugging Face.

  GGUF stores each head with the two halves that RoPE rotates together
  interleaved, [H/2, 2]; Hugging Face keeps them apart, [2, H/2].

  Args:
    weight: [N * H, D].
    heads: N, the number of query or key heads.
  """
  rows, width = weight.shape
  split = weight.reshape(heads, rows // heads // 2, 2, width)
  return split.swapaxes(1, 2).reshape(rows, width)


def _gguf_tokenizer(
  facts: Mapping[str, Any],
) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
  """Makes the tokenizer "smollm": byte-level BPE, with digits split apart.

  A few bytes, most control characters, have no token. The tokenizer leaves them
  out, like the original.

  Returns:
    The tokenizer and its tokenizer_config.json.
  """
  tokens = facts["tokenizer.ggml.tokens"]
  special = [
    token
    for token, kind in zip(
      tokens, facts["tokenizer.ggml.token_type"], strict=True
    )
    if kind == 3
  ]
  merges = [tuple(pair.split(" ")) for pair in facts["tokenizer.ggml.merges"]]
  vocab = {token: index for index, token in enumerate(tokens)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Digits(individual_digits=True),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  config = files.tokenizer_config(
    special=special,
    bos=tokens[facts["tokenizer.ggml.bos_token_id"]],
    eos=tokens[facts["tokenizer.ggml.eos_token_id"]],
    pad=tokens[facts["tokenizer.ggml.padding_token_id"]],
    unknown=tokens[facts["tokenizer.ggml.unknown_token_id"]],
    positions=facts["llama.context_length"],
    template=facts["tokenizer.chat_template"],
  )
  return tokenizer, config
