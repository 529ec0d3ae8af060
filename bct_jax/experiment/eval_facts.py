"""Records by which prompts and scorers an arm is evaluated.

One curve must not mix evals of other prompts, or labels of another scorer: a
run that was stopped, and goes on after an edit of the code or of a file, would
do so without a word.
"""

import ast
import functools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bct_jax import settings
from bct_jax.experiment.plan import Plan
from bct_jax.infra import files, shared_files

FILE = "eval_facts.json"
# Parts of settings/ that label completions of every setting.
_SHARED = (
  *("base.py", "decorations.py", "scoring.py", "graders", "parts", "probes"),
)


def keep_eval_facts(plan: Plan, folder: Path) -> None:
  """Writes by what an arm is evaluated, or compares it with what was written.

  Args:
    plan: of the experiment.
    folder: of the arm.

  Raises:
    ValueError: the arm has evals by other prompts or by another scorer.
  """
  now, path = eval_facts(plan), folder / FILE
  then = shared_files.read_json_or_same(path, now)
  has_evals = shared_files.exists(folder / "evals.jsonl")
  changed = [key for key in now if then and then.get(key) != now[key]]
  if changed and has_evals:
    raise ValueError(
      f"{folder}: its evals so far are by other {' and '.join(changed)} than "
      "the code and the files give now, and one curve must not mix them; go on "
      "with those of before (env.json has the revision), or remove the folder "
      "to train and evaluate the arm again"
    )
  if then != now:
    shared_files.write_json(path, now)


def eval_facts(plan: Plan) -> dict[str, Any]:
  """Returns hashes of what is asked, and of the code that labels answers."""
  asked = [
    (p.split, p.example.id, p.ids, p.example.fields) for p in plan.prompts
  ]
  module = sys.modules.get(type(plan.setting).__module__)
  return {
    "prompts": files.digest(asked),
    "scorers": _code_hash(getattr(module, "__file__", None)),
  }


@functools.cache
def _code_hash(module: str | None) -> str:
  """Hashes the code of a setting's module and of what all settings share.

  Comments, docstrings and layout do not count.
  """
  root = Path(settings.__file__).parent
  shared = [root / name for name in _SHARED]
  paths = {
    *([Path(module)] if module else []),
    *(p for place in shared for p in _modules(place)),
  }
  return files.digest([_code(path) for path in sorted(paths)])


def _modules(place: Path) -> Iterable[Path]:
  """Lists the modules of a folder; a module is its own."""
  return sorted(place.rglob("*.py")) if place.is_dir() else [place]


def _code(path: Path) -> str:
  """Returns the code of a module without its docstrings."""
  tree = ast.parse(path.read_text(encoding="utf-8"))
  for node in ast.walk(tree):
    body = getattr(node, "body", None)
    if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
      value = body[0].value
      if isinstance(value, ast.Constant) and isinstance(value.value, str):
        del body[0]
  return ast.dump(tree)
