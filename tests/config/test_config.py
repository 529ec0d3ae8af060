"""Configs: checked before JAX starts, every mistake named."""

import copy
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from bct_jax.config import ConfigError, from_dict
from bct_jax.objectives import make_objective
from configs import default, quickstart, tiny
from configs.objectives import sft as objectives_sft

ROOT = Path(__file__).parents[2]


def values(config=tiny) -> dict:
  return config.get_config().to_dict()


def changed(path: str, value) -> dict:
  out = copy.deepcopy(values())
  *groups, last = path.split(".")
  at = out
  for g in groups:
    at = at[g]
  at[last] = value
  return out


@pytest.mark.parametrize("config", [tiny, quickstart], ids=["tiny", "quick"])
def test_shipped_configs_are_good(config):
  built = from_dict(values(config))
  assert set(built.arms) == {"low", "high"}
  assert built.arms["low"].optim.lr == built.arms["high"].optim.lr / (
    100 if config is tiny else 10
  )


def test_arms_change_only_what_they_say():
  built = from_dict(values())
  low, high = built.arms["low"], built.arms["high"]
  assert high.train.accum == 2 and low.train.accum == 1
  assert high.train.decoration == low.train.decoration == "pirate"
  assert built.organism.train.decoration == "plain"


def test_every_default_field_is_explained():
  lines = Path(default.__file__).read_text("utf-8").splitlines()
  for i, line in enumerate(lines):
    setting = line.strip().startswith("c.") and " = " in line
    group = "ConfigDict()" in line or "_config()" in line
    if setting and not group:
      above = lines[i - 1].strip().startswith("#")
      assert "  # " in line or above, f"default.py:{i + 1}: no comment"


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    ("optim.lrr", 1.0, r"optim\.lrr: unknown.*'lr'"),
    ("eval.num_evals", 3, r"config\.eval\.num_evals: unknown.*'num_eval'"),
    ("train.steps", 2.5, r"train\.steps: int is needed, found float 2.5"),
    ("optim.lr", "1e-3", r"optim\.lr: float is needed, found str"),
    ("optim.lr", float("nan"), r"optim\.lr: must be finite"),
    ("eval.refine_budget", 0, r"eval\.refine_budget: must be positive"),
    ("optim.lr", -1.0, r"config\.optim\.lr = -1.0: must be positive"),
    ("train.steps", 0, r"train\.steps = 0: must be positive"),
    ("eval.seed", -1, r"eval\.seed = -1: must be 0 or more"),
    ("arms.low.optim.lrr", 1.0, r"arms\.low\.optim\.lrr: unknown.*'lr'"),
    ("arms.low.trane", {}, r"arms\.low\.trane: unknown.*'train'"),
    ("arms.a/b", {}, r"arms\.a/b: a name"),
    ("mesh.chip", "A100", r"mesh\.chip = 'A100'.*did you mean 'a100'"),
    ("mesh.chip", "v5", r"mesh\.chip = 'v5'.*did you mean 'v5"),
    ("model.dtype", "float16", r"model\.dtype = 'float16': not one of"),
    ("optim.schedule", "cosin", r"schedule = 'cosin'.*did you mean 'cosine'"),
    ("optim.optimizer", "adamv", r"optimizer = 'adamv'.*did you mean 'adamw'"),
    ("optim.warmup_steps", 5, r"warmup_steps = 5: must be between 0 and the 4"),
    ("optim.schedule", "wsd", r"optim\.decay_steps = 0: must be from 1 to the"),
    ("optim.decay_steps", 2, r"decay_steps = 2: must be .* 0 for others"),
    ("optim.b1", 1.0, r"optim\.b1 = 1\.0: must be from 0 to below 1"),
    ("optim.lr_groups", (("(", 1.0),), r"lr_groups = '\(': not a regular"),
    ("optim.lr_groups", (("embed", -1.0),), r"'embed' multiplies .* by -1.0"),
    ("optim.lr_groups", (("embed",),), r"lr_groups: 2 values are needed"),
    ("optim.lr_groups", (("embed", "1"),), r"lr_groups: float is needed"),
    ("train.accum", 3, r"accum = 3: must divide batch_size 8"),
    ("train.num_examples", 4, r"num_examples = 4: at least one batch of 8"),
    ("sampling.temperature", -0.1, r"temperature"),
    ("eval.steps", (1, -2), r"eval\.steps"),
    ("eval.steps", 3, r"eval\.steps: a tuple is needed"),
    ("mesh", 3, r"config\.mesh: a group of fields"),
    ("gate.enforce", 1, r"gate\.enforce: bool is needed"),
  ],
)
def test_mistakes_are_named(path, value, message):
  with pytest.raises(ConfigError, match=message):
    from_dict(changed(path, value))


def test_missing_field_is_named():
  broken = values()
  del broken["sampling"]["seed"]
  with pytest.raises(ConfigError, match=r"config\.sampling\.seed: missing"):
    from_dict(broken)


def test_integers_are_good_floats():
  config = ConfigDict(changed("optim.lr", 1)).to_dict()
  assert from_dict(config).arms["high"].train.steps == 4


# --- through the command line, in a process of its own ------------------------


def command(*flags: str, cwd=ROOT) -> subprocess.CompletedProcess:
  env = {
    **os.environ,
    "JAX_PLATFORMS": "no_such_platform",
    "PYTHONPATH": str(ROOT),
  }
  return subprocess.run(
    [sys.executable, "-m", "bct_jax.main", *flags],
    cwd=cwd,
    env=env,
    capture_output=True,
    text=True,
    timeout=120,
  )


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ([], "--config is needed"),
    (["--config=configs/tiny.py", "--config.optim.lrr=1"], "mean 'lr'"),
    (["--config=configs/tiny.py", "--config.arms.high.train.sed=5"], "'seed'"),
    (["--config=configs/tiny.py", "--config.arms.low.train.sed=5"], "'seed'"),
    (["--config=configs/tiny.py", "--config.setting.option.a=b"], '"options"'),
    (["--config=configs/tiny.py", "--config.train.steps=ten"], "ten"),
    (["--config=configs/tiny.py", "--config.optim.lr=abc"], "abc"),
    (["--config=configs/tiny.py", "--mode=experimnt"], "mean 'experiment'"),
    (["--config=configs/tiny.py", "--wrkdir=x"], "wrkdir"),
    (["--config=configs/tiny.py", "extra"], "extra"),
    (["--config=configs/none.py"], "none.py"),
  ],
  ids=str,
)
def test_bad_command_exits_2_before_jax_starts(flags, message):
  # With an impossible platform JAX would fail if it were started.
  done = command(*flags)
  assert done.returncode == 2, done.stderr
  assert message in done.stderr
  assert "Traceback" not in done.stderr
  assert len(done.stderr.strip().splitlines()) <= 3


def test_flags_reach_arms_and_none_is_none(tmp_path):
  own = tmp_path / "own.py"
  own.write_text(
    "from configs import tiny\n"
    "def get_config():\n"
    "  c = tiny.get_config()\n"
    "  c.eval.system_prompt = 'Be brief.'\n"
    "  c.mesh.memory_gib = 4.0\n"
    "  c.arms.low = {'optim': {'lr': 1e-5}}\n"
    "  return c\n"
  )
  code = (
    "import sys; from bct_jax import main as m\n"
    "def show(config, raw, overrides, where):\n"
    "  arm = config.arms['low']\n"
    "  print(arm.train.seed, arm.optim.lr, config.eval.system_prompt,\n"
    "        raw['eval']['system_prompt'], config.mesh.memory_gib, overrides)\n"
    "  sys.exit(7)\n"
    "m._run = show; m.main(sys.argv)"
  )
  flags = ["--config.arms.low.train.seed=5", f"--config={own}"]
  flags += ["--config.arms.low.optim.lr=2e-5"]
  flags += ["--config.eval.system_prompt=None", "--config.mesh.memory_gib=None"]
  env = {**os.environ, "PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    [sys.executable, "-c", code, *flags],
    cwd=ROOT, env=env, capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  assert done.returncode == 7, done.stderr
  assert done.stdout.startswith("5 2e-05 None None None {")
  assert "'eval.system_prompt': None" in done.stdout
  assert "'arms.low.train.seed': 5" in done.stdout


def test_configs_are_found_from_any_directory(tmp_path):
  config = ROOT / "configs" / "tiny.py"
  done = command(f"--config={config}", "--mode=experimnt", cwd=tmp_path)
  assert "mean 'experiment'" in done.stderr


def test_broken_config_file_is_one_error(tmp_path):
  for text in ("import nothing_like_it", "def get_config(:", "x = 1"):
    config = tmp_path / "broken.py"
    config.write_text(text)
    done = command(f"--config={config}")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr


# policy_gradient.py has an organism and a setting of its own.
OBJECTIVES = [
  path
  for path in sorted((ROOT / "configs/objectives").glob("[a-z]*.py"))
  if path.stem != "policy_gradient"
]


@pytest.mark.parametrize("path", OBJECTIVES, ids=lambda path: path.stem)
def test_configs_of_objectives_differ_in_nothing_else(path):
  module = importlib.import_module(f"configs.objectives.{path.stem}")
  built = from_dict(module.get_config().to_dict())
  base = from_dict(objectives_sft.get_config().to_dict())
  assert built.name == path.stem and len(built.arms) == 3
  assert built.organism == base.organism and built.eval == base.eval
  for name, arm in built.arms.items():
    assert arm.train.objective == path.stem
    make_objective(arm.train.objective, arm.train.options)
    assert arm.optim == base.arms[name].optim
    assert arm.train.steps == base.arms[name].train.steps
