"""Shows progress: a bar per long stage, or lines where there is no terminal."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping

from tqdm import tqdm

from bct_jax.infra.formats import duration
from bct_jax.infra.visible import visible

# Without a terminal a long stage says how far it is after so many seconds, or
# at each tenth, though not sooner than the other number after its last line.
EVERY = 30.0
AT_LEAST = 10.0
_silent = False


def silence() -> None:
  """Shows nothing from here on, where another process of the run does."""
  global _silent
  _silent = True


class _Lines:
  """Stands for a bar where there is no terminal: prints lines now and then."""

  def __init__(self, name: str, total: int, unit: str):
    """Prints that the stage begins."""
    self._name, self._total = name, total
    self._unit = unit if total != 1 else unit.removesuffix("s")
    self._done, self._tenths = 0, 0
    self._values: Mapping[str, str] = {}
    self._start = self._last = time.monotonic()
    self._print(f"{total} {self._unit} to do")

  def set_postfix(self, values: Mapping[str, str], refresh: bool) -> None:
    """Keeps the values that the next line shows."""
    del refresh
    self._values = values

  def update(self, count: int) -> None:
    """Adds finished units; prints a line if one is due."""
    self._done += count
    now = time.monotonic()
    tenths = 10 * self._done // max(self._total, 1)
    passed = now - self._last
    if passed < (AT_LEAST if tenths > self._tenths else EVERY):
      return
    if not 0 < self._done < self._total:
      return
    self._last, self._tenths = now, tenths
    left = (now - self._start) / self._done * (self._total - self._done)
    values = "".join(f", {k} {v}" for k, v in self._values.items())
    self._print(
      f"{self._done} of {self._total} {self._unit}{values}, "
      f"about {duration(left)} left"
    )

  def end(self, summary: str) -> None:
    """Prints that the stage is over, and how long it took."""
    self._print(f"{self._total} {self._unit} in {summary}")

  def _print(self, text: str) -> None:
    """Prints a line of this stage at once, also into a file."""
    print(f"{self._name}: {text}", file=sys.stderr, flush=True)


class Stage:
  """Counts finished units of one stage, and the tokens that were sampled."""

  def __init__(self, bar: tqdm | _Lines | None):
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
    text = duration(self.seconds)
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
    lines = _Lines(name, total, unit)
    done = Stage(lines)
    yield done
    lines.end(done.summary)


def log_line(text: str) -> None:
  """Prints a line for the user without breaking a bar."""
  if not _silent:
    tqdm.write(visible(text), file=sys.stderr)
