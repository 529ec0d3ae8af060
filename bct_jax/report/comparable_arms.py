"""Which arms of all runs differ in learning rate and seed alone."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from bct_jax.report import text
from bct_jax.report.read.load import CONTROL
from bct_jax.report.read.types import ArmRecord, RunRecord

# What does not make arms another experiment: what is compared, how long and
# when one looked, and how the work is divided.
_ALIKE = (
  "name",
  "compilation_cache",
  "log",
  "mesh",
  "gate",
  "eval.steps",
  "train.steps",
  "train.seed",
  "train.accum",
  "train.checkpoint_every",
  "optim.lr",
)
# Fields of a result, and where the configuration has them.
_SETTINGS = {
  "objective": "train.objective",
  "source": "train.source",
  "decoration": "train.decoration",
  "rank": "lora.rank",
}
# What sets arms apart only where nothing else does.
_STEPS = "train.steps"
_HASH = "organism"
_ORGANISM_SEED = "organism.train.seed"
_PLAIN = ("setting.name", "organism.kind", "train.objective")
# Fields that a reader looks for first.
_FIRST = ("model.path", *_PLAIN, CONTROL, "lora.rank", "train.decoration",
          "train.source")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Member:
  """An arm, its run, and its number among the arms of all runs."""

  run: RunRecord
  arm: ArmRecord
  number: int

  @property
  def lr(self) -> float | None:
    """Peak learning rate, None where not known."""
    return self.arm.settings.get("lr")


@dataclasses.dataclass(frozen=True)
class Group:
  """Arms that differ in learning rate and seed alone; `name` says in what
  they differ from other groups."""

  name: str
  members: tuple[Member, ...]

  @property
  def by_lr(self) -> dict[float, list[Member]]:
    """Learning rate -> its arms, one for each seed; ascending."""
    found: dict[float, list[Member]] = {}
    for member in self.members:
      if member.lr is not None:
        found.setdefault(member.lr, []).append(member)
    return dict(sorted(found.items()))


def make_groups(runs: Sequence[RunRecord]) -> list[Group]:
  """All arms, in the order of the first arm of each group.

  Arms of one learning rate and seed are never in one group: they would pass for
  two seeds. Their steps set them apart, else the second is in a "repeat 2".
  """
  arms = [(run, arm) for run in runs for arm in run.arms]
  members = [Member(run, arm, i) for i, (run, arm) in enumerate(arms)]
  facts = [_facts(m.run, m.arm) for m in members]
  _tell_organisms(facts)
  _pool_seeds(members, facts)
  told = _telling(facts)
  groups = [
    (_name(told, values), found)
    for values, found in _split(facts, range(len(members)), told).items()
  ]
  groups = [
    part
    for name, found in groups
    for part in _untwinned(name, found, members, facts)
  ]
  return [
    Group(
      name or text.title(members[found[0]].run),
      tuple(members[i] for i in found),
    )
    for name, found in groups
  ]


def _telling(facts: Sequence[Mapping[str, str]]) -> list[str]:
  """As few fields as tell the arms apart, those that say most before others.

  An objective comes with options and a batch size of its own, and the hash of
  an organism follows from the fields that made it.
  """
  whole = range(len(facts))
  keys = dict.fromkeys([*_FIRST, *(k for f in facts for k in f)])
  varied = [k for k in keys if len({f.get(k) for f in facts}) > 1]
  varied = [k for k in varied if k not in (_STEPS, _HASH)] + [_HASH]
  told: list[str] = []
  for key in varied:
    if len(_split(facts, whole, [*told, key])) > len(
      _split(facts, whole, told)
    ):
      told.append(key)
  return told


def _split(
  facts: Sequence[Mapping[str, str]], among: Sequence[int], by: Sequence[str]
) -> dict[tuple[str | None, ...], list[int]]:
  """The arms `among` all, by their values of some fields."""
  found: dict[tuple[str | None, ...], list[int]] = {}
  for i in among:
    found.setdefault(tuple(facts[i].get(k) for k in by), []).append(i)
  return found


def _untwinned(
  name: str,
  among: Sequence[int],
  members: Sequence[Member],
  facts: Sequence[Mapping[str, str]],
) -> list[tuple[str, list[int]]]:
  """The group itself, or parts in which no two have learning rate and seed in
  common."""

  def pair(i: int) -> tuple[Any, Any]:
    return members[i].lr, members[i].arm.settings.get("seed")

  if len(set(map(pair, among))) == len(among):
    return [(name, list(among))]
  parts = []
  by_steps = _split(facts, among, [_STEPS])
  for values, found in by_steps.items():
    said = _name([_STEPS], values) if len(by_steps) > 1 else ""
    copies: list[list[int]] = []
    for i in found:
      free = next((c for c in copies if pair(i) not in map(pair, c)), None)
      if free is None:
        copies.append(free := [])
      free.append(i)
    for n, copy in enumerate(copies, 1):
      repeat = f"repeat {n}" if n > 1 else ""
      parts.append((", ".join(filter(None, (name, said, repeat))), copy))
  return parts


def _facts(run: RunRecord, arm: ArmRecord) -> dict[str, str]:
  """What an arm is, field by field, as far as it is known."""
  tree: dict[str, Any] = dict(run.config)
  arms = tree.pop("arms", None)
  control = arm.settings.get(CONTROL)
  name = arm.name.removesuffix(f".{control}")  # the arm that it is one of
  own = arms.get(name) if isinstance(arms, Mapping) else None
  flat = dict(text.flatten(tree)) | dict(text.flatten(own or {}))
  for name, field in _SETTINGS.items():
    if name in arm.settings:
      flat[field] = text.setting_value(name, arm.settings[name])
  if control:
    flat[CONTROL] = str(control)
  if flat.get("lora.rank") == "0":
    flat["lora.rank"] = text.setting_value("rank", None)
  flat |= {"setting.name": run.setting, "model.path": run.model}
  known = {
    key: value
    for key, value in flat.items()
    if key not in _ALIKE and key.split(".")[0] not in _ALIKE
  }
  return {
    **known,
    _HASH: run.organism.hash,
    _STEPS: flat.get(_STEPS, ""),
  }


def _tell_organisms(facts: Sequence[dict[str, str]]) -> None:
  """Gives arms of runs whose organism is not told yet that of the others like
  them, if these have one only."""

  def rest(fact: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    other = (_HASH, _STEPS)
    return frozenset((k, v) for k, v in fact.items() if k not in other)

  known: dict[frozenset[tuple[str, str]], set[str]] = {}
  for fact in facts:
    if fact[_HASH]:
      known.setdefault(rest(fact), set()).add(fact[_HASH])
  for fact in facts:
    like = known.get(rest(fact), set())
    if not fact[_HASH] and len(like) == 1:
      fact[_HASH] = next(iter(like))


def _pool_seeds(
  members: Sequence[Member], facts: Sequence[dict[str, str]]
) -> None:
  """Makes the seeds of organism and arm one, where both are new each time.

  Arms of one organism share its chance, so those of an organism with several
  seeds of the arm, or of several at one seed, stay apart from other organisms.
  """
  one = (_ORGANISM_SEED, _HASH)
  alike: dict[frozenset[tuple[str, str]], list[int]] = {}
  for i, fact in enumerate(facts):
    rest = frozenset((k, v) for k, v in fact.items() if k not in one)
    alike.setdefault(rest, []).append(i)
  for found in alike.values():
    pairs = set()
    for i in found:
      seed = facts[i].get(_ORGANISM_SEED)
      made = facts[i][_HASH] or seed
      pairs.add((seed, made, members[i].arm.settings.get("seed")))
    sides = zip(*pairs, strict=True)
    if len(pairs) > 1 and all(len(set(x)) == len(pairs) for x in sides):
      for i in found:
        facts[i].update(dict.fromkeys(one, ""))


def _name(keys: Sequence[str], values: Sequence[str | None]) -> str:
  lasts = [key.split(".")[-1] for key in keys]
  told = []
  for key, last, value in zip(keys, lasts, values, strict=True):
    if value in (None, "{}"):
      continue
    if key == "model.path":
      value = text.base(value)
    if key in _PLAIN or key == "model.path":
      told.append(value)
    else:
      label = last if lasts.count(last) == 1 else key
      told.append(f"{label} {value or 'not known'}")
  return ", ".join(told)
