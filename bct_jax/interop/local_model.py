"""Generates and scores with weights in memory, as other packages ask for it.

The way of drawing tokens is compiled into a sampler, so each way has its own.
"""

import collections
import dataclasses
import functools
import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax

from bct_jax.config import ConfigError, SamplingConfig, check_sampling
from bct_jax.models.lora import Weights
from bct_jax.runtime.runtime import Runtime
from bct_jax.sample.prompt_packing import common_prefix
from bct_jax.sample.sampler import Sample, make_sampler
from bct_jax.sample.score import ScoredCompletion, bucket
from bct_jax.types import Completion

# How many samplers are kept; each holds the programs that it compiled.
KEPT = 8

# Returns the sampler for a way of drawing tokens.
Samplers = Callable[[SamplingConfig], Sample]


@dataclasses.dataclass(frozen=True)
class Request:
  """Asks for completions of a prompt.

  Attributes:
    ids: of the prompt.
    sampling: how tokens are drawn; `max_new_tokens` is for this prompt.
    count: of completions; with a temperature of 0 they are equal.
  """

  ids: tuple[int, ...]
  sampling: SamplingConfig
  count: int = 1


class LocalModel:
  """Generates and scores; calls from several threads wait for each other.

  Attributes:
    runtime: mesh, architecture, tokenizer.
    sampling: how tokens are drawn where a request does not say.
    max_length: tokens of prompt and completion together.
    thinking: whether prompts have room for a thought; None is where the chat
      template has a place for one.
  """

  def __init__(
    self,
    runtime: Runtime,
    weights: Weights,
    samplers: Samplers | None = None,
    thinking: bool | None = None,
  ):
    """Wraps weights.

    Args:
      runtime: of the weights.
      weights: to generate and score with.
      samplers: from `sampler_cache`, to share them with models of other weights
        of the runtime.
      thinking: see the class.
    """
    self.thinking = thinking
    self.runtime, self._weights = runtime, weights
    self.sampling = runtime.config.sampling
    self.max_length = runtime.model.config.max_length
    self._lock = threading.RLock()
    self._seen: collections.Counter = collections.Counter()
    self._sampler = samplers or sampler_cache(runtime)

  def options(self, **changes: Any) -> SamplingConfig:
    """Returns `sampling` with changes; None leaves a field as it is.

    Raises:
      ConfigError: a value is impossible.
    """
    fields = {k: v for k, v in changes.items() if v is not None}
    out = dataclasses.replace(self.sampling, **fields)
    check_sampling(out)
    return out

  def text(self, completion: Completion, stop: Sequence[str] = ()) -> str:
    """Decodes a completion as the packages expect it.

    The text ends before the first stop string and has no special tokens.
    """
    text = self.runtime.chat.tokenizer.decode(
      list(completion.tokens),
      skip_special_tokens=True,
      clean_up_tokenization_spaces=False,
    )
    ends = [text.find(s) for s in stop if s in text]
    return text[: min(ends)] if ends else text

  def generate(
    self,
    requests: Sequence[Request],
    done: Callable[[int, int], Any] = lambda count, tokens: None,
  ) -> list[list[Completion]]:
    """Samples completions, in one batch if requests differ in limits only.

    The random keys of a sample follow from the prompt, the options, and how
    often the model was asked for both. So a request that is repeated gets
    another sample, and requests in another order get the same samples.

    Args:
      requests: prompts and options.
      done: called with a number of completions and of their tokens, as they
        end.

    Returns:
      The completions of each request.

    Raises:
      ValueError: a prompt and its new tokens do not fit the model.
    """
    out: list[list[Completion]] = [[] for _ in requests]
    # Options -> numbers of requests, for one call of a sampler.
    groups = collections.defaultdict(list)
    for i, request in enumerate(requests):
      alike = dataclasses.replace(request.sampling, max_new_tokens=1)
      groups[alike] += [i] * request.count
    with self._lock, jax.set_mesh(self.runtime.mesh):
      for alike, rows in groups.items():
        completions = self._sample(alike, [requests[i] for i in rows], done)
        for i, completion in zip(rows, completions, strict=True):
          out[i].append(completion)
    return out

  def score(
    self,
    prompts: Sequence[Sequence[int]],
    rest: Sequence[Sequence[int]],
    done: Callable[[int], Any] = lambda count: None,
  ) -> list[ScoredCompletion]:
    """Scores the rest of each text after its prompt, see sample/score.py."""
    with self._lock, jax.set_mesh(self.runtime.mesh):
      return self.runtime.scorer(self._weights, prompts, rest, done)

  @functools.cached_property
  def _decode_params(self) -> Any:
    """Lays the weights out for the sampler."""
    return self.runtime.decode_params(self._weights)

  def _sample(self, alike: SamplingConfig, rows: Sequence[Request], done):
    """Samples requests that differ in prompts and limits alone.

    Args:
      alike: their options, with any limit.
      rows: the requests, one for each completion.
      done: see generate.
    """
    chat = self.runtime.chat
    prompts = [list(r.ids) for r in rows]
    limits = [r.sampling.max_new_tokens for r in rows]
    for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
      if not prompt or len(prompt) + limit > self.max_length:
        raise ValueError(
          f"request {i}: a prompt of {len(prompt)} tokens and {limit} new ones "
          f"do not fit a context of {self.max_length}"
        )
    longest = bucket(max(limits))
    engine = dataclasses.replace(alike, stop=(), seed=0, max_new_tokens=longest)
    filling, limit = self._filling(prompts, longest)
    completions = self._sampler(engine)(
      self._decode_params,
      [*prompts, *filling],
      [*(self._row_id(r) for r in rows), *[0] * len(filling)],
      alike.seed,
      lambda _, completion: done(1, len(completion.tokens)),
      limits=[*limits, *[limit] * len(filling)],
      find_stop=chat.find_stop(alike.stop),
      skip=range(len(prompts), len(prompts) + len(filling)),
    )
    return completions[: len(prompts)]

  def _row_id(self, request: Request) -> int:
    """Makes a row id of 31 bits that few other requests have."""
    options = dataclasses.replace(request.sampling, max_new_tokens=1)
    key = hashlib.sha256(repr((request.ids, options)).encode()).digest()
    self._seen[key] += 1
    name = key + self._seen[key].to_bytes(8, "big")
    return int.from_bytes(hashlib.sha256(name).digest()[:4], "big") >> 1

  def _filling(
    self, prompts: list[list[int]], most: int
  ) -> tuple[list[list[int]], int]:
    """Makes rows that round the sizes of a batch and are never sampled.

    The programs of a sampler follow from the longest prompt, from the prefix
    that all prompts share, and from how many are run together. Rows that are
    skipped count as well. These rows round all three sizes, so that the next
    set of prompts finds its programs compiled.

    Args:
      prompts: of the batch.
      most: new tokens of a row.

    Returns:
      The rows, and their limit of new tokens.
    """
    longest = max(map(len, prompts))
    same = all(p == prompts[0] for p in prompts)  # run once anyhow
    shared = 0 if same else common_prefix(prompts)
    shared = 1 << (shared.bit_length() - 1) if shared else 0
    # Longer than all prompts, so that the sampler does not sort these rows in
    # between.
    length = max(bucket(longest + 1), shared + 1)
    if length + most > self.max_length:
      length, most = longest, min(most, self.max_length - longest)
    other = (prompts[0][shared] + 1) % self.runtime.model.config.vocab_size
    row = [*prompts[0][:shared], *[other] * (length - shared)]
    shards = self.runtime.mesh.shape["data"] * self.runtime.mesh.shape["fsdp"]
    slots = -(-self.sampling.batch_size // shards) * shards
    return [row] * slots, most  # as many as one prefill may have rows


def sampler_cache(runtime: Runtime) -> Samplers:
  """Makes a function that returns samplers and keeps the latest ones."""

  @functools.lru_cache(KEPT)
  def sampler(config: SamplingConfig) -> Sample:
    """Makes the sampler for a way of drawing tokens."""
    stop_ids = runtime.chat.stop_ids
    return make_sampler(runtime.model, config, stop_ids, runtime.mesh)

  return sampler


def check_options(options: dict[str, Any], what: str) -> None:
  """Rejects options that mean nothing here.

  Args:
    options: by name; None and what is empty count as not set.
    what: whose options they are, for the message.

  Raises:
    ConfigError: some are set; the message names them.
  """
  names = sorted(k for k, v in options.items() if v not in (None, [], {}))
  if names:
    raise ConfigError(f"{what}: not supported by bct_jax: {', '.join(names)}")
