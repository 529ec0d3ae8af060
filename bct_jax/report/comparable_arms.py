"""Groups the arms of all runs that differ in learning rate and seed alone."""

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
  "eval.refine",
  "eval.refine_budget",
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
  """Holds an arm, its run, and its number among the arms of all runs."""

  run: RunRecord
  arm: ArmRecord
  number: int

  @property
  def lr(self) -> float | None:
    """Returns the peak learning rate, None where it is not known."""
    return self.arm.settings.get("lr")


@dataclasses.dataclass(frozen=True)
class Group:
  """Holds arms that differ in learning rate and seed alone.

  Attributes:
    name: says in what they differ from the arms of other groups.
  """

  name: str
  members: tuple[Member, ...]

  @property
  def by_lr(self) -> dict[float, list[Member]]:
    """Maps learning rates, ascending, to their arms, one for each seed."""
    by_lr: dict[float, list[Member]] = {}
    for member in self.members:
      if member.lr is not None:
        by_lr.setdefault(member.lr, []).append(member)
    return dict(sorted(by_lr.items()))


def make_groups(runs: Sequence[RunRecord]) -> list[Group]:
  """Groups all arms, in the order of the first arm of each group.

  Two arms of one learning rate and seed are never in one group: they would pass
  for two seeds. Their steps set them apart, else the second is in a "repeat 2".
  """
  arms = [(run, arm) for run in runs for arm in run.arms]
  members = [Member(run, arm, i) for i, (run, arm) in enumerate(arms)]
  facts = [_facts(m.run, m.arm) for m in members]
  _fill_in_organisms(facts)
  _pool_seeds(members, facts)
  fields = _fields_that_differ(facts)
  groups = [
    (_name(fields, values), indices)
    for values, indices in _split(facts, range(len(members)), fields).items()
  ]
  groups = [
    part
    for name, indices in groups
    for part in _split_repeats(name, indices, members, facts)
  ]
  return [
    Group(
      name or text.title(members[indices[0]].run),
      tuple(members[i] for i in indices),
    )
    for name, indices in groups
  ]


def _fields_that_differ(facts: Sequence[Mapping[str, str]]) -> list[str]:
  """Picks few fields that tell the arms apart, the most telling ones first.

  An objective comes with options and a batch size of its own, and the hash of
  an organism follows from the fields that made it.
  """
  whole = range(len(facts))
  keys = dict.fromkeys([*_FIRST, *(k for f in facts for k in f)])
  varied = [k for k in keys if len({f.get(k) for f in facts}) > 1]
  varied = [k for k in varied if k not in (_STEPS, _HASH)] + [_HASH]
  fields: list[str] = []
  for key in varied:
    count = len(_split(facts, whole, fields))
    if len(_split(facts, whole, [*fields, key])) > count:
      fields.append(key)
  return fields


def _split(
  facts: Sequence[Mapping[str, str]], among: Sequence[int], by: Sequence[str]
) -> dict[tuple[str | None, ...], list[int]]:
  """Splits arms by their values of some fields.

  Args:
    facts: of all arms.
    among: indices of the arms to split.
    by: the fields.

  Returns:
    Values of the fields -> indices of the arms that have them.
  """
  parts: dict[tuple[str | None, ...], list[int]] = {}
  for i in among:
    parts.setdefault(tuple(facts[i].get(k) for k in by), []).append(i)
  return parts


def _split_repeats(
  name: str,
  among: Sequence[int],
  members: Sequence[Member],
  facts: Sequence[Mapping[str, str]],
) -> list[tuple[str, list[int]]]:
  """Splits a group until no two arms have the same learning rate and seed.

  Args:
    name: of the group.
    among: indices of its arms.
    members, facts: of all arms.

  Returns:
    Name and indices of each part: the group itself where nothing repeats.
  """

  def pair(i: int) -> tuple[Any, Any]:
    return members[i].lr, members[i].arm.settings.get("seed")

  if len(set(map(pair, among))) == len(among):
    return [(name, list(among))]
  parts = []
  by_steps = _split(facts, among, [_STEPS])
  for values, indices in by_steps.items():
    steps = _name([_STEPS], values) if len(by_steps) > 1 else ""
    copies: list[list[int]] = []
    for i in indices:
      free = next((c for c in copies if pair(i) not in map(pair, c)), None)
      if free is None:
        copies.append(free := [])
      free.append(i)
    for n, copy in enumerate(copies, 1):
      repeat = f"repeat {n}" if n > 1 else ""
      parts.append((", ".join(filter(None, (name, steps, repeat))), copy))
  return parts


def _facts(run: RunRecord, arm: ArmRecord) -> dict[str, str]:
  """Describes an arm field by field, as far as it is known."""
  tree: dict[str, Any] = dict(run.config)
  arms = tree.pop("arms", None)
  control = arm.settings.get(CONTROL)
  # Of a control the fields of the arm that it belongs to.
  name = arm.name.removesuffix(f".{control}")
  fields = arms.get(name) if isinstance(arms, Mapping) else None
  flat = dict(text.flatten(tree)) | dict(text.flatten(fields or {}))
  for name, field in _SETTINGS.items():
    if name in arm.settings:
      flat[field] = text.setting_value(name, arm.settings[name])
  if control:
    flat[CONTROL] = str(control)
  if flat.get("lora.rank") == "0":
    flat["lora.rank"] = text.setting_value("rank", None)
  flat |= {"setting.name": run.setting, "model.path": run.model}
  telling = {
    key: value
    for key, value in flat.items()
    if key not in _ALIKE and key.split(".")[0] not in _ALIKE
  }
  return {
    **telling,
    _HASH: run.organism.hash,
    _STEPS: flat.get(_STEPS, ""),
  }


def _fill_in_organisms(facts: Sequence[dict[str, str]]) -> None:
  """Fills in the organism of arms whose run does not say it yet.

  Such an arm gets the organism of the other arms with the same fields, if these
  arms have one only.
  """

  def rest(fact: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    other = (_HASH, _STEPS)
    return frozenset((k, v) for k, v in fact.items() if k not in other)

  hashes: dict[frozenset[tuple[str, str]], set[str]] = {}
  for fact in facts:
    if fact[_HASH]:
      hashes.setdefault(rest(fact), set()).add(fact[_HASH])
  for fact in facts:
    candidates = hashes.get(rest(fact), set())
    if not fact[_HASH] and len(candidates) == 1:
      fact[_HASH] = next(iter(candidates))


def _pool_seeds(
  members: Sequence[Member], facts: Sequence[dict[str, str]]
) -> None:
  """Counts organisms as seeds where each arm has an organism of its own.

  Arms of one organism share its chance. So where an organism has arms of
  several seeds, or several organisms have arms of one seed, the organisms stay
  apart. Else the fields that name an organism are emptied.
  """
  names = (_ORGANISM_SEED, _HASH)
  alike: dict[frozenset[tuple[str, str]], list[int]] = {}
  for i, fact in enumerate(facts):
    rest = frozenset((k, v) for k, v in fact.items() if k not in names)
    alike.setdefault(rest, []).append(i)
  for indices in alike.values():
    triples = set()
    for i in indices:
      seed = facts[i].get(_ORGANISM_SEED)
      organism = facts[i][_HASH] or seed
      triples.add((seed, organism, members[i].arm.settings.get("seed")))
    sides = zip(*triples, strict=True)
    if len(triples) > 1 and all(len(set(x)) == len(triples) for x in sides):
      for i in indices:
        facts[i].update(dict.fromkeys(names, ""))


def _name(keys: Sequence[str], values: Sequence[str | None]) -> str:
  """Names a group by its values of the fields that differ between groups."""
  # Whose seed or learning rate it is, the whole name says.
  labels = [
    k if k.endswith(("seed", ".lr")) else k.split(".")[-1] for k in keys
  ]
  phrases = []
  for key, short, value in zip(keys, labels, values, strict=True):
    if value in (None, "{}"):
      continue
    if key == "model.path":
      value = text.base(value)
    if key in _PLAIN or key == "model.path":
      phrases.append(value)
    else:
      label = short if labels.count(short) == 1 else key
      phrases.append(f"{label} {value or 'not known'}")
  return ", ".join(phrases)
