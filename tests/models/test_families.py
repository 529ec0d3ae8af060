"""Every supported family against a small random model of torch transformers.

Logits short and long (past windows and past the context that rotary positions
were scaled from), loss, all gradients, and greedy text through the KV cache.
With BCT_JAX_PARITY_TABLE=FILE, the largest differences are written there.
"""

import json
import os
from pathlib import Path

import jax
import numpy as np
import parity
import pytest
from cases import long_but
from helpers import make_mesh
from safetensors.numpy import load_file

from bct_jax.data.chat import Tokens
from bct_jax.models.config import from_hf
from bct_jax.models.huggingface.export import export_hf

pytestmark = pytest.mark.parity

BASE = {
  "vocab_size": 96,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 128,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "pad_token_id": 0,
}
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 500000.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 32,
}
# As OLMo 3 has it; gpt-oss has whole pairs not, and the default factor.
YARN = {
  "rope_type": "yarn",
  "factor": 4.0,
  "beta_fast": 8.0,
  "beta_slow": 1.0,
  "attention_factor": 1.3,
  "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
GEMMA = {
  "head_dim": 16,
  "sliding_window": 8,
  "query_pre_attn_scalar": 24,
  "num_hidden_layers": 4,
}
MIXTURE = {
  "head_dim": 16,
  "moe_intermediate_size": 24,
  "num_experts": 8,
  "num_experts_per_tok": 3,
}
# Of a head of 16, 8 dimensions turn; 2 heads of values share one of keys.
LINEAR_ATTENTION = {
  "head_dim": 16,
  "num_hidden_layers": 4,
  "linear_num_key_heads": 2,
  "linear_num_value_heads": 4,
  "linear_key_head_dim": 8,
  "linear_value_head_dim": 12,
  "rope_parameters": {
    "rope_type": "default",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.5,
  },
}
# Full layers have one wide head of keys, which are the values, too; 8 of the 16
# pairs of such a head turn.
GEMMA4 = {
  "head_dim": 16,
  "global_head_dim": 32,
  "num_global_key_value_heads": 1,
  "attention_k_eq_v": True,
  "sliding_window": 8,
  "num_hidden_layers": 6,
  "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2,
  "final_logit_softcapping": 3.0,
  "tie_word_embeddings": True,
  "rope_parameters": {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {
      "rope_type": "proportional",
      "rope_theta": 1e6,
      "partial_rotary_factor": 0.5,
    },
  },
}
SHARED = {**MIXTURE, "shared_expert_intermediate_size": 40}
# Name in the table of models/README.md -> model_type, what differs from BASE.
FAMILIES = {
  "Llama 2": ("llama", {"num_key_value_heads": 4}),
  "Llama, tied": ("llama", {"tie_word_embeddings": True}),
  "Llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
  "Llama, linear rope": ("llama", {"rope_parameters": LINEAR}),
  "Llama 3.1, 3.2": ("llama", {"rope_parameters": LLAMA3}),
  "Mistral": ("mistral", {"sliding_window": 8}),
  "Mistral, no window": ("mistral", {"sliding_window": None}),
  "Ministral 3": (
    "ministral3",
    {
      "head_dim": 16,
      "rope_parameters": {
        **YARN,
        "rope_theta": 1e6,
        "attention_factor": None,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.3,
      },
    },
  ),
  "Qwen 2, 2.5": ("qwen2", {}),
  "Qwen 2, window": (
    "qwen2",
    {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
  ),
  "Qwen 3": ("qwen3", {"head_dim": 16}),
  "Qwen 3 MoE": ("qwen3_moe", {**MIXTURE, "norm_topk_prob": True}),
  "Qwen 3 MoE, plain": ("qwen3_moe", MIXTURE),
  "Qwen 3.5 to 3.8": (
    "qwen3_5_text",
    {**LINEAR_ATTENTION, "full_attention_interval": 2},
  ),
  "Qwen 3.5 to 3.8 MoE": ("qwen3_5_moe_text", {**LINEAR_ATTENTION, **SHARED}),
  "Qwen 3 Next": (
    "qwen3_next",
    {**LINEAR_ATTENTION, **SHARED, "full_attention_interval": 3},
  ),
  "Gemma 2": (
    "gemma2",
    {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
  ),
  "Gemma 3 text": (
    "gemma3_text",
    {
      **GEMMA,
      "num_hidden_layers": 7,
      "rope_parameters": {
        "full_attention": {**LINEAR, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
      },
    },
  ),
  "Gemma 4": ("gemma4_text", {**GEMMA4, "hidden_size_per_layer_input": 0}),
  "Gemma 4, own values": (
    "gemma4_unified_text",
    {
      **GEMMA4,
      "attention_k_eq_v": False,
      "num_hidden_layers": 3,
      "layer_types": GEMMA4["layer_types"][:3],
    },
  ),
  "SmolLM3": ("smollm3", {"num_hidden_layers": 5}),
  "OLMo 2": ("olmo2", {}),
  "OLMo 3": (
    "olmo3",
    {"num_hidden_layers": 4, "sliding_window": 8, "rope_scaling": YARN},
  ),
  "gpt-oss": (
    "gpt_oss",
    {
      "head_dim": 16,
      "num_hidden_layers": 4,
      "sliding_window": 8,
      "num_local_experts": 8,
      "num_experts_per_tok": 3,
      "swiglu_limit": 0.5,
      "rope_parameters": {**YARN, "rope_theta": 1.5e5, "truncate": False},
    },
  ),
  "Llama, YaRN": (
    "llama",
    {
      "rope_parameters": {
        **YARN,
        "rope_theta": 1e4,
        "truncate": False,
        "mscale": 0.7,
        "mscale_all_dim": 1.0,
        "attention_factor": None,
      }
    },
  ),
}
# Those whose parts the others share are left to the longer run, and so are
# most gradients and texts.
QUICK = ("Llama 3.1, 3.2", "Qwen 3 MoE", "Gemma 2")
GRADIENTS = ("Qwen 3 MoE", "Gemma 2")
TEXT = ("Llama 3.1, 3.2",)
STOP = frozenset({2})
SEEN: dict[str, list[str]] = {}


def save_random(kind: str, values: dict, folder: Path) -> None:
  """A seeded model with weights large enough that every part shows."""
  import torch
  import transformers

  torch.manual_seed(0)
  config = transformers.CONFIG_MAPPING[kind](**{**BASE, **values})
  model = transformers.AutoModelForCausalLM.from_config(config)
  plus_one = kind.startswith(("gemma2", "gemma3", "qwen3_5", "qwen3_next"))
  with torch.no_grad():
    for name, p in model.named_parameters():
      around = 1.0 if "norm" in name and not plus_one else 0.0
      if name.endswith("linear_attn.norm.weight"):
        around = 1.0
      if kind.startswith("gemma4") and ("q_norm" in name or "k_norm" in name):
        around = 0.5  # Scores are not scaled: torch's own error is 1e-4 with 1.
      if name.endswith("A_log"):  # so that memories outlast a chunk
        around = -3.0
      p.copy_(around + torch.randn_like(p) * (0.3 if p.ndim == 1 else 0.15))
    for name, x in model.named_buffers():
      if name.endswith("layer_scalar"):
        x.copy_(1 + torch.randn_like(x) * 0.3)
  model.save_pretrained(folder, max_shard_size="20KB")
  assert len(list(folder.glob("model-*.safetensors"))) > 2


def families(quick):
  """Parametrizes a test by the families; a default run has the quick ones."""
  cases = long_but(quick, list(FAMILIES))
  return pytest.mark.parametrize("family", cases, indirect=True)


@pytest.fixture(scope="module")
def family(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp("family")
  save_random(*FAMILIES[request.param], folder)
  mesh = make_mesh(2, 2, 2)
  model, params = parity.load(folder, mesh)
  return request.param, mesh, model, params, parity.load_torch(folder)


@pytest.fixture(scope="module", autouse=True)
def table():
  yield
  path = os.environ.get("BCT_JAX_PARITY_TABLE")
  if path:
    lines = [f"| {' | '.join([k, *v])} |" for k, v in SEEN.items()]
    head = "| family | logits | gradients |\n|---|---|---|"
    Path(path).write_text("\n".join([head, *lines]) + "\n", "utf-8")


def rows(lengths, seed=0):
  """Random ids; the second half of each row is trained."""
  rng = np.random.default_rng(seed)
  return [
    Tokens(
      tuple(int(t) for t in rng.integers(3, 96, n)),
      tuple(float(i >= n // 2) for i in range(n)),
    )
    for n in lengths
  ]


@pytest.mark.parametrize(
  "scaling",
  [
    {"factor": 4.0, "original_max_position_embeddings": 32768},  # Qwen 2.5
    {**YARN, "factor": 8.0, "original_max_position_embeddings": 8192},
    # gpt-oss, whose places are no whole pairs.
    {"factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
     "original_max_position_embeddings": 4096},
    {"factor": 40, "mscale": 0.707, "mscale_all_dim": 1.0,
     "original_max_position_embeddings": 4096},  # DeepSeek V2
  ],
)  # fmt: skip
def test_yarn_frequencies(scaling, tmp_path):
  import transformers
  from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

  rope = {"rope_type": "yarn", "rope_theta": 150000.0, **scaling}
  sizes = {**BASE, "head_dim": 64, "max_position_embeddings": 131072}
  config = transformers.LlamaConfig(**sizes, rope_parameters=dict(rope))
  config.save_pretrained(tmp_path)
  want, factor = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
  (ours, *_) = (layer.rope for layer in from_hf(tmp_path).layers)
  assert ours is not None
  np.testing.assert_allclose(ours.frequencies(64), want.numpy(), rtol=1e-6)
  assert ours.attention_factor == pytest.approx(factor)


@families(QUICK)
def test_parameters(family):
  name, _, _, params, reference = family
  ours = sum(x.size for x in jax.tree.leaves(params))
  # Of what torch has as buffers only these are in a checkpoint.
  theirs = [*reference.parameters(), *parity.saved_buffers(reference).values()]
  assert ours == sum(x.numel() for x in theirs)


@families(QUICK)
def test_logits(family):
  # The long row is past every window (8) and original context (32).
  data = rows([100, 5, 9, 30, 17, 40, 3, 12])
  name, *setup = family
  worst = parity.logits_difference(*setup, data)
  SEEN.setdefault(name, ["", ""])[0] = f"{worst:.0e}"
  assert worst <= 1e-4


@families(GRADIENTS)
def test_loss_and_every_gradient(family):
  # Every token occurs, so that every row of the embedding has a gradient.
  data = rows([60, 5, 9, 30, 17, 40, 3, 12])
  name, *setup = family
  worst = parity.check_gradients(*setup, data)
  SEEN.setdefault(name, ["", ""])[1] = f"{worst:.0e}"


@families(TEXT)
def test_greedy_text(family):
  _, _, model, params, reference = family
  mesh = make_mesh(1, 1, 2)
  params = jax.tree.map(np.asarray, params)
  prompts = [list(row.ids) for row in rows([3, 7, 12, 20, 33, 50], seed=1)]
  ours = parity.greedy(mesh, model, params, prompts, 64, STOP)
  lengths = set()
  for prompt, completion in zip(prompts, ours, strict=True):
    want = parity.greedy_torch(reference, prompt, 64, STOP)
    assert list(completion.tokens) == want
    lengths.add(len(want))
  assert max(lengths) == 64


@families(QUICK)
def test_round_trip(family, tmp_path):
  """Every tensor bit for bit, and torch reads the folder as it read its own."""
  import torch

  _, mesh, model, params, reference = family
  source = Path(reference.config._name_or_path)
  out = tmp_path / "exported"
  with jax.set_mesh(mesh):
    export_hf(params, model.config, source, out, shard_bytes=20_000)
  ours, theirs = tensors(out), tensors(source)
  assert len(list(out.glob("model-*.safetensors"))) > 2
  assert set(ours) == set(theirs)
  for name, x in theirs.items():
    assert ours[name].dtype == x.dtype
    np.testing.assert_array_equal(ours[name], x, err_msg=name)
  ids = torch.tensor([rows([40])[0].ids])
  with torch.no_grad():
    again = parity.load_torch(out)(ids).logits
    assert torch.equal(again, reference(ids).logits)


def tensors(folder):
  out = {}
  for path in folder.glob("*.safetensors"):
    out |= load_file(path)
  return out


@pytest.mark.parametrize("family_name", ["Gemma 3 text", "Llama 3.1, 3.2"])
def test_spelling_of_older_releases(family_name, tmp_path):
  """config.json as published before transformers 5 gives the same model."""
  save_random(*FAMILIES[family_name], tmp_path)
  want = from_hf(tmp_path)
  path = tmp_path / "config.json"
  raw = json.loads(path.read_text())
  rope = raw.pop("rope_parameters")
  raw["torch_dtype"] = raw.pop("dtype")
  if "full_attention" in rope:
    full = rope["full_attention"]
    raw["rope_theta"] = full.pop("rope_theta")
    raw["rope_scaling"] = full
    raw["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    raw["sliding_window_pattern"] = raw.pop("_sliding_window_pattern")
    del raw["layer_types"]
  else:
    raw["rope_theta"] = rope.pop("rope_theta")
    raw["rope_scaling"] = rope
  path.write_text(json.dumps(raw))
  assert from_hf(tmp_path) == want
