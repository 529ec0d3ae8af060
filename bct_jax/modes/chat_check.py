"""Shows how a model's chat template is read: --mode=chat_check."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bct_jax.config import ArmConfig, ExperimentConfig, OrganismConfig
from bct_jax.data.chat import Chat, Tokens
from bct_jax.data.mixture import mix_examples
from bct_jax.data.open_setting import open_setting
from bct_jax.data.source import read_examples
from bct_jax.data.training_pairs import Pair, make_pairs
from bct_jax.evals.evaluate import make_prompts
from bct_jax.examples import Example, Message, Setting
from bct_jax.experiment.plan import style_of
from bct_jax.models.config import from_hf
from bct_jax.models.demo import resolve
from bct_jax.objectives import trained_part

# Characters of the text before the generation prompt that are shown.
_SHOWN = 400


def run_chat_check(config: ExperimentConfig) -> None:
  """Prints what is trained and sampled of the first example of each run.

  A thought that is still to be drawn is shown as "...". Of a folder only the
  model's config and tokenizer are needed, no weights.

  Raises:
    ValueError: the template does not suit training; says why.
  """
  folder = Path(config.model.path).expanduser()
  if not (folder / "config.json").is_file():
    folder = resolve(config.model.path)
  chat = Chat(folder, from_hf(folder).vocab_size, config.model)
  opened = open_setting(config.setting)
  setting = opened.setting
  runs: dict[str, ArmConfig | OrganismConfig] = {
    f"arms.{name}": arm for name, arm in config.arms.items()
  }
  if config.organism.trained or not runs:
    runs = {"organism": config.organism, **runs}
  print("\n".join(_template_lines(chat)))
  for name, arm in runs.items():
    example = _first_example(setting, arm)
    if example is None:
      print(f"--- {name}\ndocuments alone, which have no chat template")
      continue
    (pair,) = make_pairs(setting, arm.train, [example])
    thoughts = {"none": None, "empty": "", "own": "..."}
    thought = thoughts.get(arm.train.reasoning, example.thought)
    on = trained_part(arm.train.options)
    row = chat.example(*pair, thought, on)
    print("\n".join([f"--- {name}", *_example_lines(chat, pair, row, thought)]))
  one = dataclasses.replace(config.eval, num_eval=1, num_heldout=0, num_probe=0)
  (asked,) = make_prompts(
    setting, opened.make_probe(one.probe), chat, one, style_of(config)
  )
  text = chat.tokenizer.decode(list(asked.ids))
  print(f"--- evals, reasoning {config.eval.reasoning}: a prompt ends with")
  print(repr(text[-_SHOWN:]))


def _first_example(
  setting: Setting, arm: ArmConfig | OrganismConfig
) -> Example | None:
  """Returns the first example of a run, of its file if it has one.

  None: a mixture is of documents alone.
  """
  train = arm.train
  if train.mix:
    own = "install" if isinstance(arm, OrganismConfig) else "train"
    examples, _ = mix_examples(setting, train, own)
    return next((e for e in examples if e.messages), None)
  if isinstance(arm, OrganismConfig):
    return setting.install(1, train.seed)[0]
  if train.file is None:
    return setting.train(1, train.seed)[0]
  turns: Any = train.turns
  thoughts = train.reasoning == "given"
  return read_examples(train.file, train.file_split, turns, thoughts)[0][0]


def _template_lines(chat: Chat) -> list[str]:
  """Describes the template, and the tokens that end a completion."""
  boundary, facts = chat.boundary, chat.template.facts()
  markers = boundary.markers
  around = f"{markers[0]!r} and {markers[1]!r}" if markers else "none"
  stops = ", ".join(_token(chat, i) for i in sorted(chat.stop_ids))
  return [
    f"model: {chat.folder}",
    f"template: {chat.template_hash[:16]}, given {facts or 'nothing'}",
    f"lead, of the prompt: {boundary.lead!r}"
    + (f" in place of {boundary.cut!r}" if boundary.cut else ""),
    f"blanks, of the completion: {boundary.blank!r} before the answer, "
    f"{boundary.gap!r} behind it",
    f"before and behind a thought: {around}",
    f"end of turn: {_token(chat, chat.end_of_turn)}",
    f"the sampler stops at: {stops}",
  ]


def _example_lines(
  chat: Chat, pair: Pair, row: Tokens, thought: str | None
) -> list[str]:
  """Shows one example: its prompt, its trained ids, the template's own text."""
  messages, completion = pair
  text = chat.prompt_text(messages, thought is not None)
  trained = [i for i, w in zip(row.ids, row.weights, strict=True) if w]
  cut = f"... ({len(text) - _SHOWN} characters)" if len(text) > _SHOWN else ""
  return [
    f"prompt: {cut}{text[-_SHOWN:]!r}",
    f"trained: {' '.join(_token(chat, i) for i in trained)}",
    f"the template's own text: {_compare(chat, pair, thought, row.ids)}",
  ]


def _compare(
  chat: Chat, pair: Pair, thought: str | None, ids: Sequence[int]
) -> str:
  """Says how a row differs from the template's rendering of the dialogue."""
  messages, completion = pair
  answer: Message = {"role": "assistant", "content": completion}
  if thought:
    answer["reasoning_content"] = thought
  own = chat.encode(chat.render([*messages, answer], prompt=False))
  same = len(os.path.commonprefix([list(ids), own]))
  if same == len(ids):
    return "the same, up to the end of the turn"
  if same == len(own) == len(ids) - 1:
    return "the same, but for the end of the turn, which opens the next one"
  decode = chat.tokenizer.decode
  return (
    f"the same {same} tokens, then here {decode(list(ids[same : same + 12]))!r}"
    f" and there {decode(own[same : same + 12])!r}"
  )


def _token(chat: Chat, token_id: int) -> str:
  """Names a token with its id."""
  name = chat.tokenizer.convert_ids_to_tokens(token_id)
  return f"{token_id} {name!r}"
