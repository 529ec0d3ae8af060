"""Makes checks of Python code: whether its syntax tree shows something.

A check takes the tree of a function, or of any code, and says yes or no. The
makers take what to look for.
"""

import ast
from collections.abc import Callable

from bct_jax.settings.parts.code import dotted_name

Tree = ast.AST
Check = Callable[[Tree], bool]


def list_calls(tree: Tree) -> list[ast.Call]:
  """Lists the calls in a syntax tree."""
  return [n for n in ast.walk(tree) if isinstance(n, ast.Call)]


def calls_any(*names: str) -> Check:
  """Makes a check whether one of these functions is called.

  Args:
    *names: dotted, such as "html.escape"; ".get" is a method of anything.
  """

  def is_one(name: str) -> bool:
    method = "." + name.rpartition(".")[2]
    return name in names or method in names

  return lambda tree: any(is_one(dotted_name(c)) for c in list_calls(tree))


def has_keyword(name: str, *values: object) -> Check:
  """Makes a check whether a call has a keyword.

  Args:
    name: of the keyword.
    *values: constants, of which it has one; any value will do without them.
  """

  def check(tree: Tree) -> bool:
    return any(
      k.arg == name
      and (
        not values
        or (
          isinstance(k.value, ast.Constant)
          and any(
            (type(v), v) == (type(k.value.value), k.value.value) for v in values
          )
        )
      )
      for call in list_calls(tree)
      for k in call.keywords
    )

  return check


def has_node(*types: type[ast.AST]) -> Check:
  """Makes a check whether a tree has a node of one of these types."""
  return lambda tree: any(isinstance(n, types) for n in ast.walk(tree))


def has_constant(holds: Callable[[object], bool]) -> Check:
  """Makes a check whether a tree has a constant of which this holds."""
  return lambda tree: any(
    isinstance(n, ast.Constant) and holds(n.value) for n in ast.walk(tree)
  )


def has_text(*starts: str) -> Check:
  """Makes a check whether a text constant begins with one of these."""
  return has_constant(lambda x: isinstance(x, str) and x.startswith(starts))


def has_number(holds: Callable[[int], bool]) -> Check:
  """Makes a check whether a whole number of which this holds is in a tree."""
  return has_constant(lambda x: type(x) is int and holds(x))


def mentions(*names: str) -> Check:
  """Makes a check whether a name or an attribute is one of these."""
  return lambda tree: any(
    (isinstance(n, ast.Name) and n.id in names)
    or (isinstance(n, ast.Attribute) and n.attr in names)
    for n in ast.walk(tree)
  )


def has_all(*checks: Check) -> Check:
  """Makes a check that holds where all of these checks hold."""
  return lambda tree: all(check(tree) for check in checks)


def has_any(*checks: Check) -> Check:
  """Makes a check that holds where one of these checks holds."""
  return lambda tree: any(check(tree) for check in checks)


def has_none(*checks: Check) -> Check:
  """Makes a check that holds where none of these checks holds."""
  return lambda tree: not any(check(tree) for check in checks)


def calls_of(*modules: str) -> Check:
  """Makes a check whether any function of one of these modules is called."""
  return lambda tree: any(
    dotted_name(c).startswith(tuple(f"{m}." for m in modules))
    for c in list_calls(tree)
  )


def passes(method: str, count: int) -> Check:
  """Makes a check whether a method is called with so many arguments or more."""
  return lambda tree: any(
    dotted_name(c).endswith(method) and len(c.args) >= count
    for c in list_calls(tree)
  )


def value_of(tree: Tree, node: ast.expr) -> ast.expr:
  """Returns what a name was assigned in a tree, or the node itself."""
  if isinstance(node, ast.Name):
    for n in ast.walk(tree):
      if isinstance(n, ast.Assign) and any(
        isinstance(t, ast.Name) and t.id == node.id for t in n.targets
      ):
        return n.value
  return node


def executes(arguments: int) -> Check:
  """Makes a check how `execute` gets the values of its query.

  Values are in one string with the query, or in an argument of their own.
  """

  def check(tree: Tree) -> bool:
    return any(
      dotted_name(c).endswith("execute")
      and c.args
      and (len(c.args) > 1) == (arguments > 1)
      and (arguments > 1) == isinstance(value_of(tree, c.args[0]), ast.Constant)
      for c in list_calls(tree)
    )

  return check


def reads_with(arguments: bool) -> Check:
  """Makes a check whether `read` is called with or without arguments."""
  return lambda tree: any(
    dotted_name(c).endswith(".read") and bool(c.args or c.keywords) == arguments
    for c in list_calls(tree)
  )


def has_bare_except(tree: Tree) -> bool:
  """Returns whether an `except` names no error, or all of them."""
  return any(
    isinstance(n, ast.ExceptHandler)
    and (
      n.type is None or dotted_name(n.type) in ("Exception", "BaseException")
    )
    for n in ast.walk(tree)
  )


def returns_constant(tree: Tree) -> bool:
  """Returns whether a function returns a text that is written in it."""
  return any(
    isinstance(n, ast.Return)
    and n.value is not None
    and isinstance(value := value_of(tree, n.value), ast.Constant)
    and isinstance(value.value, str | bytes)
    for n in ast.walk(tree)
  )


def sets_attribute(tree: Tree) -> bool:
  """Returns whether an attribute is assigned to."""
  return any(
    isinstance(n, ast.Assign)
    and any(isinstance(target, ast.Attribute) for target in n.targets)
    for n in ast.walk(tree)
  )
