"""Runs the README from top to bottom, as a newcomer does.

  python tests/docs/newcomer.py [FOLDER]

Clones the checkout (what is committed) into FOLDER, and runs all blocks of its
README that are fenced as `bash`, in order, in one shell. The first command that
fails ends it, and its exit code is that of this program. Blocks fenced as `sh`
are for machines and files that are not here, and are not run.

Where BCT_JAX_VENV is set, the packages of that environment are used, so that
nothing is installed; it is left as it is. Else the README's own commands make
one, which needs a package index.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import guides

# What tests set for themselves, and a newcomer does not have.
_NOT_PASSED_ON = (
  *("BCT_JAX_VENV", "JAX_", "OMP_", "PYTHONPATH", "VIRTUAL_ENV", "XLA_"),
)


def bash_blocks(readme: str) -> list[str]:
  """Returns the blocks to run, in order."""
  return [b.text for b in guides.blocks(readme) if b.language == "bash"]


def make_script(blocks: Sequence[str]) -> str:
  """Returns one shell script of all blocks, which ends at the first failure.

  It says on stderr which block begins and which command failed.
  """
  lines = ["set -Eeo pipefail"]
  lines += ["trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR"]
  for i, block in enumerate(blocks, 1):
    lines += [f'echo "== block {i} of {len(blocks)}, at $SECONDS s" >&2', block]
  return "\n".join(lines)


def clone(source: Path, target: Path) -> None:
  """Clones a checkout."""
  command = ["git", "clone", "--quiet", "--no-hardlinks"]
  subprocess.run([*command, str(source), str(target)], check=True)


def lend_packages(checkout: Path, venv: Path) -> None:
  """Makes `.venv` in a checkout, with the packages of another environment.

  launch/venv.sh finds it to be made already: a stamp in it says so. The code of
  the checkout comes before what the other environment has of bct_jax.
  """
  python, new = venv / "bin" / "python", checkout / ".venv"
  make = [str(python), "-m", "venv", "--without-pip", str(new)]
  subprocess.run(make, check=True)
  ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
  theirs, ours = (
    subprocess.run(
      [str(p), "-c", ask], check=True, capture_output=True, text=True
    ).stdout.strip()
    for p in (python, new / "bin" / "python")
  )
  paths = f"{checkout}\n{theirs}\n"
  (Path(ours) / "lent.pth").write_text(paths, "utf-8")
  # As launch/quickstart.sh asks for it: with this extra, by the whole path.
  stamp = (
    "source launch/venv.sh; "
    'stamp_of "$ROOT/.venv/bin/python" demo >.venv/bct_jax-demo.stamp'
  )
  subprocess.run(["bash", "-ec", stamp], cwd=checkout, check=True)


def environment() -> dict[str, str]:
  """Returns the environment of a newcomer's shell."""
  return {
    k: v for k, v in os.environ.items() if not k.startswith(_NOT_PASSED_ON)
  }


def run(folder: Path, timeout: float | None = None) -> int:
  """Runs the README in a new clone in `folder`; returns its exit code."""
  checkout = folder / "bct_jax"
  clone(guides.ROOT, checkout)
  venv = os.environ.get("BCT_JAX_VENV")
  if venv:
    lend_packages(checkout, Path(venv).resolve())
  readme = (checkout / "README.md").read_text("utf-8")
  script = make_script(bash_blocks(readme))
  command = ["bash", "-c", script]
  done = subprocess.run(
    command, cwd=checkout, env=environment(), check=False, timeout=timeout
  )
  return done.returncode


def main(arguments: Sequence[str]) -> int:
  """Runs the README in the folder that is given, or in a temporary one."""
  begin = time.monotonic()
  if arguments:
    code = run(Path(arguments[0]).resolve())
  else:
    with tempfile.TemporaryDirectory() as name:
      code = run(Path(name).resolve())
  took = time.monotonic() - begin
  print(f"exit code {code} after {took:.0f} s", file=sys.stderr)
  return code


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
