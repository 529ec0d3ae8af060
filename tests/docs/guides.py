"""Reads the guides: their prose, fenced blocks, inline code and links."""

import ast
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "bct_jax"
# Folders that a checkout may have and the repository does not.
_FOREIGN = {"build", "dist", "logs", "node_modules", "runs", "whl"}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"!?\[([^\]]*)\]\(([^)\s]+)\)")
_HEREDOC = re.compile(r"cat > (\S+) <<'?(\w+)'?\n(.*?)^\2$", re.M | re.S)


class Block(NamedTuple):
  """A fenced block: its language ("" for none) and its text."""

  language: str
  text: str


def repository_files() -> Iterator[Path]:
  """Yields every file of the checkout but environments, caches and runs."""

  def walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
      name = path.name
      if path.is_file():
        yield path
      elif name == ".ci" or not (
        name in _FOREIGN
        or name.startswith((".", "__pycache__"))
        or name.endswith(".egg-info")
      ):
        yield from walk(path)

  return walk(ROOT)


FILES = list(repository_files())
GUIDES = [path for path in FILES if path.name == "README.md"]


def blocks(text: str) -> list[Block]:
  """Returns the fenced blocks of a guide, in order."""
  return [Block(*found) for found in _FENCE.findall(text)]


def without_blocks(text: str) -> str:
  """Removes the fenced blocks of a guide."""
  return _FENCE.sub("", text)


def inline_code(text: str) -> list[str]:
  """Returns what stands in backticks, outside the fenced blocks."""
  found = _CODE.findall(without_blocks(text))
  return [" ".join(code.split()) for code in found]


def links(text: str) -> list[str]:
  """Returns the targets of all links and images."""
  plain = _CODE.sub("", without_blocks(text))
  return [target for _, target in _LINK.findall(plain)]


def anchors(text: str) -> set[str]:
  """Returns the anchors that GitHub makes of the headings of a guide."""
  out: set[str] = set()
  for title in re.findall(r"^#+ +(.+)$", without_blocks(text), re.MULTILINE):
    plain = re.sub(r"[^\w\- ]", "", _LINK.sub(r"\1", title).lower())
    slug = name = plain.strip().replace(" ", "-")
    count = 0
    while slug in out:
      count += 1
      slug = f"{name}-{count}"
    out.add(slug)
  return out


def written_files(text: str) -> set[str]:
  """Returns the names of files that the blocks of a guide write."""
  return {
    name
    for block in blocks(text)
    for name, _, _ in _HEREDOC.findall(block.text)
  }


def commands(text: str) -> list[list[str]]:
  """Returns the words of each command in fenced shell blocks and inline code.

  Lines that end in a backslash are joined. Files that are written by a here
  document are left out.
  """
  shell = [b.text for b in blocks(text) if b.language in ("bash", "sh")]
  lines = [
    line
    for code in shell
    for line in _HEREDOC.sub("", code).replace("\\\n", " ").splitlines()
  ]
  starts = ("python -m ", "bash ", "bct-jax", "pytest ", "launch/", "--")
  lines += [code for code in inline_code(text) if code.startswith(starts)]
  out = []
  for line in lines:
    try:
      words = shlex.split(line, comments=True)
    except ValueError as e:
      raise ValueError(f"{line!r} is no command: {e}") from None
    if words:
      out.append(words)
  return out


def sentences(text: str) -> list[int]:
  """Returns the number of words of each sentence of a guide's prose.

  Prose is paragraphs and list items. Fenced blocks, tables, headings and images
  are left out. A link counts as its text, and code in backticks as one word. A
  sentence ends at a full stop, question mark or exclamation mark before a space
  (not at a semicolon), and where its paragraph or list item ends. A word is
  what stands between spaces and has a letter or digit.
  """
  text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", without_blocks(text))
  text = _LINK.sub(r"\1", _CODE.sub("code", text))
  paragraphs, current = [], []
  for line in [*text.splitlines(), ""]:
    if re.match(r"\s*([*-]|\d+\.) ", line) or not line.strip():
      paragraphs.append(" ".join(current))
      current = []
    if line.strip() and not line.startswith(("|", "#")):
      current.append(re.sub(r"^\s*([*-]|\d+\.) ", "", line).replace("**", ""))
  counts = []
  for paragraph in paragraphs:
    for sentence in re.split(r"(?<=[.!?])[\"')]*\s+", paragraph):
      words = [w for w in sentence.split() if re.search(r"\w", w)]
      if words:
        counts.append(len(words))
  return counts


# --- names in the code, without importing it ----------------------------------


@functools.cache
def parse(path: Path) -> ast.Module:
  """Parses a module."""
  return ast.parse(path.read_text("utf-8"))


def _names(body: list[ast.stmt]) -> dict[str, ast.AST]:
  """Returns what a module or class defines: its name and its node."""
  out: dict[str, ast.AST] = {}
  for node in body:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
      out[node.name] = node
    elif isinstance(node, ast.Assign):
      for target in node.targets:
        for name in ast.walk(target):
          if isinstance(name, ast.Name):
            out[name.id] = node
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
      out[node.target.id] = node
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
      for alias in node.names:
        out[(alias.asname or alias.name).split(".")[0]] = node
  return out


def module_file(parts: list[str]) -> Path | None:
  """Returns the file of a module below bct_jax; of a package its __init__."""
  path = PACKAGE.joinpath(*parts)
  for file in (path / "__init__.py", path.with_suffix(".py")):
    if parts and file.is_file():
      return file
  return PACKAGE / "__init__.py" if not parts else None


def strings(path: Path) -> set[str]:
  """Returns all string constants of a module."""
  return {
    node.value
    for node in ast.walk(parse(path))
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
  }


def resolves(dotted: str) -> bool:
  """Tells whether a dotted name below bct_jax exists, by the source alone."""
  parts = dotted.removeprefix("bct_jax.").split(".")
  for count in range(len(parts), -1, -1):
    file = module_file(parts[:count])
    if file is None:
      continue
    body, rest = parse(file).body, parts[count:]
    if rest and "__getattr__" in _names(body) and rest[0] in strings(file):
      return True  # made when it is asked for
    for i, part in enumerate(rest):
      node = _names(body).get(part)
      if node is None:
        return False
      if i + 1 < len(rest):
        body = node.body if isinstance(node, ast.ClassDef) else []
    return True
  return False


def assigned_strings(path: Path, *names: str) -> set[str]:
  """Returns the strings in what a module assigns to some names."""
  defined = _names(parse(path).body)
  return {
    node.value
    for name in names
    for node in ast.walk(defined[name])
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
  }


def keys(path: Path, name: str) -> list[str]:
  """Returns the keys of a dict that a module assigns to a name."""
  node = _names(parse(path).body)[name]
  assert isinstance(node, (ast.Assign, ast.AnnAssign))
  assert isinstance(node.value, ast.Dict)
  return [k.value for k in node.value.keys if isinstance(k, ast.Constant)]
