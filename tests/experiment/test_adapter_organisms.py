"""An adapter that peft trained, as an organism: gated, trained, exported."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from parity import load_torch
from test_lora_runs import texts

from bct_jax.config import ConfigError, from_dict
from bct_jax.experiment import keep
from bct_jax.experiment import run as experiment_run
from bct_jax.experiment.eval_rollouts import sample_rows
from bct_jax.experiment.organism import (
  make_organism,
  organism_weights,
  provenance,
)
from bct_jax.experiment.plan import make_plan
from bct_jax.interop.open_model import open_model
from bct_jax.models import demo
from bct_jax.modes import export
from bct_jax.runtime.weights import load_weights
from configs import tiny

pytestmark = [pytest.mark.slow, pytest.mark.parity]

ARMS = {"still": {"optim": {"lr": 0.0}}, "on": {"optim": {"lr": 1e-2}}}


def config(model, adapter, merge=False, arms=ARMS, **organism):
  values = tiny.get_config().to_dict()
  values["model"]["path"] = str(model)
  values["organism"] |= {
    "kind": "adapter",
    "adapter": str(adapter),
    "merge_lora": merge,
    **organism,
  }
  values["arms"] = arms
  values["sampling"]["max_new_tokens"] = 6
  return from_dict(values)


def torch_logits(model, ids):
  import torch

  with torch.no_grad():
    return model(torch.tensor([list(ids)])).logits[0].numpy()


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory):
  """An adapter that peft trained a little, and its model in torch."""
  import peft
  import torch

  torch.manual_seed(0)
  fields = peft.LoraConfig(
    r=4,
    target_modules=["q_proj", "v_proj", "down_proj"],
    rank_pattern={"v_proj": 2},
    alpha_pattern={"down_proj": 24},
    task_type="CAUSAL_LM",
  )
  model = peft.get_peft_model(load_torch(tiny_folder), fields)
  optimizer = torch.optim.AdamW(
    [p for p in model.parameters() if p.requires_grad], lr=3e-2
  )
  ids = torch.randint(0, 200, (4, 24))
  for _ in range(8):
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
  folder = tmp_path_factory.mktemp("of peft") / "adapter"
  model.save_pretrained(folder)
  return folder, model.eval()


@pytest.fixture(scope="module")
def finished_run(tiny_folder, trained, tmp_path_factory):
  plan = make_plan(config(tiny_folder, trained[0]))
  workdir = tmp_path_factory.mktemp("adapter")
  result = experiment_run.run(plan, workdir)
  (organism,) = (workdir / "organisms").iterdir()
  return plan, workdir, result, organism


def our_logits(plan, weights):
  """Log-probabilities of a completion of the first prompt, by the scorer."""
  prompt, rest = list(plan.prompts[0].ids), list(range(40, 60))
  with jax.set_mesh(plan.runtime.mesh):
    (scored,) = plan.runtime.scorer(weights, [prompt], [rest], lambda n: None)
  return prompt, rest, np.array(scored.logprobs)


def check_equals_torch(plan, weights, theirs):
  prompt, rest, found = our_logits(plan, weights)
  logits = torch_logits(theirs, prompt + rest)
  want = jax.nn.log_softmax(logits)[len(prompt) - 1 : -1]
  np.testing.assert_allclose(found, want[np.arange(len(rest)), rest], atol=1e-4)


def test_the_organism_is_what_peft_trained(finished_run, trained):
  plan, _, result, organism = finished_run
  with jax.set_mesh(plan.runtime.mesh):
    for folder in (organism, trained[0]):
      check_equals_torch(plan, load_weights(plan.runtime, folder), trained[1])
  made = result["organism"]["made"]
  assert made["kind"] == "adapter" and made["rank"] == 4
  assert not made["merged"] and made["adapter"] == str(trained[0])
  assert made["adapter_base"] == str(plan.runtime.folder)


def test_the_gate_compares_with_the_model_without_it(finished_run):
  plan, _, result, organism = finished_run
  base = texts(organism / "base_rollouts.jsonl")
  with jax.set_mesh(plan.runtime.mesh):
    rows = sample_rows(plan, load_weights(plan.runtime, None), "model")
  assert base == [r["text"] for r in rows]
  assert base != texts(organism / "rollouts.jsonl")
  assert "capability" in result["organism"]["gate"]["base"]


def test_arms_train_the_adapter_and_nothing_else(finished_run):
  plan, workdir, result, organism = finished_run
  assert [arm["rank"] for arm in result["arms"]] == [4, 4]
  with jax.set_mesh(plan.runtime.mesh):
    begin, still, on = (
      load_weights(plan.runtime, folder)
      for folder in (organism, workdir / "arms/still", workdir / "arms/on")
    )
    jax.tree.map(np.testing.assert_array_equal, on.params, begin.params)
    jax.tree.map(np.testing.assert_array_equal, still.adapter, begin.adapter)
  moved = jax.tree.map(np.array_equal, on.adapter, begin.adapter)
  assert not any(jax.tree.leaves(moved))
  v = on.adapter["layers"]["attn"]["v"]  # of rank 2, filled up to 4
  assert v["lora_a"].shape[-1] == 4 and not np.any(v["lora_a"][..., 2:])
  assert not np.any(v["lora_b"][:, 2:])


def test_what_an_arm_trained_loads_in_peft(finished_run, tmp_path):
  import peft

  plan, workdir, _, _ = finished_run
  arm = workdir / "arms/on"
  export.run_export(plan.config, arm, tmp_path / "out", None, "adapter")
  base = load_torch(plan.runtime.folder)
  theirs = peft.PeftModel.from_pretrained(base, tmp_path / "out")
  with jax.set_mesh(plan.runtime.mesh):
    weights = load_weights(plan.runtime, arm)
    again = load_weights(plan.runtime, tmp_path / "out")
  check_equals_torch(plan, weights, theirs)
  jax.tree.map(np.testing.assert_array_equal, weights.adapter, again.adapter)


def test_other_packages_open_an_adapter_by_its_folder(
  finished_run, trained, tiny_folder, tmp_path
):
  plan = finished_run[0]
  with jax.set_mesh(plan.runtime.mesh):
    want = our_logits(plan, load_weights(plan.runtime, trained[0]))
  for options in ({}, {"base": str(tiny_folder)}):
    model = open_model(trained[0], **options)
    (scored,) = model.score([want[0]], [want[1]])
    np.testing.assert_allclose(scored.logprobs, want[2], atol=1e-4)
  with pytest.raises(ConfigError, match="is no adapter"):
    open_model(tiny_folder, base="demo:tiny")
  nameless = shutil.copytree(trained[0], tmp_path / "nameless")
  fields = json.loads((nameless / "adapter_config.json").read_text())
  fields["base_model_name_or_path"] = None
  (nameless / "adapter_config.json").write_text(json.dumps(fields))
  with pytest.raises(ConfigError, match="give `base`"):
    open_model(nameless)
  with pytest.raises(demo.ModelSourceError, match="has an adapter"):
    demo.resolve(trained[0])


def test_a_merged_adapter_and_what_names_the_organism(
  finished_run, trained, tiny_folder, tmp_path
):
  plan, workdir, _, organism = finished_run
  moved = shutil.copytree(trained[0], tmp_path / "moved")
  assert provenance(make_plan(config(tiny_folder, moved))) == provenance(plan)
  arms = {"full": {"train": {"steps": 1}}, "low": {"lora": {"rank": 2}}}
  merged = make_plan(config(tiny_folder, moved, True, arms))
  assert merged.config.arms["low"].lora.rank == 2
  with jax.set_mesh(merged.runtime.mesh):
    folder, _ = make_organism(merged, tmp_path / "run")
    weights = organism_weights(merged, folder)
  assert folder.name != organism.name and weights.adapter is None
  check_equals_torch(merged, weights, trained[1])
  # Its copy outlives the adapter's own folder, and is mended from it.
  copy = folder / "adapter" / "adapter_model.safetensors"
  whole = copy.read_bytes()
  copy.write_bytes(whole[:-8])
  with pytest.raises(ValueError, match="cut short"):
    load_weights(merged.runtime, folder)
  with jax.set_mesh(merged.runtime.mesh):
    make_organism(merged, tmp_path / "run")
  assert copy.read_bytes() == whole
  other = dataclasses.replace(merged.runtime)
  other.__dict__["model_hash"] = "another"
  with pytest.raises(ConfigError, match="over another model"):
    load_weights(other, folder)


def test_a_copy_that_is_not_needed_goes_and_comes_again(finished_run, tmp_path):
  plan, workdir, _, organism = finished_run
  run = shutil.copytree(workdir, tmp_path / "run")
  copy = run / "organisms" / organism.name / "adapter"
  assert copy not in keep.removable(run, "weights")
  keep.remove(run, keep.removable(run, "results"))
  assert not copy.exists()
  with pytest.raises(ConfigError, match="its weights were removed"):
    load_weights(plan.runtime, copy.parent)
  with jax.set_mesh(plan.runtime.mesh):
    folder, _ = make_organism(plan, run)
    again = load_weights(plan.runtime, folder)
    whole = load_weights(plan.runtime, organism)
  jax.tree.map(np.testing.assert_array_equal, again.adapter, whole.adapter)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"kind": "native"}, "needs the kind 'adapter'"),
    ({"path": ""}, "organism.adapter: must not be empty"),
    ({"lora": {"rank": 4}}, "organism.lora.rank = 4"),
    ({"arms": {"a": {"lora": {"rank": 4}}}}, "arms.a.lora.rank = 4.*its own"),
    ({"arms": {"a": {"train": {"adapter_seed": 1}}}}, "go on with its adapter"),
  ],
)
def test_fields_that_do_not_go_together(changes, message):
  if "lora" in changes:
    lora = tiny.get_config().organism.lora.to_dict()
    changes["lora"] = {**lora, **changes["lora"]}
  with pytest.raises(ConfigError, match=message):
    config("demo:tiny", changes.pop("path", "folder"), **changes)
