"""The day that chat templates print is one for all cells of a sweep."""

import types

import pytest

from bct_jax.infra import files
from bct_jax.sweep import run
from bct_jax.sweep.cells import make_cells, values
from configs import tiny


@pytest.fixture
def plan_on(monkeypatch, tmp_path):
  """Plans the cells of a sweep on a day; returns the days of their configs."""
  config = tiny.get_config()
  config.arms = {}
  cells = make_cells(config.to_dict(), values("optim.lr", 1e-4, 1e-5))

  def plan(day, prints=True):
    planned = []

    def plan_of(group):
      planned.append([c.config.model.template_date for c in group])
      template = types.SimpleNamespace(prints_date=prints, date=day)
      chat = types.SimpleNamespace(template=template)
      return types.SimpleNamespace(runtime=types.SimpleNamespace(chat=chat))

    monkeypatch.setattr(run, "plan_of", plan_of)
    run._dated_plan(cells, tmp_path)
    return planned[-1]

  return plan


def test_cells_that_begin_later_have_the_day_of_the_first(plan_on, tmp_path):
  assert plan_on("2026-02-27", prints=False) == [None, None]
  assert not (tmp_path / "template_date.json").exists()
  assert plan_on("2026-02-27") == ["2026-02-27"] * 2
  assert plan_on("2026-02-28") == ["2026-02-27"] * 2
  assert files.read_json(tmp_path / "template_date.json") == "2026-02-27"
