"""Fields of rows and messages: heeded or refused, and nothing left out."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from bct_jax.data.rows import read_dialogue, read_prompt
from bct_jax.data.source import read_examples, read_prompts


def user(text):
  return {"role": "user", "content": text}


def said(text, **fields):
  return {"role": "assistant", "content": text, **fields}


def read(*messages, turns="last", thoughts=False, **row):
  return read_dialogue({"messages": [*messages], **row}, turns, thoughts)


TALK = (user("a"), said("one"), user("b"), said("two"))


def test_rows_of_trl_are_read_as_they_are(tmp_path):
  """Text, and messages of which the completion's alone are trained."""
  text = {"prompt": "a", "completion": " one"}
  (example,) = read_dialogue(text, "last", False)
  assert example.messages == (user("a"),) and example.completion == " one"
  talk = {"prompt": [*TALK[:2], user("b")], "completion": [said("two")]}
  (example,) = read_dialogue(talk, "all", False)
  assert example.messages == TALK[:3] and example.completion == "two"
  longer = {"prompt": [user("a")], "completion": [*TALK[1:]], "id": "x"}
  examples = read_dialogue(longer, "last", False)
  assert [(e.id, e.completion) for e in examples] == [
    ("x/1", "one"),
    ("x/2", "two"),
  ]
  assert read_prompt({"prompt": list(TALK[:3])}) == TALK[:3]
  # As a table has them, with all fields in all rows.
  rows = [{**talk, "messages": None}]
  path = tmp_path / "rows.parquet"
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  assert read_examples(str(path), "train")[0][0].messages == TALK[:3]


def parts(*texts):
  return [{"type": "text", "text": text} for text in texts]


def test_content_in_parts_of_text_is_read(tmp_path):
  talk = {"messages": [user(parts("a ", "b")), said(parts("one"))]}
  (example,) = read_dialogue(talk, "last", False)
  assert example.messages == (user("a b"),) and example.completion == "one"


@pytest.mark.parametrize(
  "content",
  [
    [],
    ["a"],
    [*parts("a"), {"type": "image_url", "image_url": {"url": "x"}}],
    [{"type": "text", "text": "a", "cache": 1}],
    [{"type": "input_text", "text": "a"}],
    parts(None),
    {"text": "a"},
  ],
)
def test_content_that_is_not_all_text_is_refused(content):
  talk = {"messages": [user(content), said("one")]}
  with pytest.raises(ValueError, match="content that is text"):
    read_dialogue(talk, "last", False)


@pytest.mark.parametrize(
  "row, why",
  [
    ({"prompt": "a", "completion": ""}, r"\(empty: completion\)"),
    ({"prompt": [], "completion": "b"}, r"\(empty: prompt\)"),
    ({"completion": "b"}, '"completion" goes with "prompt"'),
    ({"prompt": "a", "completion": "b", "messages": [user("a")]}, "without"),
    ({"prompt": "a", "completion": 3}, '"completion" must be text or messages'),
    ({"prompt": "a", "completion": [user("b")]}, "must take turns"),
    ({"prompt": "a", "completion": " "}, "the completion is empty"),
    ({"prompt": "a"}, 'needs "messages", or "prompt" and "completion"'),
  ],
)
def test_halves_of_rows_are_refused(row, why):
  with pytest.raises(ValueError, match=why):
    read_dialogue(row, "last", False)


@pytest.mark.parametrize(
  "field", ["weight", "loss_weight", "train", "trainable"]
)
@pytest.mark.parametrize("yes", [1, 1.0, True])
def test_flags_say_which_turns_are_trained(field, yes):
  on, off = {field: yes}, {field: type(yes)(0)}
  first, last = said("one", **on), said("two", **off)
  (only,) = read(user("a"), first, user("b"), last)
  assert (only.completion, only.messages) == ("one", (user("a"),))
  both = read(user("a"), first, user("b"), said("two"), id="x")
  assert [(e.id, e.completion) for e in both] == [
    ("x/1", "one"),
    ("x/2", "two"),
  ]
  # The later turn is under the earlier one, without the field that is no text.
  assert both[1].messages == TALK[:3]
  with pytest.raises(ValueError, match="no message is trained"):
    read(user("a"), said("one", **off))


def test_without_flags_the_last_turn_or_all_are_trained():
  assert [e.completion for e in read(*TALK)] == ["two"]
  every = read(*TALK, turns="all", weight=2)
  assert [(e.completion, e.weight) for e in every] == [("one", 2), ("two", 2)]
  but_one = read(user("a"), said("one", weight=0), *TALK[2:], turns="all")
  assert [e.completion for e in but_one] == ["two"]


def test_a_thought_is_kept_apart_or_refused():
  turn = said("Four.", reasoning_content="2 and 2")
  (example,) = read(user("a"), turn, thoughts=True)
  assert (example.completion, example.thought) == ("Four.", "2 and 2")
  with pytest.raises(
    ValueError, match="message 2 has a thought .reasoning_con"
  ):
    read(user("a"), turn)
  # That of an earlier turn is the template's to show.
  (later,) = read(user("a"), turn, user("b"), said("two"))
  assert later.messages[1] == turn and not later.thought
  same = said("x", reasoning="t", thinking="t")
  assert read(user("a"), same, thoughts=True)[0].thought == "t"


def test_empty_fields_and_other_names_are_read():
  table = {"tool_calls": None, "name": "", "reasoning_content": None}
  (example,) = read(user("a") | table, said("b", **table), id=7, tools=[])
  assert example.id == "7" and example.messages == (user("a"),)
  (example,) = read({"role": "developer", "content": "s"}, user("a"), said("b"))
  assert example.messages[0] == {"role": "system", "content": "s"}


@pytest.mark.parametrize(
  ("messages", "row", "why"),
  [
    (
      [user("a"), said("b", weight=0.5)],
      {},
      'message 2: "weight" must be 0 or',
    ),
    ([user("a"), said("b", train="no")], {}, 'message 2: "train" must be 0 or'),
    (
      [user("a"), said("b", weight=1, train=False)],
      {},
      "contradict each other",
    ),
    ([user("a"), said("b", tool_calls=[{}])], {}, '"tool_calls".* not supp'),
    ([user("a"), said("b", name="Bob")], {}, '"name": .Bob. is not supported'),
    ([user("a") | {"train": True}, said("b")], {}, "not the user's"),
    ([user("a") | {"thinking": "t"}, said("b")], {}, 'message 1: .*"thinking"'),
    ([user("a"), said("b")], {"tools": [{}]}, '"tools".* of a row'),
    ([user("a"), said("b")], {"functions": "x"}, '"functions".* of a row'),
    ([user("a"), said("b")], {"trainable": False}, '"trainable".* of a row'),
    ([user("a"), said("b")], {"system": "s"}, '"system".* of a row'),
    ([user("a"), said("b")], {"enable_thinking": False}, "of a row is not"),
    ([user("a"), said("b")], {"loss_mask": [0, 1]}, '"loss_mask".* of a row'),
  ],
)
def test_what_would_be_left_out_is_refused(messages, row, why):
  with pytest.raises(ValueError, match=why):
    read(*messages, **row)


def test_prompts_have_no_flags():
  assert read_prompt({"messages": [user("a")]}) == TALK[:1]
  for bad in (
    {"messages": [user("a"), said("b", weight=0)]},
    {"messages": [user("a"), said("b", reasoning="t")]},
    {"prompt": "a", "tools": [{}]},
  ):
    with pytest.raises(ValueError):
      read_prompt(bad)


def test_arrays_and_byte_order_marks_are_read(tmp_path):
  rows = [{"messages": list(TALK)}, {"messages": [user("c"), said("d")]}]
  path = tmp_path / "a.json"
  for text in (json.dumps(rows), "\ufeff" + json.dumps(rows, indent=2)):
    path.write_text(text, "utf-8")
    examples, _ = read_examples(str(path), "train")
    assert [e.completion for e in examples] == ["two", "d"]
    assert [e.id for e in examples] == ["file/1", "file/2"]
  lines = "\ufeff" + "\n".join(map(json.dumps, rows))
  path.write_text(lines, "utf-8")
  assert len(read_examples(str(path), "train")[0]) == 2
  path.write_text("\ufeff" + json.dumps({"prompt": "a"}), "utf-8")
  assert read_prompts(path) == [(user("a"),)]
  path.write_text(json.dumps([rows[0], {"messages": "x" * 5000}]))
  with pytest.raises(ValueError, match=r"a\.json, row 2: ") as error:
    read_examples(str(path), "train")
  assert len(str(error.value)) < 400
  path.write_text("[" + "x" * 5000)
  with pytest.raises(ValueError, match="not JSON") as error:
    read_examples(str(path), "train")
  assert len(str(error.value)) < 400


def save(folder, *names):
  folder.mkdir(parents=True)
  for name in names:
    row = {"messages": [user(name), said(name)]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / name)
  return folder


def splits(folder, split):
  return [e.completion for e in read_examples(str(folder), split)[0]]


@pytest.mark.parametrize(
  ("train", "test"),
  [
    ("train.parquet", "test.parquet"),
    ("train-00000-of-00001-abc123.parquet", "test-00000-of-00001-9f.parquet"),
    ("my_training_set.parquet", "eval_1.parquet"),
    ("all.train.parquet", "all.testing.parquet"),
  ],
)
def test_names_of_parquet_files_say_their_split(train, test, tmp_path):
  folder = save(tmp_path / "a", train, test, "dev-2.parquet")
  assert splits(folder, "train") == [train]
  assert splits(folder, "test") == [test]
  assert splits(folder, "validation") == ["dev-2.parquet"]
  with pytest.raises(
    ValueError, match="no split 'other', only .'test', 'train"
  ):
    splits(folder, "other")


def test_parquet_files_without_splits_or_with_too_many(tmp_path):
  plain = save(tmp_path / "plain", "part_0.parquet", "part_1.parquet")
  assert splits(plain, "train") == ["part_0.parquet", "part_1.parquet"]
  with pytest.raises(ValueError, match="no split 'test'"):
    splits(plain, "test")
  mixed = save(tmp_path / "mixed", "more.parquet", "test.parquet")
  with pytest.raises(ValueError, match="more.parquet names no split"):
    splits(mixed, "train")
  both = save(tmp_path / "both", "train_test.parquet")
  with pytest.raises(ValueError, match="says several splits"):
    splits(both, "train")
  part = save(tmp_path / "part", "train-00001-of-00002.parquet")
  with pytest.raises(ValueError, match="has 1 of the 2 files that train-00001"):
    splits(part, "train")
  hub = tmp_path / "hub"
  save(hub / "data", "train-00000-of-00001.parquet", "test.parquet")
  assert splits(hub, "train") == ["train-00000-of-00001.parquet"]
