"""Pretrains the small base model on the settings' world, with our own trainer.

The result is an ordinary model folder, `demo:small`. It is in the cache, with a
manifest of what made it. The same config finds it there again, and a run that
was killed goes on.
"""

import collections
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

from bct_jax.config import ArmConfig, ConfigError, ExperimentConfig
from bct_jax.data.batches import Dataset
from bct_jax.experiment.plan import Plan, make_plan
from bct_jax.experiment.rundir import lock_run
from bct_jax.experiment.training import train_run
from bct_jax.infra import files, processes, signals, whole_folder
from bct_jax.infra.progress import log_line, stage
from bct_jax.mesh import num_row_shards
from bct_jax.models import demo
from bct_jax.models.demo import small
from bct_jax.models.huggingface import export
from bct_jax.models.lora import Weights
from bct_jax.runtime.weights import load_weights
from bct_jax.settings.corpus import Chat, corpus

ARM = "pretrain"
# Chats behind those of training, to test on. Few of their prompts are new.
TESTED = 480


def run_pretrain(config: ExperimentConfig, out: Path | None) -> Path:
  """Makes the model folder, unless the same config has made it before.

  Args:
    config: its arm `pretrain` has the training. There `train.num_examples` is
      the number of chats, and `train.seed` that of corpus, weights and order.
    out: the folder; None is where `demo:small` is looked for.

  Returns:
    The folder.

  Raises:
    ConfigError: there is no such arm, it does not train all params, or another
      process makes the same folder.
    ModelSourceError: the folder cannot be written.
    signals.Preempted: a signal asked to stop; the state is saved.
  """
  arm = config.arms.get(ARM)
  if arm is None or arm.lora.rank:
    raise ConfigError(
      f"--mode=pretrain needs an arm {ARM!r} that trains all params, as "
      "configs/base_small.py has"
    )
  folder = demo.default_cache() / small.NAME if out is None else out
  chats = corpus(arm.train.num_examples + TESTED, arm.train.seed)
  key = {"model": small.NAME, **_recipe(config, arm, chats)}
  if processes.run_on_first("model folder", lambda: _made_by(folder) == key):
    log_line(f"{folder} was made by this config")
    return folder
  processes.run_on_first("model folder", lambda: export.check_target(folder))
  work = folder.parent / f".{folder.name}.{files.digest(key)[:16]}"
  train_chats, test_chats = chats[:-TESTED], chats[-TESTED:]
  with lock_run(work), signals.handle_signals():
    plan = _plan(config, arm, chats, work)
    with jax.set_mesh(plan.runtime.mesh):
      weights = train_run(
        plan,
        ARM,
        work,
        arm,
        _dataset(plan, arm, train_chats),
        lambda: load_weights(plan.runtime, None),
      )
      shares = _test(plan, weights, test_chats)
      written = export.export_hf(
        weights.params,
        plan.runtime.model.config,
        plan.runtime.folder,
        folder,
        about={"pretrained": key, "right": shares},
      )
  if processes.is_first():
    print(f"wrote {written}")
    print("answers that are exactly those of the corpus, by part:")
    for part, (right, count) in shares.items():
      print(f"  {part}: {right} of {count}")
  return folder


def _recipe(
  config: ExperimentConfig, arm: ArmConfig, chats: list[Chat]
) -> dict[str, Any]:
  """Collects what decides the weights, as it is read back from JSON."""
  facts = {
    "chats": files.digest([dataclasses.asdict(chat) for chat in chats]),
    "train": arm.train.facts(),
    "optim": arm.optim.facts(),
    "max_length": config.max_length,
    "dtype": config.model.dtype,
    "param_dtype": config.model.param_dtype,
  }
  return json.loads(json.dumps(facts))


def _made_by(folder: Path) -> Any:
  """Reads the recipe of an intact folder; returns None for any other."""
  try:
    manifest = json.loads((folder / whole_folder.MANIFEST).read_text("utf-8"))
    key = manifest["key"]
    if whole_folder.find_damage(folder, key) is None:
      return key["pretrained"]
  except (OSError, ValueError, KeyError, TypeError):
    pass
  return None


def _plan(
  config: ExperimentConfig, arm: ArmConfig, chats: list[Chat], work: Path
) -> Plan:
  """Plans a run over the untrained model, which is made first."""
  texts = [
    text
    for chat in chats
    for text in (*(m["content"] for m in chat.messages), chat.completion)
  ]
  start = processes.run_on_first(
    "untrained model",
    lambda: small.make_small(
      work / "untrained", texts, files.digest(texts), arm.train.seed
    ),
  )
  organism = dataclasses.replace(config.organism, kind="native")
  model = dataclasses.replace(config.model, path=str(start), architecture=None)
  return make_plan(
    dataclasses.replace(config, model=model, organism=organism, arms={})
  )


def _dataset(plan: Plan, arm: ArmConfig, chats: list[Chat]) -> Dataset:
  """Renders chats as the rows that the model is trained on."""
  render = plan.runtime.chat.example
  return Dataset.make(
    [f"{chat.part}/{i}" for i, chat in enumerate(chats)],
    [render(chat.messages, chat.completion) for chat in chats],
    arm.train.batch_size,
    arm.train.seed,
    plan.config.max_length,
    arm.train.steps,
    arm.train.pack,
    num_row_shards(plan.runtime.mesh) * arm.train.accum,
  )


def _test(
  plan: Plan, weights: Weights, chats: list[Chat]
) -> dict[str, tuple[int, int]]:
  """Counts greedy answers that are the corpus's to the letter.

  Returns:
    For each part of the corpus the number of such answers, and of chats.
  """
  runtime = plan.runtime
  with stage("test", len(chats), "rows") as bar:
    completions = runtime.sampler(
      runtime.decode_params(weights),
      [runtime.chat.prompt(chat.messages) for chat in chats],
      range(len(chats)),
      plan.config.sampling.seed,
      lambda index, completion: bar(1),
    )
  right: dict[str, list[bool]] = collections.defaultdict(list)
  for chat, completion in zip(chats, completions, strict=True):
    text = runtime.chat.decode(completion.tokens)
    right[chat.part].append(text == chat.completion)
  return {part: (sum(x), len(x)) for part, x in sorted(right.items())}
