"""Encodes and decodes text with a tokenizer, and refuses what would be lost."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bct_jax.infra.files import read_object


class Vocabulary:
  """Wraps a tokenizer of a model with a number of embeddings.

  Attributes:
    tokenizer: of transformers.
    lossless: whether ids are checked to read back as their text.
    ends: the ids that the model folder declares to end a text.
  """

  def __init__(self, folder: Path, tokenizer: Any, size: int):
    """Checks that a tokenizer belongs to a model.

    Args:
      folder: of the model.
      tokenizer: of transformers.
      size: V, ids that the model has embeddings for.

    Raises:
      ValueError: ordinary tokens have no embedding.
    """
    self.folder, self.tokenizer, self._size = folder, tokenizer, size
    # Some tokenizers normalise ordinary text; then nothing can be compared.
    self.lossless = False
    self._check_size()
    self.ends = self._find_ends()

  def encode(self, text: str) -> list[int]:
    """Encodes text as it stands: no BOS is added, the template has its own.

    Raises:
      ValueError: the tokenizer has no ids for a part of the text. It would
        drop that part without a word, as small vocabularies do with control
        bytes. Or it has ids that the model has no embedding for.
    """
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
      raise ValueError(
        f"{self.folder}: {text[-60:]!r} has half of a surrogate pair, which no "
        "tokenizer encodes"
      )
    ids = list(self.tokenizer.encode(text, add_special_tokens=False))
    if ids and max(ids) >= self._size:
      raise ValueError(
        f"{self.folder}: the model has embeddings for {self._size} tokens, and "
        f"none for {self.token(max(ids))!r}, which is token {max(ids)}, in "
        f"{text[-60:]!r}"
      )
    if self.lossless and self.text(ids) != text:
      raise ValueError(
        f"{self.folder}: the tokenizer cannot represent {text!r}; it reads "
        f"back as {self.text(ids)!r}"
      )
    return ids

  def extend(self, before: str, ids: Sequence[int], text: str) -> list[int]:
    """Encodes a text behind another one.

    Args:
      before: the other text.
      ids: of `before`.
      text: what follows it.

    Returns:
      The ids of both texts together behind `ids`, if they begin with `ids`;
      else those of `text` by itself.
    """
    joint = self.encode(before + text)
    if joint[: len(ids)] == list(ids):
      return joint[len(ids) :]
    return self.encode(text)

  def text(self, ids: Sequence[int]) -> str:
    """Decodes ids. Special tokens stay visible: the model generated them."""
    return self.tokenizer.decode(
      list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )

  def token(self, token_id: int) -> str:
    """Returns the name of a token."""
    return self.tokenizer.convert_ids_to_tokens(token_id)

  def special_ids(self) -> frozenset[int]:
    """Returns the ids of special and of added tokens that are no blanks.

    Gemma has added tokens for line breaks, which any text may hold.
    """
    added = self.tokenizer.get_added_vocab().values()
    ids = {*self.tokenizer.all_special_ids, *added}
    return frozenset(i for i in ids if self.text([i]).strip())

  @property
  def hash(self) -> str:
    """Returns a hash of the vocabulary: token, id and order."""
    vocab = sorted(self.tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocab).encode()).hexdigest()

  def _check_size(self) -> None:
    """Raises ValueError if ordinary tokens have no embedding.

    Added tokens may have none, as long as no text holds them: Gemma 3 1B has
    one for images.
    """
    added = self.tokenizer.get_added_vocab()
    vocab = self.tokenizer.get_vocab()
    highest = max((i for t, i in vocab.items() if t not in added), default=0)
    if highest >= self._size:
      raise ValueError(
        f"{self.folder}: the tokenizer has {len(self.tokenizer)} tokens, the "
        f"model has embeddings for {self._size}: they do not belong together"
      )

  def _find_ends(self) -> frozenset[int]:
    """Collects EOS and the ids of generation_config.json.

    Without that file config.json has them, as for transformers.
    """
    ids = {self.tokenizer.eos_token_id} - {None}
    for name in ("generation_config.json", "config.json"):
      path = self.folder / name
      if not path.exists():
        continue
      raw = read_object(path)
      eos = raw.get("eos_token_id")
      if eos is None:
        part = raw.get("text_config")
        eos = part.get("eos_token_id") if isinstance(part, dict) else None
      listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
      if not all(type(i) is int for i in listed):
        raise ValueError(f"{path}: eos_token_id = {eos!r}: must be token ids")
      return frozenset(ids | set(listed))
    return frozenset(ids)
