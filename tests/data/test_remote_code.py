"""No code of a model folder is run, whatever standard input says."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from runs import ROOT, without_torch

LOAD = """
import sys
from pathlib import Path
from bct_jax.data.chat import Chat
try:
  chat = Chat(Path(sys.argv[1]), 10**6)
  print(len(chat.tokenizer))
except ValueError as e:
  print(e)
"""
# What would say that it was run, however it is.
CODE = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path({canary!r}).write_text("run")
class Evil(PreTrainedTokenizerFast):
  pass
"""


@pytest.mark.parametrize("known", [True, False])
def test_code_of_a_folder_is_never_run(tiny_folder, tmp_path, known):
  folder = shutil.copytree(tiny_folder, tmp_path / "model")
  canary = tmp_path / "canary"
  (folder / "evil.py").write_text(CODE.format(canary=str(canary)))
  path = folder / "tokenizer_config.json"
  config = json.loads(path.read_text())
  config["auto_map"] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
  if not known:
    config["tokenizer_class"] = "Evil"
  path.write_text(json.dumps(config))
  done = subprocess.run(
    [sys.executable, "-c", LOAD, str(folder)],
    env={**os.environ, **without_torch(ROOT)},
    input="y\ny\ny\n",
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  assert not canary.exists()
  assert "[y/N]" not in done.stdout + done.stderr
  (line,) = done.stdout.splitlines()
  if known:
    assert int(line) > 100
  else:
    assert line.startswith(f"{folder}: no readable tokenizer: ")
    assert "auto_map" in line and "never run" in line
