"""Makes a Llama of six million parameters to pretrain, and its tokenizer.

The weights are random, initialised as those of GPT-2 (Radford et al. 2019):
normal with deviation 0.02. For layers that add to the residual stream it is
divided by the root of their number. The tokenizer is a byte-level BPE of the
texts that the model will read.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from bct_jax.infra import whole_folder
from bct_jax.models.demo.tiny import TEMPLATE, llama_weights
from bct_jax.models.huggingface import files

# Raise when the content of the folder changes.
FORMAT = 1
NAME = f"base-small-v{FORMAT}"

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
VOCAB = 4096
SHAPE = {
  "layers": 6,
  "width": 256,
  "heads": 4,
  "kv_heads": 2,
  "head_dim": 64,
  "mlp": 768,
  "positions": 512,
}


def make_small(
  folder: Path, texts: Iterable[str], digest: str, seed: int
) -> Path:
  """Makes the untrained model's folder; a damaged one is made anew.

  Args:
    folder: to make.
    texts: what the tokenizer is made for.
    digest: hash of the texts.
    seed: of the weights.
  """
  key = {"model": NAME, "texts": digest, "seed": seed, "vocab": VOCAB, **SHAPE}

  def build(target: Path) -> None:
    tokenizer = make_tokenizer(texts)
    config = files.llama_config(
      **SHAPE,
      vocab=VOCAB,
      rope_theta=10_000.0,
      norm_eps=1e-5,
      tied=True,
      bos=SPECIALS.index("<|im_start|>"),
      eos=SPECIALS.index("<|im_end|>"),
      pad=SPECIALS.index("<|pad|>"),
    )
    files.write_model(target, config, _weights(config, seed))
    about = files.tokenizer_config(
      special=list(SPECIALS),
      bos="<|im_start|>",
      eos="<|im_end|>",
      pad="<|pad|>",
      unknown="<|endoftext|>",
      positions=SHAPE["positions"],
      template=TEMPLATE,
    )
    files.write_tokenizer(target, tokenizer, about)

  return whole_folder.ensure_folder(folder, key, build, replace=True)


def make_tokenizer(texts: Iterable[str]) -> tokenizers.Tokenizer:
  """Makes a byte-level BPE of VOCAB tokens; every digit is one token.

  Raises:
    ValueError: the texts have too few words for so many tokens.
  """
  split = tokenizers.pre_tokenizers
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  # The two are exported by name only at run time.
  tokenizer.pre_tokenizer = split.Sequence(
    [split.Digits(individual_digits=True), split.ByteLevel(False)]
  )
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=VOCAB,
    special_tokens=list(SPECIALS),
    initial_alphabet=split.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  size = tokenizer.get_vocab_size()
  if size != VOCAB:
    raise ValueError(
      f"the texts give a tokenizer of {size} tokens, {VOCAB} are needed: "
      "raise train.num_examples"
    )
  return tokenizer


def _weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
  """Draws weights as those of GPT-2, under Hugging Face names."""
  rng = np.random.default_rng(seed)
  # Two layers of a block, o_proj and down_proj, add to the residual stream.
  num_residual = 2 * config["num_hidden_layers"]

  def matrix(name: str, shape: tuple[int, int]) -> np.ndarray:
    adds = name.endswith(("o_proj", "down_proj"))
    deviation = 0.02 / math.sqrt(num_residual) if adds else 0.02
    return (deviation * rng.standard_normal(shape)).astype(np.float32)

  ones = np.ones(config["hidden_size"], np.float32)
  return llama_weights(config, matrix, lambda: ones)
