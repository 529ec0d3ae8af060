"""Turns messages into tokens and loss weights. Nothing else does.

A training row is prompt ids followed by completion ids. The prompt ids are
those that the sampler conditions on. The completion is encoded together with
the text of the prompt where that leaves the prompt's ids as they are, and by
itself where not. The trained positions are chosen here, by where the completion
lies, and never by comparing ids later.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from bct_jax.config import TemplateConfig
from bct_jax.data.template import Boundary, Template, TemplateError
from bct_jax.data.thoughts import FindStop, Reader, Reply
from bct_jax.data.tokenizer_files import read_tokenizer
from bct_jax.data.tokens import Tokens, mask_audit
from bct_jax.data.vocabulary import Vocabulary
from bct_jax.examples import Message

__all__ = ["Chat", "Tokens", "mask_audit"]

Part = Literal["answer", "thought", "both"]

# Any prompt does: it shows how the tokenizer treats text.
_SAMPLE: Message = {"role": "user", "content": "Yes. a 1"}


class Chat:
  """Renders messages with a tokenizer's chat template.

  A prompt is for an answer alone, or for a thought and an answer (`thinking`).

  Attributes:
    folder: the model folder.
    tokenizer: of transformers.
    end_of_turn: the id behind an assistant's answer.
    stop_ids: the ids that end a completion.
    pad: the id that fills rows; it is never read.
  """

  def __init__(
    self,
    folder: Path,
    vocab_size: int,
    config: TemplateConfig | None = None,
    required: bool = True,
  ):
    """Reads a tokenizer and checks that its template suits training.

    Args:
      folder: a Hugging Face model folder.
      vocab_size: V, ids that the model has embeddings for.
      config: how messages are rendered; None is by the tokenizer's template.
      required: whether the template must suit. Without it all that needs a
        template raises what is wrong with it.

    Raises:
      ValueError: the tokenizer has no template, or one whose prompt is not a
        prefix of its training text, or has more ids than the model.
    """
    self.folder = Path(folder)
    self.tokenizer = read_tokenizer(self.folder)
    self._vocabulary = Vocabulary(self.folder, self.tokenizer, vocab_size)
    # It stands behind all that is read, so any valid id will do.
    self.pad = 0
    self._template: Template | None = None
    self._boundary: Boundary | None = None
    self._turn_ids: frozenset[int] = frozenset()
    self._fault = ""
    self.stop_ids = self._vocabulary.ends
    self.end_of_turn = min(self.stop_ids, default=self.pad)
    self._reader = Reader(self._vocabulary, self.stop_ids)
    try:
      self._read_template(config or TemplateConfig())
    except TemplateError as e:
      if required:
        raise
      self._fault = str(e)

  def _read_template(self, config: TemplateConfig) -> None:
    """Finds out what the template puts around an answer."""
    template = Template(self.folder, self.tokenizer, config)
    self._template, vocabulary = template, self._vocabulary
    turns: list[Message] = [_SAMPLE, {"role": "assistant", "content": "Yes."}]
    sample = template.render([*turns, _SAMPLE])
    turn_ids = self.encode(sample)
    vocabulary.lossless = vocabulary.text(turn_ids) == sample
    self._boundary = template.find_boundary(self._begins_with_end)
    self.end_of_turn = self.encode(self._boundary.end)[0]
    self.stop_ids = vocabulary.ends | {self.end_of_turn}
    self._turn_ids = vocabulary.special_ids() & set(turn_ids)
    self._reader = Reader.make(
      vocabulary,
      self.stop_ids,
      self._boundary,
      self.prompt_text([_SAMPLE]),
      template.render([_SAMPLE]),
    )

  def _begins_with_end(self, text: str, declared: bool) -> bool:
    """Tells whether a special token begins a text; see find_boundary."""
    ids = self.encode(text) if text else []
    ends = self._vocabulary.ends
    valid = ends if declared else self._vocabulary.special_ids()
    return bool(ids) and ids[0] in valid

  @property
  def template(self) -> Template:
    """Returns the template; raises ValueError if there is none."""
    if self._template is None:
      raise ValueError(self._fault)
    return self._template

  @property
  def boundary(self) -> Boundary:
    """Returns what stands around an answer; raises ValueError if unfit."""
    if self._boundary is None or self._fault:
      raise ValueError(self._fault)
    return self._boundary

  def encode(self, text: str) -> list[int]:
    """Encodes text as it stands; see Vocabulary.encode."""
    return self._vocabulary.encode(text)

  def decode(
    self,
    ids: Sequence[int],
    stop: Sequence[str] = (),
    prefix: Sequence[int] = (),
  ) -> str:
    """Decodes a completion up to where it stops; see Reader.decode."""
    return self._reader.decode(ids, stop, prefix)

  def reply(
    self,
    ids: Sequence[int],
    stop: Sequence[str] = (),
    prefix: Sequence[int] = (),
    thinking: bool = False,
  ) -> Reply:
    """Reads a completion: its thought, and its answer up to where it stops.

    Args:
      ids, stop, prefix: see `Reader.decode`. Stop strings do not count in a
        thought.
      thinking: whether the prompt has room for a thought; else all of the
        completion is the answer.
    """
    if not thinking:
      return Reply("", self.decode(ids, stop, prefix))
    self._markers()
    return self._reader.reply(ids, stop)

  def find_stop(
    self, stop: Sequence[str], thinking: bool = False
  ) -> FindStop | None:
    """Returns a function that looks for stop strings; see Reader.find_stop."""
    return self._reader.find_stop(stop, thinking) if stop else None

  def render(self, messages: Sequence[Message], prompt: bool = True) -> str:
    """Renders messages as the template does, without a lead."""
    return self.template.render(messages, prompt)

  def prompt_text(
    self, messages: Sequence[Message], thinking: bool = False
  ) -> str:
    """Renders a prompt up to where the completion starts.

    Raises:
      ValueError: the last turn is not the user's; or a thought is wanted, and
        the template has no place for one.
    """
    if not messages or messages[-1]["role"] != "user":
      raise ValueError(f"a prompt must end with a user turn: {messages}")
    text, boundary = self.template.render(messages), self.boundary
    if thinking:
      self._markers()
      return text
    if not text.endswith(boundary.cut):
      raise ValueError(
        f"{self.folder}: {text[-60:]!r} does not end with {boundary.cut!r}"
      )
    return text.removesuffix(boundary.cut) + boundary.lead

  def _markers(self) -> tuple[str, str]:
    """Returns what stands around a thought; raises ValueError without."""
    if self.boundary.markers is None:
      raise ValueError(
        f"{self.folder}: with these model.template_options the chat template "
        "shows no place for a thought; change them, or set "
        "model.thought_markers to the texts before a thought and behind it"
      )
    return self.boundary.markers

  def prompt(
    self, messages: Sequence[Message], thinking: bool = False
  ) -> list[int]:
    """Encodes a prompt, whose ids the sampler continues.

    Args:
      messages: the last one is the user's.
      thinking: whether the completion begins with a thought.

    Raises:
      ValueError: see `prompt_text`; or BOS occurs twice.
    """
    return self._encode_prompt(self.prompt_text(messages, thinking))

  def _encode_prompt(self, text: str) -> list[int]:
    """Encodes the text of a prompt; raises ValueError if BOS occurs twice."""
    ids = self.encode(text)
    bos = self.tokenizer.bos_token_id
    # ChatML opens every turn by BOS: only a doubled one at the start is wrong.
    if bos is not None and ids[:2] == [bos, bos]:
      raise ValueError(f"two BOS tokens at the start of the prompt: {ids[:4]}")
    return ids

  def prompt_and_prefix(
    self, messages: Sequence[Message], thinking: bool = False
  ) -> tuple[list[int], list[int]]:
    """Encodes a prompt, and the prefix that its answer is made to begin with.

    The prefix is an assistant message at the end; without one it is empty. It
    is encoded as a completion is in training. A prefix that ends within a word,
    or in the space before one, leaves the model where training rarely put it.

    Returns:
      The ids of the prompt, and those of the prefix.

    Raises:
      ValueError: see `prompt`; or the prefix is empty, or ends the turn.
    """
    if not messages or messages[-1]["role"] != "assistant":
      return self.prompt(messages, thinking), []
    *before, last = messages
    text = self.prompt_text(before)
    prompt = self._encode_prompt(text)
    more = self.boundary.blank + last["content"]
    prefix = (
      self._vocabulary.extend(text, prompt, more) if last["content"] else []
    )
    if not prefix or self.stop_ids & set(prefix):
      raise ValueError(
        f"an answer cannot begin with {last['content']!r}: it must not be "
        "empty or hold the end of a turn"
      )
    return prompt, prefix

  def answer(self, messages: Sequence[Message], text: str) -> list[int]:
    """Encodes an answer and the end of its turn, as they follow a prompt."""
    prompt_text = self.prompt_text(messages)
    return self._answer(prompt_text, self.encode(prompt_text), text)

  def _answer(
    self, before: str, ids: Sequence[int], text: str, thinking: bool = False
  ) -> list[int]:
    """Encodes an answer behind a text with these ids, and the turn's end."""
    boundary = self.boundary
    blank = "" if thinking else boundary.blank  # markers have their own
    more = f"{blank}{text}{boundary.gap}"
    return [*self._vocabulary.extend(before, ids, more), self.end_of_turn]

  def example(
    self,
    messages: Sequence[Message],
    completion: str,
    thought: str | None = None,
    on: Part = "answer",
  ) -> Tokens:
    """Makes a training row: what is trained weighs 1.

    Args:
      messages: the prompt.
      completion: the answer.
      thought: what stands before it, where the prompt has room for one; "" is
        an empty thought. None is a prompt for an answer alone.
      on: the trained part. The end of the turn is the answer's, and the markers
        that the prompt does not have are the thought's.

    Raises:
      ValueError: the completion is empty, or holds the beginning or the end of
        a turn.
    """
    if not completion.strip():
      raise ValueError(
        f"empty completion for {messages[-1]['content']!r}: nothing to train on"
      )
    self._check_markup(completion)
    text = self.prompt_text(messages, thought is not None)
    before, thoughts = self._encode_prompt(text), []
    num_prompt = len(before)
    if thought is not None:
      self._check_markup(thought, "thought")
      block = thought.join(self._markers())
      thoughts = self._vocabulary.extend(text, before, block)
      text, before = text + block, [*before, *thoughts]
    answer = self._answer(text, before, completion, thought is not None)
    weights = (
      *(0.0,) * num_prompt,
      *(float(on != "answer"),) * len(thoughts),
      *(float(on != "thought"),) * len(answer),
    )
    return Tokens((*before, *answer), weights)

  def _check_markup(self, completion: str, what: str = "completion") -> None:
    """Raises ValueError if a completion holds what only templates write."""
    markup = (self.stop_ids | self._turn_ids) & set(self.encode(completion))
    if markup:
      token = self._vocabulary.token(min(markup))
      part = "end" if self.stop_ids & markup else "beginning"
      raise ValueError(
        f"the {what} {completion!r:.80} holds the {part} of a turn, "
        f"{token!r}: leave it out, the template adds it"
      )
    for marker in self.boundary.markers or ():
      if marker.strip() and marker.strip() in completion:
        raise ValueError(
          f"the {what} {completion!r:.80} holds {marker.strip()!r}, which "
          "begins or ends a thought: give the thought apart, as the message's "
          "reasoning_content"
        )

  @property
  def template_hash(self) -> str:
    """Returns a hash of the chat template and of the options given to it."""
    if self._template is None:
      return hashlib.sha256(b"").hexdigest()
    return self._template.hash

  @property
  def tokenizer_hash(self) -> str:
    """Returns a hash of the vocabulary: token, id and order."""
    return self._vocabulary.hash
