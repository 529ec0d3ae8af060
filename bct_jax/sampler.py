"""The sampler: sharded eval rollouts, apart from training.

The tokens that all prompts begin with are run once. What follows is sorted by
length and left-padded to a multiple of the bucket size, so that few shapes are
compiled. A prefill fills the KV cache and a `while_loop` decodes until every
row has met a stop id. Random keys are folded from (seed, row id, position), so
the order and the batch a prompt comes in never change its sample.
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
  mesh: Mesh,
) -> Sample:
  """Compiles nothing yet; each bucket compiles at its first use.

  Args:
    model: the decoder; its `max_length` bounds prompt plus new tokens.
    config: temperature (0 is greedy), limits and batch size.
    stop_ids: each ends a completion, and is part of it.
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
    shared = common_prefix(prompts)
    # Each row shard runs the prefix once.
    prefix = np.tile(np.asarray(prompts[0][:shared], np.int32), (shards, 1))
    rests = [prompt[shared:] for prompt in prompts]
    for length, members in _batches(rests, config.bucket, batch_size):
      tokens, segments, ids = _left_pad(
        rests, row_ids, members, length, batch_size
      )
      rollouts = meshes.to_host(
        generate(
          params,
          meshes.put(prefix, replicated),
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


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
  """How many first tokens all prompts share, down to a multiple of 8.

  Every prompt keeps at least one token of its own. The multiple bounds the
  number of programs that are compiled.
  """
  shortest = min(len(p) for p in prompts)
  columns = zip(*prompts, strict=False)
  same = next((i for i, c in enumerate(columns) if len(set(c)) > 1), shortest)
  return min(same, shortest - 1) // 8 * 8


def _batches(
  prompts: Sequence[Sequence[int]], bucket: int, batch_size: int
) -> Iterator[tuple[int, list[int]]]:
  """(padded length, indices of at most batch_size prompts) for each batch.

  Prompts of like length go together; only the last batch can be short.
  """
  order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
  for start in range(0, len(order), batch_size):
    members = order[start : start + batch_size]
    longest = len(prompts[members[-1]])
    yield -(-longest // bucket) * bucket, members


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


def _prefill(model, params, prefix, tokens, segments, limit):
  """Hidden states [B, P, D] and a cache of prefix and prompts with room."""
  shared, (count, length) = prefix.shape[1], tokens.shape
  positions = shared + jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
  slots = shared + length + limit
  if not shared:
    return model.prefill(params, tokens, positions, segments, slots)
  at = jnp.broadcast_to(jnp.arange(shared), prefix.shape)
  _, cache = model.prefill(params, prefix, at, jnp.ones_like(prefix), slots)
  copies = count // prefix.shape[0]
  cache = jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), cache)
  return model.extend(params, tokens, positions, segments, cache, shared)


def _generate(
  model: Decoder,
  config: SamplingConfig,
  stop_ids: tuple[int, ...],
  params: PyTree,
  prefix: jax.Array,  # [row shards, prefix length], all rows alike
  tokens: jax.Array,  # [B, P], the prompts after the prefix
  segments: jax.Array,  # [B, P]
  row_ids: jax.Array,  # [B], -1 = no prompt
  seed: jax.Array,  # []
) -> Rollouts:
  limit = config.max_new_tokens
  count, length = tokens.shape
  hidden, cache = _prefill(model, params, prefix, tokens, segments, limit)
  length += prefix.shape[1]
  prompt_lengths = prefix.shape[1] + jnp.sum(segments, axis=1)  # [B]
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
      stopped=out.stopped | (live & (token[:, None] == stops).any(axis=1)),
    )

  def body(carry):
    t, token, cache, out = carry
    hidden, cache = model.extend(
      params,
      token[:, None],
      prompt_lengths[:, None] + t - 1,
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
