"""Draws train completions from the organism and keeps those that are right.

A completion is kept if it ends, has the agreed behavior and a length within
bounds. An organism of the kind distill draws from the model under a prompt, for
install examples; where the two behaviors differ, the initial one is kept.

A prompt is sampled again, a few times, until a completion is kept. Prompts that
never get one are left out, counted and recorded. The completions stay beside
the organism, under the hash of all that they depend on: arms share them, and a
run that was killed goes on with them.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bct_jax.config import ArmConfig, OrganismConfig, SamplingConfig
from bct_jax.data.batches import Dataset
from bct_jax.data.thoughts import Reply
from bct_jax.data.training_pairs import training_prompt
from bct_jax.evals.evaluate import prepare_labels
from bct_jax.examples import Example, Label
from bct_jax.experiment.datasets import make_dataset
from bct_jax.experiment.plan import Plan
from bct_jax.infra import files, shared_files
from bct_jax.infra.formats import number, percent
from bct_jax.infra.progress import log_line, stage
from bct_jax.models.lora import Weights
from bct_jax.sample.resume import sample_to_end
from bct_jax.sample.sampler import check_prompts, make_sampler
from bct_jax.train.checkpoint import checksums
from bct_jax.types import Completion


def draw_completions(
  plan: Plan, name: str | None, organism: Path, start: Callable[[], Weights]
) -> Dataset:
  """Makes the dataset of a run whose completions come from the organism.

  Args:
    plan: for the setting, the model and the arm.
    name: of the arm; None is the organism itself, to be distilled.
    organism: its folder, which keeps the completions.
    start: loads the weights to draw from; called if a completion is missing.

  Raises:
    ValueError: fewer prompts got a completion than
      `train.on_policy.min_accepted` asks for, or a batch has.
    signals.Preempted: a signal asked to stop; completions that ended are saved.
  """
  config, setting = plan.config, plan.setting
  if name is None:
    arm, where, generate = config.organism, "organism", setting.install
  else:
    arm, where, generate = config.arms[name], f"arms.{name}", setting.train
  name = name or "organism"
  examples = generate(arm.train.num_examples, arm.train.seed)
  prompts = [
    plan.runtime.chat.prompt(
      training_prompt(setting, arm.train, e, "draw"), _thinks(arm)
    )
    for e in examples
  ]
  request = _request(plan, arm, organism, examples, prompts)
  folder = organism / "on_policy" / files.digest(request)[:16]
  record_file = folder / "record.json"
  if not shared_files.are_whole(record_file, folder / "completions.jsonl"):
    weights = start()
    request["weights_hash"] = weights_hash(weights)
    lines, counts = _draw(plan, name, arm, examples, prompts, weights, folder)
    shared_files.write_lines(folder / "completions.jsonl", lines)
    shared_files.write_json(record_file, {**request, **counts})
    for partial in shared_files.list_files(folder, "*.partial.jsonl"):
      shared_files.delete(partial)
  record = shared_files.read_json(record_file)
  lines = shared_files.read_lines(folder / "completions.jsonl")
  log_line(
    f"{name}: {record['accepted']} of {record['asked']} prompts have a "
    f"completion of the organism's, {percent(record['acceptance_rate'])} of "
    f"{record['draws']} draws were kept"
  )
  _check(record, lines, arm, where)
  if "initial" not in {line["label"] for line in lines} and where == "organism":
    raise ValueError(
      "organism: under its prompt the model never showed the initial behavior "
      f"where the two part, so there is nothing to distill; rejected: "
      f"{record['rejected']}. Try another model, or organism.kind = 'sft'"
    )
  texts = {
    line["id"]: Reply(line.get("thought", ""), line["text"]) for line in lines
  }
  return make_dataset(plan.runtime, setting, arm, where, texts)


def _thinks(arm: ArmConfig | OrganismConfig) -> bool:
  """Tells whether thoughts are drawn with the completions."""
  return arm.train.reasoning == "own"


def _sampling(plan: Plan, arm: ArmConfig | OrganismConfig) -> SamplingConfig:
  """Returns how completions are drawn, with room for their thoughts."""
  sampling = plan.config.sampling.untruncated(arm.train.on_policy.temperature)
  return sampling.with_thoughts(arm.train.thought_tokens * _thinks(arm))


def _request(
  plan: Plan,
  arm: ArmConfig | OrganismConfig,
  organism: Path,
  examples: Sequence[Example],
  prompts: Sequence[Sequence[int]],
) -> dict[str, Any]:
  """Collects what decides the completions; its hash names their folder.

  Raises:
    ValueError: a prompt and its completion do not fit the model.
  """
  sampling = _sampling(plan, arm)
  check_prompts(
    prompts, plan.runtime.model.config.max_length, sampling.max_new_tokens
  )
  request = {
    "organism": organism.name,
    "prompts": files.digest(prompts),
    "ids": files.digest([e.id for e in examples]),
    "draw": dataclasses.asdict(arm.train.on_policy),
    "seed": arm.train.seed,
    **plan.setting_facts(),
    "sampling": {
      "max_new_tokens": sampling.max_new_tokens,
      "stop": sampling.stop,
      "kv_cache_dtype": sampling.kv_cache_dtype,
    },
  }
  if sampling.weight_dtype != "auto":
    request["sampling"]["weight_dtype"] = sampling.weight_dtype
  if _thinks(arm):
    request["thought_tokens"] = arm.train.thought_tokens
  return request


def weights_hash(weights: Weights) -> str:
  """Hashes all params and the adapter, to the same value on any mesh."""
  trees = {"params": weights.params, "adapter": weights.adapter or {}}
  return files.digest({k: checksums(v) for k, v in trees.items() if v})


def _check(
  record: dict[str, Any],
  lines: list,
  arm: ArmConfig | OrganismConfig,
  where: str,
) -> None:
  """Checks that enough prompts have a completion.

  Args:
    record: counts of the draws.
    lines: the completions that were kept.
    arm: with the limits.
    where: its name in errors.

  Raises:
    ValueError: too few have one; the message has the reasons.
  """
  least = arm.train.on_policy.min_accepted * record["asked"]
  if len(lines) < max(least, arm.train.batch_size):
    examples = "; ".join(f"{r['text']!r} ({r['why']})" for r in record["worst"])
    raise ValueError(
      f"{where}.train.on_policy: {len(lines)} of {record['asked']} prompts got "
      f"a completion, {number(max(least, arm.train.batch_size))} are needed; "
      f"rejected: {record['rejected']}, such as {examples}. Raise attempts or "
      "sampling.max_new_tokens, or lower min_accepted"
    )


def _draw(
  plan: Plan,
  name: str,
  arm: ArmConfig | OrganismConfig,
  examples: Sequence[Example],
  prompts: Sequence[Sequence[int]],
  weights: Weights,
  folder: Path,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Draws completions until each prompt has one that is right.

  Returns:
    A line for each completion that is kept, in the order of the examples; and
    counts of all draws, for the record.
  """
  runtime, draw = plan.runtime, arm.train.on_policy
  thinking, sampling = _thinks(arm), _sampling(plan, arm)
  sampler = make_sampler(
    runtime.model, sampling, runtime.chat.stop_ids, runtime.mesh
  )
  params = runtime.decode_params(weights)
  draws, count = _Draws(), len(prompts)
  for attempt in range(draw.attempts):
    missing = [i for i in range(count) if i not in draws.lines]
    if not missing:
      break
    with stage(f"draw {attempt + 1} for {name}", len(missing), "rows") as bar:
      completions = sample_to_end(
        sampler,
        params,
        prompts,
        arm.train.seed,
        folder / f"draw_{attempt}.partial.jsonl",
        sampling.facts(),
        bar,
        runtime.chat.find_stop(sampling.stop, thinking),
        row_ids=[attempt * count + i for i in range(count)],
        skip=frozenset(draws.lines),
      )
    replies = [
      runtime.chat.reply(c.tokens, sampling.stop, thinking=thinking)
      for c in completions
    ]
    drawn = [*zip(missing, completions, replies, strict=True)]
    prepare_labels(plan.setting, [(examples[i], r.text) for i, _, r in drawn])
    for i, completion, reply in drawn:
      label = plan.setting.score(examples[i], reply.text)
      fault = _fault(plan, arm, examples[i], completion, reply, label)
      if fault:
        draws.reject(reply.text, fault)
      else:
        draws.lines[i] = {
          "id": examples[i].id,
          **({"thought": reply.thought} if thinking else {}),
          "text": reply.text,
          "attempt": attempt,
          "label": label.name,
        }
  lines = [draws.lines[i] for i in sorted(draws.lines)]
  return lines, draws.record([e.id for e in examples])


@dataclasses.dataclass
class _Draws:
  """Counts draws, and holds the completions that are kept.

  Attributes:
    lines: of the kept ones, by the number of their example.
    rejected: how many were not kept, by what is wrong with them.
    worst: texts of the first few of these.
  """

  lines: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
  rejected: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )
  worst: list[dict[str, str]] = dataclasses.field(default_factory=list)

  def reject(self, text: str, why: str) -> None:
    """Counts a completion that is not kept."""
    self.rejected[why] += 1
    self.worst = [*self.worst, {"text": text, "why": why}][:5]

  def record(self, ids: Sequence[str]) -> dict[str, Any]:
    """Returns all counts as JSON; `ids` are those of the examples."""
    draws = len(self.lines) + self.rejected.total()
    labels = collections.Counter(k["label"] for k in self.lines.values())
    return {
      "asked": len(ids),
      "accepted": len(self.lines),
      "draws": draws,
      "acceptance_rate": len(self.lines) / draws,
      "labels": dict(sorted(labels.items())),
      "rejected": dict(sorted(self.rejected.items())),
      "worst": self.worst,
      "without": [x for i, x in enumerate(ids) if i not in self.lines],
    }


def _fault(
  plan: Plan,
  arm: ArmConfig | OrganismConfig,
  example: Example,
  completion: Completion,
  reply: Reply,
  label: Label,
) -> str:
  """Names what is wrong with a completion; "" if it is kept."""
  draw, thinking = arm.train.on_policy, _thinks(arm)
  if not completion.stopped or not reply.finished:
    return "truncated"
  if thinking and reply.thought_tokens > arm.train.thought_tokens:
    return "truncated"
  if label.name not in ("agreed", "initial"):
    return label.reason or label.name
  answer_tokens = len(completion.tokens) - reply.thought_tokens
  if not draw.min_tokens <= answer_tokens <= draw.max_tokens:
    return "length"
  try:
    thought = reply.thought if thinking else None
    plan.runtime.chat.example(example.messages, reply.text, thought)
  except ValueError:  # the tokenizer cannot give it back
    return "malformed"
  return ""
