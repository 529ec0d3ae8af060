"""A chat template that prints the day: a run has one, however long it takes."""

import json
import shutil

import pytest
from chat_folders import make_dated

from bct_jax.data import template
from bct_jax.infra import files, ledger
from bct_jax.interop.open_model import config_of_run
from bct_jax.modes import notebook
from configs import tiny

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
  return make_dated(tiny_folder, tmp_path_factory.mktemp("dated") / "m")


def small(folder, **model):
  c = tiny.get_config()
  c.model.path = str(folder)
  c.model.update(model)
  c.arms = {"a": {}, "b": {}}
  c.train.steps, c.organism.train.steps, c.eval.steps = 1, 1, ()
  c.eval.num_eval = c.eval.num_heldout = c.eval.num_probe = 2
  c.sampling.max_new_tokens, c.gate.enforce = 4, False
  return c


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "whole"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(template, "today", lambda: "2026-02-27")
    notebook.run(small(folder), workdir)
  return workdir


def test_a_run_says_its_day_and_keeps_it(folder, whole):
  """Resumed on other days it is in test_faults.py."""
  # The day is what env.json, other packages and the next command read.
  env = json.loads((whole / "env.json").read_text())
  assert env["chat_template"] == {"date": "2026-02-27"}
  model = config_of_run(whole / "arms" / "a").model
  assert model.template_date == "2026-02-27"
  with pytest.raises(
    ValueError, match="template_date: '2026-02-27' -> '2026-0"
  ):
    notebook.run(small(folder, template_date="2026-03-01"), whole)


def test_a_new_run_has_its_own_day(folder, whole, tmp_path, monkeypatch):
  """So another organism, and a done arm of the other one is not taken."""
  monkeypatch.setattr(template, "today", lambda: "2026-02-28")
  workdir = tmp_path / "run"
  shutil.copytree(whole / "arms" / "a", workdir / "arms" / "a")
  with pytest.raises(
    ValueError, match="arms/a is done, and began from the org"
  ):
    notebook.run(small(folder), workdir)
  arm = workdir / "arms" / "a"
  with ledger.tracking(arm):  # else it were damage, and made again
    files.write_json(arm / "done.json", {"organism": "x"})
  with pytest.raises(ValueError, match="the organism x; this run's is now"):
    notebook.run(small(folder), workdir)
