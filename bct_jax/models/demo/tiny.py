"""Makes a small random Llama folder with a byte-level tokenizer, for tests.

Like SmolLM2 it has ChatML turns, tied embeddings and (by default) a padding
token that is also the end of a turn. So code that confuses the two fails here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from bct_jax.infra import whole_folder
from bct_jax.models.huggingface import files

# Raise when the content of the folder changes: old ones are then not used.
FORMAT = 1

# SmolLM2's template without its default system prompt, which would cost the
# byte-level tokenizer of the tiny model 100 tokens per prompt.
TEMPLATE = (
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
  "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Eight, so that 256 bytes + these divide over any small mesh.
SPECIALS = (
  "<|endoftext|>",
  "<|im_start|>",
  "<|im_end|>",
  "<|pad|>",
  "<|reserved_0|>",
  "<|reserved_1|>",
  "<|reserved_2|>",
  "<|reserved_3|>",
)


def make_tiny(
  folder: str | Path,
  seed: int = 0,
  *,
  layers: int = 2,
  width: int = 64,
  heads: int = 4,
  kv_heads: int = 2,
  mlp: int = 128,
  positions: int = 2048,
  tied: bool = True,
  separate_pad: bool = False,
  replace: bool = False,
) -> Path:
  """Makes a small Llama with random weights and a byte-level tokenizer.

  Token ids are 8 special tokens, then byte b as 8 + b. The weights are larger
  than a fresh initialisation, so that a wrong layer shows in the logits.

  Args:
    folder: to make.
    seed: of the weights.
    layers, width, heads, kv_heads, mlp, positions: the shape.
    tied: whether the head is the embedding.
    separate_pad: pad with <|pad|>; else with <|im_end|>, the end of a turn, as
      SmolLM2 does.
    replace: delete and remake a folder that is damaged or made with other
      arguments, instead of raising.
  """
  arguments = {
    k: v for k, v in locals().items() if k not in ("folder", "replace")
  }

  def build(target: Path) -> None:
    _build(target, **arguments)

  key = {"model": "tiny", "format": FORMAT, **arguments}
  return whole_folder.ensure_folder(Path(folder), key, build, replace=replace)


def _build(folder, *, seed, separate_pad, **shape) -> None:
  """Writes the files of the folder; see `make_tiny`."""
  pad = SPECIALS[3 if separate_pad else 2]
  vocab = {token: index for index, token in enumerate(SPECIALS)}
  for byte, character in sorted(byte_characters().items()):
    vocab[character] = len(SPECIALS) + byte
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  tokenizer_config = files.tokenizer_config(
    special=list(SPECIALS),
    bos="<|im_start|>",
    eos="<|im_end|>",
    pad=pad,
    unknown="<|endoftext|>",
    positions=shape["positions"],
    template=TEMPLATE,
  )
  config = files.llama_config(
    **shape,
    head_dim=shape["width"] // shape["heads"],
    vocab=len(vocab),
    rope_theta=10_000.0,
    norm_eps=1e-5,
    bos=1,
    eos=2,
    pad=vocab[pad],
  )
  files.write_model(folder, config, _random_weights(config, seed))
  files.write_tokenizer(folder, tokenizer, tokenizer_config)


def byte_characters() -> dict[int, str]:
  """Returns the printable character that byte-level BPE has for each byte.

  As in GPT-2, printable bytes of Latin-1 stand for themselves. The others are
  numbered from U+0100 in order.
  """
  printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
  others = [byte for byte in range(256) if byte not in printable]
  characters = {byte: chr(byte) for byte in printable}
  characters |= {byte: chr(256 + i) for i, byte in enumerate(others)}
  return characters


def _random_weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
  """Draws weights of which no part is like another: omissions must show."""
  rng = np.random.default_rng(seed)

  def matrix(name: str, shape: tuple[int, int]) -> np.ndarray:
    del name
    value = rng.standard_normal(shape) / np.sqrt(shape[1])
    return value.astype(np.float32)

  def norm() -> np.ndarray:  # not all 1
    value = rng.standard_normal(config["hidden_size"])
    return (1 + 0.1 * value).astype(np.float32)

  return llama_weights(config, matrix, norm)


def llama_weights(
  config: dict[str, Any],
  matrix: Callable[[str, tuple[int, int]], np.ndarray],
  norm: Callable[[], np.ndarray],
) -> dict[str, np.ndarray]:
  """Makes the weights of a Llama under Hugging Face names.

  Args:
    config: its config.json.
    matrix: (name, such as self_attn.q_proj; shape [out, in]) -> a matrix.
    norm: makes the scale of a norm.
  """
  width, mlp = config["hidden_size"], config["intermediate_size"]
  queries = config["num_attention_heads"] * config["head_dim"]
  keys = config["num_key_value_heads"] * config["head_dim"]
  shapes = {
    "self_attn.q_proj": (queries, width),
    "self_attn.k_proj": (keys, width),
    "self_attn.v_proj": (keys, width),
    "self_attn.o_proj": (width, queries),
    "mlp.gate_proj": (mlp, width),
    "mlp.up_proj": (mlp, width),
    "mlp.down_proj": (width, mlp),
  }
  table = (config["vocab_size"], width)
  weights = {"model.embed_tokens.weight": matrix("embed_tokens", table)}
  for layer in range(config["num_hidden_layers"]):
    prefix = f"model.layers.{layer}."
    for name, shape in shapes.items():
      weights[f"{prefix}{name}.weight"] = matrix(name, shape)
    weights[f"{prefix}input_layernorm.weight"] = norm()
    weights[f"{prefix}post_attention_layernorm.weight"] = norm()
  weights["model.norm.weight"] = norm()
  if not config["tie_word_embeddings"]:
    weights["lm_head.weight"] = matrix("lm_head", table)
  return weights
