"""The sampler: sharded eval rollouts, apart from training.

Prompts are left-padded into length buckets; each bucket length compiles once. A
prefill fills the KV cache and a `while_loop` decodes until every row has met a
stop id. Random keys are folded from (seed, row id, position), so the order and
the batch a prompt comes in never change its sample.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bct_jax import mesh as meshes
from bct_jax.config import SamplingConfig
from bct_jax.models.decoder import Decoder
from bct_jax.types import PyTree, Rollouts


@dataclasses.dataclass(frozen=True)
class Completion:
  """One sampled completion on the host.

  Attributes:
    tokens: ids up to and with the stop id.
    logprobs: log-probability in nats of each, untempered.
    stopped: False if it was cut at the limit of new tokens.
  """

  tokens: tuple[int, ...]
  logprobs: tuple[float, ...]
  stopped: bool


Sample = Callable[..., list[Completion]]


def make_sampler(
  model: Decoder,
  config: SamplingConfig,
  stop_ids: frozenset[int],
  params_sharding: PyTree,
  mesh: Mesh,
) -> Sample:
  """Compiles nothing yet; each bucket compiles at its first use.

  Args:
    model: the decoder; its `max_length` bounds prompt plus new tokens.
    config: temperature (0 is greedy), limits and batch size.
    stop_ids: each ends a completion, and is part of it.
    params_sharding: of the unstacked params, see decoder.unstack.
    mesh: rows are spread over (data, fsdp).

  Returns:
    sample(params, prompts, row_ids, seed, progress) -> completions in the
    order of the prompts. `prompts` are lists of ids, `row_ids` one integer
    each, `progress` is called with the number of rows finished.
  """
  shards = meshes.num_row_shards(mesh)
  batch_size = -(-config.batch_size // shards) * shards
  rows = meshes.row_sharding(mesh)
  replicated = NamedSharding(mesh, P())
  generate = jax.jit(
    functools.partial(_generate, model, config, tuple(sorted(stop_ids))),
    in_shardings=(params_sharding, rows, rows, rows, replicated),
    out_shardings=rows,
  )

  def sample(
    params: PyTree,
    prompts: Sequence[Sequence[int]],
    row_ids: Sequence[int],
    seed: int,
    progress: Callable[[int], Any] = lambda n: None,
  ) -> list[Completion]:
    check_prompts(prompts, model.config.max_length, config.max_new_tokens)
    out: dict[int, Completion] = {}
    for length, members in _buckets(prompts, config.bucket, batch_size):
      tokens, segments, ids = _left_pad(
        prompts, row_ids, members, length, batch_size
      )
      rollouts = meshes.to_host(
        generate(
          params,
          meshes.put(tokens, rows),
          meshes.put(segments, rows),
          meshes.put(ids, rows),
          meshes.put(np.asarray(seed, np.uint32), replicated),
        )
      )
      for i, member in enumerate(members):
        out[member] = _completion(rollouts, i)
      progress(len(members))
    return [out[i] for i in range(len(prompts))]

  return sample


def check_prompts(
  prompts: Sequence[Sequence[int]], max_length: int, max_new_tokens: int
) -> None:
  """Raises ValueError for a prompt that is empty or leaves no room."""
  for i, prompt in enumerate(prompts):
    if not 0 < len(prompt) <= max_length - max_new_tokens:
      raise ValueError(
        f"prompt {i} has {len(prompt)} tokens; with {max_new_tokens} new "
        f"tokens and a context of {max_length} it must have 1 to "
        f"{max_length - max_new_tokens}"
      )


def _buckets(
  prompts: Sequence[Sequence[int]], bucket: int, batch_size: int
) -> Iterator[tuple[int, list[int]]]:
  """(padded length, indices of at most batch_size prompts) for each batch."""
  by_length: dict[int, list[int]] = {}
  for i, prompt in enumerate(prompts):
    by_length.setdefault(-(-len(prompt) // bucket) * bucket, []).append(i)
  for length, members in sorted(by_length.items()):
    for start in range(0, len(members), batch_size):
      yield length, members[start : start + batch_size]


def _left_pad(prompts, row_ids, members, length, batch_size):
  """Host arrays [B, P], [B, P], [B]; rows without a prompt have segment 0."""
  tokens = np.zeros((batch_size, length), np.int32)
  segments = np.zeros((batch_size, length), np.int32)
  ids = np.full((batch_size,), -1, np.int32)
  for i, member in enumerate(members):
    n = len(prompts[member])
    tokens[i, length - n :] = prompts[member]
    segments[i, length - n :] = 1
    ids[i] = row_ids[member]
  return tokens, segments, ids


def _completion(rollouts: Rollouts, row: int) -> Completion:
  n = int(rollouts.lengths[row])
  return Completion(
    tokens=tuple(int(t) for t in rollouts.tokens[row, :n]),
    logprobs=tuple(float(x) for x in rollouts.logprobs[row, :n]),
    stopped=bool(rollouts.stopped[row]),
  )


def _generate(
  model: Decoder,
  config: SamplingConfig,
  stop_ids: tuple[int, ...],
  params: PyTree,
  tokens: jax.Array,  # [B, P]
  segments: jax.Array,  # [B, P]
  row_ids: jax.Array,  # [B], -1 = no prompt
  seed: jax.Array,  # []
) -> Rollouts:
  limit = config.max_new_tokens
  count, length = tokens.shape
  positions = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
  hidden, cache = model.prefill(
    params, tokens, positions, segments, length + limit
  )
  keys = jax.vmap(jax.random.fold_in, (None, 0))(
    jax.random.PRNGKey(seed), row_ids
  )
  stops = jnp.asarray(stop_ids)

  def pick(hidden, t):  # [B, D] -> the next token and its log-probability
    logits = model.logits(params, hidden)  # [B, V] float32
    if config.temperature == 0:
      chosen = jnp.argmax(logits, axis=-1)
    else:
      step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
      chosen = jax.vmap(jax.random.categorical)(
        step_keys, logits / config.temperature
      )
    picked = jnp.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0]
    return chosen, picked - jax.nn.logsumexp(logits, axis=-1)

  def record(out: Rollouts, t, token, logprob) -> Rollouts:
    live = ~out.stopped & (out.lengths == t)
    return Rollouts(
      tokens=out.tokens.at[:, t].set(jnp.where(live, token, 0)),
      logprobs=out.logprobs.at[:, t].set(jnp.where(live, logprob, 0)),
      lengths=out.lengths + live,
      stopped=out.stopped
      | (live & (token[:, None] == stops).any(axis=1)),
    )

  def body(carry):
    t, token, cache, out = carry
    position = jnp.sum(segments, axis=1, keepdims=True) + t - 1  # [B, 1]
    hidden, cache = model.decode(
      params,
      token[:, None],
      position,
      jnp.ones((count, 1), jnp.int32),
      cache,
      length + t - 1,
    )
    token, logprob = pick(hidden[:, 0], t)
    return t + 1, token, cache, record(out, t, token, logprob)

  def more(carry):
    t, _, _, out = carry
    return (t < limit) & ~out.stopped.all()

  out = Rollouts(
    tokens=jnp.zeros((count, limit), jnp.int32),
    logprobs=jnp.zeros((count, limit), jnp.float32),
    lengths=jnp.zeros((count,), jnp.int32),
    stopped=row_ids < 0,  # rows without a prompt have nothing to say
  )
  token, logprob = pick(hidden[:, -1], 0)
  out = record(out, 0, token, logprob)
  return jax.lax.while_loop(more, body, (jnp.int32(1), token, cache, out))[-1]
