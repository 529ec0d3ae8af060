"""Command line: python -m bct_jax.main --config=FILE --workdir=DIR [...]."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from bct_jax.config import (
  ConfigError,
  ExperimentConfig,
  choose,
  from_dict,
)

MODES = ("experiment", "eval", "sample", "export", "dry_run")

# Exit codes.
DONE, BAD_INPUT, NUMERICAL, INTERRUPTED = 0, 2, 3, 130

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The experiment, a file in configs/.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Run directory, made or resumed."
)
_MODE = flags.DEFINE_string("mode", "experiment", f"One of {', '.join(MODES)}.")
_PARAMS = flags.DEFINE_string(
  "params",
  None,
  "For eval, sample and export: organisms/HASH or arms/NAME of a run, whose "
  "weights are used instead of the model's own.",
)
_PROMPT = flags.DEFINE_multi_string("prompt", [], "For sample: a user turn.")
_PROMPTS = flags.DEFINE_string("prompts", None, "For sample: a JSONL file.")
_NUM = flags.DEFINE_integer("n", 1, "For sample: samples of each prompt.")
_OUT = flags.DEFINE_string(
  "out", None, "For eval and sample: a JSONL file; for export: a folder."
)
_FORMAT = flags.DEFINE_string(
  "format",
  "merged",
  "For export: merged, a model folder with any adapter made part of the "
  "weights, or adapter, a folder for peft.",
)
_DTYPE = flags.DEFINE_string(
  "dtype",
  None,
  "For export: float32, bfloat16 or float16; default: as the weights are kept.",
)


def main(argv: list[str]) -> int:
  """Runs one command and returns its exit code; see the README."""
  # Config files import each other as configs.NAME, wherever this is run from.
  sys.path.append(str(Path(__file__).resolve().parent.parent))
  try:
    left = flags.FLAGS(argv)[1:]
    if left:
      raise ConfigError(f"arguments that are not flags: {left}")
    choose(_MODE.value, MODES, "--mode")
    if _CONFIG.value is None:
      raise ConfigError("--config is needed, e.g. configs/quickstart.py")
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    if not Path(file.split(":")[0]).is_file():
      raise ConfigError(f"--config={file}: there is no such file")
    if not isinstance(_CONFIG.value, ConfigDict):
      raise ConfigError(f"--config={file}: get_config must give a ConfigDict")
    raw = _CONFIG.value.to_dict()
    config = from_dict(raw)
  except flags.Error as e:
    return _fail(str(e))
  except (
    AttributeError,
    ImportError,
    KeyError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
  ) as e:
    # ml_collections reports unknown fields and wrong types by any of these,
    # and a config file is a program of its own.
    return _fail(str(e.args[0] if len(e.args) == 1 else e))
  return _run(config, raw)


def _run(config: ExperimentConfig, raw: Mapping[str, Any]) -> int:
  # It would tell that torch is absent, which is how it is meant.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  # JAX starts here, after the configuration was found to be good.
  from bct_jax import commands, dryrun
  from bct_jax.gate import GateError
  from bct_jax.train import NumericalError

  params, out = _path(_PARAMS.value), _path(_OUT.value)
  try:
    if _MODE.value == "experiment":
      overrides = config_flags.get_override_values(flags.FLAGS["config"])
      commands.run_experiment(config, raw, overrides, _path(_WORKDIR.value))
    elif _MODE.value == "eval":
      commands.run_eval(config, params, out)
    elif _MODE.value == "sample":
      commands.run_sample(
        config, params, _PROMPT.value, _path(_PROMPTS.value), out, _NUM.value
      )
    elif _MODE.value == "export":
      commands.run_export(config, params, out, _DTYPE.value, _FORMAT.value)
    else:
      dryrun.run_dry_run(config)
  except (ValueError, GateError) as e:
    return _fail(str(e))
  except NumericalError as e:
    return _fail(str(e), NUMERICAL)
  except KeyboardInterrupt:
    return _fail("interrupted; the same command goes on from here", INTERRUPTED)
  return DONE


def _path(value: str | None) -> Path | None:
  return None if value is None else Path(value)


def _fail(message: str, code: int = BAD_INPUT) -> int:
  print(f"error: {message.strip()}", file=sys.stderr)
  return code


if __name__ == "__main__":
  sys.exit(main(sys.argv))
