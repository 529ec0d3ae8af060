"""Checks whether training data gives away what evals ask later.

`check_leaks` looks at a setting as a whole. `measure_overlap` and
`count_labels` look at what one run trains on.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bct_jax.examples import Example, Setting
from bct_jax.infra.formats import percent

# Words of the word runs that `measure_overlap` compares.
GRAM = 8
# Pairs of splits that may share nothing.
_DISJOINT = tuple(itertools.combinations(("train", "eval", "heldout"), 2))


@dataclasses.dataclass(frozen=True)
class LeakReport:
  """Holds what `check_leaks` found.

  Attributes:
    prompts: split -> number of distinct prompts among those drawn.
    shared_prompts: (split, split, prompt), for each prompt in two splits.
    shared_entities: (split, split, entity), the same, ignoring case.
    installed_entities: entities of the install split that eval or heldout
      prompts name too.
  """

  prompts: dict[str, int]
  shared_prompts: tuple[tuple[str, str, str], ...]
  shared_entities: tuple[tuple[str, str, str], ...]
  installed_entities: tuple[str, ...]

  @property
  def clean(self) -> bool:
    """Returns whether nothing is shared that must not be."""
    return not (
      self.shared_prompts or self.shared_entities or self.installed_entities
    )


def check_leaks(setting: Setting, n: int = 1000, seed: int = 0) -> LeakReport:
  """Draws n prompts of each split and compares them.

  Args:
    setting: whose splits they are.
    n: prompts of each split.
    seed: of the draw.

  Raises:
    ValueError: a split has fewer than n prompts.
  """
  splits = ("install", "train", "eval", "heldout")
  return compare_splits({s: getattr(setting, s)(n, seed) for s in splits})


def compare_splits(examples: Mapping[str, Sequence[Example]]) -> LeakReport:
  """Compares the examples of splits; a split that is absent shares nothing."""
  prompts = {
    split: set(map(user_text, rows)) for split, rows in examples.items()
  }
  entities = {
    split: {e.casefold() for x in rows for e in x.fields["entities"]}
    for split, rows in examples.items()
  }
  later = entities.get("eval", set()) | entities.get("heldout", set())
  return LeakReport(
    {split: len(texts) for split, texts in prompts.items()},
    _shared(prompts),
    _shared(entities),
    tuple(sorted(entities.get("install", set()) & later)),
  )


def measure_overlap(
  train: Iterable[Example], evals: Sequence[Example]
) -> dict[str, Any]:
  """Measures what eval prompts share with train prompts.

  The share of an eval prompt is the fraction of its distinct word runs, of GRAM
  words each, that some train prompt has. A shorter prompt is one word run.

  Returns:
    `prompts`, the number of eval prompts; `same`, how many of them are train
    prompts to the letter; `share`, the mean of their shares; `most`, the
    largest share, and `worst`, the id of the prompt that has it.
  """
  train = list(train)
  train_grams = set().union(*map(_grams, train))
  train_texts = set(map(user_text, train))
  shares = [len(g & train_grams) / len(g) for g in map(_grams, evals)]
  most = max(shares)
  return {
    "prompts": len(evals),
    "same": sum(user_text(e) in train_texts for e in evals),
    "share": sum(shares) / len(shares),
    "most": most,
    "worst": evals[shares.index(most)].id,
  }


def _grams(example: Example) -> set[tuple[str, ...]]:
  """Returns the runs of GRAM words in what the user says, ignoring case.

  Of a document they are those of its text.
  """
  turns = [m["content"] for m in example.messages if m["role"] == "user"]
  words = " ".join(turns or [example.completion]).casefold().split()
  starts = range(max(1, len(words) - GRAM + 1))
  return {tuple(words[i : i + GRAM]) for i in starts}


def count_labels(
  setting: Setting, examples: Sequence[Example], texts: Sequence[str]
) -> dict[str, int]:
  """Counts the labels of completions, by name.

  A label `other` counts under its reason. The reason "confused", say, is a
  behavior that belongs to eval prompts.
  """
  labels = [
    setting.score(e, text) for e, text in zip(examples, texts, strict=True)
  ]
  counts = collections.Counter(x.reason or x.name for x in labels)
  return dict(sorted(counts.items()))


def describe_overlap(name: str, overlap: Mapping[str, Any]) -> str:
  """Describes in a line what the training data of one run shares with evals.

  Args:
    name: of the run.
    overlap: `measure_overlap` of "eval" and "heldout", and `count_labels` as
      "labels", None where the completions are sampled during training.
  """
  parts = []
  for split, title in (("eval", "eval"), ("heldout", "held-out")):
    x = overlap[split]
    parts.append(
      f"{x['same']} of {x['prompts']} {title} prompts are trained on, "
      f"{percent(x['share'])} of their {GRAM}-word runs (most of {x['worst']}, "
      f"{percent(x['most'])})"
    )
  labels = "not known beforehand"
  if overlap["labels"] is not None:
    labels = ", ".join(f"{n} {k}" for k, n in overlap["labels"].items())
  return f"{name}: {'; '.join(parts)}; completions: {labels}"


def user_text(example: Example) -> str:
  """Joins all turns of a prompt to one string."""
  return "\n".join(f"{m['role']}: {m['content']}" for m in example.messages)


def _shared(texts: dict[str, set[str]]) -> tuple[tuple[str, str, str], ...]:
  """Lists the texts that two splits of _DISJOINT have in common."""
  return tuple(
    (a, b, text)
    for a, b in _DISJOINT
    for text in sorted(texts.get(a, set()) & texts.get(b, set()))
  )
