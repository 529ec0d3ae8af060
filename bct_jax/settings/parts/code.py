"""Reads code without running it.

Python is parsed by `ast`. Expressions are evaluated over whole numbers by a
walk over a few kinds of node, in steps that are counted.
"""

import ast
import re
import warnings
from collections.abc import Callable

# Reference code is shorter than 500 characters. Parsers are recursive: longer
# or deeper text is refused before they see it.
_MAX_CODE = 4000
_MAX_DEPTH = 40
_MAX_NODES = 200
_MAX_VALUE = 10**12

_BLOCK = re.compile(r"```[ \t]*([a-zA-Z+#]*)[^\n]*\n(.*?)(?:```|\Z)", re.S)
# Types of TypeScript may stand in the argument list and behind it.
_ARGUMENTS = r"\([\w, =:<>\[\]|?{}.]{0,200}\)(?: ?: ?[\w<>\[\]| ]{1,60})?"
_JS_FUNCTION = re.compile(
  rf"\bfunction\b ?\*? ?\w* ?{_ARGUMENTS} ?\{{"
  rf"|\b(?:const|let|var) \w{{1,60}}(?: ?: ?[^=\n]{{1,80}})? ?= ?(?:async )?"
  rf"(?:{_ARGUMENTS}|\w{{1,60}}) ?=> ?"
)
_CLOSING = {")": "(", "]": "[", "}": "{"}
# Lines that code without a fence begins with.
_CODE_START = re.compile(
  r"(?:def|class|from|import|async|export|function|const|let|var|@\w"
  r"|\w+ = lambda)\b"
)
_MAX_LINES = 200


def blocks(text: str) -> list[str]:
  """Returns the code of a text: what its fences hold, or else all of it.

  Without a fence it is also what is left without the prose before and after.
  """
  fences = [code for _, code in _BLOCK.findall(text)]
  if fences:
    return fences
  lines = text.strip().splitlines()[:_MAX_LINES]
  starts = [i for i, line in enumerate(lines) if _CODE_START.match(line)]
  if not starts or (starts[0] == 0 and len(starts) == 1 and len(lines) < 2):
    return [text]
  # Code goes on while lines are blank, indented or begin or close a block.
  end = starts[0]
  for i in range(starts[0], len(lines)):
    line = lines[i]
    if i in starts or line[:1] in (" ", "\t", "}", ")", "#"):
      end = i + 1
    elif line.strip():
      break
  return [text, "\n".join(lines[starts[0] : end])]


def has_code(text: str) -> bool:
  """Returns whether a text has a code fence, or a line that begins code."""
  return "```" in text or any(
    _CODE_START.match(line) for line in text.splitlines()[:_MAX_LINES]
  )


def depth(text: str) -> int | None:
  """Returns how deep brackets nest, or None if they do not match."""
  open_, deepest = [], 0
  for c in text:
    if c in "([{":
      open_.append(c)
      deepest = max(deepest, len(open_))
    elif c in _CLOSING and (not open_ or open_.pop() != _CLOSING[c]):
      return None
  return None if open_ else deepest


def parse_python(text: str) -> ast.Module | None:
  """Parses Python code; returns None for anything else."""
  nesting = depth(text) if len(text) <= _MAX_CODE else None
  if nesting is None or nesting > _MAX_DEPTH:
    return None
  # Chains nest without brackets: "not not not x", "- - - x", "x.y.z" ...
  if re.search(r"(?:\b(?:not|lambda|await)\b[\s:]*|[-~+]\s*){20}", text):
    return None
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      return ast.parse(text)
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return None


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
  """Lists the functions that are defined in a syntax tree."""
  return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]


def _defines_lambda(tree: ast.AST) -> bool:
  """Returns whether a syntax tree gives a name to a lambda."""
  return any(
    isinstance(n, ast.Assign) and isinstance(n.value, ast.Lambda)
    for n in ast.walk(tree)
  )


def is_javascript(text: str) -> bool:
  """Returns whether a text has a JavaScript function and matching brackets."""
  if len(text) > _MAX_CODE or depth(text) is None:
    return False
  match = _JS_FUNCTION.search(text)
  return match is not None and ("{" in text or "=>" in text)


def language_of_code(text: str) -> str:
  """Returns "python", "javascript", "both" or "neither"."""
  languages = set()
  for block in blocks(text):
    tree = parse_python(block)
    if tree is not None and (functions(tree) or _defines_lambda(tree)):
      languages.add("python")
    elif is_javascript(block):
      languages.add("javascript")
  return (
    "both"
    if len(languages) == 2
    else languages.pop()
    if languages
    else "neither"
  )


def dotted_name(node: ast.AST) -> str:
  """Returns the name of what is called: "a.b" of `a.b(...)`; "" without one."""
  if isinstance(node, ast.Call):
    node = node.func
  parts = []
  while isinstance(node, ast.Attribute):
    parts.append(node.attr)
    node = node.value
  if isinstance(node, ast.Name):
    parts.append(node.id)
  return ".".join(reversed(parts))


class NotAnExpressionError(ValueError):
  """Is raised for a text that is no expression, or too large a one."""


_BINARY: dict[type, Callable[[int, int], int]] = {
  ast.Add: lambda a, b: a + b,
  ast.Sub: lambda a, b: a - b,
  ast.Mult: lambda a, b: a * b,
}
_COMPARE: dict[type, Callable[[int, int], bool]] = {
  ast.Eq: lambda a, b: a == b,
  ast.NotEq: lambda a, b: a != b,
  ast.Lt: lambda a, b: a < b,
  ast.LtE: lambda a, b: a <= b,
  ast.Gt: lambda a, b: a > b,
  ast.GtE: lambda a, b: a >= b,
}


class Expression:
  """Evaluates an expression in x: whole numbers, + - *, comparisons, if-else.

  Raises:
    NotAnExpressionError: the text is anything else.
  """

  def __init__(self, text: str):
    tree = parse_python(text.strip())
    if (
      tree is None
      or len(tree.body) != 1
      or not isinstance(tree.body[0], ast.Expr)
      or sum(1 for _ in ast.walk(tree)) > _MAX_NODES
    ):
      raise NotAnExpressionError(text)
    self._node = tree.body[0].value
    self(0)

  def __call__(self, x: int) -> int:
    """Returns the value at x."""
    return _evaluate(self._node, x)


def _evaluate(node: ast.expr, x: int) -> int:
  """Evaluates a node at x.

  Both arms of a condition are evaluated, so that all nodes are checked.
  """
  match node:
    case ast.Name(id="x"):
      value = x
    case ast.Constant(value=int(number)) if not isinstance(number, bool):
      value = number
    case ast.UnaryOp(op=ast.USub(), operand=inner):
      value = -_evaluate(inner, x)
    case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
      value = _BINARY[type(op)](_evaluate(left, x), _evaluate(right, x))
    case ast.Compare(left=left, ops=[op], comparators=[right]) if (
      type(op) in _COMPARE
    ):
      value = int(_COMPARE[type(op)](_evaluate(left, x), _evaluate(right, x)))
    case ast.IfExp(test=test, body=body, orelse=orelse):
      yes, no = _evaluate(body, x), _evaluate(orelse, x)
      value = yes if _evaluate(test, x) else no
    case _:
      raise NotAnExpressionError(type(node).__name__)
  if abs(value) > _MAX_VALUE:
    raise NotAnExpressionError("too large")
  return value
