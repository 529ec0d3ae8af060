"""lm-eval's model class over weights in memory."""

# The extra `eval` may not be installed.
# pyright: reportMissingImports=false

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from bct_jax.config import ConfigError
from bct_jax.infra.progress import stage
from bct_jax.interop.local_model import LocalModel, Request, check_options

# What generate_until reads of a task's generation options.
_READ = (
  "until do_sample temperature top_p top_k min_p seed max_gen_toks".split()
)


class LocalLM(TemplateLM):
  """A local model as lm-eval asks one.

  Text is encoded as lm-eval's own Hugging Face class does: with the special
  tokens that the tokenizer adds by itself, unless the text begins with them.

  Args:
    model: to ask.
    truncate: cut what is too long for the model from the left, as other
      classes do; else that is an error.
    title: what the stages of progress begin with.
    ended: called as requests end; an error of it ends all.
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
    return self.tokenizer.eos_token_id

  @property
  def prefix_token_id(self) -> int:
    bos = self.tokenizer.bos_token_id
    return self.eot_token_id if bos is None else bos

  @property
  def tokenizer_name(self) -> str:
    # lm-eval keeps rendered prompts by this name.
    chat = self.model.runtime.chat
    name = f"{chat.tokenizer_hash}{chat.template_hash}"
    return f"bct_jax-{utils.hash_string(name)[:16]}"

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
  ) -> list[int]:
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
    """The prompt of messages, or with False one whose last is continued."""
    return self.tokenizer.apply_chat_template(
      chat_history,
      tokenize=False,
      add_generation_prompt=add_generation_prompt,
      continue_final_message=not add_generation_prompt,
    )

  def loglikelihood_rolling(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[float]:
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
    flat = [("", *w) for own in windows for w in own]
    found = iter(self._score(flat, "loglikelihood_rolling"))
    out = [sum(next(found)[0] for _ in own) for own in windows]
    for request, value in zip(requests, out, strict=True):
      self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
    return out

  def _loglikelihood_tokens(
    self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
  ) -> list[tuple[float, bool]]:
    out = self._score(requests, "loglikelihood")
    for (key, *_), value in zip(requests, out, strict=True):
      self.cache_hook.add_partial("loglikelihood", key, value)
    return out

  def _score(
    self, requests: Sequence[tuple[Any, list[int], list[int]]], name: str
  ) -> list[tuple[float, bool]]:
    """Sums of log-probabilities, and whether all tokens are the likeliest."""
    kept = [
      self._cut(context, self.max_length + 1 - len(rest))
      for _, context, rest in requests
    ]
    with self._stage(name, len(requests)) as done:
      found = self.model.score(kept, [rest for *_, rest in requests], done)
    return [(sum(s.logprobs), all(s.greedy)) for s in found]

  @contextlib.contextmanager
  def _stage(self, name: str, count: int) -> Iterator[Callable[..., None]]:
    """Gives what is called with a number of requests that ended."""
    with stage(f"{self.title}{name}", count, "requests") as bar:

      def done(count: int, tokens: int = 0) -> None:
        bar(count, tokens)
        self.ended()

      yield done

  def _cut(self, context: list[int], room: int) -> list[int]:
    """The last tokens of a context that there is room for."""
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
    asked = [self._request(*r.args) for r in requests]
    with self._stage("generate_until", len(asked)) as done:
      found = self.model.generate(asked, done)
    out = [
      self.model.text(c, request.sampling.stop)
      for request, (c,) in zip(asked, found, strict=True)
    ]
    for request, text in zip(requests, out, strict=True):
      self.cache_hook.add_partial("generate_until", request.args, text)
    return out

  def _request(self, context: str, options: dict[str, Any]) -> Request:
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
    """New tokens where a task does not say how many."""
    return self.model.sampling.max_new_tokens
