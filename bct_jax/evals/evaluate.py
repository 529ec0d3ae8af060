"""Eval prompts -> rollouts -> labels -> rates with intervals."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from bct_jax.config import EvalConfig
from bct_jax.data.chat import Chat
from bct_jax.data.messages import with_prefix, with_prompt
from bct_jax.evals import schema
from bct_jax.evals.rewards import Reward, reward_of
from bct_jax.evals.schema import EvalRecord
from bct_jax.examples import Example, Label, Setting
from bct_jax.settings.decorations import Decoration
from bct_jax.settings.probes.capability import Probe
from bct_jax.settings.prompts import prompt_wordings, system_text
from bct_jax.types import Completion


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One row of an evaluation.

  Attributes:
    split: eval, heldout or probe.
    example: with the system message.
    ids: what the sampler continues.
    prefix: those at the end of `ids` that the answer is made to begin with.
  """

  split: str
  example: Example
  ids: tuple[int, ...]
  prefix: tuple[int, ...] = ()


def make_prompts(
  setting: Setting,
  probe: Probe,
  chat: Chat,
  config: EvalConfig,
  decoration: str = "plain",
) -> list[Prompt]:
  """The same prompts for the organism and every step of every arm.

  `decoration` is the style that `eval.prompt` may ask for.

  Raises:
    ValueError: there is no such prompt, or it does not fit the setting.
  """
  try:
    asked = prompt_wordings(config.prompt, "eval", setting, decoration)
    system_text(None, asked, config.paraphrases, "")
  except ValueError as e:
    raise ValueError(f"eval.{e}") from None
  examples = [
    ("eval", setting.eval(config.num_eval, config.seed)),
    ("heldout", setting.heldout(config.num_heldout, config.seed)),
    ("probe", probe.examples(config.num_probe, config.seed)),
  ]
  out = []
  for split, part in examples:
    for example in part:
      messages = with_prompt(
        example.messages,
        config.system_prompt,
        config.prompt,
        asked,
        config.paraphrases,
        example.id,
      )
      example = dataclasses.replace(example, messages=messages)
      begun = None if split == "probe" else config.answer_prefix
      ids, prefix = chat.prompt_and_prefix(with_prefix(messages, begun))
      out.append(Prompt(split, example, (*ids, *prefix), tuple(prefix)))
  return out


def label_rollouts(
  prompts: Sequence[Prompt],
  completions: Sequence[Completion],
  chat: Chat,
  setting: Setting,
  probe: Probe,
  stop: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """One JSON row per completion, scored; see DESIGN for the file format."""
  rows = []
  for prompt, completion in zip(prompts, completions, strict=True):
    text = chat.decode(completion.tokens, stop, prompt.prefix)
    label, reason = label_completion(
      setting, probe, prompt.split, prompt.example, text, completion.stopped
    )
    rows.append(
      {
        "id": prompt.example.id,
        "split": prompt.split,
        "prompt": list(prompt.example.messages),
        "text": text,
        "label": label,
        "reason": reason,
        "stop": "stop" if completion.stopped else "length",
        "logprob": sum(completion.logprobs),
        "num_tokens": len(completion.tokens),
        "tokens": list(completion.tokens),
      }
    )
  return rows


def label_completion(
  setting: Setting,
  probe: Probe,
  split: str,
  example: Example,
  text: str,
  stopped: bool,
) -> tuple[str, str]:
  """Label and reason of a completion.

  One cut at the limit of new tokens (not `stopped`) did not finish showing a
  behavior: on eval and train prompts it is `other`, reason `truncated`. A
  probe's answer counts wherever it stands.
  """
  if split == "probe":
    return ("right" if probe.score(example, text) else "wrong"), ""
  found = setting.score(example, text)
  if not stopped:
    found = Label("other", "truncated")
  return found.name, found.reason


def mark_decorated(
  rows: Iterable[dict[str, Any]], decoration: Decoration
) -> list[dict[str, Any]]:
  """Adds to each row whether its text shows the decoration of the arm."""
  return [{**r, "decorated": decoration.detect(r["text"])} for r in rows]


def add_rewards(
  rows: Iterable[dict[str, Any]], prompts: Sequence[Prompt], give: Reward
) -> list[dict[str, Any]]:
  """Adds to each row, but those of probes, the reward of its completion.

  A completion cut at the limit of new tokens has none, as in training.
  """
  out = []
  for row, prompt in zip(rows, prompts, strict=True):
    if row["split"] != "probe":
      text = row["text"] if row["stop"] == "stop" else None
      row = {**row, "reward": reward_of(give, prompt.example, text)}
    out.append(row)
  return out


def measure_rows(rows: Sequence[dict[str, Any]], step: int) -> EvalRecord:
  """Measures labelled completions of one eval, each rate with its interval.

  `schema.EvalRecord` says what is measured, of which prompts. An eval without
  eval prompts or without probes divides by zero.
  """
  values = {m.name: m.measure(rows) for m in schema.measurements()}
  return schema.EvalRecord(step=step, **values)


def summarize_rows(rows: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
  """Measures labelled completions as `measure_rows` does; returns JSON."""
  return measure_rows(rows, step).to_json()
