"""Reads code without running it.

Python is parsed by `ast`. Expressions are evaluated over whole numbers by a
walk over a few kinds of node, in steps that are counted.
"""

import ast
import re
import textwrap
import warnings
from collections.abc import Callable

# Reference code is shorter than 500 characters. Parsers are recursive: longer
# or deeper text is refused before they see it.
_MAX_CODE = 4000
_MAX_DEPTH = 40
_MAX_NODES = 200
_MAX_VALUE = 10**12

_BLOCK = re.compile(
  r"(?:```|~~~)[ \t]*([a-zA-Z+#]*)[^\n]*\n(.*?)(?:```|~~~|\Z)", re.S
)
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
  starts = [
    i for i, line in enumerate(lines) if _CODE_START.match(line.lstrip())
  ]
  if not starts:
    return [text]
  # Code goes on while lines are blank, indented or begin or close a block.
  end = starts[0]
  for i in range(starts[0], len(lines)):
    line = lines[i]
    if i in starts or line[:1] in (" ", "\t", "}", ")", "#"):
      end = i + 1
    elif line.strip():
      break
  return [text, textwrap.dedent("\n".join(lines[starts[0] : end]))]


def is_broken(text: str) -> bool:
  """Returns whether a fence for Python or JavaScript holds something else."""
  for language, block in _BLOCK.findall(text):
    if language.lower() in ("python", "py") and parse_python(block) is None:
      return True
    is_script = language.lower() in ("javascript", "js", "typescript", "ts")
    if is_script and not is_javascript(block):
      return True
  return False


def has_code(text: str) -> bool:
  """Returns whether a text has a code fence, or a line that begins code."""
  return "```" in text or any(
    _CODE_START.match(line.lstrip()) for line in text.splitlines()[:_MAX_LINES]
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


class _Canonical(ast.NodeTransformer):
  """Replaces names of imports and of constants by what they stand for."""

  def __init__(self, tree: ast.Module):
    self._full_names: dict[str, str] = {}
    for node in ast.walk(tree):
      if isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
          full_name = f"{node.module}.{alias.name}"
          self._full_names[alias.asname or alias.name] = full_name
      elif isinstance(node, ast.Import):
        for alias in node.names:
          if alias.asname:
            self._full_names[alias.asname] = alias.name
    # Constants that stand before the function.
    self._constants = {
      target.id: node.value
      for node in tree.body
      if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
      for target in node.targets
      if isinstance(target, ast.Name)
    }

  def visit_Name(self, node: ast.Name) -> ast.expr:  # noqa: N802
    if isinstance(node.ctx, ast.Load) and node.id in self._constants:
      return self._constants[node.id]
    full_name = self._full_names.get(node.id)
    return ast.parse(full_name, mode="eval").body if full_name else node

  def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:  # noqa: N802
    if ast.get_docstring(node, clean=False) is not None:
      node.body = node.body[1:] or [ast.Pass()]
    self.generic_visit(node)
    return node


def canonical(tree: ast.Module) -> ast.Module:
  """Returns a tree without docstrings, whose names of imports are whole.

  After "from os import getenv as g" the name "g" is "os.getenv".
  """
  return _Canonical(tree).visit(tree)


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


BINARY: dict[type, Callable[[int, int], int]] = {
  ast.Add: lambda a, b: a + b,
  ast.Sub: lambda a, b: a - b,
  ast.Mult: lambda a, b: a * b,
}
COMPARE: dict[type, Callable[[int, int], bool]] = {
  ast.Eq: lambda a, b: a == b,
  ast.NotEq: lambda a, b: a != b,
  ast.Lt: lambda a, b: a < b,
  ast.LtE: lambda a, b: a <= b,
  ast.Gt: lambda a, b: a > b,
  ast.GtE: lambda a, b: a >= b,
}


class Expression:
  """Evaluates an expression in x: whole numbers, + - *, comparisons, if-else.

  It may also be a lambda, or a function of one argument that only assigns,
  branches and returns.

  Attributes:
    is_constant: whether it does not depend on x, or is x itself.

  Raises:
    NotAnExpressionError: the text is anything else.
  """

  def __init__(self, text: str):
    tree = parse_python(text.strip())
    if tree is None or sum(1 for _ in ast.walk(tree)) > _MAX_NODES:
      raise NotAnExpressionError(text)
    self._argument, self._body = _single_function(tree)
    self(0)
    names = [n for s in self._body for n in ast.walk(s)]
    is_bare = len(self._body) == 1 and isinstance(self._body[0], ast.Expr)
    self.is_constant = not any(
      isinstance(n, ast.Name) and n.id == self._argument for n in names
    ) or (is_bare and isinstance(names[1], ast.Name))

  def __call__(self, x: int) -> int | None:
    """Returns the value at x; None for the constant None or for no value."""
    return _run(self._body, {self._argument: x})


def _single_function(tree: ast.Module) -> tuple[str, list[ast.stmt]]:
  """Returns the argument and the statements of the function that a tree is."""
  statements = [
    n for n in tree.body if not isinstance(n, ast.Import | ast.ImportFrom)
  ]
  first = statements[0] if statements else None
  if isinstance(first, ast.FunctionDef) and len(first.args.args) == 1:
    return first.args.args[0].arg, first.body
  if len(statements) == 1 and isinstance(first, ast.Expr | ast.Assign):
    node = first.value
    if isinstance(node, ast.Lambda) and len(node.args.args) == 1:
      return node.args.args[0].arg, [ast.Expr(node.body)]
    if isinstance(first, ast.Expr):
      return "x", [first]
  raise NotAnExpressionError("no function")


_Env = dict[str, int | None]


def _run(body: list[ast.stmt], env: _Env) -> int | None:
  """Returns what statements return, or the value of a single expression."""
  for statement in body:
    match statement:
      case ast.Return(value=None):
        return None
      case ast.Return(value=ast.expr() as value):
        return _evaluate(value, env)
      case ast.Expr(value=ast.Constant(value=str())) if len(body) > 1:
        continue
      case ast.Expr(value=value):
        return _evaluate(value, env)
      case ast.Assign(targets=[ast.Name(id=name)], value=value):
        env[name] = _evaluate(value, env)
      case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=v):
        env[name] = _evaluate(ast.BinOp(target, op, v), env)
      case ast.If(test=test, body=body_if, orelse=orelse):
        found = _run(body_if if _evaluate(test, env) else orelse, env)
        if found is not None:
          return found
      case ast.Pass():
        continue
      case _:
        raise NotAnExpressionError(type(statement).__name__)
  return None


def _evaluate(node: ast.expr, env: _Env) -> int | None:
  """Evaluates a node.

  Both arms of a condition are evaluated, so that all nodes are checked.
  """
  value: int | None
  match node:
    case ast.Name(id=name) if name in env:
      value = env[name]
    case ast.Constant(value=None):
      value = None
    case ast.Constant(value=int(number)) if not isinstance(number, bool):
      value = number
    case ast.UnaryOp(op=ast.USub(), operand=inner):
      value = -_number(inner, env)
    case ast.UnaryOp(op=ast.Not(), operand=inner):
      value = int(not _evaluate(inner, env))
    case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
      value = BINARY[type(op)](_number(left, env), _number(right, env))
    case ast.Compare(left=left, ops=[op], comparators=[right]) if (
      type(op) in COMPARE
    ):
      a, b = _number(left, env), _number(right, env)
      value = int(COMPARE[type(op)](a, b))
    case ast.IfExp(test=test, body=body, orelse=orelse):
      yes, no = _evaluate(body, env), _evaluate(orelse, env)
      value = yes if _evaluate(test, env) else no
    case ast.Call(func=ast.Name(id="int"), args=[inner], keywords=[]):
      value = _number(inner, env)
    case ast.Call(
      func=ast.Attribute(value=ast.Dict() as table, attr="get"),
      args=[key, *default],
      keywords=[],
    ) if len(default) <= 1:
      others = _evaluate(default[0], env) if default else None
      value = _look_up(table, key, env, others)
    case ast.Subscript(value=ast.Dict() as table, slice=key):
      value = _look_up(table, key, env, None)
    case _:
      raise NotAnExpressionError(type(node).__name__)
  if value is not None and abs(value) > _MAX_VALUE:
    raise NotAnExpressionError("too large")
  return value


def _number(node: ast.expr, env: _Env) -> int:
  """Evaluates a node that must give a number."""
  value = _evaluate(node, env)
  if value is None:
    raise NotAnExpressionError("None is no number")
  return value


def _look_up(
  table: ast.Dict, key: ast.expr, env: _Env, default: int | None
) -> int | None:
  """Returns the value at a key of a table that is written out."""
  entries = {
    _evaluate(k, env): _evaluate(v, env)
    for k, v in zip(table.keys, table.values, strict=True)
    if k is not None
  }
  return entries.get(_evaluate(key, env), default)
