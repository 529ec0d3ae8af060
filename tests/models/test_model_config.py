"""What a config.json may say, and what is refused by name."""

import json

import numpy as np
import pytest

from bct_jax.models.architecture import Layer
from bct_jax.models.config import from_hf
from bct_jax.models.rope import Rope

LLAMA = {
  "model_type": "llama",
  "vocab_size": 96,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 4,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 128,
  "rms_norm_eps": 1e-5,
  "rope_theta": 500000.0,
}
LLAMA3 = {
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
  "rope_type": "llama3",
}


@pytest.fixture
def read(tmp_path):
  def make(**changes):
    values = {**LLAMA, **changes}
    values = {k: v for k, v in values.items() if v != "absent"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    return from_hf(tmp_path)

  return make


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model_type": "mamba"}, "model_type = 'mamba': supported.*llama.*olmo2"),
    ({"model_type": "absent"}, "model_type = None: supported"),
    ({"sliding_windw": 8}, "sliding_windw = 8: unknown field"),
    ({"sliding_window": 8}, "sliding_window = 8: unknown field"),
    ({"quantization_config": {}}, "quantization_config"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "type dyn"),
    ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_type dynamic"),
    ({"rope_scaling": {"rope_type": "linear", "beta": 1}}, "rope_parameters"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"hidden_act": "relu"}, "hidden_act.*relu given, supported"),
    ({"num_key_value_heads": 3}, "must divide num_attention_heads = 4"),
    ({"hidden_size": "absent"}, "hidden_size = None: required"),
    ({"pretraining_tp": 2}, "pretraining_tp = 2: supported: 1"),
    ({"head_dim": 7}, "head_dim.*(odd|even)|even.*head_dim"),
    ({"vocab_size": "many"}, "vocab_size = 'many': a whole number"),
    (
      {"model_type": "qwen3_moe", "mlp_only_layers": [1]},
      r"mlp_only_layers = \[1\]: supported",
    ),
    (
      {"model_type": "gemma2", "use_bidirectional_attention": True},
      "use_bidirectional_attention = True",
    ),
    (
      {"model_type": "qwen3", "layer_types": ["full_attention"] * 3},
      "layer_types|num_hidden_layers",
    ),
    (
      {"model_type": "qwen3", "layer_types": ["chunked_attention"] * 4},
      "chunked_attention",
    ),
  ],
)
def test_refused(read, changes, message):
  with pytest.raises(ValueError, match=message) as error:
    read(**changes)
  assert "config.json" in str(error.value)


def test_fields_that_change_no_logits_are_left_out(read):
  """As older and newer releases of transformers write them, or as null."""
  more = {
    **{"_attn_implementation_autoset": True, "max_length": 20, "top_k": 50},
    **{"rope_scaling": None, "id2label": {"0": "LABEL_0"}, "head_dim": None},
    **{"task_specific_params": None, "eos_token_id": [1, 2]},
  }
  assert read(**more) == read()
  with pytest.raises(ValueError, match="rope_scalin = 2: unknown field"):
    read(rope_scalin=2)


def test_broken_files(tmp_path):
  with pytest.raises(ValueError, match="config.json is missing"):
    from_hf(tmp_path)
  path = tmp_path / "config.json"
  for text, message in (
    ('{"a": 1,\n "b": }', "config.json:2: not JSON"),
    ("[1]", "an object is needed"),
  ):
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
      from_hf(tmp_path)
  path.write_bytes(b'{"a": "\xff"}')
  with pytest.raises(ValueError, match="not UTF-8"):
    from_hf(tmp_path)


def test_llama3_frequencies(read):
  """The published code's three cases: kept, slowed eight times, in between."""
  (layer, *_) = read(rope_scaling=LLAMA3, head_dim=128).layers
  assert layer.rope is not None and layer.rope.factor == 8
  plain = Rope(500000.0).frequencies(128)
  ratio = plain / layer.rope.frequencies(128)
  wavelength = 2 * np.pi / plain
  np.testing.assert_allclose(ratio[wavelength < 8192 / 4], 1, rtol=1e-6)
  np.testing.assert_allclose(ratio[wavelength > 8192], 8, rtol=1e-6)
  between = ratio[(wavelength > 8192 / 4) & (wavelength < 8192)]
  assert len(between) and ((between > 1) & (between < 8)).all()


def test_windows_and_layers_without_positions(read):
  gemma = read(model_type="gemma3_text", num_hidden_layers=6, sliding_window=8)
  local, full = Rope(10_000.0), Rope(500_000.0)
  assert gemma.layers == (Layer(8, local),) * 5 + (Layer(None, full),)
  smol = read(model_type="smollm3")
  assert [x.rope is None for x in smol.layers] == [False, False, False, True]
  mistral = read(model_type="mistral", sliding_window=16)
  assert {x.window for x in mistral.layers} == {16}
  assert {x.window for x in read(model_type="mistral").layers} == {4096}
  qwen = read(model_type="qwen2", sliding_window=16)
  assert {x.window for x in qwen.layers} == {None}


def test_the_language_part_of_a_multimodal_config(read):
  text = {k: v for k, v in LLAMA.items() if k != "model_type"}
  found = read(
    model_type="gemma3", text_config=text, vision_config={"hidden_size": 8}
  )
  assert found == read(model_type="gemma3_text")
  # Mistral Small says no family, Ministral 3 does.
  found = read(model_type="mistral3", text_config=text, vision_config={})
  assert found == read(model_type="mistral")
  text |= {"model_type": "ministral3", "rope_parameters": MINISTRAL_ROPE}
  found = read(model_type="mistral3", text_config=text, vision_config={})
  assert found.family == "ministral3"
  rope = found.layers[0].rope
  assert rope is not None and rope.query_growth == 0.1


# As the 8B is published.
MINISTRAL_ROPE = {
  "type": "yarn",
  "rope_theta": 1e6,
  "factor": 16.0,
  "original_max_position_embeddings": 16384,
  "max_position_embeddings": 262144,
  "beta_fast": 32.0,
  "beta_slow": 1.0,
  "mscale_all_dim": 1.0,
  "mscale": 1.0,
  "llama_4_scaling_beta": 0.1,
}


def test_queries_that_grow_are_those_of_one_family(read):
  with pytest.raises(ValueError, match="llama_4_scaling_beta is not supported"):
    read(rope_parameters={**MINISTRAL_ROPE, "max_position_embeddings": None})
  without = {**MINISTRAL_ROPE, "llama_4_scaling_beta": None}
  with pytest.raises(ValueError, match="llama_4_scaling_beta is missing"):
    read(model_type="ministral3", rope_parameters=without)
  plain = {"rope_type": "default", "rope_theta": 1e6}
  with pytest.raises(ValueError, match="supported: yarn"):
    read(model_type="ministral3", rope_parameters=plain)
