"""Imports go one way, and heavy packages stay in the rooms that own them."""

import re
from pathlib import Path

import pytest
from imports import ROOT, floors, imports_of, modules, room_imports, room_of

MODULES = modules(ROOT)

# A room may import from its own layer and from those before it.
LAYERS = [
  {"types", "examples", "infra"},
  {"config", "mesh"},
  {"settings", "data"},
  {"models"},
  {"objectives", "train", "sample"},
  {"runtime", "evals"},
  {"interop", "sizing"},
  {"experiment"},
  {"sweep", "modes", "report", "linear"},
  {"main", "__init__", "__main__", "tour"},
]
# Package -> the rooms, or paths in them, that may import it.
OWNERS = {
  "flax.linen": {"models"},
  "orbax": {"train/checkpoint.py"},
  "tensorflow_datasets": {"data"},
  "transformers": {"data/source.py", "data/tokenizer_files.py", "models"},
  "ml_collections": {"main", "sweep", "modes/notebook.py", "__init__"},
  "absl": {"main", "sweep"},
  "fsspec": {"infra/object_store.py"},
  "inspect_ai": {"interop"},
  "lm_eval": {"interop"},
}
# Rooms, or paths in them, that no import leads from to JAX.
NO_JAX = {
  "config",
  "data/leaks.py",
  "examples",
  "report",
  "settings",
  "evals/calibration.py",
  "evals/control_check.py",
  "evals/gate.py",
  "evals/hierarchy.py",
  "evals/groups.py",
  "evals/crossings.py",
  "evals/outcome.py",
  "evals/paired.py",
  "evals/placement.py",
  "evals/reading.py",
  "evals/removal.py",
  "evals/schema.py",
  "evals/stats.py",
  "evals/summary.py",
  "evals/task_rows.py",
  "evals/verdict.py",
  "infra/done_file.py",
  "infra/exit_codes.py",
  "infra/files.py",
  "infra/formats.py",
  "infra/ledger.py",
  "infra/object_store.py",
  "infra/progress.py",
  "infra/remote_folder.py",
  "infra/remote_runs.py",
  "infra/signals.py",
  "infra/store_lock.py",
  "infra/trackers.py",
  "infra/user_code.py",
  "infra/visible.py",
  "sizing/hlo.py",
  "sweep/cells.py",
}
# Pairs of the same or an upper layer that must not meet all the same.
APART = {
  ("evals", "train"),
  ("evals", "objectives"),
  ("objectives", "settings"),
  ("sample", "train"),
  ("settings", "data"),
  ("settings", "objectives"),
  ("train", "sample"),
  ("train", "settings"),
}


def layer(room: str) -> int:
  at = [i for i, rooms in enumerate(LAYERS) if room in rooms]
  assert len(at) == 1, f"{room} must be in one layer, is in {at}"
  return at[0]


def in_rooms(module: Path, rooms: set[str]) -> bool:
  return room_of(module) in rooms or module.as_posix() in rooms


def module_of(name: str) -> Path | None:
  """The module of ours that a dotted name is in; None is no module of ours."""
  parts = name.split(".")
  if parts[0] != "bct_jax":
    return None
  for end in range(len(parts), 0, -1):
    path = Path(*parts[1:end])
    for file in (
      path.with_suffix(".py") if end > 1 else path,
      path / "__init__.py",
    ):
      if file in MODULES:
        return file
  raise AssertionError(f"{name}: no such module")


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_only_lower_layers(module):
  room = room_of(module)
  for name in imports_of(ROOT, module):
    target = module_of(name)
    if target is not None:
      other = room_of(target)
      assert layer(other) <= layer(room), f"{module} imports {name}"
      assert (room, other) not in APART, f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_heavy_packages_have_owners(module):
  for name in imports_of(ROOT, module):
    for package, rooms in OWNERS.items():
      if name == package or name.startswith(package + "."):
        assert in_rooms(module, rooms), f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_rooms_without_jax(module):
  if not in_rooms(module, NO_JAX):
    return
  for name in imports_of(ROOT, module):
    assert name.split(".")[0] not in ("jax", "flax"), f"{module}: {name}"
    # Nor through another module of ours.
    target = module_of(name)
    if target is not None and target.name != "__init__.py":
      assert in_rooms(target, NO_JAX), f"{module} imports {name}"


def test_no_circle_and_few_floors():
  rooms = {room_of(m) for m in MODULES}
  assert len(rooms) <= 24
  assert len(floors(room_imports(ROOT))) <= 10


# Of extras that `launch/test.sh` does not install: only --all does.
NOT_INSTALLED = "gcsfs|inspect_ai|lm_eval|openai|pandas|s3fs|wandb"


def test_pyright_does_not_look_for_what_may_not_be_installed():
  imports = re.compile(rf"^\s*(from|import) ({NOT_INSTALLED})\b", re.MULTILINE)
  found = 0
  for module in modules(ROOT):
    text = (ROOT / "bct_jax" / module).read_text("utf-8")
    if imports.search(text):
      found += 1
      assert "\n# pyright: reportMissingImports=false\n" in text, module
  assert found >= 6
