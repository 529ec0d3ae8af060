"""What of a finished run stays, and what is said before anything goes."""

import json
import shutil

import pytest
from fake_run import told
from runs import run

from bct_jax.config import ConfigError
from bct_jax.experiment import keep
from bct_jax.experiment.rundir import hold_lock
from bct_jax.modes.clean import run_clean
from bct_jax.runtime import weights


@pytest.fixture
def done(finished, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  damaged = workdir / "arms" / "low" / "checkpoints" / "2.damaged"
  damaged.mkdir()
  (damaged / "x").write_bytes(b"x" * 3000)
  return workdir


def _files(folder):
  return {p.relative_to(folder).as_posix() for p in folder.rglob("*")}


def test_nothing_goes_without_yes(done, capsys):
  before = _files(done)
  run_clean(done, "results", remove=False)
  said = capsys.readouterr().out
  assert "arms/low/checkpoints" in said and "organisms/" in said
  assert "in all" in said and "add --yes" in said
  run_clean(done, "weights", remove=False)
  assert "2.damaged" in (said := capsys.readouterr().out) and "3 KiB" in said
  assert "organisms" not in said and _files(done) == before


def test_weights_go_and_results_stay(done, capsys):
  before = _files(done)
  run_clean(done, "results", remove=True)
  gone = before - _files(done)
  assert gone and all("checkpoints" in name for name in gone)
  assert not list(done.rglob("checkpoints"))
  # Nothing is missed that was removed on purpose.
  assert told(done) == ""
  record = json.loads((done / "done.json").read_text())
  assert "arms/low/checkpoints" in record["removed"]
  with pytest.raises(ConfigError, match="low: its weights were removed"):
    weights._origin(done / "arms" / "low")
  (done / "arms" / "low" / "mask_audit.txt").unlink()
  assert "mask_audit.txt" in told(done)
  # What is gone is not offered again.
  capsys.readouterr()
  run_clean(done, "results", remove=False)
  assert "there is nothing to remove" in capsys.readouterr().out


def test_what_a_run_needs_is_not_removed(done, tmp_path):
  with hold_lock(done), pytest.raises(ConfigError, match="in use"):
    run_clean(done, "weights", remove=True)
  (done / "done.json").unlink()
  with pytest.raises(ConfigError, match="no run that is done"):
    run_clean(done, "weights", remove=True)


def test_organisms_of_a_sweep_go_with_its_last_cell(done, tmp_path):
  root = tmp_path / "sweep"
  (root / "cells").mkdir(parents=True)
  done.rename(root / "cells" / "a")
  cell = root / "cells" / "a"
  (cell / "organisms").rename(root / "organisms")
  (cell / "organisms").symlink_to("../../organisms")
  other = root / "cells" / "b"
  other.mkdir()
  run_clean(root, "results", remove=True)
  assert not list(cell.glob("arms/*/checkpoints"))
  assert list(root.glob("organisms/*/checkpoints"))
  other.rmdir()
  run_clean(root, "results", remove=True)
  assert not list(root.glob("organisms/*/checkpoints"))
  assert list(root.glob("organisms/*/gate.json"))


def test_a_done_run_can_say_so_in_its_config(done, tiny_folder):
  code, _, err = run(done, tiny_folder, "--config.keep=results")
  assert code == 0, err
  assert "done already" in err and not list(done.rglob("checkpoints"))
  code, _, err = run(done, tiny_folder, "--config.keep=most")
  assert code == 2 and "keep = 'most'" in err
  assert keep.removable(done, "results") == []
