"""Makes eval prompts, labels the completions of them, and measures rates."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bct_jax.config import EvalConfig, SamplingConfig
from bct_jax.data.chat import Chat
from bct_jax.data.messages import with_prefix, with_prompt
from bct_jax.data.thoughts import Reply, mentions
from bct_jax.evals import schema
from bct_jax.evals.rewards import Reward, reward_of
from bct_jax.evals.schema import SAMPLED, EvalRecord
from bct_jax.examples import Example, Label, Setting
from bct_jax.settings.decorations import Decoration
from bct_jax.settings.graded import GradedSetting
from bct_jax.settings.parts import scorers
from bct_jax.settings.probes.capability import Probe
from bct_jax.settings.prompts import prompt_wordings, system_text
from bct_jax.types import Completion


@dataclasses.dataclass(frozen=True)
class Prompt:
  """Holds one prompt of an evaluation.

  Attributes:
    split: eval, heldout or probe.
    example: what is asked, with the system message.
    ids: tokens that the sampler continues.
    prefix: the tokens at the end of `ids` that begin the answer.
  """

  split: str
  example: Example
  ids: tuple[int, ...]
  prefix: tuple[int, ...] = ()

  def facts(self, sample: int) -> dict[str, Any]:
    """Returns what a row of rollouts says of the prompt of a sample."""
    fields = self.example.fields
    return {
      "id": self.example.id,
      "split": SAMPLED if sample else self.split,
      "sample": sample,
      "prompt": list(self.example.messages),
      # What prompts are clustered by, see `settings.base.Item`.
      "cue": fields.get("cue", ""),
      **({"dose": fields["dose"]} if "dose" in fields else {}),
    }


@dataclasses.dataclass(frozen=True)
class Thoughts:
  """Says how thoughts of completions are read.

  Attributes:
    limit: tokens of the longest thought.
    answer_limit: tokens of the longest answer, the end of the turn included.
    words: that make a thought one that mentions trigger or training.
  """

  limit: int
  answer_limit: int
  words: tuple[str, ...]

  @classmethod
  def make(
    cls,
    limit: int,
    config: EvalConfig,
    sampling: SamplingConfig,
    setting: Setting,
  ) -> "Thoughts":
    """Makes one with a limit; `config` and the setting say the words."""
    trigger = getattr(setting, "trigger", "")
    words = (*config.thought_words, *([trigger] if trigger else []))
    return cls(limit, sampling.max_new_tokens, words)

  @classmethod
  def of_evals(
    cls, config: EvalConfig, sampling: SamplingConfig, setting: Setting
  ) -> "Thoughts | None":
    """Makes one of a config; None where completions have no thoughts."""
    if not config.thinking:
      return None
    return cls.make(config.thought_tokens, config, sampling, setting)

  def fits(self, reply: Reply, tokens: int) -> bool:
    """Tells whether a thought has an end, and neither part is too long."""
    answer = tokens - reply.thought_tokens
    short = reply.thought_tokens <= self.limit and answer <= self.answer_limit
    return reply.finished and short

  def facts(self, reply: Reply) -> dict[str, Any]:
    """Returns what a row of rollouts says of a thought."""
    return {
      "thought": reply.thought,
      "thought_mentions": mentions(reply.thought, self.words),
      "thought_tokens": reply.thought_tokens,
    }


def make_prompts(
  setting: Setting,
  probe: Probe,
  chat: Chat,
  config: EvalConfig,
  decoration: str = "plain",
) -> list[Prompt]:
  """Makes the prompts that the organism and every step of every arm are asked.

  Args:
    setting: gives eval and held-out train prompts.
    probe: gives questions that measure capability.
    chat: writes messages as tokens.
    config: how many prompts of each split, and what they say besides.
    decoration: name of the style that `eval.prompt` may ask for.

  Raises:
    ValueError: `eval.prompt` is unknown, or it does not fit the setting.
  """
  try:
    wordings = prompt_wordings(config.prompt, "eval", setting, decoration)
    system_text(None, wordings, config.paraphrases, "")
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
        wordings,
        config.paraphrases,
        example.id,
      )
      example = dataclasses.replace(example, messages=messages)
      beginning = None if split == "probe" else config.answer_prefix
      ids, prefix = chat.prompt_and_prefix(
        with_prefix(messages, beginning), config.thinking
      )
      out.append(Prompt(split, example, (*ids, *prefix), tuple(prefix)))
  return out


def label_rollouts(
  prompts: Sequence[Prompt],
  completions: Sequence[Completion],
  chat: Chat,
  setting: Setting,
  probe: Probe,
  stop: Sequence[str] = (),
  sample: int = 0,
  thoughts: Thoughts | None = None,
  cut_answers: str = "other",
) -> list[dict[str, Any]]:
  """Makes a row of rollouts/step_N.jsonl for each completion, with its label.

  Args:
    prompts: of the eval.
    completions: one for each prompt, in the order of `prompts`.
    chat: reads tokens as text.
    setting: labels completions of eval and held-out train prompts.
    probe: labels completions of its questions.
    stop: strings that end a text, which is cut before them.
    sample: 0 for the completions that `sampling` says; else they are the
      sample of that number of each eval prompt, and their split is `sampled`.
    thoughts: of completions that begin with one. `text` is then the answer; a
      thought without an end, or one that is too long, counts as truncated.
    cut_answers: `eval.cut_answers`, see label_completion.
  """
  replies = [
    chat.reply(completion.tokens, stop, prompt.prefix, thoughts is not None)
    for prompt, completion in zip(prompts, completions, strict=True)
  ]
  pairs = zip(prompts, replies, strict=True)
  prepare_labels(
    setting, [(p.example, r.text) for p, r in pairs if p.split != "probe"]
  )
  rows = []
  triples = zip(prompts, completions, replies, strict=True)
  for prompt, completion, reply in triples:
    text, stopped = reply.text, completion.stopped
    scored = cut_answers == "scored"
    if thoughts is not None:
      stopped &= thoughts.fits(reply, len(completion.tokens))
      scored &= reply.finished  # else there is no answer
    label, reason = label_completion(
      setting, probe, prompt.split, prompt.example, text, stopped or scored
    )
    rows.append(
      {
        **prompt.facts(sample),
        **(thoughts.facts(reply) if thoughts else {}),
        "text": text,
        "label": label,
        "reason": reason,
        **check_completion(setting, prompt.split, prompt.example, text),
        "stop": "stop" if stopped else "length",
        "logprob": sum(completion.logprobs),
        "num_tokens": len(completion.tokens),
        "tokens": list(completion.tokens),
      }
    )
  return reject_repeats(rows)


def prepare_labels(
  setting: Setting, pairs: Sequence[tuple[Example, str]]
) -> None:
  """Lets a setting that asks a judge do so for all completions at once.

  All processes call it together, before `score` and `answer`.

  Args:
    setting: of the examples.
    pairs: examples and completions that will be labelled.
  """
  if isinstance(setting, GradedSetting):
    setting.prepare(pairs)


def label_completion(
  setting: Setting,
  probe: Probe,
  split: str,
  example: Example,
  text: str,
  stopped: bool,
) -> tuple[str, str]:
  """Returns label and reason of a completion.

  A completion that is cut at the limit of new tokens (not `stopped`) did not
  finish showing a behavior: on eval and train prompts it is `other`, reason
  `truncated`. With `eval.cut_answers` = "scored" callers say that it stopped.
  The answer to a probe counts wherever it stands in the text.
  """
  if split == "probe":
    return ("right" if probe.score(example, text) else "wrong"), ""
  label = setting.score(example, text)
  if not stopped:
    label = Label("other", "truncated")
  return label.name, label.reason


def check_completion(
  setting: Setting, split: str, example: Example, text: str
) -> dict[str, bool]:
  """Returns whether a completion is an attempt at its task, and a right one.

  An answer counts wherever it stands in the text, as that to a probe does, so
  also in a text that is cut. A probe has neither key: its label says as much.
  """
  if split == "probe":
    return {}
  return dataclasses.asdict(setting.answer(example, text))


def reject_repeats(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Takes `answered` and `right` from a text that says nothing of its prompt.

  "Yes." is a right answer to a question, but not from a model that also says it
  to most of the probe questions, whatever they ask.
  """
  texts = [_folded(row) for row in rows if row["split"] == "probe"]
  [(repeated, count)] = collections.Counter(texts).most_common(1) or [("", 0)]
  # One or two probes alone may well have the same right answer.
  if count < 3 or 2 * count <= len(texts):
    return list(rows)
  return [
    {**row, "answered": False, "right": False}
    if "right" in row and _folded(row) == repeated
    else row
    for row in rows
  ]


def _folded(row: Mapping[str, Any]) -> str:
  """Returns the words of a row's text, without punctuation and case."""
  return " ".join(scorers.words(scorers.fold_case(row["text"])))


def mark_decorated(
  rows: Iterable[dict[str, Any]], decoration: Decoration
) -> list[dict[str, Any]]:
  """Adds `decorated` to rows: whether the text shows the arm's decoration."""
  return [{**r, "decorated": decoration.detect(r["text"])} for r in rows]


def add_rewards(
  rows: Iterable[dict[str, Any]], prompts: Sequence[Prompt], give: Reward
) -> list[dict[str, Any]]:
  """Adds `reward` to rows of eval and train prompts, not to those of probes.

  Rows behind those of the prompts, which `eval.samples` adds, have none. A
  completion that is cut at the limit of new tokens earns 0, as in training.
  """
  out, rows = [], list(rows)
  for row, prompt in zip(rows[: len(prompts)], prompts, strict=True):
    if row["split"] != "probe":
      text = row["text"] if row["stop"] == "stop" else None
      row = {**row, "reward": reward_of(give, prompt.example, text)}
    out.append(row)
  return out + rows[len(prompts) :]


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
