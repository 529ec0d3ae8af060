"""Renders messages by a chat template, and finds where an answer stands in it.

An assistant's turn has these parts, some of which may be empty:

  generation prompt | lead | thought | blank | answer | gap | end of turn

The template says what they are: it renders messages whose texts are known, and
`find_boundary` reads off what it puts between them.
"""

import dataclasses
import datetime
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bct_jax.config import TemplateConfig
from bct_jax.data.template_bound import find_excess
from bct_jax.examples import Message

# Texts without markup, by which the parts of a turn are found.
_QUESTION, _THOUGHT, _ANSWER = "Is it?", "Let me see now", "Yes."
# Names of the field of a thought, by the templates that read it.
_THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")
# A tag at the end of a text, such as <think>.
_OPEN_TAG = re.compile(r"<(\w+)>\s*\Z")
# An empty pair of tags: <think></think>, [THINK][/THINK], or as Gemma 4 has it,
# <|channel>thought<channel|>.
_EMPTY_TAGS = re.compile(
  r"(?P<open>\s*(?:<(?P<tag>\w+)>|\[(?P<word>\w+)\]|<\|(?P<pipe>\w+)>\w*))"
  r"(?P<inner>\s*)"
  r"(?P<close>(?:</(?P=tag)>|\[/(?P=word)\]|<(?P=pipe)\|>)\s*)\Z"
)
# The template `plain`, for base models. Their answers end with the EOS token.
_PLAIN = (
  "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}"
  "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}"
  "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
# Of strftime: those of days, and of the time, which is midnight.
_DIRECTIVES = (*"aAbBcdDeFGHIjmMpSTuUVwWxXyY", "-d", "-m")
# What `render` itself passes to a template.
_RESERVED = (
  "messages tools documents add_generation_prompt continue_final_message "
  "chat_template tokenize conversation"
).split()
# The way out where a template refuses a system message.
_NO_SYSTEM = (
  "the chat template refuses or drops a system message; set "
  "model.system_in_user=True to put its text before the first user turn, or "
  "leave out the system prompt"
)
_NEEDS_TOOLS = (
  "the chat template cannot be rendered without tools, which messages here do "
  "not have; set model.chat_template to a file with one that can"
)


class TemplateError(ValueError):
  """Is raised when a chat template fails, or does not suit training."""


@dataclasses.dataclass(frozen=True)
class Boundary:
  """Says what a template puts around an assistant's answer.

  Attributes:
    cut: what the generation prompt has at its end, and the text before an
      answer without a thought has not.
    lead: what that text has in its place. It belongs to the prompt.
    blank: whitespace before the answer. It belongs to the completion.
    gap: whitespace behind the answer, which belongs to the completion too.
    end: the text behind the gap, which starts with the end of the turn.
    markers: what stands before and behind a thought that follows the generation
      prompt; None where the template has no place for one.
  """

  cut: str
  lead: str
  blank: str
  gap: str
  end: str
  markers: tuple[str, str] | None


class Template:
  """Renders messages with a tokenizer's chat template, or a given one.

  Attributes:
    text: the template.
    date: the day that it prints, as YYYY-MM-DD.
    prints_date: whether it prints one.
  """

  def __init__(self, folder: Path, tokenizer: Any, options: TemplateConfig):
    """Finds the template.

    Args:
      folder: of the model, for messages.
      tokenizer: of transformers.
      options: of the config.

    Raises:
      TemplateError: there is none, or it does not read an option.
    """
    self._folder, self._tokenizer = folder, tokenizer
    self._options = options
    self.text = _find_text(folder, tokenizer, options.chat_template)
    if excess := find_excess(self.text):
      raise TemplateError(
        f"{folder}: the chat template {excess}; set model.chat_template to a "
        "file with another"
      )
    self.prints_date = "strftime_now" in self.text
    day = options.template_date or today()
    self.date = day
    self._dated_text = self.text
    if self.prints_date:
      self._dated_text = (
        _date_macro(datetime.date.fromisoformat(day)) + self.text
      )
    for name in options.template_options:
      if name in _RESERVED or not re.search(rf"\b{name}\b", self.text):
        raise TemplateError(
          f"model.template_options.{name}: the chat template of {folder} does "
          "not read it"
        )

  def render(self, messages: Sequence[Message], prompt: bool = True) -> str:
    """Renders messages; with `prompt`, up to where the answer starts.

    Raises:
      TemplateError: the template fails, or drops a system message.
    """
    arranged = self._arrange(messages)
    system = arranged[0]["role"] == "system"
    try:
      out = self.apply(arranged, prompt)
    except Exception as e:  # whatever the template's own code raises
      why = f"the chat template fails: {type(e).__name__}: {e}"
      if system and self._renders(arranged[1:], prompt):
        why = _NO_SYSTEM
      elif self._renders(arranged, prompt, tools=[]):
        why = _NEEDS_TOOLS
      raise TemplateError(f"{self._folder}: {_short(why)}") from None
    if system and arranged[0]["content"].strip() not in out:
      raise TemplateError(f"{self._folder}: {_NO_SYSTEM}")
    return out

  def facts(self) -> dict[str, Any]:
    """Collects what the template is given besides messages, without defaults.

    `date` is there if the template prints it.
    """
    options = self._options
    facts: dict[str, Any] = {
      "options": dict(options.template_options),
      "system_in_user": options.system_in_user,
      "thought_markers": list(options.thought_markers),
      "date": self.date if self.prints_date else None,
    }
    return {k: v for k, v in facts.items() if v}

  @property
  def hash(self) -> str:
    """Returns a hash of the template and of `facts`.

    Without any it is that of the text alone.
    """
    whole, facts = self.text, self.facts()
    if facts:
      whole = json.dumps([self.text, facts], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()

  def _arrange(
    self, messages: Sequence[Message]
  ) -> tuple[Mapping[str, Any], ...]:
    """Puts a system message into the first user turn, if the config says so."""
    messages = tuple(messages)
    if not self._options.system_in_user or messages[0]["role"] != "system":
      return messages
    system, *rest = messages
    if not rest or rest[0]["role"] != "user" or not system["content"]:
      return tuple(rest)
    text = f"{system['content']}\n\n{rest[0]['content']}"
    return ({**rest[0], "content": text}, *rest[1:])

  def apply(
    self, messages: Sequence[Mapping[str, Any]], prompt: bool, **more: Any
  ) -> str:
    """Renders messages by transformers, which raises what the template does."""
    return self._tokenizer.apply_chat_template(
      [dict(m) for m in messages],
      chat_template=self._dated_text,
      tokenize=False,
      add_generation_prompt=prompt,
      **self._options.template_options,
      **more,
    )

  def _renders(
    self, messages: Sequence[Mapping[str, Any]], prompt: bool, **more: Any
  ) -> bool:
    """Tells whether the template renders these messages."""
    try:
      return bool(self.apply(messages, prompt, **more))
    except Exception:  # as in `render`
      return False

  def find_boundary(self, ends: Callable[[str, bool], bool]) -> Boundary:
    """Finds what the template puts around an answer.

    Args:
      ends: tells whether a text starts with a special token; if its second
        argument is true, with one that the model declares to end its output.

    Raises:
      TemplateError: the generation prompt and the text before an answer differ
        by more than a thought, or nothing ends an answer.
    """
    question: Message = {"role": "user", "content": _QUESTION}
    answer: Message = {"role": "assistant", "content": _ANSWER}
    prompt = self.render([question])
    whole = self.render([question, answer], prompt=False)
    if _ANSWER not in whole or _QUESTION not in prompt:
      raise TemplateError(
        f"{self._folder}: the chat template does not print what a message "
        "says; it may want content that is not text"
      )
    head, _, tail = whole.rpartition(_ANSWER)
    markers = self._find_markers(question, prompt)
    cut, lead = self._find_lead(prompt, head, markers)
    empty = _EMPTY_TAGS.fullmatch(lead)
    if markers is None and empty:  # the template shows an empty thought alone
      lines = empty["inner"]
      half = len(lines) // 2
      markers = empty["open"] + lines[:half], lines[half:] + empty["close"]
    blank = "" if cut or lead.strip() else lead
    gap, end = _split_blank(tail)
    if not ends(end, False):
      # Some turns end where the next one begins (GLM).
      longer = self.render([question, answer, question], prompt=False)
      gap, end = _split_blank(longer.rpartition(_ANSWER)[2])
      if not ends(end, True):
        raise TemplateError(
          f"{self._folder}: the chat template ends an answer with {tail!r}, "
          "which starts with no special token: the model could never learn to "
          "stop"
        )
    return Boundary(cut, "" if blank else lead, blank, gap, end, markers)

  def _find_lead(
    self, prompt: str, head: str, markers: tuple[str, str] | None
  ) -> tuple[str, str]:
    """Compares the generation prompt with the text before an answer.

    Args:
      prompt: the generation prompt.
      head: what the template prints before the answer to the same question.
      markers: of a thought behind the prompt.

    Returns:
      `cut` and `lead`, see Boundary; whitespace counts as a lead.

    Raises:
      TemplateError: more than a thought makes the difference.
    """
    same = len(os.path.commonprefix([prompt, head]))
    cut, lead = prompt[same:], head[same:]
    if not cut:
      return cut, lead
    opens = markers is not None and not markers[0]
    if not lead and (not cut.strip() or _EMPTY_TAGS.fullmatch(cut)):
      return "", ""  # the template leaves it out of a finished turn
    if not lead and markers is not None and opens:
      return "", markers[1]  # the thought that the prompt opens is closed
    if opens and not cut.strip() and lead.startswith("</"):
      return cut, lead
    raise TemplateError(
      f"{self._folder}: the chat template's prompt is not a prefix of its "
      f"training text, they part at {prompt[same : same + 30]!r} against "
      f"{(head + _ANSWER)[same : same + 30]!r}; sampling would not see what "
      "was trained"
    )

  def _find_markers(
    self, question: Message, prompt: str
  ) -> tuple[str, str] | None:
    """Finds what stands before and behind a thought; see Boundary.markers."""
    if self._options.thought_markers:
      opening, closing = self._options.thought_markers
      if opening.strip() and prompt.rstrip().endswith(opening.strip()):
        opening = ""
      return opening, closing
    thought = dict.fromkeys(_THOUGHT_FIELDS, _THOUGHT)
    answer = {"role": "assistant", "content": _ANSWER, **thought}
    try:
      whole = self.apply([question, answer], prompt=False)
    except Exception:  # as in `render`: it has no place for a thought
      whole = ""
    before, found, behind = whole.partition(_THOUGHT)
    closing = behind.partition(_ANSWER)[0]
    if found and closing.strip() and before.startswith(prompt):
      return before[len(prompt) :], closing
    tag = _OPEN_TAG.search(prompt)
    if tag and f"</{tag[1]}>" in self.text:
      line = "\n" if prompt.endswith("\n") else ""
      return "", f"{line}</{tag[1]}>{2 * line}"
    return None


def today() -> str:
  """Returns the day as YYYY-MM-DD, by the clock and zone of the machine."""
  return datetime.date.today().isoformat()


def _find_text(folder: Path, tokenizer: Any, name: str | None) -> str:
  """Returns the template that is asked for, or else the tokenizer's own.

  Args:
    folder: of the model, for messages.
    tokenizer: of transformers. Of several templates its `default` is taken.
    name: model.chat_template.
  """
  if name == "plain":
    if not tokenizer.eos_token:
      raise TemplateError(
        f"{folder}: model.chat_template = 'plain' ends answers with the EOS "
        "token, which the tokenizer does not have"
      )
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer.encode("a")[:1] == [bos]
    return ("{{ bos_token }}" if adds_bos else "") + _PLAIN
  if name is not None:
    try:
      return Path(name).expanduser().read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
      raise TemplateError(f"model.chat_template = {name!r}: {e}") from None
  own = tokenizer.chat_template
  if isinstance(own, dict):
    if "default" not in own:
      raise TemplateError(
        f"{folder}: its chat templates are {sorted(own)}, none is 'default': "
        "set model.chat_template to a file with the one to use"
      )
    own = own["default"]
  if not own:
    raise TemplateError(
      f"{folder}: the tokenizer has no chat template: set model.chat_template "
      "to a file with one, or to 'plain' for a base model"
    )
  return own


def _date_macro(day: datetime.date) -> str:
  """Defines `strftime_now` for a template as a function of this day.

  transformers has one that asks the clock, and passes on no functions. The
  empty expression at the end keeps whitespace that the template begins with.
  """
  filters = "".join(
    f" | replace('%{c}', {day.strftime(f'%{c}')!r})" for c in _DIRECTIVES
  )
  return (
    f"{{% macro strftime_now(format) %}}{{{{ format{filters} }}}}"
    "{% endmacro %}{{ '' }}"
  )


def _split_blank(text: str) -> tuple[str, str]:
  """Splits whitespace off the beginning of a text."""
  rest = text.lstrip()
  return text[: len(text) - len(rest)], rest


def _short(text: str) -> str:
  """Puts a text on one line, cut where it is long."""
  line = " ".join(text.split())
  return line if len(line) <= 300 else f"{line[:297]}..."
