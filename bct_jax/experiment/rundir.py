"""Guards the run directory and writes what describes the run.

One run at a time holds the directory, and it is of one config. config.json and
env.json are written here.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from bct_jax.config import ConfigError, ExperimentConfig, from_dict
from bct_jax.config.fields import field_differences, flatten_config
from bct_jax.config.judge import COSTS
from bct_jax.data.open_setting import describe_changes
from bct_jax.experiment.growth import Growth, find_growth
from bct_jax.experiment.plan import Plan, make_plan
from bct_jax.infra import files, ledger, processes, remote_runs, shared_files


@contextlib.contextmanager
def lock_run(workdir: Path) -> Iterator[None]:
  """Makes the run directory and keeps other runs out.

  The system lets go of the lock when the process dies, however that happens.

  Raises:
    ValueError: the directory cannot be made or written, another run holds it,
      or some process of this run does not see it.
  """
  with contextlib.ExitStack() as contexts:
    processes.run_on_first(
      "run directory", lambda: contexts.enter_context(hold_lock(workdir))
    )
    _check_shared(workdir)
    shared_files.track(workdir, "use another --workdir")
    contexts.callback(ledger.forget, workdir)
    yield


@contextlib.contextmanager
def hold_lock(workdir: Path) -> Iterator[None]:
  """Does what `lock_run` does, for one process.

  Raises:
    ConfigError: the directory cannot be written, or another run holds it.
  """
  if remote_runs.is_left_copy(workdir):
    raise ConfigError(
      f"--workdir={workdir}: is the local copy of a run on an object store; "
      "give its URL"
    )
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = open(workdir / ".lock", "a+")
  except OSError as e:
    raise ConfigError(
      f"--workdir={workdir}: cannot be made or written: {e}"
    ) from None
  with lock:
    # Not filelock: some of its versions empty the file when they open it, and
    # with it the record of the holder; others fall back to locks that outlive
    # a dead process.
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
      if not isinstance(e, BlockingIOError):
        raise ConfigError(
          f"--workdir={workdir}: its file system has no locks (flock: {e}), "
          "without which two runs could write there; use another file system, "
          "or mount this one with locks"
        ) from None
      lock.seek(0)
      raise ConfigError(
        f"{workdir} is in use by process {lock.read().strip() or 'unknown'}; "
        "the system frees it when that process ends"
      ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()} on {socket.gethostname()}")
    lock.flush()
    yield


def _check_shared(workdir: Path) -> None:
  """Checks that all processes see the files that the first one writes.

  They read checkpoints from there.

  Raises:
    ValueError: some do not; the message names them.
  """
  if processes.count() == 1 or remote_runs.find(workdir / "x"):
    return
  mark = workdir / ".processes"
  nonce = processes.run_on_first("run directory", lambda: str(uuid.uuid4()))
  shared_files.write_text(mark, nonce)
  # A network file system may lag behind.
  end = time.monotonic() + min(30, processes.timeout() / 2)
  while not (mark.is_file() and mark.read_text() == nonce):
    if time.monotonic() > end:
      error = (
        f"--workdir={workdir}: what process 0 writes there is not seen; it "
        "must be on a file system that all hosts share"
      )
      return processes.agree("run directory", {"error": error})
    time.sleep(0.1)
  processes.agree("run directory", {})


def agree_on_code(raw: Mapping[str, Any], mode: str) -> None:
  """Checks that every process runs the same code on the same config.

  Raises:
    ValueError: naming the processes and fields that differ.
  """
  here = Path(__file__).parents[1]
  code = {
    str(p.relative_to(here)): hashlib.sha256(p.read_bytes()).hexdigest()
    for p in sorted(here.rglob("*.py"))
  }
  processes.agree(
    "the processes do not run the same",
    {
      "code": files.digest(code)[:16],
      "jax": jax.__version__,
      "mode": mode,
      **{f"config.{k}": v for k, v in flatten_config(raw).items()},
    },
  )


def make_agreed_plan(config: ExperimentConfig) -> Plan:
  """Makes the plan and checks that every process has the same data and model.

  Raises:
    ValueError: make_plan raises it, or processes differ; the message names them
      and what differs.
  """
  if processes.count() == 1:
    return make_plan(config)
  plan, facts = None, {}
  try:
    plan = make_plan(config)
    facts = _facts(plan)
  except (OSError, ValueError) as e:
    facts = {"error": str(e)}
  processes.agree("the processes do not have the same", facts)
  assert plan is not None
  return plan


def _facts(plan: Plan) -> dict[str, Any]:
  """Hashes what must be the same in every process."""
  data = {f"data of arms.{name}": d.hash for name, d in plan.arms.items()}
  if plan.install is not None:
    data["data of organism"] = plan.install.hash
  if plan.adapter is not None:
    data["organism.adapter"] = plan.adapter.hash
  return {
    **data,
    "files of the setting": files.digest(plan.setting_files),
    "eval prompts": files.digest([p.ids for p in plan.prompts]),
    "tokenizer": plan.runtime.chat.tokenizer_hash,
    "chat template": plan.runtime.chat.template_hash,
    "weights of the model": plan.runtime.model_hash,
    "devices": f"{jax.local_device_count()} {jax.devices()[0].device_kind}",
  }


def keep_config(
  workdir: Path, raw: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Growth | None:
  """Writes config.json, or checks it against the config of this command.

  A run has begun when its data was checked and it has an env.json.

  Returns:
    What this config adds to that of the run; it is not written then.

  Args:
    workdir: the run directory.
    raw: the config as nested mappings.
    overrides: fields that flags of the command changed, with their values.

  Raises:
    ConfigError: the run was begun with another config; the message lists the
      fields that differ.
  """
  path = workdir / "config.json"
  # Through JSON, so that tuples and lists compare alike.
  now = json.loads(json.dumps(raw))
  entry = {"config": now, "overrides": dict(overrides)}
  record = _record_of_run(workdir, entry)
  if record is not None:
    then = record["config"]
    now = _with_date(now, then)
    # These fields change no result.
    then |= {
      k: now[k] for k in ("compilation_cache", "keep", "log") if k in now
    }
    then |= {"eval": _with_costs(then.get("eval", {}), now.get("eval", {}))}
    changed = [
      f"{k}: {a!r} -> {b!r}" for k, a, b in field_differences(then, now)
    ]
    if changed and not _means_the_same(then, now):
      growth = find_growth(then, now)
      if growth is None:
        raise ConfigError(
          f"{workdir} was begun with another config ("
          f"{'; '.join(changed[:8])}): choose another --workdir (a run may get "
          "more arms, a sweep more cells, both more prompts of their evals, "
          "and nothing else)"
        )
      return growth
    return None
  shared_files.write_json(path, entry)
  return None


def _with_costs(then: Mapping, now: Mapping) -> dict[str, Any]:
  """Sets in the `eval` of a run what judging may cost now."""
  if not {"judge"} <= then.keys() & now.keys():
    return dict(then)
  costs = {k: v for k, v in now["judge"].items() if k in COSTS}
  return {**then, "judge": {**then["judge"], **costs}}


def _record_of_run(
  workdir: Path, entry: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
  """Reads config.json of a run that has begun; None if none has.

  A config that a check of its data refused has begun nothing.

  Args:
    workdir: the run directory.
    entry: what a damaged config.json gets, if that is what was there.
  """
  has_begun = any(
    shared_files.exists(workdir / name)
    for name in ("env.json", "organisms", "arms")
  )
  path = workdir / "config.json"
  return shared_files.read_json_or_same(path, entry) if has_begun else None


def _with_date(now: dict[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
  """Adds to a config that names no day the one on which a run began."""
  day = then.get("model", {}).get("template_date")
  if day is None or now.get("model", {}).get("template_date") is not None:
    return now
  return {**now, "model": {**now["model"], "template_date": day}}


def date_of_run(workdir: Path) -> str | None:
  """Returns the day that the chat template of a run prints; None if unknown.

  Args:
    workdir: the run directory, which need not exist.
  """
  record = _record_of_run(workdir) or {"config": {}}
  return record["config"].get("model", {}).get("template_date")


def with_template_date(
  config: ExperimentConfig, day: str | None
) -> ExperimentConfig:
  """Sets the day that the chat template prints, unless the config names one."""
  if day is None or config.model.template_date is not None:
    return config
  model = dataclasses.replace(config.model, template_date=day)
  return dataclasses.replace(config, model=model)


def keep_template_date(
  workdir: Path, plan: Plan, raw: Mapping[str, Any], overrides: Mapping
) -> None:
  """Writes the day that the chat template prints into config.json.

  So a run that goes on the next day trains and samples on the same text.

  Args:
    workdir: the run directory, which `keep_config` has accepted.
    plan: of the run.
    raw, overrides: see `keep_config`.
  """
  template = plan.runtime.chat.template
  if not template.prints_date or raw["model"].get("template_date"):
    return
  if date_of_run(workdir) is not None:
    return
  raw = {**raw, "model": {**raw["model"], "template_date": template.date}}
  record = shared_files.read_json_or_none(workdir / "config.json") or {}
  shared_files.write_json(
    workdir / "config.json",
    {**record, "config": raw, "overrides": dict(overrides)},
  )


def _means_the_same(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
  """Tells whether two configs mean the same to this version.

  A run that an earlier version began lacks fields. They mean the same if the
  new config has them at their defaults.
  """
  try:
    return from_dict(then) == from_dict(now)
  except ConfigError:
    return False


def keep_setting_files(workdir: Path, plan: Plan) -> None:
  """Writes setting_files.json, or checks the user's files against it.

  A setting that comes with bct_jax has no such file. A run has begun when it
  has an env.json.

  Raises:
    ConfigError: some differ; the message says which, and from where on.
  """
  path = workdir / "setting_files.json"
  if not plan.setting_files:
    return
  record = shared_files.read_json_or_same(path, dict(plan.setting_files))
  if record is None or not shared_files.exists(workdir / "env.json"):
    shared_files.write_json(path, dict(plan.setting_files))
    return
  changes = describe_changes(record, plan.setting_files)
  if changes:
    raise ConfigError(
      f"{workdir} was begun with other files of the setting ("
      f"{'; '.join(changes)}): choose another --workdir"
    )
