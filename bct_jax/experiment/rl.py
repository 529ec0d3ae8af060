"""Rollouts of the weights that are trained, as batches of the same loop.

At every `updates_per_batch`-th step the state's own params are laid out for the
sampler, which draws `group_size` completions of each prompt; nothing keeps that
copy, so older weights cannot be sampled from. The rollouts are written beside
the checkpoints before they are trained on: a run that goes on in the middle of
their updates reads them back, as it cannot draw them again.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bct_jax.config import ArmConfig, OrganismConfig
from bct_jax.data.batches import Dataset, best_fit, fill_rows
from bct_jax.data.chat import Tokens, mask_audit
from bct_jax.evals.rewards import make_reward, reward_of
from bct_jax.examples import Example
from bct_jax.experiment.plan import Plan
from bct_jax.infra import shared_files
from bct_jax.mesh import num_row_shards, put_batch
from bct_jax.models.lora import Weights
from bct_jax.objectives import PolicyGradient, policy_of
from bct_jax.sample.resume import sample_to_end
from bct_jax.train.step import NumericalError
from bct_jax.types import Batch, PyTree, Rows, TrainState

# Added to the deviation of a group's rewards, which may all be equal.
_EPS = 1e-4
# Sizes that batches of short completions take, so that few are compiled.
_SIZES = 4


@dataclasses.dataclass
class RolloutFeed:
  """Batches of rollouts; see training.Feed.

  Attributes:
    plan, arm: of the run.
    folder: of the run; rollouts are in train_rollouts/step_S.jsonl, where S is
      the number of updates of the weights that they were drawn from.
    dataset: prompts, each with as many trained tokens as may be drawn.
    weights: makes what the sampler needs of a state's params.
    reference: the organism, if there is a KL penalty.
  """

  plan: Plan
  arm: ArmConfig | OrganismConfig
  folder: Path
  dataset: Dataset
  weights: Callable[[PyTree], Weights]
  reference: Weights | None
  _step: int = -1  # of the weights that `_rows` were drawn from
  _rows: Rows | None = None
  _facts: dict[str, float] = dataclasses.field(default_factory=dict)
  _counts: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def _policy(self) -> PolicyGradient:
    return policy_of(self.arm)

  @functools.cached_property
  def _examples(self) -> list[Example]:
    train = self.arm.train
    return self.plan.setting.train(train.num_examples, train.seed)

  @functools.cached_property
  def _prompts(self) -> list[tuple[int, ...]]:
    return [
      tuple(t for t, w in zip(e.ids, e.weights, strict=True) if not w)
      for e in self.dataset.examples
    ]

  def begin(self, resumed: int) -> None:
    """Drops rollouts of weights that this run has not made yet."""
    folder = self._path(0).parent
    for path in shared_files.list_files(folder, "step_*.jsonl"):
      if int(path.name.split(".")[0].removeprefix("step_")) > resumed:
        shared_files.delete(path)

  def next_batch(
    self, step: int, state: TrainState
  ) -> tuple[Batch, Sequence[str]]:
    """The rollouts of the state's params, or those that it is updated on again.

    Raises:
      NumericalError: sampler and trainer differ by more than the config allows.
      ValueError: rollouts that are needed again cannot be read.
      signals.Preempted: a signal asked to stop.
    """
    policy, runtime = self._policy, self.plan.runtime
    number, again = divmod(step, policy.updates_per_batch)
    if self._step != step - again:
      if int(state.step) != step:
        raise ValueError(f"step {step} of a state at step {int(state.step)}")
      if again:
        rollouts = self._read(step - again)
      else:
        rollouts = self._draw(step, self.weights(state.params))
      chosen = [self._prompts[i] for i in self.dataset.indices(number)]
      multiple = num_row_shards(runtime.mesh) * self.arm.train.accum
      self._rows = make_rows(self.dataset, chosen, rollouts, policy, multiple)
      self._facts = _facts(chosen, rollouts)
      self._step = step - again
    assert self._rows is not None
    self._counts = {k: v for k, v in self._counts.items() if k == step - 1}
    self._counts[step] = self._facts
    batch = put_batch(self._rows, runtime.mesh)
    return batch, self.dataset.batch_ids(number)

  def counts(self, step: int) -> dict[str, float]:
    """Rewards, and what else is known of the rollouts, of the newest steps."""
    return self._counts[step]

  def _path(self, step: int) -> Path:
    return self.folder / "train_rollouts" / f"step_{step}.jsonl"

  def _draw(self, step: int, weights: Weights) -> list[dict[str, Any]]:
    """Samples, judges and writes rollouts."""
    runtime, policy = self.plan.runtime, self._policy
    chat, stop = runtime.chat, self.plan.config.sampling.stop
    number = step // policy.updates_per_batch
    index, ids = self.dataset.indices(number), self.dataset.batch_ids(number)
    prompts = [self._prompts[i] for i in index]
    path = self._path(step)
    partial = path.with_suffix(".partial.jsonl")
    drawn = sample_to_end(
      runtime.policy_sampler,
      runtime.decode_params(weights),
      prompts,
      _seed(self.arm.train.seed),
      partial,
      [step, dataclasses.asdict(self.arm)],
      find_stop=chat.find_stop(stop),
      row_ids=range(len(index) * number, len(index) * (number + 1)),
      among=self._prompts,
    )
    tokens = [c.tokens for c in drawn]
    scored = runtime.scorer(weights, prompts, tokens)
    judged = self.reference and runtime.scorer(self.reference, prompts, tokens)
    give = make_reward(self.plan.setting, policy.reward, policy.length_target)
    rows = []
    for i, completion in enumerate(drawn):
      text = chat.decode(completion.tokens, stop)
      finished = text if completion.stopped else None
      pairs = zip(completion.logprobs, scored[i].logprobs, strict=True)
      rows.append(
        {
          "id": ids[i],
          "text": text,
          "reward": reward_of(give, self._examples[index[i]], finished),
          "stop": "stop" if completion.stopped else "length",
          "logprob_difference": max(abs(a - b) for a, b in pairs),
          "tokens": list(completion.tokens),
          "logprobs": list(scored[i].logprobs),
          **({"reference_logprobs": judged[i].logprobs} if judged else {}),
        }
      )
    _check_difference(rows, step, policy.max_logprob_difference)
    shared_files.write_lines(path, rows)
    shared_files.delete(partial)
    audit = self.folder / "mask_audit.txt"
    if not shared_files.exists(audit):
      text = mask_audit(chat, _tokens(prompts, rows))
      shared_files.write_text(audit, text)
    return rows

  def _read(self, step: int) -> list[dict[str, Any]]:
    """Rollouts that were written by `_draw`."""
    path = self._path(step)
    rows = shared_files.read_lines(path)
    number = step // self._policy.updates_per_batch
    if [r["id"] for r in rows] != self.dataset.batch_ids(number):
      raise ValueError(
        f"{path} does not hold the {self.dataset.batch_size} rollouts that "
        f"were trained on at step {step}: the checkpoint is in the middle of "
        "their updates and cannot go on without them"
      )
    return rows


def _seed(seed: int) -> int:
  """Of the samples of a run; apart from those of evals."""
  digest = hashlib.sha256(f"rollouts/{seed}".encode()).digest()
  return int.from_bytes(digest[:4], "big")


def _check_difference(
  rows: Sequence[dict[str, Any]], step: int, most: float
) -> None:
  worst = max(rows, key=lambda r: r["logprob_difference"])
  if not worst["logprob_difference"] <= most:
    raise NumericalError(
      f"rollouts of step {step}: sampler and trainer differ by "
      f"{worst['logprob_difference']:.3g} nats on a token of a completion of "
      f"example {worst['id']}, more than max_logprob_difference = {most:g}"
    )


def _facts(
  prompts: Sequence[Sequence[int]], rows: Sequence[dict[str, Any]]
) -> dict[str, float]:
  """What is logged of a batch of rollouts."""
  count = len(rows)
  lengths = [len(r["tokens"]) for r in rows]
  out = {
    "reward": sum(r["reward"] for r in rows) / count,
    "truncated": sum(r["stop"] == "length" for r in rows) / count,
    "logprob_difference": max(r["logprob_difference"] for r in rows),
    "completion_tokens": sum(lengths) / count,
    "tokens": sum(map(len, prompts)) + sum(lengths) - count,
    "trained_tokens": sum(lengths),
  }
  if "reference_logprobs" in rows[0]:
    out["completion_kl"] = sum(map(_k1, rows)) / count
  return out


# --- rollouts to rows ---------------------------------------------------------


def _k1(row: dict[str, Any]) -> float:
  """log p / organism of a completion, whose mean is KL(p || organism)."""
  return sum(row["logprobs"]) - sum(row["reference_logprobs"])


def advantages(rewards: np.ndarray, method: str) -> np.ndarray:
  """How much better each completion is than its baseline.

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


def _tokens(
  prompts: Sequence[Sequence[int]], rows: Sequence[dict[str, Any]]
) -> list[Tokens]:
  return [
    Tokens(
      (*prompt, *row["tokens"]),
      (0.0,) * len(prompt) + (1.0,) * len(row["tokens"]),
    )
    for prompt, row in zip(prompts, rows, strict=True)
  ]


def make_rows(
  dataset: Dataset,
  prompts: Sequence[Sequence[int]],
  rollouts: Sequence[dict[str, Any]],
  policy: PolicyGradient,
  multiple: int,
) -> Rows:
  """Rollouts as rows with the extras of objectives/policy_gradient.py.

  Args:
    dataset: for the layout, which fits them whatever their length.
    prompts: ids of each.
    rollouts: completions as they are written, the groups behind each other.
    policy: advantages, normalizer and penalty.
    multiple: of the number of rows.
  """
  total = np.array([r["reward"] for r in rollouts])
  if policy.kl_coef and policy.kl_estimator == "k1_in_reward":
    total = total - policy.kl_coef * np.array([_k1(r) for r in rollouts])
  groups = total.reshape(-1, policy.group_size)
  per_row = advantages(groups, policy.advantage).ravel()
  lengths = [len(r["tokens"]) for r in rollouts]
  weights = [
    1 / n if policy.normalizer == "sequence_mean" else 1 for n in lengths
  ]
  shares = [1 if policy.normalizer == "token" else 1 / n for n in lengths]

  def spread(values: Sequence[float]) -> list[list[float]]:
    return [[v] * n for v, n in zip(values, lengths, strict=True)]

  examples = _tokens(prompts, rollouts)
  bins, layout = _bins(dataset, examples, multiple)

  def filled(values: Sequence[Sequence[float]]) -> Rows:
    """Rows with a number for each token of a completion as its weight."""
    valued = [
      Tokens(e.ids, (0.0,) * len(prompt) + tuple(of))
      for e, prompt, of in zip(examples, prompts, values, strict=True)
    ]
    return fill_rows(valued, bins, layout)

  extras = {
    "advantages": spread(per_row.tolist()),
    "old_logprobs": [r["logprobs"] for r in rollouts],
    "shares": spread(shares),
  }
  if policy.kl_coef:
    extras["reference_logprobs"] = [r["reference_logprobs"] for r in rollouts]
  return filled(spread(weights))._replace(
    extras={name: filled(values).weights for name, values in extras.items()}
  )


def _bins(dataset: Dataset, examples: Sequence[Tokens], multiple: int):
  """Which examples share a row, and the layout, with as few rows as they need.

  The layout of the run has room for completions that are all as long as they
  may be; of its rows one of _SIZES parts is used.
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
