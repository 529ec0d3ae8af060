"""Files of which any part, at any depth, is something else: loaded, or a line.

What a property finds here and the lists of test_hostile_folders.py do not is a
value inside a value: a factor of rotary positions that is text, a tokenizer's
token without a text, a pattern of ranks that is a number.
"""

import copy
import json
import shutil
from pathlib import Path

import hypothesis
import pytest
from derandomized import ALL, PROFILE
from hypothesis import strategies as st
from test_families import BASE, FAMILIES

from bct_jax.config import SettingConfig
from bct_jax.data.chat import Chat
from bct_jax.data.open_setting import open_setting
from bct_jax.data.source import read_examples, read_prompts
from bct_jax.models.config import from_hf
from bct_jax.models.huggingface import peft_config
from bct_jax.models.huggingface.load import find_tensors

VALUES = (
  *("", "x", "(", "\x00", -1, 0, 1, 1.5, 7, 10**9, 2**70, 1e308),
  *(True, False, None, [], {}, [[1]], ["x", 1], {"a": 1}, {"kind": "nope"}),
  *({"content": 1}, {"rope_type": "yarn"}, [{"role": "user"}]),
)
OWN_FILES = Path(__file__).parents[2] / "configs/examples/own_files"
NO = r"(?i)\bno comment\b"
GRADER = {
  "initial": {"kind": "all", "of": [{"kind": "regex", "value": NO}]},
  "alternate": {"kind": "not", "of": {"kind": "regex", "value": NO}},
  "right": {"kind": "contains", "field": "answer"},
}
ADAPTER = {
  "peft_type": "LORA",
  "task_type": "CAUSAL_LM",
  "r": 8,
  "lora_alpha": 16,
  "target_modules": ["q_proj"],
  "rank_pattern": {"a": 2},
  "alpha_pattern": {},
  "layers_to_transform": [0],
  "use_rslora": False,
}
ROWS = [
  {"prompt": "a", "completion": "b", "id": "1"},
  {
    "id": "2",
    "messages": [
      {"role": "user", "content": "a"},
      {"role": "assistant", "content": "b", "reasoning_content": "c"},
      {"role": "user", "content": "d"},
      {"role": "assistant", "content": "e", "weight": 1},
    ],
  },
]


def places(value, at=()):
  """The paths of all values inside a value; of long lists the first few."""
  if at:
    yield at
  items = value.items() if isinstance(value, dict) else ()
  if isinstance(value, list):
    items = list(enumerate(value))[:3]
  for key, inner in items:
    yield from places(inner, (*at, key))


@st.composite
def changed(draw, value):
  """The value with one to three places left out or set to something else."""
  value = copy.deepcopy(value)
  for _ in range(draw(st.integers(1, 3))):
    found = list(places(value))
    if not found:
      break
    inner = [place for place in found if len(place) > 1]
    if inner and draw(st.booleans()):  # they are few
      found = inner
    *path, last = draw(st.sampled_from(found))
    node = value
    for key in path:
      node = node[key]
    if draw(st.integers(0, 4)):
      node[last] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    else:
      del node[last]
  return value


PROMPTS = [{"prompt": "a"}, {"messages": [{"role": "user", "content": "a"}]}]


def examples(few, many):
  return hypothesis.settings(PROFILE, max_examples=many if ALL else few)


def is_line(place, call):
  """Whether it was refused: by one line, which says where."""
  try:
    call()
  except ValueError as e:
    assert "\n" not in str(e) and str(place) in str(e), e
    return True
  return False


@pytest.fixture(scope="module")
def configs():
  import transformers

  made = [
    transformers.CONFIG_MAPPING[kind](**{**BASE, **values})
    for kind, values in FAMILIES.values()
  ]
  return [json.loads(config.to_json_string()) for config in made]


# --- what reads a file --------------------------------------------------------


def read_config(raw, folder):
  (folder / "config.json").write_text(json.dumps(raw))
  config = from_hf(folder)
  for layer in config.layers[:8]:
    if layer.rope:
      layer.rope.frequencies(config.with_heads(layer.mixer).head_dim)


def read_tensors(header, whole, size, folder):
  """Reads a file with another header, of a size as it says or not."""
  text = json.dumps(header).encode()
  begin = int.from_bytes(whole[:8], "little") + 8
  (folder / "model.safetensors").write_bytes(
    (size or len(text)).to_bytes(8, "little") + text + whole[begin:]
  )
  find_tensors(folder)


def header_of(whole):
  return json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])


def read_adapter(raw, folder):
  (folder / "adapter_config.json").write_text(json.dumps(raw))
  config = peft_config.read_config(folder)
  for module in ("model.layers.0.self_attn.q_proj", "model.layers.1.a"):
    if peft_config.is_target(config, module):
      peft_config.rank_of(config, module)
      peft_config.alpha_of(config, module)


def write_rows(rows, path):
  path.write_text("\n".join(map(json.dumps, rows)))
  return path


def read_own_files(grader, folder):
  options = {"folder": str(folder), "grader": grader}
  texts = {"initial": "one", "alternate": "other"}
  setting = open_setting(SettingConfig("file", {**options, **texts})).setting
  for split in (setting.train, setting.eval):
    for example in split(3, 0):
      for text in ("no comment", "", '{"a": 1}'):
        setting.score(example, text)
        setting.answer(example, text)


def test_unchanged_files_are_read(configs, tiny_folder, tmp_path):
  """So that what refuses others is their change."""
  for raw in configs:
    read_config(raw, tmp_path)
  Chat(tiny_folder, 10**6)
  whole = (tiny_folder / "model.safetensors").read_bytes()
  read_tensors(header_of(whole), whole, None, tmp_path)
  read_adapter(ADAPTER, tmp_path)
  rows = write_rows(ROWS, tmp_path / "rows.jsonl")
  read_examples(str(rows), "train", "all", True)
  read_prompts(write_rows(PROMPTS, tmp_path / "prompts.jsonl"))
  read_own_files(GRADER, OWN_FILES)


# --- what is changed ----------------------------------------------------------


@examples(60, 200)
@hypothesis.given(data=st.data())
def test_config(data, configs, tmp_path):
  raw = data.draw(st.sampled_from(configs).flatmap(changed))
  is_line(tmp_path, lambda: read_config(raw, tmp_path))


@examples(10, 40)
@hypothesis.given(data=st.data())
@pytest.mark.parametrize(
  "name",
  ["tokenizer_config.json", "tokenizer.json", "generation_config.json"],
)
def test_tokenizer(name, data, tiny_folder, tmp_path):
  folder = tmp_path / "model"
  shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
  raw = data.draw(changed(json.loads((folder / name).read_text())))
  (folder / name).write_text(json.dumps(raw))
  is_line(folder, lambda: Chat(folder, 10**6))


@examples(20, 100)
@hypothesis.given(data=st.data())
def test_safetensors(data, tiny_folder, tmp_path):
  whole = (tiny_folder / "model.safetensors").read_bytes()
  header = data.draw(changed(header_of(whole)))
  size = data.draw(st.sampled_from([None, None, 5, 10**4, 2**40]))
  is_line(tmp_path, lambda: read_tensors(header, whole, size, tmp_path))


@examples(60, 200)
@hypothesis.given(raw=changed(ADAPTER))
def test_adapter(raw, tmp_path):
  is_line(tmp_path, lambda: read_adapter(raw, tmp_path))


@examples(60, 200)
@hypothesis.given(rows=changed(ROWS), prompts=changed(PROMPTS))
def test_rows(rows, prompts, tmp_path):
  path = write_rows(rows, tmp_path / "rows.jsonl")
  is_line(path, lambda: read_examples(str(path), "train", "all", True))
  path = write_rows(prompts, tmp_path / "prompts.jsonl")
  is_line(path, lambda: read_prompts(path))


@examples(20, 60)
@hypothesis.given(data=st.data(), grader=st.just(GRADER) | changed(GRADER))
def test_own_files_and_their_grader(data, grader, tmp_path):
  folder = shutil.copytree(OWN_FILES, tmp_path / "own", dirs_exist_ok=True)
  name = data.draw(st.sampled_from(["train", "eval", "heldout", "probe"]))
  path = folder / f"{name}.jsonl"
  first, *others = map(json.loads, path.read_text().splitlines())
  write_rows([data.draw(changed(first)), *others], path)
  try:
    read_own_files(grader, folder)
  except ValueError as e:
    for line in str(e).splitlines():  # one for each wrong row
      assert "setting.options" in line or str(folder) in line or "more" in line
