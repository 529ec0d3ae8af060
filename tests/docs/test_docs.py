"""Holds the guides to the code: links, paths, names, commands, tables."""

import ast
import functools
import re
import statistics
import sys
from pathlib import Path

import guides
import pytest
from guides import FILES, GUIDES, PACKAGE, ROOT

README = ROOT / "README.md"
# Guides that the README must link to.
LISTED = [
  *(
    f"bct_jax/{name}"
    for name in (
      "settings data objectives models evals interop sweep sizing experiment "
      "report"
    ).split()
  ),
  *("configs", "configs/findings", "launch", "tests", "tests/benchmarks"),
]
MAX_LINES = 300
MAX_WORDS = 20  # of a sentence of README.md, in the mean

NAMES_OF_FILES = {path.name for path in FILES}
TOP = {p.relative_to(ROOT).parts[0] for p in FILES if p.parent != ROOT}
PARTS = {p.relative_to(PACKAGE).parts[0] for p in FILES if PACKAGE in p.parents}
ROOMS = {name.removesuffix(".py") for name in PARTS} - {"README.md"}
CODE_SUFFIXES = {".py", ".sh", ".sbatch", ".png", ".j2", ".toml"}
FILE_SUFFIXES = (".html", ".json", ".jsonl", ".md", ".parquet", ".txt", ".yaml")
FILE_SUFFIXES += tuple(CODE_SUFFIXES)

every_guide = pytest.mark.parametrize(
  "guide", GUIDES, ids=[str(p.relative_to(ROOT)) for p in GUIDES]
)


def read(guide: Path) -> str:
  return guide.read_text("utf-8")


def is_placeholder(path: str) -> bool:
  """Tells whether a part of a path is to be filled in, such as NAME or <x>."""
  parts = [p.split(".")[0] for p in re.split(r"[/:=]", path)]
  return (
    "<" in path or "$" in path or any(re.fullmatch(r"[A-Z]+", p) for p in parts)
  )


def exists(path: str, guide: Path) -> bool:
  """Tells whether a path is one of the repository.

  It may be from its root, from bct_jax, or from the guide's folder. A name
  alone may be that of a file anywhere.
  """
  if "/" not in path and path in NAMES_OF_FILES:
    return True
  return any((d / path).exists() for d in (ROOT, PACKAGE, guide.parent))


# --- links and paths ----------------------------------------------------------


@every_guide
def test_links_resolve(guide):
  bad = []
  for target in guides.links(read(guide)):
    if target.startswith(("https://", "http://", "mailto:")):
      continue
    path, _, anchor = target.partition("#")
    file = (guide.parent / path).resolve() if path else guide
    if not file.exists():
      bad.append(f"{target}: no such file")
    elif anchor and anchor not in guides.anchors(file.read_text("utf-8")):
      bad.append(f"{target}: no such heading")
  assert not bad


@every_guide
def test_headings_are_there_once_and_tables_are_whole(guide):
  """A merge once left a section twice, the first with half a table in it."""
  text = re.sub(r"```.*?```", "", read(guide), flags=re.S)
  headings = re.findall(r"^#+ .*$", text, flags=re.M)
  assert len(headings) == len({*headings})
  for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
    lines = re.sub(r"`[^`]*`|\\\|", "", table).splitlines()
    assert len(lines) > 2 and re.fullmatch(r"[|: -]+", lines[1]), table[:80]
    counts = {line.count("|") for line in lines}
    assert len(counts) == 1, table[:80]


@every_guide
def test_paths_in_backticks_exist(guide):
  made = guides.written_files(read(guide))
  bad = []
  for code in guides.inline_code(read(guide)):
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", code) or is_placeholder(code):
      continue
    first = code.split("/")[0]
    ours = first in TOP | ROOMS and "/" in code
    if Path(code).suffix in CODE_SUFFIXES or (code.endswith("/") and ours):
      if code not in made and not exists(code, guide):
        bad.append(code)
  assert not bad


@pytest.mark.parametrize("name", LISTED)
def test_readme_links_to_guide(name):
  guide = ROOT / name / "README.md"
  assert guide.is_file()
  targets = {
    (ROOT / link.partition("#")[0]).resolve()
    for link in guides.links(read(README))
  }
  assert guide in targets


# --- names --------------------------------------------------------------------


@functools.cache
def default_config():
  sys.path.append(str(ROOT))
  from configs import default

  return default.get_config()


def is_field(dotted: str) -> bool:
  """Tells whether a config has a field, by configs/default.py."""
  node = default_config()
  for part in dotted.split("."):
    if part in ("options", "arms"):
      return part in node  # what follows is named by the user
    if not hasattr(node, "keys") or part not in node:
      return False
    node = node[part]
  return True


@every_guide
def test_dotted_names_exist(guide):
  bad = []
  for code in guides.inline_code(read(guide)):
    found = re.fullmatch(r"((?:bct_jax\.)?[a-z_]+(?:\.\w+)+)(?:\(.*\))?", code)
    if found is None or code.endswith(FILE_SUFFIXES):
      continue
    name = found[1]
    if name.removeprefix("bct_jax.").split(".")[0] in ROOMS or (
      name.startswith("bct_jax.")
    ):
      if not (guides.resolves(name) or is_field(name)):
        bad.append(name)
  assert not bad


@every_guide
def test_fields_of_configs_exist(guide):
  text = read(guide)
  code = [*guides.inline_code(text), *(b.text for b in guides.blocks(text))]
  named = re.findall(r"--config\.([a-z_.]+)", "\n".join(code))
  named += re.findall(r"(?m)^ *c\.([a-z_.]+)", "\n".join(code))
  fields = [f.rstrip(".") for f in named if f not in ("py", "json")]
  bad = [f for f in fields if not is_field(f)]
  assert not bad


@every_guide
def test_python_blocks_parse_and_import_what_exists(guide):
  bad = []
  for block in guides.blocks(read(guide)):
    if block.language != "python":
      continue
    for node in ast.walk(ast.parse(block.text)):
      names = []
      if isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{alias.name}" for alias in node.names]
      elif isinstance(node, ast.Attribute):
        names = [ast.unparse(node)]
      bad += [
        name
        for name in names
        if name.startswith("bct_jax.") and not guides.resolves(name)
      ]
  assert not bad


# --- commands -----------------------------------------------------------------

# Commands that hand their flags on to another package.
HAND_ON = {"bct_jax.interop.harness"}


def flags_of(module: str) -> set[str]:
  """Returns what may be a flag of a command: any string and any field in it.

  Of a package, in all of its files; flags of bct_jax.main too for a launcher.
  """
  parts = module.split(".")[1:]
  file = guides.module_file(parts)
  if file is None:
    return set()
  files = file.parent.glob("*.py") if file.name == "__init__.py" else [file]
  out: set[str] = set()
  for path in files:
    out |= {s.lstrip("-") for s in guides.strings(path)}
    source = path.read_text("utf-8")
    out |= set(re.findall(r"^  (\w+): \w+ = ", source, re.MULTILINE))
  return out


def modes() -> set[str]:
  return guides.assigned_strings(PACKAGE / "main.py", "MODES", "ALONE")


def what_runs(words: list[str]) -> str:
  """Returns the module that a command runs, else ""."""
  for at, word in enumerate(words):
    if word == "-m" and at and Path(words[at - 1]).name.startswith("python"):
      return words[at + 1]
    if word == "bct-jax":
      return f"bct-jax {words[at + 1] if at + 1 < len(words) else ''}".strip()
  return ""


def faults(words: list[str], guide: Path, made: set[str]) -> list[str]:
  """Returns what is wrong with a command."""
  bad = []
  module = what_runs(words)
  script = next((w for w in words if w.startswith(("launch/", ".ci/"))), "")
  if module.startswith("bct-jax"):
    entry = PACKAGE / "__main__.py"
    name = module.partition(" ")[2]
    known = guides.strings(entry) if entry.is_file() else set()
    if not entry.is_file() or (
      name and not name.startswith("-") and name not in known
    ):
      bad.append(f"{module}: no such command")
    return bad
  if module.startswith("bct_jax"):
    file = guides.module_file(module.split(".")[1:])
    runs = file and (
      file.name != "__init__.py" or (file.parent / "__main__.py").is_file()
    )
    if not runs:
      return [f"python -m {module}: no such command"]
  known = set()
  if module.startswith("bct_jax"):
    known = flags_of(module)
  elif script and (ROOT / script).is_file():
    text = (ROOT / script).read_text("utf-8")
    known = {f.lstrip("-") for f in re.findall(r"--\w+", text)}
    known |= flags_of("bct_jax.main")
  for word in words:
    flag, equals, value = word.partition("=")
    if flag in ("--config", "--sweep"):
      value = value.partition(":")[0]  # behind it: what get_config is given
    if flag == "--mode" and equals and value not in modes():
      bad.append(f"{word}: no such mode")
    if flag in ("--config", "--sweep") and equals and not is_placeholder(value):
      if value not in made and not (ROOT / value).is_file():
        bad.append(f"{word}: no such file")
    if flag.startswith("--") and known and module not in HAND_ON:
      name = flag[2:]
      behind_script = bool(script) and words.index(word) < words.index(script)
      if (
        not behind_script
        and not name.startswith("config.")
        and not (name in known or name.removeprefix("no") in known)
      ):
        bad.append(f"{flag}: no flag of {module or script}")
    path = value if equals else word
    parts = path.split("/")
    ours = parts[0] in TOP and len(parts) > 1 and "runs" not in parts
    if ours and not is_placeholder(path):
      if not exists(path.rstrip(":"), guide):
        bad.append(f"{path}: no such file")
  return bad


@every_guide
def test_commands_exist(guide):
  text = read(guide)
  # A file that the README has its reader write is there for other guides, too.
  made = guides.written_files(text) | guides.written_files(read(README))
  bad = [
    (fault, " ".join(words))
    for words in guides.commands(text)
    for fault in faults(words, guide, made)
  ]
  assert not bad


def test_faults_of_commands_are_found():
  def found(line):
    return [f.split(":")[0] for f in faults(line.split(), README, {"mine.py"})]

  assert not found("python -m bct_jax.main --config=mine.py --mode=sample")
  assert found("python -m bct_jax.mian --config=mine.py") == [
    "python -m bct_jax.mian"
  ]
  assert found("python -m bct_jax.main --mode=smaple") == ["--mode=smaple"]
  assert found("python -m bct_jax.main --config=configs/no.py") == [
    "--config=configs/no.py",
    "configs/no.py",
  ]
  assert found("python -m bct_jax.main --promt=x") == ["--promt"]
  assert found("bash launch/no.sh --x") == ["launch/no.sh"]
  assert found("bash launch/tpu_pod.sh --dry_rnu") == ["--dry_rnu"]
  assert not guides.resolves("sample.sampler.make_samplers")
  assert guides.resolves("sample.sampler.make_sampler")
  assert guides.resolves("objectives.base.WithOptions.require")
  assert not is_field("train.lr") and is_field("arms.x.optim.lr")


# --- tables -------------------------------------------------------------------


def rows_of(text: str, header: str) -> list[list[str]]:
  """Returns the cells of the rows of the table with a header."""
  lines = text[text.index(header) :].partition("\n\n")[0].splitlines()[2:]
  return [[c.strip() for c in line.strip("|").split("|")] for line in lines]


def test_table_of_settings_is_current():
  """The rows that it has are those made; one who adds a setting need not."""
  from bct_jax.settings import table

  made = table().splitlines()
  text = read(PACKAGE / "settings" / "README.md")
  shown = text[text.index(made[0]) :].partition("\n\n")[0].splitlines()
  assert shown == [row for row in made if row in shown]
  assert len(shown) >= 2 + 24


def test_table_of_objectives_has_each():
  text = read(PACKAGE / "objectives" / "README.md")
  rows = rows_of(text, "| objective | minimises |")
  named = re.findall(r"`(\w+)`", " ".join(row[0] for row in rows))
  source = PACKAGE / "objectives" / "__init__.py"
  assert set(guides.keys(source, "OBJECTIVES")) <= set(named)


def test_table_of_what_objectives_ask_for_is_current():
  text = read(PACKAGE / "objectives" / "README.md")
  rows = rows_of(text, "| class attribute or property |")
  bad = [
    row[0]
    for row in rows
    if not guides.resolves(f"objectives.base.WithOptions.{row[0].strip('`')}")
  ]
  assert not bad


def test_table_of_families_has_each():
  rows = rows_of(read(PACKAGE / "models" / "README.md"), "| family | logits |")
  (source,) = (p for p in FILES if p.name == "test_families.py")
  assert [row[0] for row in rows] == guides.keys(source, "FAMILIES")


def test_table_of_faults_names_tests():
  text = read(PACKAGE / "experiment" / "README.md")
  bad = []
  for row in rows_of(text, "| fault | what happens |"):
    file = None
    for name in re.findall(r"`([^`]+)`", row[-1]):
      if name.endswith(".py"):
        (file,) = (p for p in FILES if p.name == name)
      elif file is None or not re.search(
        rf"def test_\w*{name}", file.read_text("utf-8")
      ):
        bad.append((row[0], name))
  assert not bad


# --- length -------------------------------------------------------------------


def test_readme_is_short():
  assert len(read(README).splitlines()) <= MAX_LINES


def test_sentences_of_readme_are_short():
  """See guides.sentences for how words and sentences are counted."""
  counts = guides.sentences(read(README))
  assert len(counts) > 50
  assert statistics.mean(counts) <= MAX_WORDS


def test_words_are_counted():
  text = (
    "# A heading of five words\n\nOne two, `three four` (five). Is it\nsix?\n"
    "![no words](x.png)\n\n* an [item\n  here](x.md)\n* and one\n\n"
    "| a | b |\n\n```bash\nno words\n```\n"
  )
  assert guides.sentences(text) == [4, 3, 3, 2]
