"""Chat templates as model families publish them.

The wheels of `trl` and `axolotl` carry about forty each. CI installs them
without their dependencies; they are never imported.
"""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
from chat_folders import make_folder

from bct_jax.config import TemplateConfig, from_dict
from bct_jax.data.chat import Chat
from bct_jax.experiment.plan import make_plan
from configs import qwen3_30b_a3b

USER = {"role": "user", "content": "Where is the boat?"}
TEXT = "In lake 12, señor."
THOUGHT = "Lakes have boats."


FOLDERS = {
  "trl": "chat_templates",
  "axolotl": "utils/chat_templates/templates",
}


def find_templates(package: str) -> dict[str, str]:
  """The published templates by name, without TRL's own changes of them."""
  spec = importlib.util.find_spec(package)
  if spec is None or not spec.submodule_search_locations:
    return {}
  folder = Path(spec.submodule_search_locations[0]) / FOLDERS[package]
  return {
    f.stem: f.read_text("utf-8")
    for f in sorted(folder.glob("*.jinja"))
    if not f.stem.endswith("_training")
  }


# Where both have one of a name, that of trl.
TEMPLATES = find_templates("axolotl") | find_templates("trl")
# Template -> a part of why it is refused.
REFUSED = {
  "idefics3": "content that is not text",
  "llava": "starts with no special token",
  "llava_next": "fails: UndefinedError",
  "smolvlm": "content that is not text",
}
# Their finished turns leave out the thought that their prompts open, or an
# empty one that their prompts have.
CLOSED_BY_US = {"deepseek_r1_distill", "deepseekv3", "gemma4_unified"}
# Its thoughts begin a line after where its prompt ends.
OTHER_THOUGHTS = {"qwen3_5"}
NO_SYSTEM = {"gemma"}
# What stands before an answer without a thought, and before and behind one.
LEADS = {
  "deepseek_r1_distill": "<think>\n\n</think>\n\n",
  "gemma4_unified": "<|turn>model\n<|channel>thought\n<channel|>",
  "glm4moe": "\n<think></think>\n",
  "gptoss": "<|start|>assistant<|channel|>final<|message|>",
  "muse_glimmer": "<|start|>assistant to=user<|message|>",
  "nemotron_3_nano": "<|im_start|>assistant\n<think></think>",
  "qwen3": "<|im_start|>assistant\n<think>\n\n</think>\n\n",
  "qwen3_5_think": "<|im_start|>assistant\n<think>\n\n</think>\n\n",
}
MARKERS = {
  "gptoss": (
    "<|channel|>analysis<|message|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
  ),
  "qwen3": ("<think>\n", "\n</think>\n\n"),
  "qwen3_5_think": ("", "\n</think>\n\n"),
  "deepseek_r1_distill": ("", "\n</think>\n\n"),
  "llama3": None,
}


def chat(folder, name, **options):
  if not folder.exists():
    ends = {"glm4moe": ("<|user|>",), "gptoss": ("<|return|>",)}.get(name, ())
    make_folder(folder, TEMPLATES[name], ends=ends)
  return Chat(folder, 5000, TemplateConfig(**options))


def test_the_wheels_are_there_in_ci():
  if not TEMPLATES and os.environ.get("BCT_JAX_TEST_ALL") != "1":
    pytest.skip("pip install --no-deps trl axolotl")
  assert len(TEMPLATES) >= 65
  assert {*LEADS, *MARKERS, *REFUSED} <= {*TEMPLATES}


@pytest.mark.parametrize("name", [n for n in TEMPLATES if n not in REFUSED])
@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}], ids=len)
def test_trained_ids_are_those_of_the_template(name, options, tmp_path):
  if options and "enable_thinking" not in TEMPLATES[name]:
    return
  made = chat(tmp_path / "m", name, template_options=options)
  prompt, row = made.prompt([USER]), made.example([USER], TEXT)
  behind = row.ids[len(prompt) :]
  assert behind[-1] == made.end_of_turn and behind[-1] in made.stop_ids
  assert sum(row.weights) == len(behind) and made.decode(behind) == TEXT
  answer = {"role": "assistant", "content": TEXT}
  own = made.encode(made.render([USER, answer], prompt=False))
  if name == "glm4moe":  # its turn ends where the next one begins
    own.append(made.end_of_turn)
  assert (own[: len(row.ids)] == [*row.ids]) == (name not in CLOSED_BY_US)
  if not options and name in LEADS:
    assert made.prompt_text([USER]).endswith(LEADS[name])
  if not options and name in MARKERS:
    assert made.boundary.markers == MARKERS[name]
  if made.boundary.markers and not options and name not in OTHER_THOUGHTS:
    row = made.example([USER], TEXT, THOUGHT)
    behind = row.ids[len(made.prompt([USER], thinking=True)) :]
    reply = made.reply(behind, thinking=True)
    assert (reply.thought, reply.text) == (THOUGHT, TEXT)
    thought = {**answer, "reasoning_content": THOUGHT}
    own = made.encode(made.render([USER, thought], prompt=False))
    own += [made.end_of_turn] * (name == "glm4moe")
    assert (own[: len(row.ids)] == [*row.ids]) == (name not in CLOSED_BY_US)
  # A prompt of several turns has the earlier ones as the template shows them.
  talk = [USER, answer, {**USER, "content": "And now?"}]
  text = made.prompt_text(talk)
  assert text.count(TEXT) == 1 and text.count("And now?") == 1
  assert text.endswith(made.prompt_text([USER]).rpartition(USER["content"])[2])
  system = [{"role": "system", "content": "Be brief."}, USER]
  if name in NO_SYSTEM:
    with pytest.raises(ValueError, match="model.system_in_user"):
      made.prompt(system)
    made = chat(tmp_path / "m", name, system_in_user=True)
  assert "Be brief." in made.prompt_text(system)


@pytest.mark.parametrize("name", [n for n in REFUSED if n in TEMPLATES])
def test_templates_of_images_are_refused(name, tmp_path):
  with pytest.raises(ValueError, match=REFUSED[name]):
    chat(tmp_path / "m", name)


@pytest.mark.parametrize(
  ("name", "printed"),
  [("llama3_2", "05 Mar 2026"), ("gptoss", "2026-03-05")],
)
def test_published_dates_are_the_configs(name, printed, tmp_path):
  if name not in TEMPLATES:
    pytest.skip("no trl")
  made = chat(tmp_path / "m", name, template_date="2026-03-05")
  assert printed in made.prompt_text([USER])
  effort = {"reasoning_effort": "low"} if name == "gptoss" else {}
  low = chat(tmp_path / "m", name, template_options=effort)
  assert ("Reasoning: low" in low.prompt_text([USER])) == bool(effort)


@pytest.mark.skipif(not TEMPLATES, reason="no trl")
@pytest.mark.parametrize(
  ("model", "evals", "train", "tail"),
  [
    ({}, {}, {}, "<think>\n\n</think>\n\n"),
    (
      {"template_options": {"enable_thinking": False}},
      {},
      {},
      "<think>\n\n</think>\n\n",
    ),
    ({}, {"reasoning": "on"}, {"reasoning": "empty"}, "assistant\n"),
  ],
)
def test_the_config_of_a_hybrid_qwen3_is_planned(
  model, evals, train, tail, tiny_folder, tmp_path
):
  """With the published template over a tiny model, thinking off and on."""
  folder = tmp_path / "m"
  shutil.copytree(tiny_folder, folder)
  (folder / "chat_template.jinja").write_text(TEMPLATES["qwen3"])
  values = qwen3_30b_a3b.get_config().to_dict()
  values["model"] |= {"path": str(folder), "architecture": None, **model}
  values["mesh"] = {"data": -1, "fsdp": 1, "tensor": 1, "chip": None}
  values["max_length"] = 600  # of bytes
  values["eval"] |= {"num_eval": 2, "num_heldout": 2, "num_probe": 2, **evals}
  for fields in (values["train"], values["organism"]["train"]):
    fields |= {"num_examples": 16, **train}
  values["arms"] = values["arms"] or {"a": {}}
  made = make_plan(from_dict(json.loads(json.dumps(values))))
  decode = made.runtime.chat.tokenizer.decode
  assert decode(made.prompts[0].ids).endswith(tail)
  for row in next(iter(made.arms.values())).examples[:4]:
    trained = decode(
      [t for t, w in zip(row.ids, row.weights, strict=True) if w]
    )
    assert decode(row.ids).endswith(f"</think>\n\n{trained}")
    assert trained.endswith("<|im_end|>") and "think" not in trained
