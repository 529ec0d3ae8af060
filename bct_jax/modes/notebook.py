"""Runs experiments and opens their models from Python, as in a notebook.

`bct_jax.run` and `bct_jax.load_model` are the functions here.
"""

import dataclasses
import functools
import os
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from bct_jax.config import (
  ConfigError,
  ExperimentConfig,
  SamplingConfig,
  check_sampling,
  from_dict,
  set_field,
)
from bct_jax.config.config_files import config_values, find_config
from bct_jax.examples import Message
from bct_jax.infra.progress import stage
from bct_jax.interop.local_model import sampler_cache
from bct_jax.interop.open_model import config_of_run, open_weights
from bct_jax.models.lora import Weights
from bct_jax.modes.experiment import run_experiment
from bct_jax.modes.sample import as_in_evals
from bct_jax.runtime.programs import set_compilation_cache
from bct_jax.runtime.runtime import Runtime
from bct_jax.types import PyTree

# A user's turn, or a chat whose last turn is the user's. An assistant's turn
# at the end is how the answer is made to begin.
Prompt = str | Sequence[Message]


def run(
  config: str | Path | ConfigDict,
  workdir: str | Path,
  overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Runs an experiment or goes on with it, as `bct_jax.main` does.

  Must be called from the main thread: a signal, as of the notebook's stop
  button, has the state saved and raises Preempted; the same call goes on.

  Args:
    config: a config file, found as on the command line, or a config.
    workdir: the run directory, a path or a URL such as s3://bucket/run.
    overrides: values by dotted field, as {"arms.low.optim.lr": 3e-5}.

  Returns:
    The content of result.json.

  Raises:
    ConfigError: no such config, a field that is unknown or impossible, or a
      run that was begun with another config.
    ValueError: data or model do not fit.
    GateError: the organism failed its gate.
    NumericalError: a loss was not finite.
    Preempted: a signal asked to stop; the state is saved.
  """
  raw = config_values(read_config(config))
  for field, value in (overrides or {}).items():
    set_field(raw, field, value)
  checked = from_dict(raw)
  # It would tell that torch is absent, which is how it is meant.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  set_compilation_cache(checked.compilation_cache)
  return run_experiment(checked, raw, overrides or {}, workdir)


def read_config(config: str | Path | ConfigDict) -> ConfigDict:
  """Reads a config file, found as on the command line; a config is returned.

  Raises:
    ConfigError: there is no such file, or its get_config gives no ConfigDict.
  """
  if isinstance(config, ConfigDict):
    return config
  file, *argument = find_config(str(config), "config").split(":", 1)
  get_config = runpy.run_path(file).get("get_config")
  if get_config is None:
    raise ConfigError(f"--config={file}: get_config() is missing")
  value = get_config(*argument)
  if not isinstance(value, ConfigDict):
    raise ConfigError(f"--config={file}: get_config must give a ConfigDict")
  return value


def load_model(path: str | Path, **options: Any) -> "NotebookModel":
  """Loads a model to sample from and to score with.

  Args:
    path: arms/NAME or organisms/HASH of a run, a Hugging Face folder, a demo
      model (demo:smollm2), an adapter of peft, or the hub id of one of these.
    **options: base (of an adapter), dtype, param_dtype, data, fsdp, tensor,
      batch_size and prefill_tokens, see interop/open_model.py.

  Raises:
    ConfigError: there is no such model or run, or an option is wrong.
    ValueError: the model does not fit the devices, or cannot be read.
  """
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  runtime, weights = open_weights(path, **options)
  return NotebookModel(runtime, weights, config_of_run(path))


class NotebookModel:
  """Holds a model in memory and answers with its chat template.

  Prompts for a model of a run get the system message and prompt of the run's
  evals, unless they have a system message, as with --mode=sample.

  Attributes:
    runtime: the mesh, the architecture and the tokenizer.
    config: of the run; None for a model that is of none.
  """

  def __init__(
    self, runtime: Runtime, weights: Weights, config: ExperimentConfig | None
  ):
    """Keeps what `load_model` read; nothing is compiled before it is used."""
    self.runtime, self.config = runtime, config
    self._weights = weights
    self._samplers = sampler_cache(runtime)

  def sample(
    self,
    prompts: Sequence[Prompt],
    n: int = 1,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
  ) -> list[list[str]]:
    """Samples answers.

    The first samples of a prompt are those of a smaller `n`. They follow from
    the seed and from the prompt's place among all prompts.

    Args:
      prompts: see Prompt.
      n: answers to each prompt.
      max_new_tokens: of an answer; None is the run's, else 256.
      temperature: 0 is greedy; None is the run's, else 0.
      seed: of the samples.

    Returns:
      n texts for each prompt, without thoughts.

    Raises:
      ConfigError: an impossible option; several greedy samples.
      ValueError: a prompt that the template or the context has no room for.
    """
    sampling = self._sampling(max_new_tokens, temperature)
    if n < 1 or (n > 1 and sampling.temperature == 0):
      raise ConfigError(
        f"n = {n}: 1 or more samples; more than one differ only with a "
        "temperature above 0"
      )
    chat, pairs = self.runtime.chat, self._encode(prompts)
    thinking = self._thinks()
    if thinking and self.config is not None:
      sampling = sampling.with_thoughts(self.config.eval.thought_tokens)
    # In the order of --mode=sample, whose row ids decide the random keys.
    ids = [[*prompt, *prefix] for prompt, prefix in pairs] * n
    with (
      jax.set_mesh(self.runtime.mesh),
      stage("sample", len(ids), "rows") as bar,
    ):
      completions = self._samplers(sampling)(
        self._decode_params,
        ids,
        range(len(ids)),
        seed,
        lambda _, completion: bar(1, len(completion.tokens)),
        find_stop=chat.find_stop(sampling.stop, thinking),
      )
    texts = [
      chat.reply(completion.tokens, sampling.stop, prefix, thinking).text
      for completion, (_, prefix) in zip(completions, pairs * n, strict=True)
    ]
    return [texts[i :: len(pairs)] for i in range(len(pairs))]

  def logprobs(
    self, prompts: Sequence[Prompt], completions: Sequence[str]
  ) -> list[list[float]]:
    """Scores completions, on the forward pass of training.

    Args:
      prompts: see Prompt.
      completions: one for each prompt. The end of the turn is scored where the
        text has it, as "Yes.<|im_end|>".

    Returns:
      The log-probability in nats of each token of each completion.

    Raises:
      ValueError: not one completion for each prompt; a prompt that the template
        or the context has no room for.
    """
    if isinstance(completions, str) or len(prompts) != len(completions):
      raise ValueError(
        f"{len(prompts)} prompts need a list of as many completions, not "
        f"{completions!r:.80}"
      )
    ids = [[*prompt, *prefix] for prompt, prefix in self._encode(prompts)]
    rest = [self.runtime.chat.encode(text) for text in completions]
    with jax.set_mesh(self.runtime.mesh):
      scored = self.runtime.scorer(self._weights, ids, rest)
    return [list(one.logprobs) for one in scored]

  @functools.cached_property
  def _decode_params(self) -> PyTree:
    """Copies the weights, laid out for the sampler."""
    return self.runtime.decode_params(self._weights)

  def _sampling(
    self, max_new_tokens: int | None, temperature: float | None
  ) -> SamplingConfig:
    """Returns how to sample: as the run does, with what is given changed."""
    changes = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    changes = {k: v for k, v in changes.items() if v is not None}
    # The seed is no part of what is compiled, so all share one sampler.
    sampling = dataclasses.replace(
      self.runtime.config.sampling, seed=0, **changes
    )
    check_sampling(sampling)
    return sampling

  def _encode(
    self, prompts: Sequence[Prompt]
  ) -> list[tuple[list[int], list[int]]]:
    """Returns ids of each prompt and of how its answer is made to begin."""
    if isinstance(prompts, str):
      raise ValueError(f"a list of prompts is needed, not {prompts!r:.80}")
    chats: list[tuple[Message, ...]] = [
      ({"role": "user", "content": p},) if isinstance(p, str) else tuple(p)
      for p in prompts
    ]
    if self.config is not None:
      chats = as_in_evals(self.config, chats)
    to_ids = self.runtime.chat.prompt_and_prefix
    return [to_ids(messages, self._thinks()) for messages in chats]

  def _thinks(self) -> bool:
    """Tells whether completions begin with a thought, as in the run's evals."""
    return self.config is not None and self.config.eval.thinking
