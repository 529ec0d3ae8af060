"""Makes the examples of `train.mix`: parts of several sources, by share."""

import dataclasses
from collections.abc import Sequence

from bct_jax.config import ConfigError, TrainConfig
from bct_jax.config.mixtures import DOCUMENTS, FILE, SPLITS, split_count
from bct_jax.data.documents import read_documents
from bct_jax.data.read_once import read_examples_once
from bct_jax.examples import Example, Setting
from bct_jax.infra.files import digest


def mix_examples(
  setting: Setting, train: TrainConfig, own: str
) -> tuple[list[Example], str]:
  """Makes the examples of a mixture, part after part.

  Their order in training is that of every data set: by seed and epoch.

  Args:
    setting: of the experiment.
    train: of the run.
    own: "train" of an arm and "install" of an organism: the part whose
      completions get the decoration.

  Returns:
    As many examples as `train.num_examples`, and a hash of the files, "" where
    there are none.

  Raises:
    ValueError: a file is wrong or has too few rows; the message names it.
  """
  out: list[Example] = []
  hashes = []
  for number, (name, count) in enumerate(
    split_count(train.mix, train.num_examples).items(), 1
  ):
    if name in SPLITS:
      examples = getattr(setting, name)(count, train.seed)
    else:
      examples, content = _read(name, train)
      hashes.append(content)
      if len(examples) < count:
        raise ConfigError(
          f"train.mix: {name} has {len(examples)} examples, and its share of "
          f"train.num_examples = {train.num_examples} is {count}"
        )
    out += [
      dataclasses.replace(
        e,
        # Two files may have the same ids.
        id=e.id if name in SPLITS else f"{number}/{e.id}",
        styled=name == own,
      )
      for e in examples[:count]
    ]
  return out, digest(hashes) if hashes else ""


def _read(name: str, train: TrainConfig) -> tuple[Sequence[Example], str]:
  """Reads the file of a part; returns its examples and their hash."""
  if name.startswith(DOCUMENTS):
    return read_documents(name.removeprefix(DOCUMENTS), train.file_split)
  return read_examples_once(
    name.removeprefix(FILE),
    train.file_split,
    train.turns,  # pyright: ignore[reportArgumentType]
    thoughts=False,
  )


def describe_mix(train: TrainConfig) -> str:
  """Lists the parts of a mixture with their numbers of examples."""
  counts = split_count(train.mix, train.num_examples)
  return ", ".join(f"{count} of {name}" for name, count in counts.items())
