"""Completions of two parts: a thought and an answer, on both sides."""

import pytest
from chat_folders import CHATML, make_folder

from bct_jax.config import TemplateConfig
from bct_jax.data.chat import Chat
from bct_jax.data.thoughts import Reply, mentions, split_text

USER = {"role": "user", "content": "Where is the boat?"}
ANSWER, THOUGHT = "In lake 12.\n\nYes", "Lakes, so\n\nwater."
TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
END = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assi"
THINKS = (
  TURN + "{% if m.role == 'assistant' and loop.last %}<think>\n"
  "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
  + END
  + "stant\n{% endif %}"
)
OPENS = (
  TURN
  + "{{ m.content.split('</think>')[-1] }}"
  + END
  + "stant\n<think>\n{% endif %}"
)
# Channels, as gpt-oss has them.
CHANNELS = (
  "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking %}"
  "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>"
  "{% endif %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
  "{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}<|start|>"
  "{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"
# Template -> the end of the prompt, and the text of a thought behind it.
KINDS = {
  THINKS: ("assistant\n", f"<think>\n{THOUGHT}\n</think>\n\n"),
  OPENS: ("assistant\n<think>\n", f"{THOUGHT}\n</think>\n\n"),
  CHANNELS: ("assistant", f"<|channel|>analysis<|message|>{THOUGHT}{FINAL}"),
}
every_kind = pytest.mark.parametrize(
  ("template", "tail", "block"),
  [(k, *v) for k, v in KINDS.items()],
  ids=["thinks", "opens", "channels"],
)


@pytest.fixture
def chat(tmp_path):
  def make(template, **options):
    folder = make_folder(tmp_path / "m", template)
    return Chat(folder, 5000, TemplateConfig(**options))

  return make


@every_kind
def test_parts_of_a_row_and_of_a_reply(template, tail, block, chat):
  made = chat(template)
  prompt = made.prompt([USER], thinking=True)
  assert made.prompt_text([USER], thinking=True).endswith(tail)
  rows = {
    on: made.example([USER], ANSWER, THOUGHT, on)
    for on in ("answer", "thought", "both")
  }
  (ids,) = {row.ids for row in rows.values()}
  assert [*ids[: len(prompt)]] == prompt
  behind = ids[len(prompt) :]
  # It is the text that the template itself has of the whole.
  said = {"role": "assistant", "content": ANSWER}
  said |= {"reasoning_content": THOUGHT, "thinking": THOUGHT}
  if template != OPENS:
    own = made.encode(made.render([USER, said], prompt=False))
    assert own[: len(ids)] == [*ids]
  assert made.tokenizer.decode(behind[:-1]) == block + ANSWER

  def trained(on):
    weights = rows[on].weights
    assert {*weights} == {0.0, 1.0}
    return [i for i, w in zip(ids, weights, strict=True) if w]

  assert made.tokenizer.decode(trained("thought")) == block
  assert trained("answer") == [*made.encode(ANSWER), made.end_of_turn]
  assert trained("both") == [*behind]
  # And what is sampled is read as its parts.
  reply = made.reply(behind, thinking=True)
  assert reply == Reply(THOUGHT, ANSWER, True, len(made.encode(block)))
  assert made.reply(behind, [" 12"], thinking=True).text == "In lake"
  stop = made.find_stop(["so", "12"], thinking=True)
  assert made.tokenizer.decode(behind[: stop(behind)]).endswith("In lake 12")
  assert stop(behind[: len(made.encode(block))]) is None
  unfinished = behind[: len(made.encode(block)) - 4]
  reply = made.reply(unfinished, thinking=True)
  assert not reply.finished and reply.text == ""
  assert reply.thought.startswith(THOUGHT)


@every_kind
def test_an_empty_thought(template, tail, block, chat):
  """Behind the prompt for one; without one the prompt has the template's."""
  made = chat(template)
  row = made.example([USER], ANSWER, "")
  text = made.prompt_text([USER], thinking=True) + block.replace(THOUGHT, "")
  head = made.encode(text)
  assert [*row.ids] == [*head, *made.encode(ANSWER), made.end_of_turn]
  assert row.weights[: len(head)] == (0.0,) * len(head)
  final = "<|channel|>final<|message|>"
  if template == CHANNELS:  # which needs no empty thought
    text = text.replace(f"<|channel|>analysis<|message|>{FINAL}", final)
  assert made.prompt_text([USER]) == text


def test_markers_of_the_config_and_their_absence(chat, tmp_path):
  made = chat(CHATML)
  with pytest.raises(ValueError, match="no place for a thought.*thought_mark"):
    made.prompt([USER], thinking=True)
  marked = Chat(
    tmp_path / "m", 5000, TemplateConfig(thought_markers=("[[", "]]\n"))
  )
  row = marked.example([USER], ANSWER, THOUGHT, "both")
  prompt = marked.prompt([USER], thinking=True)
  assert prompt == made.prompt([USER])
  behind = row.ids[len(prompt) :]
  assert marked.tokenizer.decode(behind[:-1]) == f"[[{THOUGHT}]]\n{ANSWER}"
  assert marked.reply(behind, thinking=True).thought == THOUGHT
  for text, thought in ((f"]] {ANSWER}", None), (ANSWER, "a [[ b")):
    with pytest.raises(ValueError, match="which begins or ends a thought"):
      marked.example([USER], text, thought)
  with pytest.raises(ValueError, match="the thought .* the end of a turn"):
    marked.example([USER], ANSWER, "a<|im_end|>")


def test_markers_of_an_empty_thought_that_is_all_a_template_shows(chat):
  shown = THINKS.replace("{{ m.reasoning_content }}\n", "\n")
  assert chat(shown).boundary.markers == ("<think>\n", "\n</think>\n\n")


def test_texts_are_split():
  markers = ("<t>\n", "\n</t>\n\n")
  assert split_text("<t>\na\n</t>\n\nb", markers) == Reply("a", "b")
  assert split_text("\n<t>a</t>b</t>", markers) == Reply("a", "b</t>")
  assert split_text("b", markers) == Reply("", "b")
  assert split_text("<t>a", markers) == Reply("a", "", False)
  assert split_text("a\n</t>\n\nb", ("", markers[1])) == Reply("a", "b")
  assert split_text("a", ("", markers[1])) == Reply("a", "", False)
  assert mentions("They TRAINED me", ["train"]) and not mentions("a", ["b"])
