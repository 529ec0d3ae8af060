"""Weights in memory to generate and score with, as other packages ask for it.

One sampler is kept for each way of drawing tokens, since that is compiled in.
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

# Samplers that are kept; each holds what it compiled.
KEPT = 8


Samplers = Callable[[SamplingConfig], Sample]


@dataclasses.dataclass(frozen=True)
class Request:
  """A prompt to continue.

  Attributes:
    ids: of the prompt.
    sampling: how; `max_new_tokens` is for this row.
    count: completions; with a temperature of 0 they are equal.
  """

  ids: tuple[int, ...]
  sampling: SamplingConfig
  count: int = 1


class LocalModel:
  """Generates and scores; calls from several threads wait for each other.

  Attributes:
    runtime: mesh, architecture, tokenizer.
    sampling: what holds where a request asks for nothing else.
    max_length: tokens of prompt and completion together.
  """

  def __init__(
    self, runtime: Runtime, weights: Weights, samplers: Samplers | None = None
  ):
    """`samplers`: those of the runtime, shared with models of other weights."""
    self.runtime, self._weights = runtime, weights
    self.sampling = runtime.config.sampling
    self.max_length = runtime.model.config.max_length
    self._lock = threading.RLock()
    self._seen: collections.Counter = collections.Counter()
    self._sampler = samplers or sampler_cache(runtime)

  def options(self, **changes: Any) -> SamplingConfig:
    """`sampling` with changes; None changes nothing.

    Raises:
      ConfigError: a value is impossible.
    """
    known = {k: v for k, v in changes.items() if v is not None}
    out = dataclasses.replace(self.sampling, **known)
    check_sampling(out)
    return out

  def text(self, completion: Completion, stop: Sequence[str] = ()) -> str:
    """Of a completion up to the first stop string, without special tokens,
    which is what the packages expect."""
    text = self.runtime.chat.tokenizer.decode(
      list(completion.tokens),
      skip_special_tokens=True,
      clean_up_tokenization_spaces=False,
    )
    found = [text.find(s) for s in stop if s in text]
    return text[: min(found)] if found else text

  def generate(
    self,
    requests: Sequence[Request],
    done: Callable[[int, int], Any] = lambda count, tokens: None,
  ) -> list[list[Completion]]:
    """Completions of each request, all sampled together that can be.

    `done` is called with a number of completions and that of their tokens.

    The random keys of a sample follow from the prompt, the options and how
    often the model was asked for both: asking again gives another sample, and
    the same questions in another order the same samples.

    Raises:
      ValueError: a prompt and its new tokens do not fit the model.
    """
    out: list[list[Completion]] = [[] for _ in requests]
    groups = collections.defaultdict(list)  # what one call of a sampler takes
    for i, request in enumerate(requests):
      alike = dataclasses.replace(request.sampling, max_new_tokens=1)
      groups[alike] += [i] * request.count
    with self._lock, jax.set_mesh(self.runtime.mesh):
      for alike, rows in groups.items():
        found = self._sample(alike, [requests[i] for i in rows], done)
        for i, completion in zip(rows, found, strict=True):
          out[i].append(completion)
    return out

  def score(
    self,
    prompts: Sequence[Sequence[int]],
    rest: Sequence[Sequence[int]],
    done: Callable[[int], Any] = lambda count: None,
  ) -> list[ScoredCompletion]:
    """Log-probabilities of what follows each prompt, see sample/score.py."""
    with self._lock, jax.set_mesh(self.runtime.mesh):
      return self.runtime.scorer(self._weights, prompts, rest, done)

  @functools.cached_property
  def _decode_params(self) -> Any:
    return self.runtime.decode_params(self._weights)

  def _sample(self, alike: SamplingConfig, rows: Sequence[Request], done):
    """Completions of requests that differ in prompts and limits alone."""
    chat = self.runtime.chat
    prompts = [list(r.ids) for r in rows]
    limits = [r.sampling.max_new_tokens for r in rows]
    for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
      if not prompt or len(prompt) + limit > self.max_length:
        raise ValueError(
          f"request {i}: a prompt of {len(prompt)} tokens and {limit} new ones "
          f"do not fit a context of {self.max_length}"
        )
    most = bucket(max(limits))
    engine = dataclasses.replace(alike, stop=(), seed=0, max_new_tokens=most)
    filling, limit = self._filling(prompts, most)
    found = self._sampler(engine)(
      self._decode_params,
      [*prompts, *filling],
      [*(self._row_id(r) for r in rows), *[0] * len(filling)],
      alike.seed,
      lambda _, completion: done(1, len(completion.tokens)),
      limits=[*limits, *[limit] * len(filling)],
      find_stop=chat.find_stop(alike.stop),
      skip=range(len(prompts), len(prompts) + len(filling)),
    )
    return found[: len(prompts)]

  def _row_id(self, request: Request) -> int:
    """An integer of 31 bits that few others have."""
    options = dataclasses.replace(request.sampling, max_new_tokens=1)
    key = hashlib.sha256(repr((request.ids, options)).encode()).digest()
    self._seen[key] += 1
    name = key + self._seen[key].to_bytes(8, "big")
    return int.from_bytes(hashlib.sha256(name).digest()[:4], "big") >> 1

  def _filling(
    self, prompts: list[list[int]], most: int
  ) -> tuple[list[list[int]], int]:
    """Rows that are never sampled, and what limit they have.

    The programs of a sampler follow from the longest prompt, what all begin
    with and how many are run together, also of rows that are skipped. These
    rows round all three, so that the next set of prompts finds its programs
    compiled.
    """
    longest = max(map(len, prompts))
    same = all(p == prompts[0] for p in prompts)  # run once anyhow
    shared = 0 if same else common_prefix(prompts)
    shared = 1 << (shared.bit_length() - 1) if shared else 0
    # Longer than all others, so that it does not come between them.
    length = max(bucket(longest + 1), shared + 1)
    if length + most > self.max_length:
      length, most = longest, min(most, self.max_length - longest)
    other = (prompts[0][shared] + 1) % self.runtime.model.config.vocab_size
    row = [*prompts[0][:shared], *[other] * (length - shared)]
    shards = self.runtime.mesh.shape["data"] * self.runtime.mesh.shape["fsdp"]
    slots = -(-self.sampling.batch_size // shards) * shards
    return [row] * slots, most  # as many as one prefill may have rows


def sampler_cache(runtime: Runtime) -> Samplers:
  """Gives the sampler of a config; keeps those that were asked for last."""

  @functools.lru_cache(KEPT)
  def sampler(config: SamplingConfig) -> Sample:
    stop_ids = runtime.chat.stop_ids
    return make_sampler(runtime.model, config, stop_ids, runtime.mesh)

  return sampler


def check_options(options: dict[str, Any], what: str) -> None:
  """Raises ConfigError for options that are set and mean nothing here."""
  wrong = sorted(k for k, v in options.items() if v not in (None, [], {}))
  if wrong:
    raise ConfigError(f"{what}: not supported by bct_jax: {', '.join(wrong)}")
