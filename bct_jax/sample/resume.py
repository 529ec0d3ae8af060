"""Samples so that a killed run goes on where it was.

Completions are written as they end, to a file beside the one that will hold all
of them. While the set of prompts and the devices are the same, a sample does
not depend on what else is sampled, bit for bit. So an interrupted run ends with
the completions of an uninterrupted one.
"""

import json
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from bct_jax.infra import files, processes, shared_files, signals
from bct_jax.infra.progress import log_line
from bct_jax.sample.sampler import FindStop, Sample
from bct_jax.types import Completion, PyTree


def sample_to_end(
  sample: Sample,
  params: PyTree,
  prompts: Sequence[Sequence[int]],
  seed: int,
  partial: Path | None,
  made_by: Any,
  on_sampled: Callable[[int, int], Any] = lambda count, tokens: None,
  find_stop: FindStop | None = None,
  row_ids: Sequence[int] | None = None,
  arms: Sequence[int] | None = None,
  among: Sequence[Sequence[int]] | None = None,
  skip: Collection[int] = (),
) -> list[Completion]:
  """Samples every prompt whose completion is not in `partial` yet.

  Args:
    sample: see make_sampler.
    params: for the sampler.
    prompts: ids of each.
    seed: of the samples.
    partial: the file that completions are written to; None writes none. The
      caller deletes the file when it has saved the result.
    made_by: JSON value of what else the completions depend on; a file that was
      made by something else is begun anew.
    on_sampled: called with a number of rows that have ended, now or in an
      earlier run, and of the tokens that were sampled for them now.
    find_stop: see make_sampler.
    row_ids: None means the numbers of the prompts.
    arms, among: see make_sampler.
    skip: numbers of prompts that are not sampled, and not in the result.

  Raises:
    signals.Preempted: a signal asked to stop; `partial` has the completions
      that ended.
  """
  rows = range(len(prompts)) if row_ids is None else row_ids
  ids = [list(map(int, p)) for p in prompts]
  key = files.digest([made_by, seed, ids, list(rows), arms and list(arms)])
  saved = {} if partial is None else _read_completions(partial, key)
  on_sampled(len(saved), 0)

  def finished(row: int, completion: Completion) -> None:
    error = None if partial is None else _append(partial, row, completion)
    on_sampled(1, len(completion.tokens))
    if processes.read_vote(
      processes.vote(signals.stop_requested() or error is not None)
    ):
      raise error or signals.Preempted("while sampling")

  new = sample(
    *(params, prompts, rows, seed, finished),
    find_stop=find_stop,
    skip=frozenset(saved).union(skip),
    arms=arms,
    among=among,
  )
  completions = {i: c for i, c in enumerate(new) if c is not None} | saved
  return [completions[i] for i in range(len(prompts)) if i not in skip]


def _append(path: Path, row: int, completion: Completion) -> OSError | None:
  """Appends a completion to a file.

  Returns:
    Why it could not be written. The caller raises the error after it has told
    the other processes, which would wait for this one for ever.
  """
  # JSON has no number for what is not finite; the caller will see it.
  if not all(map(math.isfinite, completion.logprobs)):
    return None
  try:
    line = {"row": row, **vars(completion)}
    shared_files.append_line_unawaited(path, {**line, "check": _check(line)})
  except OSError as e:
    return e
  return None


def _read_completions(path: Path, key: str) -> dict[int, Completion]:
  """Reads completions of an earlier run; readies the file for further lines.

  Lines that were cut or changed are dropped, and their rows sampled again.
  """
  lines: list[dict[str, Any]] = processes.run_on_first(
    path.name, lambda: _whole_lines(path)
  )
  if not lines or lines[0].get("key") != key:
    lines = [{"key": key}]
  shared_files.write_lines(path, lines)
  return {
    line["row"]: Completion(
      tuple(line["tokens"]), tuple(line["logprobs"]), line["stopped"]
    )
    for line in lines[1:]
  }


def _whole_lines(path: Path) -> list[dict[str, Any]]:
  """Reads the first line, and each further one that its checksum fits.

  Says which do not. A last line without its end was cut by a kill.
  """
  content = path.read_bytes() if path.exists() else b""
  out, changed = [], []
  for number, text in enumerate(content.split(b"\n")[:-1], 1):
    try:
      line = json.loads(text)
      rest = {k: v for k, v in line.items() if k != "check"}
      if number > 1 and line["check"] != _check(rest):
        raise ValueError
      out.append(line)
    except (ValueError, KeyError, TypeError, AttributeError):
      changed.append(number)
  if changed:
    log_line(f"{path}: lines {changed} were changed: sampled again")
  return out


def _check(line: dict[str, Any]) -> str:
  """Returns a short checksum of a line."""
  return files.digest(line)[:8]
