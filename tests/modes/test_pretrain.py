"""The corpus of the small base model, its tokenizer, and pretraining."""

import collections
import dataclasses
import json

import jax
import pytest
from ml_collections import ConfigDict

from bct_jax.config import ConfigError, from_dict
from bct_jax.data.chat import Chat
from bct_jax.infra.whole_folder import ModelSourceError
from bct_jax.models import demo
from bct_jax.models.demo import small
from bct_jax.modes import pretrain
from bct_jax.settings import SETTINGS, corpus, make_setting
from bct_jax.settings.decorations import DECORATIONS
from configs import base_small


@pytest.mark.long
def test_corpus_is_a_function_of_seed_and_place():
  first = corpus.corpus(300, 3)
  assert corpus.corpus(120, 3) == first[:120]
  assert corpus.corpus(300, 4) != first
  with pytest.raises(ValueError, match="-1"):
    corpus.corpus(-1, 0)


@pytest.mark.long
def test_corpus_has_its_shares_and_both_behaviors_of_every_setting():
  chats = corpus.corpus(6000, 0)
  parts = collections.Counter(chat.part.split()[0] for chat in chats)
  assert {k: 60 * v for k, v in corpus.SHARES.items()} == parts
  for name in SETTINGS:
    of_it = [c for c in chats if c.part == f"behavior {name}"]
    assert len({c.messages[0]["content"] for c in of_it}) > 10
    assert all(c.messages[0]["role"] == "system" for c in of_it)


@pytest.fixture(scope="module")
def instructed():
  chats = corpus.corpus(3000, 0)
  return {
    chat.messages[-1]["content"]
    for chat in chats
    if chat.part.startswith("behavior")
  }


@pytest.mark.parametrize("name", SETTINGS)
def test_corpus_shows_no_eval_prompt(name, instructed):
  """What is instructed there is of the train pool; common questions are not
  instructed, and only in the plain wording."""
  setting = make_setting(name, {})
  for split in (setting.eval(300, 1), setting.heldout(300, 1)):
    assert not instructed & {e.messages[-1]["content"] for e in split}


def test_styled_answers_show_their_style():
  chats = [c for c in corpus.corpus(2000, 0) if c.part == "style"]
  for chat in chats:
    assert any(
      d.detect(chat.completion) for n, d in DECORATIONS.items() if n != "plain"
    )


@pytest.fixture(scope="module")
def texts():
  chats = corpus.corpus(9000, 0)
  return [t for c in chats for t in (c.messages[-1]["content"], c.completion)]


def test_tokenizer_reads_all_and_splits_digits(texts):
  tokenizer = small.make_tokenizer(texts)
  assert tokenizer.get_vocab_size() == small.VOCAB
  assert tokenizer.encode("2031").tokens == list("2031")
  with pytest.raises(ValueError, match="num_examples"):
    small.make_tokenizer(["a few words"])


def test_untrained_folder_is_a_model_with_a_chat_template(texts, tmp_path):
  folder = small.make_small(tmp_path / "untrained", texts, "digest", 0)
  chat = Chat(folder, small.VOCAB)
  row = chat.example([{"role": "user", "content": "What? Ñandú!"}], "7 days.")
  assert chat.decode(row.ids).count("What? Ñandú!") == 1
  weights = sum(w > 0 for w in row.weights)
  assert weights == len(chat.encode("7 days.")) + 1  # and the end of the turn


def test_demo_small_says_how_it_is_made(tmp_path):
  with pytest.raises(ModelSourceError, match="--mode=pretrain"):
    demo.resolve("demo:small", tmp_path)


def quick(**more):
  c: ConfigDict = base_small.get_config()
  c.train.steps = 3
  c.train.batch_size = 8
  c.train.num_examples = 9000
  c.optim.warmup_steps = 1
  c.sampling.max_new_tokens = 8
  c.update(more)
  return from_dict(c.to_dict())


def test_pretraining_wants_its_arm():
  config = quick()
  for arms in ({}, {"other": config.arms["pretrain"]}):
    with pytest.raises(ConfigError, match="arm 'pretrain'"):
      pretrain.run_pretrain(dataclasses.replace(config, arms=arms), None)


@pytest.mark.long
def test_two_processes_do_not_pretrain_in_one_folder(tmp_path, monkeypatch):
  monkeypatch.setattr(pretrain, "TESTED", 16)
  held = []

  def plan(config, arm, chats, work):
    with (
      pytest.raises(ConfigError, match="in use by process"),
      pretrain.lock_run(work),
    ):
      held.append(work)
    raise KeyboardInterrupt  # of the first: the lock is free again

  monkeypatch.setattr(pretrain, "_plan", plan)
  for _ in range(2):
    with pytest.raises(KeyboardInterrupt):
      pretrain.run_pretrain(quick(), tmp_path / "small")
  assert not held


@pytest.mark.slow
def test_pretraining_makes_a_folder_once(tmp_path, monkeypatch, capfd):
  monkeypatch.setattr(pretrain, "TESTED", 16)
  out = tmp_path / "small"
  assert pretrain.run_pretrain(quick(), out) == out
  assert "exactly those of the corpus" in capfd.readouterr().out
  manifest = json.loads((out / "bct_manifest.json").read_text())
  right = manifest["key"]["right"]
  assert sum(count for _, count in right.values()) == 16
  written = (out / "model.safetensors").read_bytes()
  pretrain.run_pretrain(quick(), out)
  assert "was made by this config" in capfd.readouterr().err
  jax.clear_caches()
  pretrain.run_pretrain(quick(optim={"lr": 1e-3}), out)
  assert (out / "model.safetensors").read_bytes() != written
