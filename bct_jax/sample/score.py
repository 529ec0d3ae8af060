"""Scores completions by the log-probabilities of their tokens.

It runs the forward pass of training: prompts and completions are packed into
rows like training examples, and the head runs where a completion is and nowhere
else (see models/logprobs.py). The shapes of a call are rounded up to a few
sizes, so that calls with other completions rarely compile anything.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bct_jax import mesh as meshes
from bct_jax.config import LoraConfig
from bct_jax.data.batches import Layout, best_fit, fill_rows
from bct_jax.data.chat import Tokens
from bct_jax.models import lora
from bct_jax.models.decoder import Decoder
from bct_jax.models.logprobs import at_trained, logprobs_of
from bct_jax.models.lora import Weights
from bct_jax.types import Model, PyTree, Rows

# Positions of a batch per row shard, unless one row is longer.
TOKENS = 2048


@dataclasses.dataclass(frozen=True)
class ScoredCompletion:
  """Holds how likely the model finds one completion.

  Attributes:
    logprobs: log-probability in nats of each token, untempered.
    greedy: whether each is the likeliest token, of ties the first.
  """

  logprobs: tuple[float, ...]
  greedy: tuple[bool, ...]


Score = Callable[..., list[ScoredCompletion]]


def make_scorer(model: Decoder, mesh: Mesh, tokens: int = TOKENS) -> Score:
  """Makes a scorer; `bucket` says for how many shapes it compiles.

  Args:
    model: the decoder; its `max_length` bounds what is run.
    mesh: rows are spread over (data, fsdp).
    tokens: positions of a batch per row shard.

  Returns:
    score(weights, prompts, completions, on_scored) -> a ScoredCompletion for
    each. `weights` are those of training, with or without an adapter; `prompts`
    and `completions` are lists of ids; `on_scored` is called with a number of
    further completions that are scored. Raises ValueError for an empty prompt
    and for more tokens than the model was made for (the last token is not run).
  """
  shards = meshes.num_row_shards(mesh)

  @functools.partial(jax.jit, static_argnums=2)
  def forward(
    params: PyTree, adapter: PyTree, config: LoraConfig | None, batch
  ):
    joined = lora.attach_adapter(Weights(params, adapter, config))
    return at_trained(_score_targets, model, joined, batch)[0]

  def score(
    weights: Weights,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    on_scored: Callable[[int], Any] = lambda count: None,
  ) -> list[ScoredCompletion]:
    examples = _make_examples(prompts, completions, model.config.max_length)
    out = [ScoredCompletion((), ()) for _ in examples]
    nonempty = [i for i, c in enumerate(completions) if len(c)]
    on_scored(len(out) - len(nonempty))
    layout, bins = _pack(examples, nonempty, shards, tokens)
    for at in range(0, len(bins), layout.rows):
      batch_bins = bins[at : at + layout.rows]
      rows = fill_rows(examples, batch_bins, layout)
      scores = forward(
        weights.params,
        weights.adapter,
        weights.lora,
        meshes.put_batch(rows, mesh),
      )
      logprobs, greedy = meshes.to_host(scores)  # [B, R] each
      for row, members in enumerate(batch_bins):
        start = 0  # a row's trained positions are its completions, in order
        for i in members:
          part = (row, slice(start, start + len(completions[i])))
          out[i] = ScoredCompletion(
            tuple(logprobs[part].tolist()), tuple(greedy[part].tolist())
          )
          start += len(completions[i])
        on_scored(len(members))
    return out

  return score


def _score_targets(
  model: Model, params: PyTree, hidden: jax.Array, targets: jax.Array
):
  """Computes log p(target) and whether it is the likeliest; [...] both."""
  logits = model.logits(params, hidden)  # [..., V] float32
  greedy = jnp.argmax(logits, axis=-1) == targets
  return logprobs_of(logits, targets), greedy


def _make_examples(prompts, completions, max_length: int) -> list[Tokens]:
  """Makes examples as for training, with weight on the completion alone."""
  out = []
  for i, (prompt, rest) in enumerate(zip(prompts, completions, strict=True)):
    if not prompt or len(prompt) + len(rest) > max_length + 1:
      raise ValueError(
        f"completion {i} has {len(rest)} tokens after a prompt of "
        f"{len(prompt)}: the prompt must have one at least, and with a context "
        f"of {max_length} both together at most {max_length + 1}"
      )
    weights = (0.0,) * len(prompt) + (1.0,) * len(rest)
    out.append(Tokens((*prompt, *rest), weights))
  return out


def fill_alike(
  parts: Sequence[tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]]],
  max_length: int,
  shards: int,
  tokens: int,
) -> list[list[Rows]]:
  """Fills batches of one shape, whose weights make sums means.

  The weighted sum over the tokens of all batches of a part is the mean over its
  completions.

  Args:
    parts: each has prompts and completions, none of them empty.
    max_length: what the model was made for.
    shards: rows of a batch are a multiple of it.
    tokens: positions of a batch per row shard, unless one row is longer.

  Returns:
    The batches of each part. A token weighs 1 over the number of completions of
    its part.

  Raises:
    ValueError: as `make_scorer`.
  """
  packed = []
  for prompts, completions in parts:
    examples = _make_examples(prompts, completions, max_length)
    indices = range(len(examples))
    packed.append((examples, *_pack(examples, indices, shards, tokens)))
  layouts = [layout for _, layout, _ in packed]
  layout = Layout(
    rows=min(x.rows for x in layouts),
    length=max(x.length for x in layouts),
    num_trained=max(x.num_trained for x in layouts),
    packed=True,
  )
  out = []
  for examples, _, bins in packed:
    filled = [
      fill_rows(examples, bins[at : at + layout.rows], layout)
      for at in range(0, len(bins), layout.rows)
    ]
    out.append([x._replace(weights=x.weights / len(examples)) for x in filled])
  return out


def bucket(n: int) -> int:
  """Rounds `n` up to one of 1 to 8, 10, 12, 14, 16, 20, 24, 28, 32 ...

  There are four sizes per doubling, so that less than a quarter is filling and
  the numbers up to 8192 have 48 sizes.
  """
  step = 1 << max(0, (n - 1).bit_length() - 3)
  return -(-n // step) * step


def _pack(
  examples: Sequence[Tokens],
  indices: Sequence[int],
  shards: int,
  tokens: int,
) -> tuple[Layout, list[list[int]]]:
  """Chooses one shape for all batches of a call, and the examples of each row.

  Only the examples at `indices` are packed, by data.batches.best_fit.
  """
  longest = max((len(examples[i].ids) - 1 for i in indices), default=1)
  length = max(8, bucket(longest))
  sizes = [(len(examples[i].ids) - 1, 1) for i in indices]
  fits = best_fit(sizes, length, len(indices))
  bins = [[indices[i] for i in b] for b in fits]
  trained = [sum(sum(examples[i].weights) for i in b) for b in bins]
  rows = min(max(1, tokens // length), bucket(-(-len(bins) // shards)))
  most = max(8, bucket(int(max(trained, default=1))))
  return Layout(rows * shards, length, min(most, length), packed=True), bins
