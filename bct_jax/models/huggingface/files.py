"""Writes the files of a Hugging Face model folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from bct_jax.infra.whole_folder import write_json
from bct_jax.models.huggingface import safetensors_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def no_weights(folder: Path) -> str:
  """Says why a folder without model.safetensors is not read, and a way out."""
  text = f"{folder}: neither {WEIGHTS} nor {INDEX}"
  patterns = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
  pickles = sorted(p.name for x in patterns for p in folder.glob(x))
  if not pickles:
    return text
  return (
    f"{text}, but {', '.join(pickles[:3])}: pickled weights can run any code "
    "when they are opened and are not read. If you trust them, convert them "
    "where torch is installed: "
    'python -c "from transformers import AutoModelForCausalLM as M, '
    f"AutoTokenizer as T; a, b = '{folder}', '{folder}-safetensors'; "
    "M.from_pretrained(a, dtype='auto').save_pretrained(b); "
    'T.from_pretrained(a).save_pretrained(b)"'
  )


def llama_config(
  *,
  layers: int,
  width: int,
  mlp: int,
  heads: int,
  kv_heads: int,
  head_dim: int,
  vocab: int,
  positions: int,
  rope_theta: float,
  norm_eps: float,
  tied: bool,
  bos: int,
  eos: int,
  pad: int,
) -> dict[str, Any]:
  """Makes the config.json of a Llama, in the words of transformers 5."""
  return {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": bos,
    "dtype": "float32",
    "eos_token_id": eos,
    "head_dim": head_dim,
    "hidden_act": "silu",
    "hidden_size": width,
    "initializer_range": 0.02,
    "intermediate_size": mlp,
    "max_position_embeddings": positions,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": heads,
    "num_hidden_layers": layers,
    "num_key_value_heads": kv_heads,
    "pad_token_id": pad,
    "pretraining_tp": 1,
    "rms_norm_eps": norm_eps,
    "rope_parameters": {"rope_theta": rope_theta, "rope_type": "default"},
    # Readers older than transformers 5 know only this spelling, and would take
    # 10000 without a word.
    "rope_theta": rope_theta,
    "tie_word_embeddings": tied,
    "use_cache": True,
    "vocab_size": vocab,
  }


def write_model(
  folder: Path, config: Mapping[str, Any], weights: dict[str, np.ndarray]
) -> None:
  """Writes config.json, generation_config.json and model.safetensors."""
  write_json(folder / "config.json", config)
  stops = {
    name: config[name]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id")
  }
  write_json(folder / "generation_config.json", stops)
  safetensors_file.write_whole(folder / WEIGHTS, weights)


def tokenizer_config(
  *,
  special: list[str],
  bos: str,
  eos: str,
  pad: str,
  unknown: str,
  positions: int,
  template: str,
) -> dict[str, Any]:
  """Makes the tokenizer_config.json of a tokenizer.

  tokenizer.json must describe the tokenizer fully. The class must be the
  generic one: GPT2Tokenizer and LlamaTokenizer replace the pre-tokenizer of
  tokenizer.json by their own.
  """
  return {
    "additional_special_tokens": special,
    "bos_token": bos,
    "chat_template": template,
    "clean_up_tokenization_spaces": False,
    "eos_token": eos,
    "model_max_length": positions,
    "pad_token": pad,
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": unknown,
  }


def write_tokenizer(
  folder: Path, tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any]
) -> None:
  """Writes tokenizer.json and tokenizer_config.json.

  Args:
    folder: an existing folder.
    tokenizer: model and pre-tokenizer of a byte-level BPE. This function adds
      decoder and special tokens.
    config: from `tokenizer_config`.
  """
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.add_special_tokens(
    [
      tokenizers.AddedToken(token, special=True, normalized=False)
      for token in config["additional_special_tokens"]
    ]
  )
  tokenizer.save(str(folder / "tokenizer.json"))
  write_json(folder / "tokenizer_config.json", config)
