"""Provides lm-eval's model class over weights in memory."""

# The extra `eval` may not be installed.
# pyright: reportMissingImports=false

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jinja2
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from bct_jax.config import ConfigError
from bct_jax.infra.progress import log_line, stage
from bct_jax.interop.local_model import LocalModel, Request, check_options

# Generation options of a task that generate_until reads.
_READ = (
  "until do_sample temperature top_p top_k min_p seed max_gen_toks".split()
)


class LocalLM(TemplateLM):
  """Answers requests of lm-eval with a local model.

  Text is encoded as lm-eval's own Hugging Face class does: with the special
  tokens that the tokenizer adds by itself, unless the text begins with them.

  Args:
    model: that answers.
    truncate: whether a text that is too long for the model is cut from the
      left, as other classes do; else it is an error.
    title: what the stages of progress begin with.
    ended: called as requests end. If it raises, the run ends.
  """

  def __init__(
    self,
    model: LocalModel,
    truncate: bool = False,
    title: str = "",
    ended: Callable[[], None] = lambda: None,
  ):
    super().__init__()
    self.model, self.truncate = model, truncate
    self.title, self.ended = title, ended
    self.tokenizer = model.runtime.chat.tokenizer
    self.max_length = model.max_length

  @property
  def eot_token_id(self) -> int:
    """Returns the token that ends a text."""
    return self.tokenizer.eos_token_id

  @property
  def prefix_token_id(self) -> int:
    """Returns the token that a text without context is scored after."""
    bos = self.tokenizer.bos_token_id
    return self.eot_token_id if bos is None else bos

  @property
  def tokenizer_name(self) -> str:
    """Returns the name under which lm-eval caches rendered prompts."""
    chat = self.model.runtime.chat
    name = f"{chat.tokenizer_hash}{chat.template_hash}"
    return f"bct_jax-{utils.hash_string(name)[:16]}"

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
  ) -> list[int]:
    """Encodes a text, see the class for special tokens."""
    check_options(kwargs, "tok_encode")
    begin = self.tokenizer.decode([self.prefix_token_id])
    if add_special_tokens is None and string.startswith(begin):
      add_special_tokens = False
    if add_special_tokens is None:
      return list(self.tokenizer.encode(string))
    return list(
      self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
    )

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    """Renders messages as text, without what the run's evals add to them.

    Args:
      chat_history: the messages.
      add_generation_prompt: whether an answer to the messages follows; else the
        last message is continued.
    """
    render = self.model.runtime.chat.template.apply
    goes_on = {"continue_final_message": not add_generation_prompt}
    try:
      return render(chat_history, add_generation_prompt, **goes_on)
    except jinja2.TemplateError:
      # As lm-eval's own Hugging Face class does.
      log_line("the chat template fails: system messages are left out")
      rest = [m for m in chat_history if m["role"] != "system"]
      return render(rest, add_generation_prompt, **goes_on)

  def loglikelihood_rolling(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[float]:
    """Sums the log-probabilities of whole texts, in windows of the context."""
    windows = [
      [
        utils.make_disjoint_window(w)
        for w in utils.get_rolling_token_windows(
          self.tok_encode(r.args[0]),
          self.prefix_token_id,
          self.max_length,
          context_len=1,
        )
      ]
      for r in requests
    ]
    flat = [("", *w) for of_text in windows for w in of_text]
    scores = iter(self._score(flat, "loglikelihood_rolling"))
    out = [sum(next(scores)[0] for _ in of_text) for of_text in windows]
    for request, value in zip(requests, out, strict=True):
      self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
    return out

  def _loglikelihood_tokens(
    self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
  ) -> list[tuple[float, bool]]:
    """Scores continuations of contexts."""
    out = self._score(requests, "loglikelihood")
    for (key, *_), value in zip(requests, out, strict=True):
      self.cache_hook.add_partial("loglikelihood", key, value)
    return out

  def _score(
    self, requests: Sequence[tuple[Any, list[int], list[int]]], name: str
  ) -> list[tuple[float, bool]]:
    """Sums log-probabilities, and tells whether all tokens are the likeliest.

    Args:
      requests: key, ids of the context and ids of the continuation of each.
      name: of the stage of progress.
    """
    contexts = [
      self._cut(context, self.max_length + 1 - len(rest))
      for _, context, rest in requests
    ]
    with self._stage(name, len(requests)) as done:
      rests = [rest for *_, rest in requests]
      scores = self.model.score(contexts, rests, done)
    return [(sum(s.logprobs), all(s.greedy)) for s in scores]

  @contextlib.contextmanager
  def _stage(self, name: str, count: int) -> Iterator[Callable[..., None]]:
    """Yields a function to call with the number of requests that ended."""
    with stage(f"{self.title}{name}", count, "requests") as bar:

      def done(count: int, tokens: int = 0) -> None:
        bar(count, tokens)
        self.ended()

      yield done

  def _cut(self, context: list[int], room: int) -> list[int]:
    """Returns the last tokens of a context that there is room for.

    Raises:
      ConfigError: the context is too long, and `truncate` is not set.
    """
    if len(context) <= room:
      return context
    if not self.truncate or room < 1:
      raise ConfigError(
        f"a context of {len(context)} tokens, where there is room for {room} "
        f"in the {self.max_length} of the model: take fewer shots, or with "
        "truncate=True only the last tokens"
      )
    return context[-room:]

  def generate_until(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[str]:
    """Samples a completion of each context."""
    prompts = [self._request(*r.args) for r in requests]
    with self._stage("generate_until", len(prompts)) as done:
      completions = self.model.generate(prompts, done)
    out = [
      self.model.text(c, prompt.sampling.stop)
      for prompt, (c,) in zip(prompts, completions, strict=True)
    ]
    for request, text in zip(requests, out, strict=True):
      self.cache_hook.add_partial("generate_until", request.args, text)
    return out

  def _request(self, context: str, options: dict[str, Any]) -> Request:
    """Converts a request of lm-eval.

    Raises:
      ConfigError: an option means nothing here, or the context is too long.
    """
    options = dict(normalize_gen_kwargs(options, self.max_gen_toks))
    unknown = {k: v for k, v in options.items() if k not in _READ}
    check_options(unknown, "generate_until")
    new = options["max_gen_toks"]
    sampling = self.model.options(
      max_new_tokens=new,
      temperature=float(options.get("temperature", 0.0))
      if options["do_sample"]
      else 0.0,
      top_p=options.get("top_p"),
      top_k=options.get("top_k"),
      min_p=options.get("min_p"),
      seed=options.get("seed"),
      stop=tuple(s for s in options["until"] if s),
    )
    ids = self._cut(self.tok_encode(context), self.max_length - new)
    return Request(tuple(ids), sampling)

  @property
  def max_gen_toks(self) -> int:
    """Returns the limit of new tokens for tasks that set none."""
    return self.model.sampling.max_new_tokens
