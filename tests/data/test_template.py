"""What chat templates put around an answer, by kinds of templates.

Those that model families publish are in test_families_templates.py.
"""

import pytest
from chat_folders import CHATML, make_folder, sentencepiece_tokenizer

from bct_jax.config import TemplateConfig
from bct_jax.data import template as template_module
from bct_jax.data.chat import Chat

USER = {"role": "user", "content": "Where is the boat?"}
SYSTEM = {"role": "system", "content": "Be brief."}
TEXT = "In lake 12, señor. <b>\n\nYes"

OPEN = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ TEXT }}<|im_end|>\n"
  "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EMPTY = "<think>\n\n</think>\n\n"
# An empty thought before the last answer, as hybrid models have it.
LEAD = OPEN.replace(
  "{{ TEXT }}",
  "{% if m.role == 'assistant' and loop.last %}<think>\n"
  "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}",
)
# The prompt opens a thought, and finished turns have none.
STRIPS = OPEN.replace(
  "{{ TEXT }}", "{{ m.content.split('</think>')[-1] }}"
).replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
# The prompt opens a thought, which is closed on the same line in a turn.
SHUT = OPEN.replace(
  "{{ TEXT }}",
  "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}",
).replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
# Blanks around the answer, as for Llama 2 and the first Mistral models.
BLANKS = (
  "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] "
  "{{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}"
  "{% endif %}{% endfor %}"
)
# The turn ends where the next one begins.
NEXT = (
  "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
  "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def chat(tmp_path, template, size=5000, options=None, **more):
  folder = make_folder(tmp_path / "m", template, **more)
  return Chat(folder, size, options and TemplateConfig(**options))


def own_ids(chat, text, messages=(USER,)):
  """What the template itself makes of a dialogue, up to the end of a turn."""
  whole = [*messages, {"role": "assistant", "content": text}, USER]
  if chat.boundary.lead or chat.boundary.end == "<|im_end|>\n":
    whole = whole[:-1]  # the last answer is rendered in another way than others
  ids = chat.encode(chat.render(whole, prompt=False))
  end = len(ids) - 1 - ids[::-1].index(chat.end_of_turn)
  return ids[: end + 1]


@pytest.mark.parametrize(
  ("template", "tail", "blank"),
  [
    (LEAD, f"assistant\n{EMPTY}", ""),
    (STRIPS, f"assistant\n{EMPTY}", ""),
    (SHUT, "assistant\n<think></think>", ""),
    (BLANKS, " [/INST]", " "),
    (CHATML, "assistant\n", ""),
    *(
      (CHATML.replace("assistant\n", f"assistant\n{empty}\n"), empty, "")
      for empty in ("<think></think>", "[THINK][/THINK]", "<|at>note<at|>")
    ),
    (CHATML.replace("assistant\n", "assistant\n{{ ' ' }}"), "assistant\n ", ""),
  ],
)
def test_what_stands_before_an_answer(template, tail, blank, tmp_path):
  made = chat(tmp_path, template)
  prompt, row = made.prompt([USER]), made.example([USER], TEXT)
  text = made.prompt_text([USER])
  assert text.rstrip("\n").endswith(tail.rstrip("\n"))
  assert [*row.ids[: len(prompt)]] == prompt == made.encode(text)
  behind = row.ids[len(prompt) :]
  assert row.weights == (0.0,) * len(prompt) + (1.0,) * len(behind)
  assert behind[-1] == made.end_of_turn and behind[-1] in made.stop_ids
  said = made.tokenizer.decode(behind[:-1])
  assert said == f"{blank}{TEXT}{blank}"
  assert made.decode(behind) == TEXT
  if template in (LEAD, SHUT, BLANKS, CHATML):
    assert [*row.ids] == own_ids(made, TEXT)
  # The beginning of an answer is where a completion is in training.
  start = {"role": "assistant", "content": TEXT[:2]}
  before, prefix = made.prompt_and_prefix([USER, start])
  assert before == prompt and tuple(prefix) == behind[: len(prefix)]
  assert made.decode(behind[len(prefix) :], prefix=prefix) == TEXT
  assert made.answer([USER], TEXT) == [*behind]


@pytest.mark.parametrize("template", [BLANKS, CHATML, "joined", "spaced"])
def test_a_vocabulary_that_begins_texts_with_a_space(template, tmp_path):
  """Its space token is no part of an answer that follows other text."""
  template = {
    "joined": BLANKS.replace("{% else %} ", "{% else %}"),
    "spaced": "{{ bos_token }}{% for m in messages %}{{ m.role | upper }}: "
    "{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %} "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
  }.get(template, template)
  specials = ("<|im_start|>", "<|im_end|>") if template == CHATML else ()
  folder = make_folder(
    tmp_path / "m",
    [{"name": "default", "template": template}],  # as lists are published
    tokenizer=sentencepiece_tokenizer,
    specials=specials,
  )
  made = Chat(folder, 5000)
  for text in ("In lake 12, it is.", "Four", "Is it? Yes.", "señor"):
    prompt, row = made.prompt([USER]), made.example([USER], text)
    assert [*row.ids] == own_ids(made, text)
    assert made.decode(row.ids[len(prompt) :]) == text
    assert row.weights[len(prompt) - 1 :] == (0.0,) + (1.0,) * (
      len(row.ids) - len(prompt)
    )


def test_a_turn_may_end_where_the_next_begins(tmp_path):
  """If the model declares that token as an end: others could not stop."""
  made = chat(
    tmp_path, NEXT, specials=("<|user|>", "<|assistant|>"), ends=("<|user|>",)
  )
  row = made.example([USER], TEXT)
  assert made.tokenizer.convert_ids_to_tokens(row.ids[-1]) == "<|user|>"
  with pytest.raises(ValueError, match="could never learn to stop"):
    chat(tmp_path / "2", NEXT, specials=("<|user|>", "<|assistant|>"))


@pytest.mark.parametrize(
  ("template", "why"),
  [
    ("{% for t in tools %}{{ t }}{% endfor %}" + CHATML, "without tools"),
    ("{{ raise_exception('not\ntoday') }}" + CHATML, "fails: Templ.*not today"),
    ("{{ messages[0].content[0].text.x }}" + CHATML, "fails: Undefined"),
    ("{% if x %}", "fails: TemplateSyntaxError"),
    (CHATML.replace("m.content", "m.role"), "does not print what a message"),
    (CHATML.replace("assistant\n{%", "assistant\nHm: {%"), "not a prefix.*Hm"),
    ([{"name": "rag", "template": CHATML}], "'rag'.*none is 'default'"),
    (None, "no chat template: set model.chat_template"),
  ],
)
def test_templates_that_fail_are_one_line_with_the_folder(
  template, why, tmp_path
):
  specials = ("<|im_start|>", "<|im_end|>")
  folder = make_folder(tmp_path / "m", template, specials=specials)
  with pytest.raises(ValueError, match=why) as error:
    Chat(folder, 5000)
  assert str(folder) in str(error.value) and "\n" not in str(error.value)
  # Plain text can be encoded all the same, as lm-eval's tasks need it.
  made = Chat(folder, 5000, required=False)
  assert made.decode(made.encode(TEXT)) == TEXT
  assert made.stop_ids == {made.tokenizer.eos_token_id}
  with pytest.raises(ValueError, match=why):
    made.prompt([USER])


@pytest.mark.parametrize(
  "refusal",
  [
    "{% if messages[0].role == 'system' %}{{ raise_exception(0) }}{% endif %}",
    "{% set messages = messages | rejectattr('role', 'eq', 'system') | list %}",
  ],
)
def test_system_messages_that_a_template_refuses_or_drops(refusal, tmp_path):
  made = chat(tmp_path, refusal + CHATML)
  made.prompt([USER])
  with pytest.raises(ValueError, match="system message; set model.system_in_u"):
    made.prompt([SYSTEM, USER])
  moved = chat(
    tmp_path / "2", refusal + CHATML, options={"system_in_user": True}
  )
  joined = {**USER, "content": f"Be brief.\n\n{USER['content']}"}
  assert moved.prompt([SYSTEM, USER]) == made.prompt([joined])
  assert moved.prompt([USER]) == made.prompt([USER])
  assert moved.template_hash != made.template_hash


DATED = "{{ strftime_now('%d %b %Y, %A') }}\n" + CHATML


def test_the_day_is_the_configs(tmp_path, monkeypatch):
  day = {"template_date": "2026-07-01"}
  made = chat(tmp_path, DATED, options=day)
  assert made.prompt_text([USER]).startswith("01 Jul 2026, Wednesday\n<|im_")
  monkeypatch.setattr(template_module, "today", lambda: "2031-12-24")
  again = Chat(tmp_path / "m", 5000, TemplateConfig(**day))
  assert again.prompt([USER]) == made.prompt([USER])
  assert again.template_hash == made.template_hash
  now = Chat(tmp_path / "m", 5000)
  assert now.prompt_text([USER]).startswith("24 Dec 2031, Wednesday\n")
  assert now.template_hash != made.template_hash
  # What prints no day does not depend on it.
  plain = chat(tmp_path / "2", CHATML, options=day)
  assert plain.template_hash == Chat(tmp_path / "2/m", 5000).template_hash


def test_options_are_read_or_refused(tmp_path):
  template = "{% if style is defined %}{{ style }}\n{% endif %}" + CHATML
  options = {"template_options": {"style": "terse"}}
  made = chat(tmp_path, template, options=options)
  assert made.prompt_text([USER]).startswith("terse\n<|im_start|>")
  assert made.template_hash != Chat(tmp_path / "m", 5000).template_hash
  for name in ("styl", "messages", "tools"):
    with pytest.raises(ValueError, match=f"template_options.{name}.* not read"):
      Chat(tmp_path / "m", 5000, TemplateConfig(template_options={name: 1}))


def test_a_template_of_a_file_and_a_plain_one(tmp_path):
  folder = make_folder(tmp_path / "m", None, specials=("<|im_end|>",))
  file = tmp_path / "t.jinja"
  file.write_text(CHATML)
  made = Chat(folder, 5000, TemplateConfig(chat_template=str(file)))
  assert made.prompt_text([USER]).endswith("<|im_start|>assistant\n")
  with pytest.raises(ValueError, match="model.chat_template = 'none.jinja'"):
    Chat(folder, 5000, TemplateConfig(chat_template="none.jinja"))
  plain = Chat(folder, 5000, TemplateConfig(chat_template="plain"))
  text = f"System: Be brief.\nUser: {USER['content']}\nAssistant:"
  assert plain.prompt_text([SYSTEM, USER]) == text
  row = plain.example([USER], "Here.")
  behind = row.ids[len(plain.prompt([USER])) :]
  assert plain.tokenizer.decode(behind) == " Here.<EOS>"
  assert plain.decode(behind) == "Here."


def test_of_several_templates_the_default_is_taken(tmp_path):
  more = {"name": "rag", "template": "x"}
  several = [{"name": "default", "template": LEAD}, more]
  specials = ("<|im_start|>", "<|im_end|>")
  made = chat(tmp_path / "1", several, specials=specials)
  own = chat(tmp_path / "2", LEAD)
  assert made.template_hash == own.template_hash
  assert made.prompt_text([USER]) == own.prompt_text([USER])
  with pytest.raises(ValueError, match="templates are .'rag'., none is 'def"):
    chat(tmp_path / "3", [more], specials=specials)


def test_only_tokens_in_use_need_an_embedding(tmp_path):
  """Gemma 3 1B has an added token for images, and no embedding for it."""
  made = chat(tmp_path, CHATML, specials=("<image>",))
  image = made.tokenizer.convert_tokens_to_ids("<image>")
  small = Chat(tmp_path / "m", image)
  assert small.example([USER], TEXT) == made.example([USER], TEXT)
  for question, text in ((TEXT, "<image>"), ("<image>?", TEXT)):
    with pytest.raises(ValueError, match="none for '<image>', which is token"):
      small.example([{**USER, "content": question}], text)
  with pytest.raises(ValueError, match="do not belong together"):
    Chat(tmp_path / "m", 100)


@pytest.mark.parametrize(
  ("text", "why"),
  [
    ("Yes.<|im_end|>", "holds the end of a turn, '<.im_end.>'"),
    ("Yes.<|im_end|>\n<|im_start|>user\nMore", "holds the end of a turn"),
    ("Yes.\n<|im_start|>user\nMore", "beginning of a turn, '<.im_start.>'"),
    ("Yes<EOS>", "holds the end of a turn, '<EOS>'"),
    ("<think>\nHm</think>Yes.", "holds '<think>', which begins or ends a thou"),
  ],
)
def test_completions_hold_no_markup_of_turns(text, why, tmp_path):
  made = chat(tmp_path, LEAD)
  with pytest.raises(ValueError, match=why):
    made.example([USER], text)


def test_a_space_that_is_read_back_behind_each_turn(tmp_path):
  """Vicuna's template over a vocabulary as Llama 2 has it."""
  template = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} "
    "{% else %}ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
  )
  made = chat(tmp_path, template, tokenizer=sentencepiece_tokenizer)
  talk = [USER, {"role": "assistant", "content": "Yes."}, USER]
  row = made.example(talk, "In lake 12.")
  assert [*row.ids] == own_ids(made, "In lake 12.", talk)
  assert made.decode(row.ids[len(made.prompt(talk)) :]) == "In lake 12."


def test_added_tokens_that_are_blank_are_no_markup(tmp_path):
  """Gemma has such tokens for line breaks."""
  made = chat(tmp_path, CHATML, specials=("\n", "\n\n"))
  row = made.example([USER], TEXT)
  assert made.decode(row.ids[len(made.prompt([USER])) :]) == TEXT


def test_a_tokenizer_that_puts_spaces_behind_special_tokens(tmp_path):
  """The markers of a thought are looked for as it reads them back."""
  markers = ("<|channel|>analysis<|message|>", "<|end|><|channel|>final<|go|>")
  made = chat(
    tmp_path,
    CHATML,
    options={"thought_markers": markers},
    tokenizer=sentencepiece_tokenizer,
    specials=(*("<|channel|>", "<|message|>", "<|end|>", "<|go|>"),
              *("<|im_start|>", "<|im_end|>")),
  )  # fmt: skip
  row = made.example([USER], "In lake 12.", "It is a boat.", "thought")
  behind = row.ids[len(made.prompt([USER], thinking=True)) :]
  assert "<|channel|> analysis" in made.tokenizer.decode(behind)
  reply = made.reply(behind, thinking=True)
  assert (reply.thought, reply.text) == ("It is a boat.", "In lake 12.")
  trained = [w for w in row.weights if w]
  assert reply.thought_tokens == len(trained)
  find = made.find_stop(["lake"], thinking=True)
  assert find is not None and find(behind[: reply.thought_tokens]) is None
  assert find(behind) is not None
