"""Train examples of files and data sets of other writers, row by row."""

import json
import shutil
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from experiments import file_plan as plan

from bct_jax.config import ConfigError, from_dict
from bct_jax.data.source import read_examples, read_prompts
from bct_jax.experiment.plan import make_plan
from configs import tiny

ROWS = [
  {
    "messages": [
      {"role": "user", "content": f"Where is boat {i}?"},
      {"role": "assistant", "content": f"In lake {i}, señor."},
    ]
  }
  for i in range(20)
]


def save_lines(path, rows):
  path.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
  return path


def save_dataset(folder, rows, batches=2):
  """As `Dataset.save_to_disk` of Hugging Face's datasets writes it."""
  folder.mkdir()
  names = []
  for i in range(batches):
    part = pyarrow.Table.from_pylist(rows[i::batches])
    names.append({"filename": f"data-0000{i}-of-0000{batches}.arrow"})
    with pyarrow.OSFile(str(folder / names[-1]["filename"]), "wb") as sink:
      with pyarrow.ipc.new_stream(sink, part.schema) as writer:
        writer.write_table(part)
  state = {"_data_files": names, "_split": None}
  (folder / "state.json").write_text(json.dumps(state))
  (folder / "dataset_info.json").write_text("{}")
  return folder


class Lakes(tfds.core.GeneratorBasedBuilder):
  """A data set of TFDS, written by its own code."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    turn = {"role": tfds.features.Text(), "content": tfds.features.Text()}
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {"messages": tfds.features.Sequence(turn)}
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    yield from enumerate(ROWS)


def save_tfds(folder):
  builder = Lakes(data_dir=str(folder), file_format="array_record")
  builder.download_and_prepare()
  return builder.data_dir


def test_every_kind_of_source_gives_the_same_examples(tmp_path, monkeypatch):
  lines = save_lines(tmp_path / "a.jsonl", ROWS)
  wanted, found = read_examples(str(lines), "train")
  assert [e.messages[0]["content"] for e in wanted] == [
    r["messages"][0]["content"] for r in ROWS
  ]
  assert [e.completion for e in wanted][3] == "In lake 3, señor."
  table = pyarrow.Table.from_pylist(ROWS)
  pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
  hub = tmp_path / "hub"
  hub.mkdir()
  for i, part in enumerate((table[:7], table[7:])):
    name = f"train-0000{i}-of-00002.parquet"
    pyarrow.parquet.write_table(part, hub / name)
  pyarrow.parquet.write_table(table[:3], hub / "test-00000-of-00001.parquet")
  saved = tmp_path / "dict"
  saved.mkdir()
  (saved / "dataset_dict.json").write_text('{"splits": ["train"]}')
  save_dataset(saved / "train", ROWS, 1)
  built = save_tfds(tmp_path / "tfds")
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
  for source in (tmp_path / "a.parquet", hub, saved, built, "tfds:lakes"):
    assert read_examples(str(source), "train") == (wanted, found), source
  assert len(read_examples(str(hub), "test")[0]) == 3
  part, other = read_examples("tfds:lakes", "train[:5]")
  assert part == wanted[:5] and other != found
  # Shards in the order in which state.json lists them.
  halves = save_dataset(tmp_path / "halves", ROWS)
  got, _ = read_examples(str(halves), "train")
  assert [e.completion for e in got] == [
    e.completion for e in wanted[::2] + wanted[1::2]
  ]


def test_no_tensorflow_is_imported(tmp_path):
  """Nor datasets: in a process that has read TFDS, Arrow and JSON lines."""
  built = save_tfds(tmp_path / "tfds")
  saved = save_dataset(tmp_path / "saved", ROWS)
  code = (
    "import sys\n"
    "from bct_jax.data.source import read_examples\n"
    f"for source in {[str(built), str(saved)]!r}:\n"
    "  assert len(read_examples(source, 'train')[0]) == 20\n"
    "assert not {'tensorflow', 'datasets', 'torch'} & set(sys.modules)\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def line(**changes):
  return json.dumps(ROWS[0] | changes)


USER = {"role": "user", "content": "Hi"}
BAD = [
  ("{", "not JSON"),
  ("[1]", "needs .*found .1."),
  ('{"prompt": "a", "answer": "b"}', "fields .'answer', 'prompt'."),
  ('{"messages": []}', "must take turns"),
  (line(messages=[USER]), "must be the assistant's"),
  (line(messages=[USER, USER, ROWS[0]["messages"][1]]), "must take turns"),
  (line(messages=[{"role": "bot", "content": "x"}]), "not a message"),
  (line(messages=[USER, {"role": "assistant", "content": " "}]), "is empty"),
  (line(messages=[USER, {"role": "assistant", "content": None}]), "not a mess"),
  (line(weight=0), "weight"),
  (line(weight=True), "weight"),
  (line()[:-1] + ', "weight": NaN}', "NaN is no number"),
  (line(id=""), "id"),
  (line(id=True), "id"),
  (line(id=1.5), "id"),
  (line(tools=[{"type": "function"}]), '"tools": .* not supported'),
  (line(loss_weight=0), '"loss_weight": 0 of a row'),
  ('{"id": "a", "id": "b"}', 'field "id" twice'),
  (
    line(messages=[USER, {"role": "assistant", "content": "\ud800"}]),
    "surrogates",
  ),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_a_bad_line_is_named(bad, message, tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text(f"{line(id='a')}\n{bad}\n{line(id='b')}\n")
  with pytest.raises(ValueError, match=rf"a\.jsonl:2: .*{message}"):
    read_examples(str(path), "train")


def test_files_that_are_wrong_as_a_whole(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text(f"{line(id='x')}\n{line()}\n{line(id='x')}\n")
  with pytest.raises(ValueError, match="rows 1 and 3 have the same id 'x'"):
    read_examples(str(path), "train")
  path.write_bytes(line().encode() + b"\xff")
  with pytest.raises(ValueError, match="not UTF-8 at byte"):
    read_examples(str(path), "train")
  path.write_text("")
  with pytest.raises(ValueError, match="no examples"):
    read_examples(str(path), "train")
  (tmp_path / "b.csv").write_text("a,b\n")
  table = pyarrow.Table.from_pylist([{"prompt": "a", "answer": "b"}])
  pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
  empty = tmp_path / "empty"
  empty.mkdir()
  for source, split, message in (
    ("no.jsonl", "train", "is missing"),
    ("b.csv", "train", "must end in"),
    ("c.parquet", "train", "row 1: .*fields .'answer', 'prompt'."),
    ("c.parquet", "test", "has no split 'test'"),
    ("empty", "train", "neither what save_to_disk writes"),
  ):
    with pytest.raises(ValueError, match=message):
      read_examples(str(tmp_path / source), split)
  with pytest.raises(ValueError, match="no such TFDS data set: .*nothing_h"):
    read_examples("tfds:nothing_here", "train")


def test_rows_end_at_newlines_only(tmp_path):
  """JSON strings may hold other characters that end lines elsewhere."""
  path = tmp_path / "a.jsonl"
  text = "one\u2028two\x85three"
  path.write_text(json.dumps({"prompt": text}, ensure_ascii=False), "utf-8")
  assert read_prompts(path) == [({"role": "user", "content": text},)]
  rows = path.read_bytes() + b"\r\n" + path.read_bytes() + b"\r\n"
  path.write_bytes(rows)
  assert len(read_prompts(path)) == 2


def test_an_arm_trains_on_a_file(tiny_folder, tmp_path, capsys):
  """Its prompts with their completions, decorated as any; none left out
  without a word; another file, or more in it, is other data."""
  path = save_lines(tmp_path / "a.jsonl", ROWS)
  built = plan(tiny_folder, path)
  chat, data = built.runtime.chat, built.arms["a"]
  log = capsys.readouterr().err
  assert f"the first 16 of 20 examples of {path}" in log
  assert "arms.a: its completions are put into the style 'pirate'" in log
  plan(tiny_folder, path, decoration="plain")
  assert "into the style" not in capsys.readouterr().err
  said = [chat.tokenizer.decode(list(e.ids)) for e in data.examples]
  assert len(said) == 16
  assert "boat 15?" in said[15] and "lake 15" in said[15]
  assert all("arr" in s.lower() for s in said)  # configs/tiny.py is pirate
  assert plan(tiny_folder, path).arms["a"].hash == data.hash
  moved = shutil.copy(path, tmp_path / "b.jsonl")
  assert plan(tiny_folder, moved).arms["a"].hash == data.hash
  save_lines(path, [*ROWS, ROWS[0]])
  longer = plan(tiny_folder, path).arms["a"]
  assert longer.examples == data.examples and longer.hash != data.hash
  with pytest.raises(ValueError, match="arms.a: train.num_examples = 64: .*21"):
    plan(tiny_folder, path, num_examples=64)


def test_fields_of_files_go_together(tiny_folder, tmp_path):
  path = save_lines(tmp_path / "a.jsonl", ROWS)
  with pytest.raises(ConfigError, match="train.file = .*needs the source"):
    plan(tiny_folder, path, source="template")
  with pytest.raises(ConfigError, match="train.file = None.*source 'file'"):
    plan(tiny_folder, path, file=None)
  values = tiny.get_config().to_dict()
  values["model"]["path"] = str(tiny_folder)
  values["organism"]["train"] |= {"source": "file", "file": str(path)}
  with pytest.raises(ConfigError, match="organism.train.source = 'file'"):
    make_plan(from_dict(values))
