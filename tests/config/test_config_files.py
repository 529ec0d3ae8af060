"""Config files are found here, else among those that are shipped."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bct_jax.config import ConfigError, config_files
from bct_jax.config.config_files import find_config, find_in_flags

ROOT = Path(__file__).parents[2]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(ROOT)])
  return tmp_path


def test_a_file_here_comes_first(elsewhere):
  tiny = str(ROOT / "configs" / "tiny.py")
  assert find_config("configs/tiny.py", "config") == tiny
  assert find_config("configs/tiny.py:a:b", "config") == f"{tiny}:a:b"
  assert sys.path[0] == str(ROOT)
  own = elsewhere / "configs" / "tiny.py"
  own.parent.mkdir()
  own.touch()
  assert find_config("configs/tiny.py", "config") == "configs/tiny.py"
  assert find_config(str(own), "config") == str(own)
  assert sys.path.count(str(ROOT)) == 1


def test_own_files_may_import_shipped_ones(elsewhere):
  (elsewhere / "mine.py").touch()
  assert find_config("mine.py", "config") == "mine.py"
  assert sys.path[-1] == str(ROOT)


def test_the_error_names_where_it_was_sought(elsewhere):
  def error(name):
    with pytest.raises(ConfigError) as caught:
      find_config(name, "sweep")
    return str(caught.value)

  no = "there is no such file"
  assert error("configs/no.py:x") == (
    f"--sweep=configs/no.py: {no} in {elsewhere} or {ROOT}"
  )
  # The rest of a checkout is not shipped.
  assert error("setup.py") == f"--sweep=setup.py: {no} in {elsewhere}"
  assert error("/no.py") == f"--sweep=/no.py: {no}"


def test_flags_that_name_a_config(elsewhere):
  tiny = str(ROOT / "configs" / "tiny.py")
  name = "configs/tiny.py"
  for flags, wanted in (
    ([f"--config={name}", "--n=2"], [f"--config={tiny}", "--n=2"]),
    ([f"-config={name}"], [f"-config={tiny}"]),
    (["--config", name], ["--config", tiny]),
    (["--config.name=configs/x.py"], ["--config.name=configs/x.py"]),
    (["--config"], ["--config"]),
    ([], []),
  ):
    assert find_in_flags(["x", *flags], "config") == ["x", *wanted]


def test_a_wheel_has_them_in_the_package(elsewhere, monkeypatch):
  package = elsewhere / "site" / "bct_jax"
  shipped = package / "shipped"
  (shipped / "configs").mkdir(parents=True)
  (shipped / "configs" / "tiny.py").touch()
  monkeypatch.setattr(config_files, "_PACKAGE", package)
  found = find_config("configs/tiny.py", "config")
  assert found == str(shipped / "configs" / "tiny.py")
  assert sys.path[0] == str(shipped)


def test_shipped_configs_and_own_ones_of_that_name(tmp_path):
  """A folder `configs` of a user does not hide the shipped ones."""
  own = tmp_path / "configs"
  own.mkdir()
  (own / "base.py").write_text("from configs import tiny\n")
  (own / "mine.py").write_text(
    "from configs import base\n"
    "def get_config():\n  return base.tiny.get_config()\n"
  )
  for name in ("mine", "quickstart"):
    done = subprocess.run(
      [
        *(sys.executable, "-m", "bct_jax.main", "--mode=experimnt"),
        f"--config=configs/{name}.py",
      ],
      cwd=tmp_path,
      env={"PYTHONPATH": str(ROOT), "PATH": "", "JAX_PLATFORMS": "none"},
      capture_output=True,
      text=True,
    )
    assert re.match("error: --mode = 'experimnt'", done.stderr), done.stderr
