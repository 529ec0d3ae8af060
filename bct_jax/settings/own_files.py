"""Offers the setting `file`: prompts from files of the user's, and a grader."""

import dataclasses
import functools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from bct_jax.examples import Example, Message
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.settings.graded import GradedSetting, is_judged
from bct_jax.settings.graders import Grader
from bct_jax.settings.graders.checks import CheckError
from bct_jax.settings.graders.judge import JudgeGrader
from bct_jax.settings.graders.rules import UserCodeError
from bct_jax.settings.parts import scorers

SPLITS = ("install", "train", "eval", "heldout")
# What asks for examples of a split, for errors.
_ASKS = {
  "install": "organism.train.num_examples",
  "train": "train.num_examples",
  "eval": "eval.num_eval",
  "heldout": "eval.num_heldout",
}
# Of completions, some may be no good example. Of references none may.
_MIN_GOOD = 0.5
_TRIED = 20  # rows on which decorations are tried


@dataclasses.dataclass(frozen=True)
class FileRow:
  """Holds a row of a file.

  Attributes:
    where: file and line, for errors.
    id: unique in its split.
    messages: the prompt.
    completion: what is trained on; "" on eval rows, and on held-out rows
      without a reference.
    row: all fields as they stand, with `completion`, and `initial` and
      `alternate` where the behaviors agree.
    weight, thought: see `Example`.
  """

  where: str
  id: str
  messages: tuple[Message, ...]
  completion: str
  row: Mapping[str, Any]
  weight: float = 1.0
  thought: str = ""


@dataclasses.dataclass(frozen=True)
class FileOptions:
  """Holds the options of the setting `file`.

  Attributes:
    folder: has install, train, eval, heldout and probe, see settings/README.md.
    grader: see `graders.make_grader`.
    keep_styles: names of decorations that the grader wants to see in a text,
      with blanks between.
    initial: what a model of the initial behavior does, to complete "a model
      that ..." in prompts and reports.
    alternate: the same of the alternate behavior.
    turns: which answers of install and train dialogues are examples, where
      rows do not say: the "last" or "all", each under what stands before it.
    thoughts: whether rows may have thoughts, which a run with train.reasoning =
      "given" trains with, and others leave out.
  """

  folder: str = ""
  grader: dict[str, Any] = dataclasses.field(default_factory=dict)
  keep_styles: str = ""
  initial: str = ""
  alternate: str = ""
  turns: Literal["last", "all"] = "last"
  thoughts: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class FileSetting(GradedSetting):
  """Asks the prompts of files and labels answers by a grader.

  Attributes:
    options: of the config.
    rows: by split; a split without a file is absent.
    grader: of the options.
  """

  options: FileOptions
  rows: Mapping[str, Sequence[FileRow]]
  grader: Grader
  _sides: dict[str, bool] = dataclasses.field(default_factory=dict)
  _failures: set[str] = dataclasses.field(default_factory=set)

  name = "file"

  def __post_init__(self):
    for style in self.options.keep_styles.split():
      if style not in DECORATIONS:
        raise ValueError(
          f"setting.options.keep_styles: {style!r} is not one of "
          f"{', '.join(DECORATIONS)}"
        )

  @property
  def styles_to_keep(self) -> frozenset[str]:
    return frozenset(self.options.keep_styles.split())

  @property
  def incompatible(self) -> frozenset[str]:
    """Names the decorations with which references get another label."""
    return self._incompatible

  @functools.cached_property
  def _incompatible(self) -> frozenset[str]:
    """Tries all decorations on the first rows of each split."""
    out = set(self.styles_to_keep)
    # A judge is not asked about references: its answers cost.
    tried = {} if is_judged(self) else self.rows
    for split, rows in tried.items():
      for row in rows[:_TRIED]:
        example = self._example(split, row)
        for text, _ in self._references(split, row):
          label = self.score(example, text)
          out |= {
            name
            for name, style in DECORATIONS.items()
            if name not in out
            and self.score(example, style.apply(text, row.id)) != label
          }
    return frozenset(out)

  @functools.cached_property
  def descriptions(self) -> Mapping[str, str]:
    """Returns what the behaviors do, by name, as `prompts.behavior` does.

    Raises:
      ValueError: the options do not say so.
    """
    for name in ("initial", "alternate"):
      if not getattr(self.options, name).strip():
        raise ValueError(
          f"setting.options.{name}: missing; a prompt that describes the "
          f'{name} behavior needs words that complete "a model that ..."'
        )
    return {
      "Initial": self.options.initial,
      "Alternate": self.options.alternate,
    }

  def install(self, n: int, seed: int) -> list[Example]:
    return self._draw("install", n, seed)

  def train(self, n: int, seed: int) -> list[Example]:
    return self._draw("train", n, seed)

  def eval(self, n: int, seed: int) -> list[Example]:
    return self._draw("eval", n, seed)

  def heldout(self, n: int, seed: int) -> list[Example]:
    return self._draw("heldout", n, seed)

  def is_malformed(self, text: str) -> bool:
    """Returns whether a text is no language, if the files are in language.

    Files of code, sums or another alphabet would be noise to this test.
    """
    return self._is_language and scorers.is_malformed(text)

  @functools.cached_property
  def _is_language(self) -> bool:
    """Returns whether no reference is malformed."""
    return not any(
      scorers.is_malformed(text)
      for split, rows in self.rows.items()
      for row in rows
      for text, _ in self._references(split, row)
    )

  def find_faults(self) -> Iterator[str]:
    """Yields a line for each row that the grader cannot judge, or misjudges.

    References must get the label that they are references of. Of completions
    half must show the agreed behavior (of install rows that diverge, the
    initial one): those of another model need not all be good. A judge is not
    asked about them; rows must have what its rubric says.
    """
    if isinstance(self.grader, JudgeGrader):
      yield from self._find_judge_faults(self.grader)
      return
    for split, rows in self.rows.items():
      bad, asked = [], 0
      for row in rows:
        try:
          example = self._example(split, row)
          for text, label in self._references(split, row):
            asked += 1
            self.grader.grade(row.row, text, self._diverges(split, row))
            found = self.score(example, text)
            if found.name != label:
              what = found.reason or found.name
              key = label if split == "eval" else "completion"
              bad.append(
                f"{row.where}: the grader finds {what!r} in `{key}`, which "
                f"must be {label!r}: {text!r:.80}"
              )
          self.grader.grade(row.row, "word", self._diverges(split, row))
        except (CheckError, UserCodeError) as e:
          yield f"{row.where}: setting.options.grader: {e}"
      if split in ("eval", "heldout"):
        yield from bad
      elif bad and len(bad) > _MIN_GOOD * asked:
        yield (
          f"{bad[0]} (so it does in {len(bad)} of {asked} completions of "
          f"{split}: correct the grader, or the file)"
        )

  def _find_judge_faults(self, grader: JudgeGrader) -> Iterator[str]:
    """Yields a line for each row that a judge cannot be asked about."""
    for split, rows in self.rows.items():
      for row in rows:
        if split == "install" and row.row.get("diverges") is None:
          yield (
            f'{row.where}: needs "diverges": true or false, or "alternate": a '
            "judge is not asked about what is trained on"
          )
        try:
          if split in ("eval", "heldout"):
            grader.check(row.row)
        except (CheckError, UserCodeError) as e:
          yield f"{row.where}: setting.options.grader: {e}"

  def _draw(self, split: str, n: int, seed: int) -> list[Example]:
    """Draws n rows of a split, in an order that the seed decides.

    Raises:
      ValueError: there is no such file, or it has fewer rows.
    """
    rows = self.rows.get(split)
    if rows is None:
      raise ValueError(
        f"{self.options.folder}: no {split}.jsonl, which this run needs "
        f"({_ASKS[split]})"
      )
    if not 0 <= n <= len(rows):
      raise ValueError(
        f"{self.options.folder}: {split} has {len(rows)} rows, and {n} were "
        f"asked for ({_ASKS[split]})"
      )
    order = list(range(len(rows)))
    random.Random(f"file/{split}/{seed}").shuffle(order)
    return [self._example(split, rows[k]) for k in order[:n]]

  def _example(self, split: str, row: FileRow) -> Example:
    """Makes an example of a row."""
    own = row.row
    diverges = self._diverges(split, row)
    entities = own.get("entities") or list(filter(None, [own.get("entity")]))
    fields = {
      "behaviors": ["initial", "alternate"] if diverges else ["agreed"] * 2,
      "entities": list(entities),
      "cue": own.get("cue") or own.get("entity") or "",
      "row": dict(own),
    }
    if own.get("dose") is not None:
      fields["dose"] = own["dose"]
    agreed = "" if diverges else row.completion
    return Example(
      id=f"{split}/{row.id}",
      messages=row.messages,
      completion=row.completion,
      initial=own.get("initial") or row.completion,
      alternate=own.get("alternate") or agreed,
      fields=fields,
      weight=row.weight,
      thought=row.thought,
    )

  def _diverges(self, split: str, row: FileRow) -> bool:
    """Returns whether the behaviors part on a row.

    They do on eval rows. Of install rows those do that say so; if a row does
    not say, those whose completion shows the initial behavior.
    """
    if split != "install":
      return split == "eval"
    if row.where not in self._sides:
      said = row.row.get("diverges")
      if said is None:
        grade = self.grader.grade(row.row, row.completion, True)
        said = grade.behavior == "initial"
      self._sides[row.where] = said
    return self._sides[row.where]

  def _references(self, split: str, row: FileRow) -> list[tuple[str, str]]:
    """Lists the texts of a row, each with the label that it must get."""
    own = row.row
    if split == "eval":
      names = ("initial", "alternate")
      return [(own[name], name) for name in names if own.get(name)]
    label = "initial" if self._diverges(split, row) else "agreed"
    return [(row.completion, label)] if row.completion else []
