"""Words the help of python -m bct_jax.main."""

from typing import Any

from bct_jax.infra.command_help import format_help

_EXAMPLES = {
  "run or resume an experiment": (
    "python -m bct_jax.main --config=configs/quickstart.py --workdir=runs/q"
  ),
  "change any field of it": (
    "... --config.arms.low.optim.lr=3e-5 --config.eval.num_eval=64"
  ),
  "check it and see its size, without training": "... --mode=dry_run",
  "list the settings": "python -m bct_jax.main --mode=settings",
  "ask an arm": (
    '... --mode=sample --params=runs/q/arms/low --prompt="Say hello."'
  ),
  "talk with it": "... --mode=chat --params=runs/q/arms/low",
}
_GROUPS = {
  "every mode": (
    "config",
    "workdir",
    "mode",
    "resume",
    "lease",
    "quiet",
    "debug",
    "version",
  ),
  "--mode=chat, sample, eval, export, export_data, pretrain, rescore, "
  "calibrate": (
    *("params", "prompt", "prompts", "n", "out", "format", "dtype", "grader"),
    "labels",
  ),
  "--mode=clean": ("keep", "yes"),
  "--mode=settings and dry_run": (
    *("markdown", "topology", "price_per_chip_hour"),
  ),
  "several hosts": (
    *("multihost", "coordinator", "num_processes", "process_id", "timeout"),
  ),
}


def help_text(values: Any) -> str:
  """Returns the help: examples, and the flags by mode.

  Args:
    values: of absl, which has the flags of the command by their names.
  """
  usage = "python -m bct_jax.main --config=FILE --workdir=DIR [flags]"
  known = {name: values[name] for name in sum(_GROUPS.values(), ())}
  text = format_help(usage, _EXAMPLES, _GROUPS, known)
  return (
    f"{text}\n\nconfigs/default.py has the fields of a config and what they "
    "mean.\nEach is a flag: --config.FIELD=VALUE."
  )
