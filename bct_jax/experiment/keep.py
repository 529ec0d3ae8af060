"""Says what of a finished run may go, and removes it: `keep`, --mode=clean.

  all       every file stays
  weights   without what only training needed: samples of rewards, log-probs of
            the reference, arms of before a run grew, damaged checkpoints
  results   without all weights, too: readings, answers and logs stay

An organism whose weights went is trained again if a new arm needs it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from bct_jax.infra import files, ledger, remote_runs
from bct_jax.infra.formats import size

# Globs of files below a run directory that a value of `keep` does not need.
_TRAINING = (
  "arms/*/train_rollouts",
  "arms/*/reference_logprobs.jsonl",
  "arms/*/refine",
  "arms/*/checkpoints/*.damaged",
  "arms_before",
)
_ARMS = ("arms/*/checkpoints",)
_ORGANISMS = ("organisms/*/checkpoints", "organisms/*/adapter")


def removable(
  workdir: Path, keep: str, with_organisms: bool = True
) -> list[Path]:
  """Lists what a finished run does not keep, files and whole folders.

  Args:
    workdir: its directory.
    keep: one of config.types.KEEP.
    with_organisms: whether weights of organisms are among them. A folder of
      organisms that several cells share never is.
  """
  globs: Sequence[str] = () if keep == "all" else _TRAINING
  if keep == "results":
    shared = (workdir / "organisms").is_symlink() or not with_organisms
    globs = (*_TRAINING, *_ARMS, *(() if shared else _ORGANISMS))
  found = sorted(path for glob in globs for path in _glob(workdir, glob))
  return [p for p in found if not {*p.parents} & {*found}]


def _glob(workdir: Path, pattern: str) -> set[Path]:
  """Lists paths that match, also those that only the store of a run has."""
  names = remote_runs.sizes_below(workdir)
  folders = {p for name in names for p in PurePosixPath(name).parents}
  depth = pattern.count("/") + 1
  there = {
    workdir / p for p in folders if len(p.parts) == depth and p.match(pattern)
  }
  return {*workdir.glob(pattern)} | there


def size_of(path: Path) -> int:
  """Returns the bytes of a file, or of all files in a folder."""
  inside = path.rglob("*") if path.is_dir() else [path]
  sizes = {p: p.lstat().st_size for p in inside if p.is_file()}
  there = remote_runs.sizes_below(path)
  return sum((sizes | {path / n: size for n, size in there.items()}).values())


def remove(workdir: Path, paths: Iterable[Path]) -> None:
  """Removes parts of a finished run, and takes them off done.json's list.

  The list is written first: what it does not name is not missed.

  Args:
    workdir: the run directory, or that of a sweep.
    paths: what to remove, from `removable`.
  """
  paths = list(paths)
  done = workdir / "done.json"
  if done.exists() and "files" in (record := files.read_json(done)):
    gone = [p.relative_to(workdir).as_posix() for p in paths]
    record["files"] = [
      name
      for name in record["files"]
      if not any(name == g or name.startswith(f"{g}/") for g in gone)
    ]
    if "written" in record:
      record["written"] = {
        name: entry
        for name, entry in record["written"].items()
        if name in {*record["files"]}
      }
    record["removed"] = sorted({*record.get("removed", []), *gone})
    with ledger.tracking(workdir):
      files.write_json(done, record)
  for path in paths:
    ledger.note_removal(path)
    if path.is_file():
      path.unlink()
    files.delete_folder(path)


def describe(workdir: Path, paths: Sequence[Path]) -> str:
  """Lists paths with their sizes, and the sum."""
  sizes = [size_of(path) for path in paths]
  lines = [
    f"  {size(count):>12}  {path.relative_to(workdir)}"
    for path, count in zip(paths, sizes, strict=True)
  ]
  return "\n".join([*lines, f"  {size(sum(sizes)):>12}  in all"])
