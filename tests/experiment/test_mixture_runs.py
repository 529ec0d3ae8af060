"""The tiny experiment with other kinds of layers: killed, resumed, exported.

Random mixtures: gpt-oss, Qwen3, and Qwen3.5 with a shared expert, whose sampler
carries a state.
"""

import json
import shutil
import signal
from pathlib import Path

import pytest
from runs import comparable, run, start_to_kill, wait_for

pytestmark = [pytest.mark.parity, pytest.mark.long]

# Whole weights in one arm, adapters of all linear layers in the other.
FLAGS = ("--config.arms.low.lora.rank=4", "--config.mesh.tensor=2")
SENT = ("--config.mesh.fsdp=2", "--config.mesh.experts=tokens")
MORE = {"gpt_oss": (), "qwen3_5_moe_text": SENT}


SIZES = {
  "hidden_size": 32,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 16,
}
KINDS = {
  "gpt_oss": {
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "sliding_window": 16,
  },
  "qwen3_5_moe_text": {
    "full_attention_interval": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
  },
}


def make_model(kind, folder, tiny_folder, **fields):
  """The tokenizer of the tiny model, and another model of its vocabulary."""
  import torch
  import transformers

  shutil.copytree(tiny_folder, folder)
  was = json.loads((folder / "config.json").read_text())
  kept = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
  torch.manual_seed(0)
  config = transformers.CONFIG_MAPPING[kind](
    **{k: was[k] for k in kept if k in was}, **SIZES, **fields
  )
  model = transformers.AutoModelForCausalLM.from_config(config)
  for path in folder.glob("*.safetensors"):
    path.unlink()
  model.save_pretrained(folder)
  return folder


def kill_and_resume(
  tmp_path: Path, model: Path, flags: tuple[str, ...]
) -> Path:
  """Kills a run and runs it to its end, as one that nothing happened to."""
  code, _, err = run(tmp_path / "whole", model, *flags)
  assert code == 0, err
  workdir = tmp_path / "killed"
  process = start_to_kill(workdir, model, *flags)
  wait_for(process, workdir, "arms/high/checkpoints/2")
  process.send_signal(signal.SIGKILL)
  process.communicate()
  code, _, err = run(workdir, model, *flags)
  assert code == 0, err
  assert comparable(workdir) == comparable(tmp_path / "whole")
  return workdir


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_equals_undisturbed(kind, tiny_folder, tmp_path):
  model = make_model(kind, tmp_path / kind, tiny_folder, **KINDS[kind])
  flags = (*FLAGS, *MORE[kind])
  workdir = kill_and_resume(tmp_path, model, flags)
  out = tmp_path / "exported"
  code, _, err = run(
    workdir,
    model,
    *flags,
    "--mode=export",
    f"--params={workdir}/arms/high",
    f"--out={out}",
  )
  assert code == 0, err
  check_torch_reads(out, kind)


def check_torch_reads(folder: Path, kind: str) -> None:
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  assert model.config.model_type == kind


def test_adapters_of_experts_go_to_peft(tiny_folder, tmp_path):
  """A Qwen3 mixture that was killed: an arm's adapter gives torch its texts."""
  import peft
  import torch
  import transformers

  folder = make_model(
    "qwen3_moe",
    tmp_path / "qwen",
    tiny_folder,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
  )
  more = ("--config.lora.split_rank=True", "--config.organism.kind=native")
  flags = (*FLAGS, *more)
  workdir = kill_and_resume(tmp_path, folder, flags)
  arm, out = workdir / "arms" / "low", tmp_path / "adapter"
  shared = (*flags, f"--params={arm}")
  code, _, err = run(
    workdir,
    folder,
    *shared,
    "--mode=export",
    "--format=adapter",
    f"--out={out}",
  )
  assert code == 0, err
  assert json.loads((out / "adapter_config.json").read_text())["r"] == 2
  texts = tmp_path / "texts.jsonl"
  code, _, err = run(
    workdir, folder, *shared, "--mode=sample", "--prompt=Hi", f"--out={texts}"
  )
  assert code == 0, err
  model = peft.PeftModel.from_pretrained(
    transformers.AutoModelForCausalLM.from_pretrained(folder), out
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  ids = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Hi"}],
    add_generation_prompt=True,
    return_tensors="pt",
    return_dict=False,
  )
  ours = json.loads(texts.read_text())
  new = model.generate(
    ids,
    attention_mask=torch.ones_like(ids),
    do_sample=False,
    max_new_tokens=ours["num_tokens"],
  )
  theirs = tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)
  assert theirs == ours["text"]
