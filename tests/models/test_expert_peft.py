"""Adapters of experts against `peft`: what it writes, and what it reads."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import long_but
from helpers import HYBRID, init_params, make_mesh, random_adapter
from parity import load, load_torch
from test_families import BASE, FAMILIES, save_random
from test_load_peft import assert_gradients, make_adapter, read
from test_lora import logits

from bct_jax.config import LoraConfig
from bct_jax.models import lora
from bct_jax.models.decoder import Decoder
from bct_jax.models.huggingface import load_peft
from bct_jax.models.huggingface.adapter_folder import TENSORS
from bct_jax.models.huggingface.peft import (
  _selection,
  adapter_tensors,
  export_adapter,
)
from bct_jax.models.lora import Weights

pytestmark = pytest.mark.parity
KINDS = {
  "qwen": "Qwen 3 MoE",
  "gpt-oss": "gpt-oss",
  "qwen3.5": "Qwen 3.5 to 3.8 MoE",
}
IDS = np.random.default_rng(0).integers(3, BASE["vocab_size"], (2, 20))
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# Fields of peft's LoraConfig, by the kind of the model.
FORMS = {
  ("qwen", "apart"): {
    "target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"],
    "r": 2,
  },
  ("qwen", "fused"): {"target_parameters": EXPERTS, "r": 2, "use_rslora": True},
  ("gpt-oss", "fused"): {
    "target_modules": ["q_proj"],
    "target_parameters": EXPERTS,
    "r": 2,
    "lora_alpha": 5,
  },
  ("gpt-oss", "down"): {"target_parameters": EXPERTS[1:], "r": 3},
  ("gpt-oss", "gate_up"): {"target_parameters": EXPERTS[:1], "r": 3},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  out = {}
  for kind, family in KINDS.items():
    out[kind] = tmp_path_factory.mktemp("experts") / kind
    save_random(*FAMILIES[family], out[kind])
  return out


def torch_logits(model):
  import torch

  with torch.no_grad():
    return model(torch.tensor(IDS)).logits.numpy()


@pytest.mark.long
@pytest.mark.parametrize(
  ("kind", "form"),
  long_but([("qwen", "apart"), ("gpt-oss", "fused")], list(FORMS)),
)
def test_adapters_that_peft_wrote(kind, form, folders, tmp_path):
  import torch

  mesh = make_mesh(1, 1, 2)
  model, params = load(folders[kind], mesh)
  theirs = make_adapter(folders[kind], tmp_path / "theirs", **FORMS[kind, form])
  stored = read(tmp_path / "theirs", model, params)
  shapes = lora.abstract_adapter(params, model.config, stored.lora)
  adapter = load_peft.load_adapter(stored, shapes)
  out = theirs(torch.tensor(IDS)).logits
  want = torch.nn.functional.cross_entropy(
    out[:, :-1].reshape(-1, out.shape[-1]), torch.tensor(IDS[:, 1:]).reshape(-1)
  )
  want.backward()

  def loss(adapter):
    joined = lora.attach_adapter(Weights(params, adapter, stored.lora))
    found = logits(joined, jnp.asarray(IDS), model)
    logprobs = jax.nn.log_softmax(found[:, :-1])
    picked = jnp.take_along_axis(logprobs, IDS[:, 1:, None], axis=-1)
    return -picked.mean(), found

  with jax.set_mesh(mesh):
    (_, found), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(adapter)
    merged = lora.merge_adapter(Weights(params, adapter, stored.lora))
    plain = jax.jit(lambda p: logits(p, jnp.asarray(IDS), model))
    np.testing.assert_allclose(found, out.detach().numpy(), atol=2e-4)
    np.testing.assert_allclose(plain(merged), found, atol=2e-4)
    assert np.abs(plain(params) - found).max() > 1e-2
  if kind == "qwen":
    return  # gate and up share A there, and each has its own here
  ours = adapter_tensors(grads, model.config, stored.lora)
  assert_gradients(ours, theirs, 2e-4)


@pytest.mark.long
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_peft_reads_what_is_exported(kind, split, folders, tmp_path):
  import peft

  model, params = load(folders[kind], make_mesh(1, 1, 2))
  config = LoraConfig(6, 8.0, "_proj$", False, split)
  weights = Weights(
    params, random_adapter(params, model.config, config), config
  )
  with jax.set_mesh(make_mesh(1, 1, 2)):
    joined = lora.attach_adapter(weights)
    want = jax.jit(lambda p: logits(p, jnp.asarray(IDS), model))(joined)
  at = export_adapter(
    tmp_path / "ours", weights, model.config, str(folders[kind])
  )
  theirs = peft.PeftModel.from_pretrained(load_torch(folders[kind]), at)
  np.testing.assert_allclose(torch_logits(theirs), want, atol=2e-4)
  written = json.loads((at / "adapter_config.json").read_text())
  assert written["r"] == (2 if split else 6)
  stored = read(at, model, params)
  again = load_peft.load_adapter(
    stored, lora.abstract_adapter(params, model.config, stored.lora)
  )
  assert again.keys() == weights.adapter.keys()
  # Of twice the rank where gate and up are one, so summed in another order.
  rounding = 1e-7 if kind == "qwen3.5" else 0
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a[..., : b.shape[-1]], b, rtol=0, atol=rounding
    ),
    lora.merge_adapter(Weights(params, again, stored.lora)),
    lora.merge_adapter(weights),
  )


@pytest.mark.long
def test_a_shared_expert_that_peft_would_mistake_is_refused():
  model = dataclasses.replace(
    HYBRID,
    family="qwen3_next",
    num_experts=4,
    experts_per_token=2,
    shared_width=16,
  )
  params = init_params(Decoder(model), make_mesh())
  for targets, message in (
    ("_proj$", "set lora.targets without"),
    (r"attn|experts\.", None),
  ):
    config = LoraConfig(2, 8.0, targets, False)
    if message is None:
      found = _selection(model, config)
      assert found["target_parameters"] == EXPERTS
      assert not [x for x in found["target_modules"] if "expert" in x]
    else:
      weights = Weights(params, random_adapter(params, model, config), config)
      with pytest.raises(ValueError, match=message):
        export_adapter(Path("never"), weights, model, "base")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_lost_or_of_another_shape_is_named(kind, folders, tmp_path):
  import safetensors.numpy

  model, params = load(folders[kind], make_mesh())
  config = LoraConfig(4, 8.0, "_proj$", False)
  weights = Weights(
    params, random_adapter(params, model.config, config), config
  )
  at = export_adapter(tmp_path / "a", weights, model.config, "base")
  path = at / TENSORS
  tensors = safetensors.numpy.load_file(path)
  name = next(n for n in tensors if "experts" in n and n.endswith("B.weight"))
  for changed, message in (
    ({name: tensors[name][:, :-1].copy()}, "has shape .*needed is"),
    ({}, "no lora_B of mlp/"),
  ):
    rest = {k: v for k, v in tensors.items() if k != name}
    safetensors.numpy.save_file({**rest, **changed}, path)
    with pytest.raises(ValueError, match=message):
      read(at, model, params)
