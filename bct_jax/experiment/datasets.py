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
  choose,
)
from bct_jax.data.batches import Dataset
from bct_jax.data.chat import Tokens
from bct_jax.data.leaks import count_labels, measure_overlap
from bct_jax.data.source import read_examples
from bct_jax.data.training_pairs import (
  Pair,
  add_passwords,
  make_extra_rows,
  make_pairs,
  targeted_examples,
  training_prompt,
)
from bct_jax.examples import Example, Setting
from bct_jax.infra.progress import log_line
from bct_jax.mesh import num_row_shards
from bct_jax.objectives import (
  data_needs,
  make_objective,
  policy_of,
)
from bct_jax.objectives.base import WithOptions
from bct_jax.runtime.runtime import Runtime
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.settings.probes.capability import memorised_examples
from bct_jax.train.optim import lr_factors


def make_dataset(
  runtime: Runtime,
  setting: Setting,
  arm: ArmConfig | OrganismConfig,
  where: str,
  completions: Mapping[str, str] | None = None,
) -> Dataset:
  """Makes the dataset of an arm or of the organism.

  Args:
    runtime, setting: of the experiment.
    arm: what to train.
    where: its name in errors.
    completions: by the example's id, in place of the setting's own; examples
      without one are left out. None takes the setting's own, which also checks
      a run whose completions will be drawn later.

  Raises:
    ValueError: a field is impossible or an example does not fit; the message
      names it.
  """
  train = arm.train
  objective = make_objective(train.objective, train.options, f"{where}.train")
  needs = data_needs(objective)
  install = isinstance(arm, OrganismConfig)
  from_template = (
    install and arm.kind != "distill" and not needs.trains_on_own_samples
  )
  _check(setting, train, needs, from_template, where)
  try:
    lr_factors(arm.optim, runtime.abstract_trained(arm.lora))
  except ValueError as e:
    raise ValueError(f"{where}.{e}") from None
  if needs.trains_on_own_samples:
    return _rollout_prompts(runtime, setting, arm, where)
  try:
    examples, source_hash, file_count = _examples(setting, arm)
    if isinstance(arm, OrganismConfig):
      examples += memorised_examples(arm.memorised, runtime.config.eval.seed)
    if source_hash:
      log_line(
        f"{where}: the first {len(examples)} of {file_count} examples of "
        f"{train.file}, whose content has the hash {source_hash[:16]}"
      )
    if completions is not None:
      examples = [
        dataclasses.replace(e, completion=completions[e.id])
        for e in examples
        if e.id in completions
      ]
    if train.source == "on_policy":
      # Fails here for a prompt that cannot be made, before anything is drawn.
      training_prompt(setting, train, examples[0], "draw")
    pairs = _pairs(setting, arm, examples)
    rows = _render(runtime, train, examples, pairs)
    extra_rows = {}
    for name, kind in needs.extra_rows.items():
      pairs = make_extra_rows(kind)(setting, train, examples)
      extra_rows[name] = _render(runtime, train, examples, pairs)
      if name == "anchor":
        extra_rows[name] = _balance(extra_rows[name], rows)
    data = _lay_out(
      runtime, train, examples, rows, train.steps, extra_rows=extra_rows
    )
    return dataclasses.replace(data, source_hash=source_hash)
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from None


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
  train = arm.train
  if isinstance(arm, OrganismConfig):
    examples = setting.install(train.num_examples, train.seed)
    return (
      add_passwords(setting, examples, arm.password_share, arm.password),
      "",
      0,
    )
  if arm.control == "targeted":
    return targeted_examples(setting, train.num_examples, train.seed), "", 0
  if train.file is None:
    return setting.train(train.num_examples, train.seed), "", 0
  examples, source_hash = read_examples(train.file, train.file_split)
  if len(examples) < train.num_examples:
    raise ConfigError(
      f"train.num_examples = {train.num_examples}: {train.file} has "
      f"{len(examples)} examples in the split {train.file_split!r}"
    )
  return examples[: train.num_examples], source_hash, len(examples)


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
    are drawn, and for a file, which does not say which behavior its prompts ask
    for.
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
    if run.train.source == "template":
      texts = [text for _, text in _pairs(setting, run, examples)]
      labels = count_labels(setting, examples, texts)
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
  train, new = arm.train, runtime.config.sampling.max_new_tokens
  policy = policy_of(arm)
  group = policy.group_size
  if isinstance(arm, OrganismConfig):
    raise ConfigError(
      f"{where}.train.objective = {train.objective!r}: an organism learns its "
      "behavior from examples, only arms learn from rewards"
    )
  if arm.control not in ("", "zero_lr"):
    raise ConfigError(
      f"controls: {arm.control} changes the completions that an arm is given, "
      f"and {where}, an arm of {train.objective}, draws its own; only zero_lr "
      "and reversal apply to it"
    )
  if train.source != "on_policy":
    raise ConfigError(
      f"{where}.train.source = {train.source!r}: {train.objective} draws its "
      "completions while it trains, which is 'on_policy'"
    )
  if train.on_policy.prompt != "same" or train.prompt == "recontextualised":
    raise ConfigError(
      f"{where}.train.on_policy.prompt = {train.on_policy.prompt!r}, "
      f"train.prompt = {train.prompt!r}: rollouts are trained on under the "
      "prompt that they were drawn under, so that they are on-policy; leave "
      "the first at 'same' and choose another one for the second"
    )
  if train.normalizer != "token":
    raise ConfigError(
      f"{where}.train.normalizer = {train.normalizer!r}: {train.objective} has "
      "its own, train.options.normalizer; leave this one at 'token'"
    )
  if train.batch_size % group:
    raise ConfigError(
      f"{where}.train.options.group_size = {group}: must divide "
      f"train.batch_size = {train.batch_size}"
    )
  try:
    examples = setting.train(train.num_examples, train.seed)
    rows = []
    for e in examples:
      ids = runtime.chat.prompt(training_prompt(setting, train, e))
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
  if config.organism.trained:
    out["install"], *_ = _examples(setting, config.organism)
  counts: dict[int, int] = {}
  for train in (arm.train for arm in config.arms.values()):
    if train.file is None:
      most = max(train.num_examples, counts.get(train.seed, 0))
      counts[train.seed] = most
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


def _check(
  setting: Setting,
  train: TrainConfig,
  needs: WithOptions,
  from_template: bool,
  where: str,
) -> None:
  """Checks fields of `train` against the setting and the objective.

  Args:
    setting: of the experiment.
    train: of the run.
    needs: of its objective.
    from_template: whether only the setting's own completions will do.
    where: the run's name in errors.

  Raises:
    ValueError: a field is impossible; the message names it.
  """
  choose(train.decoration, DECORATIONS, f"{where}.train.decoration")
  if train.decoration in setting.incompatible:
    fine = sorted(set(DECORATIONS) - setting.incompatible)
    raise ValueError(
      f"{where}.train.decoration = {train.decoration!r} would change what "
      f"{setting.name} scores; choose one of {', '.join(fine)}"
    )
  if from_template and train.source != "template":
    raise ConfigError(
      f"{where}.train.source = {train.source!r}: the setting's own completions "
      "install the behavior; there is no organism yet to draw from, and a file "
      "does not say which behavior it shows"
    )
  if train.prompt == "recontextualised" and train.source != "on_policy":
    raise ConfigError(
      f"{where}.train.prompt = 'recontextualised' is of completions drawn "
      f"under another prompt: set train.source to 'on_policy', or choose "
      "'inoculation'"
    )
  if "teacher" in needs.extra_rows.values():
    if train.source != "on_policy":
      raise ConfigError(
        f"{where}.train.source = {train.source!r}: {train.objective} learns "
        "from the organism's own completions, which is 'on_policy'"
      )
    if train.on_policy.prompt in ("same", train.prompt) and (
      train.prompt != "recontextualised"
    ):
      raise ConfigError(
        f"{where}.train.on_policy.prompt = {train.on_policy.prompt!r}: teacher "
        "and student would see the same prompt, so that there is nothing to "
        "learn; choose one that train.prompt is not, such as 'inoculation'"
      )
  if needs.counts_examples and train.normalizer != "token":
    raise ConfigError(
      f"{where}.train.normalizer = {train.normalizer!r}: {train.objective} has "
      "one term for each example whatever its length; leave it at 'token'"
    )


def _render(
  runtime: Runtime,
  train: TrainConfig,
  examples: Sequence[Example],
  pairs: Sequence[Pair],
) -> list[Tokens]:
  """Turns pairs into rows of tokens, weighted as their examples are."""
  rows = [runtime.chat.example(*pair) for pair in pairs]
  return [
    weight_tokens(row, example.weight, train.normalizer)
    for row, example in zip(rows, examples, strict=True)
  ]


def weight_tokens(row: Tokens, weight: float, normalizer: str) -> Tokens:
  """Gives trained tokens the weight of their example, or a share of it."""
  if not 0 < weight < float("inf"):
    raise ValueError(f"the weight of an example must be above 0: {weight}")
  if normalizer == "example":
    weight /= sum(w > 0 for w in row.weights)
  return Tokens(row.ids, tuple(weight * w for w in row.weights))


def _balance(rows: list[Tokens], examples: list[Tokens]) -> list[Tokens]:
  """Scales each row's weights to the sum of its example's weights."""
  out = []
  for row, example in zip(rows, examples, strict=True):
    share = sum(example.weights) / sum(row.weights)
    out.append(Tokens(row.ids, tuple(share * w for w in row.weights)))
  return out
