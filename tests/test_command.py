"""The command bct-jax, which is python -m bct_jax."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import fork_server
import pytest

import bct_jax
from bct_jax.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[1]


def forked(*flags, cwd, module="bct_jax"):
  """The same without a Python of its own, which would import JAX again."""
  env = {**os.environ, "JAX_PLATFORMS": "none"}
  process = fork_server.start(module, flags, env, cwd)
  out, err = process.communicate(timeout=120)
  return process.returncode, out, err


def command(*flags, cwd=ROOT, module="bct_jax"):
  env = {**os.environ, "JAX_PLATFORMS": "none", "PYTHONPATH": str(ROOT)}
  return subprocess.run(
    [sys.executable, "-m", module, *flags],
    cwd=cwd,
    env=env,
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_every_command_is_a_module():
  for name, (module, what) in COMMANDS.items():
    assert importlib.util.find_spec(module), name
    assert what


def test_help_has_a_line_for_each(capsys):
  assert main(["bct-jax", "--help"]) == 0
  lines = capsys.readouterr().out.splitlines()
  for name, (_, what) in COMMANDS.items():
    assert [line for line in lines if line.split()[:1] == [name]], name
    assert any(line.endswith(what) for line in lines)
  assert max(map(len, lines)) < 80
  assert main(["bct-jax"]) == 2
  assert "usage" in capsys.readouterr().err


def test_version(capsys):
  assert main(["bct-jax", "--version"]) == 0
  assert capsys.readouterr().out == f"bct_jax {bct_jax.__version__}\n"
  done = command("--version", module="bct_jax.main")
  assert (done.returncode, done.stdout) == (
    0,
    f"bct_jax {bct_jax.__version__}\n",
  )


def test_an_unknown_command_is_one_line(capsys):
  assert main(["bct-jax", "reprot"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ") and "did you mean 'report'?" in line


@pytest.mark.parametrize(
  ("flags", "code", "message"),
  [
    (["run", "--mode=experimnt"], 2, "mean 'experiment'"),
    (["sweep", "--sweep=no.py"], 2, "no such file"),
    (["report", "--no"], 2, "RUN"),
    (["linear"], 2, "--workdir"),
    (["demo", "--help"], 0, ""),
  ],
  ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_commands_are_the_modules(flags, code, message, tmp_path):
  done = forked(*flags, cwd=tmp_path)
  assert done[0] == code and message in done[2], done
  module = COMMANDS[flags[0]][0]
  assert forked(*flags[1:], cwd=tmp_path, module=module) == done


def test_importing_the_package_starts_nothing():
  code = "import bct_jax, sys; print({'jax', 'ml_collections', 'numpy'} & "
  code += "set(sys.modules), bct_jax.summary.__name__)"
  said = subprocess.check_output([sys.executable, "-c", code], text=True)
  assert said.strip() == "set() bct_jax.evals.summary"
