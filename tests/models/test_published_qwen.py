"""Qwen3.5 to 3.8 and Qwen3-Next as they are published: configs and tensors."""

import json

import jax
import numpy as np
import parity
import pytest
from helpers import make_mesh
from safetensors.numpy import load_file, save_file
from test_families import FAMILIES, save_random

from bct_jax.models.architecture import DeltaNet
from bct_jax.models.config import from_hf

# As the 27B of 3.5, 3.6 and 3.8 has it.
TEXT = {
  "model_type": "qwen3_5_text",
  "attention_bias": False,
  "attn_output_gate": True,
  "eos_token_id": 248044,
  "full_attention_interval": 4,
  "head_dim": 256,
  "hidden_act": "silu",
  "hidden_size": 5120,
  "intermediate_size": 17408,
  "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 16,
  "linear_conv_kernel_dim": 4,
  "linear_key_head_dim": 128,
  "linear_num_key_heads": 16,
  "linear_num_value_heads": 48,
  "linear_value_head_dim": 128,
  "mamba_ssm_dtype": "float32",
  "max_position_embeddings": 262144,
  "mlp_only_layers": [],
  "mtp_num_hidden_layers": 1,
  "mtp_use_dedicated_embeddings": False,
  "num_attention_heads": 24,
  "num_hidden_layers": 64,
  "num_key_value_heads": 4,
  "output_gate_type": "swish",
  "partial_rotary_factor": 0.25,
  "rms_norm_eps": 1e-06,
  "rope_parameters": {
    "mrope_interleaved": True,
    "mrope_section": [11, 11, 10],
    "partial_rotary_factor": 0.25,
    "rope_theta": 10000000,
    "rope_type": "default",
  },
  "tie_word_embeddings": False,
  "vocab_size": 248320,
}


def read(folder, **changes):
  text = {k: v for k, v in {**TEXT, **changes}.items() if v != "absent"}
  outer = {"model_type": "qwen3_5", "vision_config": {"depth": 27}}
  (folder / "config.json").write_text(
    json.dumps({**outer, "text_config": text})
  )
  return from_hf(folder)


def test_config(tmp_path):
  found = read(tmp_path)
  assert found.delta == DeltaNet(16, 48, 128, 128, 4, fused=False)
  assert [layer.linear for layer in found.layers[:4]] == [True] * 3 + [False]
  assert (found.period, len(found.attending)) == (4, 16)
  assert found.layers_of("attn/q")[:2] == (3, 7)
  assert found.layers_of("deltanet/qkv")[:4] == (0, 1, 2, 4)
  assert found.layers_of("mlp/up") == tuple(range(64))
  rope = found.layers[3].rope
  assert rope is not None and rope.turning(found.head_dim) == 64
  assert found.attn_gate and found.norm_plus_one and not found.tied
  same = read(tmp_path, layer_types="absent", unsloth_fixed_mtp=True)
  assert same == found


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"attn_output_gate": False}, "attn_output_gate = False: supported: True"),
    ({"output_gate_type": "sigmoid"}, "output_gate_type = 'sigmoid'"),
    ({"mamba_ssm_dtype": "bfloat16"}, "mamba_ssm_dtype = 'bfloat16'"),
    ({"linear_num_value_heads": 24}, "a multiple of linear_num_key_heads = 16"),
    ({"linear_conv_kernel_dim": 0}, "linear_conv_kernel_dim = 0: a whole"),
    ({"layer_types": ["linear_attention"] * 64}, "one layer of full_attention"),
    ({"layer_types": ["sliding_attention"] * 64}, "sliding_attention; full_at"),
    ({"intermediate_size": "absent"}, "intermediate_size = None: required"),
    (
      {
        "partial_rotary_factor": "absent",
        "rope_parameters": {
          **TEXT["rope_parameters"],
          "partial_rotary_factor": 1.5,
        },
      },
      "partial_rotary_factor = 1.5: a number above 0 and up to 1 is needed",
    ),
    (
      {"rope_parameters": {**TEXT["rope_parameters"], "mrope_x": 1}},
      "mrope_x is not supported",
    ),
  ],
)
def test_what_would_change_the_model_is_refused(changes, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    read(tmp_path, **changes)


def publish(folder, out):
  """Writes a mixture as it is published: in a wrapper, and experts fused.

  With tensors of an image encoder and of what predicts further tokens.
  """
  tensors = {}
  for path in folder.glob("*.safetensors"):
    tensors |= load_file(path)
  published, experts = {}, {}
  for name, x in tensors.items():
    name = name.replace("model.", "model.language_model.", 1)
    head, inside, rest = name.partition(".experts.")
    if inside:
      expert, part, _ = rest.split(".")
      experts.setdefault(head, {})[part, int(expert)] = x
    else:
      published[name] = x
  for head, parts in experts.items():
    at = range(1 + max(e for _, e in parts))
    gate, up, down = (
      np.stack([parts[f"{part}_proj", e] for e in at])
      for part in ("gate", "up", "down")
    )
    fused = np.concatenate([gate, up], axis=1)
    published[f"{head}.experts.gate_up_proj"] = fused
    published[f"{head}.experts.down_proj"] = down
    published["mtp.layers.0.mlp.experts.down_proj"] = down
  published["model.visual.patch_embed.proj.weight"] = np.ones((2, 3))
  published["mtp.fc.weight"] = np.ones((2, 2))
  out.mkdir()
  save_file(published, out / "model.safetensors", metadata={"format": "pt"})
  text = json.loads((folder / "config.json").read_text())
  outer = {"model_type": "qwen3_5_moe", "vision_config": {}}
  (out / "config.json").write_text(json.dumps({**outer, "text_config": text}))


@pytest.mark.parity
def test_tensors(tmp_path, capsys):
  save_random(*FAMILIES["Qwen 3.5 to 3.8 MoE"], tmp_path / "plain")
  publish(tmp_path / "plain", tmp_path / "published")
  mesh = make_mesh(1, 2, 2)
  model, want = parity.load(tmp_path / "plain", mesh)
  capsys.readouterr()
  same, found = parity.load(tmp_path / "published", mesh)
  assert same.config == model.config
  jax.tree.map(np.testing.assert_array_equal, found, want)
  lines = capsys.readouterr().err
  assert "the image encoder (1 tensors) is left out" in lines
  assert "predicts further tokens (mtp) (2 tensors) is left out" in lines
