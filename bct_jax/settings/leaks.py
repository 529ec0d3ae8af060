"""Does a setting's training data give away what it is evaluated on?"""

import dataclasses
import itertools

from bct_jax.examples import Example, Setting

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
  prompts = {split: set(map(prompt_of, rows)) for split, rows in drawn.items()}
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


def prompt_of(example: Example) -> str:
  """All turns of a prompt as one string."""
  return "\n".join(f"{m['role']}: {m['content']}" for m in example.messages)


def _shared(found: dict[str, set[str]]) -> tuple[tuple[str, str, str], ...]:
  return tuple(
    (a, b, text) for a, b in _APART for text in sorted(found[a] & found[b])
  )
