"""Exported folders: bit for bit, loaded by others, whole or not at all."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from cases import long_but
from helpers import make_mesh
from safetensors.numpy import load_file, save_file

from bct_jax import mesh as meshes
from bct_jax.data.chat import Chat
from bct_jax.infra import whole_folder
from bct_jax.infra.whole_folder import MANIFEST, ModelSourceError
from bct_jax.models import decoder, demo, partition
from bct_jax.models.config import from_hf
from bct_jax.models.huggingface import export
from bct_jax.models.huggingface.files import INDEX, WEIGHTS

ROOT = Path(__file__).parents[2]
# The smallest and largest numbers, zeros of both signs, and what is no number.
EXTREME = [6e-8, -3e-5, 65504, -0.0, np.inf, -np.inf, np.nan, 1e-40]


def weights(folder: Path) -> dict[str, np.ndarray]:
  """All tensors of a folder, by the library, each from where the index says."""
  if not (folder / INDEX).exists():
    return load_file(folder / WEIGHTS)
  of = json.loads((folder / INDEX).read_text())["weight_map"]
  files = {file: load_file(folder / file) for file in set(of.values())}
  assert set(of) == {n for tensors in files.values() for n in tensors}
  return {name: files[file][name] for name, file in of.items()}


def assert_same_bits(ours, theirs):
  assert ours.keys() == theirs.keys()
  for name, x in theirs.items():
    assert ours[name].dtype == x.dtype and ours[name].shape == x.shape, name
    assert ours[name].tobytes() == x.tobytes(), name


@pytest.fixture(scope="module")
def tiny(tiny_folder):
  model, params = parity.load(tiny_folder, make_mesh(2, 2, 2))
  return model.config, params, tiny_folder


# --- what is written ----------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", export.DTYPES)
def test_round_trip_keeps_every_bit(tmp_path, dtype, tied):
  source = demo.tiny(tmp_path / "source", tied=tied)
  tensors = load_file(source / WEIGHTS)
  for name, x in tensors.items():
    x.reshape(-1)[:8] = EXTREME
    with np.errstate(all="ignore"):
      tensors[name] = x.astype(jnp.dtype(dtype))
  save_file(tensors, source / WEIGHTS, metadata={"format": "pt"})
  model, params = parity.load(source, make_mesh(2, 2, 2))
  for size, files in ((10**9, 1), (60_000, None)):
    out = tmp_path / str(size)
    written = export.export_hf(
      params, model.config, source, out, dtype, shard_bytes=size
    )
    assert_same_bits(weights(out), tensors)
    assert written.size == sum(x.nbytes for x in tensors.values())
    assert files in (None, len(written.files))
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == dtype
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert from_hf(out) == model.config
    assert (
      whole_folder.find_damage(
        out, {"made_by": "bct_jax export", "dtype": dtype}
      )
      is None
    )


def test_files_keep_to_their_size(tiny, tmp_path):
  config, params, source = tiny
  limit = 40_000
  export.export_hf(params, config, source, tmp_path / "out", None, limit)
  index = json.loads((tmp_path / "out" / INDEX).read_text())
  files = sorted(set(index["weight_map"].values()))
  count = len(files)
  assert files == [
    f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)
  ]
  tensors = weights(tmp_path / "out")
  total = 0
  for file in files:
    sizes = [
      tensors[n].nbytes for n, at in index["weight_map"].items() if at == file
    ]
    assert sum(sizes) <= limit or len(sizes) == 1
    total += sum(sizes)
  assert total == index["metadata"]["total_size"]
  # Layers lie in order, so that a reader of one needs few files.
  layers = [n for n in index["weight_map"] if "layers." in n]
  numbers = [int(n.split(".")[2]) for n in layers]
  assert numbers == sorted(numbers)


def test_dtype_defaults_to_that_of_the_params(tiny, tmp_path):
  config, params, source = tiny
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  for tree, name in ((params, "float32"), (half, "bfloat16")):
    written = export.export_hf(tree, config, source, tmp_path / name)
    assert written.dtype == name
    assert {x.dtype.name for x in weights(tmp_path / name).values()} == {name}
  mixed = {**params, "embed": half["embed"]}
  with pytest.raises(ValueError, match="bfloat16, float32: name one dtype"):
    export.export_hf(mixed, config, source, tmp_path / "mixed")


def test_numbers_that_do_not_fit_are_refused(tiny, tmp_path):
  config, params, source = tiny
  scale = params["norm"]["scale"].at[3].set(70000)
  params = {**params, "norm": {"scale": scale}}
  with pytest.raises(ValueError, match="norm.weight: a value of 7e4 does"):
    export.export_hf(params, config, source, tmp_path / "out", "float16")
  assert not list(tmp_path.glob("*out*/*"))
  export.export_hf(params, config, source, tmp_path / "out", "bfloat16")


def test_unknown_dtype_and_parameter_are_refused(tiny, tmp_path):
  config, params, source = tiny
  with pytest.raises(ValueError, match="'int8': one of float32"):
    export.export_hf(params, config, source, tmp_path / "out", "int8")
  with pytest.raises(ValueError, match="parameter adapter .* has no name"):
    more = {**params, "adapter": params["embed"]}
    export.export_hf(more, config, source, tmp_path / "out")
  with pytest.raises(ValueError, match=r"has no name.*family llama"):
    other = dataclasses.replace(config, tied=True)
    more = {**params, "head": params["embed"].T}
    export.export_hf(more, other, source, tmp_path / "out")
  assert not list(tmp_path.iterdir())


def test_tokenizer_and_template_go_along(tiny, tmp_path):
  config, params, source = tiny
  source = Path(shutil.copytree(source, tmp_path / "source"))
  settings = json.loads((source / "tokenizer_config.json").read_text())
  (source / "chat_template.jinja").write_text(settings.pop("chat_template"))
  whole_folder.write_json(source / "tokenizer_config.json", settings)
  (source / "notes.txt").write_text("of the source alone")
  export.export_hf(params, config, source, tmp_path / "out")
  chats = [Chat(f, config.vocab_size) for f in (source, tmp_path / "out")]
  messages = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "naïve 12 <|im_end|>\n"},
  ]
  assert chats[0].prompt(messages) == chats[1].prompt(messages)
  assert chats[0].template_hash == chats[1].template_hash
  assert chats[0].tokenizer_hash == chats[1].tokenizer_hash
  assert chats[0].stop_ids == chats[1].stop_ids
  # A template that the config gives goes along in place of the source's.
  given = "{{ bos_token }}" + chats[0].template.text
  export.export_hf(
    params, config, source, tmp_path / "out", chat_template=given
  )
  assert Chat(tmp_path / "out", config.vocab_size).template.text == given
  assert not (tmp_path / "out" / "notes.txt").exists()
  assert (tmp_path / "out" / "generation_config.json").read_bytes() == (
    source / "generation_config.json"
  ).read_bytes()


# --- where it is written ------------------------------------------------------


def foreign(folder: Path, tiny_folder: Path, kind: str) -> str:
  """Puts something at `folder`; returns the complaint to expect."""
  if kind == "file":
    folder.write_text("mine")
    return "it is a file"
  if kind == "link":
    folder.symlink_to(tiny_folder)
    return "it is a link"
  if kind == "other folder":
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    return f"it has no {MANIFEST}"
  shutil.copytree(tiny_folder, folder)
  if kind == "demo model":
    return "it was made for .*tiny"
  (folder / MANIFEST).write_text("{" if kind == "broken" else "[]")
  return f"{MANIFEST} is unreadable"


KINDS = ("file", "link", "other folder", "demo model", "broken", "list")


@pytest.mark.parametrize("kind", KINDS)
def test_what_others_wrote_is_left_alone(tiny, tmp_path, kind):
  config, params, source = tiny
  complaint = foreign(tmp_path / "out", source, kind)
  before = sorted(os.walk(tmp_path))
  with pytest.raises(ModelSourceError, match=complaint):
    export.export_hf(params, config, source, tmp_path / "out")
  with pytest.raises(ModelSourceError, match=complaint):
    export.check_target(tmp_path / "out")
  assert sorted(os.walk(tmp_path)) == before


def test_earlier_export_is_replaced_unless_somebody_added_to_it(tiny, tmp_path):
  config, params, source = tiny
  out = tmp_path / "a folder"
  out.mkdir()  # An empty one is nobody's.
  export.export_hf(params, config, source, out, shard_bytes=60_000)
  export.export_hf(params, config, source, out, "bfloat16")
  assert {p.name for p in out.iterdir()} == {
    *(p.name for p in source.iterdir())
  }
  assert {x.dtype.name for x in weights(out).values()} == {"bfloat16"}
  assert {p.name for p in tmp_path.iterdir()} <= {"a folder", ".a folder.lock"}
  (out / "README.md").write_text("mine")
  with pytest.raises(ModelSourceError, match="README.md in it was put there"):
    export.export_hf(params, config, source, out)
  assert (out / "README.md").read_text() == "mine"


def test_failed_export_leaves_what_was_there(tiny, tmp_path, monkeypatch):
  config, params, source = tiny
  export.export_hf(params, config, source, tmp_path / "out")
  before = (tmp_path / "out" / WEIGHTS).read_bytes()
  cast, calls = export._cast, []

  def fail(*args):
    calls.append(args)
    if len(calls) == 9:
      raise OSError(errno.ENOSPC, "No space left on device")
    return cast(*args)

  monkeypatch.setattr(export, "_cast", fail)
  for name in ("out", "new"):
    calls.clear()
    with pytest.raises(OSError, match="cannot write .*No space left"):
      export.export_hf(params, config, source, tmp_path / name, "bfloat16")
  assert (tmp_path / "out" / WEIGHTS).read_bytes() == before
  assert {p.name for p in tmp_path.iterdir() if p.suffix != ".lock"} == {"out"}


KILLED = """
  import os, signal, sys
  from pathlib import Path
  sys.path.insert(0, "tests/support")
  import parity
  from helpers import make_mesh
  from bct_jax.models.huggingface import export
  source, out, at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
  model, params = parity.load(source, make_mesh())
  cast, calls = export._cast, []
  def kill(*args):
    calls.append(args)
    if len(calls) == at:
      os.kill(os.getpid(), signal.SIGKILL)
    return cast(*args)
  export._cast = kill
  export.export_hf(params, model.config, source, out, shard_bytes=60_000)
"""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_killed_export_leaves_no_folder(tiny, tmp_path):
  config, params, source = tiny
  out = tmp_path / "out"

  def start(at: int) -> int:
    code = textwrap.dedent(KILLED)
    command = [sys.executable, "-c", code, source, out, str(at)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode

  assert start(12) == -signal.SIGKILL
  assert not out.exists() and list(tmp_path.glob(".out.tmp-*"))
  assert start(-1) == 0
  assert_same_bits(weights(out), weights(source))
  assert not list(tmp_path.glob(".out.tmp-*"))


# --- against torch ------------------------------------------------------------


def torch_logits(folder, ids, kind="AutoModelForCausalLM"):
  import torch
  import transformers

  model, info = getattr(transformers, kind).from_pretrained(
    folder, dtype=torch.float32, output_loading_info=True
  )
  assert not info["missing_keys"] and not info["unexpected_keys"]
  with torch.no_grad():
    return model.eval()(torch.tensor(ids)).logits.numpy()


def our_logits(model, params, ids):
  at = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  hidden = model.hidden(params, jnp.asarray(ids), at, jnp.ones_like(at))
  return np.asarray(model.logits(params, hidden))


IDS = np.random.default_rng(0).integers(8, 264, (2, 24))


@pytest.mark.long
@pytest.mark.parity
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("size", [10**9, 60_000])
def test_torch_loads_what_we_write(tmp_path, tied, size):
  source = demo.tiny(tmp_path / "source", tied=tied)
  model, params = parity.load(source, make_mesh(1, 2, 2))
  params = jax.tree.map(lambda x: x * 1.25, params)  # as training would
  out = tmp_path / "out"
  export.export_hf(params, model.config, source, out, None, size)
  theirs = torch_logits(out, IDS)
  np.testing.assert_allclose(our_logits(model, params, IDS), theirs, atol=1e-4)


@pytest.mark.long
@pytest.mark.parity
def test_experts_are_taken_apart(tmp_path):
  """A mixture of experts over a mesh, from random params to torch's logits."""
  source = tmp_path / "source"
  source.mkdir()
  values = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
  }
  whole_folder.write_json(source / "config.json", values)
  model = decoder.Decoder(from_hf(source))
  mesh = make_mesh(1, 2, 2)
  shapes = jax.eval_shape(model.init, jax.random.PRNGKey(0))
  place = meshes.shardings(shapes, partition.rules(model.config, 2), mesh)
  params = jax.jit(model.init)(jax.random.PRNGKey(0))
  params = jax.tree.map(lambda x, s: jax.device_put(x * 3, s), params, place)
  export.export_hf(params, model.config, source, tmp_path / "out", None, 30_000)
  _, again = parity.load(tmp_path / "out", mesh)
  jax.tree.map(np.testing.assert_array_equal, again, params)
  ours, theirs = (
    our_logits(model, params, IDS),
    torch_logits(tmp_path / "out", IDS),
  )
  np.testing.assert_allclose(ours, theirs, atol=1e-3)


TEXT = {
  "vocab_size": 264,
  "hidden_size": 64,
  "intermediate_size": 128,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 16,
  "initializer_range": 0.3,
}
IMAGE = {
  "hidden_size": 32,
  "intermediate_size": 32,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "image_size": 28,
  "patch_size": 14,
}
# model_type of the language model -> the class around it, its configuration.
WRAPPED = {
  "gemma3_text": (
    "Gemma3",
    {
      "text_config": {
        **TEXT,
        "num_hidden_layers": 7,
        "sliding_window": 8,
        "query_pre_attn_scalar": 16,
      },
      "mm_tokens_per_image": 4,
      "image_token_index": 5,
      "boi_token_index": 6,
      "eoi_token_index": 7,
      "vision_config": IMAGE,
    },
  ),
  "qwen3_5_text": (
    "Qwen3_5",
    {
      "text_config": {
        **TEXT,
        "full_attention_interval": 3,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
      },
      "vision_config": {
        **{k: v for k, v in IMAGE.items() if "_attention" not in k},
        "depth": 1,
        "num_heads": 2,
        "out_hidden_size": 64,
      },
    },
  ),
  "mistral": (
    "Mistral3",
    {
      "text_config": {**TEXT, "model_type": "mistral", "sliding_window": None},
      "vision_config": {**IMAGE, "head_dim": 16, "model_type": "pixtral"},
      "tie_word_embeddings": False,
    },
  ),
  "ministral3": (
    "Mistral3",
    {
      "text_config": {
        **TEXT,
        "model_type": "ministral3",
        "tie_word_embeddings": True,
      },
      "vision_config": {**IMAGE, "head_dim": 16, "model_type": "pixtral"},
      "tie_word_embeddings": True,
    },
  ),
}


@pytest.fixture(scope="module", params=long_but(["gemma3_text"], list(WRAPPED)))
def wrapped(request, tmp_path_factory, tiny_folder):
  """A tiny model with an image encoder, as transformers writes it."""
  import torch
  import transformers

  torch.manual_seed(0)
  name, values = WRAPPED[request.param]
  config = getattr(transformers, f"{name}Config")(**values)
  folder = tmp_path_factory.mktemp("wrapped") / "model"
  kind = f"{name}ForConditionalGeneration"
  getattr(transformers, kind)(config).save_pretrained(folder)
  for path in tiny_folder.glob("tokenizer*"):
    shutil.copy(path, folder)
  return request.param, folder, torch_logits(folder, IDS, kind)


def renamed(name: str, newer: bool) -> str:
  """The name of a tensor in either of the two spellings."""
  if name.endswith("lm_head.weight"):
    return "lm_head.weight" if newer else "language_model.lm_head.weight"
  name = name.removeprefix("model.")
  for prefix in ("language_model.model.", "language_model."):
    if name.startswith(prefix):
      name = "language_model." + name.removeprefix(prefix)
      break
  if newer:
    return f"model.{name}"
  return name.replace("language_model.", "language_model.model.")


@pytest.mark.parity
@pytest.mark.parametrize("newer", [False, True])
def test_models_with_an_image_encoder(wrapped, tmp_path, capsys, newer):
  kind, original, theirs = wrapped
  source = Path(shutil.copytree(original, tmp_path / "source"))
  tensors = {renamed(n, newer): x for n, x in weights(source).items()}
  images = sum(
    any(x in n for x in ("vision", "visual", "projector")) for n in tensors
  )
  save_file(tensors, source / WEIGHTS, metadata={"format": "pt"})
  capsys.readouterr()
  model, params = parity.load(demo.resolve(source), make_mesh(1, 2, 2))
  lines = capsys.readouterr().err.splitlines()
  assert [x for x in lines if "image" in x] == [
    f"{source}: only the language model is loaded, the image encoder "
    f"({images} tensors) is left out"
  ]
  assert 0.1 < theirs.std()
  np.testing.assert_allclose(our_logits(model, params, IDS), theirs, atol=1e-3)
  out = tmp_path / "out"
  export.export_hf(params, model.config, source, out)
  assert from_hf(out) == model.config
  config = json.loads((out / "config.json").read_text())
  assert config["architectures"] == [
    {
      "gemma3_text": "Gemma3",
      "mistral": "Mistral",
      "ministral3": "Ministral3",
      "qwen3_5_text": "Qwen3_5",
    }[kind]
    + "ForCausalLM"
  ]
  assert config["model_type"] == kind
  np.testing.assert_allclose(torch_logits(out, IDS), theirs, atol=1e-4)
  del tensors[next(n for n in tensors if "q_proj" in n and "lang" in n)]
  save_file(tensors, source / WEIGHTS, metadata={"format": "pt"})
  with pytest.raises(ValueError, match="missing .*q_proj"):
    parity.load(source, make_mesh())


def test_gemma3_published_without_its_heads(tmp_path):
  """config.json of the 4B says no number of heads, an export of it does."""
  text = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 16,
  }
  source = tmp_path / "source"
  source.mkdir()
  values = {"model_type": "gemma3", "text_config": text, "vision_config": {}}
  whole_folder.write_json(source / "config.json", values)
  config = from_hf(source)
  assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 4, 256)
  assert config.layers[0].rope.factor == 1 and config.layers[5].rope.factor == 8
  small = dataclasses.replace(config, layers=config.layers[:1], vocab_size=8)
  params = jax.jit(decoder.Decoder(small).init)(jax.random.PRNGKey(0))
  export.export_hf(params, small, source, tmp_path / "out")
  written = dataclasses.replace(from_hf(tmp_path / "out"), vocab_size=262208)
  assert written == config
