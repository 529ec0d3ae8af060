"""Samples and labels the eval rollouts of a plan."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bct_jax.config import SamplingConfig
from bct_jax.evals.evaluate import (
  Prompt,
  Thoughts,
  label_rollouts,
  reject_repeats,
)
from bct_jax.evals.schema import SAMPLED
from bct_jax.experiment.plan import Plan
from bct_jax.infra import memory
from bct_jax.infra.progress import stage
from bct_jax.models.lora import Weights
from bct_jax.sample.resume import sample_to_end
from bct_jax.sample.sampler import Sample
from bct_jax.types import Completion, PyTree

# Eval rollouts whose log-probabilities the trainer's forward pass gives too.
CHECKED = 8
# Row ids of sample k begin at k times this, so that neither more prompts nor
# more samples change what is drawn for the others.
_STRIDE = 1 << 20

# Rollouts of an eval that are there already, by `key_of`.
Kept = Mapping[tuple[str, str, int], dict[str, Any]]


def key_of(row: Mapping[str, Any]) -> tuple[str, str, int]:
  """Returns what tells a row of an eval from its others."""
  return row["split"], row["id"], row.get("sample", 0)


def is_finite(rows: Sequence[Mapping[str, Any]] | None) -> bool:
  """Tells whether all numbers of rollouts are finite; no rows are."""
  numbers = [v for row in rows or () for v in row.values()]
  return all(math.isfinite(v) for v in numbers if isinstance(v, float))


def sample_rows(
  plan: Plan,
  weights: Weights,
  name: str,
  partial: Path | None = None,
  kept: Kept | None = None,
) -> list[dict[str, Any]]:
  """Samples and labels rollouts of all eval, held-out and probe prompts.

  Args:
    plan: with the prompts.
    weights: to sample from.
    name: of the stage of progress.
    partial: file of the completions while they are sampled, which a run that
      was killed goes on from. The caller deletes it, and the other one that
      `partials` names, when the rows are saved.
    kept: rows that stay as they are; the others alone are sampled.

  Returns:
    A row for each prompt, and then `eval.samples` rows of each eval prompt. The
    first CHECKED rows at most have
    `logprob_difference` too: the largest absolute difference, in nats, of a
    token's log-probability between the sampler and the forward pass of
    training.
  """
  return sample_arms(plan, [weights], name, partial, [kept or {}])[0]


def sample_arms(
  plan: Plan,
  arms: Sequence[Weights],
  name: str,
  partial: Path | None = None,
  kept: Sequence[Kept] | None = None,
) -> list[list[dict[str, Any]]]:
  """Samples as `sample_rows` does, for several arms over the same params.

  The rows of all arms are sampled in one batch. An arm's rows keep the row ids
  that they have when the arm is sampled alone.

  Returns:
    The rows of each arm: of all prompts, and then `eval.samples` rows of each
    eval prompt.
  """
  memory.release_memory()  # what training has left
  runtime, sampling = plan.runtime, plan.config.eval_sampling
  params, prompts = runtime.decode_params(*arms), plan.prompts
  kept = kept or [{} for _ in arms]
  completions = _complete(
    plan, arms, params, runtime.sampler, sampling,
    [(0, prompt) for prompt in prompts], plan.row_ids, name, partial, kept,
  )  # fmt: skip
  rows = [
    _rows(plan, part, 0, old, weights)
    for weights, part, old in zip(arms, completions, kept, strict=True)
  ]
  if samples := plan.config.eval.samples:
    evals = [p for p in prompts if p.split == "eval"]
    numbers = range(1, samples + 1)
    drawn = _complete(
      plan, arms, params, runtime.eval_sampler, sampling.untruncated(1.0),
      [(k, prompt) for k in numbers for prompt in evals],
      [k * _STRIDE + i for k in numbers for i in range(len(evals))],
      f"{name}, samples", partial and partials(partial)[1], kept,
    )  # fmt: skip
    for of_arm, part, old in zip(rows, drawn, kept, strict=True):
      for k in numbers:
        of_arm += _rows(plan, part, k, old)
  memory.release_memory()
  return rows


# A completion by the number of the sample and its prompt.
_Drawn = list[tuple[int, Prompt, Completion]]


def _complete(
  plan: Plan,
  arms: Sequence[Weights],
  params: PyTree,
  sampler: Sample,
  sampling: SamplingConfig,
  draws: Sequence[tuple[int, Prompt]],
  row_ids: Sequence[int],
  name: str,
  partial: Path | None,
  kept: Sequence[Kept],
) -> list[_Drawn]:
  """Samples completions for each arm, but of the rows that are kept.

  Args:
    plan, arms, name, partial, kept: as of `sample_arms`.
    params: of the arms, for the sampler.
    sampler: what samples as `sampling` says.
    draws: numbers of samples, and their prompts.
    row_ids: of each; the random keys follow from it.

  Returns:
    The completions of each arm.
  """
  chat, count, numbers = plan.runtime.chat, len(draws), range(len(arms))
  skip = {
    arm * count + i
    for arm in numbers
    for i, (k, p) in enumerate(draws)
    if (SAMPLED if k else p.split, p.example.id, k) in kept[arm]
  }
  with stage(name, count * len(arms) - len(skip), "rows") as bar:
    completions = sample_to_end(
      sampler,
      params,
      [p.ids for _ in numbers for _, p in draws],
      sampling.seed,
      partial,
      sampling.facts(),
      bar,
      chat.find_stop(sampling.stop, plan.config.eval.thinking),
      row_ids=[i for _ in numbers for i in row_ids],
      arms=[arm for arm in numbers for _ in range(count)] if arms[1:] else None,
      skip=skip,
    )
  new = iter(completions)
  return [
    [
      (k, prompt, next(new))
      for i, (k, prompt) in enumerate(draws)
      if arm * count + i not in skip
    ]
    for arm in numbers
  ]


def partials(partial: Path) -> tuple[Path, Path]:
  """Returns all files of an eval's completions while they are sampled.

  The second is of what `eval.samples` adds. Both are to be deleted once the
  rows are saved.
  """
  name = partial.name.replace(".partial", ".samples.partial")
  return partial, partial.with_name(name)


def _thoughts(plan: Plan) -> Thoughts | None:
  """Says how the thoughts of evals are read; None where there are none."""
  return Thoughts.of_evals(plan.config.eval, plan.config.sampling, plan.setting)


def _rows(
  plan: Plan,
  drawn: _Drawn,
  number: int,
  kept: Kept,
  weights: Weights | None = None,
) -> list[dict[str, Any]]:
  """Makes rows of completions: labels, and what the forward pass checks.

  Args:
    plan: with the prompts.
    drawn: completions of an arm; those of sample `number` are taken.
    number: 0 for those that `sampling` says.
    kept: rows that stay, which are put where their prompts are.
    weights: of the arm, to check sample 0 by the forward pass.
  """
  prompts = [p for k, p, _ in drawn if k == number]
  completions = [c for k, _, c in drawn if k == number]
  rows = label_rollouts(
    prompts,
    completions,
    plan.runtime.chat,
    plan.setting,
    plan.probe,
    plan.config.sampling.stop,
    number,
    _thoughts(plan),
    plan.config.eval.cut_answers,
  )
  if weights is not None:
    _check(plan, weights, prompts, completions, rows)
  if not kept:
    return rows
  old = [row for row in kept.values() if row.get("sample", 0) == number]
  # What a text is repeated by includes the rows that stay as they were.
  judged = {key_of(r): r for r in reject_repeats([*rows, *old])} | dict(kept)
  asked = [p for p in plan.prompts if not number or p.split == "eval"]
  return [
    judged[SAMPLED if number else p.split, p.example.id, number] for p in asked
  ]


def _check(
  plan: Plan,
  weights: Weights,
  prompts: Sequence[Prompt],
  completions: Sequence[Completion],
  rows: list[dict[str, Any]],
) -> None:
  """Adds to rows what the forward pass of training gives for them."""
  checked = [p.ids for p in prompts if p.split == "eval"][:CHECKED]
  if not checked:
    return
  samples = completions[: len(checked)]
  scores = plan.runtime.scorer(weights, checked, [c.tokens for c in samples])
  for row, sample, score in zip(
    rows[: len(checked)], samples, scores, strict=True
  ):
    pairs = zip(sample.logprobs, score.logprobs, strict=True)
    row["logprob_difference"] = max(abs(x - y) for x, y in pairs)
  if plan.config.eval.references:
    _score_references(plan, weights, prompts, rows)


def references(
  plan: Plan, name: str, prompts: Sequence[Prompt] = ()
) -> tuple[list[tuple[int, ...]], list[list[int]]]:
  """Returns token ids of the eval prompts and of a behavior's completions.

  Args:
    plan: with the prompts.
    name: of the behavior: initial or alternate.
    prompts: to look at; none are those of the plan.

  Returns:
    The ids of each prompt, and of each completion with the end of its turn.
  """
  chat = plan.runtime.chat
  evals = [p for p in prompts or plan.prompts if p.split == "eval"]
  texts = [getattr(p.example, name) for p in evals]
  ended = [
    chat.answer(p.example.messages, text)
    for p, text in zip(evals, texts, strict=True)
  ]
  if plan.config.eval.thinking:  # an answer stands behind no open thought
    return [tuple(chat.prompt(p.example.messages)) for p in evals], ended
  return [p.ids for p in evals], ended


def _score_references(
  plan: Plan,
  weights: Weights,
  prompts: Sequence[Prompt],
  rows: list[dict[str, Any]],
) -> None:
  """Adds to the rows of eval prompts how likely each behavior's answer is.

  `logprob_initial` and `logprob_alternate` are log p of the behavior's
  completion with the end of its turn, in nats, whatever was sampled.
  """
  evals = [i for i, p in enumerate(prompts) if p.split == "eval"]
  for name in ("initial", "alternate"):
    scores = plan.runtime.scorer(weights, *references(plan, name, prompts))
    for i, score in zip(evals, scores, strict=True):
      rows[i][f"logprob_{name}"] = sum(score.logprobs)
