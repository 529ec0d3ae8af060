"""A bar per long stage; one line per stage when nobody is watching."""

import contextlib
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm


class Stage:
  """Counts finished units of one stage."""

  def __init__(self, bar: tqdm | None):
    self._bar = bar

  def __call__(self, count: int = 1, **values: str) -> None:
    if self._bar is not None:
      if values:
        self._bar.set_postfix(values, refresh=False)
      self._bar.update(count)


@contextlib.contextmanager
def stage(name: str, total: int, unit: str = "it") -> Iterator[Stage]:
  """Shows progress of `total` units on standard error."""
  start = time.monotonic()
  if sys.stderr.isatty():
    bar = tqdm(total=total, desc=name, unit=unit, leave=True)
    with contextlib.closing(bar):
      yield Stage(bar)
  else:
    yield Stage(None)
    seconds = time.monotonic() - start
    print(f"{name}: {total} {unit} in {seconds:.1f} s", file=sys.stderr)


def say(text: str) -> None:
  """A line for the user, kept apart from any bar."""
  tqdm.write(text, file=sys.stderr)
