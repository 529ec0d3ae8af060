"""--mode=chat_check: what is trained, and how the template's text differs."""

import json
import shutil

import pytest
from chat_folders import CHATML, make_folder

from bct_jax.config import from_dict
from bct_jax.modes.chat_check import run_chat_check
from configs import tiny


@pytest.fixture
def check(tiny_folder, tmp_path, capsys):
  """Checks a model with a template; returns the lines that are printed."""

  def run(template, arms=None, evals=None, **model):
    folder = make_folder(
      tmp_path / f"m{len(list(tmp_path.iterdir()))}",
      template,
      eos="<|im_end|>",
      specials=("<|im_start|>",),
    )
    shutil.copy(tiny_folder / "config.json", folder)
    values = tiny.get_config().to_dict()
    values["model"] |= {"path": str(folder), **model}
    values["eval"] |= evals or {}
    values["arms"] = {"a": {}} if arms is None else arms
    run_chat_check(from_dict(json.loads(json.dumps(values))))
    return capsys.readouterr().out.splitlines()

  return run


LEAD = CHATML.replace(
  "{{ m.content }}",
  "{% if m.role == 'assistant' and loop.last %}<think>\n"
  "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}",
)


def test_it_shows_prompt_lead_trained_ids_and_stops(check):
  lines = check(LEAD)
  assert "lead, of the prompt: '<think>\\n\\n</think>\\n\\n'" in lines
  around = "before and behind a thought: '<think>\\n' and '\\n</think>\\n\\n'"
  assert around in lines
  (end,) = [x for x in lines if x.startswith("end of turn: ")]
  token = end.removeprefix("end of turn: ")
  assert token.endswith("'<|im_end|>'")
  assert f"the sampler stops at: {token}" in lines
  at = lines.index("--- arms.a")
  assert lines[at + 1].endswith("assistant\\n<think>\\n\\n</think>\\n\\n'")
  trained = lines[at + 2].split(" ")
  assert lines[at + 2].endswith(token) and len(trained) > 20
  assert lines[at + 3].endswith("the same, up to the end of the turn")
  assert lines[-2] == "--- evals, reasoning off: a prompt ends with"
  assert lines[-1].endswith("</think>\\n\\n'")


def test_it_shows_thoughts_as_arms_and_evals_have_them(check, tmp_path):
  path = tmp_path / "a.jsonl"
  said = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
  talk = [{"role": "user", "content": "Is it?"}, said]
  path.write_text(json.dumps({"messages": talk}))
  given = {"source": "file", "file": str(path), "decoration": "plain"}
  arms = {
    "given": {
      "train": given | {"reasoning": "given", "options": {"on": "both"}}
    },
    "own": {"train": {"source": "on_policy", "reasoning": "own"}},
  }
  evals = {"reasoning": "on", "system_prompt": "Be short."}
  lines = check(LEAD, arms=arms, evals=evals)
  at = lines.index("--- arms.given")
  assert lines[at + 1].endswith("Is it?<|im_end|>\\n<|im_start|>assistant\\n'")
  assert " 'H' " in lines[at + 2] and " 'Y' " in lines[at + 2]
  assert lines[at + 3].endswith("the same, up to the end of the turn")
  assert "the same, up to the end" in lines[lines.index("--- arms.own") + 3]
  assert lines[-2] == "--- evals, reasoning on: a prompt ends with"
  assert lines[-1].endswith("assistant\\n'") and "Be short." in lines[-1]


def test_it_says_how_the_templates_own_text_differs(check):
  strip = CHATML.replace("{{ m.content }}", "{{ m.content | upper }}")
  with pytest.raises(ValueError, match="does not print what a message says"):
    check(strip)
  shortened = CHATML.replace("{{ m.content }}", "{{ m.content[:12] }}")
  last = check(shortened)[-3]
  assert "then here" in last and "and there '<|im_end|>" in last
  # Without arms it is the organism's training that is shown.
  assert "--- organism" in check(CHATML, arms={})
  dated = "{{ strftime_now('%Y') }}" + CHATML
  lines = check(dated, template_date="2026-05-06")
  assert any("given {'date': '2026-05-06'}" in x for x in lines)
