"""An organism made of documents, and arms of a mixture, in whole runs."""

import json
import signal

import pytest
from runs import comparable, run, start_to_kill, wait_for
from workers import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


def test_killed_and_in_two_processes_as_in_one(tiny_folder, tmp_path):
  lines = tmp_path / "documents.jsonl"
  lines.write_text(
    "".join(f'{{"text": "Box {i} is {i * 7}.\\n"}}\n' for i in range(16))
  )
  documents = f'("documents:{lines}",'
  flags = (
    "--config.organism.kind=documents",
    f'--config.organism.train.mix=({documents}0.75),("install",0.25))',
    f'--config.train.mix=(("train",0.75),{documents}0.25))',
  )
  code, _, err = run(tmp_path / "whole", tiny_folder, *flags)
  assert code == 0, err
  assert "documents: nothing before the text" in err
  (organism,) = (tmp_path / "whole" / "organisms").iterdir()
  made = json.loads((organism / "made.json").read_text())
  assert made["kind"] == "documents" and made["samples"] == 16
  assert made["mix"] == {f"documents:{lines}": 0.75, "install": 0.25}
  audit = (organism / "mask_audit.txt").read_text()
  assert "\nB⟦o⟧" in audit  # the loss is on all tokens but the first

  killed = start_to_kill(tmp_path / "killed", tiny_folder, *flags)
  wait_for(killed, tmp_path / "killed", "arms/high/checkpoints/2")
  killed.send_signal(signal.SIGKILL)
  killed.communicate()
  code, _, err = run(tmp_path / "killed", tiny_folder, *flags)
  assert code == 0, err
  assert comparable(tmp_path / "killed") == comparable(tmp_path / "whole")

  more = (f"--workdir={tmp_path / 'two'}", f"--config.model.path={tiny_folder}")
  two = Cluster.start(2, *flags, *more).end()
  assert [code for code, _, _ in two] == [0, 0], two
  assert comparable(tmp_path / "two", False) == comparable(
    tmp_path / "whole", False
  )
