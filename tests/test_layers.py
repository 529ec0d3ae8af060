"""Imports go one way, and heavy packages stay in the files that own them."""

import ast
from pathlib import Path

import pytest

import bct_jax

ROOT = Path(bct_jax.__file__).parent
MODULES = sorted(p.relative_to(ROOT) for p in ROOT.rglob("*.py"))

# A module may import from its own layer and from those before it.
LAYERS = [
  {
    "types",
    "examples",
    "chips",
    "config",
    "cells",
    "exits",
    "progress",
    "metrics",
  }
  | {"allocator", "processes", "signals", "hlo", "live"},
  {"mesh", "losses", "models", "data", "stats", "summary"},
  {"objectives", "settings", "rewards"},
  {
    "optim",
    "checkpoint",
    "decode",
    "pick",
    "sampler",
    "score",
    "gate",
    "verdict",
  },
  {"train", "loop", "population", "evaluate", "rollouts", "gradients"},
  {"runtime", "sizes"},
  {"datasets", "turns", "weights", "local", "lm_eval_model", "tasks"},
  {"plan"},
  {"on_policy", "reference", "rl", "gradient_log"},
  {"training"},
  {"arms"},
  {"experiment"},
  {"rundir", "report"},
  {"commands", "dryrun", "topology", "pretrain", "rescore"},
  {"main", "interop", "linear", "groups", "gates", "sweep", "sweep_plan"}
  | {"__init__"},
]
# Package -> the parts that may import it.
OWNERS = {
  "flax.linen": {"models"},
  "orbax": {"checkpoint"},
  "tensorflow_datasets": {"data"},
  "transformers": {"data", "models"},
  "ml_collections": {"main", "sweep"},
  "absl": {"main", "sweep"},
  "inspect_ai": {"interop"},
  "lm_eval": {"interop", "lm_eval_model", "tasks"},
}
NO_JAX = {
  "cells",
  "chips",
  "hlo",
  "report",
  "settings",
  "config",
  "examples",
  "metrics",
  "verdict",
  "gate",
  "stats",
  "summary",
  "progress",
  "signals",
  "live",
}

# Pairs of the same or an upper layer that must not meet all the same.
APART = {
  ("train", "settings"),
  ("train", "sampler"),
  ("evaluate", "optim"),
  ("evaluate", "train"),
  ("sampler", "optim"),
  ("objectives", "settings"),
  ("settings", "objectives"),
  ("settings", "data"),
  ("report", "rundir"),
}


def part_of(module: Path) -> str:
  return module.parts[0].removesuffix(".py")


def imports(module: Path) -> set[str]:
  """Every dotted name a module imports, wherever in the file it does."""
  out = set()
  for node in ast.walk(ast.parse((ROOT / module).read_text("utf-8"))):
    if isinstance(node, ast.Import):
      out |= {a.name for a in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{module}: relative import"
      out |= {f"{node.module}.{a.name}" for a in node.names}
  return out


def layer(part: str) -> int:
  found = [i for i, parts in enumerate(LAYERS) if part in parts]
  assert len(found) == 1, f"{part} must be in one layer, is in {found}"
  return found[0]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_only_lower_layers(module):
  part = part_of(module)
  for name in imports(module):
    if name.startswith("bct_jax."):
      other = name.split(".")[1]
      assert layer(other) <= layer(part), f"{module} imports {name}"
      assert (part, other) not in APART, f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_heavy_packages_have_owners(module):
  part = part_of(module)
  for name in imports(module):
    for package, parts in OWNERS.items():
      if name == package or name.startswith(package + "."):
        assert part in parts, f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_parts_without_jax(module):
  if part_of(module) in NO_JAX:
    bad = {n for n in imports(module) if n.split(".")[0] in ("jax", "flax")}
    assert not bad
    # Nor through another module of ours.
    for name in imports(module):
      if name.startswith("bct_jax."):
        other = name.split(".")[1]
        assert other in NO_JAX | {"__version__"}, f"{module} imports {name}"
