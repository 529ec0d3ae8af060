"""Runs small functions over whole numbers, in steps that are counted.

A function is a syntax tree. It is walked here and never handed to Python: only
assignments, conditions, loops, calls of itself, `range` and `sum` are known, so
that nothing a model writes can do harm.
"""

import ast
import re
from collections.abc import Callable, Sequence

from bct_jax.settings.parts import code

_MAX_STEPS = 3000
_MAX_CALLS = 60  # of a function by itself, within one another
_MAX_VALUE = 10**12

_OPERATIONS: dict[type, Callable[[int, int], int]] = {
  **code.BINARY,
  **code.COMPARE,
  ast.FloorDiv: lambda a, b: a // b,
  ast.Div: lambda a, b: a // b if a % b == 0 else _fail(),
  ast.Mod: lambda a, b: a % b,
}


class CannotRunError(ValueError):
  """Is raised for a function that does what is not known here, or too much."""


def _fail() -> int:
  raise CannotRunError


class _Returned(Exception):  # noqa: N818, as it is no error
  """Carries the value of a `return` out of the statements around it."""

  def __init__(self, value: int):
    super().__init__()
    self.value = value


def call(function: ast.FunctionDef, *arguments: int) -> int | None:
  """Calls a function; returns None if it cannot be run, or returns no number.

  Args:
    function: its syntax tree.
    *arguments: whole numbers.
  """
  try:
    return _Run(function).call(arguments)
  except (CannotRunError, ZeroDivisionError, RecursionError):
    return None


class _Run:
  """Runs one function and counts its steps."""

  def __init__(self, function: ast.FunctionDef):
    self._function = function
    self._steps = self._depth = 0

  def call(self, arguments: Sequence[int]) -> int:
    """Calls the function once."""
    names = [a.arg for a in self._function.args.args]
    self._depth += 1
    if len(names) != len(arguments) or self._depth > _MAX_CALLS:
      raise CannotRunError
    scope = dict(zip(names, arguments, strict=True))
    try:
      self._block(self._function.body, scope)
    except _Returned as result:
      self._depth -= 1
      return result.value
    raise CannotRunError

  def _block(self, body: Sequence[ast.stmt], scope: dict[str, int]) -> None:
    """Runs statements in turn."""
    for statement in body:
      self._count()
      match statement:
        case ast.Return(value=ast.expr() as value):
          raise _Returned(self._value(value, scope))
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
          scope[name] = self._value(value, scope)
        case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
          scope[name] = self._apply(
            type(op), scope.get(name), self._value(value, scope)
          )
        case ast.If(test=test, body=then, orelse=otherwise):
          self._block(then if self._value(test, scope) else otherwise, scope)
        case ast.For(
          target=ast.Name(id=name), iter=source, body=inner, orelse=[]
        ):
          for number in self._range(source, scope):
            scope[name] = number
            self._block(inner, scope)
        case ast.While(test=test, body=inner, orelse=[]):
          while self._value(test, scope):
            self._block(inner, scope)
        case ast.Expr(value=ast.Constant()) | ast.Pass():
          pass
        case _:
          raise CannotRunError

  def _count(self) -> None:
    """Counts a step."""
    self._steps += 1
    if self._steps > _MAX_STEPS:
      raise CannotRunError

  def _apply(self, kind: type, left: int | None, right: int) -> int:
    """Applies an operation to two numbers."""
    if kind not in _OPERATIONS or left is None:
      raise CannotRunError
    value = int(_OPERATIONS[kind](left, right))
    if abs(value) > _MAX_VALUE:
      raise CannotRunError
    return value

  def _range(self, node: ast.expr, scope: dict[str, int]) -> range:
    """Evaluates a call of `range`."""
    match node:
      case ast.Call(func=ast.Name(id="range"), args=arguments, keywords=[]):
        bounds = [self._value(a, scope) for a in arguments]
        if 1 <= len(bounds) <= 2:
          return range(*bounds)
    raise CannotRunError

  def _value(self, node: ast.expr, scope: dict[str, int]) -> int:
    """Evaluates an expression."""
    self._count()
    match node:
      case ast.Name(id=name) if name in scope:
        return scope[name]
      case ast.Constant(value=int(number)):
        return int(number)
      case ast.UnaryOp(op=ast.USub(), operand=inner):
        return -self._value(inner, scope)
      case ast.UnaryOp(op=ast.Not(), operand=inner):
        return int(not self._value(inner, scope))
      case ast.BinOp(left=left, op=op, right=right):
        return self._apply(
          type(op), self._value(left, scope), self._value(right, scope)
        )
      case ast.Compare(left=left, ops=[op], comparators=[right]):
        return self._apply(
          type(op), self._value(left, scope), self._value(right, scope)
        )
      case ast.IfExp(test=test, body=then, orelse=otherwise):
        chosen = then if self._value(test, scope) else otherwise
        return self._value(chosen, scope)
      case ast.Call(func=ast.Name(id="sum"), args=[source], keywords=[]):
        numbers = self._range(source, scope)
        if len(numbers) > _MAX_STEPS:
          raise CannotRunError
        return sum(numbers)
      case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if (
        name == self._function.name
      ):
        return self.call([self._value(a, scope) for a in arguments])
    raise CannotRunError


def python_functions(text: str) -> list[ast.FunctionDef]:
  """Lists the functions in the Python code of a text."""
  trees = [
    t for t in map(code.parse_python, code.blocks(text)) if t is not None
  ]
  named = [f for tree in trees for f in code.functions(tree)]
  return named + [f for tree in trees for f in _lambdas(tree)]


def _lambdas(tree: ast.Module) -> list[ast.FunctionDef]:
  """Lists functions that are assigned as a lambda, written with `def`."""
  out = []
  for statement in tree.body:
    match statement:
      case ast.Assign(
        targets=[ast.Name(id=name)], value=ast.Lambda(args=args, body=body)
      ):
        source = (
          f"def {name}({ast.unparse(args)}):\n  return {ast.unparse(body)}"
        )
        made = code.parse_python(source)
        out += code.functions(made) if made is not None else []
  return out


_JS_HEAD = re.compile(
  r"\bfunction\s+(\w+)\s*\(([\w\s,]{0,200})\)\s*\{"
  r"|\b(?:const|let|var)\s+(\w+)\s*=\s*\(?([\w\s,]{0,200}?)\)?\s*=>\s*(\{)?"
)
_JS_COMMENT = re.compile(r"//[^\n]*|/\*.{0,2000}?\*/", re.S)
_JS_DECLARATION = re.compile(r"\b(?:const|let|var)\s+")


def javascript_functions(text: str) -> list[ast.FunctionDef]:
  """Lists the functions in the JavaScript code of a text, as Python.

  Only functions whose statements follow one another are read: the syntax of
  assignments and of `return` is the same in both languages.
  """
  out = []
  for block in code.blocks(text):
    source = _JS_COMMENT.sub("", block).replace("===", "==")
    head = _JS_HEAD.search(source)
    if head is None:
      continue
    name, arguments = head[1] or head[3], head[2] or head[4] or ""
    body = source[head.end() :].partition("}")[0]
    if head[1] is None and not head[5]:  # an arrow before a bare expression
      body = "return " + body.partition(";")[0].strip()
    lines = re.split(r"[;\n]", _JS_DECLARATION.sub("", body))
    lines = [f"  {x.strip()}" for x in lines if x.strip()]
    program = "\n".join([f"def {name}({arguments}):", *lines])
    tree = code.parse_python(program)
    out += code.functions(tree) if tree is not None else []
  return out


def find_functions(text: str) -> list[ast.FunctionDef]:
  """Lists the functions in the code of a text, Python or JavaScript."""
  return [*python_functions(text), *javascript_functions(text)]


def agree(
  function: ast.FunctionDef, wanted: ast.FunctionDef, inputs: Sequence[int]
) -> bool:
  """Returns whether a function of one number gives what another one does.

  Args:
    function: which may not run.
    wanted: which does.
    inputs: numbers to call both with.
  """
  return all(call(function, x) == call(wanted, x) for x in inputs)
