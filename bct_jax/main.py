"""Runs commands: python -m bct_jax.main --config=FILE --workdir=DIR [...]."""

import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from bct_jax import __version__
from bct_jax.config import ConfigError, ExperimentConfig, choose, from_dict
from bct_jax.config.config_files import config_values, find_in_flags
from bct_jax.config.overrides import set_fields, take_fields
from bct_jax.infra import memory, progress, remote_runs
from bct_jax.infra.exit_codes import (
  BAD_CONFIG,
  DONE,
  MACHINE,
  explain,
  fail,
  take_debug,
)
from bct_jax.infra.object_store import is_url
from bct_jax.modes.command_help import help_text

MODES = (
  *("experiment", "eval", "sample", "export", "export_data", "dry_run"),
  *("chat", "pretrain", "chat_check", "check_setting"),
)
# These take no --config.
ALONE = ("settings", "rescore", "calibrate", "clean")

# Options, and what an arm leaves out, can be set though the file does not name
# them; what is no field at all is an error of `from_dict`.
_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "The experiment, a file in configs/.",
  lock_config=False,
  accept_new_attributes=True,
)
_VERSION = flags.DEFINE_bool("version", False, "Print the version.")
_QUIET = flags.DEFINE_bool("quiet", False, "Print results and errors alone.")
flags.DEFINE_bool("debug", False, "Print the traceback of an error.")
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Run directory, made or resumed; or s3://BUCKET/RUN."
)
_MODE = flags.DEFINE_string(
  "mode", "experiment", f"One of {', '.join(MODES + ALONE)}."
)
_LEASE = flags.DEFINE_float(
  "lease",
  remote_runs.LEASE,
  "On an object store: seconds without a sign of life after which a run on "
  "another machine is gone, and for which the store may be out of reach.",
  1.0,
)
_PARAMS = flags.DEFINE_multi_string(
  "params",
  [],
  "For chat, eval, sample and export: organisms/HASH or arms/NAME of a run, or "
  "a folder with an adapter of peft, whose weights are used instead of the "
  "model's own. For chat and sample, several times.",
)
_PROMPT = flags.DEFINE_multi_string("prompt", [], "For sample: a user turn.")
_PROMPTS = flags.DEFINE_string("prompts", None, "For sample: a JSONL file.")
_NUM = flags.DEFINE_integer(
  "n",
  None,
  "For sample: samples of each prompt, 1 by default; for calibrate: how many "
  "answers to label, 50 to 200 (100).",
)
_OUT = flags.DEFINE_string(
  "out",
  None,
  "For eval, sample and rescore: a JSONL file; for export, export_data and "
  "pretrain: a folder.",
)
_MARKDOWN = flags.DEFINE_bool(
  "markdown", False, "For settings: as the table of the README."
)
_KEEP = flags.DEFINE_string(
  "keep",
  "weights",
  "For clean: weights removes what only training needed, results the weights "
  "too.",
)
_YES = flags.DEFINE_bool("yes", False, "For clean: remove what is listed.")
_GRADER = flags.DEFINE_string(
  "grader",
  None,
  "For rescore: JSON of another grader, for the setting `file`.",
)
_LABELS = flags.DEFINE_string(
  "labels",
  None,
  "For calibrate: the CSV that it wrote, with labels given by hand.",
)
_FORMAT = flags.DEFINE_string(
  "format",
  None,
  "For export: merged (the default), a model folder with any adapter made part "
  "of the weights, or adapter, a folder for peft. For export_data: tfds (the "
  "default) or jsonl.",
)
_DTYPE = flags.DEFINE_string(
  "dtype",
  None,
  "For export: float32, bfloat16 or float16; default: as the weights are kept.",
)
_RESUME = flags.DEFINE_string(
  "resume",
  "latest",
  "latest: a damaged checkpoint is an error. latest_good: it is renamed, and "
  "training goes on from the one before, or begins anew.",
)
_TOPOLOGY = flags.DEFINE_string(
  "topology",
  None,
  "For dry_run: a TPU slice such as v5e:4x4 or v5p:2x2x2, or GPUs such as "
  "h100:8 or h100:2x8 (hosts x GPUs), for which the programs are compiled; "
  "needs the extra `topology` or `topology-gpu`, and no device.",
)
_PRICE = flags.DEFINE_string(
  "price_per_chip_hour",
  None,
  "For dry_run: of the config's chip, as 1.2, or of several that are compared, "
  "as v5e=1.2,h100=2.5.",
)
_MULTIHOST = flags.DEFINE_bool(
  "multihost",
  False,
  "Join the other processes of a pod or cluster, which run the same command.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "With --multihost: HOST:PORT of process 0. Default: BCT_JAX_COORDINATOR, "
  "else what JAX detects (Cloud TPU, GKE TPU, Slurm, Open MPI).",
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes",
  None,
  "With --multihost: how many must come. Default: BCT_JAX_NUM_PROCESSES.",
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id",
  None,
  "With --multihost: of this process, from 0. Default: BCT_JAX_PROCESS_ID.",
)
_TIMEOUT = flags.DEFINE_integer(
  "timeout",
  600,
  "With --multihost: seconds that processes wait for each other.",
  lower_bound=1,
)


_OF_ONE_MODE = (
  *((_MARKDOWN, "settings"), (_GRADER, "rescore"), (_LABELS, "calibrate")),
  *((_TOPOLOGY, "dry_run"), (_PRICE, "dry_run"), (_RESUME, "experiment")),
)


def main(argv: list[str]) -> int:
  """Runs one command and returns its exit code; see the README."""
  try:
    if {"-h", "--help"} & {*argv[1:]}:
      print(help_text(flags.FLAGS))
      return DONE
    words, fields = take_fields(take_debug(argv))
    sys.argv = find_in_flags(words, "config")  # where ml_collections looks
    rest = flags.FLAGS(sys.argv)[1:]
    if _VERSION.value:
      print(f"bct_jax {__version__}")
      return DONE
    if rest:
      raise ConfigError(f"arguments that are not flags: {rest}")
    choose(_MODE.value, MODES + ALONE, "--mode")
    choose(_RESUME.value, ("latest", "latest_good"), "--resume")
    if len(_PARAMS.value) > 1 and _MODE.value not in ("chat", "sample"):
      raise ConfigError("--params: several only with --mode=chat or sample")
    for flag, mode in _OF_ONE_MODE:
      if flag.value != flag.default and _MODE.value != mode:
        raise ConfigError(f"--{flag.name}: only with --mode={mode}")
    if _MODE.value in ALONE:
      if _CONFIG.value is not None:
        raise ConfigError(f"--config: --mode={_MODE.value} takes none")
      return _run_alone()
    if _TOPOLOGY.value is not None:
      # libtpu would look for chips here, at some length.
      os.environ["JAX_PLATFORMS"] = "cpu"
    if _CONFIG.value is None:
      raise ConfigError("--config is needed, e.g. configs/quickstart.py")
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    if not Path(file.split(":")[0]).is_file():
      raise ConfigError(f"--config={file}: there is no such file")
    if not isinstance(_CONFIG.value, ConfigDict):
      raise ConfigError(f"--config={file}: get_config must give a ConfigDict")
    raw = config_values(_CONFIG.value)
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    overrides = {**overrides, **set_fields(raw, fields)}
    config = from_dict(raw)
    where = _processes()
  except flags.Error as e:
    return fail(str(e))
  except (*BAD_CONFIG, OSError) as e:
    return fail(explain(e, argv))
  if _QUIET.value:
    progress.silence()
  try:
    code = _run(config, raw, overrides, where)
  except Exception:
    if where is None:
      raise
    traceback.print_exc()
    code = 1  # the others must not wait for this process
  from bct_jax.infra import processes

  processes.leave(code)
  return code


def _run_alone() -> int:
  """Runs a mode that needs neither config nor devices; JAX does not start."""
  if _MODE.value == "settings":
    from bct_jax import settings
    from bct_jax.modes import list_settings

    text = (
      settings.table() if _MARKDOWN.value else list_settings.list_settings()
    )
    print(text, end="")
    return DONE
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  from bct_jax.modes import calibrate, clean, rescore

  try:
    with remote_runs.open_run(_place(_WORKDIR), _LEASE.value) as workdir:
      if _MODE.value == "clean":
        clean.run_clean(workdir, _KEEP.value, _YES.value)
      elif _MODE.value == "calibrate":
        calibrate.run_calibrate(workdir, _path(_LABELS), _NUM.value)
      else:
        rescore.run_rescore(workdir, _path(_OUT), _GRADER.value)
  except ValueError as e:
    return fail(str(e))
  except OSError as e:
    return fail(str(e), MACHINE)
  return DONE


def _processes() -> dict[str, Any] | None:
  """Returns arguments of processes.join, or None for a run of one process."""
  values = {
    "coordinator": _COORDINATOR.value,
    "num_processes": _NUM_PROCESSES.value,
    "process_id": _PROCESS_ID.value,
  }
  if not _MULTIHOST.value:
    flag_names = [f"--{k}" for k, v in values.items() if v is not None]
    if flag_names:
      raise ConfigError(f"{', '.join(flag_names)}: only with --multihost")
    return None
  for name, value in values.items():
    text = os.environ.get(f"BCT_JAX_{name.upper()}")
    if value is None and text:
      try:
        values[name] = text if name == "coordinator" else int(text)
      except ValueError:
        raise ConfigError(
          f"BCT_JAX_{name.upper()}={text!r}: a number is needed"
        ) from None
  return {**values, "timeout": _TIMEOUT.value}


def _run(
  config: ExperimentConfig,
  raw: Mapping[str, Any],
  overrides: Mapping[str, Any],
  where: Mapping[str, Any] | None,
) -> int:
  """Runs a mode that has a config; returns the exit code.

  Args:
    config: of the experiment.
    raw: the same as nested mappings.
    overrides: fields that flags set, with their values.
    where: arguments of processes.join, if there are several processes.
  """
  # transformers would warn that torch is absent, which it is on purpose.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  # JAX starts here, after the configuration was found to be good.
  from bct_jax.modes.ending import code_of

  return code_of(lambda: _dispatch(config, raw, overrides, where))


def _dispatch(
  config: ExperimentConfig,
  raw: Mapping[str, Any],
  overrides: Mapping[str, Any],
  where: Mapping[str, Any] | None,
) -> None:
  """Calls the mode; see `_run`."""
  from bct_jax.experiment import rundir
  from bct_jax.infra import processes
  from bct_jax.modes import (
    chat,
    chat_check,
    check_setting,
    dry_run,
    evaluate,
    experiment,
    export,
    pretrain,
    sample,
  )
  from bct_jax.runtime.programs import set_compilation_cache

  folders = [remote_runs.local_copy(p) for p in _PARAMS.value]
  params = folders[0] if folders else None
  out, workdir = _path(_OUT), _place(_WORKDIR)
  if _MODE.value in ("eval", "sample") and out is not None and out.exists():
    raise ConfigError(f"--out={out}: is there already; name a new file")
  prompts, num = _path(_PROMPTS), 1 if _NUM.value is None else _NUM.value
  if where is not None:
    processes.join(**where)
    if not processes.is_first():
      progress.silence()
    rundir.agree_on_code(raw, _MODE.value)
  set_compilation_cache(config.compilation_cache)
  if params is not None:
    day = rundir.date_of_run(params.parent.parent)
    config = rundir.with_template_date(config, day)
  fall_back = _RESUME.value == "latest_good"
  modes = {
    "experiment": lambda: experiment.run_experiment(
      config, raw, overrides, workdir, fall_back, _LEASE.value
    ),
    "eval": lambda: evaluate.run_eval(config, params, out),
    "sample": lambda: sample.run_sample(
      config, folders, _PROMPT.value, prompts, out, num
    ),
    "chat": lambda: chat.run_chat(config, folders),
    "export": lambda: export.run_export(
      config, params, out, _DTYPE.value, _FORMAT.value
    ),
    "export_data": lambda: export.run_export_data(config, out, _FORMAT.value),
    "chat_check": lambda: chat_check.run_chat_check(config),
    "check_setting": lambda: check_setting.run_check_setting(config),
    "pretrain": lambda: pretrain.run_pretrain(config, out),
    "dry_run": lambda: dry_run.run_dry_run(
      config, _TOPOLOGY.value, _PRICE.value
    ),
  }
  modes[_MODE.value]()


def _path(flag: flags.FlagHolder[str | None]) -> Path | None:
  """Returns the path of a flag that may be unset; ~ is the user's home.

  Raises:
    ConfigError: it is empty, which would be the current directory.
  """
  if flag.value is None:
    return None
  if not flag.value.strip():
    raise ConfigError(f"--{flag.name}: a path is needed, found none")
  if is_url(flag.value):
    raise ConfigError(f"--{flag.name}={flag.value}: a local path is needed")
  return Path(flag.value).expanduser()


def _place(flag: flags.FlagHolder[str | None]) -> str | Path | None:
  """Returns the path or the URL of a flag that may be unset."""
  return flag.value if is_url(flag.value or "") else _path(flag)


if __name__ == "__main__":
  memory.keep_pages()
  sys.exit(main(sys.argv))
