"""Messages to tokens and loss weights. The only place where this happens.

A training row is prompt ids followed by completion ids; the joined text is
never tokenised again, so the model is trained on exactly the ids that the
sampler will condition on. Which positions are trained is decided here, by where
the completion lies, and never by comparing ids later.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import AutoTokenizer

from bct_jax.examples import Message

# Any completion without markup does: it shows where the template puts it.
_PROBE = "Yes."


@dataclasses.dataclass(frozen=True)
class Tokens:
  """One training row before padding.

  `ids` is the prompt, the completion and the end-of-turn token; `weights` has
  the same length and says how much the loss counts predicting each id.
  """

  ids: tuple[int, ...]
  weights: tuple[float, ...]


class Chat:
  """Renders messages with a tokenizer's chat template.

  Raises:
    ValueError: the tokenizer has no template, or one whose prompt is not a
      prefix of its training text, or has more ids than the model.
  """

  def __init__(self, folder: Path, vocab_size: int):
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
    # Fills rows on the right of nothing that is read: any valid id will do.
    self.pad = 0

  def encode(self, text: str) -> list[int]:
    """Ids of text as it stands: no BOS is added, the template has its own.

    Raises:
      ValueError: the tokenizer has no ids for a part of the text and would
        drop it without a word, as small vocabularies do with control bytes.
    """
    ids = list(self.tokenizer.encode(text, add_special_tokens=False))
    if self._lossless and self._text(ids) != text:
      raise ValueError(
        f"{self.folder}: the tokenizer cannot represent {text!r}; it reads "
        f"back as {self._text(ids)!r}"
      )
    return ids

  def _text(self, ids: Sequence[int]) -> str:
    # Special tokens inside stay visible: they are part of what was generated.
    return self.tokenizer.decode(
      list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )

  def decode(
    self,
    ids: Sequence[int],
    stop: Sequence[str] = (),
    prefix: Sequence[int] = (),
  ) -> str:
    """Text of a completion, without a stop id at its end, and up to the first
    of the strings in `stop`. It begins with that of `prefix`, where no stop
    string counts."""
    ids = list(ids)
    if ids and ids[-1] in self.stop_ids:
      ids = ids[:-1]
    start = len(self._text(prefix)) if prefix else 0
    text = self._text([*prefix, *ids])
    found = [text.find(s, start) for s in stop if s in text[start:]]
    return text[: min(found)] if found else text

  def find_stop(
    self, stop: Sequence[str]
  ) -> Callable[[Sequence[int]], int | None] | None:
    """For the sampler: after how many ids a text has one of the strings.

    A string may begin within one token and end within another.
    """
    if not stop:
      return None

    def has(ids: Sequence[int]) -> bool:
      text = self._text(ids)
      return any(s in text for s in stop)

    def find(ids: Sequence[int]) -> int | None:
      if not has(ids):
        return None
      return next(n for n in range(1, len(ids) + 1) if has(ids[:n]))

    return find

  def render(self, messages: Sequence[Message], prompt: bool = True) -> str:
    """The template's text; with `prompt`, up to where the answer starts."""
    return self.tokenizer.apply_chat_template(
      [dict(m) for m in messages], tokenize=False, add_generation_prompt=prompt
    )

  def prompt(self, messages: Sequence[Message]) -> list[int]:
    """Ids the sampler continues.

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

  def continued(
    self, messages: Sequence[Message]
  ) -> tuple[list[int], list[int]]:
    """Ids of a prompt, and of how its answer is made to begin.

    The beginning is an assistant message at the end; without one it is empty.
    It is encoded by itself and its ids follow those of the prompt, as those of
    a completion do in training. What the model adds starts with a new token,
    so a beginning that ends within a word, or in the space before one, leaves
    it at a place where it has rarely been.

    Raises:
      ValueError: see `prompt`; or the beginning is empty, or ends the turn.
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
    """A training row: weight 1 on the completion and the end of the turn.

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
    """The token the template puts after an assistant's answer."""
    question: list[Message] = [{"role": "user", "content": "Is it?"}]
    answered: list[Message] = [
      *question,
      {"role": "assistant", "content": _PROBE},
    ]
    prompt = self.render(question)
    whole = self.render(answered, prompt=False)
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
    """End of turn, the tokenizer's EOS and those of generation_config.json."""
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
    return hashlib.sha256(self.tokenizer.chat_template.encode()).hexdigest()

  @property
  def tokenizer_hash(self) -> str:
    """Hash of the vocabulary: token, id and order."""
    vocab = sorted(self.tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocab).encode()).hexdigest()


def mask_audit(chat: Chat, rows: Sequence[Tokens], show: int = 3) -> str:
  """Shows which tokens are trained: ⟦trained⟧, everything else is context."""
  trained = sum(w > 0 for r in rows for w in r.weights)
  real = sum(len(r.ids) for r in rows)
  longest = max(len(r.ids) for r in rows)
  lines = [
    f"{len(rows)} rows, {real} real tokens, {trained} trained "
    f"({trained / real:.1%}), {len(rows) * longest - real} pad tokens if all "
    f"are padded to {longest}",
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
