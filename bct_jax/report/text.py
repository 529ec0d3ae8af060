"""Writes numbers and strings as the report prints them.

Model outputs are hostile until shown otherwise: `visible` and `show` turn every
character that a reader could not see, or that could act, into its escape.
"""

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from bct_jax.evals import crossings
from bct_jax.evals.schema import EvalRecord, Rate
from bct_jax.infra.formats import interval, number, percent
from bct_jax.infra.visible import escape, visible
from bct_jax.report.read.types import (
  ArmRecord,
  Crossing,
  OrganismRecord,
  RunRecord,
)
from bct_jax.settings import SETTINGS
from bct_jax.settings.docstrings import docstring_fields


def show(text: str) -> Markup:
  """Writes text as HTML, with escapes in place of hidden characters.

  The escapes are in italics, so that they differ from a backslash in the text.
  """
  parts = []
  for char in text:
    shown = escape(char)
    safe = html.escape(shown)
    parts.append(safe if shown == char else f"<i>{safe}</i>")
  return Markup("".join(parts))


def fraction(rate: Rate) -> str:
  """Writes a share as 31/32, if it is one of whole completions.

  Else it writes how many prompts there are; "" where that is not known.
  """
  if not rate.n:
    return ""
  hits = rate.value * rate.n
  # A share over several samples per prompt may not be a whole count of n.
  whole = abs(hits - round(hits)) < 0.05
  return f"{round(hits)}/{rate.n}" if whole else f"n = {rate.n}"


def rate(value: Rate | None) -> str:
  """Writes a rate for a sentence, such as 31/32 [84%, 99%]."""
  if value is None:
    return "not measured"
  first = fraction(value)
  if "/" not in first:
    first = percent(value.value)
  return f"{first} {interval(value.ci)}".strip()


def points(change: float) -> str:
  """Writes a change of a share in percentage points: +3, -12, 0."""
  rounded = round(100 * change)
  return f"{rounded:+d}" if rounded else "0"


def crossing(value: Crossing | None) -> str:
  """Writes the step of an event, or that the event never came."""
  if value is None or (value.step is None and value.censored_at is None):
    return "–"
  if value.step is not None:
    return f"step {value.step}"
  return f"> {value.censored_at} (censored)"


def bracket(value: crossings.Crossing | None) -> str:
  """Writes between which steps something began to last: "6", "17 to 32"."""
  if value is None:
    return "–"
  if value.by is None:
    return f"> {value.censored_at}"
  return str(value.by) if value.exact else f"{value.first} to {value.by}"


def share(value: float | None) -> str:
  """Writes a share of completions, or a count of them, as it was logged."""
  if value is None:
    return "–"
  return str(value) if isinstance(value, int) else percent(value)


def setting_value(key: str, value: Any) -> str:
  """Writes a setting of an arm."""
  if key == "rank":
    return "full" if value is None else str(value)
  if isinstance(value, float):
    return number(value)
  return str(value) if value not in ("", None) else "none"


def flatten(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
  """Lists the leaves of nested JSON as pairs such as ("optim.lr", "1e-5")."""
  if isinstance(tree, Mapping) and tree:
    return [
      pair
      for key, value in tree.items()
      for pair in flatten(value, f"{prefix}.{key}" if prefix else str(key))
    ]
  if isinstance(tree, str):
    return [(prefix, tree)]
  if isinstance(tree, float):
    return [(prefix, number(tree))]
  return [(prefix, json.dumps(tree, ensure_ascii=False))]


def base(path: str) -> str:
  """Returns the last part of a path or of a hub id."""
  return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path


def title(run: RunRecord) -> str:
  """Names setting and model of a run, as far as they are known."""
  setting = run.setting or "unnamed setting"
  return f"{setting} on {base(run.model)}" if run.model else setting


def describe_arm(arm: ArmRecord) -> str:
  """Describes how an arm ended, by what, and how sure that is."""
  if not arm.curve:
    return "no eval yet."
  last: EvalRecord = arm.curve[-1]
  rates: dict[str, Rate | None] = {
    "initial": last.initial,
    "alternate": last.alternate,
  }
  # The rate that the reading rests on stands first.
  if arm.behavior in ("replaced", "transferred"):
    rates = dict(reversed(rates.items()))
  if last.alternate.value > 0:
    rates["alternate_right"] = last.alternate_right
  if last.other.value > 0:
    rates["other"] = last.other
  # How far training got: with its style, if it has one.
  style = last.agreed_decorated is not None
  rates |= {"agreed_decorated": last.agreed_decorated} if style else {
    "agreed": last.agreed
  }  # fmt: skip
  measured = [f"{k} {rate(v)}" for k, v in rates.items() if v is not None]
  out = [arm.reading.sentence() if arm.reading else arm.words]
  lr = arm.settings.get("lr")
  at = f" at lr {number(lr)}" if isinstance(lr, float) else ""
  out.append(f"After {last.step} updates{at}: {', '.join(measured)}")
  if arm.reading and arm.reading.measures:
    changes = ", ".join(
      f"{m.name} {points(m.change.value)} "
      f"[{points(m.change.low)}, {points(m.change.high)}]"
      for m in arm.reading.measures
    )
    out.append(f"Against the organism, in points: {changes}")
  return ". ".join(out) + "."


def describe_controls(run: RunRecord, arm: ArmRecord) -> str:
  """Lists the controls of an arm by how they were read.

  "missed: zero_lr; as expected: targeted", "" where it has none that is read.
  Of a control it says the same of itself alone: "missed".
  """
  if arm.check is not None:
    return arm.check.status
  found: dict[str, list[str]] = {}
  for other in run.arms:
    control = other.settings.get("control")
    if other.check is not None and other.name == f"{arm.name}.{control}":
      found.setdefault(other.check.status, []).append(str(control))
  order = ("missed", "undecided", "as expected")
  return "; ".join(f"{s}: {', '.join(found[s])}" for s in order if s in found)


def behaviors(run: RunRecord) -> Mapping[str, str]:
  """Returns what the setting of a run says of itself, by heading.

  The setting `file` has it in its options, others have it in their docstring.
  Empty: it does not say, or no setting of this name is known here.
  """
  setting = run.config.get("setting")
  options = setting.get("options") if isinstance(setting, Mapping) else None
  if run.setting == "file" and isinstance(options, Mapping):
    said = {n: str(options.get(n) or "") for n in ("initial", "alternate")}
    found = {"Initial": said["initial"], "Alternate": said["alternate"]}
    return found if all(found.values()) else {}
  known = SETTINGS.get(run.setting)
  return {} if known is None else docstring_fields(known)


def describe_primary(run: RunRecord) -> str:
  """Describes the comparison that the config named; "" if it named none.

  If learning rate x updates alone decided, both margins would be equal, so it
  says whether the brackets of both leave that open.
  """
  bars = run.config.get("reading")
  primary = bars.get("primary") if isinstance(bars, Mapping) else None
  names = primary if isinstance(primary, list) else []
  arms = {arm.name: arm for arm in run.arms}
  read = [arms[n].reading for n in names if n in arms]
  known = [r for r in read if r is not None]
  if len(known) != 2:
    return ""
  margins = " and ".join(
    f"{name} {r.margin_text()}"
    for name, r in zip(names or (), known, strict=True)
  )
  out = f"Primary comparison, named before training: the margins are {margins}."
  bounds = [r.margin_bounds for r in known]
  if None in bounds:
    return f"{out} One did not reach its target, so they cannot be compared."
  first, second = (b for b in bounds if b is not None)
  if crossings.compare_bounds(first, second):
    rest = "Learning rate x updates alone would make them equal; they are not,"
    return f"{out} {rest} in these two runs."
  return (
    f"{out} That learning rate x updates alone decides, which would make them "
    "equal, is not ruled out."
  )


# Fields of `made.json` that tell organisms apart, and how they are written.
_INSTALL_FIELDS = {
  "kind": "{}",
  "optimizer": "{}",
  "lr": "lr {}",
  "steps": "{} updates",
  "batch_size": "batch {}",
  "samples": "{} samples",
  "rank": "rank {}",
  "seed": "seed {}",
  "data_hash": "data {:.8}",
  "adapter_hash": "content {:.8}",
}


def describe_install(organisms: Sequence[OrganismRecord]) -> str:
  """Describes how organisms were made, as far as known, and how they differ.

  What is the same for all is written once, followed by the names of the fields
  in which they differ.
  """
  installs = [_install_phrases(organism) for organism in organisms]
  fields = dict.fromkeys(field for phrases in installs for field in phrases)
  values = {f: {phrases.get(f, "") for phrases in installs} for f in fields}
  same = [min(phrases) for phrases in values.values() if len(phrases) == 1]
  differ = [field for field, phrases in values.items() if len(phrases) > 1]
  if differ:
    same.append(f"they differ in {', '.join(differ)}")
  return ", ".join(same)


def caption(organisms: Sequence[OrganismRecord]) -> str:
  """Writes what stands below a figure of organisms; "" if nothing is known."""
  install = visible(describe_install(organisms))
  return install and f"organism: {install}"


def _install_phrases(organism: OrganismRecord) -> dict[str, str]:
  """Maps fields to words on how an organism was facts.

  Of an organism that is only prompted there is its kind alone.
  """
  facts = {"kind": organism.kind} | dict(organism.install)
  phrases = {
    key: form.format(setting_value(key, facts[key]))
    for key, form in _INSTALL_FIELDS.items()
    if facts.get(key, "") != ""
  }
  if "rank" in facts and facts["rank"] is None:
    phrases["rank"] = "all weights"
  if facts.get("merged") is False:
    phrases["merged"] = "adapter not merged"
  return phrases


def describe_origin(run: RunRecord) -> str:
  """Says what a run is called, when it began and by which code, as known."""
  git, versions = run.env.get("git"), run.env.get("versions")
  parts = [f"Run {name}"] if (name := run.config.get("name")) else []
  if isinstance(date := run.env.get("date"), str):
    parts.append(f"{'begun' if parts else 'Begun'} on {date[:10]}")
  if isinstance(versions, Mapping) and versions.get("bct_jax"):
    parts.append(f"bct_jax {versions['bct_jax']}")
  if isinstance(git, Mapping) and isinstance(git.get("revision"), str):
    changed = ", with changes" if git.get("dirty") else ""
    parts.append(f"revision {git['revision'][:12]}{changed}")
  if isinstance(kind := run.env.get("device_kind"), str):
    parts.append(f"{run.env.get('num_devices', 1)} x {kind}")
  return ", ".join(parts)


def command(run: RunRecord) -> str:
  """Returns the command line that began a run; "" where it is not known."""
  said = run.env.get("command")
  return said if isinstance(said, str) else ""


def describe_run(run: RunRecord) -> str:
  """Describes what was run, up to the arms."""
  kind = run.organism.kind
  organism = f"The organism ({kind})" if kind else "The organism"
  gate = run.organism.gate
  if gate is None:
    gate_result = "has no gate result yet"
  elif gate.passed:
    gate_result = "passed the gate"
  else:
    how = "shown all the same" if gate.enforced else "not enforced"
    gate_result = f"FAILED the gate ({how})"
  if gate is not None:
    gate_result += (
      f" with the initial behavior on {rate(gate.rates['initial'])}"
    )
    gate_result += " of the eval prompts"
  install = _install_phrases(run.organism)
  phrases = [v for k, v in install.items() if k != "kind"]
  if phrases:
    made = "is an adapter with" if kind == "adapter" else "was trained with"
    gate_result += f". It {made} {', '.join(phrases)}"
  n = len(run.arms)
  arms = f"{n} arm{'' if n == 1 else 's'}" if n else "No arm"
  trained = "trained from it" if run.finished else "found so far"
  return f"{organism} {gate_result}. {arms} {trained}."
