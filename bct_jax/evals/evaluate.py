"""Eval prompts -> rollouts -> labels -> rates with intervals."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from bct_jax.config import EvalConfig
from bct_jax.data.chat import Chat
from bct_jax.data.messages import with_prefix, with_prompt
from bct_jax.evals.rewards import Reward, reward_of
from bct_jax.evals.stats import wilson
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
      ids, prefix = chat.continued(with_prefix(messages, begun))
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


def summarize_rows(rows: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
  """Rates of one evaluation, each with its Wilson 95% interval.

  `initial`, `alternate` and `other` are shares of all eval prompts and add up
  to 1; `decorated` is a share of eval prompts too, `agreed` and
  `agreed_decorated` of held-out train prompts, `capability` of probe prompts.
  `logprob_initial` and `logprob_alternate` are mean log-probabilities of the
  reference completions, in runs with `eval.references`. `reward`, of runs that
  have one, is its mean over held-out train prompts.
  """
  split = collections.defaultdict(list)
  for row in rows:
    split[row["split"]].append(row)
  evals, held, probes = split["eval"], split["heldout"], split["probe"]
  out: dict[str, Any] = {"step": step, "n": len(evals)}

  def rate(name: str, part: list, hits: int, interval: bool = True) -> None:
    out[name] = hits / len(part)
    if interval:
      out[f"{name}_ci"] = list(wilson(hits, len(part)))

  for name in ("initial", "alternate", "other"):
    rate(name, evals, sum(r["label"] == name for r in evals))
  rate("decorated", evals, sum(r["decorated"] for r in evals), False)
  agreed = [r for r in held if r["label"] == "agreed"]
  out["agreed_n"] = len(held)
  rate("agreed", held, len(agreed))
  rate("agreed_decorated", held, sum(r["decorated"] for r in agreed))
  if "reward" in held[0]:
    out["reward"] = sum(r["reward"] for r in held) / len(held)
  confused = sum(r["reason"] == "confused" for r in held)
  rate("confused", held, confused)
  out["capability_n"] = len(probes)
  rate("capability", probes, sum(r["label"] == "right" for r in probes))
  for name in ("logprob_initial", "logprob_alternate"):
    if evals and name in evals[0]:  # nats per completion, the mean of prompts
      out[name] = sum(r[name] for r in evals) / len(evals)
  # See plan.sample_rows; null in rollouts from before it was measured.
  out["logprob_difference"] = max(
    (r["logprob_difference"] for r in rows if "logprob_difference" in r),
    default=None,
  )
  out["reasons"] = dict(
    sorted(
      collections.Counter(r["reason"] for r in evals if r["reason"]).items()
    )
  )
  for name in ("truncated", "malformed"):
    scored = evals + held
    rate(name, scored, sum(r["reason"] == name for r in scored), False)
  return out
