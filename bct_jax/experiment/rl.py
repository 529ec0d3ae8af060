"""Draws rollouts from the weights that are trained, as batches of the loop.

With updates_per_batch = 2 the time line of a run is:

  step       0       1        2       3        4
  rollouts   draw 0  again 0  draw 2  again 2  draw 4
  file       step_0           step_2           step_4

To draw, the state's own params are laid out for the sampler, which samples
`group_size` completions of each prompt. Nothing keeps that copy, so older
weights cannot be sampled from. Rollouts are therefore written beside the
checkpoints before they are trained on: a run that goes on in the middle of
their updates reads them back, as it cannot draw them again.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bct_jax.config import ArmConfig, OrganismConfig
from bct_jax.data.batches import Dataset
from bct_jax.data.chat import mask_audit
from bct_jax.evals.evaluate import Thoughts
from bct_jax.evals.rewards import Reward, make_reward, reward_of
from bct_jax.examples import Example
from bct_jax.experiment.plan import Plan
from bct_jax.experiment.rollout_rows import (
  join_tokens,
  log_ratio,
  make_rows,
  trained_mask,
)
from bct_jax.infra import shared_files
from bct_jax.infra.formats import number
from bct_jax.mesh import num_row_shards, put_batch
from bct_jax.models.lora import Weights
from bct_jax.objectives import PolicyGradient, policy_of, trained_part
from bct_jax.sample.resume import sample_to_end
from bct_jax.train.step import NumericalError
from bct_jax.types import Batch, Completion, PyTree, Rows, TrainState


@dataclasses.dataclass
class RolloutFeed:
  """Gives batches of rollouts; see training.Feed.

  Attributes:
    plan, arm: of the run.
    folder: of the run. Rollouts are in train_rollouts/step_S.jsonl, where S is
      the number of updates of the weights that they were drawn from.
    dataset: prompts, each with as many trained tokens as may be drawn.
    weights: joins a state's params with what the run leaves frozen.
    reference: the organism, if there is a KL penalty.
    drawn: whether all rollouts are in the files, as of updates that are made
      again.
  """

  plan: Plan
  arm: ArmConfig | OrganismConfig
  folder: Path
  dataset: Dataset
  weights: Callable[[PyTree], Weights]
  reference: Weights | None
  drawn: bool = False
  _step: int = -1  # of the weights that `_rows` were drawn from
  _rows: Rows | None = None
  _facts: dict[str, float] = dataclasses.field(default_factory=dict)
  _counts: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def _policy(self) -> PolicyGradient:
    """Returns the objective of the run."""
    return policy_of(self.arm)

  @property
  def _part(self) -> str:
    """Returns which part of completions is trained."""
    return trained_part(self.arm.train.options)

  @functools.cached_property
  def _thoughts(self) -> Thoughts | None:
    """Returns how thoughts are read; None where none are drawn."""
    train, config = self.arm.train, self.plan.config
    if train.reasoning != "own":
      return None
    return Thoughts.make(
      train.thought_tokens, config.eval, config.sampling, self.plan.setting
    )

  @functools.cached_property
  def _examples(self) -> list[Example]:
    """Makes the examples whose prompts are sampled."""
    train = self.arm.train
    return self.plan.setting.train(train.num_examples, train.seed)

  @functools.cached_property
  def _prompts(self) -> list[tuple[int, ...]]:
    """Returns the token ids of each prompt."""
    return [
      tuple(t for t, w in zip(e.ids, e.weights, strict=True) if not w)
      for e in self.dataset.examples
    ]

  def begin(self, resumed: int) -> None:
    """Deletes rollouts of weights that this run has not reached yet."""
    folder = self._path(0).parent
    for path in shared_files.list_files(folder, "step_*.jsonl"):
      if int(path.name.split(".")[0].removeprefix("step_")) > resumed:
        shared_files.delete(path)

  def next_batch(
    self, step: int, state: TrainState
  ) -> tuple[Batch, Sequence[str]]:
    """Returns a batch of rollouts and the ids of their examples.

    The rollouts are drawn from the state's params, or are those of an earlier
    step on which it is updated again.

    Raises:
      NumericalError: sampler and trainer differ by more than the config allows.
      ValueError: rollouts of an earlier step cannot be read.
      signals.Preempted: a signal asked to stop.
    """
    policy, runtime = self._policy, self.plan.runtime
    # The number of the batch, and of updates on it that came before.
    number, updates = divmod(step, policy.updates_per_batch)
    if self._step != step - updates:
      if int(state.step) != step:
        raise ValueError(f"step {step} of a state at step {int(state.step)}")
      if updates or self.drawn:
        rollouts = self._read(step - updates)
      else:
        rollouts = self._draw(step, self.weights(state.params))
      prompts = [self._prompts[i] for i in self.dataset.indices(number)]
      multiple = num_row_shards(runtime.mesh) * self.arm.train.accum
      self._rows = make_rows(
        self.dataset, prompts, rollouts, policy, multiple, self._part
      )
      self._facts = _facts(prompts, rollouts, self._part)
      self._step = step - updates
    assert self._rows is not None
    self._counts = {k: v for k, v in self._counts.items() if k == step - 1}
    self._counts[step] = self._facts
    batch = put_batch(self._rows, runtime.mesh)
    return batch, self.dataset.batch_ids(number)

  def counts(self, step: int) -> dict[str, float]:
    """Returns rewards and other facts of the rollouts of a step.

    Only the newest two steps have them.
    """
    return self._counts[step]

  def _path(self, step: int) -> Path:
    """Returns the file of the rollouts that were drawn at a step."""
    return self.folder / "train_rollouts" / f"step_{step}.jsonl"

  def _row(
    self,
    example: Example,
    completion: Completion,
    logprobs: Sequence[float],
    reward: Reward,
  ) -> dict[str, Any]:
    """Makes the row of a rollout.

    Args:
      example: what was asked.
      completion: as it was sampled.
      logprobs: of its tokens, by the forward pass of training.
      reward: what it may earn.
    """
    stop, thoughts = self.plan.config.sampling.stop, self._thoughts
    reply = self.plan.runtime.chat.reply(
      completion.tokens, stop, thinking=thoughts is not None
    )
    stopped = completion.stopped
    if thoughts is not None:
      stopped &= thoughts.fits(reply, len(completion.tokens))
    pairs = zip(completion.logprobs, logprobs, strict=True)
    return {
      "id": example.id,
      **(thoughts.facts(reply) if thoughts else {}),
      "text": reply.text,
      "reward": reward_of(reward, example, reply.text if stopped else None),
      "stop": "stop" if stopped else "length",
      "logprob_difference": max(abs(a - b) for a, b in pairs),
      "tokens": list(completion.tokens),
      "logprobs": list(logprobs),
    }

  def _draw(self, step: int, weights: Weights) -> list[dict[str, Any]]:
    """Samples rollouts, gives them rewards and writes them.

    Args:
      step: of the weights, the first step that is trained on these rollouts.
      weights: to sample from.
    """
    runtime, policy = self.plan.runtime, self._policy
    chat, stop = runtime.chat, self.plan.config.sampling.stop
    thinking = self._thoughts is not None
    room = self.arm.train.thought_tokens * thinking
    number = step // policy.updates_per_batch
    index = self.dataset.indices(number)
    prompts = [self._prompts[i] for i in index]
    path = self._path(step)
    partial = path.with_suffix(".partial.jsonl")
    completions = sample_to_end(
      runtime.make_policy_sampler(room),
      runtime.decode_params(weights),
      prompts,
      _seed(self.arm.train.seed),
      partial,
      [step, dataclasses.asdict(self.arm)],
      find_stop=chat.find_stop(stop, thinking),
      row_ids=range(len(index) * number, len(index) * (number + 1)),
      among=self._prompts,
    )
    tokens = [c.tokens for c in completions]
    scores = runtime.scorer(weights, prompts, tokens)
    reference = self.reference and runtime.scorer(
      self.reference, prompts, tokens
    )
    reward = make_reward(self.plan.setting, policy.reward, policy.length_target)
    rows = []
    for i, completion in enumerate(completions):
      row = self._row(
        self._examples[index[i]], completion, scores[i].logprobs, reward
      )
      if reference:
        row["reference_logprobs"] = reference[i].logprobs
      rows.append(row)
    _check_difference(rows, step, policy.max_logprob_difference)
    shared_files.write_lines(path, rows)
    shared_files.delete(partial)
    audit = self.folder / "mask_audit.txt"
    if not shared_files.exists(audit):
      text = mask_audit(chat, join_tokens(prompts, rows, self._part))
      shared_files.write_text(audit, text)
    return rows

  def _read(self, step: int) -> list[dict[str, Any]]:
    """Reads rollouts that `_draw` wrote.

    Raises:
      ValueError: the file does not hold the batch of this step.
    """
    path = self._path(step)
    rows = shared_files.read_lines(path)
    number = step // self._policy.updates_per_batch
    if [r["id"] for r in rows] != self.dataset.batch_ids(number):
      raise ValueError(
        f"{path} does not hold the {self.dataset.batch_size} rollouts that "
        f"were trained on at step {step}: updates on them were done already, "
        "which cannot be done again without them"
      )
    return rows


def _seed(seed: int) -> int:
  """Makes the seed of a run's samples, another one than that of its evals."""
  digest = hashlib.sha256(f"rollouts/{seed}".encode()).digest()
  return int.from_bytes(digest[:4], "big")


def _check_difference(
  rows: Sequence[dict[str, Any]], step: int, limit: float
) -> None:
  """Checks that sampler and trainer agree on the log-probabilities.

  Args:
    rows: rollouts.
    step: of the weights that they were drawn from.
    limit: in nats, for a token.

  Raises:
    NumericalError: they differ by more on some token.
  """
  worst = max(rows, key=lambda r: r["logprob_difference"])
  if not worst["logprob_difference"] <= limit:
    raise NumericalError(
      f"rollouts of step {step}: sampler and trainer differ by "
      f"{worst['logprob_difference']:.3g} nats on a token of a completion of "
      f"example {worst['id']}, more than max_logprob_difference = "
      f"{number(limit)}"
    )


def _facts(
  prompts: Sequence[Sequence[int]], rows: Sequence[dict[str, Any]], part: str
) -> dict[str, float]:
  """Computes what is logged of a batch of rollouts, whose part is trained."""
  count = len(rows)
  lengths = [len(r["tokens"]) for r in rows]
  out = {
    "reward": sum(r["reward"] for r in rows) / count,
    "truncated": sum(r["stop"] == "length" for r in rows) / count,
    "logprob_difference": max(r["logprob_difference"] for r in rows),
    "completion_tokens": sum(lengths) / count,
    "tokens": sum(map(len, prompts)) + sum(lengths) - count,
    "trained_tokens": sum(sum(trained_mask(r, part)) for r in rows),
  }
  for name in ("thought_tokens", "thought_mentions"):
    if name in rows[0]:
      out[name] = sum(r[name] for r in rows) / count
  if "reference_logprobs" in rows[0]:
    out["completion_kl"] = sum(log_ratio(r, part) for r in rows) / count
  return out
