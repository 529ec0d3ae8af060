"""Says first what several runs tested, on which models, and what came out."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from bct_jax.evals.crossings import Crossing
from bct_jax.infra.formats import number
from bct_jax.report import text
from bct_jax.report.draw.panels import plural
from bct_jax.report.read.load import CONTROL
from bct_jax.report.read.types import ArmRecord, RunRecord

_LISTED = 4  # settings or models that are named; of more there is the number


@dataclasses.dataclass(frozen=True)
class Headline:
  """Holds what the report of several runs begins with.

  Attributes:
    title: name and number of the runs.
    behaviors: by heading, where all runs have one setting that says them.
    lines: settings and models, readings, what they rest on, when.
  """

  title: str
  behaviors: Mapping[str, str]
  lines: tuple[str, ...]


def make_headline(runs: Sequence[RunRecord]) -> Headline:
  """Describes runs together."""
  names = {str(run.config.get("name") or "") for run in runs}
  name = names.pop() if len(names) == 1 else ""
  count = plural(len(runs), "run")
  said = [text.behaviors(run) for run in runs]
  alike = len({run.setting for run in runs}) == 1 and all(
    one == said[0] for one in said
  )
  arms = [arm for run in runs for arm in run.arms]
  own = [arm for arm in arms if not arm.settings.get(CONTROL)]
  controls = [arm for arm in arms if arm.settings.get(CONTROL)]
  lines = [
    f"Tested: {_list(run.setting for run in runs)}, on "
    f"{_list(text.base(run.model) for run in runs)}.",
    *(_outcome(own, "arm"), _outcome(controls, "control")),
    *_by_learning_rate(own),
    _basis(runs, arms),
    _dates(runs),
  ]
  return Headline(
    f"{name}: {count}" if name else count,
    said[0] if alike else {},
    tuple(filter(None, lines)),
  )


def _list(values: Iterable[str]) -> str:
  """Lists different values, or counts them where they are many."""
  names = [*dict.fromkeys(v or "not known" for v in values)]
  if len(names) > _LISTED:
    return f"{', '.join(names[:_LISTED])} and {len(names) - _LISTED} more"
  return ", ".join(names)


def _outcome(arms: Sequence[ArmRecord], what: str) -> str:
  """Counts the readings of arms, and how many of them are intact."""
  if not arms:
    return ""
  words = Counter(arm.behavior or "unfinished" for arm in arms)
  behaviors = ", ".join(f"{n} {word}" for word, n in words.most_common())
  out = f"{plural(len(arms), what)}: {behaviors}"
  read = [arm.reading for arm in arms if arm.reading is not None]
  if not read:
    return f"{out}."
  whole = Counter({"intact": 0})
  whole.update(reading.integrity for reading in read)
  integrity = ", ".join(f"{n} {word}" for word, n in whole.items())
  return f"{out}. As models: {integrity}."


def _by_learning_rate(arms: Sequence[ArmRecord]) -> list[str]:
  """Says of each learning rate, if few, what came when, and the margins."""
  groups: dict[float, list[ArmRecord]] = {}
  for arm in arms:
    lr = arm.settings.get("lr")
    if isinstance(lr, float) and arm.reading is not None:
      groups.setdefault(lr, []).append(arm)
  if not 2 <= len(groups) <= _LISTED:
    return []
  return [
    f"lr {number(lr)}: "
    f"{_when([a.style_step for a in groups[lr]], 'reached the target')}, "
    f"{_when([a.loss_step for a in groups[lr]], 'lost the initial behavior')}"
    f"{_margins(groups[lr])}."
    for lr in sorted(groups)
  ]


def _when(crossings: Sequence[Crossing | None], what: str) -> str:
  """Counts what came, with its steps: "6 of 10 lost it (at 71 to 280)"."""
  steps = sorted(c.by for c in crossings if c is not None and c.by is not None)
  ends = " to ".join(dict.fromkeys(map(str, steps[:1] + steps[-1:])))
  at = f" (at {ends})" if steps else ""
  return f"{len(steps)} of {len(crossings)} {what}{at}"


def _margins(arms: Sequence[ArmRecord]) -> str:
  """Writes over which values the margins of arms go; "" if none is known."""
  bounds = [arm.reading.margin_bounds for arm in arms if arm.reading]
  known = [b for b in bounds if b is not None]
  if not known:
    return ""
  low = min(b[0] for b in known)
  highs = [b[1] for b in known if b[1] is not None]
  if len(highs) < len(known):  # some had not lost it by their last eval
    high = max(b[0] for b in known)
    end = "above " if high == low else f"{low:.2g} to above "
    return f"; margin {end}{high:.2g}"
  ends = dict.fromkeys(f"{x:.2g}" for x in (low, max(highs)))
  return f"; margin {' to '.join(ends)}"


def _basis(runs: Sequence[RunRecord], arms: Sequence[ArmRecord]) -> str:
  """Says on how many organisms and prompts the readings rest."""
  organisms = {run.organism.hash for run in runs if run.organism.hash}
  counts = [arm.curve[-1].initial.n for arm in arms if arm.curve]
  prompts = sorted({n for n in counts if n})
  if not organisms or not prompts:
    return ""
  ends = dict.fromkeys(map(str, (prompts[0], prompts[-1])))
  gates = [run.organism.gate for run in runs]
  failed = sum(gate is not None and not gate.passed for gate in gates)
  out = (
    f"{plural(len(organisms), 'organism')}; each rate is of "
    f"{' to '.join(ends)} eval prompts, with a 95% interval."
  )
  if failed:
    out += f" In {plural(failed, 'run')} the organism failed the gate."
  return out


def _dates(runs: Sequence[RunRecord]) -> str:
  """Says when runs were begun, and by which versions."""
  days = sorted(
    {str(run.env["date"])[:10] for run in runs if run.env.get("date")}
  )
  if not days:
    return ""
  versions = dict.fromkeys(
    str(found["bct_jax"])
    for run in runs
    if isinstance(found := run.env.get("versions"), Mapping)
    and found.get("bct_jax")
  )
  by = f" with bct_jax {', '.join(versions)}" if versions else ""
  return f"Begun {' to '.join(dict.fromkeys((days[0], days[-1])))}{by}."
