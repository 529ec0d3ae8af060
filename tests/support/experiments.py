"""Small experiments that tests of several rooms run or plan."""

import contextlib
import json

import pytest

from bct_jax.config import from_dict
from bct_jax.experiment.plan import make_plan
from bct_jax.runtime.runtime import Runtime
from configs import tiny


@contextlib.contextmanager
def shared_runtimes():
  """Has plans of one model, mesh and sampling share their compiled programs.

  Such plans share a runtime, which has the config of the newest. So only the
  newest may be run.
  """
  make, runtimes = Runtime.make, {}

  def shared(config, mesh=None, fetch=True):
    key = config.model, config.mesh, config.sampling, mesh
    if key not in runtimes:
      runtimes[key] = make(config, mesh, fetch)
    object.__setattr__(runtimes[key], "config", config)
    return runtimes[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Runtime, "make", shared)
    yield


def config(folder, arms, **changes):
  values = tiny.get_config().to_dict()
  values["model"]["path"] = str(folder)
  values["arms"] = arms
  values["eval"] |= {"num_eval": 2, "num_heldout": 2, "num_probe": 2}
  values["eval"] |= {"steps": (), "references": True}
  values["sampling"]["max_new_tokens"] = 4
  values["organism"]["train"]["steps"] = 1
  for path, value in changes.items():
    group, name = path.split("__")
    values[group][name] = value
  return from_dict(values)


def lines(path):
  return [json.loads(x) for x in path.read_text("utf-8").splitlines()]


def file_plan(folder, path, split="train", **train):
  values = tiny.get_config().to_dict()
  values["model"]["path"] = str(folder)
  values["arms"] = {"a": {}}
  values["train"] |= {"source": "file", "file": str(path)} | train
  values["train"]["file_split"] = split
  return make_plan(from_dict(values))
