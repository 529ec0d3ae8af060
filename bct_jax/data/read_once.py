"""Reads train examples once for all arms that train on them."""

import functools
from pathlib import Path

from bct_jax.data.rows import Turns
from bct_jax.data.source import TFDS, read_examples
from bct_jax.examples import Example

_State = tuple[tuple[str, int, int], ...]


def read_examples_once(
  source: str, split: str, turns: Turns, thoughts: bool
) -> tuple[tuple[Example, ...], str]:
  """Does what `read_examples` does, and keeps what it read last.

  It reads again when the time or size of a file has changed.

  Args:
    source, split, turns, thoughts: see `read_examples`.
  """
  path = Path(source).expanduser()
  if source.startswith(TFDS):  # its files are elsewhere
    return _read(source, split, turns, thoughts)
  files = sorted(path.rglob("*")) if path.is_dir() else [path]
  state = tuple(
    (str(f), f.stat().st_mtime_ns, f.stat().st_size)
    for f in files
    if f.is_file()
  )
  return _read_state(source, split, turns, thoughts, state)


@functools.lru_cache(maxsize=2)
def _read_state(
  source: str, split: str, turns: Turns, thoughts: bool, state: _State
) -> tuple[tuple[Example, ...], str]:
  """Reads examples of files in this state."""
  del state
  return _read(source, split, turns, thoughts)


def _read(
  source: str, split: str, turns: Turns, thoughts: bool
) -> tuple[tuple[Example, ...], str]:
  """Reads examples."""
  examples, content = read_examples(source, split, turns, thoughts)
  return tuple(examples), content
