"""The wheel and the sdist, and the wheel used outside the checkout."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from runs import without_torch

import bct_jax

pytestmark = pytest.mark.slow  # needs a package index, for setuptools

ROOT = Path(__file__).parents[1]


def tracked_files() -> list[str]:
  git = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
  names = subprocess.check_output(git, cwd=ROOT, text=True).split("\0")
  return [n for n in names if n and (ROOT / n).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """The folder with the wheel and the sdist that it was built from."""
  if not (ROOT / ".git").exists():
    pytest.skip("this is no git checkout")
  source = tmp_path_factory.mktemp("source")
  for name in tracked_files():
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_bytes((ROOT / name).read_bytes())
  out = tmp_path_factory.mktemp("dist")
  done = subprocess.run(
    [sys.executable, "-m", "build", f"--outdir={out}", str(source)],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return out


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
  """Where the wheel is, without the packages that it needs."""
  target = tmp_path_factory.mktemp("site")
  (wheel,) = built.glob("*.whl")
  pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
  subprocess.run([*pip, f"--target={target}", str(wheel)], check=True)
  return target


@pytest.fixture
def call(installed, tmp_path):
  """Runs a Python with the wheel in place of the checkout."""
  env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  env |= without_torch(installed) | {"JAX_PLATFORMS": "cpu"}
  # As main.py has it: else transformers says that there is no torch.
  env["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"

  def run(*words, code=0):
    done = subprocess.run(
      [sys.executable, *map(str, words)],
      cwd=tmp_path,
      env=env,
      capture_output=True,
      text=True,
      timeout=600,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr

  return run


def wanted_in_wheel() -> set[str]:
  """What the checkout has of the package and of the configs."""
  suffixes = {
    ".py",
    ".json",
    ".jsonl",
    ".jinja",
    ".j2",
    ".css",
    ".js",
    ".typed",
  }
  out = set()
  for name in tracked_files():
    if Path(name).suffix in suffixes:
      if name.startswith("bct_jax/"):
        out.add(name)
      elif name.startswith("configs/"):
        out.add(f"bct_jax/shipped/{name}")
  return out


def test_the_wheel_has_all_files_and_no_others(built):
  (wheel,) = built.glob("*.whl")
  names = zipfile.ZipFile(wheel).namelist()
  found = {n for n in names if ".dist-info/" not in n}
  assert found == wanted_in_wheel()
  assert {"bct_jax/py.typed", "bct_jax/report/browser.js"} <= found
  assert "bct_jax/shipped/configs/architectures/qwen2_5_7b.json" in found


def test_the_sdist_has_what_the_wheel_is_made_of(built):
  (sdist,) = built.glob("*.tar.gz")
  with tarfile.open(sdist) as archive:
    names = {n.partition("/")[2] for n in archive.getnames()}
  wanted = {n.replace("bct_jax/shipped/", "") for n in wanted_in_wheel()}
  assert wanted | {"LICENSE", "README.md", "setup.py"} <= names


def test_the_command_and_its_version(installed, call):
  command = installed / "bin" / "bct-jax"
  version = bct_jax.__version__
  assert call(command, "--version") == f"bct_jax {version}\n"
  assert call("-m", "bct_jax.main", "--version") == f"bct_jax {version}\n"
  ask = "import bct_jax; print(bct_jax.__file__)"
  assert call("-c", ask).startswith(str(installed))
  assert "did you mean 'report'" in call(command, "reprot", code=2)


def test_shipped_configs_run_outside_the_checkout(installed, call, tmp_path):
  command = installed / "bin" / "bct-jax"
  call("-m", "bct_jax.main", "--config=configs/tiny.py", "--workdir=run")
  assert (tmp_path / "run" / "done.json").is_file()
  said = call(command, "run", "--config=configs/tiny.py", "--workdir=run")
  assert "done already" in said
  call(command, "report", "run", "--out=page.html")
  assert "tiny" in (tmp_path / "page.html").read_text()
  flags = ["--sweep=configs/sweeps/lr_quick.py", "--dry_run", "--notime"]
  tiny = "--config.model.path=demo:tiny"
  said = call(command, "sweep", *flags, tiny, "--config.max_length=512")
  assert "6 cells" in said
  mine = tmp_path / "mine.py"
  mine.write_text("from configs.tiny import get_config\n")
  call(command, "run", "--config=mine.py", "--workdir=run")
  assert json.loads((tmp_path / "run" / "result.json").read_text())["arms"]
  said = call("-m", "bct_jax", "run", "--config=configs/no.py", code=2)
  assert f"in {tmp_path} or {installed}" in said


def test_nothing_but_the_package_can_be_imported(installed, call):
  names = {p.name for p in installed.iterdir() if p.suffix != ".dist-info"}
  assert names == {"bct_jax", "bin"}
  ask = "import importlib.util as u; print(u.find_spec('configs'))"
  assert call("-c", ask).strip() == "None"


def test_architectures_are_found(call):
  ask = "from bct_jax.runtime.runtime import read_architecture as read; "
  ask += "print(read('architectures/qwen2_5_7b.json').width)"
  assert call("-c", ask).strip() == "3584"
