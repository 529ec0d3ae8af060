"""Tests of what env.json says of how a run was begun."""

from pathlib import Path

import pytest

import bct_jax
from bct_jax.experiment import environment

PACKAGE = Path(bct_jax.__file__).parent


@pytest.mark.parametrize(
  "script, said",
  [
    (PACKAGE / "main.py", "python -m bct_jax.main '--workdir=/a b'"),
    (PACKAGE / "sweep/__main__.py", "python -m bct_jax.sweep '--workdir=/a b'"),
    (PACKAGE / "__main__.py", "python -m bct_jax '--workdir=/a b'"),
    ("/usr/bin/bct-jax", "bct-jax '--workdir=/a b'"),
    ("/lib/pytest/__main__.py", None),  # a notebook, a test, another's script
    ("/home/somebody/main.py", None),
  ],
)
def test_the_command_is_said_only_where_it_is_ours(monkeypatch, script, said):
  monkeypatch.setattr("sys.argv", [str(script), "--workdir=/a b"])
  assert environment._command() == said
