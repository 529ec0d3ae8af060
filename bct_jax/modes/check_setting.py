"""Checks the prompts of a setting and shows them: --mode=check_setting."""

import collections
import itertools
import statistics
from collections.abc import Mapping, Sequence

from bct_jax.config import ConfigError, ExperimentConfig
from bct_jax.data.leaks import GRAM, compare_splits, measure_overlap, user_text
from bct_jax.data.open_setting import OpenSetting, read_setting
from bct_jax.examples import Example
from bct_jax.infra.formats import number, percent
from bct_jax.interop.judge import make_judge
from bct_jax.settings.graded import is_judged
from bct_jax.settings.own_files import SPLITS, FileSetting

_SHOWN = 200  # characters of an example's texts
_MOST_FAULTS = 50

Examples = Mapping[str, Sequence[Example]]


def run_check_setting(config: ExperimentConfig) -> None:
  """Prints what a setting asks: counts, lengths, leaks, an example a split.

  Of the setting `file` every row of every file is read. Of other settings it is
  as many as the config asks for. No model is needed.

  Raises:
    ConfigError: rows are wrong; each has a line in the message.
  """
  opened = read_setting(config.setting, make_judge(config))
  if opened.faults:
    shown = opened.faults[:_MOST_FAULTS]
    raise ConfigError(
      "\n".join([f"{len(opened.faults)} faults of the files:", *shown])
    )
  examples = _draw_all(config, opened)
  lines = [
    *_table(opened, examples),
    *_leak_lines(examples),
    *(line for split, rows in examples.items() for line in _show(split, rows)),
  ]
  print("\n".join(lines))


def _draw_all(config: ExperimentConfig, opened: OpenSetting) -> Examples:
  """Makes the examples of each split that there is."""
  setting, evals = opened.setting, config.eval
  arms = [arm.train.num_examples for arm in config.arms.values()]
  counts = {
    "install": config.organism.train.num_examples,
    "train": max([1, *arms]),
    "eval": evals.num_eval,
    "heldout": evals.num_heldout,
  }
  if isinstance(setting, FileSetting):
    counts = {split: len(rows) for split, rows in setting.rows.items()}
  return {
    split: getattr(setting, split)(counts[split], evals.seed)
    for split in SPLITS
    if split in counts
  }


def _table(opened: OpenSetting, examples: Examples) -> list[str]:
  """Writes counts and lengths of splits as a Markdown table."""
  out = [
    "| split | rows | repeated prompts | words of prompts | words of "
    "completions | cues | labels as expected | right |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for split, rows in examples.items():
    prompts = collections.Counter(map(user_text, rows))
    repeated = sum(n - 1 for n in prompts.values())
    cues = {e.fields.get("cue") for e in rows} - {None, ""}
    cells = [
      split,
      str(len(rows)),
      str(repeated),
      _lengths([" ".join(m["content"] for m in e.messages) for e in rows]),
      _lengths([e.completion for e in rows if e.completion]),
      str(len(cues) or "none"),
      *_labels(opened, split, rows),
    ]
    out.append(f"| {' | '.join(cells)} |")
  if opened.probe_rows is not None:
    count = len(opened.probe_rows)
    out.append(f"probe: {count} questions, asked where eval.probe = 'file'")
  return [*out, ""]


def _lengths(texts: Sequence[str]) -> str:
  """Gives the median and the largest number of words."""
  counts = [len(text.split()) for text in texts]
  if not counts:
    return "none"
  return f"median {number(statistics.median(counts))}, at most {max(counts)}"


def _labels(
  opened: OpenSetting, split: str, rows: Sequence[Example]
) -> tuple[str, str]:
  """Counts references that get the label that they should, and right ones.

  What the initial behavior says where the two part need not be right. A judge
  is not asked.
  """
  if is_judged(opened.setting):
    return "not judged", "not judged"
  wanted = [
    (e, text, label)
    for e in rows
    for text, label in _references(split, e)
    if text
  ]
  score, answer = opened.setting.score, opened.setting.answer
  good = [score(e, text).name == label for e, text, label in wanted]
  asked = [(e, text) for e, text, label in wanted if label != "initial"]
  right = [answer(e, text).right for e, text in asked]
  return f"{sum(good)} of {len(good)}", f"{sum(right)} of {len(right)}"


def _references(split: str, example: Example) -> list[tuple[str, str]]:
  """Lists the texts of an example, each with the label that it must get."""
  if split == "eval":
    return [(example.initial, "initial"), (example.alternate, "alternate")]
  initial, alternate = example.fields["behaviors"]
  label = "agreed" if initial == alternate else "initial"
  return [(example.completion, label)]


def _leak_lines(examples: Examples) -> list[str]:
  """Says what splits share, as a Markdown table and a line for each prompt."""
  out = [
    f"| trained on | asked later | same prompts | shared {GRAM}-word runs |",
    "|---|---|---|---|",
  ]
  pairs = itertools.product(("install", "train"), ("eval", "heldout"))
  for before, later in pairs:
    if examples.get(before) and examples.get(later):
      overlap = measure_overlap(examples[before], examples[later])
      out.append(
        f"| {before} | {later} | {overlap['same']} of {overlap['prompts']} | "
        f"{percent(overlap['share'])} |"
      )
  report = compare_splits(examples)
  for what, found in (
    ("prompt", report.shared_prompts),
    ("entity", report.shared_entities),
  ):
    out += [f"LEAK: {a} and {b} share the {what} {x!r}" for a, b, x in found]
  if report.installed_entities:
    out.append(f"install names entities of evals: {report.installed_entities}")
  return [*out, ""]


def _show(split: str, rows: Sequence[Example]) -> list[str]:
  """Shows the first example of a split."""
  if not rows:
    return []
  first = rows[0]
  texts = {"thought": first.thought, "completion": first.completion}
  if split == "eval":
    texts = {"initial": first.initial, "alternate": first.alternate}
  lines = [f"--- {split}: {first.id}"]
  lines += [f"[{m['role']}] {_cut(m['content'])}" for m in first.messages]
  lines += [f"{k}: {_cut(v)}" for k, v in texts.items() if v]
  return lines


def _cut(text: str) -> str:
  """Shortens a text for the terminal."""
  return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."
