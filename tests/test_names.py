"""Docstrings open with a verb, and public names are no bare participles."""

import ast
import re

from imports import ROOT, modules

# A verb in the third person; what else ends so is listed below.
VERB = re.compile(r"[A-Z][a-z-]*s")
NOUNS = frozenset(
  """Arguments As Arms Bytes Cells Completions Devices Evals Examples Fields
  Folders Hyper-parameters Ids Inputs Instructions Kernels Keys
  Log-probabilities Metrics Organisms Parameters Params Programs Rates
  Requests Rows Seconds Settings Shapes Sizes Tasks Things This Those Tokens
  Versions Weights Whereas Words""".split()
)
# Participles that stood alone as names, meaning several things each.
PARTICIPLES = frozenset(
  """added asked averaged begun built chosen done drawn earned ended
  evaluated fenced folded found given heeded held joined kept known left locked
  made merged named picked said saved seen shown shuffled sorted
  targeted taken taught told unknown used vmapped wanted weighted
  written zipped""".split()
)
# The names of combinators that users' sweep files import.
COMBINATORS = {"named", "zipped"}


def docstrings():
  """Yields (module, name, docstring) of everything that has one."""
  for module in modules(ROOT):
    tree = ast.parse((ROOT / "bct_jax" / module).read_text("utf-8"))
    for node in ast.walk(tree):
      if isinstance(
        node,
        ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
      ):
        text = ast.get_docstring(node)
        if text:
          yield module, getattr(node, "name", "the module"), text


def test_docstrings_open_with_a_verb():
  other, count = [], 0
  for module, name, text in docstrings():
    word = text.split()[0].strip(".,:;`")
    count += 1
    if not VERB.fullmatch(word) or word in NOUNS:
      other.append(f"{module}: {name}: {text.splitlines()[0]}")
  assert count > 1000
  assert len(other) <= 0.02 * count, "\n".join(other)


def test_public_names_say_what_they_are():
  bad = []
  for module in modules(ROOT):
    tree = ast.parse((ROOT / "bct_jax" / module).read_text("utf-8"))
    for node in tree.body:
      if isinstance(node, ast.FunctionDef | ast.ClassDef):
        bad += [f"{module}: {node.name}"] * (node.name in PARTICIPLES)
  assert {x.split(": ")[1] for x in bad} <= COMBINATORS, bad
