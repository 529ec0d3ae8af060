"""Organisms and arms that train an adapter, in whole experiments."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from bct_jax.config import ConfigError, from_dict
from bct_jax.experiment import arms
from bct_jax.experiment import organism as organism_module
from bct_jax.experiment import run as experiment_run
from bct_jax.experiment.eval_rollouts import sample_arms, sample_rows
from bct_jax.experiment.organism import organism_weights
from bct_jax.experiment.plan import make_plan
from bct_jax.interop.local_model import Request
from bct_jax.interop.open_model import open_model
from bct_jax.models.huggingface.load import load_params
from bct_jax.modes import export
from bct_jax.modes import sample as sample_mode
from bct_jax.runtime.weights import load_weights
from configs import tiny

pytestmark = pytest.mark.slow

LORA = {"rank": 4}


def config(folder, organism, merge, arms):
  values = tiny.get_config().to_dict()
  values["model"]["path"] = str(folder)
  values["organism"]["lora"].update(organism)
  values["organism"]["merge_lora"] = merge
  values["arms"] = arms
  values["sampling"]["max_new_tokens"] = 6
  return from_dict(values)


def run(plan, workdir):
  """The result without times, and the text of every eval of every arm."""
  result = experiment_run.run(plan, workdir)
  for arm in result["arms"]:
    arm.pop("seconds")
  return result


def texts(path):
  return [json.loads(x)["text"] for x in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def merged(tiny_folder, tmp_path_factory):
  """An adapter made part of the weights, then an arm of each kind."""
  arms = {
    "full": {},
    "adapter": {"lora": LORA, "optim": {"lr": 1e-2}},
    "other": {"lora": {"rank": 2}, "optim": {"lr": 3e-2}},
  }
  plan = make_plan(config(tiny_folder, LORA, True, arms))
  workdir = tmp_path_factory.mktemp("merged")
  return plan, workdir, run(plan, workdir)


def test_arms_of_both_kinds_on_a_merged_organism(merged):
  plan, workdir, result = merged
  assert [a["rank"] for a in result["arms"]] == [None, 4, 2]
  (organism,) = (workdir / "organisms").iterdir()
  start = texts(organism / "rollouts.jsonl")
  for arm in result["arms"]:
    rollouts = workdir / "arms" / arm["name"] / "rollouts"
    assert texts(rollouts / "step_0.jsonl") == start
    assert texts(rollouts / "step_4.jsonl") != start


def test_saved_weights_give_the_arms_last_answers(merged):
  plan, workdir, _ = merged
  with jax.set_mesh(plan.runtime.mesh):
    for name, adapted in (("adapter", True), ("full", False)):
      folder = workdir / "arms" / name
      weights = load_weights(plan.runtime, folder)
      assert (weights.adapter is not None) == adapted
      rows = sample_rows(plan, weights, name)
      last = texts(folder / "rollouts" / "step_4.jsonl")
      assert [r["text"] for r in rows] == last


def test_arms_answer_together_as_alone(merged, tmp_path, monkeypatch):
  """Adapters over one organism share a batch; other weights have their own."""
  plan, workdir, _ = merged
  values = dataclasses.replace(plan.config.sampling, temperature=1.0)
  config = dataclasses.replace(plan.config, sampling=values)
  folders = [workdir / "arms" / name for name in ("adapter", "full", "other")]
  batches = []
  sample = sample_mode.sample_to_end

  def counted(*arguments, **more):
    batches.append(max(more["arms"]) + 1)
    return sample(*arguments, **more)

  monkeypatch.setattr(sample_mode, "sample_to_end", counted)

  def ask(folders, name):
    out = tmp_path / name
    sample_mode.run_sample(config, folders, ["Who?", "Why?"], None, out, n=2)
    assert [p.name for p in tmp_path.glob(".*")] == []
    return [json.loads(x) for x in out.read_text().splitlines()]

  together = ask(folders, "all.jsonl")
  assert batches == [2, 1] and len(together) == 12
  for folder in folders:
    alone = ask([folder], f"{folder.name}.jsonl")
    found = [row for row in together if row["params"] == str(folder)]
    for a, b in zip(found, alone, strict=True):
      assert abs(a.pop("logprob") - b.pop("logprob")) < 1e-4
      assert a == b
  assert len({row["text"] for row in together}) > 6


def test_other_packages_load_a_folder_of_a_run(merged):
  """By its own config.json, on another mesh, as it was last evaluated."""
  plan, workdir, _ = merged
  config = dataclasses.asdict(plan.config)
  for arm in config["arms"].values():
    del arm["control"], arm["of"]  # which follow from `controls`
  config |= config["arms"]["full"]  # what all arms share
  (workdir / "config.json").write_text(json.dumps({"config": config}))
  for name in ("adapter", "full"):
    folder = workdir / "arms" / name
    model = open_model(folder, fsdp=2)
    assert model.sampling == plan.config.sampling
    assert model.runtime.mesh.shape["data"] == 4
    lines = (folder / "rollouts" / "step_4.jsonl").read_text().splitlines()
    rows = [json.loads(x)["tokens"] for x in lines]
    ids = [p.ids for p in plan.prompts]
    found = model.generate([Request(i, model.sampling) for i in ids])
    assert [list(c.tokens) for (c,) in found] == rows
    scores = model.score(ids, rows)
    for scored, (completion,) in zip(scores, found, strict=True):
      np.testing.assert_allclose(
        scored.logprobs, completion.logprobs, atol=1e-4
      )


def test_export_folds_the_adapter_in(merged, tmp_path):
  plan, workdir, _ = merged
  folder = workdir / "arms" / "adapter"
  export.run_export(plan.config, folder, tmp_path / "out", None)
  runtime = plan.runtime
  with jax.set_mesh(runtime.mesh):
    whole = runtime.merge_adapter(load_weights(runtime, folder)).params
    config, place = runtime.model.config, jax.tree.map(sharding, whole)
    again = load_params(tmp_path / "out", config, whole, place)
    base = runtime.load()
  jax.tree.map(np.testing.assert_array_equal, again, whole)
  q = [p["layers"]["attn"]["q"]["kernel"] for p in (again, base)]
  assert not np.array_equal(*q)


def sharding(x):
  return x.sharding


def test_an_arm_trains_nothing_but_its_adapter(merged):
  plan, workdir, _ = merged
  sizes = {}
  for name in ("adapter", "full"):
    folder = workdir / "arms" / name / "checkpoints"
    files = [p for p in folder.rglob("*") if p.is_file()]
    sizes[name] = sum(p.stat().st_size for p in files)
  assert sizes["adapter"] < sizes["full"] / 2
  with jax.set_mesh(plan.runtime.mesh):
    arm = load_weights(plan.runtime, workdir / "arms" / "adapter")
    (folder,) = (workdir / "organisms").iterdir()
    organism = organism_weights(plan, folder)
  assert organism.adapter is None
  jax.tree.map(np.testing.assert_array_equal, arm.params, organism.params)


def test_adapters_that_no_hub_has_the_base_of(merged, tmp_path):
  plan, workdir, _ = merged

  def refused(params, form="adapter", dtype=None):
    out = tmp_path / "out"
    with pytest.raises(ConfigError) as error:
      export.run_export(plan.config, params, out, dtype, form)
    assert not out.exists()
    return str(error.value)

  assert "over an organism's weights" in refused(workdir / "arms" / "adapter")
  assert "holds all params" in refused(workdir / "arms" / "full")
  assert "the model has none" in refused(None)
  assert "did you mean 'adapter'" in refused(None, "adaptor")
  (organism,) = (workdir / "organisms").iterdir()
  assert "--dtype" in refused(organism, dtype="bfloat16")


@pytest.mark.parity
def test_an_exported_adapter_answers_like_the_organism(merged, tmp_path):
  """By peft over the model folder, and by ours with the adapter folded in."""
  import peft
  import torch
  from parity import load_torch

  plan, workdir, _ = merged
  (organism,) = (workdir / "organisms").iterdir()
  for form in ("adapter", "merged"):
    export.run_export(plan.config, organism, tmp_path / form, None, form)
  base = load_torch(plan.runtime.folder)
  ids = torch.tensor([plan.prompts[0].ids])
  with torch.no_grad():
    untouched = base(ids).logits
    whole = load_torch(tmp_path / "merged")(ids).logits
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")(ids)
  assert (whole - untouched).abs().max() > 1e-3
  assert (whole - adapted.logits).abs().max() < 1e-4


def test_an_arm_goes_on_with_the_organisms_adapter(tiny_folder, tmp_path):
  arms = {"still": {"lora": LORA, "optim": {"lr": 0.0}}, "on": {"lora": LORA}}
  plan = make_plan(config(tiny_folder, LORA, False, arms))
  run(plan, tmp_path)
  (folder,) = (tmp_path / "organisms").iterdir()
  with jax.set_mesh(plan.runtime.mesh):
    organism = load_weights(plan.runtime, folder)
    still, on = (
      load_weights(plan.runtime, tmp_path / "arms" / n) for n in ("still", "on")
    )
    own = plan.runtime.load()
  jax.tree.map(np.testing.assert_array_equal, own, organism.params)
  jax.tree.map(np.testing.assert_array_equal, own, on.params)
  jax.tree.map(np.testing.assert_array_equal, still.adapter, organism.adapter)
  moved = jax.tree.map(np.array_equal, on.adapter, organism.adapter)
  assert not any(jax.tree.leaves(moved))


def test_interrupted_adapters_end_alike(merged, tmp_path, monkeypatch):
  plan, _, want = merged

  def interrupt(at):
    def sample(plan, weights, name, partial, kept):
      rows = sample_arms(plan, weights, name, partial)
      if name == at:
        raise KeyboardInterrupt
      return rows

    monkeypatch.setattr(arms, "sample_arms", sample)
    monkeypatch.setattr(
      organism_module,
      "sample_rows",
      lambda p, w, *more: sample(p, [w], *more)[0],
    )

  for at in ("gate", "full eval 4", "adapter eval 2", "adapter eval 4"):
    interrupt(at)
    with pytest.raises(KeyboardInterrupt):
      experiment_run.run(plan, tmp_path)
  interrupt("never")
  assert run(plan, tmp_path) == want


def test_an_adapter_of_another_model_is_refused(merged, tiny_folder, tmp_path):
  plan, workdir, _ = merged
  other = dataclasses.replace(plan.runtime)
  other.__dict__["model_hash"] = "another"
  with pytest.raises(ConfigError, match="over another model"):
    load_weights(other, workdir / "arms" / "adapter")
  with pytest.raises(ConfigError, match="organisms/HASH or arms/NAME"):
    load_weights(plan.runtime, tmp_path)


@pytest.mark.parametrize(
  ("organism", "arm", "message"),
  [
    (LORA, {"lora": {"rank": 8}}, "arms.a.lora = .*goes on training"),
    (LORA, {}, "organism.merge_lora=True"),
    ({}, {"lora": {"rank": -1}}, "arms.a.lora.rank = -1"),
    ({}, {"lora": {"rank": 4, "alpha": 0.0}}, "arms.a.lora.alpha"),
    ({}, {"lora": {"rank": 4, "targets": "(q"}}, "not a regular expression"),
    ({}, {"lora": {"rnk": 4}}, "did you mean 'rank'"),
  ],
)
def test_wrong_adapter_configs(tiny_folder, organism, arm, message):
  with pytest.raises(ConfigError, match=message):
    config(tiny_folder, organism, False, {"a": arm})


def test_targets_are_checked_before_any_training(tiny_folder):
  arms = {"a": {"lora": {"rank": 4, "targets": "query"}}}
  with pytest.raises(ValueError, match="arms.a.lora.targets = 'query'"):
    make_plan(config(tiny_folder, {}, True, arms))
