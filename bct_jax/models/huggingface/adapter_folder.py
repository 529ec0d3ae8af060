"""Finds folders with adapters of `peft`, copies and describes them."""

import dataclasses
import functools
import hashlib
import os
from pathlib import Path

from bct_jax.infra import files, processes, whole_folder
from bct_jax.infra.whole_folder import ModelSourceError
from bct_jax.models.huggingface import hub
from bct_jax.models.huggingface.files import INDEX, WEIGHTS
from bct_jax.models.huggingface.peft_config import CONFIG
from bct_jax.models.huggingface.safetensors_file import StoredTensor
from bct_jax.models.lora import LayeredLora

TENSORS = "adapter_model.safetensors"
# A layer here, its block, "A" or "B", its expert -> the tensor of an adapter.
# Fused ones (see expert_adapters.py) have the parameter's name, and no expert.
Tensors = dict[tuple[str, int, str, int | None], StoredTensor]


@dataclasses.dataclass(frozen=True)
class StoredAdapter:
  """Describes an adapter in a folder, before its tensors are read.

  Attributes:
    folder: of its files.
    lora: which layers it changes, and how.
    tensors: of the layers.
    base: the model that it was trained over, as its config names it; None if
      it names none.
    revision: of that model, if the config names one.
  """

  folder: Path
  lora: LayeredLora
  tensors: Tensors
  base: str | None
  revision: str | None

  @functools.cached_property
  def hash(self) -> str:
    """Returns a content hash of the adapter's two files."""
    return hash_files(self.folder)


def hash_files(folder: Path) -> str:
  """Returns a content hash of the two files of an adapter."""
  hashes = [whole_folder.sha256(folder / name) for name in (CONFIG, TENSORS)]
  return hashlib.sha256("".join(hashes).encode()).hexdigest()


def is_adapter(folder: Path) -> bool:
  """Tells whether a folder holds an adapter, and no whole model."""
  whole = any((folder / name).is_file() for name in (WEIGHTS, INDEX))
  return (folder / CONFIG).is_file() and not whole


def find_adapter(path: str | Path, fetch: bool = True) -> Path:
  """Turns the name of an adapter into a folder on this machine.

  Args:
    path: a folder, or a hub id, see hub.py.
    fetch: False takes from a hub only what was downloaded before.

  Raises:
    ModelSourceError: there is no such adapter; says what is missing.
  """
  text = os.fspath(path)
  folder = Path(text).expanduser()
  if not folder.is_dir():
    if folder.exists() or not hub.is_id(text):
      raise ModelSourceError(
        f"adapter {text!r}: neither a folder nor a hub id (org/name@revision)"
      )
    folder = hub.download(text, fetch)
  for name in (CONFIG, TENSORS):
    if not (folder / name).is_file():
      pickled = (folder / "adapter_model.bin").is_file()
      raise ModelSourceError(
        f"adapter {text!r}: {folder} has no {name}"
        + (
          "; adapter_model.bin is pickled, which can run any code when it is "
          "opened, and is not read: save it again with a newer peft"
          if pickled and name == TENSORS
          else ""
        )
      )
  return folder


def keep_adapter(adapter: StoredAdapter, folder: Path) -> None:
  """Copies the files of an adapter, unless they are there unharmed."""

  def copy() -> None:
    there = all((folder / name).is_file() for name in (TENSORS, CONFIG))
    if there and hash_files(folder) == adapter.hash:
      return
    for name in (TENSORS, CONFIG):
      files.write_bytes(folder / name, (adapter.folder / name).read_bytes())

  processes.run_on_first("copy of the adapter", copy)


def describe_base(adapter: StoredAdapter, path: str, folder: Path) -> str:
  """Says how the model that an adapter is over differs from the one in use.

  Args:
    adapter: from `read_adapter`.
    path: of the model in use, as the config names it.
    folder: of the model in use.

  Returns:
    A line for the log; "" if both are the same, as far as names tell.
  """
  base, (name, _, revision) = adapter.base, path.partition("@")
  where = adapter.folder / CONFIG
  if base is None:
    return (
      f"{where}: base_model_name_or_path is missing; it is used over {path}"
    )
  same = base in (path, name)
  if not same and Path(base).expanduser().is_dir():
    same = Path(base).expanduser().resolve() == folder.resolve()
  if not same:
    return (
      f"{where}: base_model_name_or_path = {base!r}, and the model in use is "
      f"{path}: the shapes fit, but are the weights the same?"
    )
  used = {x for x in (revision, hub.commit(folder)) if x}
  if adapter.revision and used and adapter.revision not in used:
    return (
      f"{where}: revision = {adapter.revision!r}, and the model in use is "
      f"{base}@{'@'.join(sorted(used))}: are the weights the same?"
    )
  return ""
