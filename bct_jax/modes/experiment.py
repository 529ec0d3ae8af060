"""Runs an experiment and writes its report: --mode=experiment."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bct_jax.config import ConfigError, ExperimentConfig
from bct_jax.experiment import keep, run, rundir
from bct_jax.experiment.environment import write_environment
from bct_jax.experiment.growth import begin_growth, prepare_growth
from bct_jax.infra import (
  files,
  formats,
  processes,
  remote_runs,
  shared_files,
  signals,
  trackers,
)
from bct_jax.infra.done_file import (
  DONE,
  REMADE,
  describe_damage,
  find_damage,
  write_done,
)
from bct_jax.infra.formats import interval, number, percent
from bct_jax.infra.progress import log_line
from bct_jax.interop import judge
from bct_jax.report import write_report


def run_experiment(
  config: ExperimentConfig,
  raw: Mapping[str, Any],
  overrides: Mapping[str, Any],
  place: str | Path | None,
  fall_back: bool = False,
  lease: float = remote_runs.LEASE,
) -> dict[str, Any]:
  """Runs or resumes the experiment in a directory and writes its report.

  Args:
    config: of the experiment.
    raw: the same as nested mappings.
    overrides: fields that flags changed, with their values.
    place: the run directory, a path or a URL of an object store.
    fall_back: whether damaged checkpoints are set aside.
    lease: of a directory on a store, see shared_files.open_workdir.

  Returns:
    The content of result.json, in the first process.

  Raises:
    ConfigError: the directory or an arm is missing, or the directory is of
      another config.
    ValueError, GateError, train.NumericalError: see experiment.run.run.
  """
  if place is None:
    raise ConfigError("--workdir is needed: the directory of the run")
  if not config.arms:
    raise ConfigError("config.arms is empty: there is nothing to train")
  processes.run_on_first("log", lambda: trackers.check_packages(config.log))
  with (
    signals.handle_signals(),
    shared_files.open_workdir(place, lease) as workdir,
    rundir.lock_run(workdir),
  ):
    growth = rundir.keep_config(workdir, raw, overrides)
    config = rundir.with_template_date(config, rundir.date_of_run(workdir))
    if growth is None and processes.run_on_first(
      DONE, lambda: _is_done(workdir)
    ):
      log_line(f"{workdir} is done already")
    else:
      plan = rundir.make_agreed_plan(config)
      if plan.tasks is not None:
        # Before env.json: without this data the run has not begun.
        plan.tasks.load()
      if growth is not None:
        begin_growth(plan, workdir, growth, raw, overrides)
      plan = prepare_growth(plan, workdir)
      rundir.keep_template_date(workdir, plan, raw, overrides)
      rundir.keep_setting_files(workdir, plan)
      if plan.judge is not None:
        plan.judge.open(workdir / judge.FILE)
      write_environment(workdir, plan.runtime, plan.setting_files)
      plan = dataclasses.replace(plan, fall_back=fall_back)
      run.run(plan, workdir)
    processes.run_on_first("report", lambda: _end_run(workdir, config))
    first = processes.is_first()
    return files.read_json(workdir / "result.json") if first else {}


def _end_run(workdir: Path, config: ExperimentConfig) -> None:
  """Writes the report of a run, and removes what the config does not keep."""
  write_run_report(workdir)
  keep.remove(workdir, keep.removable(workdir, config.keep))
  weights = keep.removable(workdir, "results")
  if weights and (count := sum(map(keep.size_of, weights))) > 2**30:
    print(
      f"{formats.size(count)} of it are weights; without them: python -m "
      "bct_jax.main --mode=clean --keep=results "
      f"--workdir={remote_runs.place_of(workdir)}"
    )


def _is_done(workdir: Path) -> bool:
  """Tells whether a run is done, and prints what is damaged in it.

  What follows from the other files is made again: then it is not done.
  """
  if not (workdir / DONE).exists():
    return False
  damage = find_damage(workdir)
  if remade := [name for name in REMADE if name in damage]:
    for name in remade:
      log_line(f"{workdir / name} {damage[name]}: made again")
    files.delete(workdir / DONE)
    return False
  for note in describe_damage(workdir):
    log_line(f"{workdir}: {note}")
  return True


def write_run_report(workdir: Path) -> None:
  """Writes done.json and the report, and prints the readings."""
  result = files.read_json(workdir / "result.json")
  # Before the report, which says of a run without it that it is not done.
  write_done(workdir, result["organism"]["hash"])
  report = write_report([workdir], workdir / "report.html")
  print(reading_text(result))
  print(f"report: {remote_runs.place_of(report)}")


def reading_text(result: Mapping[str, Any]) -> str:
  """Formats the result of an experiment for the terminal."""
  lines = [f"{result['setting']} on {result['model']}"]
  for arm in result["arms"]:
    first, last = arm["curve"][0], arm["curve"][-1]
    origin = "the organism"
    if arm.get("control") == "reversal":
      origin = f"at the end of {arm['of']}"
    rates = ", ".join(
      f"{k} {percent(last[k])} {interval(last[f'{k}_ci'])}"
      for k in ("initial", "alternate", "other")
    )
    lines += [
      f"  {arm['name']}: {_sentence(arm)} (at lr {number(arm['lr'])}, after "
      f"{last['step']} updates)",
      f"    {last['n']} eval prompts: {rates}",
      f"    {last['agreed_n']} held-out train prompts: agreed "
      f"{percent(last['agreed'])}, with the decoration "
      f"{percent(last['agreed_decorated'])}",
      f"    {last['capability_n']} capability prompts: "
      f"{percent(last['capability'])} right, {origin} "
      f"{percent(first['capability'])}",
    ]
  return "\n".join(lines)


def _sentence(arm: Mapping[str, Any]) -> str:
  """Returns an arm's reading; the verdict of one that schema 1 wrote."""
  return arm["reading"]["sentence"] if "reading" in arm else arm["verdict"]
