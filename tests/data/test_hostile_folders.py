"""Model folders that anybody may have made: each ends in a line, or loads."""

import json
import os
import shutil

import pytest

from bct_jax.data import template_bound
from bct_jax.data.chat import Chat
from bct_jax.models.config import from_hf
from bct_jax.models.huggingface.load import find_tensors

WRONG = ("x", -1, 0, 1.5, 5, True, [], {}, None, ["x", 1], [[1]], 10**9)
FILES = (
  *("config.json", "generation_config.json", "tokenizer.json"),
  "tokenizer_config.json",
)
# Of real templates' faults, and of ones that were made to do harm.
TEMPLATES = (
  *("{% for", "{{ raise_exception('no') }}", "{{ ''.__class__.__mro__ }}"),
  "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
  *("{{ 1 / 0 }}", "{{ a.b.c }}", " ", "\x00", "{{ messages[9].x.y }}"),
)
ENDLESS = (
  "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in "
  "range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
)
BOMB = "{% set x = 'a' * 9999999999 %}{{ x }}"


def load(folder) -> str:
  """What a run reads before its weights; returns the error."""
  try:
    config = from_hf(folder)
    Chat(folder, config.vocab_size)
    find_tensors(folder)
  except ValueError as e:
    assert "\n" not in str(e), e
    return str(e)
  return ""


@pytest.fixture
def copy(tiny_folder, tmp_path):
  return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.mark.parametrize("name", FILES)
def test_each_field_of_a_wrong_type_is_a_line(name, copy):
  """Each field of each file has each of the wrong values in turn."""
  path, refused, count = copy / name, 0, 0
  text = path.read_text()
  for field in {**json.loads(text), "added_tokens_decoder": 0}:
    for value in WRONG:
      path.write_text(json.dumps({**json.loads(text), field: value}))
      error, count = load(copy), count + 1
      refused += bool(error)
      assert not error or str(copy) in error, (field, value, error)
  assert count > 40 and refused


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
  "content",
  ["[]", "3", "null", "{", "[" * 100_000, '{"a": "\udcff"}', ""],
  ids=str,
)
def test_a_file_that_is_no_object_is_named(name, content, copy):
  (copy / name).write_bytes(content.encode("utf-8", "surrogateescape"))
  assert str(copy / name) in load(copy)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_that_fails_is_a_line(template, copy):
  path = copy / "tokenizer_config.json"
  config = {**json.loads(path.read_text()), "chat_template": template}
  path.write_text(json.dumps(config))
  assert str(copy) in load(copy)


def test_an_endless_template_and_a_bomb_are_bounded(copy, monkeypatch):
  monkeypatch.setattr(template_bound, "SECONDS", 1)
  path = copy / "tokenizer_config.json"
  raw = json.loads(path.read_text())
  for template, said in (
    (ENDLESS, "end within 1 s"),
    (BOMB, "more than 2 GiB"),
  ):
    path.write_text(json.dumps({**raw, "chat_template": template}))
    assert said in load(copy)
  assert template_bound.find_excess(raw["chat_template"]) is None


@pytest.mark.parametrize("name", [*FILES, "model.safetensors", "x.jinja"])
def test_a_pipe_is_not_opened(name, copy):
  (copy / name).unlink(missing_ok=True)
  os.mkfifo(copy / name)
  assert load(copy) == f"{copy / name}: not a regular file"


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("num_hidden_layers", 10_000_000),
    ("rms_norm_eps", float("nan")),
    ("rms_norm_eps", -1.0),
    ("rope_theta", float("inf")),
    ("vocab_size", -5),
  ],
)
def test_numbers_are_finite_and_in_range(field, value, copy):
  path = copy / "config.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
  assert f"config.json: {field} = " in load(copy)
