"""Shows progress: a bar per long stage, or a line when nobody is watching."""

import contextlib
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

_silent = False


def silence() -> None:
  """Shows nothing from here on, where another process of the run does."""
  global _silent
  _silent = True


class Stage:
  """Counts finished units of one stage, and the tokens that were sampled."""

  def __init__(self, bar: tqdm | None):
    self._bar = bar
    self._start = time.monotonic()
    self._tokens = 0

  def __call__(self, count: int = 1, tokens: int = 0, **values: str) -> None:
    """Adds finished units and sampled tokens; shows values beside the bar."""
    self._tokens += tokens
    if self._bar is not None:
      if tokens:
        values["tokens/s"] = f"{self._tokens / self.seconds:.0f}"
      if values:
        self._bar.set_postfix(values, refresh=False)
      self._bar.update(count)

  @property
  def seconds(self) -> float:
    """Returns the time since the stage began, compilation included."""
    return max(time.monotonic() - self._start, 1e-9)

  @property
  def summary(self) -> str:
    """Says how long the stage took, and how many tokens a second it sampled."""
    text = f"{self.seconds:.1f} s"
    if self._tokens:
      text += f", {self._tokens / self.seconds:.0f} new tokens/s"
    return text


@contextlib.contextmanager
def stage(name: str, total: int, unit: str = "it") -> Iterator[Stage]:
  """Shows progress of `total` units on standard error."""
  if _silent:
    yield Stage(None)
  elif sys.stderr.isatty():
    bar = tqdm(total=total, desc=name, unit=unit, leave=True)
    with contextlib.closing(bar):
      yield Stage(bar)
  else:
    done = Stage(None)
    yield done
    print(f"{name}: {total} {unit} in {done.summary}", file=sys.stderr)


def log_line(text: str) -> None:
  """Prints a line for the user without breaking a bar."""
  if not _silent:
    tqdm.write(text, file=sys.stderr)
