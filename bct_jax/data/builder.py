"""Writes examples as a TFDS data set, without TensorFlow.

A run that reads the data set trains on the very same examples, whatever became
of the code that made them.
"""

import contextlib
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from bct_jax.data.source import content_hash
from bct_jax.examples import Example
from bct_jax.infra import files

# The version of the columns. The folder above has the content's hash as name.
_VERSION = "1.0.0"


def write(
  out: Path,
  name: str,
  splits: Mapping[str, Sequence[Example]],
  about: Mapping[str, Any],
) -> Path:
  """Writes examples as array_records, in order.

  The columns are `id`, `messages`, `weight`, the references `initial` and
  `alternate`, and `fields` as JSON. `messages` is the prompt followed by the
  completion, if there is one, as the assistant's message; messages have a
  column `reasoning_content` if any has a thought. metadata.json holds `about`
  and the hash of each split's content, which `source.read_examples` checks.

  Args:
    out: the folder of data sets, TFDS's `data_dir`.
    name: of the data set: lower case, digits and "_".
    splits: name -> examples.
    about: what made the examples; JSON values.

  Returns:
    The folder OUT/NAME/HASH/VERSION. If it exists, it is left as it is.

  Raises:
    ValueError: an example has a weight that cannot be kept.
  """
  hashes = {split: content_hash(rows) for split, rows in splits.items()}
  facts = {
    split: [
      [e.id, e.initial, e.alternate, dict(e.fields), hashes[split]]
      for e in rows
    ]
    for split, rows in splits.items()
  }
  config = files.digest(facts)[:16]
  metadata = {**about, "content_hash": hashes}
  builder_class = _builder_class(name, config, splits, metadata)
  builder = builder_class(data_dir=str(out), file_format="array_record")
  # TFDS tells its progress, which is over before it is read.
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare()
  return Path(builder.data_dir)


def write_jsonl(out: Path, splits: Mapping[str, Sequence[Example]]) -> Path:
  """Writes examples as OUT/SPLIT.jsonl, with the columns of `write`.

  Returns:
    `out`.

  Raises:
    ValueError: a file is there already.
  """
  for split, rows in splits.items():
    path = out / f"{split}.jsonl"
    if path.exists():
      raise ValueError(f"{path}: is there already; name a new folder")
    files.write_lines(path, [_columns(example) for example in rows])
  return out


def _builder_class(
  dataset: str,
  config: str,
  splits: Mapping[str, Sequence[Example]],
  metadata: Mapping[str, Any],
) -> type[tfds.core.GeneratorBasedBuilder]:
  """Makes the class that builds a data set: TFDS wants one for each."""
  text = tfds.features.Text()
  message = {"role": text, "content": text}
  if any("reasoning_content" in m for m in _all_messages(splits)):
    message["reasoning_content"] = text

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Holds examples of a setting of bct_jax."""

    name = dataset
    VERSION = tfds.core.Version(_VERSION)
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)]

    def _info(self) -> tfds.core.DatasetInfo:
      columns = {
        **dict.fromkeys(("id", "initial", "alternate", "fields"), text),
        "messages": tfds.features.Sequence(message),
        "weight": tfds.features.Scalar(np.float32),
      }
      return tfds.core.DatasetInfo(
        builder=self,
        description=f"Examples of the setting {dataset} of bct_jax.",
        features=tfds.features.FeaturesDict(columns),
        metadata=tfds.core.MetadataDict(metadata),
        disable_shuffling=True,  # the order is part of the content
      )

    def _split_generators(self, dl_manager):
      del dl_manager
      return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Any]]:
      empty = dict.fromkeys(message, "")
      for number, example in enumerate(splits[split]):
        row = _row(example)
        row["messages"] = [{**empty, **m} for m in row["messages"]]
        yield number, row

  return Builder


def _all_messages(
  splits: Mapping[str, Sequence[Example]],
) -> Iterator[dict[str, Any]]:
  """Yields the messages of all rows."""
  for example in itertools.chain(*splits.values()):
    yield from _row(example)["messages"]


def _row(example: Example) -> dict[str, Any]:
  """Returns the columns of one example; see `write`."""
  if float(np.float32(example.weight)) != example.weight:
    raise ValueError(
      f"example {example.id}: its weight {example.weight!r} is no float32, as "
      "TFDS keeps numbers"
    )
  fields = json.dumps(dict(example.fields), sort_keys=True)
  return {**_columns(example), "fields": fields}


def _columns(example: Example) -> dict[str, Any]:
  """Returns the columns of one example, for JSON."""
  answer = {"role": "assistant", "content": example.completion}
  if example.thought:
    answer["reasoning_content"] = example.thought
  return {
    "id": example.id,
    "messages": [
      *map(dict, example.messages),
      *([answer] if example.completion else []),
    ],
    "weight": example.weight,
    "initial": example.initial,
    "alternate": example.alternate,
    "fields": dict(example.fields),
  }
