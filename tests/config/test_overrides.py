"""Fields that the command line sets, where ml_collections reads them wrong."""

import dataclasses
import types
import typing

import pytest

from bct_jax.config import ConfigError, from_dict
from bct_jax.config.fields import set_field
from bct_jax.config.overrides import is_optional, set_fields, take_fields
from bct_jax.config.types import ArmConfig, ExperimentConfig
from configs import default, quickstart


def optional_fields(cls=ExperimentConfig, where=""):
  """Every field that may be None, found by its annotation alone."""
  groups = typing.get_type_hints(cls)
  if cls is ExperimentConfig:
    groups |= typing.get_type_hints(ArmConfig)  # shared by all arms
  for name, hint in groups.items():
    if dataclasses.is_dataclass(hint):
      yield from optional_fields(hint, f"{where}{name}.")
    elif isinstance(hint, types.UnionType):
      yield f"{where}{name}"


FIELDS = sorted(optional_fields())


def value_of(raw, field):
  for name in field.split("."):
    raw = raw[name]
  return raw


def test_there_are_such_fields():
  assert {"eval.system_prompt", "train.file", "compilation_cache"} <= {*FIELDS}
  assert "organism.train.system_prompt" in FIELDS and len(FIELDS) > 10


@pytest.mark.parametrize("field", FIELDS)
def test_none_is_none(field):
  raw = default.get_config().to_dict()
  raw["arms"] = {"low": {}}
  value_of(raw, field)  # it is in default.py
  words = ["main", f"--config.{field}=None", "--debug"]
  rest, fields = take_fields(words)
  assert rest == ["main", "--debug"]
  assert set_fields(raw, fields) == {field: None}
  assert value_of(raw, field) is None


@pytest.mark.parametrize("field", [*FIELDS, "arms.low.train.adapter_seed"])
@pytest.mark.parametrize("text", ["none", "null", "NONE"])
def test_what_only_looks_like_none_is_an_error(field, text):
  with pytest.raises(ConfigError, match=f"{field}={text}: write None"):
    take_fields([f"--config.{field}", text])


def test_the_last_value_of_a_field_holds():
  flag = "--config.eval.system_prompt"
  rest, fields = take_fields([f"{flag}=None", flag, "Be brief."])
  assert (rest, fields) == ([f"{flag}=Be brief."], {})
  rest, fields = take_fields([f"{flag}=Be brief.", f"{flag}=None"])
  assert fields == {"eval.system_prompt": "None"}


@pytest.mark.parametrize("field", FIELDS)
def test_an_empty_text_is_an_error_but_for_system_messages(field):
  raw = quickstart.get_config().to_dict()
  set_field(raw, field, "")
  if field.endswith("system_prompt"):
    from_dict(raw)
    return
  last = field.split(".")[-1]  # of train it is named for each arm
  with pytest.raises(ConfigError, match=f"{last}: must not be empty"):
    from_dict(raw)


def test_none_of_what_is_not_optional_stays():
  words = ["--config.name=None", "--config.setting.name=none"]
  assert take_fields(words) == (words, {})
  for field in ("no.such", "eval", "name", "name.more", "arms", "arms.low"):
    assert not is_optional(field)
  assert is_optional("arms.low.train.system_prompt")


def test_fields_of_arms_are_taken_out_of_the_command_line():
  words = ["main", "--config=c.py", "--config.arms.low.train.seed=1"]
  words += ["--config.arms.low.optim.lr", "2e-5", "--workdir", "w"]
  rest, fields = take_fields(words)
  assert rest == ["main", "--config=c.py", "--workdir", "w"]
  assert fields == {"arms.low.train.seed": "1", "arms.low.optim.lr": "2e-5"}
  with pytest.raises(ConfigError, match="needs a value"):
    take_fields(["--config.arms.low.train.seed"])


@pytest.mark.parametrize(
  ("field", "text", "value"),
  [
    ("train.seed", "1", 1),
    ("lora.rank", "4", 4),
    ("train.pack", "false", False),
    ("train.decoration", "cheerful", "cheerful"),
    ("train.system_prompt", "None", None),
    ("train.system_prompt", "12", "12"),
    ("optim.lr_groups", '(("^embed$", 0.1),)', (("^embed$", 0.1),)),
    ("train.on_policy.temperature", "0.5", 0.5),
    ("train.options.beta", "0.2", 0.2),
    ("train.options.on", "answer", "answer"),
  ],
)
def test_an_arm_may_set_what_its_file_leaves_out(field, text, value):
  raw = quickstart.get_config().to_dict()
  raw["arms"]["low"] = {"optim": {"lr": 1e-5}}
  assert set_fields(raw, {f"arms.low.{field}": text}) == {
    f"arms.low.{field}": value
  }
  found = from_dict(raw).arms["low"]
  for name in field.split("."):
    found = found[name] if isinstance(found, dict) else getattr(found, name)
  assert found == value


@pytest.mark.parametrize(
  ("field", "text", "message"),
  [
    ("arms.lwo.train.seed", "1", "the arms are: high, low"),
    ("arms.low", "1", "no field of an arm"),
    ("arms.low.foo", "x", "arms.low.foo: unknown"),
    ("arms.low.train.sed", "1", "arms.low.train.sed: unknown.*'seed'"),
    ("arms.low.train.seed", "x", "arms.low.train.seed: int is needed"),
    ("arms.low.train.seed", "1.5", "arms.low.train.seed: int is needed"),
  ],
)
def test_what_is_wrong_is_named(field, text, message):
  raw = quickstart.get_config().to_dict()
  with pytest.raises(ConfigError, match=message):
    set_fields(raw, {field: text})
    from_dict(raw)
