"""Ends a run directory with done.json, and finds what is damaged in one.

done.json has size and SHA-256 of every file. Those of arrays in checkpoints
have no hash: whoever loads them compares checksums of the arrays. Files of the
organism are listed by name, and its ledger knows them, since other runs may
share the organism and evaluate it again.
"""

import hashlib
from pathlib import Path
from typing import Any

from bct_jax.infra import files, ledger, remote_runs

DONE = "done.json"
# What can be made again from the other files, by the command of the run.
REMADE = (DONE, "result.json")
# Has the arms of before the run grew; see experiment/growth.py.
_BEFORE = "arms_before"


def write_done(workdir: Path, organism: str) -> None:
  """Writes done.json with the files of the run, unless it is there.

  It does not list report.html, which can be made again, nor files of trackers.

  Args:
    workdir: a run directory that lacks only this file.
    organism: the name of its organism's folder.

  Raises:
    ValueError: a file was damaged while the run was under way.
  """
  if (workdir / DONE).exists():
    return
  # Not organisms/ as a whole, which may be a link to those of other runs too.
  folders = [workdir / "arms", workdir / "organisms" / organism]
  folders.append(workdir / _BEFORE)
  for temporary in [*workdir.glob(".*.tmp"), *folders[0].rglob(".*.tmp")]:
    temporary.unlink(missing_ok=True)  # of a write that was killed
  if damage := _unfinished_damage(workdir):
    raise ValueError(f"{workdir} cannot be completed: {_list(damage)}")
  own = ("config.json", "env.json", "result.json", "setting_files.json")
  paths = [workdir / n for n in (*own, ledger.NAME)]
  for folder in folders:
    paths += folder.rglob("*")
  there = {p.relative_to(workdir) for p in paths if p.is_file()}
  for folder in folders:  # what other machines have made
    there |= {
      (folder / name).relative_to(workdir)
      for name in remote_runs.sizes_below(folder)
    }
  names = sorted(name for name in there if not _is_left_out(name))
  written = {
    n.as_posix(): _describe(workdir / n)
    for n in names
    if (n.parts[0] != "organisms" or "checkpoints" in n.parts)
    and n.name != ledger.NAME
  }
  # Lines may be added to these.
  for n in names:
    if n.name == ledger.NAME:
      written[n.as_posix()] = {"least": (workdir / n).stat().st_size}
  record = {"files": [n.as_posix() for n in names], "written": written}
  files.write_json(workdir / DONE, record)


def _is_left_out(name: Path) -> bool:
  """Tells whether done.json does not list a file of an arm or organism."""
  trackers = {"tensorboard", "wandb"} & {*name.parts}
  aside = any(part.endswith(ledger.ASIDE) for part in name.parts)
  return bool(trackers) or aside or name.name.startswith(".")


def _describe(path: Path) -> dict[str, Any]:
  """Returns size and hash of a file, for done.json."""
  if "checkpoints" in path.parts:
    return {"size": remote_runs.size_of(path)}
  size = path.stat().st_size
  with path.open("rb") as f:
    digest = hashlib.file_digest(f, "sha256").hexdigest()
  return {"size": size, "sha256": digest}


def find_damage(workdir: Path) -> dict[str, str]:
  """Finds lost and changed files of a run, finished or not.

  Returns:
    What is wrong by the file's name, in words. A lost folder stands for all
    that was in it. Of a run from before there were hashes it has what is lost.
  """
  if not (workdir / DONE).exists():
    return _unfinished_damage(workdir)
  try:
    record = files.read_json(workdir / DONE)
    names, written = record["files"], record.get("written")
    paths = [workdir / name for name in names]
    if not isinstance(written, dict | None):
      raise TypeError
  except (ValueError, TypeError, KeyError, AttributeError) as e:
    words = str(e) if isinstance(e, ValueError) else "has no list of files"
    return {DONE: words.removeprefix(f"{workdir / DONE}: ")}
  out = {
    _topmost(workdir, path): "is missing"
    for path in paths
    if remote_runs.size_of(path) is None
  }
  for name, entry in (written or {}).items():
    path = workdir / name
    if remote_runs.size_of(path) is None:
      continue
    if damage := _differs(path, entry):
      out[name] = damage
  for folder in {p.parent for p in paths if p.name == ledger.NAME}:
    # The directory's own knows done.json itself.
    if folder == workdir or folder.parent.name == "organisms":
      out |= _ledger_damage(workdir, folder)
    elif lines := ledger.Ledger(folder).unreadable:
      name = (folder / ledger.NAME).relative_to(workdir).as_posix()
      out[name] = f"was changed in lines {lines}"
  return out


def has_hashes(workdir: Path) -> bool:
  """Tells whether a done run is from after done.json had hashes."""
  try:
    return "written" in files.read_json(workdir / DONE)
  except (ValueError, TypeError):
    return True  # damaged, which `find_damage` says


def _differs(path: Path, entry: Any) -> str | None:
  """Says how a file differs from its entry in done.json."""
  if path.exists() and not path.is_file():
    return "is no regular file"
  if isinstance(entry, dict) and isinstance(least := entry.get("least"), int):
    size = path.stat().st_size
    return f"has {size:,} bytes of {least:,}" if size < least else None
  if not isinstance(entry, dict) or not isinstance(entry.get("size"), int):
    return f"has a damaged entry in {DONE}"
  now = _describe(path)
  if now["size"] != entry["size"]:
    return f"has {now['size']:,} bytes, {entry['size']:,} were written"
  if now.get("sha256") != entry.get("sha256"):
    return "is not what was written (its SHA-256 differs)"
  return None


def _unfinished_damage(workdir: Path) -> dict[str, str]:
  """Asks the ledgers of a run that is not done."""
  out = {}
  parts = [
    p.parent
    for glob in ("*/*", f"{_BEFORE}/*/*")
    for p in workdir.glob(f"{glob}/{ledger.NAME}")
    if not p.parent.name.endswith(ledger.ASIDE)
  ]
  for folder in (workdir, *sorted(parts)):
    out |= _ledger_damage(workdir, folder)
  return out


def _ledger_damage(workdir: Path, folder: Path) -> dict[str, str]:
  """Asks the ledger of one folder of a run."""
  book = ledger.Ledger(folder)
  damage = {
    name: words
    for name, words in book.find_damage().items()
    # Their removal is how one asks for a stage to be looked at again.
    if not (name in REMADE and words == "is missing")
  }
  if book.unreadable:
    damage[ledger.NAME] = f"was changed in lines {book.unreadable}"
  where = folder.relative_to(workdir)
  return {(where / name).as_posix(): words for name, words in damage.items()}


def _topmost(root: Path, path: Path) -> str:
  """Names a lost file, or the outermost lost folder that it was in."""
  while not path.parent.exists() and root in path.parent.parents:
    path = path.parent
  return path.relative_to(root).as_posix()


def _list(damage: dict[str, str]) -> str:
  """Joins damages, and says what helps."""
  words = [f"{name} {what}" for name, what in damage.items()]
  more = f" and {len(words) - 5} more" if len(words) > 5 else ""
  return (
    f"{'; '.join(words[:5])}{more}. Restore from a copy, or remove the arm or "
    "organism: the same command makes it again"
  )


def describe_damage(workdir: Path) -> list[str]:
  """Describes what is damaged in a run for its readers, a line or two."""
  damage = find_damage(workdir)
  lost = sorted(n for n, words in damage.items() if words == "is missing")
  changed = {n: w for n, w in damage.items() if n not in lost}
  notes, done = [], (workdir / DONE).exists()
  if lost:
    why = "though the run is done" if done else "though it was written"
    notes.append(f"Missing, {why}: {', '.join(lost)}")
  if changed:
    notes.append(f"Damaged: {_list(changed)}")
  return notes
