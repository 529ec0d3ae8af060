"""Reads a tokenizer from a folder that anybody may have made."""

from pathlib import Path
from typing import Any

from bct_jax.infra.files import read_object

# All that transformers looks for beside the weights, if it is there.
_OBJECTS = (
  *("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"),
  *("added_tokens.json", "generation_config.json"),
)


def read_tokenizer(folder: Path) -> Any:
  """Reads a tokenizer of transformers; code of the folder is never run.

  Raises:
    ValueError: a file is no regular one, or no tokenizer can be made of them;
      names file and field as far as transformers does.
  """
  # Slow to import, more so where torch is installed.
  from transformers import AutoTokenizer

  for path in sorted(folder.glob("*")):
    # Opening a pipe or a device would wait for ever.
    if path.exists() and not (path.is_file() or path.is_dir()):
      raise ValueError(f"{path}: not a regular file")
  read = {
    name: read_object(folder / name)
    for name in _OBJECTS
    if (folder / name).exists()
  }
  _check_fields(folder, read.get("tokenizer_config.json", {}))
  try:
    # Unless told, transformers asks at the terminal whether to run code that
    # the folder brings.
    out = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    _ = out.all_special_ids  # Without end where a token has no text.
    return out
  except (KeyboardInterrupt, SystemExit, MemoryError):
    raise
  except BaseException as e:  # also panics of Rust, which are no Exception
    reason = " ".join(str(e).split())
    if "trust_remote_code" in reason:
      reason = (
        "tokenizer_config.json asks to run code of the folder (auto_map), "
        "which is never run; use a tokenizer that transformers knows"
      )
    elif type(e) not in (OSError, ValueError):
      reason = (
        "tokenizer.json or tokenizer_config.json has a value of a wrong type "
        f"or form: {type(e).__name__}: {reason[:300]}"
      )
    raise ValueError(f"{folder}: no readable tokenizer: {reason}") from None


def _check_fields(folder: Path, config: dict[str, Any]) -> None:
  """Checks the types of fields whose errors would not name them.

  Raises:
    ValueError: one is wrong; names the file and the field.
  """

  def refuse(field: str, right: str) -> None:
    raise ValueError(
      f"{folder / 'tokenizer_config.json'}: {field} = {config[field]!r:.60}: "
      f"{right} is needed"
    )

  for field, value in config.items():
    if value is None:
      continue
    if field.endswith("_token") and not field.startswith(("add_", "use_")):
      text = value.get("content") if isinstance(value, dict) else value
      if not isinstance(text, str | bool):
        refuse(field, "a token's text")
    elif field == "chat_template":
      named = isinstance(value, list) and all(
        isinstance(x, dict)
        and isinstance(x.get("name"), str)
        and isinstance(x.get("template"), str)
        for x in value
      )
      if not isinstance(value, str) and not named:
        refuse(field, "a text, or a list of names and templates")
    elif field == "model_max_length":
      if type(value) not in (int, float):
        refuse(field, "a number")
    elif field == "tokenizer_class" and not isinstance(value, str):
      refuse(field, "a name")
