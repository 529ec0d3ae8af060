"""Samples and labels the eval rollouts of a plan."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bct_jax.evals.evaluate import label_rollouts
from bct_jax.experiment.plan import Plan
from bct_jax.infra import memory
from bct_jax.infra.progress import stage
from bct_jax.models.lora import Weights
from bct_jax.sample.resume import sample_to_end
from bct_jax.types import Completion

# Eval rollouts whose log-probabilities the trainer's forward pass gives too.
CHECKED = 8


def sample_rows(
  plan: Plan, weights: Weights, name: str, partial: Path | None = None
) -> list[dict[str, Any]]:
  """Samples and labels rollouts of all eval, held-out and probe prompts.

  Args:
    plan: with the prompts.
    weights: to sample from.
    name: of the stage of progress.
    partial: file of the completions while they are sampled, which a run that
      was killed goes on from. The caller deletes it when the rows are saved.

  Returns:
    A row for each prompt. The first CHECKED rows at most have
    `logprob_difference` too: the largest absolute difference, in nats, of a
    token's log-probability between the sampler and the forward pass of
    training.
  """
  return sample_arms(plan, [weights], name, partial)[0]


def sample_arms(
  plan: Plan,
  arms: Sequence[Weights],
  name: str,
  partial: Path | None = None,
) -> list[list[dict[str, Any]]]:
  """Samples as `sample_rows` does, for several arms over the same params.

  The rows of all arms are sampled in one batch. An arm's rows keep the row ids
  that they have when the arm is sampled alone.

  Returns:
    The rows of each arm.
  """
  runtime, count = plan.runtime, len(plan.prompts)
  sampling = plan.config.sampling
  numbers = range(len(arms))
  memory.release_memory()  # what training has left
  with stage(name, count * len(arms), "rows") as bar:
    completions = sample_to_end(
      runtime.sampler,
      runtime.decode_params(*arms),
      [p.ids for _ in numbers for p in plan.prompts],
      sampling.seed,
      partial,
      dataclasses.asdict(sampling),
      bar,
      runtime.chat.find_stop(sampling.stop),
      row_ids=[i for _ in numbers for i in range(count)],
      arms=[arm for arm in numbers for _ in range(count)] if arms[1:] else None,
    )
  rows = [
    _label(plan, weights, completions[arm * count : (arm + 1) * count])
    for arm, weights in enumerate(arms)
  ]
  memory.release_memory()
  return rows


def _label(
  plan: Plan, weights: Weights, completions: Sequence[Completion]
) -> list[dict[str, Any]]:
  """Makes rows of completions: labels, and what the forward pass checks."""
  runtime, prompts = plan.runtime, plan.prompts
  rows = label_rollouts(
    prompts,
    completions,
    runtime.chat,
    plan.setting,
    plan.probe,
    plan.config.sampling.stop,
  )
  checked = [p.ids for p in prompts if p.split == "eval"][:CHECKED]
  samples = completions[: len(checked)]
  scores = runtime.scorer(weights, checked, [c.tokens for c in samples])
  for row, sample, score in zip(
    rows[: len(checked)], samples, scores, strict=True
  ):
    pairs = zip(sample.logprobs, score.logprobs, strict=True)
    row["logprob_difference"] = max(abs(x - y) for x, y in pairs)
  if plan.config.eval.references:
    _score_references(plan, weights, rows)
  return rows


def references(
  plan: Plan, name: str
) -> tuple[list[tuple[int, ...]], list[list[int]]]:
  """Returns token ids of the eval prompts and of a behavior's completions.

  Args:
    plan: with the prompts.
    name: of the behavior: initial or alternate.

  Returns:
    The ids of each prompt, and of each completion with the end of its turn.
  """
  chat = plan.runtime.chat
  evals = [p for p in plan.prompts if p.split == "eval"]
  texts = [getattr(p.example, name) for p in evals]
  ended = [
    chat.answer(p.example.messages, text)
    for p, text in zip(evals, texts, strict=True)
  ]
  return [p.ids for p in evals], ended


def _score_references(
  plan: Plan, weights: Weights, rows: list[dict[str, Any]]
) -> None:
  """Adds to the rows of eval prompts how likely each behavior's answer is.

  `logprob_initial` and `logprob_alternate` are log p of the behavior's
  completion with the end of its turn, in nats, whatever was sampled.
  """
  evals = [i for i, p in enumerate(plan.prompts) if p.split == "eval"]
  for name in ("initial", "alternate"):
    scores = plan.runtime.scorer(weights, *references(plan, name))
    for i, score in zip(evals, scores, strict=True):
      rows[i][f"logprob_{name}"] = sum(score.logprobs)
