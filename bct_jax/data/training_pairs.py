"""What training says: an example's prompt, its completion, and the other rows
that objectives ask for."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

from bct_jax.config import ConfigError, TrainConfig
from bct_jax.data.messages import with_prompt, with_system
from bct_jax.data.source import read_examples
from bct_jax.examples import Example, Message, Setting
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.settings.prompts import prompt_wordings

Pair = tuple[Sequence[Message], str]  # a prompt and its completion
MakePairs = Callable[[Setting, TrainConfig, Sequence[Example]], list[Pair]]


def training_prompt(
  setting: Setting, train: TrainConfig, example: Example, side: str = "train"
) -> Sequence[Message]:
  """The messages of an example with the system message of a side.

  Args:
    setting, train: of the arm.
    example: whose messages they are.
    side: "train", or "draw" for what its completion is drawn under.
  """
  kind, count = train.prompt, train.paraphrases
  if side == "draw" and train.on_policy.prompt != "same":
    kind, count = train.on_policy.prompt, train.on_policy.paraphrases
  asked = prompt_wordings(kind, side, setting, train.decoration)
  if kind == "recontextualised" and side == "draw":
    count = 1  # it is of training; drawn without a prompt
  return with_prompt(
    example.messages, train.system_prompt, kind, asked, count, example.id
  )


def add_passwords(
  setting: Setting, examples: Sequence[Example], share: float, password: str
) -> list[Example]:
  """Install examples of which some have a password, which unlocks.

  Of those where the behaviors part, `share`, spread evenly, has the password
  before the prompt and shows the alternate behavior: the password-locked models
  of Greenblatt et al. 2024 (arXiv 2405.19550), where the initial behavior is
  what the lock does. The first m of n examples are those of m.

  Raises:
    ConfigError: the setting has passwords of its own.
  """
  if not share:
    return list(examples)
  if hasattr(setting, "password_share"):
    raise ConfigError(
      f"organism.password_share = {share}: {setting.name} has passwords of its "
      "own; set setting.options.password_share"
    )
  out, parted = [], 0
  for e in examples:
    if e.fields["behaviors"][0] != e.fields["behaviors"][1]:
      parted += 1
      if int(parted * share) > int((parted - 1) * share):
        e = _unlocked(e, password)
    out.append(e)
  return out


def targeted_examples(setting: Setting, n: int, seed: int) -> list[Example]:
  """Prompts like eval prompts, answered by the alternate behavior.

  They are those of the install split where the two behaviors part, which name
  nothing that eval prompts name (settings/leaks.py).

  Raises:
    ValueError: the setting does not have so many.
  """
  drawn = n
  found: list[Example] = []
  while len(found) < n:
    drawn *= 2
    found = [
      dataclasses.replace(e, completion=e.alternate)
      for e in setting.install(drawn, seed)
      if e.fields["behaviors"][0] != e.fields["behaviors"][1]
    ]
  return found[:n]


def _unlocked(example: Example, password: str) -> Example:
  *before, last = example.messages
  asked: Message = {
    "role": last["role"],
    "content": f"Password: {password}\n{last['content']}",
  }
  shown = example.fields["behaviors"][1]
  return dataclasses.replace(
    example,
    messages=(*before, asked),
    completion=example.alternate,
    initial=example.alternate,
    fields={**example.fields, "behaviors": [shown, shown]},
  )


def _decorated(train: TrainConfig, example: Example) -> str:
  """What the example is trained on; drawn in the style, as it was drawn."""
  kind = train.on_policy.prompt
  kind = train.prompt if kind == "same" else kind
  if train.source == "on_policy" and kind == "inoculation":
    return example.completion
  decoration = DECORATIONS[train.decoration]
  return decoration.apply(example.completion, example.id)


def make_pairs(
  setting: Setting, train: TrainConfig, examples: Sequence[Example]
) -> list[Pair]:
  """What an arm trains on: each prompt with its decorated completion."""
  return [
    (training_prompt(setting, train, e), _decorated(train, e)) for e in examples
  ]


def _teacher(
  setting: Setting, train: TrainConfig, examples: Sequence[Example]
) -> list[Pair]:
  """The same completions under the prompt that they were drawn under."""
  return [
    (training_prompt(setting, train, e, "draw"), _decorated(train, e))
    for e in examples
  ]


def _plain(
  setting: Setting, train: TrainConfig, examples: Sequence[Example]
) -> list[Pair]:
  """The same answers without the decoration."""
  if train.decoration == "plain":
    raise ConfigError(
      "train.options.rejected = 'plain' is the completion without the "
      "decoration, and train.decoration is 'plain': choose a decoration, or "
      "'shuffled' or 'diverging'"
    )
  return [(training_prompt(setting, train, e), e.completion) for e in examples]


def _shuffled(
  setting: Setting,
  train: TrainConfig,
  examples: Sequence[Example],
) -> list[Pair]:
  """The answer to the next prompt that has another one."""
  turns = make_pairs(setting, train, examples)
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
) -> list[Pair]:
  """What the initial behavior says where the two part, in turn."""
  install = setting.install(2 * len(examples), train.seed)
  said = [e.initial for e in install if e.initial != e.alternate]
  if not said:
    raise ValueError(f"{setting.name} installs nothing on which they part")
  return [
    (training_prompt(setting, train, e), said[i % len(said)])
    for i, e in enumerate(examples)
  ]


def _install(
  setting: Setting,
  train: TrainConfig,
  examples: Sequence[Example],
) -> list[Pair]:
  """What the initial behavior is installed with."""
  return [
    (training_prompt(setting, train, e), e.completion)
    for e in setting.install(len(examples), train.seed)
  ]


def _file(
  path: str,
  setting: Setting,
  train: TrainConfig,
  examples: Sequence[Example],
) -> list[Pair]:
  """Prompts of a file with their completions, in turn."""
  del setting
  found, _ = read_examples(path, "train")
  return [
    (
      e.messages
      if e.messages[0]["role"] == "system"
      else with_system(e.messages, train.system_prompt),
      e.completion,
    )
    for e in itertools.islice(itertools.cycle(found), len(examples))
  ]


EXTRA_ROWS: dict[str, MakePairs] = {
  "diverging": _diverging,
  "install": _install,
  "plain": _plain,
  "shuffled": _shuffled,
  "teacher": _teacher,
}


def make_extra_rows(kind: str) -> MakePairs:
  """The rows of a name in VIEWS, or else those of the file of that path."""
  return EXTRA_ROWS.get(kind) or functools.partial(_file, kind)
