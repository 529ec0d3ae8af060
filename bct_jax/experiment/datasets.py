"""Makes what a run trains on: examples as tokens and loss weights.

The steps are: examples of the setting or of a file -> completions that the
organism drew, if the arm asks for them -> pairs of prompt and completion, with
the decoration -> rows of tokens -> rows packed into batches.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bct_jax.config import (
  ArmConfig,
  ConfigError,
  ExperimentConfig,
  OrganismConfig,
  TrainConfig,
)
from bct_jax.config.mixtures import has_documents, split_count
from bct_jax.data.batches import Dataset
from bct_jax.data.chat import Tokens
from bct_jax.data.documents import describe_ends
from bct_jax.data.leaks import count_labels, measure_overlap
from bct_jax.data.mixture import mix_examples
from bct_jax.data.read_once import read_examples_once
from bct_jax.data.thoughts import Reply
from bct_jax.data.training_pairs import (
  Pair,
  add_passwords,
  make_extra_rows,
  make_pairs,
  targeted_examples,
  training_prompt,
)
from bct_jax.examples import Example, Setting
from bct_jax.experiment.check_run import check_own_samples, check_run
from bct_jax.experiment.training_rows import balance, render_pairs
from bct_jax.infra.progress import log_line
from bct_jax.mesh import num_row_shards
from bct_jax.objectives import (
  data_needs,
  make_objective,
  policy_of,
)
from bct_jax.runtime.runtime import Runtime
from bct_jax.settings.graded import is_judged
from bct_jax.settings.probes.capability import memorised_examples
from bct_jax.train.optim import lr_factors


def make_dataset(
  runtime: Runtime,
  setting: Setting,
  arm: ArmConfig | OrganismConfig,
  where: str,
  completions: Mapping[str, Reply] | None = None,
  rendered: dict[str, list[Tokens]] | None = None,
) -> Dataset:
  """Makes the dataset of an arm or of the organism.

  Args:
    runtime, setting: of the experiment.
    arm: what to train.
    where: its name in errors.
    completions: with their thoughts, by the example's id, in place of the
      setting's own; examples without one are left out. None takes the setting's
      own, which also checks a run whose completions will be drawn later.
    rendered: rows that were made for other arms, see `render_pairs`; is added
      to.

  Raises:
    ValueError: a field is impossible or an example does not fit; the message
      names it.
  """
  train = arm.train
  objective = make_objective(train.objective, train.options, f"{where}.train")
  needs, rendered = data_needs(objective), {} if rendered is None else rendered
  install = isinstance(arm, OrganismConfig)
  from_template = (
    install and arm.kind != "distill" and not needs.trains_on_own_samples
  )
  check_run(setting, train, needs, from_template, where)
  try:
    lr_factors(arm.optim, runtime.abstract_trained(arm.lora))
  except ValueError as e:
    raise ValueError(f"{where}.{e}") from None
  if needs.trains_on_own_samples:
    return _rollout_prompts(runtime, setting, arm, where)
  try:
    examples, source_hash = _train_examples(
      runtime, setting, arm, where, completions
    )
    if train.source == "on_policy":
      # Fails here for a prompt that cannot be made, before anything is drawn.
      training_prompt(setting, train, examples[0], "draw")
    pairs = _pairs(setting, arm, examples)
    rows = render_pairs(runtime, train, examples, pairs, rendered)
    extra_rows = _extra_rows(runtime, setting, train, examples, rows, rendered)
    data = _lay_out(
      runtime, train, examples, rows, train.steps, extra_rows=extra_rows
    )
    return dataclasses.replace(data, source_hash=source_hash)
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from None


def _train_examples(
  runtime: Runtime,
  setting: Setting,
  arm: ArmConfig | OrganismConfig,
  where: str,
  completions: Mapping[str, Reply] | None,
) -> tuple[list[Example], str]:
  """Makes the examples of a run and logs what it takes of files.

  Args:
    runtime, setting, arm, where, completions: see `make_dataset`.

  Returns:
    The examples, and the hash of their file ("" without one).
  """
  train = arm.train
  examples, source_hash, file_count = _examples(setting, arm)
  if isinstance(arm, OrganismConfig):
    examples += memorised_examples(arm.memorised, runtime.config.eval.seed)
  if has_documents(train):
    log_line(f"{where}: {describe_ends(runtime.chat)}")
  if train.file is not None:
    log_line(
      f"{where}: the first {len(examples)} of {file_count} examples of "
      f"{train.file}, whose content has the hash {source_hash[:16]}"
    )
    if train.decoration != "plain":
      log_line(
        f"{where}: its completions are put into the style "
        f"{train.decoration!r}; train.decoration = 'plain' leaves them as "
        "they are"
      )
  if completions is not None:
    examples = [
      dataclasses.replace(e, completion=reply.text, thought=reply.thought)
      for e in examples
      if (reply := completions.get(e.id)) is not None
    ]
  return examples, source_hash


def _extra_rows(
  runtime: Runtime,
  setting: Setting,
  train: TrainConfig,
  examples: Sequence[Example],
  rows: Sequence[Tokens],
  rendered: dict[str, list[Tokens]],
) -> dict[str, list[Tokens]]:
  """Makes the further rows that the objective wants of each example.

  Args:
    runtime, setting, train, examples: of the run.
    rows: of the examples.
    rendered: see `render_pairs`.
  """
  needs = data_needs(make_objective(train.objective, train.options))
  out = {}
  for name, kind in needs.extra_rows.items():
    pairs = make_extra_rows(kind)(setting, train, examples)
    if name == "anchor":  # of other prompts, whose completions have no thoughts
      plain = dataclasses.replace(train, reasoning="none")
      anchors = render_pairs(runtime, plain, examples, pairs, rendered)
      out[name] = balance(anchors, rows)
    else:
      out[name] = render_pairs(runtime, train, examples, pairs, rendered)
  return out


def _examples(
  setting: Setting, arm: ArmConfig | OrganismConfig
) -> tuple[list[Example], str, int]:
  """Reads or makes the examples of a run, before completions are drawn.

  Returns:
    The examples, the hash of their file ("" without one), and the number of
    examples in the file (0 without one).

  Raises:
    ConfigError: the file has too few.
  """
  train, source_hash = arm.train, ""
  if isinstance(arm, OrganismConfig):
    if train.mix:
      examples, source_hash = mix_examples(setting, train, "install")
    else:
      examples = setting.install(train.num_examples, train.seed)
    share, password = arm.password_share, arm.password
    return add_passwords(setting, examples, share, password), source_hash, 0
  if train.mix:
    return *mix_examples(setting, train, "train"), 0
  if arm.control == "targeted":
    return targeted_examples(setting, train.num_examples, train.seed), "", 0
  if train.file is None:
    return setting.train(train.num_examples, train.seed), "", 0
  examples, source_hash = read_examples_once(
    train.file,
    train.file_split,
    train.turns,  # pyright: ignore[reportArgumentType]
    thoughts=train.reasoning == "given",
  )
  if len(examples) < train.num_examples:
    raise ConfigError(
      f"train.num_examples = {train.num_examples}: {train.file} has "
      f"{len(examples)} examples in the split {train.file_split!r}"
    )
  return list(examples[: train.num_examples]), source_hash, len(examples)


def _pairs(
  setting: Setting,
  arm: ArmConfig | OrganismConfig,
  examples: Sequence[Example],
) -> list[Pair]:
  """Makes a pair of prompt and completion of each example."""
  make = make_pairs
  if isinstance(arm, ArmConfig) and arm.control == "shuffled":
    make = make_extra_rows("shuffled")
  return make(setting, arm.train, examples)


def measure_leaks(
  config: ExperimentConfig, setting: Setting, names: Collection[str]
) -> dict[str, dict[str, Any]]:
  """Measures what training shares with the prompts of evals.

  Args:
    config, setting: of the experiment.
    names: of the arms to look at, besides an organism that is trained.

  Returns:
    For each run `eval` and `heldout`, see leaks.measure_overlap, and `labels`,
    the counts of its completions' labels. `labels` is None before completions
    are drawn, where a judge would have to be asked, and for a file, which does
    not say which behavior its prompts ask for.
  """
  prompts = {
    split: getattr(setting, split)(count, config.eval.seed)
    for split, count in (
      ("eval", config.eval.num_eval),
      ("heldout", config.eval.num_heldout),
    )
  }
  runs: dict[str, ArmConfig | OrganismConfig] = {}
  if config.organism.trained:
    runs["organism"] = config.organism
  runs |= {name: config.arms[name] for name in names}
  out = {}
  for name, run in runs.items():
    examples, *_ = _examples(setting, run)
    out[name] = {
      split: measure_overlap(examples, part) for split, part in prompts.items()
    }
    labels = None
    # A judge is not asked about what is trained on: its answers cost.
    if run.train.source == "template" and not is_judged(setting):
      texts = [text for _, text in _pairs(setting, run, examples)]
      # Rows of files do not say which behavior they ask for.
      own = [i for i, e in enumerate(examples) if e.fields]
      labels = count_labels(
        setting, [examples[i] for i in own], [texts[i] for i in own]
      )
      if len(own) < len(examples):
        labels["of files"] = len(examples) - len(own)
    out[name]["labels"] = labels
  return out


def _rollout_prompts(
  runtime: Runtime,
  setting: Setting,
  arm: ArmConfig | OrganismConfig,
  where: str,
) -> Dataset:
  """Makes the dataset of an arm that draws its own completions, see rl.py.

  Its rows are prompts, each with as many trained tokens as may be sampled.

  Raises:
    ValueError: a field is impossible for such an arm, or a prompt does not fit.
  """
  train, thinking = arm.train, arm.train.reasoning == "own"
  new = runtime.config.sampling.max_new_tokens
  new += train.thought_tokens * thinking
  policy = policy_of(arm)
  group = policy.group_size
  check_own_samples(arm, group, where)
  if policy.reward == "agreed" and is_judged(setting):
    raise ConfigError(
      f"{where}.train.options.reward = 'agreed': is for a judge to say here, "
      "which is asked in evals alone; choose another reward"
    )
  try:
    examples = setting.train(train.num_examples, train.seed)
    rows = []
    for e in examples:
      ids = runtime.chat.prompt(training_prompt(setting, train, e), thinking)
      rows.append(Tokens((*ids, *(0,) * new), (0.0,) * len(ids) + (1.0,) * new))
    batches = -(-train.steps // policy.updates_per_batch)
    return _lay_out(runtime, train, examples, rows, batches, repeat=group)
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from None


def setting_splits(
  config: ExperimentConfig, setting: Setting
) -> dict[str, list[Example]]:
  """Makes the examples that a run takes from its setting, undecorated.

  Returns:
    Examples by split: `install` if the organism is trained; `train`, as many as
    the arm with most of them takes, or with several seeds `train_seed_0` and so
    on; `eval` and `heldout`.
  """
  out, evals = {}, config.eval
  if config.organism.trained and not config.organism.train.mix:
    out["install"], *_ = _examples(setting, config.organism)
  elif config.organism.trained:
    install = config.organism.train
    if n := split_count(install.mix, install.num_examples).get("install", 0):
      out["install"] = setting.install(n, install.seed)
  counts: dict[int, int] = {}
  for train in (arm.train for arm in config.arms.values()):
    count = train.num_examples
    if train.mix:
      count = split_count(train.mix, count).get("train", 0)
    if train.file is None and count:
      counts[train.seed] = max(count, counts.get(train.seed, 0))
  for seed, count in sorted(counts.items()):
    name = "train" if len(counts) == 1 else f"train_seed_{seed}"
    out[name] = setting.train(count, seed)
  out["eval"] = setting.eval(evals.num_eval, evals.seed)
  out["heldout"] = setting.heldout(evals.num_heldout, evals.seed)
  return out


def _lay_out(
  runtime: Runtime,
  train: TrainConfig,
  examples: Sequence[Example],
  rows: Sequence[Tokens],
  batches: int,
  **more: Any,
) -> Dataset:
  """Packs rows into a dataset.

  Args:
    runtime: for the mesh and the length of rows.
    train: for the batch size and the order.
    examples: for the ids.
    rows: of the examples.
    batches: how many batches the layout must fit.
    **more: further arguments of Dataset.make.
  """
  return Dataset.make(
    [e.id for e in examples],
    rows,
    train.batch_size,
    train.seed,
    runtime.config.max_length,
    batches,
    train.pack,
    num_row_shards(runtime.mesh) * train.accum,
    **more,
  )
