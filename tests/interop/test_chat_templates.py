"""Chat templates under lm-eval: as its own Hugging Face class renders them."""

import json
import shutil
import types

import pytest
from chat_folders import CHATML, make_folder

pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM

from bct_jax.config import TemplateConfig
from bct_jax.data.chat import Chat
from bct_jax.interop.lm_eval_model import LocalLM
from bct_jax.interop.open_model import open_model

pytestmark = pytest.mark.interop

TALK = [
  {"role": "system", "content": "Be brief."},
  {"role": "user", "content": "Where is the boat?"},
]
REFUSES = (
  "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
)
# The prompt of a run has an empty thought, that of lm-eval's own class has not.
LEAD = CHATML.replace(
  "{{ m.content }}",
  "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}",
)


@pytest.mark.parametrize("template", [CHATML, REFUSES + CHATML, LEAD])
def test_prompts_are_those_of_lm_evals_own_class(template, tmp_path):
  chat = Chat(make_folder(tmp_path / "m", template), 5000)
  runtime = types.SimpleNamespace(chat=chat)
  ours = LocalLM(types.SimpleNamespace(runtime=runtime, max_length=64))
  theirs = types.SimpleNamespace(
    tokenizer=chat.tokenizer, chat_template_args={}
  )
  answer = {"role": "assistant", "content": "In"}
  for talk, prompt in ((TALK, True), ([*TALK, answer], False)):
    assert ours.apply_chat_template(talk, prompt) == (
      HFLM.apply_chat_template(theirs, talk, prompt)
    )


def test_a_day_of_the_config_is_in_prompts(tmp_path):
  folder = make_folder(tmp_path / "m", "{{ strftime_now('%Y') }}" + CHATML)
  chat = Chat(folder, 5000, TemplateConfig(template_date="1999-01-01"))
  runtime = types.SimpleNamespace(chat=chat)
  ours = LocalLM(types.SimpleNamespace(runtime=runtime, max_length=64))
  assert ours.apply_chat_template(TALK).startswith("1999<|im_start|>system")


def test_a_base_model_opens_without_a_template(tiny_folder, tmp_path):
  folder = tmp_path / "base"
  shutil.copytree(tiny_folder, folder)
  (folder / "chat_template.jinja").unlink(missing_ok=True)
  path = folder / "tokenizer_config.json"
  config = json.loads(path.read_text())
  config.pop("chat_template", None)
  path.write_text(json.dumps(config))
  model = open_model(folder)
  assert LocalLM(model).tok_encode("Hi") == model.runtime.chat.encode("Hi")
  with pytest.raises(ValueError, match="no chat template: set model.chat_tem"):
    LocalLM(model).apply_chat_template(TALK)
