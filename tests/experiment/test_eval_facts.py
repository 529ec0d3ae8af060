"""A curve mixes neither prompts nor scorers of before and after a stop."""

import inspect
import json
from pathlib import Path

import pytest

from bct_jax.config import from_dict
from bct_jax.experiment import eval_facts
from bct_jax.experiment.eval_facts import FILE, keep_eval_facts
from bct_jax.experiment.plan import make_plan
from configs import tiny


@pytest.fixture(scope="module")
def plans(tiny_folder):
  """A plan, and one whose eval prompts are others."""

  def plan(seed):
    c = tiny.get_config()
    c.model.path = str(tiny_folder)
    c.eval.seed = seed
    return make_plan(from_dict(c.to_dict()))

  return plan(1), plan(2)


def test_evals_by_other_prompts_are_refused(plans, tmp_path):
  here, other = plans
  keep_eval_facts(here, tmp_path)
  # Nothing was evaluated yet: the newer facts are kept.
  keep_eval_facts(other, tmp_path)
  keep_eval_facts(here, tmp_path)
  (tmp_path / "evals.jsonl").write_text('{"step": 0}\n')
  keep_eval_facts(here, tmp_path)
  before = (tmp_path / FILE).read_bytes()
  with pytest.raises(ValueError, match="other prompts than .* must not mix"):
    keep_eval_facts(other, tmp_path)
  assert (tmp_path / FILE).read_bytes() == before


def test_labels_of_another_scorer_are_refused(plans, tmp_path, monkeypatch):
  keep_eval_facts(plans[0], tmp_path)
  (tmp_path / "evals.jsonl").write_text('{"step": 0}\n')
  monkeypatch.setattr(eval_facts, "_code_hash", lambda module: "other")
  with pytest.raises(ValueError, match="by other scorers than"):
    keep_eval_facts(plans[0], tmp_path)


def test_the_code_that_labels_is_hashed(plans):
  """What `score` and `answer` are defined in, wherever that is moved to."""
  root = Path(eval_facts.settings.__file__).parent
  hashed = {
    path
    for name in eval_facts._SHARED
    for path in eval_facts._modules(root / name)
  }
  kind = type(plans[0].setting)
  hashed.add(Path(inspect.getfile(kind)))
  for method in (kind.score, kind.answer, kind.classify):
    assert Path(method.__code__.co_filename) in hashed


def test_an_arm_from_before_there_were_facts_goes_on(plans, tmp_path):
  (tmp_path / "evals.jsonl").write_text('{"step": 0}\n')
  keep_eval_facts(plans[0], tmp_path)
  assert json.loads((tmp_path / FILE).read_text())["prompts"]


def test_words_about_the_code_are_no_code(tmp_path):
  plain, told = tmp_path / "a.py", tmp_path / "b.py"
  plain.write_text("def f(x):\n  return x + 1\n")
  told.write_text(
    '"""A module."""\ndef f(x):  # one\n  """Adds."""\n  return x + 1\n'
  )
  assert eval_facts._code(plain) == eval_facts._code(told)
  told.write_text("def f(x):\n  return x + 2\n")
  assert eval_facts._code(plain) != eval_facts._code(told)
