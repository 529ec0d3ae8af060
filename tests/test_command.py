"""The command bct-jax, which is python -m bct_jax."""

import ast
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
SNAPSHOTS = Path(__file__).parent / "snapshots"


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


@pytest.mark.parametrize(
  ("name", "module"),
  [("command", "bct_jax"), ("run", "bct_jax.main"), ("sweep", "bct_jax.sweep")],
)
def test_help_is_the_snapshot(name, module, tmp_path):
  """Set BCT_JAX_WRITE_SNAPSHOTS=1 to write them again, and read the diff."""
  code, out, err = forked("--help", cwd=tmp_path, module=module)
  assert (code, err) == (0, "")
  if os.environ.get("BCT_JAX_WRITE_SNAPSHOTS"):
    (SNAPSHOTS / f"help_{name}.txt").write_text(out, "utf-8")
  assert out == (SNAPSHOTS / f"help_{name}.txt").read_text("utf-8")
  assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
  ("name", "module"), [("run", "main"), ("sweep", "sweep/__main__")]
)
def test_help_has_examples_first_and_every_flag(name, module):
  lines = (SNAPSHOTS / f"help_{name}.txt").read_text("utf-8").splitlines()
  assert lines[0].startswith("usage: ")
  examples, flags = (
    [i for i, line in enumerate(lines) if line.startswith(f"  {start}")]
    for start in ("python -m", "--")
  )
  assert examples and max(examples) < min(flags)
  tree = ast.parse((ROOT / f"bct_jax/{module}.py").read_text("utf-8"))
  defined = {
    str(found.value)
    for node in ast.walk(tree)
    if isinstance(node, ast.Call) and "DEFINE_" in ast.unparse(node.func)
    for found in node.args[:1]
    if isinstance(found, ast.Constant)
  }
  # Flags of one kind, whose names a loop goes over.
  defined |= {
    row.elts[0].value
    for node in ast.walk(tree)
    if isinstance(node, ast.For) and "DEFINE_" in ast.unparse(node)
    for row in node.iter.elts
  }
  shown = {lines[i].strip(" -").split("=")[0] for i in flags}
  assert shown == defined - ({"config"} if name == "sweep" else set())


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--workdir="], "--workdir: a path is needed"),
    (["--workdir=w", "--config.arms.low.train.sed=1"], "'seed'"),
    (["--mode=eval", "--out= "], "--out: a path is needed"),
    (["--mode=sample", "--resume=latest_good"], "only with --mode=experiment"),
    (["--topology=v5e:4x4", "--workdir=w"], "only with --mode=dry_run"),
    (["--mode=eval", f"--out={__file__}"], f"{__file__}: is there already"),
    (["--mode=sample", f"--out={__file__}"], f"{__file__}: is there already"),
  ],
)
def test_a_bad_flag_is_one_line(flags, message, tmp_path):
  config = f"--config={ROOT / 'configs/quickstart.py'}"
  code, _, err = forked(config, *flags, cwd=tmp_path, module="bct_jax.main")
  assert code == 2 and message in err and len(err.splitlines()) == 1, err
  assert not [*tmp_path.iterdir()]


def test_debug_shows_where_the_users_own_code_fails(tmp_path):
  own = tmp_path / "own.py"
  own.write_text("def get_config():\n  return {}['nothing here']\n")
  flags = [f"--config={own}", "--workdir=w"]
  code, _, plain = forked(*flags, cwd=tmp_path, module="bct_jax.main")
  assert code == 2 and "Traceback" not in plain
  code, _, err = forked(*flags, "--debug", cwd=tmp_path, module="bct_jax.main")
  assert code == 2 and err.endswith(plain)
  assert 'own.py", line 2, in get_config' in err


def test_a_sweep_file_may_be_a_word_of_its_own(tmp_path):
  code, _, err = forked(
    "--sweep", "no.py", cwd=tmp_path, module="bct_jax.sweep"
  )
  assert code == 2 and "--sweep=no.py: there is no such file" in err


def test_importing_the_package_starts_nothing():
  code = "import bct_jax, sys; print({'jax', 'ml_collections', 'numpy'} & "
  code += "set(sys.modules), bct_jax.summary.__name__)"
  said = subprocess.check_output([sys.executable, "-c", code], text=True)
  assert said.strip() == "set() bct_jax.evals.summary"
