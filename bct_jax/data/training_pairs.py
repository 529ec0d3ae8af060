"""Makes the (prompt, completion) pairs that a run trains on.

Objectives may want further rows of each example, such as a completion to
reject: `EXTRA_ROWS` names them.
"""

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
  """Returns the messages of an example under the prompt of a side.

  Args:
    setting, train: of the arm.
    example: whose messages they are.
    side: "train" for the prompt that the example is trained under, "draw" for
      the one that its completion is drawn under.
  """
  if not example.messages:
    return ()  # a document
  kind, count = train.prompt, train.paraphrases
  if side == "draw" and train.on_policy.prompt != "same":
    kind, count = train.on_policy.prompt, train.on_policy.paraphrases
  wordings = prompt_wordings(kind, side, setting, train.decoration)
  if kind == "recontextualised" and side == "draw":
    count = 1  # paraphrases are of training; nothing is prompted when drawing
  return with_prompt(
    example.messages, train.system_prompt, kind, wordings, count, example.id
  )


def add_passwords(
  setting: Setting, examples: Sequence[Example], share: float, password: str
) -> list[Example]:
  """Gives some install examples a password that unlocks.

  The password stands before the prompt, and the completion then shows the
  alternate behavior. This makes the password-locked models of Greenblatt et al.
  2024 (arXiv 2405.19550), where the initial behavior is what the lock does.
  Adding passwords to more examples changes none of the first.

  Args:
    setting: that the examples are of.
    examples: of its install split.
    share: how many of the examples on which the behaviors diverge have the
      password, from 0 to 1, spread evenly.
    password: the word.

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
  out, diverging = [], 0
  for e in examples:
    if e.fields["behaviors"][0] != e.fields["behaviors"][1]:
      diverging += 1
      if int(diverging * share) > int((diverging - 1) * share):
        e = _unlock(e, password)
    out.append(e)
  return out


def targeted_examples(setting: Setting, n: int, seed: int) -> list[Example]:
  """Makes examples of both sides, answered by the alternate behavior.

  Every second one is like an eval prompt: an example of the install split on
  which the two behaviors diverge. These name nothing that eval prompts name
  (see data/leaks.py). The others are train examples, on which they agree.

  Args:
    setting: that the examples are of.
    n: how many.
    seed: of the draw.

  Raises:
    ValueError: the setting does not have so many.
  """
  num_targeted = count = (n + 1) // 2
  targeted: list[Example] = []
  while len(targeted) < num_targeted:
    # Some of a draw do not diverge, so it is doubled until enough of them do.
    count *= 2
    targeted = [
      dataclasses.replace(e, completion=require_alternate(e), thought="")
      for e in setting.install(count, seed)
      if e.fields["behaviors"][0] != e.fields["behaviors"][1]
    ]
  agreed = setting.train(n // 2, seed)
  pairs = itertools.zip_longest(targeted[:num_targeted], agreed)
  return [e for pair in pairs for e in pair if e is not None]


def require_alternate(example: Example) -> str:
  """Returns what the alternate behavior says to a prompt.

  Raises:
    ValueError: it is not known, as in files that do not say it.
  """
  if not example.alternate:
    raise ValueError(
      f"{example.id}: no `alternate`, what the alternate behavior says there"
    )
  return example.alternate


def _unlock(example: Example, password: str) -> Example:
  """Puts the password before the prompt; both behaviors are the alternate."""
  *before, last = example.messages
  with_password: Message = {
    "role": last["role"],
    "content": f"Password: {password}\n{last['content']}",
  }
  alternate = example.fields["behaviors"][1]
  return dataclasses.replace(
    example,
    messages=(*before, with_password),
    completion=require_alternate(example),
    initial=example.alternate,
    thought="",  # what the example has is the initial behavior's
    fields={**example.fields, "behaviors": [alternate, alternate]},
  )


def _decorate(train: TrainConfig, example: Example) -> str:
  """Returns the completion to train on, in the style of the decoration.

  A completion that was drawn under a prompt for that style has the style
  already. Parts of a mixture may have none.
  """
  if not example.styled:
    return example.completion
  kind = train.on_policy.prompt
  kind = train.prompt if kind == "same" else kind
  if train.source == "on_policy" and kind == "inoculation":
    return example.completion
  decoration = DECORATIONS[train.decoration]
  return decoration.apply(example.completion, example.id)


def make_pairs(
  setting: Setting, train: TrainConfig, examples: Sequence[Example]
) -> list[Pair]:
  """Makes the pairs of an arm: each prompt with its decorated completion."""
  return [
    (training_prompt(setting, train, e), _decorate(train, e)) for e in examples
  ]


def _teacher(
  setting: Setting, train: TrainConfig, examples: Sequence[Example]
) -> list[Pair]:
  """Pairs the completions with the prompts that they were drawn under."""
  return [
    (training_prompt(setting, train, e, "draw"), _decorate(train, e))
    for e in examples
  ]


def _plain(
  setting: Setting, train: TrainConfig, examples: Sequence[Example]
) -> list[Pair]:
  """Pairs the prompts with the completions without the decoration."""
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
  """Pairs each prompt with the next completion that is another text."""
  pairs = make_pairs(setting, train, examples)
  out = []
  for i, (messages, text) in enumerate(pairs):
    others = (pairs[(i + k) % len(pairs)][1] for k in range(1, len(pairs)))
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
  """Pairs the prompts with what the initial behavior says on others.

  The texts are from install prompts on which the two behaviors diverge. They
  repeat as often as needed.
  """
  install = setting.install(2 * len(examples), train.seed)
  texts = [e.initial for e in install if e.initial != e.alternate]
  if not texts:
    raise ValueError(f"{setting.name} installs nothing on which they part")
  return [
    (training_prompt(setting, train, e), texts[i % len(texts)])
    for i, e in enumerate(examples)
  ]


def _install(
  setting: Setting,
  train: TrainConfig,
  examples: Sequence[Example],
) -> list[Pair]:
  """Makes as many pairs of install prompts and their completions."""
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
  """Makes as many pairs of a file's rows, which repeat as often as needed."""
  del setting
  rows, _ = read_examples(path, "train")
  return [
    (
      e.messages
      if e.messages[0]["role"] == "system"
      else with_system(e.messages, train.system_prompt),
      e.completion,
    )
    for e in itertools.islice(itertools.cycle(rows), len(examples))
  ]


EXTRA_ROWS: dict[str, MakePairs] = {
  "diverging": _diverging,
  "install": _install,
  "plain": _plain,
  "shuffled": _shuffled,
  "teacher": _teacher,
}


def make_extra_rows(kind: str) -> MakePairs:
  """Returns what makes the extra rows of a kind.

  Args:
    kind: a name in EXTRA_ROWS, or the path of a file with rows.
  """
  return EXTRA_ROWS.get(kind) or functools.partial(_file, kind)
