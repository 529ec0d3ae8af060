"""Models by hub id, from a cache made by hand, and from a hub on localhost."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest

from bct_jax.config import from_dict
from bct_jax.experiment import environment
from bct_jax.models.huggingface import hub
from bct_jax.runtime.runtime import Runtime
from configs import tiny

ROOT = Path(__file__).parents[2]
COMMIT, OLD = "a" * 39 + "1", "b" * 39 + "2"


@pytest.fixture(scope="module")
def cache(tmp_path_factory, tiny_folder):
  """A cache of org/name at two commits, the newer of which is main."""
  root = tmp_path_factory.mktemp("hub")
  model = root / "models--org--name"
  for name in ("blobs", "refs"):
    (model / name).mkdir(parents=True)
  (model / "refs" / "main").write_text(COMMIT)
  for commit in (COMMIT, OLD):
    snapshot = model / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for path in tiny_folder.iterdir():
      if path.name.startswith("bct_"):
        continue
      data = path.read_bytes()
      blob = model / "blobs" / hashlib.sha256(data).hexdigest()
      blob.write_bytes(data)
      (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
  return root


def python(cache: Path, code: str, *args: str, hub: str | None = None):
  env = {
    **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
    "HF_HUB_CACHE": str(cache),
    **({"HF_ENDPOINT": hub} if hub else {"HF_HUB_OFFLINE": "1"}),
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",
  }
  done = subprocess.run(
    [sys.executable, "-c", code, *args],
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
    timeout=120,
  )
  return done.returncode, done.stdout, done.stderr


RESOLVE = """
import json, sys
from bct_jax.models import demo
from bct_jax.models.huggingface import hub
out = []
for name in sys.argv[1:]:
  try:
    folder = demo.resolve(name)
    out.append([str(folder), hub.commit(folder)])
  except ValueError as e:
    out.append(str(e))
print(json.dumps(out))
"""


def test_ids_are_found_offline(cache):
  names = ["org/name", "org/name@main", f"org/name@{OLD}", "org/name@v2"]
  code, out, err = python(cache, RESOLVE, *names, "org/other")
  assert code == 0, err
  *found, no_revision, no_model = json.loads(out)
  snapshots = cache / "models--org--name" / "snapshots"
  assert found == [
    [str(snapshots / commit), commit] for commit in (COMMIT, COMMIT, OLD)
  ]
  assert f"org/name is org/name@{COMMIT}" in err
  for error in (no_revision, no_model):
    assert "offline mode is on" in error and str(cache) in error
    assert "\n" not in error
  assert f"has of org/name only main, {COMMIT}, {OLD}" in no_revision
  assert "has no org/other" in no_model


def test_ids_are_downloaded(tiny_folder, tmp_path):
  folder = shutil.copytree(tiny_folder, tmp_path / "model")
  for name in ("pytorch_model.bin", "consolidated.safetensors"):
    (folder / name).write_bytes(b"what other loaders need")
  old = shutil.copytree(tiny_folder, tmp_path / "old")
  (old / "config.json").write_text("{}")
  models = {"org/name": {"main": (COMMIT, folder), "v1": (OLD, old)}}
  cache = tmp_path / "cache"
  with hub_server.serve(models) as server:
    names = ["org/name", "org/name@v1", f"org/name@{OLD}", "org/name@v2"]
    names += ["org/other"]
    code, out, err = python(cache, RESOLVE, *names, hub=server.url)
  assert code == 0, err
  *found, no_revision, no_model = json.loads(out)
  snapshots = cache / "models--org--name" / "snapshots"
  assert found == [
    [str(snapshots / commit), commit] for commit in (COMMIT, OLD, OLD)
  ]
  assert f"org/name is org/name@{COMMIT}" in err
  for error in (no_revision, no_model):
    assert "the hub gave nothing" in error and "\n" not in error
  for path in tiny_folder.iterdir():
    if path.suffix in (".json", ".jinja", ".safetensors"):
      new = snapshots / COMMIT / path.name
      assert new.read_bytes() == path.read_bytes()
  assert (snapshots / OLD / "config.json").read_text() == "{}"
  assert not [x for x in server.asked if ".bin" in x or "consolidated" in x]
  # What is there needs no network.
  code, out, err = python(cache, RESOLVE, "org/name")
  assert json.loads(out) == [[str(snapshots / COMMIT), COMMIT]], err


ENVIRONMENT = """
import json, sys
sys.modules["torch"] = None  # slow to import, and not needed
from bct_jax.experiment import environment
from bct_jax.config import from_dict
from bct_jax.runtime.runtime import Runtime
from configs import tiny
values = tiny.get_config().to_dict()
values["model"]["path"] = sys.argv[1]
env = environment.environment(Runtime.make(from_dict(values)))
print(json.dumps(env["model"]))
"""


def test_environment_records_the_commit(cache, tiny_folder):
  code, out, err = python(cache, ENVIRONMENT, "org/name@main")
  assert code == 0, err
  model = json.loads(out)
  snapshot = cache / "models--org--name" / "snapshots" / COMMIT
  assert model["path"] == "org/name@main" and model["commit"] == COMMIT
  assert model["folder"] == str(snapshot)
  values = tiny.get_config().to_dict()
  values["model"]["path"] = str(tiny_folder)
  local = environment.environment(Runtime.make(from_dict(values)))["model"]
  assert local["commit"] is None and local["folder"] == str(tiny_folder)
  assert local["hash"] == model["hash"]


def test_commit_needs_a_snapshot():
  assert hub.commit(Path("/x/snapshots") / COMMIT) == COMMIT
  assert hub.commit(Path("/x/snapshots/main")) is None
  assert hub.commit(Path("/x/models") / COMMIT) is None
