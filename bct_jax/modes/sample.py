"""Answers prompts with weights of a run: --mode=sample."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from bct_jax.config import ConfigError, ExperimentConfig
from bct_jax.data.messages import with_prefix, with_prompt
from bct_jax.data.open_setting import open_setting
from bct_jax.data.source import read_prompts
from bct_jax.examples import Message
from bct_jax.experiment.plan import style_of
from bct_jax.infra import files, processes, shared_files, signals
from bct_jax.infra.progress import Stage, stage
from bct_jax.infra.visible import visible
from bct_jax.runtime.runtime import Runtime
from bct_jax.runtime.weights import (
  group_by_base,
  load_arms,
)
from bct_jax.sample.resume import sample_to_end
from bct_jax.settings.prompts import prompt_wordings as wordings_of
from bct_jax.train.step import NumericalError
from bct_jax.types import Completion


def run_sample(
  config: ExperimentConfig,
  params: Sequence[Path],
  texts: Sequence[str],
  prompts_file: Path | None,
  out: Path | None,
  n: int = 1,
) -> None:
  """Answers prompts: as text on the terminal, or as JSON lines in `out`.

  A prompt without a system message gets system message and prompt of the evals,
  one without the beginning of an answer that of the evals too. Sample k of a
  prompt depends neither on `n` nor on what else is sampled. Of several `params`
  those that are adapters over the same weights are sampled together.
  """
  prompts = _read_prompts(config, texts, prompts_file)
  runtime, sampling = Runtime.make(config), config.eval_sampling
  thinking = config.eval.thinking
  if n < 1 or (n > 1 and sampling.temperature == 0):
    raise ConfigError(
      f"--n={n}: 1 or more samples; more than one differ only with "
      "--config.sampling.temperature above 0"
    )
  parts = [runtime.chat.prompt_and_prefix(m, thinking) for m in prompts]
  # The first samples of all prompts, then the second ones: row ids, on which
  # the random keys rest, are then the same whatever n is.
  ids = [[*prompt, *prefix] for prompt, prefix in parts] * n
  processes.agree("prompts differ", {"hash": files.digest(ids)})
  folders = params or [None]
  groups = group_by_base(folders)
  partials: list[Path | None] = [
    None if out is None else out.with_name(f".{out.name}.{i}.partial")
    for i in range(len(groups))
  ]
  # Without a file there is nothing to go on from, so a signal ends the command.
  stopping = (
    contextlib.nullcontext() if out is None else signals.handle_signals()
  )
  completions, total = {}, len(ids) * len(folders)
  sampling_stage = stage("sample", total, "rows")
  with jax.set_mesh(runtime.mesh), stopping, sampling_stage as bar:
    for group, partial in zip(groups, partials, strict=True):
      of_group = _sample_group(runtime, group, ids, partial, bar)
      for folder, of_folder in zip(group, of_group, strict=True):
        check_finite(of_folder, folder or config.model.path)
      completions |= zip(group, of_group, strict=True)
  drawn = [(folder, completions[folder]) for folder in folders]
  rows = _make_rows(runtime, prompts, [prefix for _, prefix in parts], drawn)
  if out is not None:
    shared_files.write_lines(out, rows)
    for partial in partials:
      if partial is not None:
        shared_files.delete(partial)
  elif processes.is_first():
    _show(rows)


def read_reply(
  runtime: Runtime, completion: Completion, prefix: Sequence[int]
) -> dict[str, str]:
  """Reads a completion: its text, its thought if it has one, why it ended.

  Args:
    runtime: with the config that says how it was sampled.
    completion: as the sampler gave it.
    prefix: ids of how the answer was made to begin, which the text has too.
  """
  config = runtime.config
  reply = runtime.chat.reply(
    completion.tokens, config.sampling.stop, prefix, config.eval.thinking
  )
  ended = completion.stopped and reply.finished
  return {
    **({"thought": reply.thought} if config.eval.thinking else {}),
    "text": reply.text,
    "stop": "stop" if ended else "length",
  }


def _read_prompts(
  config: ExperimentConfig, texts: Sequence[str], prompts_file: Path | None
) -> list[tuple[Message, ...]]:
  """Collects prompts of the flags and of a file, as the evals' prompts are.

  Raises:
    ConfigError: there are none.
  """
  prompts: list[tuple[Message, ...]] = [
    ({"role": "user", "content": text},) for text in texts
  ]
  if prompts_file is not None:
    prompts += read_prompts(prompts_file)
  if not prompts:
    raise ConfigError('--mode=sample needs --prompt="..." or --prompts=FILE')
  return as_in_evals(config, prompts)


def as_in_evals(
  config: ExperimentConfig, prompts: Sequence[tuple[Message, ...]]
) -> list[tuple[Message, ...]]:
  """Adds to prompts what those of the run's evals have.

  A prompt without a system message gets system message and prompt of the evals,
  one without the beginning of an answer that of the evals too.
  """
  evals = config.eval
  setting = open_setting(config.setting).setting
  wordings = wordings_of(evals.prompt, "eval", setting, style_of(config))

  def add_prompt(i: int, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Adds system message and prompt, unless there is a system message."""
    if messages[0]["role"] == "system":
      return messages
    return with_prompt(
      messages,
      evals.system_prompt,
      evals.prompt,
      wordings,
      evals.paraphrases,
      f"sample/{i}",
    )

  return [
    with_prefix(add_prompt(i, m), evals.answer_prefix)
    for i, m in enumerate(prompts)
  ]


def _sample_group(
  runtime: Runtime,
  folders: Sequence[Path | None],
  ids: Sequence[Sequence[int]],
  partial: Path | None,
  bar: Stage,
) -> list[list[Completion]]:
  """Samples all prompts with the weights of each folder, in one batch."""
  sampling, count = runtime.config.eval_sampling, len(folders)
  names = [str(folder) for folder in folders]
  completions = sample_to_end(
    runtime.sampler,
    runtime.decode_params(*load_arms(runtime, folders)),
    [*ids] * count,
    sampling.seed,
    partial,
    [dataclasses.asdict(sampling), runtime.model_hash, names],
    bar,
    runtime.chat.find_stop(sampling.stop, runtime.config.eval.thinking),
    row_ids=[*range(len(ids))] * count,
    arms=[arm for arm in range(count) for _ in ids],
  )
  return [
    completions[at : at + len(ids)]
    for at in range(0, len(completions), len(ids))
  ]


def check_finite(completions: Sequence[Completion], source: object) -> None:
  """Checks that all log-probabilities of completions are numbers.

  Args:
    completions: of a model.
    source: where its weights are.

  Raises:
    train.NumericalError: some are not.
  """
  if not all(math.isfinite(x) for c in completions for x in c.logprobs):
    raise NumericalError(
      f"log-probabilities are not finite; are the weights of {source} whole?"
    )


def _make_rows(
  runtime: Runtime,
  prompts: Sequence[tuple[Message, ...]],
  prefixes: Sequence[Sequence[int]],
  completions: Sequence[tuple[Path | None, Sequence[Completion]]],
) -> list[dict[str, Any]]:
  """Makes a row of each sample, those of a prompt behind each other.

  Args:
    runtime: that they were drawn with.
    prompts: what was asked.
    prefixes: the tokens that the answers to each prompt begin with.
    completions: of each folder of weights; the first of all prompts come first.
  """
  return [
    {
      "params": folder and str(folder),
      "messages": list(m),
      "sample": k,
      **read_reply(runtime, c, prefix),
      "logprob": sum(c.logprobs),
      "num_tokens": len(c.tokens),
    }
    for i, (m, prefix) in enumerate(zip(prompts, prefixes, strict=True))
    for folder, of_folder in completions
    for k, c in enumerate(of_folder[i :: len(prompts)])
  ]


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
  """Prints samples: the prompt's last user turn, then the answer."""
  several = len({row["params"] for row in rows}) > 1
  for row in rows:
    cut = "" if row["stop"] == "stop" else " [cut]"
    turn = [m for m in row["messages"] if m["role"] == "user"][-1]
    source = f" [{row['params']}]" if several else ""
    print(f"> {visible(turn['content'])}{source}")
    if row.get("thought"):
      print(f"({visible(row['thought'])})")
    print(f"{visible(row['text'])}{cut}\n")
