"""Gemma 4 as it is published: config and tensors in a wrapper."""

import json

import jax
import numpy as np
import parity
import pytest
from helpers import make_mesh
from safetensors.numpy import load_file, save_file
from test_families import FAMILIES, save_random

from bct_jax.models.architecture import GlobalAttention
from bct_jax.models.config import from_hf

# As the 31B has it; the 12B is gemma4_unified, its layers without a window have
# one head of keys.
TEXT = {
  "attention_k_eq_v": True,
  "enable_moe_block": False,
  "final_logit_softcapping": 30.0,
  "global_head_dim": 512,
  "head_dim": 256,
  "hidden_activation": "gelu_pytorch_tanh",
  "hidden_size": 5376,
  "hidden_size_per_layer_input": 0,
  "intermediate_size": 21504,
  "max_position_embeddings": 262144,
  "num_attention_heads": 32,
  "num_global_key_value_heads": 4,
  "num_hidden_layers": 60,
  "num_key_value_heads": 16,
  "num_kv_shared_layers": 0,
  "rms_norm_eps": 1e-06,
  "rope_parameters": {
    "full_attention": {
      "partial_rotary_factor": 0.25,
      "rope_theta": 1000000.0,
      "rope_type": "proportional",
    },
    "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
  },
  "sliding_window": 1024,
  "tie_word_embeddings": True,
  "vocab_size": 262144,
}


def read(folder, kind="gemma4", **changes):
  text = {**TEXT, "model_type": f"{kind}_text", **changes}
  text = {k: v for k, v in text.items() if v != "absent"}
  outer = {"model_type": kind, "vision_config": {}, "audio_config": None}
  (folder / "config.json").write_text(
    json.dumps({**outer, "text_config": text})
  )
  return from_hf(folder)


def test_config(tmp_path, caplog):
  found = read(tmp_path)
  assert found.global_attn == GlobalAttention(512, 4, key_is_value=True)
  assert (found.num_kv_heads, found.head_dim, found.period) == (16, 256, 6)
  windows = [layer.window for layer in found.layers]
  assert windows == ([1024] * 5 + [None]) * 10
  assert found.layers_of("global_attn/q") == tuple(range(5, 60, 6))
  assert found.score_scale == 1.0 and not found.norm_plus_one
  rope = found.layers[5].rope
  assert rope is not None
  frequencies = rope.frequencies(512)  # 64 of 256 pairs turn
  assert frequencies[:64].all() and not frequencies[64:].any()
  assert frequencies[1] == pytest.approx(1e6 ** (-2 / 512))
  # As transformers writes it.
  named = {str(i): {"head_dim": 512, "num_key_value_heads": 4}
           for i in range(5, 60, 6)}  # fmt: skip
  drop = {"global_head_dim": "absent", "num_global_key_value_heads": "absent"}
  assert read(tmp_path, per_layer_config=named, **drop) == found
  unified = {"num_global_key_value_heads": 1}
  one = read(tmp_path, "gemma4_unified", **unified).global_attn
  assert one == GlobalAttention(512, 1, key_is_value=True)
  assert not caplog.records


LAYERS = ["sliding_attention"] * 5 + ["full_attention"]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    # E2B and E4B.
    (
      {"hidden_size_per_layer_input": "absent"},
      "layer_input = None: supported: 0, not the default of 256",
    ),
    ({"hidden_size_per_layer_input": 256}, "= 256: supported: 0"),
    ({"num_kv_shared_layers": 18}, "num_kv_shared_layers = 18: supported: 0"),
    ({"enable_moe_block": True}, "enable_moe_block = True: supported: False"),
    ({"use_double_wide_mlp": True}, "use_double_wide_mlp = True"),
    ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
    ({"num_global_key_value_heads": 5}, "must divide num_attention_heads = 32"),
    ({"global_head_dim": 0}, "global_head_dim = 0: a whole number from 1"),
    ({"layer_types": ["full_attention"] * 60}, "one layer of sliding_atten"),
    (
      {"per_layer_config": {"5": {"head_dim": 512}, "11": {"head_dim": 128}}},
      "layers of a kind need heads of one shape",
    ),
    (
      {"per_layer_config": {"5": {"intermediate_size": 8}}},
      "intermediate_size of a layer may change the model",
    ),
  ],
)  # fmt: skip
def test_what_would_change_the_model_is_refused(changes, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    read(tmp_path, **changes)


@pytest.mark.parity
@pytest.mark.parametrize(
  ("family", "kind", "encoder"),
  [
    ("Gemma 4", "gemma4", "model.vision_tower.patch_embedder.weight"),
    ("Gemma 4, own values", "gemma4_unified", "model.vision_embedder.pos_norm"),
  ],
)
def test_tensors(family, kind, encoder, tmp_path, capsys):
  """Of a wrapper only the language model is read, and that is said."""
  plain, published = tmp_path / "plain", tmp_path / "published"
  save_random(*FAMILIES[family], plain)
  tensors = {}
  for path in plain.glob("*.safetensors"):
    for name, x in load_file(path).items():
      tensors[name.replace("model.", "model.language_model.", 1)] = x
  others = [encoder, "model.embed_vision.embedding_projection.weight"]
  others.append("model.embed_audio.embedding_projection.weight")
  tensors |= {name: np.ones((2, 3), np.float32) for name in others}
  published.mkdir()
  save_file(tensors, published / "model.safetensors", metadata={"format": "pt"})
  text = json.loads((plain / "config.json").read_text())
  outer = {"model_type": kind, "vision_config": {}, "text_config": text}
  (published / "config.json").write_text(json.dumps(outer))
  mesh = make_mesh(1, 2, 2)
  model, want = parity.load(plain, mesh)
  capsys.readouterr()
  same, found = parity.load(published, mesh)
  assert same.config == model.config
  jax.tree.map(np.testing.assert_array_equal, found, want)
  lines = capsys.readouterr().err
  assert "the image encoder (2 tensors) is left out" in lines
  assert "the audio encoder (1 tensors) is left out" in lines
