"""Downloads models by their id, "org/name" or "org/name@revision".

huggingface_hub keeps them in its own cache and obeys HF_ENDPOINT, HF_TOKEN,
HF_HUB_CACHE and HF_HUB_OFFLINE.
"""

import re
from pathlib import Path

from bct_jax.infra import whole_folder

# Left out is what other loaders need: a second copy of the weights, or pickles.
_ALLOW = ["*.json", "*.safetensors", "*.jinja", "*.model"]
_IGNORE = ["*/*", "consolidated*"]
_OR_DEMO = ", or use a demo model (demo:smollm2, demo:tiny)"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_id(text: str) -> bool:
  """Returns whether a text has the form of an id."""
  return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", text))


def download(text: str, fetch: bool = True) -> Path:
  """Returns the snapshot of an id in the cache; downloads it if needed.

  Without a revision the newest is taken. Its commit is printed.

  Args:
    text: the id.
    fetch: False takes only what was downloaded before.

  Raises:
    ModelSourceError: there is no network or no such model or revision, or
      offline mode is on and the cache lacks the model.
  """
  import huggingface_hub  # Slow to import; most runs need no hub.
  from huggingface_hub import constants

  name, _, revision = text.partition("@")
  if fetch:
    whole_folder.say(f"looking for {text} on the hub")
  try:
    folder = Path(
      huggingface_hub.snapshot_download(
        name,
        revision=revision or None,
        allow_patterns=_ALLOW,
        ignore_patterns=_IGNORE,
        local_files_only=not fetch,
      )
    )
  except Exception as error:  # Of several libraries, without a common base.
    if not fetch:
      raise whole_folder.ModelSourceError(
        f"model {text!r} is not on this machine"
      ) from None
    if constants.HF_HUB_OFFLINE:
      raise whole_folder.ModelSourceError(
        f"model {text!r}: no such folder here, offline mode is on "
        f"(HF_HUB_OFFLINE) and the cache {constants.HF_HUB_CACHE} has "
        f"{_cached(Path(constants.HF_HUB_CACHE), name)}. Unset HF_HUB_OFFLINE, "
        f"or name what is there{_OR_DEMO}"
      ) from error
    reason = str(error).strip().splitlines() or [type(error).__name__]
    raise whole_folder.ModelSourceError(
      f"model {text!r}: no such folder here, and the hub gave nothing "
      f"({reason[0]}). Check the name, the network, HF_ENDPOINT and HF_TOKEN"
      f"{_OR_DEMO}"
    ) from error
  if sha := commit(folder):
    whole_folder.say(f"{text} is {name}@{sha}")
  return folder


def commit(folder: Path) -> str | None:
  """Returns the commit of a snapshot in a hub's cache; None elsewhere."""
  at = folder.absolute()
  is_snapshot = at.parent.name == "snapshots" and _COMMIT.fullmatch(at.name)
  return at.name if is_snapshot else None


def _cached(cache: Path, name: str) -> str:
  """Says, for an error, what a cache has of a model."""
  model = cache / f"models--{name.replace('/', '--')}"
  refs = sorted(p.name for p in (model / "refs").glob("*"))
  commits = sorted(p.name for p in (model / "snapshots").glob("*"))
  revisions = [*refs, *commits][:6]
  if not revisions:
    return f"no {name}"
  return f"of {name} only {', '.join(revisions)}"
