"""Numbers and strings as the report prints them.

Model outputs are hostile until shown otherwise: `visible` and `show` turn every
character that a reader could not see, or that could act, into its escape.
"""

import html
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from bct_jax.evals.schema import EvalRecord, Rate
from bct_jax.report.read.types import (
  ArmRecord,
  Crossing,
  OrganismRecord,
  RunRecord,
)

# Control, format (bidirectional overrides, tags), surrogate, private and
# unassigned characters, line and paragraph separators. The two joiners are
# format characters that emoji and many scripts need, and no reader misses a
# newline.
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_KEPT = "\n\u200c\u200d"
_NAMES = {"\t": "\\t", "\r": "\\r", "\x1b": "\\x1b", "\x00": "\\0"}


def _escape(char: str) -> str:
  """The visible form of a character, or itself."""
  if char.isascii() and char.isprintable() or char in _KEPT:
    return char
  if unicodedata.category(char) not in _HIDDEN:
    return char
  if char in _NAMES:
    return _NAMES[char]
  code = ord(char)
  if code < 0x100:
    return f"\\x{code:02x}"
  return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def visible(text: str) -> str:
  """The text with its hidden characters as escapes; it is not HTML yet."""
  return "".join(map(_escape, text))


def show(text: str) -> Markup:
  """The text as HTML, its escapes marked off from a typed backslash."""
  parts = []
  for char in text:
    seen = _escape(char)
    safe = html.escape(seen)
    parts.append(safe if seen == char else f"<i>{safe}</i>")
  return Markup("".join(parts))


def number(value: float) -> str:
  """Four significant digits, and 1e-4 rather than 0.0001 or 1e-04."""
  if not 0 < abs(value) < 1e-3:
    return re.sub(r"e\+0*", "e", f"{value:.4g}")
  mantissa, exponent = f"{value:.3e}".split("e")
  return f"{float(mantissa):g}e{int(exponent)}"


def percent(value: float) -> str:
  """A share in percent. Only 0 and 1 themselves print as 0% and 100%."""
  for digits in (0, 1, 2):
    text = f"{100 * value:.{digits}f}"
    if float(text) not in (0, 100) or value in (0, 1):
      return text + "%"
  return "<0.01%" if value < 0.5 else ">99.99%"


def interval(ci: tuple[float, float] | None) -> str:
  """A 95% interval of a share, or nothing."""
  return f"[{percent(ci[0])}, {percent(ci[1])}]" if ci else ""


def fraction(rate: Rate) -> str:
  """31/32 where the share is one of whole completions."""
  if not rate.n:
    return ""
  hits = rate.value * rate.n
  # A share over several samples per prompt may not be a whole count of n.
  whole = abs(hits - round(hits)) < 0.05
  return f"{round(hits)}/{rate.n}" if whole else f"n = {rate.n}"


def rate(value: Rate | None) -> str:
  """31/32 [84%, 99%], for sentences."""
  if value is None:
    return "not measured"
  first = fraction(value)
  if "/" not in first:
    first = percent(value.value)
  return f"{first} {interval(value.ci)}".strip()


def crossing(value: Crossing | None) -> str:
  """A step, or that it never came."""
  if value is None or (value.step is None and value.censored_at is None):
    return "–"
  if value.step is not None:
    return f"step {value.step}"
  return f"> {value.censored_at} (censored)"


def share(value: float | None) -> str:
  """A share of completions, or the number of them, as it was logged."""
  if value is None:
    return "–"
  return str(value) if isinstance(value, int) else percent(value)


def seconds(value: float) -> str:
  """A duration to read."""
  if not math.isfinite(value) or value < 60:
    return f"{value:.3g} s"
  minutes, rest = divmod(round(value), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def setting_value(key: str, value: Any) -> str:
  """A setting of an arm in words."""
  if key == "rank":
    return "full" if value is None else str(value)
  if isinstance(value, float):
    return number(value)
  return str(value) if value not in ("", None) else "none"


def flatten(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
  """("optim.lr", "1e-05") for each leaf of nested JSON."""
  if isinstance(tree, Mapping) and tree:
    return [
      pair
      for key, value in tree.items()
      for pair in flatten(value, f"{prefix}.{key}" if prefix else str(key))
    ]
  if isinstance(tree, str):
    return [(prefix, tree)]
  return [(prefix, json.dumps(tree, ensure_ascii=False))]


def base(path: str) -> str:
  """The last part of a path or of a hub id."""
  return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path


def title(run: RunRecord) -> str:
  """What was run, as far as it is known."""
  setting = run.setting or "unnamed setting"
  return f"{setting} on {base(run.model)}" if run.model else setting


def describe_arm(arm: ArmRecord) -> str:
  """One sentence on how an arm ended, without its name."""
  if not arm.curve:
    return "no eval yet."
  last: EvalRecord = arm.curve[-1]
  rates: dict[str, Rate | None] = {
    "initial": last.initial,
    "alternate": last.alternate,
  }
  # The rate that the verdict rests on stands first.
  if arm.verdict == "transferred":
    rates = dict(reversed(rates.items()))
  if last.other.value > 0:
    rates["other"] = last.other
  rates.update(agreed=last.agreed, agreed_decorated=last.agreed_decorated)
  told = [f"{k} {rate(v)}" for k, v in rates.items() if v is not None]
  verdict = arm.verdict or ("no verdict" if arm.finished else "unfinished")
  return f"{verdict} ({', '.join(told)} at step {last.step})."


# Fields of `made.json` that tell organisms apart, and how they are said.
_MADE = {
  "kind": "{}",
  "optimizer": "{}",
  "lr": "lr {}",
  "steps": "{} updates",
  "batch_size": "batch {}",
  "samples": "{} samples",
  "rank": "rank {}",
  "seed": "seed {}",
  "data_hash": "data {:.8}",
}


def describe_install(organisms: Sequence[OrganismRecord]) -> str:
  """How organisms were made, as far as known, and in what they differ."""
  found = [_made(organism) for organism in organisms]
  fields = dict.fromkeys(field for told in found for field in told)
  values = {f: {told.get(f, "") for told in found} for f in fields}
  same = [min(told) for told in values.values() if len(told) == 1]
  differ = [field for field, told in values.items() if len(told) > 1]
  if differ:
    same.append(f"they differ in {', '.join(differ)}")
  return ", ".join(same)


def caption(organisms: Sequence[OrganismRecord]) -> str:
  """What stands below a figure of theirs; empty where nothing is known."""
  made = visible(describe_install(organisms))
  return made and f"organism: {made}"


def _made(organism: OrganismRecord) -> dict[str, str]:
  """What was done, in words, by field; of a prompted one its kind alone."""
  made = {"kind": organism.kind} | dict(organism.made)
  told = {
    key: form.format(setting_value(key, made[key]))
    for key, form in _MADE.items()
    if made.get(key, "") != ""
  }
  if "rank" in made and made["rank"] is None:
    told["rank"] = "all weights"
  if made.get("merged") is False:
    told["merged"] = "adapter not merged"
  return told


def describe_run(run: RunRecord) -> str:
  """One sentence on what was run, up to the arms."""
  kind = run.organism.kind
  organism = f"The organism ({kind})" if kind else "The organism"
  gate = run.organism.gate
  if gate is None:
    checked = "has no gate result yet"
  elif gate.passed:
    checked = "passed the gate"
  else:
    how = "shown all the same" if gate.enforced else "not enforced"
    checked = f"FAILED the gate ({how})"
  if gate is not None:
    checked += f" with the initial behavior on {rate(gate.rates['initial'])}"
    checked += " of the eval prompts"
  made = [v for k, v in _made(run.organism).items() if k != "kind"]
  if made:
    checked += f". It was trained with {', '.join(made)}"
  n = len(run.arms)
  arms = f"{n} arm{'' if n == 1 else 's'}" if n else "No arm"
  trained = "trained from it" if run.finished else "found so far"
  return f"{organism} {checked}. {arms} {trained}{':' if n else '.'}"
