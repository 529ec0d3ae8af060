"""Weights from safetensors: exact, sharded, in little memory, or refused."""

import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_mesh
from parity import hf_tensors as by_hf_name
from runs import without_torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from bct_jax import mesh as meshes
from bct_jax.infra import whole_folder
from bct_jax.models import decoder, demo, partition
from bct_jax.models.config import from_hf
from bct_jax.models.huggingface import files, safetensors_file
from bct_jax.models.huggingface import load as huggingface_load
from bct_jax.models.huggingface.files import INDEX, WEIGHTS
from bct_jax.models.huggingface.load import load_params

SUPPORT = Path(__file__).parents[1] / "support"
DTYPES = ("float32", "bfloat16", "float16")
# The smallest and largest numbers, zeros of both signs, and what is no number.
EXTREME = [6e-8, -3e-5, 65504, -0.0, np.inf, -np.inf, np.nan, 1e-40]


def load(folder, mesh, dtype="float32"):
  config = from_hf(folder)
  shapes = jax.eval_shape(decoder.Decoder(config).init, jax.random.PRNGKey(0))
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), shapes
  )
  rules = partition.rules(config, mesh.shape["tensor"])
  place = meshes.shardings(shapes, rules, mesh)
  return config, load_params(folder, config, shapes, place)


def bits(x: np.ndarray) -> bytes:
  return np.ascontiguousarray(x).tobytes()


@pytest.fixture
def folder(tiny_folder, tmp_path):
  return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def rewrite(folder, change) -> None:
  """Lets `change` edit the dict of all tensors of a folder with one file."""
  tensors = load_file(folder / WEIGHTS)
  change(tensors)
  save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def split(folder) -> dict[str, str]:
  """Makes three files and an index of the one."""
  tensors = load_file(folder / WEIGHTS)
  (folder / WEIGHTS).unlink()
  of = {n: f"part-{i % 3}.safetensors" for i, n in enumerate(sorted(tensors))}
  for file in set(of.values()):
    save_file(
      {n: x for n, x in tensors.items() if of[n] == file}, folder / file
    )
  write_index(folder, of)
  return of


def write_index(folder, weight_map) -> None:
  (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


# --- exact --------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("stored", DTYPES)
def test_every_number_arrives(tmp_path, stored, tied):
  folder = demo.tiny(tmp_path / "model", tied=tied)
  expected = {}

  def change(tensors):
    for name, x in tensors.items():
      x.reshape(-1)[:8] = EXTREME
      with np.errstate(all="ignore"):
        tensors[name] = expected[name] = x.astype(jnp.dtype(stored))

  rewrite(folder, change)
  split(folder)
  for shape in ((2, 2, 2), (1, 1, 1)):
    for dtype in ("float32", "bfloat16"):
      config, params = load(folder, make_mesh(*shape), dtype)
      assert config.tied == tied
      found = by_hf_name(params, config)
      assert found.keys() == expected.keys()
      for name, x in expected.items():
        assert bits(found[name]) == bits(x.astype(jnp.dtype(dtype))), name
        assert found[name].shape == x.shape


def test_params_do_not_live_in_the_hosts_buffers(folder, monkeypatch):
  """A CPU device may use those as they are, and could then not donate them."""
  kept, make = [], huggingface_load._aligned

  def keep(*args):
    kept.append(make(*args))
    return kept[-1]

  monkeypatch.setattr(huggingface_load, "_aligned", keep)
  _, params = load(folder, make_mesh(2, 2, 2))
  starts = {x.ctypes.data for x in kept}
  for leaf in jax.tree.leaves(params):
    for shard in leaf.addressable_shards:
      assert shard.data.unsafe_buffer_pointer() not in starts
  step = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)
  jax.block_until_ready(step(params))
  assert all(x.is_deleted() for x in jax.tree.leaves(params))


def test_tied_model_may_ship_its_head(folder):
  rewrite(
    folder,
    lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 0}),
  )
  _, params = load(folder, make_mesh())
  assert "head" not in params
  rewrite(folder, lambda t: t["lm_head.weight"].__iadd__(1))
  with pytest.raises(ValueError, match="lm_head.weight is not a copy of model"):
    load(folder, make_mesh())


def test_rows_equal_the_library(folder):
  tensors = safetensors_file.read_header(folder / WEIGHTS)
  with safe_open(folder / WEIGHTS, framework="numpy") as f:
    assert set(f.keys()) == set(tensors)
    for name, tensor in tensors.items():
      view = f.get_slice(name)
      assert tensor.shape == tuple(view.get_shape())
      rows = tensor.shape[0]
      for start, stop in ((0, rows), (3, 7), (rows - 1, rows), (2, 2)):
        ours = safetensors_file.read_rows(tensor, start, stop)
        np.testing.assert_array_equal(ours, view[start:stop])


@pytest.mark.parametrize("size", [1, 100, 512, 10**6])
def test_blocks_of_rows_cover_each_row_once(folder, size):
  name = "model.embed_tokens.weight"
  tensor = safetensors_file.read_header(folder / WEIGHTS)[name]
  blocks = list(safetensors_file.row_blocks(tensor, 5, 261, size))
  assert [n for a, b in blocks for n in range(a, b)] == list(range(5, 261))
  assert max(b - a for a, b in blocks) == min(256, max(1, size // 256))


# --- refused ------------------------------------------------------------------

Q = "model.layers.1.self_attn.q_proj.weight"


def edit_header(folder, change) -> None:
  data = (folder / WEIGHTS).read_bytes()
  length = int.from_bytes(data[:8], "little")
  header = json.loads(data[8 : 8 + length])
  change(header)
  text = json.dumps(header).encode()
  rest = data[8 + length :]
  (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + rest)


def entry(**values):
  return lambda f: edit_header(f, lambda h: h[Q].update(values))


def raw(data):
  return lambda f: (f / WEIGHTS).write_bytes(data)


def cut(f):
  with (f / WEIGHTS).open("r+b") as stream:
    stream.truncate((f / WEIGHTS).stat().st_size - 100)


TWICE = b'{"a":1,"a":2}'
FAULTS = {
  "empty": (raw(b""), "header of 0 bytes in a file of 0"),
  "huge header": (raw(b"\xff" * 99), "header of 1844.* in a file of 99"),
  "a pickle": (raw(pickle.dumps([1] * 99)), "not a safetensors file"),
  "not JSON": (raw(b"\x02" + b"\0" * 7 + b"{]"), "bad safetensors header"),
  "a list": (raw(b"\x02" + b"\0" * 7 + b"[]"), "bad safetensors header"),
  "twins": (raw(b"\x0d" + b"\0" * 7 + TWICE), "'a' is in it twice"),
  "cut short": (cut, r"tensor model\.\S+ ends at byte .* cut short"),
  "tail": (lambda f: raw((f / WEIGHTS).read_bytes() + b"x")(f), "1 bytes beh"),
  "overlap": (entry(data_offsets=[0, 64 * 64 * 4]), "the header is damaged"),
  "size": (entry(shape=[64, 63]), rf"tensor {Q}: F32 \(64, 63\) has other"),
  "negative": (entry(shape=[-64, -64]), f"tensor {Q}: dtype, shape and two"),
  "no shape": (entry(shape=None), f"tensor {Q}: dtype, shape and two"),
  "transposed": (entry(shape=[32, 128]), rf"tensor {Q} has shape \(32, 128\)"),
  "integers": (
    lambda f: rewrite(f, lambda t: t.update({Q: t[Q].astype(np.int32)})),
    f"tensor {Q} is stored as I32; F32, F16, BF16",
  ),
  "missing": (
    lambda f: rewrite(f, lambda t: t.pop(Q)),
    rf"missing from the checkpoint: \['{Q}'\] \(1\)",
  ),
  "extra": (
    lambda f: rewrite(f, lambda t: t.update({"spare": np.ones(3)})),
    r"not part of the model: \['spare'\] \(1\)",
  ),
  "image encoder of a Llama": (
    lambda f: rewrite(f, lambda t: t.update({"vision_tower.x": np.ones(3)})),
    r"not part of the model: \['vision_tower.x'\]",
  ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_file_is_refused(folder, fault):
  damage, message = FAULTS[fault]
  damage(folder)
  with pytest.raises(ValueError, match=message) as info:
    load(folder, make_mesh())
  assert str(folder) in str(info.value)


def index_faults(folder, of):
  """Each way to break an index, and the message."""
  part = of[Q]
  yield dict.fromkeys(of, "../x.safetensors"), "names '../x.safetensors'"
  yield {**of, Q: "part.bin"}, "names 'part.bin': not a safetensors"
  yield {**of, Q: "gone.safetensors"}, "missing: .'gone.safetensors'"
  other = next(file for file in of.values() if file != part)
  yield {**of, Q: other}, f"{other}: no tensor {Q}, which {INDEX} lists"
  less = {n: file for n, file in of.items() if n != Q}
  yield less, f"{part}: tensor {Q} is not in {INDEX}"
  yield {**of, "spare": part}, f"{part}: no tensor spare"
  yield {}, "weight_map must map tensors to files"
  yield [], "weight_map must map tensors to files"


def test_broken_index_is_refused(folder):
  of = split(folder)
  for weight_map, message in index_faults(folder, of):
    write_index(folder, weight_map)
    with pytest.raises(ValueError, match=message):
      load(folder, make_mesh())
  (folder / INDEX).write_text('{"weight_map": {\n"a": "b",\n"c": }}')
  with pytest.raises(ValueError, match=f"{INDEX}:3: not JSON"):
    load(folder, make_mesh())
  write_index(folder, of)
  save_file({"a": np.ones(2)}, folder / WEIGHTS)
  with pytest.raises(ValueError, match="remove one of the two"):
    load(folder, make_mesh())


class Bomb:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (self.path, "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "x.pth"])
def test_pickles_are_refused_and_not_opened(folder, name):
  (folder / WEIGHTS).unlink()
  (folder / name).write_bytes(pickle.dumps(Bomb(str(folder / "gone off"))))
  for find in (demo.resolve, lambda f: load(f, make_mesh())):
    with pytest.raises(ValueError, match=f"but {name}: pickled weights"):
      find(folder)
  assert not (folder / "gone off").exists()


@pytest.mark.parity
@pytest.mark.long
def test_the_advice_on_pickles_works(folder):
  import torch

  tensors = load_file(folder / WEIGHTS)
  state = {n: torch.from_numpy(x) for n, x in tensors.items()}
  torch.save(state, folder / "pytorch_model.bin")
  (folder / WEIGHTS).unlink()
  advice = files.no_weights(folder)
  command = shlex.split(advice[advice.index("python -c") :])
  env = {**os.environ, "HF_HUB_OFFLINE": "1"}
  subprocess.run([sys.executable, *command[1:]], check=True, env=env)
  config, params = load(demo.resolve(f"{folder}-safetensors"), make_mesh())
  for name, x in by_hf_name(params, config).items():
    np.testing.assert_array_equal(x, tensors[name])


# --- memory -------------------------------------------------------------------


def make_big(folder: Path) -> int:
  """A model of 0.6 GB in bfloat16, file by file.

  Returns:
    Numbers in its largest tensor.
  """
  layers, width, mlp, vocab = 4, 2048, 6144, 32000
  folder.mkdir()
  config = files.llama_config(
    layers=layers,
    width=width,
    mlp=mlp,
    heads=16,
    kv_heads=8,
    head_dim=128,
    vocab=vocab,
    positions=2048,
    rope_theta=1e4,
    norm_eps=1e-5,
    tied=False,
    bos=1,
    eos=2,
    pad=2,
  )
  whole_folder.write_json(folder / "config.json", config)
  of = {}

  def save(file, shapes):
    tensors = {n: np.full(s, 0.5, jnp.bfloat16) for n, s in shapes.items()}
    save_file(tensors, folder / file, metadata={"format": "pt"})
    of.update(dict.fromkeys(shapes, file))

  ends = {"model.embed_tokens": (vocab, width), "lm_head": (vocab, width)}
  for name, shape in {**ends, "model.norm": (width,)}.items():
    save(f"{name}.safetensors", {f"{name}.weight": shape})
  shapes = {
    "self_attn.q_proj": (2048, width),
    "self_attn.k_proj": (1024, width),
    "self_attn.v_proj": (1024, width),
    "self_attn.o_proj": (width, 2048),
    "mlp.gate_proj": (mlp, width),
    "mlp.up_proj": (mlp, width),
    "mlp.down_proj": (width, mlp),
    "input_layernorm": (width,),
    "post_attention_layernorm": (width,),
  }
  for i in range(layers):
    layer = {f"model.layers.{i}.{n}.weight": s for n, s in shapes.items()}
    save(f"layer-{i}.safetensors", layer)
  write_index(folder, of)
  return vocab * width


@pytest.mark.slow
@pytest.mark.skipif(
  not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc"
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_of_a_large_model(tmp_path, dtype):
  largest = make_big(tmp_path / "big") * jnp.dtype(dtype).itemsize
  done = subprocess.run(
    [
      sys.executable,
      str(SUPPORT / "memory_worker.py"),
      str(tmp_path / "big"),
      dtype,
      str(tmp_path / "out"),
    ],
    env={**os.environ, **without_torch(SUPPORT, SUPPORT.parents[1])},
    capture_output=True,
    text=True,
    check=True,
  )
  shutil.rmtree(tmp_path / "big")
  shutil.rmtree(tmp_path / "out")
  found = json.loads(done.stdout.splitlines()[-1])
  print(dtype, found, "largest", largest)
  assert found["params"] > 6 * 10**8
  # On a CPU the devices' memory is the host's.
  assert found["load"] < found["params"] + 1.3 * largest
  # A copy on the devices, turned as it is stored, and one on the host; the
  # rest is compilers and buffers, whatever the size of the model.
  assert found["export"] < found["params"] + 2 * largest + 250e6
