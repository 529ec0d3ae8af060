"""Turns pairs of prompt and completion into weighted rows of tokens."""

from collections.abc import Sequence

from bct_jax.config import (
  ConfigError,
  TrainConfig,
)
from bct_jax.data.chat import Tokens
from bct_jax.data.documents import document_row
from bct_jax.data.training_pairs import Pair
from bct_jax.examples import Example
from bct_jax.infra.files import digest
from bct_jax.objectives import trained_part
from bct_jax.runtime.runtime import Runtime


def render_pairs(
  runtime: Runtime,
  train: TrainConfig,
  examples: Sequence[Example],
  pairs: Sequence[Pair],
  rendered: dict[str, list[Tokens]],
) -> list[Tokens]:
  """Turns pairs into rows of tokens, weighted as their examples are.

  The thoughts before the completions are as `train.reasoning` says.

  Args:
    runtime, train: of the run.
    examples, pairs: in order.
    rendered: rows by the hash of what they are of; added to. Arms mostly share
      them, and to tokenize many rows takes minutes.
  """
  key = digest(
    [pairs, [[e.thought, e.weight] for e in examples]]
    + [train.reasoning, train.normalizer, trained_part(train.options)]
  )
  if key not in rendered:
    rendered[key] = _render_rows(runtime, train, examples, pairs)
  return rendered[key]


def _render_rows(
  runtime: Runtime,
  train: TrainConfig,
  examples: Sequence[Example],
  pairs: Sequence[Pair],
) -> list[Tokens]:
  """Does what `render_pairs` does, without a look at what there is."""
  rows = []
  for example, pair in zip(examples, pairs, strict=True):
    thought = "" if train.reasoning == "empty" else example.thought
    if train.reasoning == "given" and not thought:
      raise ConfigError(
        f"train.reasoning = 'given': the example {example.id} has no thought "
        "(reasoning_content)"
      )
    if not example.messages:
      rows.append(document_row(runtime.chat, example.completion))
    elif train.reasoning == "none":
      rows.append(runtime.chat.example(*pair))
    else:
      on = trained_part(train.options)
      rows.append(runtime.chat.example(*pair, thought, on))
  return [
    weight_tokens(row, example.weight, train.normalizer)
    for row, example in zip(rows, examples, strict=True)
  ]


def weight_tokens(row: Tokens, weight: float, normalizer: str) -> Tokens:
  """Gives trained tokens the weight of their example, or a share of it."""
  if not 0 < weight < float("inf"):
    raise ValueError(f"the weight of an example must be above 0: {weight}")
  if normalizer == "example":
    weight /= sum(w > 0 for w in row.weights)
  return Tokens(row.ids, tuple(weight * w for w in row.weights))


def balance(rows: list[Tokens], examples: Sequence[Tokens]) -> list[Tokens]:
  """Scales each row's weights to the sum of its example's weights."""
  out = []
  for row, example in zip(rows, examples, strict=True):
    share = sum(example.weights) / sum(row.weights)
    out.append(Tokens(row.ids, tuple(share * w for w in row.weights)))
  return out
