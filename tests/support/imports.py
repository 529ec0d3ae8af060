"""Reads the import graph of the package from its source, without importing it.

  python tests/support/imports.py [CHECKOUT]

prints the rooms (packages and single modules of bct_jax), the imports between
them, the floors they stand on, and the circles, if there are any.
"""

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def modules(root: Path) -> list[Path]:
  """Lists the modules below root/bct_jax, as paths relative to it."""
  package = root / "bct_jax"
  return sorted(p.relative_to(package) for p in package.rglob("*.py"))


def room_of(module: Path) -> str:
  """Names the package of a module, or the module if it is in none."""
  return module.parts[0].removesuffix(".py")


def imports_of(root: Path, module: Path) -> set[str]:
  """Collects every dotted name that a module imports, wherever it does."""
  out = set()
  for node in ast.walk(ast.parse((root / "bct_jax" / module).read_text())):
    if isinstance(node, ast.Import):
      out |= {a.name for a in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{module}: relative import"
      out |= {f"{node.module}.{a.name}" for a in node.names}
  return out


def room_imports(root: Path) -> dict[tuple[str, str], int]:
  """Counts the imports from each room to each other one."""
  known = {room_of(m) for m in modules(root)}
  count: dict[tuple[str, str], int] = {}
  for module in modules(root):
    for name in imports_of(root, module):
      parts = name.split(".")
      pair = room_of(module), parts[1] if len(parts) > 1 else ""
      if parts[0] == "bct_jax" and pair[1] in known and pair[0] != pair[1]:
        count[pair] = count.get(pair, 0) + 1
  return count


def floors(edges: Mapping[tuple[str, str], int]) -> list[set[str]]:
  """Puts each room one floor above the highest that it imports from.

  Raises:
    ValueError: some rooms import each other; the message names them.
  """
  left = {room for pair in edges for room in pair}
  out: list[set[str]] = []
  while left:
    floor = {a for a in left if not any(b in left for x, b in edges if x == a)}
    if not floor:
      raise ValueError(f"rooms that import each other: {sorted(left)}")
    out.append(floor)
    left -= floor
  return out


def main(root: Path) -> None:
  """Prints the figures of a checkout."""
  edges = room_imports(root)
  rooms = {room_of(m) for m in modules(root)}
  print(
    f"{len(rooms)} rooms, {len(edges)} pairs of rooms with imports, "
    f"{sum(edges.values())} imports between rooms"
  )
  for number, floor in enumerate(floors(edges)):
    print(f"floor {number}: {', '.join(sorted(floor))}")


if __name__ == "__main__":
  main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT)
