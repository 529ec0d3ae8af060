"""The README's commands work in order, from a fresh clone."""

import subprocess
from pathlib import Path

import guides
import newcomer
import pytest


def test_blocks_run_in_order_up_to_the_first_failure(tmp_path):
  readme = (
    "```bash\nword=one\ncat > a.txt <<'END'\ntext\nEND\n```\n"
    "```sh\necho never\n```\n```bash\necho $word\nfalse\necho two\n```\n"
  )
  script = newcomer.make_script(newcomer.bash_blocks(readme))
  done = subprocess.run(
    ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True
  )
  assert done.returncode == 1
  assert done.stdout == "one\n"
  assert "failed: false" in done.stderr
  assert (tmp_path / "a.txt").read_text() == "text\n"


def test_readme_has_blocks_to_run():
  readme = (guides.ROOT / "README.md").read_text("utf-8")
  blocks = newcomer.bash_blocks(readme)
  assert "launch/quickstart.sh" in blocks[0]
  check = subprocess.run(
    ["bash", "-n"], input=newcomer.make_script(blocks), text=True
  )
  assert check.returncode == 0


@pytest.mark.slow
def test_readme_runs_from_top_to_bottom(tmp_path):
  """Takes about as long as the quickstart and a run of the tiny model."""
  if not (guides.ROOT / ".git").exists():
    pytest.skip("this is no git checkout")
  assert newcomer.run(tmp_path, timeout=3600) == 0
  runs = Path(tmp_path / "bct_jax" / "runs")
  for name in ("quickstart/report.html", "quickstart/done.json"):
    assert (runs / name).is_file()
  assert (runs / "exported" / "config.json").is_file()
  assert (runs / "rehearsal" / "done.json").is_file()
