"""Turns messages into tokens and loss weights. Nothing else does.

A training row is prompt ids followed by completion ids. The joined text is
never tokenised again, so the model is trained on exactly the ids that the
sampler will condition on. The trained positions are chosen here, by where the
completion lies, and never by comparing ids later.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from bct_jax.examples import Message

# Any completion without markup does: it shows where the template puts one.
_PROBE = "Yes."


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Holds one training row before padding.

  Attributes:
    ids: the prompt, the completion and the end-of-turn token.
    weights: how much the loss counts the prediction of each id.
  """

  ids: tuple[int, ...]
  weights: tuple[float, ...]


class Chat:
  """Renders messages with a tokenizer's chat template.

  Attributes:
    folder: the model folder.
    tokenizer: of transformers.
    end_of_turn: the id behind an assistant's answer.
    stop_ids: the ids that end a completion.
    pad: the id that fills rows; it is never read.
  """

  def __init__(self, folder: Path, vocab_size: int):
    """Reads a tokenizer and checks that its template suits training.

    Args:
      folder: a Hugging Face model folder.
      vocab_size: V, ids that the model has embeddings for.

    Raises:
      ValueError: the tokenizer has no template, or one whose prompt is not a
        prefix of its training text, or has more ids than the model.
    """
    # Slow to import, more so where torch is installed.
    from transformers import AutoTokenizer

    self.folder = Path(folder)
    try:
      self.tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as e:
      raise ValueError(f"{folder}: no readable tokenizer: {e}") from None
    if not self.tokenizer.chat_template:
      raise ValueError(f"{folder}: the tokenizer has no chat template")
    if len(self.tokenizer) > vocab_size:
      raise ValueError(
        f"{folder}: the tokenizer has {len(self.tokenizer)} tokens, the model "
        f"has embeddings for {vocab_size}: they do not belong together"
      )
    # Some tokenizers normalise ordinary text; then nothing can be compared.
    self._lossless = False
    sample = self.render([{"role": "user", "content": f"{_PROBE} a 1"}])
    self._lossless = self._text(self.encode(sample)) == sample
    self.end_of_turn = self._find_end_of_turn()
    self.stop_ids = self._find_stop_ids()
    # It stands behind all that is read, so any valid id will do.
    self.pad = 0

  def encode(self, text: str) -> list[int]:
    """Encodes text as it stands: no BOS is added, the template has its own.

    Raises:
      ValueError: the tokenizer has no ids for a part of the text. It would
        drop that part without a word, as small vocabularies do with control
        bytes.
    """
    ids = list(self.tokenizer.encode(text, add_special_tokens=False))
    if self._lossless and self._text(ids) != text:
      raise ValueError(
        f"{self.folder}: the tokenizer cannot represent {text!r}; it reads "
        f"back as {self._text(ids)!r}"
      )
    return ids

  def _text(self, ids: Sequence[int]) -> str:
    """Decodes ids. Special tokens stay visible: the model generated them."""
    return self.tokenizer.decode(
      list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )

  def decode(
    self,
    ids: Sequence[int],
    stop: Sequence[str] = (),
    prefix: Sequence[int] = (),
  ) -> str:
    """Decodes a completion up to where it stops.

    Args:
      ids: of the completion; a stop id at their end is left out.
      stop: the text is cut before the first of these strings.
      prefix: ids that the answer was made to begin with. Their text stands
        first, and stop strings do not count in it.
    """
    ids = list(ids)
    if ids and ids[-1] in self.stop_ids:
      ids = ids[:-1]
    start = len(self._text(prefix)) if prefix else 0
    text = self._text([*prefix, *ids])
    ends = [text.find(s, start) for s in stop if s in text[start:]]
    return text[: min(ends)] if ends else text

  def find_stop(
    self, stop: Sequence[str]
  ) -> Callable[[Sequence[int]], int | None] | None:
    """Returns a function with which the sampler looks for stop strings.

    The function takes the ids so far. It returns the least number of them whose
    text has one of the strings, or None. A string may begin within one token
    and end within another.

    Args:
      stop: the strings; without any there is no function.
    """
    if not stop:
      return None

    def has_stop(ids: Sequence[int]) -> bool:
      text = self._text(ids)
      return any(s in text for s in stop)

    def find(ids: Sequence[int]) -> int | None:
      if not has_stop(ids):
        return None
      return next(n for n in range(1, len(ids) + 1) if has_stop(ids[:n]))

    return find

  def render(self, messages: Sequence[Message], prompt: bool = True) -> str:
    """Renders messages; with `prompt`, up to where the answer starts."""
    return self.tokenizer.apply_chat_template(
      [dict(m) for m in messages], tokenize=False, add_generation_prompt=prompt
    )

  def prompt(self, messages: Sequence[Message]) -> list[int]:
    """Encodes a prompt, whose ids the sampler continues.

    Raises:
      ValueError: the last turn is not the user's, or BOS occurs twice.
    """
    if not messages or messages[-1]["role"] != "user":
      raise ValueError(f"a prompt must end with a user turn: {messages}")
    ids = self.encode(self.render(messages))
    bos = self.tokenizer.bos_token_id
    # ChatML uses the BOS token to open every turn; only a doubled one at the
    # start is the known mistake.
    if bos is not None and ids[:2] == [bos, bos]:
      raise ValueError(f"two BOS tokens at the start of the prompt: {ids[:4]}")
    return ids

  def prompt_and_prefix(
    self, messages: Sequence[Message]
  ) -> tuple[list[int], list[int]]:
    """Encodes a prompt, and the prefix that its answer is made to begin with.

    The prefix is an assistant message at the end; without one it is empty. It
    is encoded by itself. Its ids follow those of the prompt, as those of a
    completion do in training. The model goes on with a new token. So a prefix
    that ends within a word, or in the space before one, leaves the model at a
    place where training rarely put it.

    Returns:
      The ids of the prompt, and those of the prefix.

    Raises:
      ValueError: see `prompt`; or the prefix is empty, or ends the turn.
    """
    if not messages or messages[-1]["role"] != "assistant":
      return self.prompt(messages), []
    *before, last = messages
    prefix = self.encode(last["content"])
    if not prefix or self.stop_ids & set(prefix):
      raise ValueError(
        f"an answer cannot begin with {last['content']!r}: it must not be "
        "empty or hold the end of a turn"
      )
    return self.prompt(before), prefix

  def example(self, messages: Sequence[Message], completion: str) -> Tokens:
    """Makes a training row: the completion and the end of the turn weigh 1.

    Raises:
      ValueError: the completion is empty.
    """
    if not completion.strip():
      raise ValueError(
        f"empty completion for {messages[-1]['content']!r}: nothing to train on"
      )
    prompt = self.prompt(messages)
    answer = [*self.encode(completion), self.end_of_turn]
    return Tokens(
      ids=(*prompt, *answer),
      weights=(*(0.0,) * len(prompt), *(1.0,) * len(answer)),
    )

  def _find_end_of_turn(self) -> int:
    """Finds the token that the template puts after an assistant's answer.

    Raises:
      ValueError: the prompt is no prefix of the training text, or no special
        token ends an answer.
    """
    question: list[Message] = [{"role": "user", "content": "Is it?"}]
    dialogue: list[Message] = [
      *question,
      {"role": "assistant", "content": _PROBE},
    ]
    prompt = self.render(question)
    whole = self.render(dialogue, prompt=False)
    if not whole.startswith(prompt + _PROBE):
      at = len(os.path.commonprefix([prompt + _PROBE, whole]))
      raise ValueError(
        f"{self.folder}: the chat template's prompt is not a prefix of its "
        f"training text, they part at {prompt[at : at + 30]!r} against "
        f"{whole[at : at + 30]!r}; sampling would not see what was trained"
      )
    after = self.encode(whole[len(prompt + _PROBE) :])
    special = set(self.tokenizer.all_special_ids)
    special |= set(self.tokenizer.get_added_vocab().values())
    if not after or after[0] not in special:
      raise ValueError(
        f"{self.folder}: the chat template ends an answer with "
        f"{whole[len(prompt + _PROBE) :]!r}, which starts with no special "
        "token: the model could never learn to stop"
      )
    return after[0]

  def _find_stop_ids(self) -> frozenset[int]:
    """Collects end of turn, EOS and the ids of generation_config.json."""
    ids = {self.end_of_turn}
    if self.tokenizer.eos_token_id is not None:
      ids.add(self.tokenizer.eos_token_id)
    path = self.folder / "generation_config.json"
    if path.exists():
      eos = json.loads(path.read_text("utf-8")).get("eos_token_id")
      ids |= set(
        eos if isinstance(eos, list) else [eos] if eos is not None else []
      )
    return frozenset(ids)

  @property
  def template_hash(self) -> str:
    """Returns a hash of the chat template."""
    return hashlib.sha256(self.tokenizer.chat_template.encode()).hexdigest()

  @property
  def tokenizer_hash(self) -> str:
    """Returns a hash of the vocabulary: token, id and order."""
    vocab = sorted(self.tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocab).encode()).hexdigest()


def mask_audit(chat: Chat, rows: Sequence[Tokens], show: int = 3) -> str:
  """Renders rows as text, trained tokens as ⟦token⟧, others as they are.

  Args:
    chat: for its tokenizer.
    rows: of a data set.
    show: how many rows to render; the counts are of all.
  """
  num_trained = sum(w > 0 for r in rows for w in r.weights)
  num_real = sum(len(r.ids) for r in rows)
  longest = max(len(r.ids) for r in rows)
  lines = [
    f"{len(rows)} rows, {num_real} real tokens, {num_trained} trained "
    f"({num_trained / num_real:.1%}), {len(rows) * longest - num_real} pad "
    f"tokens if all are padded to {longest}",
    f"end of turn: {chat.tokenizer.convert_ids_to_tokens(chat.end_of_turn)!r} "
    f"({chat.end_of_turn}), sampler stops at {sorted(chat.stop_ids)}",
    "",
  ]
  for i, row in enumerate(rows[:show]):
    parts = []
    for token_id, weight in zip(row.ids, row.weights, strict=True):
      text = chat.tokenizer.decode([token_id])
      parts.append(f"⟦{text}⟧" if weight > 0 else text)
    lines += [f"--- row {i}", "".join(parts), ""]
  return "\n".join(lines)
