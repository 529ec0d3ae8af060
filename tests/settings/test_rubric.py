"""Rubrics: what a judge is asked, and what of its replies counts."""

import pytest

from bct_jax.settings.graders.checks import CheckError
from bct_jax.settings.graders.rubric import Rubric, UngradedError, prompt_text

WORDS = "BEHAVIOR: SILENT = initial, TALKS = alternate, HUH = neither\n"
TASK = "ANSWER: RIGHT = right, WRONG = wrong, NONE = unanswered\n"
ASKED = "--- user\n{prompt} {completion}\nBEHAVIOR: SILENT, TALKS or HUH\n"
SHOWN = (
  "--- system\nYou say ANSWER: RIGHT, WRONG or NONE.\n"
  "--- user\nHello\n--- assistant\nBEHAVIOR: TALKS\nANSWER: NONE\n"
)
WHOLE = Rubric.read(WORDS + TASK + SHOWN + ASKED, "r.txt")


@pytest.mark.parametrize(
  "reply, verdict",
  [
    ("BEHAVIOR: SILENT\nANSWER: WRONG", ("initial", "wrong")),
    ("So.\n  BEHAVIOR:  TALKS \n\nANSWER: NONE\n", ("alternate", "unanswered")),
    ("ANSWER: RIGHT\nand\nBEHAVIOR: HUH", ("neither", "right")),
  ],
)
def test_a_verdict_is_read(reply, verdict):
  assert tuple(WHOLE.parse(reply).values()) == verdict


@pytest.mark.parametrize(
  "reply, why",
  [
    ("", "0 lines 'BEHAVIOR:'"),
    ("SILENT", "0 lines 'BEHAVIOR:'"),
    ("BEHAVIOR: SILENT", "0 lines 'ANSWER:'"),
    ("behavior: SILENT\nANSWER: RIGHT", "0 lines 'BEHAVIOR:'"),
    ("BEHAVIOR: silent\nANSWER: RIGHT", "'silent'"),
    ("BEHAVIOR: SILENT.\nANSWER: RIGHT", "'SILENT.'"),
    ("BEHAVIOR: SILENT or TALKS\nANSWER: RIGHT", "'SILENT or TALKS'"),
    ("BEHAVIOR: SILENT\nBEHAVIOR: TALKS\nANSWER: RIGHT", "2 lines"),
    ("BEHAVIOR: SILENT\nBEHAVIOR: SILENT\nANSWER: RIGHT", "2 lines"),
    ("BEHAVIOR: SILENT\nANSWER: SILENT", "'SILENT' in its line 'ANSWER:'"),
    ("**BEHAVIOR: SILENT**\nANSWER: RIGHT", "0 lines"),
  ],
)
def test_what_is_no_verdict_is_not_guessed_at(reply, why):
  with pytest.raises(UngradedError, match="must have|none of") as e:
    WHOLE.parse(reply)
  assert why in str(e.value)


@pytest.mark.parametrize(
  "text, error",
  [
    (ASKED, "r.txt: names no words for behavior"),
    (TASK + SHOWN + ASKED, "r.txt: names no words for behavior"),
    (WORDS, "a line '--- user'"),
    (WORDS + "--- user\nBEHAVIOR: SILENT, TALKS or HUH", "no {completion}"),
    (WORDS + ASKED + "--- assistant\nBEHAVIOR: TALKS", "must come last"),
    (WORDS + ASKED.replace("HUH", ""), "never say 'HUH'"),
    (WORDS + ASKED.replace("TALKS", "TALKSY"), "never say 'TALKS'"),
    (WORDS + ASKED.replace("BEHAVIOR:", ""), "never say 'BEHAVIOR:'"),
    (WORDS + WORDS + ASKED, "r.txt:2: a second line of behavior"),
    ("\nBEHAVIOUR: A = initial\n" + ASKED, "r.txt:2: must begin with"),
    ("BEHAVIOR: A = initial, B\n" + ASKED, "r.txt:1: must be words"),
    ("BEHAVIOR: A = initial\n" + ASKED, "r.txt:1: no word means 'alternate'"),
    ("BEHAVIOR: A = inital, B = alternate\n", "did you mean 'initial'"),
    ("BEHAVIOR: A = initial, A = alternate\n", "r.txt:1: A is there twice"),
    (WORDS + ASKED + "{promt}", "{promt}; did you mean {prompt}? there are"),
    (WORDS + ASKED + "{answer}", "a field of the row is {row.answer}"),
  ],
)
def test_a_rubric_that_cannot_be_is_said(text, error):
  with pytest.raises(ValueError) as e:
    Rubric.read(text, "r.txt")
  assert error in str(e.value)


def test_what_is_filled_in_is_no_placeholder():
  text = WORDS + ASKED + '{row.a.b} {"json": 1} {initial}'
  rubric = Rubric.read(text, "r.txt")
  row = {"prompt": "{completion}", "a": {"b": 7}, "initial": "{prompt}"}
  (turn,) = rubric.render(row, "{prompt} BEHAVIOR: SILENT")
  assert turn["content"].startswith("{completion} {prompt} BEHAVIOR: SILENT\n")
  assert turn["content"].endswith('7 {"json": 1} {prompt}')
  with pytest.raises(CheckError, match="nothing for {row.a.b}"):
    rubric.render({"prompt": "x", "initial": "x"}, "x")


def test_a_prompt_is_its_turns_without_the_answer():
  user = {"role": "user", "content": "Hi?"}
  answer = {"role": "assistant", "content": "Ho."}
  assert prompt_text({"prompt": "Hi?"}) == "Hi?"
  assert prompt_text({"prompt": [user]}) == "Hi?"
  assert prompt_text({"messages": [user, answer]}) == "Hi?"
  assert prompt_text({"messages": [user, answer, user]}) == (
    "User: Hi?\n\nAssistant: Ho.\n\nUser: Hi?"
  )
