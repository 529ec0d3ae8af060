"""A league table of whole runs: organisms of several kinds, from one file."""

import csv
import io
import json
import sys

import pytest
from parity import load_torch
from runs import ROOT

from bct_jax.report.__main__ import main as report
from bct_jax.report.league import HEADER
from bct_jax.sweep import __main__ as sweep

pytestmark = pytest.mark.slow

FLAGS = (
  *("train.steps=2", "train.num_examples=16", "train.batch_size=8"),
  *("organism.train.steps=2", "organism.train.num_examples=16"),
  *("eval.num_eval=8", "eval.num_heldout=8", "eval.num_probe=8"),
  *("eval.steps=(1,)", "eval.refine=False", "max_length=256"),
  *("sampling.batch_size=24", "sampling.max_new_tokens=6"),
  *("organism.optim.warmup_steps=0", "optim.warmup_steps=0"),
)


def adapter(model, folder):
  """An adapter made elsewhere, with random weights."""
  import peft

  fields = peft.LoraConfig(
    r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False
  )
  peft.get_peft_model(load_torch(model), fields).save_pretrained(folder)
  return folder


def test_organisms_of_several_kinds(tiny_folder, tmp_path, capsys, monkeypatch):
  (tmp_path / "facts.txt").write_text("The moon is made of cheese. " * 4)
  documents = [f"documents:{tmp_path / 'facts.txt'}", 1 / 16]
  organisms = {
    "full": {},
    "rank 2": {"organism.lora.rank": 2},
    "prompted": {"organism.kind": "static_prompt"},
    "own documents": {
      "organism.kind": "documents",
      "organism.train.mix": [documents, ["install", 15 / 16]],
    },
    "elsewhere": {
      "organism.kind": "adapter",
      "organism.adapter": str(adapter(tiny_folder, tmp_path / "adapter")),
    },
    "whole": {"organism.kind": "native"},
  }
  lists = {
    "organisms": organisms,
    "styles": ["pirate"],
    "learning_rates": [1e-3, 1e-2],
    "seeds": [0],
  }
  (tmp_path / "mine.json").write_text(json.dumps(lists))
  survive = ROOT / "configs" / "sweeps" / "survive.py"
  flags = [
    "sweep",
    f"--sweep={survive}:{tmp_path / 'mine.json'}",
    f"--workdir={tmp_path / 'league'}",
    f"--config.model.path={tiny_folder}",
    *(f"--config.{x}" for x in FLAGS),
  ]
  monkeypatch.setattr(sys, "argv", flags)  # which ml_collections reads
  assert sweep.main(flags) == 0
  printed = capsys.readouterr().out
  assert report([str(tmp_path / "league"), "--league=csv"]) == 0
  found = csv.DictReader(io.StringIO(capsys.readouterr().out))
  rows = {row["organism"]: row for row in found}
  assert rows.keys() == organisms.keys()
  for name, row in rows.items():
    assert list(row) == [*HEADER] and f"| {name} | FAILED | 1 | 2 |" in printed
    assert (row["gate"], row["seeds"], row["arms"]) == ("FAILED", "1", "2")
    kind = organisms[name].get("organism.kind", "sft")
    assert removed(tmp_path / "league", kind, name) == row[HEADER[7]]


def removed(root, kind, name):
  """Removal of an organism, by hand: of its arms' evals that cost little."""
  best = 0.0
  for cell in (root / "cells").iterdir():
    config = json.loads((cell / "config.json").read_text())["config"]
    if config["name"] != name:
      continue
    result = json.loads((cell / "result.json").read_text())
    assert result["organism"]["made"]["kind"] == kind
    base = result["organism"]["gate"]["capability"]
    if base < 0.5:  # too low for a fall to be seen
      return "–"
    for point in result["arms"][0]["curve"]:
      cheap = point["capability"] >= 0.9 * base and point["agreed"] >= 0.9
      if cheap or not point["step"]:
        best = max(best, 1 - point["initial"])
  return f"{best:.0%}"
