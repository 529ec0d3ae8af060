"""Asks a judge about completions: once, in one process, within a limit.

The first process asks, and all of them get the replies.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bct_jax.config import ConfigError, ExperimentConfig, JudgeConfig
from bct_jax.infra import files, processes, signals
from bct_jax.infra.progress import log_line, stage
from bct_jax.interop.judge_cache import ReplyCache
from bct_jax.interop.judge_client import CHUNK, LOCAL, JudgeClient, Reply
from bct_jax.settings.graders.judge import KIND, Prompt
from bct_jax.settings.graders.rubric import Rubric, UngradedError

FILE = "judge.jsonl"  # of a run directory
_CAPPED = "eval.judge.max_calls is reached"


class InspectJudge:
  """Asks a model of any provider of inspect_ai, or one of bct_jax.

  Args:
    config: model, rubric and limits.
    folder: where the rubric is sought before the current directory.

  Raises:
    ConfigError: there is no such rubric.
    ValueError: it is no rubric; the message has file and line.
  """

  def __init__(self, config: JudgeConfig, folder: Path | None = None):
    self.config = config
    path = _find_rubric(config.rubric, folder)
    self._rubric = Rubric.read(path.read_text("utf-8"), str(path))
    self._name = path.name
    self._client = JudgeClient(config)
    self._cache: ReplyCache | None = None
    self._replies: dict[str, Reply] = {}
    self._failed: dict[str, str] = {}
    self._spent = 0  # calls that the cache does not have

  @property
  def rubric(self) -> Rubric:
    """Returns what is asked."""
    return self._rubric

  @functools.cached_property
  def identity(self) -> dict[str, Any]:
    """Returns what decides the replies, for files and hashes."""
    digest = hashlib.sha256(self.rubric.source.encode()).hexdigest()
    out = {
      "model": self.config.model,
      "rubric": digest[:16],
      "max_tokens": self.config.max_tokens,
      "temperature": 0,
    }
    if self._client.is_local:
      out["weights"] = _hash_weights(self._path_of_model)[:16]
    return out

  @property
  def sources(self) -> Mapping[str, str]:
    """Returns what decides verdicts, see `Judge`."""
    lines = [f"{k} = {v}" for k, v in self.identity.items()]
    return {KIND: "\n".join(lines), self._name: self.rubric.source}

  @property
  def _path_of_model(self) -> str:
    """Returns what `model.path` of a config would take."""
    return self.config.model.removeprefix(LOCAL)

  def check(self) -> None:
    """Checks that the model can be asked, without asking it.

    Raises:
      ConfigError: the provider is unknown, or lacks a package or a key.
    """
    if self._client.is_local and processes.count() > 1:
      raise ConfigError(
        f"eval.judge.model = {self.config.model!r}: a judge of bct_jax runs in "
        "one process; with several, serve it and name a provider of inspect_ai"
      )
    self._client.check()

  def open(self, path: Path) -> None:
    """Keeps replies in a file from here on, and knows those that it has.

    Raises:
      ValueError: the file is damaged; the message names the line.
    """
    if processes.is_first():
      self._cache = ReplyCache(path)

  def ask(self, prompts: Sequence[Prompt]) -> None:
    """Asks what was not asked before; see `Judge`.

    Raises:
      JudgeError: five calls failed one after the other, or the key is refused.
      signals.Preempted: a signal asked to stop; the replies so far are kept.
    """
    texts = {self._key(prompt): prompt for prompt in prompts}
    missing = [k for k in texts if k not in self._replies]
    if not missing:
      return
    with stage("judge", len(missing), "answers") as bar:
      for start in range(0, len(missing), CHUNK):
        chunk = {k: texts[k] for k in missing[start : start + CHUNK]}
        out = processes.run_on_first("judge", lambda c=chunk: self._ask(c))
        self._replies |= out["replies"]
        for key in chunk:
          self._failed.pop(key, None)
        self._failed |= out["failed"]
        if out["stopped"]:
          raise signals.Preempted("while the judge was asked")
        bar(len(chunk))
    failed = [self._failed[k] for k in missing if k in self._failed]
    for reason in dict.fromkeys(failed):
      log_line(
        f"judge: {failed.count(reason)} of {len(missing)} answers are "
        f"ungraded: {reason}"
      )

  def reply(self, prompt: Prompt) -> str:
    """Returns the reply to what was asked; see `Judge`."""
    key = self._key(prompt)
    if key not in self._replies:
      reason = self._failed.get(key)
      if reason is None:
        raise RuntimeError("the judge was not asked before its reply is read")
      raise UngradedError(f"the judge gave no reply: {reason}")
    reply = self._replies[key]
    if reply["stop"] != "stop":
      raise UngradedError(f"the judge's reply was cut: {reply['stop']}")
    return reply["reply"]

  def _key(self, prompt: Prompt) -> str:
    """Hashes all that decides a reply."""
    return files.digest([self.identity, list(prompt)])

  def _ask(self, prompts: Mapping[str, Prompt]) -> dict[str, Any]:
    """Asks in this process; returns replies and failures by key."""
    replies: dict[str, Reply] = {}
    if self._cache is not None:
      self._cache.update()
      found = {key: self._cache.get(key) for key in prompts}
      replies = {key: reply for key, reply in found.items() if reply}
    rest = [key for key in prompts if key not in replies]
    left = self.config.max_calls - self._spent - len(self._cache or ())
    allowed = rest[: max(0, left)]
    failed, stopped = dict.fromkeys(rest[len(allowed) :], _CAPPED), False

    def keep(key: str, reply: Reply) -> None:
      """Keeps a reply, on the disk where there is a cache."""
      if self._cache is None:
        self._spent += 1
      else:
        self._cache.put(key, reply)
      replies[key] = reply

    if allowed:
      calls = self._client.call({key: prompts[key] for key in allowed}, keep)
      self._spent += len(calls.failed)
      failed, stopped = failed | calls.failed, calls.stopped
    return {"replies": replies, "failed": failed, "stopped": stopped}


def make_judge(config: ExperimentConfig) -> InspectJudge | None:
  """Makes the judge of a config; None if no judge grades.

  Raises:
    ConfigError: it is wanted and not described, or described and not wanted.
    ValueError: the rubric is wrong; the message has file and line.
  """
  judge, options = config.eval.judge, config.setting.options
  grader = options.get("grader")
  wanted = isinstance(grader, Mapping) and grader.get("kind") == KIND
  if wanted and not judge.model:
    raise ConfigError(
      "setting.options.grader.kind = 'judge': needs eval.judge.model, as "
      "'openai/gpt-5-mini', and eval.judge.rubric"
    )
  if judge.model and not wanted:
    raise ConfigError(
      f"eval.judge.model = {judge.model!r}: no judge grades here; the setting "
      "'file' takes one by setting.options.grader.kind = 'judge', and a judge "
      "can label any run afterwards, by --mode=rescore and --grader="
      """'{"kind": "judge", "model": ..., "rubric": ...}'"""
    )
  if not wanted:
    return None
  return InspectJudge(judge, Path(options.get("folder", "")).expanduser())


def _find_rubric(name: str, folder: Path | None) -> Path:
  """Finds the file of a rubric, below a folder or the current directory.

  Raises:
    ConfigError: there is none.
  """
  path = Path(name).expanduser()
  tried = [folder / path] if folder is not None else []
  tried.append(Path.cwd() / path)
  for place in tried:
    if place.is_file():
      return place
  places = " or ".join(dict.fromkeys(str(p.parent) for p in tried))
  raise ConfigError(f"eval.judge.rubric = {name!r}: no such file in {places}")


def _hash_weights(path: str) -> str:
  """Hashes the weights and the tokenizer of a model of bct_jax.

  Raises:
    ConfigError: there is no such model.
  """
  from bct_jax.models.demo import resolve

  folder, patterns = Path(path).expanduser(), _OF_MODEL
  run = folder.resolve().parent.parent / "config.json"
  if folder.parent.name in ("arms", "organisms") and run.is_file():
    patterns = _OF_RUN
  else:
    try:
      folder = resolve(path)
    except ValueError as e:
      raise ConfigError(f"eval.judge.model = {LOCAL + path!r}: {e}") from None
  digest = hashlib.sha256()
  found = {p for pattern in patterns for p in folder.glob(pattern)}
  for file in sorted(p for p in found if p.is_file()):
    digest.update(file.relative_to(folder).as_posix().encode())
    with open(file, "rb") as f:
      digest.update(hashlib.file_digest(f, "sha256").digest())
  return digest.hexdigest()


# What the weights and the tokenizer of a model are in: of a folder of a run,
# and of any other.
_OF_RUN = ("weights.json", "provenance.json", "checkpoints/**/*")
_OF_MODEL = ("*.json", "*.safetensors", "*.jinja", "*.model")
