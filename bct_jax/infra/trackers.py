"""Passes on what a training run logs, to TensorBoard and Weights & Biases.

Both get the lines of metrics.jsonl and evals.jsonl as these are written, so
nothing that is not in the run directory too. Both packages are extras and are
imported only if the config asks for them.
"""

import contextlib
import importlib
import importlib.util
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from bct_jax.infra import files

# File -> what the names of its values begin with.
_FILES = {"metrics.jsonl": "train", "evals.jsonl": "eval"}
# (file, step, name -> value)
_Sink = Callable[[str, int, Mapping[str, float]], None]


class TrackerError(ValueError):
  """Is raised if a package is not installed or a service does not answer."""


class Destinations(Protocol):
  """Names where lines go; config.LogConfig is one."""

  @property
  def tensorboard(self) -> bool: ...

  @property
  def wandb(self) -> str: ...  # a project; "" is none


def check_packages(log: Destinations) -> None:
  """Checks that the packages are installed, before anything is trained.

  Raises:
    TrackerError: one is missing; the message names the extra.
  """
  for field, target, package, extra in (
    ("tensorboard", log.tensorboard, "tensorboardX", "tb"),
    ("wandb", log.wandb, "wandb", "wandb"),
  ):
    if target and importlib.util.find_spec(package) is None:
      raise TrackerError(
        f"log.{field} = {target!r}: the package {package} is not installed: "
        f"pip install 'bct_jax[{extra}]'"
      )


@contextlib.contextmanager
def open_trackers(
  log: Destinations, folder: Path, name: str, config: Mapping[str, Any]
) -> Iterator[Callable[[], None]]:
  """Yields a function that passes on the lines logged since its last call.

  A run that goes on sends no step twice. The event files in
  `folder`/tensorboard are made anew from the lines that are there. wandb.json
  keeps the id of the run and the last step sent of each file.

  Args:
    log: where lines go; nothing is opened for what is off.
    folder: of the training run, with its files cut to where the run goes on.
    name: of the run, for a reader.
    config: what wandb shows as the run's config.

  Raises:
    TrackerError: wandb does not begin, as without a login.
  """
  with contextlib.ExitStack() as opened:
    sinks: list[_Sink] = []
    if log.tensorboard:
      sinks.append(opened.enter_context(_tensorboard(folder)))
    if log.wandb:
      sinks.append(
        opened.enter_context(_wandb(log.wandb, folder, name, config))
      )
    read = dict.fromkeys(_FILES, 0)  # bytes

    def update() -> None:
      for file in _FILES if sinks else ():
        rows, read[file] = _rows(folder / file, read[file])
        for row in rows:
          values = dict(scalars(row, _FILES[file]))
          for sink in sinks:
            sink(file, row["step"], values)

    update()
    yield update


def _rows(path: Path, start: int) -> tuple[list[dict[str, Any]], int]:
  """Reads the whole lines of a file from a byte on; returns where they end."""
  if not path.exists():
    return [], start
  with open(path, "rb") as f:
    f.seek(start)
    whole, newline, _ = f.read().rpartition(b"\n")
  lines = whole.split(b"\n") if newline else []
  return [json.loads(x) for x in lines], start + len(whole) + len(newline)


def scalars(value: Any, name: str) -> Iterator[tuple[str, float]]:
  """Yields the numbers of a line by name, such as `eval/initial_ci/low`."""
  if isinstance(value, Mapping):
    for key, part in value.items():
      if key != "step":
        yield from scalars(part, f"{name}/{key}")
  elif isinstance(value, list) and len(value) == 2:
    yield from scalars(dict(zip(("low", "high"), value, strict=True)), name)
  elif isinstance(value, int | float):
    yield name, float(value)


@contextlib.contextmanager
def _tensorboard(folder: Path) -> Iterator[_Sink]:
  """Yields a function that writes event files for TensorBoard."""
  events = folder / "tensorboard"
  if events.exists():
    shutil.rmtree(events)
  package = importlib.import_module("tensorboardX")
  writer = package.SummaryWriter(str(events), flush_secs=5)

  def send(file: str, step: int, values: Mapping[str, float]) -> None:
    del file
    for name, value in values.items():
      writer.add_scalar(name, value, step)

  with contextlib.closing(writer):
    yield send


@contextlib.contextmanager
def _wandb(
  project: str, folder: Path, name: str, config: Mapping[str, Any]
) -> Iterator[_Sink]:
  """Yields a function that sends numbers to a run of wandb.

  Raises:
    TrackerError: wandb does not begin.
  """
  path = folder / "wandb.json"
  record = files.read_json(path) if path.exists() else {}
  if record.get("project") != project:
    record = {"project": project, "id": uuid.uuid4().hex, "sent": {}}
    files.write_json(path, record)
  wandb = importlib.import_module("wandb")
  try:
    run = wandb.init(
      project=project,
      id=record["id"],
      name=name,
      dir=str(folder),
      config=dict(config),
      resume="allow",
    )
  except wandb.errors.Error as e:
    raise TrackerError(
      f"log.wandb = {project!r}: {e} (WANDB_MODE=offline needs no login)"
    ) from None
  # Steps of updates and of evals are not sent in one order.
  run.define_metric("*", step_metric="step")
  last_steps = record["sent"]

  def send(file: str, step: int, values: Mapping[str, float]) -> None:
    if step > last_steps.get(file, -1):
      run.log({"step": step, **values})
      last_steps[file] = step
      files.write_json(path, record)

  code = 1
  try:
    yield send
    code = 0
  finally:
    run.finish(exit_code=code)
