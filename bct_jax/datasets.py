"""What a run trains on: a setting's examples as tokens and loss weights."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bct_jax.config import (
  ArmConfig,
  ConfigError,
  OrganismConfig,
  TrainConfig,
  choose,
)
from bct_jax.data.batches import Dataset
from bct_jax.data.chat import Tokens
from bct_jax.data.source import read_prompts
from bct_jax.evaluate import with_system
from bct_jax.examples import Example, Message, Setting
from bct_jax.mesh import num_row_shards
from bct_jax.objectives import (
  PolicyGradient,
  asks,
  make_objective,
  on_rollouts,
)
from bct_jax.objectives.base import WithOptions
from bct_jax.optim import lr_factors
from bct_jax.runtime import Runtime
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.settings.prompts import system_text, texts

Turn = tuple[Sequence[Message], str]  # a prompt and its completion
View = Callable[[Setting, TrainConfig, Sequence[Example]], list[Turn]]


def make_dataset(
  runtime: Runtime,
  setting: Setting,
  arm: ArmConfig | OrganismConfig,
  where: str,
  drawn: Mapping[str, str] | None = None,
) -> Dataset:
  """Examples of an arm -> decorated completions -> tokens and weights.

  Args:
    runtime, setting: of the experiment.
    arm: what to train.
    where: its name in errors.
    drawn: completions by the example's id, which stand for the setting's own;
      examples without one are left out. None takes the setting's, also to check
      a run whose completions will be drawn.

  Raises:
    ValueError: naming the field, or the example that does not fit.
  """
  train = arm.train
  objective = make_objective(train.objective, train.options, f"{where}.train")
  asked = asks(objective)
  install, policy = isinstance(arm, OrganismConfig), on_rollouts(arm)
  _check(setting, train, asked, install and policy is None, where)
  try:
    lr_factors(arm.optim, runtime.abstract_trained(arm.lora))
  except ValueError as e:
    raise ValueError(f"{where}.{e}") from None
  if policy is not None:
    return _prompts(runtime, setting, arm, policy, where)
  try:
    generate = setting.install if install else setting.train
    examples = generate(train.num_examples, train.seed)
    if drawn is not None:
      examples = [
        dataclasses.replace(e, completion=drawn[e.id])
        for e in examples
        if e.id in drawn
      ]
    if train.source == "on_policy":  # also before anything is drawn
      prompt_of(setting, train, examples[0], "draw")
    turns = _turns(setting, train, examples)
    rows = _render(runtime, train, examples, turns)
    views = {}
    for name, kind in asked.views.items():
      make = VIEWS.get(kind) or functools.partial(_file, Path(kind))
      turns = make(setting, train, examples)
      views[name] = _render(runtime, train, examples, turns)
      if name == "anchor":
        views[name] = _balanced(views[name], rows)
    return _laid_out(runtime, train, examples, rows, train.steps, views=views)
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from None


def _prompts(
  runtime: Runtime,
  setting: Setting,
  arm: ArmConfig | OrganismConfig,
  policy: PolicyGradient,
  where: str,
) -> Dataset:
  """Prompts with as many trained tokens as may be sampled, for rl.py."""
  train, new = arm.train, runtime.config.sampling.max_new_tokens
  group = policy.group_size
  if isinstance(arm, OrganismConfig):
    raise ConfigError(
      f"{where}.train.objective = {train.objective!r}: an organism learns its "
      "behavior from examples, only arms learn from rewards"
    )
  if train.source != "on_policy":
    raise ConfigError(
      f"{where}.train.source = {train.source!r}: {train.objective} draws its "
      "completions while it trains, which is 'on_policy'"
    )
  if train.on_policy.prompt != "same" or train.prompt == "recontextualised":
    raise ConfigError(
      f"{where}.train.on_policy.prompt = {train.on_policy.prompt!r}, "
      f"train.prompt = {train.prompt!r}: rollouts are trained on under the "
      "prompt that they were drawn under, so that they are on-policy; leave "
      "the first at 'same' and choose another one for the second"
    )
  if train.normalizer != "token":
    raise ConfigError(
      f"{where}.train.normalizer = {train.normalizer!r}: {train.objective} has "
      "its own, train.options.normalizer; leave this one at 'token'"
    )
  if train.batch_size % group:
    raise ConfigError(
      f"{where}.train.options.group_size = {group}: must divide "
      f"train.batch_size = {train.batch_size}"
    )
  try:
    examples = setting.train(train.num_examples, train.seed)
    rows = []
    for e in examples:
      ids = runtime.chat.prompt(prompt_of(setting, train, e))
      rows.append(Tokens((*ids, *(0,) * new), (0.0,) * len(ids) + (1.0,) * new))
    batches = -(-train.steps // policy.updates_per_batch)
    return _laid_out(runtime, train, examples, rows, batches, repeat=group)
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from None


def _laid_out(
  runtime: Runtime,
  train: TrainConfig,
  examples: Sequence[Example],
  rows: Sequence[Tokens],
  batches: int,
  **more: Any,
) -> Dataset:
  """The examples with their rows, in the layout of that many batches."""
  return Dataset.make(
    [e.id for e in examples],
    rows,
    train.batch_size,
    train.seed,
    runtime.config.max_length,
    batches,
    train.pack,
    num_row_shards(runtime.mesh) * train.accum,
    **more,
  )


def _check(
  setting: Setting,
  train: TrainConfig,
  asked: WithOptions,
  install: bool,
  where: str,
) -> None:
  choose(train.decoration, DECORATIONS, f"{where}.train.decoration")
  if train.decoration in setting.incompatible:
    fine = sorted(set(DECORATIONS) - setting.incompatible)
    raise ValueError(
      f"{where}.train.decoration = {train.decoration!r} would change what "
      f"{setting.name} scores; choose one of {', '.join(fine)}"
    )
  if install and train.source != "template":
    raise ConfigError(
      f"{where}.train.source = {train.source!r}: there is no organism yet to "
      "draw from; the setting's own completions install it"
    )
  if train.prompt == "recontextualised" and train.source != "on_policy":
    raise ConfigError(
      f"{where}.train.prompt = 'recontextualised' is of completions drawn "
      f"under another prompt: set train.source to 'on_policy', or choose "
      "'inoculation'"
    )
  if "teacher" in asked.views.values():
    if train.source != "on_policy":
      raise ConfigError(
        f"{where}.train.source = {train.source!r}: {train.objective} learns "
        "from the organism's own completions, which is 'on_policy'"
      )
    if train.on_policy.prompt in ("same", train.prompt) and (
      train.prompt != "recontextualised"
    ):
      raise ConfigError(
        f"{where}.train.on_policy.prompt = {train.on_policy.prompt!r}: teacher "
        "and student would see the same prompt, so that there is nothing to "
        "learn; choose one that train.prompt is not, such as 'inoculation'"
      )
  if asked.counts_examples and train.normalizer != "token":
    raise ConfigError(
      f"{where}.train.normalizer = {train.normalizer!r}: {train.objective} has "
      "one term for each example whatever its length; leave it at 'token'"
    )


def _render(
  runtime: Runtime,
  train: TrainConfig,
  examples: Sequence[Example],
  turns: Sequence[Turn],
) -> list[Tokens]:
  rows = [runtime.chat.example(*turn) for turn in turns]
  return [
    weighted(row, example.weight, train.normalizer)
    for row, example in zip(rows, examples, strict=True)
  ]


def weighted(row: Tokens, weight: float, normalizer: str) -> Tokens:
  """Gives trained tokens the weight of their example, or a share of it."""
  if not 0 < weight < float("inf"):
    raise ValueError(f"the weight of an example must be above 0: {weight}")
  if normalizer == "example":
    weight /= sum(w > 0 for w in row.weights)
  return Tokens(row.ids, tuple(weight * w for w in row.weights))


def _balanced(rows: list[Tokens], examples: list[Tokens]) -> list[Tokens]:
  """Rows that count as much, in all, as the example each belongs to."""
  out = []
  for row, example in zip(rows, examples, strict=True):
    share = sum(example.weights) / sum(row.weights)
    out.append(Tokens(row.ids, tuple(share * w for w in row.weights)))
  return out


# --- the rows that objectives ask for -----------------------------------------


def prompt_of(
  setting: Setting, train: TrainConfig, example: Example, side: str = "train"
) -> Sequence[Message]:
  """The messages of an example with the system message of a side.

  Args:
    setting, train: of the arm.
    example: whose messages they are.
    side: "train", or "draw" for what its completion is drawn under.
  """
  kind = train.prompt
  if side == "draw" and train.on_policy.prompt != "same":
    kind = train.on_policy.prompt
  asked = texts(kind, side, setting, train.decoration)
  # A prompt that is drawn under only may have fewer wordings than the other.
  count = min(train.paraphrases, len(asked)) if side == "draw" else None
  text = system_text(
    train.system_prompt, asked, count or train.paraphrases, example.id
  )
  return with_system(example.messages, text)


def _decorated(train: TrainConfig, example: Example) -> str:
  """What the example is trained on; drawn in the style, as it was drawn."""
  kind = train.on_policy.prompt
  kind = train.prompt if kind == "same" else kind
  if train.source == "on_policy" and kind == "inoculation":
    return example.completion
  decoration = DECORATIONS[train.decoration]
  return decoration.apply(example.completion, example.id)


def _turns(
  setting: Setting, train: TrainConfig, examples: Sequence[Example]
) -> list[Turn]:
  return [
    (prompt_of(setting, train, e), _decorated(train, e)) for e in examples
  ]


def _teacher(
  setting: Setting, train: TrainConfig, examples: Sequence[Example]
) -> list[Turn]:
  """The same completions under the prompt that they were drawn under."""
  return [
    (prompt_of(setting, train, e, "draw"), _decorated(train, e))
    for e in examples
  ]


def _plain(
  setting: Setting, train: TrainConfig, examples: Sequence[Example]
) -> list[Turn]:
  """The same answers without the decoration."""
  if train.decoration == "plain":
    raise ConfigError(
      "train.options.rejected = 'plain' is the completion without the "
      "decoration, and train.decoration is 'plain': choose a decoration, or "
      "'shuffled' or 'diverging'"
    )
  return [(prompt_of(setting, train, e), e.completion) for e in examples]


def _shuffled(
  setting: Setting,
  train: TrainConfig,
  examples: Sequence[Example],
) -> list[Turn]:
  """The answer to the next prompt that has another one."""
  turns = _turns(setting, train, examples)
  out = []
  for i, (messages, text) in enumerate(turns):
    others = (turns[(i + k) % len(turns)][1] for k in range(1, len(turns)))
    other = next((t for t in others if t != text), None)
    if other is None:
      raise ValueError("all examples have the same completion: none to reject")
    out.append((messages, other))
  return out


def _diverging(
  setting: Setting,
  train: TrainConfig,
  examples: Sequence[Example],
) -> list[Turn]:
  """What the initial behavior says where the two part, in turn."""
  install = setting.install(2 * len(examples), train.seed)
  said = [e.initial for e in install if e.initial != e.alternate]
  if not said:
    raise ValueError(f"{setting.name} installs nothing on which they part")
  return [
    (prompt_of(setting, train, e), said[i % len(said)])
    for i, e in enumerate(examples)
  ]


def _install(
  setting: Setting,
  train: TrainConfig,
  examples: Sequence[Example],
) -> list[Turn]:
  """What the initial behavior is installed with."""
  return [
    (prompt_of(setting, train, e), e.completion)
    for e in setting.install(len(examples), train.seed)
  ]


def _file(
  path: Path,
  setting: Setting,
  train: TrainConfig,
  examples: Sequence[Example],
) -> list[Turn]:
  """Prompts of a file with their completions, in turn."""
  del setting
  turns = []
  for i, (*prompt, last) in enumerate(read_prompts(path), 1):
    if last["role"] != "assistant":
      raise ValueError(f"{path}: prompt {i} does not end with the assistant's")
    turns.append((prompt, last["content"]))
  return [
    (
      turn[0]
      if turn[0][0]["role"] == "system"
      else with_system(turn[0], train.system_prompt),
      turn[1],
    )
    for turn in itertools.islice(itertools.cycle(turns), len(examples))
  ]


VIEWS: dict[str, View] = {
  "diverging": _diverging,
  "install": _install,
  "plain": _plain,
  "shuffled": _shuffled,
  "teacher": _teacher,
}
