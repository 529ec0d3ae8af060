"""Docstrings open with a verb, public names are no bare participles, and no
file and no function is long."""

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
# Lines that a file and a function of the package have at most.
FILE_LINES, FUNCTION_LINES = 400, 60
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


def lengths(module):
  """Yields a file and its functions, each with its lines and their limit.

  Decorators and comments above a function are not counted.
  """
  text = (ROOT / "bct_jax" / module).read_text("utf-8")
  yield str(module), len(text.splitlines()), FILE_LINES
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      assert node.end_lineno is not None
      count = node.end_lineno - node.lineno + 1
      yield f"{module}: {node.name}", count, FUNCTION_LINES


def test_no_file_and_no_function_is_long():
  long = [
    f"{name}: {count} lines, of at most {most}"
    for module in modules(ROOT)
    for name, count, most in lengths(module)
    if count > most
  ]
  assert not long, "\n".join(long)
