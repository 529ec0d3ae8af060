"""Sampling that goes on where it was killed.

Completions are written as they end, to a file beside the one they will be in.
A sample does not depend on what else is sampled, bit for bit while the set of
prompts and the devices are the same, so the whole is as if never interrupted.
"""

import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from bct_jax.infra import files, processes, shared_files, signals
from bct_jax.sample.sampler import FindStop, Sample
from bct_jax.types import Completion, PyTree


def sample_to_end(
  sample: Sample,
  params: PyTree,
  prompts: Sequence[Sequence[int]],
  seed: int,
  partial: Path | None,
  made_by: Any,
  done: Callable[[int, int], Any] = lambda count, tokens: None,
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
    partial: where to keep completions; None keeps none. It is left there: the
      caller deletes it when it has saved the result.
    made_by: JSON value of what else the completions depend on; a file that was
      made by something else is begun anew.
    done: called with the number of rows that are new, or known already, and
      of the tokens that were sampled for them now.
    find_stop: see make_sampler.
    row_ids: None are the numbers of the prompts.
    arms, among: see make_sampler.
    skip: numbers of prompts that are not sampled, and not in the result.

  Raises:
    signals.Preempted: a signal asked to stop; `partial` has what ended.
  """
  rows = range(len(prompts)) if row_ids is None else row_ids
  ids = [list(map(int, p)) for p in prompts]
  key = files.digest([made_by, seed, ids, list(rows), arms and list(arms)])
  known = {} if partial is None else _known(partial, key)
  done(len(known), 0)

  def finished(row: int, completion: Completion) -> None:
    error = None
    # JSON has no number for what is not finite; the caller will see it.
    finite = all(map(math.isfinite, completion.logprobs))
    if partial is not None and finite:
      try:
        shared_files.append_line_unawaited(
          partial, {"row": row, **vars(completion)}
        )
      except OSError as e:
        error = e  # raised when the other processes know
    done(1, len(completion.tokens))
    if bool(processes.vote(signals.stop_requested() or error is not None)):
      raise error or signals.Preempted("while sampling")

  new = sample(
    params,
    prompts,
    rows,
    seed,
    finished,
    find_stop=find_stop,
    skip=frozenset(known).union(skip),
    arms=arms,
    among=among,
  )
  both = {**{i: c for i, c in enumerate(new) if c is not None}, **known}
  return [both[i] for i in range(len(prompts)) if i not in skip]


def _known(path: Path, key: str) -> dict[int, Completion]:
  """Completions of an earlier run; makes the file ready to be added to."""
  lines: list[dict[str, Any]] = shared_files.read_lines(path)
  if not lines or lines[0].get("key") != key:
    lines = [{"key": key}]
  # Also without a last line that was cut.
  shared_files.write_lines(path, lines)
  return {
    line["row"]: Completion(
      tuple(line["tokens"]), tuple(line["logprobs"]), line["stopped"]
    )
    for line in lines[1:]
  }
