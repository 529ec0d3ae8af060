"""Provides inspect_ai with models: --model bct_jax/FOLDER.

inspect asks for one completion at a time, from many tasks at once. Requests
that come within a few milliseconds, or while the model is at work, are sampled
together in a thread of its own.
"""

# The extra `eval` may not be installed.
# pyright: reportMissingImports=false

import threading
from concurrent.futures import Future
from typing import Any

import anyio
from anyio import from_thread, lowlevel
from inspect_ai.model import (
  ChatCompletionChoice,
  ChatMessage,
  ChatMessageAssistant,
  GenerateConfig,
  Logprob,
  Logprobs,
  ModelAPI,
  ModelOutput,
  ModelUsage,
  StopReason,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from bct_jax.examples import Message
from bct_jax.interop.collector import Collector
from bct_jax.interop.local_model import Request, check_options
from bct_jax.interop.open_model import open_model
from bct_jax.types import Completion

# Fields of a GenerateConfig that this provider reads.
_READ = (
  "max_tokens temperature top_p top_k seed stop_seqs num_choices logprobs "
  "system_message"
).split()
# Fields that inspect handles by itself, or that are about other providers'
# services.
_ELSEWHERE = (
  "max_retries timeout attempt_timeout stream_idle_timeout max_connections "
  "adaptive_connections max_tool_output cache cache_prompt "
  "parallel_tool_calls internal_tools fail_on_refusal"
).split()


class BctJaxAPI(ModelAPI):
  """Lends a model of a run, or of any supported folder, to inspect.

  Args:
    model_name: the path of open_model.open_weights.
    base_url, api_key: must be None: nothing is asked over a network.
    config: of inspect.
    **model_args: options of open_model.open_weights.
  """

  def __init__(
    self,
    model_name: str,
    base_url: str | None = None,
    api_key: str | None = None,
    config: GenerateConfig = GenerateConfig(),  # noqa: B008
    **model_args: Any,
  ):
    super().__init__(model_name, base_url, api_key, [], config)
    check_options({"base_url": base_url}, model_name)
    self.model = open_model(model_name, **model_args)
    self._collector = Collector(self.model.generate)

  def close(self) -> None:
    """Ends the thread that samples."""
    self._collector.close()

  def max_connections(self) -> int:
    """Returns how many completions are decoded at a time."""
    return self.model.sampling.batch_size

  def collapse_user_messages(self) -> bool:
    """Has inspect join user messages that follow each other."""
    return True

  async def generate(
    self,
    input: list[ChatMessage],
    tools: list[ToolInfo],
    tool_choice: ToolChoice,
    config: GenerateConfig,
  ) -> ModelOutput:
    """Answers messages, or continues an assistant message at their end.

    Raises:
      ConfigError: an option is set that does nothing here.
      ValueError: messages are not text, or leave no room in the context.
    """
    fields = config.model_dump(exclude_none=True)
    unread = {k: v for k, v in fields.items() if k not in _READ + _ELSEWHERE}
    check_options({"tools": tools, **unread}, "inspect")
    chat = self.model.runtime.chat
    thinking = self.model.thinking
    if thinking is None:
      thinking = chat.boundary.markers is not None
    messages = [_message(m) for m in input]
    ids, prefix = chat.prompt_and_prefix(messages, thinking)
    prompt = (*ids, *prefix)
    limit = config.max_tokens or self.model.sampling.max_new_tokens
    room = self.model.max_length - len(prompt)
    request = Request(
      prompt,
      self.model.options(
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        seed=config.seed,
        stop=None if config.stop_seqs is None else tuple(config.stop_seqs),
        max_new_tokens=max(1, min(limit, room)),
      ),
      config.num_choices or 1,
    )
    if request.count > 1 and request.sampling.temperature == 0:
      raise ValueError(
        f"num_choices = {request.count}: with a temperature of 0 all would be "
        "the same; set temperature"
      )
    completions = await _result(self._collector.submit(request))
    cut: StopReason = "max_tokens" if limit <= room else "model_length"
    return ModelOutput(
      model=self.model_name,
      choices=[
        ChatCompletionChoice(
          message=ChatMessageAssistant(
            content=self.model.text(c, request.sampling.stop),
            model=self.model_name,
            source="generate",
          ),
          stop_reason="stop" if c.stopped else cut,
          logprobs=self._logprobs(c) if config.logprobs else None,
        )
        for c in completions
      ],
      usage=_usage(len(prompt), completions),
    )

  def _logprobs(self, completion: Completion) -> Logprobs:
    """Lists the log-probability of each token, the end of the turn included."""
    names = self.model.runtime.chat.tokenizer.convert_ids_to_tokens(
      list(completion.tokens)
    )
    pairs = zip(names, completion.logprobs, strict=True)
    return Logprobs(content=[Logprob(token=t, logprob=x) for t, x in pairs])


def _usage(prompt_length: int, completions: list[Completion]) -> ModelUsage:
  """Counts the tokens of a request."""
  new = sum(len(c.tokens) for c in completions)
  return ModelUsage(
    input_tokens=prompt_length,
    output_tokens=new,
    total_tokens=prompt_length + new,
  )


def _message(message: ChatMessage) -> Message:
  """Converts a message of inspect.

  Raises:
    ValueError: it is not text, or is a tool's.
  """
  content = message.content
  kinds = {c.type for c in content} if isinstance(content, list) else {"text"}
  if message.role == "tool" or kinds - {"text"}:
    raise ValueError(
      f"a {message.role} message of {sorted(kinds)}: bct_jax reads text of "
      "system, user and assistant alone"
    )
  return {"role": message.role, "content": message.text}


async def _result(future: Future) -> Any:
  """Waits for another thread's result without holding up the event loop."""
  event, token = anyio.Event(), lowlevel.current_token()
  here = threading.get_ident()

  def wake(_: Future) -> None:
    # Called here if it is done, or cancelled, already.
    if threading.get_ident() == here:
      event.set()
    else:
      from_thread.run_sync(event.set, token=token)

  future.add_done_callback(wake)
  try:
    await event.wait()
  finally:
    future.cancel()  # of no effect once it runs
  return future.result()
