"""Turns rollouts into rows of tokens with what PolicyGradient reads of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bct_jax.data.batches import Dataset, Layout, best_fit, fill_rows
from bct_jax.data.tokens import Tokens
from bct_jax.objectives import PolicyGradient
from bct_jax.types import Rows

# Added to the deviation of a group's rewards, which may all be equal.
_EPS = 1e-4
# How many numbers of rows a batch can have, so that few programs are compiled.
_SIZES = 4


def trained_mask(row: dict[str, Any], part: str) -> list[bool]:
  """Says which tokens of a rollout are trained.

  A thought without an end has no answer behind it. The markers of a thought are
  part of it, and the end of the turn is part of the answer.

  Args:
    row: as it is written.
    part: answer, thought or both, see objectives.trained_part.
  """
  count = row.get("thought_tokens", 0)
  rest = len(row["tokens"]) - count
  return [part != "answer"] * count + [part != "thought"] * rest


def log_ratio(row: dict[str, Any], part: str) -> float:
  """Computes log (p / organism) of the trained part of a completion.

  Its mean over completions drawn from p is KL(p || organism), of an answer
  given the thought before it.
  """
  pairs = zip(row["logprobs"], row["reference_logprobs"], strict=True)
  mask = trained_mask(row, part)
  return sum(a - b for (a, b), m in zip(pairs, mask, strict=True) if m)


def advantages(rewards: np.ndarray, method: str) -> np.ndarray:
  """Computes how much better each completion is than its baseline.

  Args:
    rewards: [groups, completions of a group].
    method: leave_one_out is the reward less the mean of the others of its group
      (RLOO: Ahmadian et al. 2024, arXiv 2402.14740, 4); group_normalized is the
      reward less the mean of its group, over the group's sample standard
      deviation plus 1e-4 (GRPO: Shao et al. 2024, arXiv 2402.03300, 4.1.2);
      none is the reward itself.

  Returns:
    An array of the same shape.
  """
  size = rewards.shape[1]
  centred = rewards - rewards.mean(axis=1, keepdims=True)
  if method == "leave_one_out":
    return centred * size / (size - 1)
  if method == "group_normalized":
    return centred / (rewards.std(axis=1, ddof=1, keepdims=True) + _EPS)
  return rewards


def join_tokens(
  prompts: Sequence[Sequence[int]], rows: Sequence[dict[str, Any]], part: str
) -> list[Tokens]:
  """Joins prompts and completions, whose part is trained."""
  return [
    Tokens(
      (*prompt, *row["tokens"]),
      (*(0.0,) * len(prompt), *map(float, trained_mask(row, part))),
    )
    for prompt, row in zip(prompts, rows, strict=True)
  ]


def _normalize(
  lengths: Sequence[int], normalizer: str
) -> tuple[list[float], list[float]]:
  """Computes what a loss is a mean over, see PolicyGradient.normalizer.

  Args:
    lengths: trained tokens of each completion.
    normalizer: one of NORMALIZERS.

  Returns:
    For each completion, the weight of a token in the loss, and what a token
    adds to the divisor.
  """
  weights = [
    1 / max(1, n) if normalizer == "sequence_mean" else 1 for n in lengths
  ]
  # What is trained bears the share of completions without a trained part.
  each = len(lengths) / max(1, sum(n > 0 for n in lengths))
  shares = [1 if normalizer == "token" else each / max(1, n) for n in lengths]
  return weights, shares


def make_rows(
  dataset: Dataset,
  prompts: Sequence[Sequence[int]],
  rollouts: Sequence[dict[str, Any]],
  policy: PolicyGradient,
  multiple: int,
  part: str = "answer",
) -> Rows:
  """Packs rollouts into rows with the extras that PolicyGradient reads.

  A completion without the trained part has no loss, and still counts in a mean
  over completions.

  Args:
    dataset: for the layout, which has room for rollouts of any length.
    prompts: token ids of each.
    rollouts: completions as they are written, one group after the other.
    policy: for advantages, normalizer and penalty.
    multiple: what the number of rows must be a multiple of.
    part: of completions that is trained: answer, thought or both.
  """
  total = np.array([r["reward"] for r in rollouts])
  if policy.kl_coef and policy.kl_estimator == "k1_in_reward":
    total = total - policy.kl_coef * np.array(
      [log_ratio(r, part) for r in rollouts]
    )
  groups = total.reshape(-1, policy.group_size)
  per_row = advantages(groups, policy.advantage).ravel()
  masks = [trained_mask(r, part) for r in rollouts]
  weights, shares = _normalize([sum(mask) for mask in masks], policy.normalizer)

  def spread(values: Sequence[float]) -> list[list[float]]:
    """Repeats the value of each completion for its tokens."""
    return [[v] * len(m) for v, m in zip(values, masks, strict=True)]

  examples = join_tokens(prompts, rollouts, part)
  bins, layout = _bins(dataset, examples, multiple)

  def fill(values: Sequence[Sequence[float]]) -> Rows:
    """Packs rows whose weights are the values of the trained tokens."""
    weighted = [
      Tokens(e.ids, (*(0.0,) * (len(e.ids) - len(m)), *np.where(m, v, 0.0)))
      for e, m, v in zip(examples, masks, values, strict=True)
    ]
    return fill_rows(weighted, bins, layout)

  extras = {
    "advantages": spread(per_row.tolist()),
    "old_logprobs": [r["logprobs"] for r in rollouts],
    "shares": spread(shares),
  }
  if policy.kl_coef:
    extras["reference_logprobs"] = [r["reference_logprobs"] for r in rollouts]
  return fill(spread(weights))._replace(
    extras={name: fill(values).weights for name, values in extras.items()}
  )


def _bins(
  dataset: Dataset, examples: Sequence[Tokens], multiple: int
) -> tuple[list[list[int]], Layout]:
  """Chooses which examples share a row, in as few rows as they need.

  The layout of the run has room for completions that are all as long as they
  may be. A batch takes one of _SIZES shares of its rows.

  Returns:
    The numbers of the examples in each row, and the layout of the batch.
  """
  layout = dataset.layout
  if not layout.packed:
    return [[i] for i in range(len(examples))], layout
  sizes = [(len(e.ids) - 1, int(sum(e.weights))) for e in examples]
  bins = best_fit(sizes, layout.length, layout.num_trained)
  part = -(-layout.rows // (_SIZES * multiple)) * multiple
  rows = -(-len(bins) // part) * part
  if len(bins) <= layout.rows:
    rows = min(rows, layout.rows)
  return bins, dataclasses.replace(layout, rows=rows)
