"""No code of a folder is run, whatever standard input says."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

from runs import ROOT, without_torch

# Opens each folder by the door that is named with it.
OPEN = """
import sys
import bct_jax
from bct_jax.data import source
def read_data(folder):
  list(source.read_rows(folder, "train"))
doors = {"model": bct_jax.load_model, "data": read_data}
for door, folder in map(lambda x: x.split("=", 1), sys.argv[1:]):
  try:
    doors[door](folder)
    print("read")
  except Exception as e:
    print(" ".join(str(e).split()))
"""
# What would say that it was run, however it is.
CODE = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path({canary!r}).write_text("run")
class Evil(PreTrainedTokenizerFast):
  pass
"""


class Pickled:
  """Touches a file where it is unpickled."""

  def __init__(self, canary: Path):
    self.canary = canary

  def __reduce__(self):
    return Path.touch, (self.canary,)


def change(path: Path, **values) -> None:
  config = json.loads(path.read_text()) if path.exists() else {}
  path.write_text(json.dumps(config | values))


def evil_tokenizer(folder: Path) -> None:
  auto_map = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
  change(folder / "tokenizer_config.json", auto_map=auto_map)


def evil_tokenizer_class(folder: Path) -> None:
  evil_tokenizer(folder)
  change(folder / "tokenizer_config.json", tokenizer_class="Evil")


def evil_model(folder: Path) -> None:
  auto_map = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
  change(folder / "config.json", auto_map=auto_map)
  change(folder / "generation_config.json", custom_generate="evil")


def evil_type(folder: Path) -> None:
  evil_model(folder)
  change(folder / "config.json", model_type="evil")


def evil_adapter(folder: Path) -> None:
  base = shutil.copytree(folder, folder / "base")
  for path in folder.glob("*.safetensors"):
    path.unlink()
  (folder / "config.json").unlink()
  mapping = {"base_model_class": "Evil", "parent_library": "evil"}
  change(
    folder / "adapter_config.json",
    peft_type="LORA",
    base_model_name_or_path=str(base),
    auto_mapping=mapping,
    r=1,
    lora_alpha=1,
    target_modules=["q_proj"],
  )


def pickled_weights(folder: Path, name: str = "pytorch_model.bin") -> None:
  for path in folder.glob("*.safetensors"):
    path.unlink()
  (folder / name).write_bytes(pickle.dumps(Pickled(folder.parent / "canary")))


def pickled_adapter(folder: Path) -> None:
  evil_adapter(folder)
  pickled_weights(folder, "adapter_model.bin")


def evil_script(folder: Path) -> None:
  """What `datasets` once ran, and what a TFDS folder is made by."""
  shutil.copy(folder / "evil.py", folder / f"{folder.name}.py")
  shutil.copy(folder / "evil.py", folder / "dataset_info.py")


def pickled_arrays(folder: Path) -> None:
  (folder / "train.arrow").write_bytes(
    pickle.dumps(Pickled(folder.parent / "canary"))
  )
  change(folder / "state.json", _data_files=[{"filename": "train.arrow"}])
  change(folder / "dataset_info.json", features={})


# How a folder is made evil -> what opens it, and a part of what it then says.
DOORS = {
  evil_tokenizer: ("model", "read"),
  evil_tokenizer_class: ("model", "auto_map"),
  evil_model: ("model", "code of the folder, which is never run"),
  evil_type: ("model", "supported architectures"),
  evil_adapter: ("model", "has no adapter_model.safetensors"),
  pickled_weights: ("model", "pickled weights can run any code"),
  pickled_adapter: ("model", "is pickled, which can run any code"),
  evil_script: ("data", "no split 'train'"),
  pickled_arrays: ("data", "not readable"),
}


def test_code_of_a_folder_is_never_run(tiny_folder, tmp_path):
  canary, arguments = tmp_path / "canary", []
  for make, (door, _) in DOORS.items():
    folder = shutil.copytree(tiny_folder, tmp_path / make.__name__)
    (folder / "evil.py").write_text(CODE.format(canary=str(canary)))
    make(folder)
    arguments.append(f"{door}={folder}")
  done = subprocess.run(
    [sys.executable, "-c", OPEN, *arguments],
    env={**os.environ, **without_torch(ROOT)},
    input="y\n" * 20,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr
  assert not canary.exists()
  assert "[y/N]" not in done.stdout + done.stderr
  for make, said in zip(DOORS, done.stdout.splitlines(), strict=True):
    assert DOORS[make][1] in said, (make.__name__, said)


def test_the_canary_can_sing(tmp_path):
  pickle.loads(pickle.dumps(Pickled(tmp_path / "canary")))
  assert (tmp_path / "canary").exists()
