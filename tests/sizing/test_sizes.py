"""Sizes of a dry run, against published counts, real arrays and XLA."""

import copy
import dataclasses
import importlib
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from cases import long_but
from helpers import (
  CONFIG,
  HYBRID,
  OPTIM,
  TWO_SHAPES,
  dense_loss,
  make_mesh,
  sampling,
)
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bct_jax import mesh as meshes
from bct_jax.config import ConfigError, LoraConfig, from_dict
from bct_jax.models.architecture import Layer
from bct_jax.models.decoder import Decoder
from bct_jax.models.lora import Weights
from bct_jax.models.rope import Rope
from bct_jax.objectives.sft import sft
from bct_jax.runtime.programs import MeshModel
from bct_jax.runtime.runtime import read_architecture
from bct_jax.sample.decode import Engine, kv_dtype
from bct_jax.sizing import sizes
from bct_jax.train import optim
from bct_jax.train.step import make_train_step
from bct_jax.types import Batch, Mean
from configs import tiny

MOE = dataclasses.replace(
  CONFIG, mlp_width=16, num_experts=4, experts_per_token=2, tied=False
)
HYBRID_MOE = dataclasses.replace(
  HYBRID, mlp_width=16, num_experts=4, experts_per_token=2, shared_width=24
)
# Large enough for arrays to outweigh what XLA adds to every program.
DENSE = dataclasses.replace(
  CONFIG,
  vocab_size=2048,
  width=128,
  head_dim=32,
  mlp_width=512,
  max_length=1024,
  layers=(Layer(None, Rope(10000.0)),) * 6,
)
FULL = LoraConfig(rank=0, alpha=8.0, targets="self_attn", rslora=False)


def mesh_model(architecture, mesh, remat="full", dtype=jnp.float32):
  config = from_dict(tiny.get_config().to_dict())
  return MeshModel(config, Decoder(architecture, dtype, remat), mesh)


def make_params(model):
  place = jax.tree.map(lambda a: a.sharding, model.abstract_params)
  return jax.jit(model.model.init, out_shardings=place)(jax.random.PRNGKey(0))


def on_first_device(tree) -> int:
  """Bytes that the first device really holds."""
  first = jax.devices()[0]
  return sum(
    shard.data.nbytes
    for x in jax.tree.leaves(tree)
    for shard in x.addressable_shards
    if shard.device == first
  )


# --- parameters ---------------------------------------------------------------

# Published totals. Gemma 3 12B has 12,187,325,040 with its image encoder
# (416,866,032) and the projection behind it (4,424,832).
PUBLISHED = {
  "llama3_1_8b": 8_030_261_248,
  "llama3_3_70b": 70_553_706_496,
  "qwen2_5_7b": 7_615_616_512,
  # As transformers' own models of these config.json have.
  "olmo3_7b": 7_298_011_136,
  "olmo3_32b": 32_233_522_176,
  "qwen3_30b_a3b": 30_532_122_624,
  # Likewise, without image encoder.
  "qwen3_5_9b": 8_953_803_264,
  # Likewise, with the 60 numbers that its blocks are multiplied by.
  "gemma4_31b": 30_697_345_280 + 60,
  # 20.9 and 116.8 billion, active 3.6 and 5.1 without the embedding (model
  # card, arXiv 2508.10925).
  "gpt_oss_20b": 20_914_757_184,
  "gpt_oss_120b": 116_829_156_672,
  "gemma3_12b": 12_187_325_040 - 416_866_032 - 4_424_832,
}

# Name -> billions of active parameters.
MIXTURES = {"qwen3_30b_a3b": 3.3, "gpt_oss_20b": 3.6, "gpt_oss_120b": 5.1}


@pytest.mark.parametrize("name", PUBLISHED)
def test_architectures_have_the_published_parameters(name):
  raw = importlib.import_module(f"configs.{name}").get_config().to_dict()
  config = from_dict(raw)
  architecture = read_architecture(config.model.architecture)
  params = jax.eval_shape(Decoder(architecture).init, jax.random.PRNGKey(0))
  assert sizes.num_params(params) == PUBLISHED[name]
  if name in MIXTURES:
    # Qwen counts the embedding as active, OpenAI does not.
    embed = name == "qwen3_30b_a3b"
    active = sizes.active_params(architecture, params, embed)
    assert active == pytest.approx(MIXTURES[name] * 1e9, abs=6e7)
  else:
    assert sizes.active_params(architecture, params) == PUBLISHED[name]


# --- exact bytes --------------------------------------------------------------


@pytest.mark.parametrize(
  "architecture",
  [
    CONFIG,
    MOE,
    pytest.param(HYBRID_MOE, marks=pytest.mark.long),
    pytest.param(TWO_SHAPES, marks=pytest.mark.long),
  ],
  ids=["dense", "moe", "hybrid moe", "two shapes"],
)
def test_bytes_are_those_of_real_arrays(architecture):
  abstract = mesh_model(architecture, meshes.abstract_mesh(2, 2, 2))
  real = mesh_model(architecture, make_mesh(2, 2, 2))
  for lora in (FULL, dataclasses.replace(FULL, rank=4)):
    train = SimpleNamespace(seed=0, seed_of_adapter=0)
    arm = SimpleNamespace(optim=OPTIM, lora=lora, train=train)
    with jax.set_mesh(real.mesh):
      weights = Weights(make_params(real))
      state = real.init_state(Weights(make_params(real)), arm)
      if lora.rank:
        weights = Weights(weights.params, state.params, lora)
      decode = on_first_device(real.decode_params(weights))
    shapes = abstract.abstract_state(OPTIM, lora)
    assert sizes.device_bytes(shapes.params) == on_first_device(state.params)
    moments = on_first_device(state.opt_state)
    assert sizes.device_bytes(shapes.opt_state) == moments
    assert sizes.device_bytes(abstract.abstract_decode(weights.lora)) == decode


@pytest.mark.parametrize("cached", ["auto", "int8"])
@pytest.mark.parametrize("tensor", [2, 4], ids=["split", "whole heads"])
@pytest.mark.parametrize("architecture", [CONFIG, TWO_SHAPES], ids=["", "two"])
def test_cache_bytes_are_those_of_the_cache(architecture, tensor, cached):
  mesh = make_mesh(1, 2, tensor)
  model = mesh_model(architecture, mesh)
  config = sampling(batch_size=6, kv_cache_dtype=cached)
  state = Engine(model.model, config, (), mesh).start(24, 6)
  dtype = kv_dtype(config, jnp.float32)
  found = sizes.cache_bytes(architecture, dtype, mesh.shape, 6, 24)
  assert found == on_first_device(state.past)


@pytest.mark.parametrize("cached", ["auto", "int8"])
def test_state_bytes_are_those_of_the_states(cached):
  """Of convolutions in bfloat16, and memories in float32."""
  mesh = make_mesh(1, 2, 2)
  model = Decoder(HYBRID, jnp.bfloat16)
  config = sampling(batch_size=6, kv_cache_dtype=cached)
  past = Engine(model, config, (), mesh).start(24, 6).past
  dtype = kv_dtype(config, jnp.bfloat16)
  keys = sizes.cache_bytes(HYBRID, dtype, mesh.shape, 6, 24)
  assert keys == on_first_device(past[1::2])
  states = sizes.state_bytes(HYBRID, jnp.bfloat16, mesh.shape, 6)
  assert states == on_first_device(past[::2])
  # 3 rows and 1 of 2 key heads on a device, 2 layers.
  by_hand = 2 * 3 * (2 * 8 * 12 * 4 + (2 * 8 + 2 * 12) * 3 * 2)
  assert states == by_hand


def test_dimensions_that_do_not_divide_are_named():
  odd = dataclasses.replace(CONFIG, mlp_width=66)
  model = mesh_model(odd, meshes.abstract_mesh(1, 1, 4))
  with pytest.raises(ValueError, match="mlp/.*66 does not divide.*tensor"):
    _ = model.abstract_params


def test_frozen_leaves_have_no_gradient_of_their_own():
  params = mesh_model(CONFIG, meshes.abstract_mesh(1, 1, 1)).abstract_params
  whole = sizes.flops_per_token(CONFIG, 16, params)
  frozen = sizes.flops_per_token(CONFIG, 16, None, params)
  assert whole - frozen == 2 * sizes.num_params(params)
  assert sizes.gradient_bytes(params, 2) == 2 * sizes.gradient_bytes(params, 1)


# --- activations --------------------------------------------------------------


def temporary_bytes(model: MeshModel, work: sizes.Work, objective=sft) -> int:
  """What XLA's program of a train step holds besides its state."""
  mesh = model.mesh
  state = model.abstract_state(OPTIM, FULL)
  rows, whole = meshes.row_sharding(mesh), NamedSharding(mesh, P())

  def array(dtype):
    shape = (work.rows, work.length)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

  ids = array(jnp.int32)
  batch = Batch(
    ids, ids, array(jnp.float32), ids, ids, num_trained=work.num_trained
  )
  place = jax.tree.map(lambda a: a.sharding, state)
  tx = optim.make_optimizer(OPTIM)
  step = make_train_step(
    objective, model.model, tx, place, None, mesh, work.accum
  )
  rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
  with jax.set_mesh(mesh):
    memory = step.lower(state, None, batch, rate).compile().memory_analysis()
  return memory.temp_size_in_bytes


def compiled_bytes(model: MeshModel, work: sizes.Work) -> int:
  """... and besides the gradients."""
  gradients = sizes.gradient_bytes(model.abstract_params, work.accum)
  return temporary_bytes(model, work) - gradients


def activations(model: MeshModel, work: sizes.Work) -> int:
  return sizes.activation_bytes(model.model, model.mesh.shape, work)


SHAPES = {
  "short": ((1, 1, 1), sizes.Work(8, 128, 64, 1)),
  "long": ((2, 2, 2), sizes.Work(4, 512, 256, 1)),
  "microbatches": ((1, 2, 2), sizes.Work(8, 256, 128, 2)),
}


@pytest.mark.parametrize(
  ("shape", "remat"),
  long_but(
    [("microbatches", "none")],
    [(shape, remat) for shape in SHAPES for remat in ("none", "dots", "full")],
  ),
)
def test_activations_are_near_what_xla_takes(shape, remat):
  axes, work = SHAPES[shape]
  model = mesh_model(DENSE, make_mesh(*axes), remat)
  found = activations(model, work)
  ratio = found / compiled_bytes(model, work)
  assert 1 / 1.25 < ratio < 1.25


def dense_sft(params, batch, rng, model):
  """The same loss from the logits of all positions."""
  return Mean(dense_loss(model, params, batch), jnp.sum(batch.weights)), {}


@pytest.mark.long
def test_a_step_takes_less_than_half_of_what_dense_logits_take():
  """The shape of SmolLM2-135M, rows of 512 positions of which 192 train.

  With remat "dots" both also keep 2.5 GB of products of the layers.
  """
  smollm2 = dataclasses.replace(
    CONFIG,
    vocab_size=49152,
    width=576,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    mlp_width=1536,
    layers=CONFIG.layers[:1] * 30,
  )
  model = mesh_model(smollm2, make_mesh(), "full")
  work = sizes.Work(8, 512, 192, 1)
  ours, dense = (temporary_bytes(model, work, f) for f in (sft, dense_sft))
  assert ours < 0.5 * dense


@pytest.mark.parametrize("length", long_but([512], [128, 512]))
def test_activations_of_experts_are_near_what_xla_takes(length):
  moe = dataclasses.replace(
    DENSE,
    mlp_width=64,
    num_experts=8,
    experts_per_token=2,
    layers=DENSE.layers[:2],
  )
  model = mesh_model(moe, make_mesh(1, 1, 2))
  work = sizes.Work(4, length, length // 2, 1)
  found = activations(model, work)
  # On CPU the ragged product becomes a dense one over all experts.
  assert 1 / 2.5 < found / compiled_bytes(model, work) < 1.25


# --- speed --------------------------------------------------------------------


def test_flops_of_a_published_model_by_hand():
  c = read_architecture("architectures/llama3_1_8b.json")
  params = jax.eval_shape(Decoder(c).init, jax.random.PRNGKey(0))
  products = 8_030_261_248 - 128_256 * 4096
  by_hand = 6 * products + 6 * 32 * 1024 * 4096
  assert sizes.flops_per_token(c, 1024, params) == by_hand
  rate = sizes.tokens_per_second(by_hand, 197e12, 16)
  assert rate == pytest.approx(27_507, abs=1)


@pytest.mark.parametrize("window", [None, 100, 4096])
def test_attention_counts_the_keys_that_are_seen(window):
  length, layers = 1000, (Layer(window, None), Layer(None, None))
  c = dataclasses.replace(CONFIG, layers=layers)
  found = sizes.flops_per_token(c, length, None)
  seen = sum(
    min(t + 1, layer.window or length)
    for layer in layers
    for t in range(length)
  )
  by_hand = 12 * 4 * 8 * seen / length
  assert math.isclose(found, by_hand, rel_tol=0.002)


def test_attention_counts_heads_of_two_shapes():
  found = sizes.flops_per_token(TWO_SHAPES, 100, None)
  # Two layers with heads of 8 and a window of 8, two with heads of 16.
  want = 12 * 4 * 2 * (8 * 8 * (1 - 8 / 200) + 16 * 100 * (1 - 100 / 200))
  assert found == pytest.approx(want)


def test_linear_layers_count_their_memories():
  """A token reads each number twice and writes it once, and again backward."""
  found = sizes.flops_per_token(HYBRID, 100, None)
  full = dataclasses.replace(HYBRID, layers=HYBRID.layers[1::2], delta=None)
  memories = 2 * 4 * 8 * 12  # layers x value heads x key width x value width
  want = sizes.flops_per_token(full, 100, None) + 3 * 3 * 2 * memories
  assert found == want


def test_only_a_looked_up_embedding_is_left_out():
  for config in (CONFIG, dataclasses.replace(CONFIG, tied=False)):
    params = jax.eval_shape(Decoder(config).init, jax.random.PRNGKey(0))
    total = sizes.num_params(params)
    out = 0 if config.tied else 96 * 32
    assert sizes.active_params(config, params, embed=False) == total - out


# --- the command --------------------------------------------------------------


def dry_run(raw, capsys) -> str:
  from bct_jax.modes.dry_run import run_dry_run

  run_dry_run(from_dict(raw))
  return capsys.readouterr().out


def offline(monkeypatch):
  """A hub that nothing was downloaded from, and that must not be asked."""
  import huggingface_hub

  def download(name, **options):
    assert options["local_files_only"], "a dry run asked the hub"
    raise OSError(f"{name} is not in the cache")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


@pytest.mark.parametrize("name", long_but(["llama3_1_8b"], list(PUBLISHED)))
def test_dry_run_from_the_architecture_alone(name, monkeypatch, capsys):
  offline(monkeypatch)
  raw = importlib.import_module(f"configs.{name}").get_config().to_dict()
  assert set(raw["arms"]) == {"low", "high"}
  out = dry_run(raw, capsys)
  assert f"{PUBLISHED[name]:,} parameters" in out
  assert ("active per token" in out) == (name in MIXTURES)
  assert "tokens/s = 0.4 x" in out
  assert "data and prompts are not checked: model" in out
  assert "NOT FIT" not in out


def test_dry_run_says_what_does_not_fit(monkeypatch, capsys):
  offline(monkeypatch)
  module = importlib.import_module("configs.llama3_1_8b")
  raw = module.get_config().to_dict()
  raw["mesh"].update(data=16, fsdp=1, tensor=1)
  with pytest.raises(ConfigError, match="on v5e by .* GiB:\n.* saves about"):
    dry_run(raw, capsys)
  out = capsys.readouterr().out
  training = next(x for x in out.splitlines() if "= training" in x)
  assert "DOES NOT FIT" in training
  # Copies of the params on every chip: 4 bytes each.
  assert f"weights{8_030_261_248 * 4 / 2**30:16.2f}" in out


def with_folder(folder) -> dict:
  raw = copy.deepcopy(tiny.get_config().to_dict())
  raw["model"]["path"] = str(folder)
  return raw


def test_dry_run_of_a_folder_on_more_devices_than_are_here(tiny_folder, capsys):
  raw = with_folder(tiny_folder)
  raw["mesh"].update(data=8, fsdp=2, tensor=2)
  out = dry_run(raw, capsys)
  assert "32 devices" in out and "tokens/s" not in out
  assert "arm high: 4 updates of 8 examples in 32 x" in out
  assert "not checked" not in out


def test_dry_run_without_model_and_architecture_fails(monkeypatch, capsys):
  offline(monkeypatch)
  with pytest.raises(ValueError, match="no/such"):
    dry_run(with_folder("no/such/folder"), capsys)


def test_architecture_must_be_that_of_the_folder(tiny_folder, capsys):
  raw = with_folder(tiny_folder)
  raw["model"]["architecture"] = str(tiny_folder / "config.json")
  assert "evals after" in dry_run(raw, capsys)
  raw["model"]["architecture"] = "architectures/qwen2_5_7b.json"
  with pytest.raises(
    ValueError, match="vocab_size 152064, not .*qkv_bias True"
  ):
    dry_run(raw, capsys)
