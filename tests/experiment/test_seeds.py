"""Four seeds, each of which moves one thing that is drawn at random."""

import dataclasses
import json

import pytest
from experiments import config, shared_runtimes

from bct_jax.config import ConfigError
from bct_jax.experiment.arms import _read_rows
from bct_jax.experiment.organism import provenance
from bct_jax.experiment.plan import make_plan
from bct_jax.infra import files
from bct_jax.models import lora
from bct_jax.models.lora import Weights
from bct_jax.sweep.cells import SEEDS, cell_name, cross_seeds, make_cells
from configs import tiny


@pytest.fixture(scope="module", autouse=True)
def shared():
  with shared_runtimes():
    yield


ADAPTER = tiny.get_config().lora.to_dict()


class Begun(Exception):
  """Says the seed that an adapter is made from."""


def begin(shapes, seed):
  raise Begun(seed)


def drawn(folder, **fields):
  """What a run draws, in a form that tells two draws apart."""
  base = config(folder, {"a": {"lora": {"rank": 2}}})
  for field, seed in fields.items():
    if field == "organism":
      part = dataclasses.replace(base.organism.train, seed=seed)
      base = dataclasses.replace(
        base, organism=dataclasses.replace(base.organism, train=part)
      )
    elif field == "eval":
      part = dataclasses.replace(base.eval, seed=seed)
      base = dataclasses.replace(base, eval=part)
    else:
      name = {"arm": "seed", "adapter": "adapter_seed"}[field]
      arm = base.arms["a"]
      part = dataclasses.replace(arm.train, **{name: seed})
      arm = dataclasses.replace(arm, train=part)
      base = dataclasses.replace(base, arms={"a": arm})
  made = make_plan(base)
  with pytest.raises(Begun) as adapter:
    made.runtime.init_state(Weights(None), base.arms["a"])
  return {
    "organism": files.digest(provenance(made)),
    "arm": made.arms["a"].hash,
    "adapter": str(adapter.value),
    "eval": files.digest([p.example.messages for p in made.prompts]),
  }


def test_each_seed_moves_its_draw_alone(tiny_folder, monkeypatch):
  monkeypatch.setattr(lora, "init_adapter", begin)
  plain = drawn(tiny_folder)
  for name in SEEDS:
    other = drawn(tiny_folder, **{name: 7})
    moved = {key for key in plain if plain[key] != other[key]}
    # The arm's seed is the adapter's too, as long as that has none.
    assert moved == ({"arm", "adapter"} if name == "arm" else {name})
  both = drawn(tiny_folder, arm=7, adapter=0)
  assert {key for key in plain if plain[key] != both[key]} == {"arm"}


def test_hashes_of_runs_without_an_adapter_seed_stay(tiny_folder):
  made = config(tiny_folder, {"a": {}, "b": {"train": {"seed": 4}}})
  train = made.arms["b"].train
  assert "adapter_seed" not in train.facts() and train.seed_of_adapter == 4
  own = dataclasses.replace(train, adapter_seed=0)
  assert own.facts() == {**train.facts(), "adapter_seed": 0}
  assert own.seed_of_adapter == 0


def test_cells_cross_seeds():
  base = tiny.get_config()
  base.arms = {}
  base.lora.rank = 2
  crossed = cross_seeds(organism=2, arm=[5, 6], adapter=1, eval=[3])
  made = make_cells(base.to_dict(), crossed)
  assert [c.name for c in made] == [
    f"organism{o}-arm{a}-adapter0-eval3" for o in (0, 1) for a in (5, 6)
  ]
  last = made[-1].config
  arm = last.arms[made[-1].name].train
  seeds = (last.organism.train.seed, arm.seed, arm.adapter_seed)
  assert (*seeds, last.eval.seed) == (1, 6, 0, 3)
  assert cell_name(cross_seeds(arm=2)[1]) == "arm1"
  with pytest.raises(ConfigError, match="did you mean 'adapter'"):
    cross_seeds(adaptr=2)
  with pytest.raises(ConfigError, match="arm = 0 has no seed"):
    cross_seeds(arm=0)


@pytest.mark.parametrize(
  ("arm", "changes", "message"),
  [
    ({"train": {"adapter_seed": 1}}, {}, "it trains no adapter"),
    (
      {"train": {"adapter_seed": 1}, "lora": {"rank": 2}},
      {"organism__lora": {**ADAPTER, "rank": 2}, "organism__merge_lora": False},
      "arms go on with its adapter",
    ),
  ],
)
def test_a_seed_of_no_adapter_is_refused(tiny_folder, arm, changes, message):
  with pytest.raises(
    ConfigError, match=f"arms.a.train.adapter_seed.*{message}"
  ):
    config(tiny_folder, {"a": arm}, **changes)


def test_rollouts_of_another_eval_seed_are_refused(tiny_folder, tmp_path):
  """Two runs share an organism, whose rollouts are of the last one's evals."""
  made = make_plan(config(tiny_folder, {"a": {}}))
  rows = [{"prompt": list(p.example.messages)} for p in made.prompts]
  path = tmp_path / "rollouts.jsonl"
  files.write_lines(path, rows)
  assert len(_read_rows(made, path)) == len(rows)
  other = dataclasses.replace(made.config.eval, seed=9)
  other = make_plan(dataclasses.replace(made.config, eval=other))
  with pytest.raises(ConfigError, match="eval.seed = 9.*run this command"):
    _read_rows(other, path)
  path.write_text(json.dumps(rows[0]) + "\n")
  with pytest.raises(ConfigError, match="are not those"):
    _read_rows(made, path)
