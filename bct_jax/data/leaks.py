"""Does training data give away what is asked later?

`check_leaks` looks at a setting as a whole, `overlap` and `labels` at what one
run trains on.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bct_jax.examples import Example, Setting

# Words of the runs that `overlap` compares.
GRAM = 8
# Two splits of which neither may share anything with the other.
_APART = tuple(itertools.combinations(("train", "eval", "heldout"), 2))


@dataclasses.dataclass(frozen=True)
class LeakReport:
  """What `check_leaks` found.

  Attributes:
    prompts: split -> number of distinct prompts among those drawn.
    shared_prompts: (split, split, prompt) found in both.
    shared_entities: (split, split, entity) found in both, ignoring case.
    installed: entities of the install split that are of eval or heldout.
  """

  prompts: dict[str, int]
  shared_prompts: tuple[tuple[str, str, str], ...]
  shared_entities: tuple[tuple[str, str, str], ...]
  installed: tuple[str, ...]

  @property
  def clean(self) -> bool:
    return not (self.shared_prompts or self.shared_entities or self.installed)


def check_leaks(setting: Setting, n: int = 1000, seed: int = 0) -> LeakReport:
  """Draws n prompts of each split and compares them.

  Raises:
    ValueError: a split has fewer than n prompts.
  """
  drawn = {
    split: getattr(setting, split)(n, seed)
    for split in ("install", "train", "eval", "heldout")
  }
  prompts = {split: set(map(user_text, rows)) for split, rows in drawn.items()}
  entities = {
    split: {e.casefold() for x in rows for e in x.fields["entities"]}
    for split, rows in drawn.items()
  }
  later = entities["eval"] | entities["heldout"]
  return LeakReport(
    {split: len(found) for split, found in prompts.items()},
    _shared(prompts),
    _shared(entities),
    tuple(sorted(entities["install"] & later)),
  )


def measure_overlap(
  trained: Iterable[Example], asked: Sequence[Example]
) -> dict[str, Any]:
  """What some prompts share with those that are trained on.

  Returns:
    `prompts`, how many were asked; `same`, how many of them are trained on to
    the letter; `share`, the mean over them of how many of their runs of GRAM
    words (of a shorter prompt all words are one) some train prompt has; `most`,
    the largest such share, and `worst`, whose id that is.
  """
  trained = list(trained)
  known = set().union(*map(_grams, trained))
  whole = set(map(user_text, trained))
  shares = [len(g & known) / len(g) for g in map(_grams, asked)]
  most = max(shares)
  return {
    "prompts": len(asked),
    "same": sum(user_text(e) in whole for e in asked),
    "share": sum(shares) / len(shares),
    "most": most,
    "worst": asked[shares.index(most)].id,
  }


def _grams(example: Example) -> set[tuple[str, ...]]:
  """Runs of GRAM words of what the user says."""
  said = [m["content"] for m in example.messages if m["role"] == "user"]
  words = " ".join(said).casefold().split()
  runs = range(max(1, len(words) - GRAM + 1))
  return {tuple(words[i : i + GRAM]) for i in runs}


def count_labels(
  setting: Setting, examples: Sequence[Example], texts: Sequence[str]
) -> dict[str, int]:
  """How many completions show what; of `other` its reason, such as confused,
  which is a behavior that belongs to eval prompts."""
  found = [
    setting.score(e, text) for e, text in zip(examples, texts, strict=True)
  ]
  counts = collections.Counter(x.reason or x.name for x in found)
  return dict(sorted(counts.items()))


def describe_overlap(name: str, found: Mapping[str, Any]) -> str:
  """What one run's training data shares, as a line."""
  parts = []
  for split, of in (("eval", "eval"), ("heldout", "held-out")):
    x = found[split]
    parts.append(
      f"{x['same']} of {x['prompts']} {of} prompts are trained on, "
      f"{x['share']:.1%} of their {GRAM}-word runs (most of {x['worst']}, "
      f"{x['most']:.0%})"
    )
  shown = "not known beforehand"
  if found["labels"] is not None:
    shown = ", ".join(f"{n} {k}" for k, n in found["labels"].items())
  return f"{name}: {'; '.join(parts)}; completions: {shown}"


def user_text(example: Example) -> str:
  """All turns of a prompt as one string."""
  return "\n".join(f"{m['role']}: {m['content']}" for m in example.messages)


def _shared(found: dict[str, set[str]]) -> tuple[tuple[str, str, str], ...]:
  return tuple(
    (a, b, text) for a, b in _APART for text in sorted(found[a] & found[b])
  )
