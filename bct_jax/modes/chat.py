"""Talks with models of a run in the terminal: --mode=chat."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from bct_jax.config import ConfigError, ExperimentConfig
from bct_jax.examples import Message
from bct_jax.infra import processes
from bct_jax.infra.progress import log_line
from bct_jax.infra.visible import visible
from bct_jax.modes.sample import as_in_evals, check_finite, read_reply
from bct_jax.runtime.runtime import Runtime
from bct_jax.runtime.weights import group_by_base, load_arms
from bct_jax.types import PyTree

_HELP = """\
A line is a message, and every model goes on with its own talk.
/new          begin anew
/system TEXT  begin anew under this system message; without a text, the evals'
/again        take back the last answers and draw others
/quit         end, as Ctrl-D does"""


def run_chat(config: ExperimentConfig, params: Sequence[Path]) -> None:
  """Answers messages from the standard input until it ends.

  Messages get what those of the run's evals do: system message, prompt,
  beginning of an answer, room for a thought. The weights are loaded once.

  Args:
    config: of the experiment.
    params: folders of weights, each of which answers; none is the model itself.

  Raises:
    ConfigError: there are several processes, which share no terminal.
  """
  if processes.count() > 1:
    raise ConfigError(
      "--mode=chat talks with one process; under --multihost --mode=sample "
      "answers a file of prompts"
    )
  talk = Talk(config, params)
  log_line(_HELP)
  asks = sys.stdin.isatty()
  if asks:
    import readline  # noqa: F401 - lines can be edited, and found again
  while True:
    try:
      line = input("> " if asks else "").strip()
    except EOFError:
      return
    if line == "/quit":
      return
    try:
      for name, answer in _do(talk, line).items():
        source = f"[{name}] " if len(talk.names) > 1 else ""
        print(f"{source}{visible(answer)}\n", flush=True)
    except ValueError as e:
      log_line(f"not answered: {e}")


def _do(talk: "Talk", line: str) -> dict[str, str]:
  """Does what a line says; returns answers by model, if it asks for some."""
  word, _, rest = line.partition(" ")
  if word == "/new":
    talk.begin(talk.system)
  elif word == "/system":
    talk.begin(rest.strip() or None)
  elif word == "/again":
    return talk.answer_again()
  elif word.startswith("/"):
    log_line(_HELP)
  elif line:
    return talk.answer(line)
  return {}


class Talk:
  """Holds models in memory, and what was said with each.

  Attributes:
    names: of the models.
    system: the system message; None is that of the evals.
  """

  def __init__(self, config: ExperimentConfig, params: Sequence[Path]):
    """Loads the weights, those of one base once.

    Args:
      config: of the experiment.
      params: see `run_chat`.
    """
    folders: list[Path | None] = [*params] or [None]
    sampling = dataclasses.replace(config.sampling, batch_size=len(folders))
    self._config = dataclasses.replace(config, sampling=sampling)
    self._runtime = Runtime.make(self._config)
    self.names = [str(f or config.model.path) for f in folders]
    self._groups: list[tuple[list[str], PyTree]] = []
    with jax.set_mesh(self._runtime.mesh):
      for group in group_by_base(folders):
        weights = load_arms(self._runtime, group)
        names = [str(f or config.model.path) for f in group]
        self._groups.append((names, self._runtime.decode_params(*weights)))
    self._drawn = 0  # the random keys of an answer follow from it
    self.begin(None)

  def begin(self, system: str | None) -> None:
    """Begins anew under a system message; None is that of the evals."""
    self.system = system
    first: list[Message] = (
      [] if system is None else [{"role": "system", "content": system}]
    )
    self._said = {name: list(first) for name in self.names}

  def answer(self, text: str) -> dict[str, str]:
    """Asks every model; returns what to show of each answer, by name.

    Raises:
      ValueError: there is no room for the message. Nothing was said then.
    """
    said = {
      name: [*messages, {"role": "user", "content": text}]
      for name, messages in self._said.items()
    }
    return self._draw(said)

  def answer_again(self) -> dict[str, str]:
    """Draws the last answers anew; returns them as `answer` does.

    Raises:
      ValueError: nothing was answered yet.
    """
    said = {name: messages[:-1] for name, messages in self._said.items()}
    if not all(said.values()) or any(
      m[-1]["role"] != "user" for m in said.values()
    ):
      raise ValueError("there is no answer to take back")
    return self._draw(said)

  def _draw(self, said: dict[str, list[Message]]) -> dict[str, str]:
    """Has the models answer, and keeps what was said if all could."""
    runtime, sampling = self._runtime, self._config.eval_sampling
    thinking = self._config.eval.thinking
    shown = {}
    with jax.set_mesh(runtime.mesh):
      for names, params in self._groups:
        # One by one, so that all get the first wording of a prompt.
        asked = [as_in_evals(self._config, [tuple(said[n])])[0] for n in names]
        parts = [runtime.chat.prompt_and_prefix(m, thinking) for m in asked]
        completions = runtime.sampler(
          params,
          [[*prompt, *prefix] for prompt, prefix in parts],
          [self._drawn] * len(names),
          sampling.seed,
          find_stop=runtime.chat.find_stop(sampling.stop, thinking),
          arms=[*range(len(names))],
        )
        for name, completion, (_, prefix) in zip(
          names, completions, parts, strict=True
        ):
          check_finite([completion], name)
          reply = read_reply(runtime, completion, prefix)
          said[name] = [
            *said[name],
            {"role": "assistant", "content": reply["text"]},
          ]
          thought = f"({reply['thought']})\n" if reply.get("thought") else ""
          cut = "" if reply["stop"] == "stop" else " [cut]"
          shown[name] = f"{thought}{reply['text']}{cut}"
    self._said = said
    self._drawn += 1
    return {name: shown[name] for name in self.names}
