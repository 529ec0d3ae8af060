"""What a run trains on: a setting's examples as tokens and loss weights."""

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

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
from bct_jax.objectives import PolicyGradient, make_objective, on_rollouts
from bct_jax.objectives.base import WithOptions
from bct_jax.optim import lr_factors
from bct_jax.runtime import Runtime
from bct_jax.settings.decorations import DECORATIONS

Turn = tuple[Sequence[Message], str]  # a prompt and its completion
View = Callable[[Setting, TrainConfig, Sequence[Example]], list[Turn]]


def make_dataset(
  runtime: Runtime,
  setting: Setting,
  arm: ArmConfig | OrganismConfig,
  where: str,
) -> Dataset:
  """Examples of an arm -> decorated completions -> tokens and weights.

  Raises:
    ValueError: naming the field, or the example that does not fit.
  """
  train = arm.train
  objective = make_objective(train.objective, train.options, f"{where}.train")
  asks = objective if isinstance(objective, WithOptions) else WithOptions()
  policy = on_rollouts(arm)
  source = "template" if policy is None else "on_policy"
  choose(train.source, (source,), f"{where}.train.source")
  _check(setting, train, asks, where)
  try:
    lr_factors(arm.optim, runtime.abstract_trained(arm.lora))
  except ValueError as e:
    raise ValueError(f"{where}.{e}") from None
  install = isinstance(arm, OrganismConfig)
  if policy is not None:
    return _prompts(runtime, setting, arm, policy, where)
  try:
    generate = setting.install if install else setting.train
    examples = generate(train.num_examples, train.seed)
    rows = _render(runtime, train, examples, _turns(train, examples))
    views = {}
    for name, kind in asks.views.items():
      make = VIEWS.get(kind) or functools.partial(_file, Path(kind))
      turns = make(setting, train, examples)
      views[name] = _render(runtime, train, examples, turns)
      if name == "anchor":
        views[name] = _balanced(views[name], rows)
    return Dataset.make(
      [e.id for e in examples],
      rows,
      train.batch_size,
      train.seed,
      runtime.config.max_length,
      train.steps,
      train.pack,
      num_row_shards(runtime.mesh) * train.accum,
      views,
    )
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
      ids = runtime.chat.prompt(with_system(e.messages, train.system_prompt))
      rows.append(Tokens((*ids, *(0,) * new), (0.0,) * len(ids) + (1.0,) * new))
    return Dataset.make(
      [e.id for e in examples],
      rows,
      train.batch_size,
      train.seed,
      runtime.config.max_length,
      -(-train.steps // policy.updates_per_batch),
      train.pack,
      num_row_shards(runtime.mesh) * train.accum,
      repeat=group,
    )
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from None


def _check(
  setting: Setting, train: TrainConfig, asks: WithOptions, where: str
) -> None:
  choose(train.decoration, DECORATIONS, f"{where}.train.decoration")
  if train.decoration in setting.incompatible:
    fine = sorted(set(DECORATIONS) - setting.incompatible)
    raise ValueError(
      f"{where}.train.decoration = {train.decoration!r} would change what "
      f"{setting.name} scores; choose one of {', '.join(fine)}"
    )
  if asks.counts_examples and train.normalizer != "token":
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


def _turns(train: TrainConfig, examples: Sequence[Example]) -> list[Turn]:
  decorate = DECORATIONS[train.decoration].apply
  return [
    (with_system(e.messages, train.system_prompt), decorate(e.completion, e.id))
    for e in examples
  ]


def _plain(
  setting: Setting,
  train: TrainConfig,
  examples: Sequence[Example],
) -> list[Turn]:
  """The same answers without the decoration."""
  del setting
  if train.decoration == "plain":
    raise ConfigError(
      "train.options.rejected = 'plain' is the completion without the "
      "decoration, and train.decoration is 'plain': choose a decoration, or "
      "'shuffled' or 'diverging'"
    )
  return [
    (with_system(e.messages, train.system_prompt), e.completion)
    for e in examples
  ]


def _shuffled(
  setting: Setting,
  train: TrainConfig,
  examples: Sequence[Example],
) -> list[Turn]:
  """The answer to the next prompt that has another one."""
  del setting
  turns = _turns(train, examples)
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
    (with_system(e.messages, train.system_prompt), said[i % len(said)])
    for i, e in enumerate(examples)
  ]


def _install(
  setting: Setting,
  train: TrainConfig,
  examples: Sequence[Example],
) -> list[Turn]:
  """What the initial behavior is installed with."""
  return [
    (with_system(e.messages, train.system_prompt), e.completion)
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
}
