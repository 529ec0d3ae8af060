"""Weights in MXFP4, as gpt-oss is published, against transformers' own code."""

import json

import numpy as np
import parity
import pytest
from helpers import make_mesh
from safetensors.numpy import load_file, save_file

from bct_jax.data.chat import Tokens
from bct_jax.models.config import from_hf
from bct_jax.models.huggingface import mxfp4
from bct_jax.models.huggingface.files import WEIGHTS
from bct_jax.models.huggingface.load import find_tensors

pytestmark = pytest.mark.parity

TINY = {
  "vocab_size": 96,
  "hidden_size": 64,
  "intermediate_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 16,
  "num_local_experts": 4,
  "num_experts_per_tok": 2,
  "sliding_window": 8,
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
  """A random gpt-oss whose experts are random bytes in MXFP4."""
  import torch
  import transformers

  torch.manual_seed(0)
  folder = tmp_path_factory.mktemp("gpt_oss")
  config = transformers.GptOssConfig(**TINY)
  model = transformers.AutoModelForCausalLM.from_config(config)
  with torch.no_grad():
    for p in model.parameters():
      p.copy_(torch.randn_like(p) * 0.2)
  model.save_pretrained(folder)
  rng = np.random.default_rng(0)
  tensors = load_file(folder / WEIGHTS)
  for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
    experts, fan_in, fan_out = tensors.pop(name).shape
    shape = (experts, fan_out, fan_in // 32, 16)
    tensors[f"{name}_blocks"] = rng.integers(0, 256, shape, np.uint8)
    # Scales of trained weights: around 2 ** -5.
    tensors[f"{name}_scales"] = rng.integers(118, 124, shape[:3], np.uint8)
  save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
  path = folder / "config.json"
  raw = json.loads(path.read_text())
  raw["quantization_config"] = {"quant_method": "mxfp4"}
  path.write_text(json.dumps(raw))
  return folder


def theirs(folder, name):
  """As transformers unpacks it, in bfloat16."""
  import torch
  from transformers.integrations.mxfp4 import convert_moe_packed_tensors

  stored = load_file(folder / WEIGHTS)
  parts = (torch.tensor(stored[f"{name}_{x}"]) for x in ("blocks", "scales"))
  return convert_moe_packed_tensors(*parts)


def test_every_number_is_the_one_of_transformers(packed):
  """All 256 bytes occur, and rows that begin anywhere."""
  import torch

  found = find_tensors(packed)
  names = [n for n, t in found.items() if isinstance(t, mxfp4.PackedTensor)]
  assert len(names) == 4
  for name in names:
    want = theirs(packed, name)
    assert found[name].shape == tuple(want.shape)
    for start, stop in ((0, 4), (1, 3), (3, 4)):
      ours = mxfp4.read_rows(found[name], start, stop)
      assert ours.dtype.name == "bfloat16"
      np.testing.assert_array_equal(
        ours.view(np.uint16),
        want[start:stop].contiguous().view(torch.uint16).numpy(),
      )


def test_the_model_is_that_of_unpacked_weights(packed):
  """Over a mesh that has parts of an expert on each device."""
  import torch
  import transformers

  mesh = make_mesh(2, 2, 2)
  model, params = parity.load(packed, mesh)
  config = transformers.GptOssConfig(**TINY)
  reference = transformers.AutoModelForCausalLM.from_config(
    config, attn_implementation="eager"
  )
  stored = load_file(packed / WEIGHTS)
  state = {
    name: theirs(packed, name).float()
    if f"{name}_blocks" in stored
    else torch.tensor(stored[name])
    for name in reference.state_dict()
  }
  reference.load_state_dict(state)
  lengths = [40, 5, 9, 30, 17, 12, 3, 12]
  rng = np.random.default_rng(0)
  rows = [
    Tokens(tuple(map(int, rng.integers(3, 96, n))), (1.0,) * n) for n in lengths
  ]
  worst = parity.logits_difference(mesh, model, params, reference.eval(), rows)
  assert worst <= 1e-4


@pytest.mark.long
def test_exports_say_no_more_that_they_are_quantized(packed, tmp_path):
  from bct_jax.models.huggingface.export import export_hf

  _, params = parity.load(packed, make_mesh(1, 1, 1))
  out = tmp_path / "out"
  export_hf(params, from_hf(packed), packed, out, dtype="bfloat16")
  assert "quantization_config" not in json.loads(
    (out / "config.json").read_text()
  )
  name = "model.layers.1.mlp.experts.down_proj"
  found = find_tensors(out)[name]
  np.testing.assert_array_equal(
    mxfp4.read_rows(found, 0, 4).astype(np.float32),
    theirs(packed, name).float().numpy(),
  )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t, n: t.pop(f"{n}_scales"), "no other half"),
    (lambda t, n: t.update({f"{n}_scales": t[f"{n}_scales"][1:]}), "no MXFP4"),
    (lambda t, n: t[f"{n}_scales"].fill(255), "not a number"),
    (lambda t, n: t.pop(f"{n}_blocks") is t.pop(f"{n}_scales"), "missing"),
  ],
)
def test_weights_that_do_not_fit_are_refused(packed, tmp_path, change, message):
  name = "model.layers.0.mlp.experts.gate_up_proj"
  tensors = load_file(packed / WEIGHTS)
  change(tensors, name)
  save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
  (tmp_path / "config.json").write_text((packed / "config.json").read_text())
  with pytest.raises(ValueError, match=message) as error:
    parity.load(tmp_path, make_mesh(1, 1, 1))
  assert name in str(error.value)


def test_other_quantizations_are_refused(packed, tmp_path):
  raw = json.loads((packed / "config.json").read_text())
  raw["quantization_config"] = {"quant_method": "bitsandbytes"}
  (tmp_path / "config.json").write_text(json.dumps(raw))
  with pytest.raises(ValueError, match="quantization_config"):
    from_hf(tmp_path)
