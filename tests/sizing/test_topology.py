"""Programs as the TPU compiler makes them; needs libtpu and no TPU."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import without_torch

from bct_jax.config import ConfigError
from bct_jax.sizing import topology
from bct_jax.sizing.hlo import Collective
from bct_jax.sizing.topology import chip_of

ROOT = Path(__file__).parents[2]
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu is not installed, see the extra `topology`",
)


def dry_run(name: str, *flags: str) -> subprocess.CompletedProcess:
  """In a process of its own: libtpu stays loaded."""
  return subprocess.run(
    [
      sys.executable,
      "-m",
      "bct_jax.main",
      "--config=configs/llama3_1_8b.py",
      "--mode=dry_run",
      f"--topology={name}",
      *flags,
    ],
    cwd=ROOT,
    env={
      **os.environ,
      **without_torch(os.environ.get("PYTHONPATH", "")),
      "XLA_FLAGS": "",
      "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    },
    capture_output=True,
    text=True,
  )


@pytest.mark.parametrize(
  "name",
  [
    *("v5x:2x2", "v5e", "v5e:4", "h100", "h100:0", "h100:2x2x2", "h100:8,8"),
    "l40s:8",  # known to a dry run, and not described to the compiler
  ],
)
def test_names_that_are_no_slice(name):
  with pytest.raises(ConfigError, match="topology"):
    chip_of(name)


def test_without_libtpu_the_extra_is_named(monkeypatch):
  from bct_jax.sizing.topology import devices_of

  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ConfigError, match=r"bct_jax\[topology\]"):
    devices_of("v5e:2x2")
  with pytest.raises(ConfigError, match=r"bct_jax\[topology-gpu\]"):
    devices_of("h100:8")


def test_slices_that_are_rings():
  assert topology._wraps("v5p:4x4x8") == (True, True, True)
  assert topology._wraps("v5p:2x4x4") == (False, False, False)
  assert topology._wraps("v5e:16x16") == (True, True, False)
  assert topology._wraps("v6e:8x16") == (False, True, False)


def test_a_program_too_large_for_a_gpu_says_by_how_much():
  """Its compiler says nothing, and the GPU would, hours later."""
  program = topology.CompiledProgram("train step", 60, 30, [], {}, 1.0)
  topology._check_room(program, 90)
  with pytest.raises(topology.DoesNotFit, match="train step") as e:
    topology._check_room(program, 80)
  assert e.value.over == 10


SMALL = """{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
"vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1024,
"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
"head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
"max_position_embeddings": 2048, "tie_word_embeddings": false,
"hidden_act": "silu", "attention_bias": false, "mlp_bias": false}"""


def test_what_is_missing_is_read_from_the_message():
  first = "Used 24.5G of 15.75G hbm. Exceeded hbm capacity by 8.75G."
  other = "HLO temporaries (36.00G) exceeds available HBM (15.75G)."
  assert topology._over(first) == 8.75 * 2**30
  assert topology._over(other) == 20.25 * 2**30
  assert topology._over("no room") is None


# launch/test.sh puts it here and not beside the other packages, where every
# process would load it.
GPU_COMPILER = Path(sys.prefix) / "gpu_compiler"


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("jax_cuda12_plugin") is None
  and not GPU_COMPILER.is_dir(),
  reason="no compiler for GPUs, see the extra `topology-gpu`",
)
def test_small_programs_for_gpus_of_two_hosts(tmp_path, monkeypatch):
  """Groups of both hosts' GPUs receive over the network, the others do not."""
  monkeypatch.setenv("PYTHONPATH", str(GPU_COMPILER), prepend=os.pathsep)
  file = tmp_path / "config.json"
  file.write_text(SMALL)
  done = dry_run(
    "h100:2x2",
    "--config.model.path=no/such",
    f"--config.model.architecture={file}",
    "--config.mesh.fsdp=4",
    "--config.mesh.tensor=1",
    "--config.sampling.batch_size=16",
  )
  assert done.returncode == 0, done.stderr[-2000:]
  for name in ("train step", "prefill", "decode step"):
    assert re.search(rf"^{name}: [\d.]+ GiB on a chip of 80", done.stdout, re.M)
  assert re.search(
    r"all-gather .*GiB received \([\d.]+ from other", done.stdout
  )
  assert re.search(r"kernel __(triton|cublas)", done.stdout)
  assert re.search(r"roofline of an update: .*from other hosts", done.stdout)


@pytest.mark.slow
@needs_libtpu
def test_small_programs_for_four_chips(tmp_path):
  file = tmp_path / "config.json"
  file.write_text(SMALL)
  done = dry_run(
    "v5e:2x2",
    "--config.model.path=no/such",
    f"--config.model.architecture={file}",
    "--config.mesh.fsdp=4",
    "--config.mesh.tensor=1",
    "--config.sampling.batch_size=16",
  )
  assert done.returncode == 0, done.stderr[-2000:]
  for name in ("train step", "prefill", "decode step"):
    assert re.search(rf"^{name}: [\d.]+ GiB on a chip of 16", done.stdout, re.M)
  assert "attention: splash" in done.stdout + done.stderr
  assert re.search(r"kernel \w*splash|kernel ", done.stdout)
  assert "roofline of an update" in done.stdout


@pytest.mark.slow
@needs_libtpu
def test_what_does_not_fit_says_by_how_much_and_what_helps():
  done = dry_run("v5e:2x2", "--config.mesh.fsdp=4", "--config.mesh.tensor=1")
  assert done.returncode == 2
  assert re.search(r"does not fit by [\d.]+ GiB: train step", done.stderr)
  assert "param_dtype=bfloat16 saves about" in done.stderr


def update(folder: Path, fsdp: int, tensor: int, rank: int) -> list[Collective]:
  """What the update of topology_worker.py sends."""
  worker = ROOT / "tests" / "support" / "topology_worker.py"
  values = ["v5e:2x4", fsdp, tensor, rank, folder]
  done = subprocess.run(
    [sys.executable, worker, *map(str, values)],
    env={**os.environ, "XLA_FLAGS": "", **without_torch(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return [Collective(**x) for x in json.loads(done.stdout.splitlines()[-1])]


def layer_sums(found: list[Collective], tensor: int) -> float:
  """All-reduces in a loop over layers, in those of a device's [B, T, D]."""
  one = 4 * 1024 * 1024 * 2  # 4 rows in bfloat16
  own = [x for x in found if x.kind == "all-reduce" and "/Block/" in x.source]
  received = sum(x.received for x in own if x.times == 2)
  return received / (2 * one * (tensor - 1) / tensor)


@pytest.mark.slow
@needs_libtpu
def test_weights_of_attention_are_gathered_once_backward(tmp_path):
  found = update(tmp_path, fsdp=4, tensor=2, rank=0)
  assert 5 <= layer_sums(found, 2) < 5.5
  again = [x for x in found if "rematted_computation/Block/attn" in x.source]
  kinds = [x.kind for x in again if x.kind != "all-reduce"]
  assert kinds == ["all-gather"] * 4, again
  # What else attention sends then is gradients: none is of heads.
  back = [x for x in found if "checkpoint/Block/attn" in x.source]
  assert not [x for x in back if "128,1" in x.array], back


@pytest.mark.slow
@needs_libtpu
def test_adapters_add_no_sums_of_whole_activations(tmp_path):
  found = update(tmp_path, fsdp=4, tensor=2, rank=8)
  assert 5 <= layer_sums(found, 2) < 5.5


@pytest.mark.slow
@needs_libtpu
def test_devices_that_share_a_head_keep_parts_of_its_weights(tmp_path):
  """Two key/value heads on four devices."""
  found = update(tmp_path, fsdp=2, tensor=4, rank=0)
  assert 5 <= layer_sums(found, 4) < 5.5
  whole = [x for x in found if x.kind == "all-gather" and "f32" in x.array]
  assert not whole, whole
