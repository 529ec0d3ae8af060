"""Makes the scorer that labels the saved completions of a run again."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bct_jax.config import (
  ConfigError,
  JudgeConfig,
  SettingConfig,
)
from bct_jax.config.fields import build
from bct_jax.data.open_setting import FILE, open_setting
from bct_jax.evals import schema
from bct_jax.evals.evaluate import (
  check_completion,
  label_completion,
  prepare_labels,
  reject_repeats,
)
from bct_jax.examples import Example, Setting
from bct_jax.interop import judge as judges
from bct_jax.report.read.records import Record
from bct_jax.report.read.types import ReportError
from bct_jax.settings import rename_options
from bct_jax.settings.decorations import Decoration
from bct_jax.settings.graded import JudgedSetting
from bct_jax.settings.graders import make_grader
from bct_jax.settings.graders.judge import KIND
from bct_jax.settings.probes.capability import Probe


@dataclasses.dataclass(frozen=True)
class RunScorer:
  """Labels completions of a run, with what its config makes today."""

  setting: Setting
  probe: Probe
  examples: Mapping[tuple[str, str], Example]  # by split and id
  cut_answers: str = "other"  # eval.cut_answers

  def rows(
    self, rows: Sequence[Record], decoration: Decoration
  ) -> list[dict[str, Any]]:
    """Returns rows with the labels, reasons and decorations of today.

    Raises:
      ReportError: the setting makes no such prompts now.
    """
    found = [(self._example(row), row) for row in rows]
    prepare_labels(
      self.setting,
      [
        (example, row.text("text"))
        for example, row in found
        if row.text("split") != "probe"
      ],
    )
    return reject_repeats([self._row(e, row, decoration) for e, row in found])

  def _example(self, row: Record) -> Example:
    """Finds what a row answers.

    Raises:
      ReportError: the setting makes no such prompt now.
    """
    split, name = row.text("split"), row.text("id")
    source = "eval" if split == schema.SAMPLED else split
    example = self.examples.get((source, name))
    prompt = [m.text("content") for m in row.objects("prompt")]
    if example is None or not _asks(prompt, example):
      raise ReportError(
        f"{row.where}: {self.setting.name} now has no prompt {name!r} that "
        "asks the same: the run was made by another version of the setting, "
        "whose completions today's scorer cannot judge; use that version"
      )
    return example

  def _row(
    self, example: Example, row: Record, decoration: Decoration
  ) -> dict[str, Any]:
    """Returns a row with the label, reason and decoration of today."""
    split, text = row.text("split"), row.text("text")
    stopped = row.text("stop", ("stop", "length")) == "stop"
    if self.cut_answers == "scored":
      # A thought that has no end leaves no text.
      stopped |= bool(text) or row.value.get("thought") is None
    label, reason = label_completion(
      self.setting, self.probe, split, example, text, stopped
    )
    shows = decoration.detect(text)
    return {
      **row.value,
      "label": label,
      "reason": reason,
      **check_completion(self.setting, split, example, text),
      "decorated": shows,
    }


def make_scorer(workdir: Path, config: Record, grader: str | None) -> RunScorer:
  """Makes setting, probe and examples of a run's config again."""
  setting, evals = config.object("setting"), config.object("eval")
  name = setting.text("name")
  options = rename_options(name, setting.object("options").value)
  value, judge = _read_grader(grader), None
  if value is not None and name != FILE and value.get("kind") != KIND:
    raise ConfigError(f"--grader: {name} has a scorer of its own")
  asked = options.get("grader", {}) if value is None else value
  if asked.get("kind") == KIND:
    saved = evals.object("judge").value if evals.has("judge") else {}
    judge, asked = _make_judge(asked, saved, options)
    judge.open(workdir / judges.FILE)
  if value is not None and name == FILE:
    options["grader"] = asked
  opened = open_setting(SettingConfig(name, options), judge)
  current, probe = opened.setting, opened.make_probe(evals.text("probe"))
  if judge is not None and name != FILE:
    current = JudgedSetting(
      name, current, make_grader(asked, Path(), "--grader", judge)
    )
  seed = evals.count("seed")
  examples = {
    "eval": current.eval(evals.count("num_eval"), seed),
    "heldout": current.heldout(evals.count("num_heldout"), seed),
    "probe": probe.examples(evals.count("num_probe"), seed),
  }
  return RunScorer(
    current,
    probe,
    {(k, e.id): e for k, part in examples.items() for e in part},
    evals.text("cut_answers") if evals.has("cut_answers") else "other",
  )


def _read_grader(grader: str | None) -> dict[str, Any] | None:
  """Reads the JSON of --grader.

  Raises:
    ConfigError: it is none, or no object.
  """
  if grader is None:
    return None
  try:
    value = json.loads(grader)
  except ValueError as e:
    raise ConfigError(f"--grader={grader}: not JSON: {e}") from None
  if not isinstance(value, dict):
    raise ConfigError(f"--grader={grader}: must be an object with fields")
  return value


def _make_judge(
  grader: Mapping[str, Any],
  saved: Mapping[str, Any],
  options: Mapping[str, Any],
) -> tuple[judges.InspectJudge, dict[str, Any]]:
  """Makes the judge of a grader.

  Args:
    grader: maybe with fields of eval.judge, which come before the run's.
    saved: eval.judge of the run.
    options: of its setting.

  Returns:
    The judge, and what is left of the grader.
  """
  names = {field.name for field in dataclasses.fields(JudgeConfig)}
  values = {k: v for k, v in grader.items() if k in names}
  config = build(JudgeConfig, {**saved, **values}, "eval.judge")
  if fault := config.find_fault():
    raise ConfigError(fault)
  if not config.model:
    raise ConfigError(
      '--grader: the kind "judge" needs "model" and "rubric", which the run '
      "does not have"
    )
  folder = Path(options.get("folder", "")).expanduser()
  rest = {k: v for k, v in grader.items() if k not in names}
  return judges.InspectJudge(config, folder), rest


def _asks(prompt: Sequence[str], example: Example) -> bool:
  """Tells whether a saved prompt ends in the messages of an example."""
  contents = [m["content"] for m in example.messages]
  last = prompt[-len(contents) :]
  return len(last) == len(contents) and all(map(str.endswith, last, contents))
