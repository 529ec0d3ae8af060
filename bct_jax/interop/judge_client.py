"""Calls the model of a judge, by inspect_ai's interface to providers.

Keys and addresses of providers come from the environment, and are written
nowhere.
"""

# The extra `eval` may not be installed.
# pyright: reportMissingImports=false

import asyncio
import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from bct_jax.config import ConfigError, JudgeConfig
from bct_jax.infra import signals
from bct_jax.settings.graders.judge import Prompt

LOCAL = "bct_jax/"
# Prompts of one batch of calls.
CHUNK = 64
# Calls that fail one after the other before the judge counts as gone.
_GONE = 5

Reply = Mapping[str, Any]  # `reply`, a text, and `stop`, why it ends


class JudgeError(OSError):
  """Is raised when the judge answers no more; the same command goes on."""


@dataclasses.dataclass
class Calls:
  """Holds calls that are under way, and what went wrong.

  Attributes:
    keep: called with key and reply, as replies come.
    failed: reason by key, of calls without a reply.
    stopped: whether a signal ended them.
    error: what ended them.
  """

  keep: Callable[[str, Reply], None]
  failed: dict[str, str] = dataclasses.field(default_factory=dict)
  stopped: bool = False
  error: Exception | None = None
  tasks: list[asyncio.Task] = dataclasses.field(default_factory=list)

  def stop(self) -> None:
    """Ends all calls, after a signal."""
    self.stopped = True
    self._cancel()

  def end(self, error: Exception) -> None:
    """Ends all calls, after an error."""
    self.error = self.error or error
    self._cancel()

  def _cancel(self) -> None:
    """Cancels what has not ended."""
    for task in self.tasks:
      task.cancel()


class JudgeClient:
  """Calls a model of any provider of inspect_ai, or one of bct_jax.

  Args:
    config: model and limits.
  """

  def __init__(self, config: JudgeConfig):
    self.config = config
    self._in_a_row = 0  # calls that failed

  @property
  def is_local(self) -> bool:
    """Returns whether bct_jax itself runs the model."""
    return self.config.model.startswith(LOCAL)

  def check(self) -> None:
    """Checks that the model can be called, without calling it.

    Raises:
      ConfigError: the provider is unknown, or lacks a package or a key.
    """
    _import_inspect()
    if not self.is_local:  # which would load weights
      _loop().run(self._open())

  def call(
    self, prompts: Mapping[str, Prompt], keep: Callable[[str, Reply], None]
  ) -> Calls:
    """Calls the model about each prompt, some at a time.

    Args:
      prompts: by key.
      keep: called in another thread, one call at a time.

    Raises:
      JudgeError: the key is refused, or calls fail one after the other.
      ConfigError: as `check`.
      OSError: an error of `keep`.
    """
    calls = Calls(keep)
    _loop().run(self._call_all(prompts, calls), calls.stop)
    if calls.error is not None:
      raise calls.error
    return calls

  async def _call_all(
    self, prompts: Mapping[str, Prompt], calls: Calls
  ) -> None:
    """Makes all calls and waits for them."""
    model = await self._open()
    # A local model takes what is there as one batch.
    at_once = CHUNK if self.is_local else self.config.max_connections
    places = asyncio.Semaphore(at_once)
    calls.tasks = [
      asyncio.create_task(self._call(model, key, prompt, calls, places))
      for key, prompt in prompts.items()
    ]
    await asyncio.gather(*calls.tasks, return_exceptions=True)

  async def _call(
    self,
    model: Any,
    key: str,
    prompt: Prompt,
    calls: Calls,
    places: asyncio.Semaphore,
  ) -> None:
    """Calls the model once."""
    async with places:
      try:
        output = await model.generate(_messages(prompt))
        if not output.choices or output.error:
          raise ValueError(output.error or "the reply is empty")
      except Exception as e:
        calls.failed[key] = _describe(e)
        self._count_failure(calls, calls.failed[key], model, e)
        return
      self._in_a_row = 0
      try:
        reply = {"reply": output.completion, "stop": output.stop_reason}
        calls.keep(key, reply)
      except Exception as e:
        calls.end(e)

  def _count_failure(
    self, calls: Calls, reason: str, model: Any, error: Exception
  ) -> None:
    """Ends the calls if the judge does not answer at all."""
    self._in_a_row += 1
    refused = model.api.is_auth_failure(error)
    if refused or self._in_a_row >= _GONE:
      self._in_a_row = 0
      what = f"{_GONE} calls failed one after the other"
      what = "the provider refuses the key" if refused else what
      calls.end(
        JudgeError(
          f"eval.judge.model = {self.config.model!r}: {what}: {reason}; what "
          "was answered is kept, and the same command goes on from there"
        )
      )

  async def _open(self) -> Any:
    """Opens the model; inspect_ai keeps it for the next time.

    Raises:
      ConfigError: the provider is unknown, or lacks a package or a key.
    """
    _import_inspect()
    from inspect_ai.model import GenerateConfig, get_model

    config = self.config
    limits: dict[str, Any] = {}
    if not self.is_local:
      limits = {
        "max_retries": config.max_retries,
        "attempt_timeout": config.timeout,
        "max_connections": config.max_connections,
      }
    try:
      return get_model(
        config.model,
        config=GenerateConfig(
          temperature=0, max_tokens=config.max_tokens, **limits
        ),
      )
    except Exception as e:
      raise ConfigError(
        f"eval.judge.model = {config.model!r}: {_describe(e)}"
      ) from None


class _Loop:
  """Runs coroutines in one thread, where clients of providers stay open."""

  def __init__(self):
    self._loop = asyncio.new_event_loop()
    thread = threading.Thread(target=self._loop.run_forever, daemon=True)
    thread.start()

  def run(self, coroutine: Any, stop: Callable[[], None] | None = None) -> Any:
    """Runs a coroutine to its end.

    Args:
      coroutine: to run.
      stop: called in the thread of the loop once a signal asks to stop.
    """
    future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
    while True:
      try:
        return future.result(timeout=0.5)
      except FutureTimeoutError:
        if future.done():
          raise  # the coroutine's own
        if stop is not None and signals.stop_requested():
          self._loop.call_soon_threadsafe(stop)
          stop = None


@functools.cache
def _loop() -> _Loop:
  """Starts the thread that calls, once."""
  return _Loop()


def _import_inspect() -> None:
  """Imports inspect_ai, and registers the models of bct_jax with it.

  Raises:
    ConfigError: it is not installed.
  """
  try:
    from bct_jax.interop import inspect_entry  # noqa: F401
  except ImportError as e:
    raise ConfigError(
      f"eval.judge.model needs inspect_ai ({e}): pip install 'bct_jax[eval]'"
    ) from None


def _messages(prompt: Prompt) -> list[Any]:
  """Makes messages of inspect_ai."""
  from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
  )

  kinds = {
    "system": ChatMessageSystem,
    "user": ChatMessageUser,
    "assistant": ChatMessageAssistant,
  }
  return [kinds[m["role"]](content=m["content"]) for m in prompt]


def _describe(error: BaseException) -> str:
  """Describes an error in a line, without keys of the environment."""
  text = str(getattr(error, "message", "") or error) or type(error).__name__
  for name, value in os.environ.items():
    if any(word in name for word in ("KEY", "TOKEN", "SECRET")) and value:
      text = text.replace(value, f"${name}")
  return " ".join(text.split())[:300]
