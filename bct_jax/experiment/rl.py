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

import numpy as np

from bct_jax.config import ArmConfig, OrganismConfig
from bct_jax.data.batches import Dataset, Layout, best_fit, fill_rows
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
# How many numbers of rows a batch can have, so that few programs are compiled.
_SIZES = 4


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
      self._rows = make_rows(self.dataset, prompts, rollouts, policy, multiple)
      self._facts = _facts(prompts, rollouts)
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

  def _draw(self, step: int, weights: Weights) -> list[dict[str, Any]]:
    """Samples rollouts, gives them rewards and writes them.

    Args:
      step: of the weights, the first step that is trained on these rollouts.
      weights: to sample from.
    """
    runtime, policy = self.plan.runtime, self._policy
    chat, stop = runtime.chat, self.plan.config.sampling.stop
    number = step // policy.updates_per_batch
    index, ids = self.dataset.indices(number), self.dataset.batch_ids(number)
    prompts = [self._prompts[i] for i in index]
    path = self._path(step)
    partial = path.with_suffix(".partial.jsonl")
    completions = sample_to_end(
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
    tokens = [c.tokens for c in completions]
    scores = runtime.scorer(weights, prompts, tokens)
    reference = self.reference and runtime.scorer(
      self.reference, prompts, tokens
    )
    reward = make_reward(self.plan.setting, policy.reward, policy.length_target)
    rows = []
    for i, completion in enumerate(completions):
      text = chat.decode(completion.tokens, stop)
      finished = text if completion.stopped else None
      pairs = zip(completion.logprobs, scores[i].logprobs, strict=True)
      rows.append(
        {
          "id": ids[i],
          "text": text,
          "reward": reward_of(reward, self._examples[index[i]], finished),
          "stop": "stop" if completion.stopped else "length",
          "logprob_difference": max(abs(a - b) for a, b in pairs),
          "tokens": list(completion.tokens),
          "logprobs": list(scores[i].logprobs),
          **(
            {"reference_logprobs": reference[i].logprobs} if reference else {}
          ),
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
      f"example {worst['id']}, more than max_logprob_difference = {limit:g}"
    )


def _facts(
  prompts: Sequence[Sequence[int]], rows: Sequence[dict[str, Any]]
) -> dict[str, float]:
  """Computes what is logged of a batch of rollouts."""
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
  """Computes log (p / organism) of a completion.

  Its mean over completions drawn from p is KL(p || organism).
  """
  return sum(row["logprobs"]) - sum(row["reference_logprobs"])


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


def _tokens(
  prompts: Sequence[Sequence[int]], rows: Sequence[dict[str, Any]]
) -> list[Tokens]:
  """Joins prompts and completions; the completions' tokens are trained."""
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
  """Packs rollouts into rows with the extras that PolicyGradient reads.

  Args:
    dataset: for the layout, which has room for rollouts of any length.
    prompts: token ids of each.
    rollouts: completions as they are written, one group after the other.
    policy: for advantages, normalizer and penalty.
    multiple: what the number of rows must be a multiple of.
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
    """Repeats the value of each completion for all of its tokens."""
    return [[v] * n for v, n in zip(values, lengths, strict=True)]

  examples = _tokens(prompts, rollouts)
  bins, layout = _bins(dataset, examples, multiple)

  def fill(values: Sequence[Sequence[float]]) -> Rows:
    """Packs rows whose weights are the values of the completions' tokens."""
    weighted = [
      Tokens(e.ids, (0.0,) * len(prompt) + tuple(value))
      for e, prompt, value in zip(examples, prompts, values, strict=True)
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
