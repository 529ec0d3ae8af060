"""Adapters that peft wrote: equal to peft, or refused by name."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from cases import long_but
from helpers import make_mesh
from parity import load, load_torch
from test_families import FAMILIES, save_random
from test_lora import logits

from bct_jax.models import lora
from bct_jax.models.huggingface import (
  adapter_folder,
  load_peft,
  peft_config,
)
from bct_jax.models.huggingface.peft import adapter_tensors, export_adapter
from bct_jax.models.lora import Weights

# Fields of peft's LoraConfig.
FORMS = {
  "regex": {"target_modules": r".*\.(v|o|gate)_proj", "use_rslora": True},
  "all-linear": {"target_modules": "all-linear", "r": 3},
  "patterns": {
    "target_modules": ["q_proj", "v_proj", "up_proj"],
    "exclude_modules": ["model.layers.1.self_attn.q_proj"],
    "r": 4,
    "rank_pattern": {"v_proj": 2, r"layers\.1\.mlp\.up_proj": 6},
    "alpha_pattern": {"layers.0.self_attn.q_proj": 3, "up_proj": 32},
  },
}
# Over a model that has linear attention in some layers.
HYBRID_FORMS = {
  "hybrid, all-linear": {"target_modules": "all-linear", "r": 3},
  "hybrid, some": {
    "target_modules": ["in_proj_qkv", "in_proj_z", "out_proj", "q_proj"],
    "r": 4,
    "rank_pattern": {r"layers\.2\.linear_attn\.in_proj_qkv": 2},
  },
}
# Over a model whose attention has two shapes, and some layers no v_proj.
GEMMA4_FORMS = {
  "two shapes": {
    "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"],
    "r": 4,
    "rank_pattern": {r"layers\.2\.self_attn\.q_proj": 2},
  },
}
# Further ways to name modules, which are compared with peft's own functions.
SELECTIONS = [
  *FORMS.values(),
  {"target_modules": ["proj"]},
  {"target_modules": ["self_attn.q_proj", "model.layers.0.mlp.up_proj"]},
  {"target_modules": "q_proj"},
  {"target_modules": r"model\.layers\.(0|11)\..*_proj"},
  {"target_modules": ["up_proj"], "layers_to_transform": 1},
  {"target_modules": ["up_proj"], "layers_to_transform": [0, 11]},
  {
    "target_modules": ["up_proj"],
    "layers_to_transform": [1],
    "layers_pattern": ["h", "layers"],
  },
  {
    "target_modules": ["up_proj"],
    "layers_to_transform": [1],
    "layers_pattern": "blocks",
  },
  {"target_modules": ["q_proj"], "exclude_modules": r".*\.1\..*"},
  {"target_modules": ["q_proj"], "rank_pattern": {"proj": 1, ".*q_proj": 2}},
]
MODULES = [
  f"model.{part}layers.{i}.{module}"
  for part in ("", "language_model.")
  for i in (0, 1, 11)
  for module in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
]


@pytest.mark.parametrize("fields", SELECTIONS, ids=str)
def test_modules_ranks_and_alphas_of_peft(fields):
  """No torch model is made, in which "all-linear" becomes a list of names."""
  peft = pytest.importorskip("peft")
  from peft.tuners.tuners_utils import check_target_module_exists
  from peft.utils.other import get_pattern_key

  theirs = peft.LoraConfig(**fields)
  ours = {**theirs.to_dict(), **fields}
  for module in MODULES:
    found = bool(check_target_module_exists(theirs, module))
    whole = fields["target_modules"] == "all-linear"
    assert peft_config.is_target(ours, module) == (found or whole), module
    for find, patterns, other in (
      (peft_config.rank_of, theirs.rank_pattern, theirs.r),
      (peft_config.alpha_of, theirs.alpha_pattern, theirs.lora_alpha),
    ):
      key = get_pattern_key(patterns, module)
      assert find(ours, module) == patterns.get(key, other), module


@pytest.fixture(scope="module")
def tiny(tiny_folder):
  return load(tiny_folder, make_mesh(1, 2, 2))


@pytest.fixture(scope="module")
def hybrid_folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("models") / "hybrid"
  save_random(*FAMILIES["Qwen 3.5 to 3.8"], folder)
  return folder


def make_adapter(model_folder, folder, **fields):
  """An adapter of peft over a model folder, with random A and B."""
  import peft
  import torch

  torch.manual_seed(0)
  model = peft.get_peft_model(
    load_torch(model_folder), peft.LoraConfig(task_type="CAUSAL_LM", **fields)
  )
  for name, parameter in model.named_parameters():
    if "lora_B" in name:
      torch.nn.init.normal_(parameter, std=0.1)
  model.save_pretrained(folder)
  return model


def assert_gradients(ours, theirs, share):
  """Equal to those of a model of peft, up to a share of the largest."""
  grads = {
    name.replace(".default.", "."): p.grad.numpy()
    for name, p in theirs.named_parameters()
    if p.requires_grad
  }
  assert ours.keys() == grads.keys()
  for name, grad in grads.items():
    np.testing.assert_allclose(
      ours[name], grad, atol=share * np.abs(grad).max(), err_msg=name
    )


def read(folder, model, params):
  return load_peft.read_adapter(folder, model.config, params)


@pytest.mark.parity
@pytest.mark.parametrize(
  "form", long_but(["patterns"], [*FORMS, *HYBRID_FORMS, *GEMMA4_FORMS])
)
def test_logits_and_gradients_of_peft(
  form, tiny_folder, hybrid_folder, tmp_path
):
  import peft
  import torch

  folder = hybrid_folder if form in HYBRID_FORMS else tiny_folder
  if form in GEMMA4_FORMS:
    folder = tmp_path / "gemma4"
    save_random(*FAMILIES["Gemma 4"], folder)
  model, params = load(folder, make_mesh(1, 2, 2))
  fields = {**FORMS, **HYBRID_FORMS, **GEMMA4_FORMS}[form]
  theirs = make_adapter(folder, tmp_path / "theirs", **fields)
  stored = read(tmp_path / "theirs", model, params)
  config = stored.lora
  shapes = lora.abstract_adapter(params, model.config, config)
  adapter = load_peft.load_adapter(stored, shapes)
  ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (2, 20))
  out = theirs(torch.tensor(ids)).logits
  want = torch.nn.functional.cross_entropy(
    out[:, :-1].reshape(-1, out.shape[-1]), torch.tensor(ids[:, 1:]).reshape(-1)
  )
  want.backward()

  def loss(adapter):
    joined = lora.attach_adapter(Weights(params, adapter, config))
    found = logits(joined, jnp.asarray(ids), model)
    logprobs = jax.nn.log_softmax(found[:, :-1])
    picked = jnp.take_along_axis(logprobs, ids[:, 1:, None], axis=-1)
    return -picked.mean(), found

  forward = jax.jit(lambda params: logits(params, jnp.asarray(ids), model))
  (value, found), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    adapter
  )
  np.testing.assert_allclose(found, out.detach().numpy(), atol=1e-4)
  assert float(value) == pytest.approx(float(want.detach()), rel=1e-5)
  assert np.abs(forward(params) - found).max() > 1e-2
  merged = lora.merge_adapter(Weights(params, adapter, config))
  np.testing.assert_allclose(forward(merged), found, atol=1e-4)
  # One that rows of a sampler choose, beside another of a higher rank.
  wide = lora.LoraConfig(9, 1.0, "k_proj", False)
  other = lora.init_adapter(
    lora.abstract_adapter(params, model.config, wide), 0
  )
  both = lora.attach_adapters(
    [Weights(params, other, wide), Weights(params, adapter, config)]
  )
  alone = jax.tree_util.tree_map_with_path(
    lambda path, x: x[:, 1] if "lora_" in str(path[-1]) else x, both
  )
  np.testing.assert_allclose(forward(alone), found, atol=1e-4)
  ours = adapter_tensors(grads, model.config, config)
  assert_gradients(ours, theirs, 1e-4)
  # What fills up lower ranks is never trained.
  sizes = [np.count_nonzero(x) for x in jax.tree.leaves(grads)]
  assert sum(sizes) <= sum(x.size for x in ours.values())
  weights = Weights(params, adapter, config)
  at = export_adapter(tmp_path / "ours", weights, model.config, str(folder))
  again = peft.PeftModel.from_pretrained(load_torch(folder), at)
  assert torch.equal(again(torch.tensor(ids)).logits, out)
  assert read(at, model, params).lora.layers == config.layers


# --- refused, without torch ---------------------------------------------------

GOOD = {
  "peft_type": "LORA",
  "r": 2,
  "lora_alpha": 4,
  "target_modules": ["q_proj"],
  "base_model_name_or_path": "org/base",
  "peft_version": "0.99",
  "runtime_config": {"ephemeral_gpu_offload": False},
}


def write(folder, config, tensors):
  folder.mkdir()
  (folder / "adapter_config.json").write_text(json.dumps(config))
  safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
  return folder


def q_tensors(model, rank=2, blocks=2):
  at = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
  width = model.config.width
  return {
    at.format(i, kind): np.ones(shape, np.float32)
    for i in range(blocks)
    for kind, shape in (("A", (rank, width)), ("B", (width, rank)))
  }


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"use_dora": True}, "use_dora = True is not supported: merge it"),
    ({"peft_type": "IA3"}, "peft_type = 'IA3' is not supported"),
    ({"task_type": "SEQ_CLS"}, "task_type = 'SEQ_CLS'"),
    ({"bias": "all"}, "bias = 'all'"),
    ({"init_lora_weights": "pissa_niter_4"}, "changed the weights below"),
    ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\]"),
    (
      {"target_parameters": ["mlp.experts.down_proj"]},
      "target_parameters = 'mlp.experts.down_proj'.*it has no experts",
    ),
    ({"of_a_later_peft": 3}, "of_a_later_peft = 3 is not supported"),
    ({"r": 0}, "r = 0: must be above 0"),
    ({"lora_alpha": None}, "lora_alpha = None: must be"),
    ({"rank_pattern": {"q_proj": 2.5}}, r"rank_pattern\['q_proj'\] = 2.5"),
    ({"alpha_pattern": {"(q": 2}}, r"alpha_pattern: '\(q' is no regular"),
    ({"target_modules": "(q_proj"}, r"target_modules = '\(q_proj'"),
    ({"target_modules": ["k_proj"]}, "layer that target_modules .* not name"),
    (
      {"target_modules": ["q_proj", "k_proj"]},
      "no lora_A of attn/k in block 0",
    ),
    ({"r": 3}, r"has shape \(2, 64\), needed is \(3, 64\).*org/base"),
  ],
  ids=str,
)
def test_unsupported_fields_and_tensors_are_named(
  fields, message, tiny, tmp_path
):
  model, params = tiny
  good = write(tmp_path / "good", GOOD, q_tensors(model))
  assert read(good, model, params).lora.rank == 2
  bad = write(tmp_path / "bad", {**GOOD, **fields}, q_tensors(model))
  with pytest.raises(ValueError, match=message) as error:
    read(bad, model, params)
  assert str(bad) in str(error.value)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda x: x.popitem(), "no lora_B of attn/q in block 1"),
    (
      lambda x: x.update(q_tensors_of_block(2, x)),
      "layers.2.* not of a linear",
    ),
    (lambda x: x.update({"base_model.model.lm_head.weight": one()}), "lm_head"),
    (lambda x: x.update({next(iter(x)): np.ones((2, 9), np.float32)}), "2, 9"),
    (lambda x: x.update({next(iter(x)): np.ones((2, 64), np.int8)}), "I8"),
  ],
)
def test_tensors_that_do_not_fit_are_named(change, message, tiny, tmp_path):
  model, params = tiny
  tensors = q_tensors(model)
  change(tensors)
  folder = write(tmp_path / "bad", GOOD, tensors)
  with pytest.raises(ValueError, match=message):
    read(folder, model, params)


def q_tensors_of_block(block, tensors):
  name, tensor = next(iter(tensors.items()))
  return {name.replace("layers.0", f"layers.{block}"): tensor}


def one():
  return np.ones((4, 4), np.float32)


def test_the_base_in_the_config_is_compared(tiny, tiny_folder, tmp_path):
  model, params = tiny

  def line(path, **fields):
    name = f"a{len(list(tmp_path.iterdir()))}"
    folder = write(tmp_path / name, {**GOOD, **fields}, q_tensors(model))
    return adapter_folder.describe_base(
      read(folder, model, params), path, tiny_folder
    )

  assert line("org/base") == line("org/base@main") == ""
  assert "'org/base', and the model in use is demo:tiny" in line("demo:tiny")
  assert line("demo:tiny", base_model_name_or_path=str(tiny_folder)) == ""
  assert "is missing" in line("demo:tiny", base_model_name_or_path=None)
  assert line("org/base@v1", revision="v1") == ""
  assert "org/base@v1" in line("org/base@v1", revision="v2")


def test_folders_without_an_adapter_are_named(tmp_path):
  for text in ("nowhere", str(tmp_path)):
    with pytest.raises(adapter_folder.ModelSourceError, match=text):
      adapter_folder.find_adapter(text)
  (tmp_path / "adapter_config.json").write_text("{}")
  (tmp_path / "adapter_model.bin").write_bytes(b"")
  with pytest.raises(adapter_folder.ModelSourceError, match="pickled"):
    adapter_folder.find_adapter(tmp_path)
