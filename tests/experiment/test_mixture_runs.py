"""The tiny experiment with a random gpt-oss: killed, resumed, exported."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from runs import comparable, run, start_to_kill, wait_for

pytestmark = [pytest.mark.parity, pytest.mark.long]

# Whole weights in one arm, adapters of attention in the other.
FLAGS = ("--config.arms.low.lora.rank=4", "--config.mesh.tensor=2")


@pytest.fixture(scope="module")
def gpt_oss(tiny_folder, tmp_path_factory):
  """The tokenizer of the tiny model, and a mixture of its vocabulary."""
  import torch
  import transformers

  folder = tmp_path_factory.mktemp("models") / "gpt_oss"
  shutil.copytree(tiny_folder, folder)
  was = json.loads((folder / "config.json").read_text())
  kept = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
  torch.manual_seed(0)
  config = transformers.GptOssConfig(
    **{k: was[k] for k in kept if k in was},
    **{"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    **{"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
  )
  model = transformers.AutoModelForCausalLM.from_config(config)
  for path in folder.glob("*.safetensors"):
    path.unlink()
  model.save_pretrained(folder)
  return folder


def test_killed_and_resumed_equals_undisturbed(gpt_oss, tmp_path):
  code, _, err = run(tmp_path / "whole", gpt_oss, *FLAGS)
  assert code == 0, err
  workdir = tmp_path / "killed"
  process = start_to_kill(workdir, gpt_oss, *FLAGS)
  wait_for(process, workdir, "arms/high/checkpoints/2")
  process.send_signal(signal.SIGKILL)
  process.communicate()
  code, _, err = run(workdir, gpt_oss, *FLAGS)
  assert code == 0, err
  assert comparable(workdir) == comparable(tmp_path / "whole")
  out = tmp_path / "exported"
  code, _, err = run(
    workdir,
    gpt_oss,
    *FLAGS,
    "--mode=export",
    f"--params={workdir}/arms/high",
    f"--out={out}",
  )
  assert code == 0, err
  check_torch_reads(out)


def check_torch_reads(folder: Path) -> None:
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  assert model.config.model_type == "gpt_oss"
