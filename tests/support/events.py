"""Reads what TensorBoard and Weights & Biases were given, from their files."""

import json
import struct
from pathlib import Path

import pytest


def tensorboard(folder: Path) -> list[tuple[str, int, float]]:
  """(tag, step, value) of every scalar, in the order of writing.

  Event files are TFRecords: length, its checksum, an Event, its checksum.
  """
  proto = pytest.importorskip("tensorboardX.proto.event_pb2")
  out = []
  for path in sorted(folder.glob("events.out.tfevents.*")):
    data, at = path.read_bytes(), 0
    while at < len(data):
      (size,) = struct.unpack_from("<Q", data, at)
      event = proto.Event.FromString(data[at + 12 : at + 12 + size])
      out += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
      at += 16 + size
    assert at == len(data)
  return out


def wandb(folder: Path) -> list[dict[str, float]]:
  """Every row of history that all offline runs below a folder hold.

  Their files are logs as LevelDB writes them: blocks of 32 KiB with parts of
  records, each after its checksum, length and kind.
  """
  proto = pytest.importorskip("wandb.proto.wandb_internal_pb2")
  out = []
  for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
      if 2**15 - at % 2**15 < 7:
        at += 2**15 - at % 2**15
        continue
      size, kind = struct.unpack_from("<HB", data, at + 4)
      record += data[at + 7 : at + 7 + size]
      at += 7 + size
      if kind in (1, 4):  # whole, or the last part
        told = proto.Record.FromString(record)
        if told.WhichOneof("record_type") == "history":
          out.append(
            {
              "/".join(x.nested_key) or x.key: json.loads(x.value_json)
              for x in told.history.item
            }
          )
        record = b""
  return out
