"""What the modes of the command line do."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from bct_jax.config import ConfigError, ExperimentConfig, choose
from bct_jax.data.source import read_prompts
from bct_jax.evals import evaluate
from bct_jax.examples import Message
from bct_jax.experiment import run, rundir
from bct_jax.experiment.datasets import setting_splits
from bct_jax.experiment.plan import sample_rows, style_of
from bct_jax.infra import files, processes, signals, trackers
from bct_jax.infra.progress import Stage, say, stage
from bct_jax.models.huggingface import export, hub, peft
from bct_jax.report import write_report
from bct_jax.runtime.programs import Runtime
from bct_jax.runtime.weights import (
  adapter_base,
  base_params,
  by_base,
  load_arms,
  load_weights,
)
from bct_jax.sample.resume import sample_to_end
from bct_jax.sample.sampler import Completion
from bct_jax.settings import make_setting
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.settings.prompts import texts as wordings_of


def run_experiment(
  config: ExperimentConfig,
  raw: Mapping[str, Any],
  overrides: Mapping[str, Any],
  workdir: Path | None,
  fall_back: bool = False,
) -> None:
  """Runs or resumes the experiment in `workdir` and writes its report.

  With `fall_back`, damaged checkpoints are set aside.
  """
  if workdir is None:
    raise ConfigError("--workdir is needed: the directory of the run")
  if not config.arms:
    raise ConfigError("config.arms is empty: there is nothing to train")
  processes.first("log", lambda: trackers.check(config.log))
  with rundir.hold(workdir), signals.heeded():
    rundir.keep_config(workdir, raw, overrides)
    if processes.first("done.json", (workdir / "done.json").exists):
      say(f"{workdir} is done already")
    else:
      plan = rundir.agreed_plan(config)
      if plan.tasks is not None:
        plan.tasks.load()  # without its data the run has not begun
      facts = rundir.environment(plan.runtime)
      processes.first(
        "env.json", lambda: files.write_json(workdir / "env.json", facts)
      )
      plan = dataclasses.replace(plan, fall_back=fall_back)
      run.run(plan, workdir)
    processes.first("report", lambda: _report(workdir))


def _report(workdir: Path) -> None:
  result = files.read_json(workdir / "result.json")
  # Before the report, which says of a run without it that it is not done.
  files.write_done(workdir, result["organism"]["hash"])
  report = write_report([workdir], workdir / "report.html")
  print(verdict_text(result))
  print(f"report: {report}")


def verdict_text(result: Mapping[str, Any]) -> str:
  """The result of an experiment, for the terminal."""
  lines = [f"{result['setting']} on {result['model']}"]
  for arm in result["arms"]:
    first, last = arm["curve"][0], arm["curve"][-1]
    begin = "the organism"
    if arm.get("control") == "reversal":
      begin = f"at the end of {arm['of']}"
    rates = ", ".join(
      "{} {:.0%} [{:.0%}, {:.0%}]".format(k, last[k], *last[f"{k}_ci"])
      for k in ("initial", "alternate", "other")
    )
    lines += [
      f"  {arm['name']}: {arm['verdict'].upper()} after {last['step']} steps "
      f"at lr {arm['lr']:g}",
      f"    {last['n']} eval prompts: {rates}",
      f"    {last['agreed_n']} held-out train prompts: agreed "
      f"{last['agreed']:.0%}, with the decoration "
      f"{last['agreed_decorated']:.0%}",
      f"    {last['capability_n']} capability prompts: "
      f"{last['capability']:.0%} right, {begin} {first['capability']:.0%}",
    ]
  return "\n".join(lines)


def run_eval(
  config: ExperimentConfig, params: Path | None, out: Path | None
) -> None:
  """Prints the rates of one set of weights; with `out`, saves the rollouts.

  Decorated means the decoration of the arms, if they share one.
  """
  plan = rundir.agreed_plan(config)
  arms = [arm for arm in config.arms.values() if not arm.control]
  names = {arm.train.decoration for arm in arms}
  decoration = DECORATIONS[names.pop() if len(names) == 1 else "plain"]
  with jax.set_mesh(plan.runtime.mesh):
    weights = load_weights(plan.runtime, params)
    rows = sample_rows(plan, weights, "eval")
  rows = evaluate.decorate(rows, decoration)
  record = evaluate.summarize(rows, 0)
  record.pop("step")

  def show() -> None:
    if out is not None:
      files.write_lines(out, rows)
    print(json.dumps(record, indent=1))

  processes.first("rates", show)


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
  runtime, sampling = Runtime.make(config), config.sampling
  if n < 1 or (n > 1 and sampling.temperature == 0):
    raise ConfigError(
      f"--n={n}: 1 or more samples; more than one differ only with "
      "--config.sampling.temperature above 0"
    )
  parts = [runtime.chat.continued(m) for m in prompts]
  # The first samples of all prompts, then the second ones: row ids, on which
  # the random keys rest, are then the same whatever n is.
  ids = [[*prompt, *prefix] for prompt, prefix in parts] * n
  processes.agree("prompts differ", {"hash": files.digest(ids)})
  folders = params or [None]
  groups = by_base(folders)
  partials: list[Path | None] = [
    None if out is None else out.with_name(f".{out.name}.{i}.partial")
    for i in range(len(groups))
  ]
  # Without a file there is nothing to go on from, so a signal ends it.
  heeded = contextlib.nullcontext() if out is None else signals.heeded()
  total = len(ids) * len(folders)
  found = {}
  with (
    jax.set_mesh(runtime.mesh),
    heeded,
    stage("sample", total, "rows") as bar,
  ):
    for group, partial in zip(groups, partials, strict=True):
      made = _sample_group(runtime, group, ids, partial, bar)
      found |= zip(group, made, strict=True)
  rows = [
    {
      "params": folder and str(folder),
      "messages": list(m),
      "sample": k,
      "text": runtime.chat.decode(c.tokens, sampling.stop, prefix),
      "stop": "stop" if c.stopped else "length",
      "logprob": sum(c.logprobs),
      "num_tokens": len(c.tokens),
    }
    for i, (m, (_, prefix)) in enumerate(zip(prompts, parts, strict=True))
    for folder in folders
    for k, c in enumerate(found[folder][i :: len(prompts)])
  ]
  processes.first("samples", lambda: _save_or_show(rows, out, partials))


def _read_prompts(
  config: ExperimentConfig, texts: Sequence[str], prompts_file: Path | None
) -> list[tuple[Message, ...]]:
  prompts: list[tuple[Message, ...]] = [
    ({"role": "user", "content": text},) for text in texts
  ]
  if prompts_file is not None:
    prompts += read_prompts(prompts_file)
  if not prompts:
    raise ConfigError('--mode=sample needs --prompt="..." or --prompts=FILE')
  evals = config.eval
  setting = make_setting(config.setting.name, config.setting.options)
  asked = wordings_of(evals.prompt, "eval", setting, style_of(config))

  def prompted(i: int, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if messages[0]["role"] == "system":
      return messages
    return evaluate.with_prompt(
      messages,
      evals.system_prompt,
      evals.prompt,
      asked,
      evals.paraphrases,
      f"sample/{i}",
    )

  return [
    evaluate.with_prefix(prompted(i, m), evals.answer_prefix)
    for i, m in enumerate(prompts)
  ]


def _sample_group(
  runtime: Runtime,
  folders: Sequence[Path | None],
  ids: Sequence[Sequence[int]],
  partial: Path | None,
  bar: Stage,
) -> list[list[Completion]]:
  """Completions of all ids with the weights of each folder, in one batch."""
  sampling, count = runtime.config.sampling, len(folders)
  names = [str(folder) for folder in folders]
  completions = sample_to_end(
    runtime.sampler,
    runtime.decode_params(*load_arms(runtime, folders)),
    [*ids] * count,
    sampling.seed,
    partial,
    [dataclasses.asdict(sampling), runtime.model_hash, names],
    bar,
    runtime.chat.find_stop(sampling.stop),
    row_ids=[*range(len(ids))] * count,
    arms=[arm for arm in range(count) for _ in ids],
  )
  return [
    completions[at : at + len(ids)]
    for at in range(0, len(completions), len(ids))
  ]


def _save_or_show(
  rows: Sequence[Mapping[str, Any]],
  out: Path | None,
  partials: Sequence[Path | None],
) -> None:
  if out is not None:
    files.write_lines(out, rows)
    for partial in partials:
      if partial is not None:
        partial.unlink()
    return
  several = len({row["params"] for row in rows}) > 1
  for row in rows:
    cut = "" if row["stop"] == "stop" else " [cut]"
    asked = [m for m in row["messages"] if m["role"] == "user"][-1]
    whose = f" [{row['params']}]" if several else ""
    print(f"> {printable(asked['content'])}{whose}")
    print(f"{printable(row['text'])}{cut}\n")


def printable(text: str) -> str:
  """Text without control characters, which could drive the terminal."""
  return "".join(
    c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}"
    for c in text
  )


def run_export(
  config: ExperimentConfig,
  params: Path | None,
  out: Path | None,
  dtype: str | None,
  form: str = "merged",
) -> None:
  """Writes weights as a Hugging Face folder, or an adapter as one of peft."""
  if out is None:
    raise ConfigError("--mode=export needs --out=FOLDER")
  choose(form, ("merged", "adapter"), "--format")
  if dtype is not None:
    choose(dtype, export.DTYPES, "--dtype")
  export.check_target(out)  # before minutes of loading
  runtime = Runtime.make(config)
  about = {"model": config.model.path, "params": params and str(params)}
  with jax.set_mesh(runtime.mesh):
    if form == "adapter":
      folder = _export_adapter(runtime, params, out, dtype, about)
      if processes.is_first():
        print(f"wrote {folder}: an adapter over {config.model.path}")
      return
    whole = base_params(runtime, params)  # with an adapter folded in
    written = export.export_hf(
      whole, runtime.model.config, runtime.folder, out, dtype, about=about
    )
  if processes.is_first():
    print(f"wrote {written}")


def run_export_data(config: ExperimentConfig, out: Path | None) -> None:
  """Writes what a run takes from its setting as a TFDS data set.

  Needs no model. Completions are undecorated; an arm decorates what it reads.
  """
  if out is None:
    raise ConfigError("--mode=export_data needs --out=FOLDER")
  setting = make_setting(config.setting.name, config.setting.options)
  splits = setting_splits(config, setting)
  about = {"setting": dataclasses.asdict(config.setting)}

  def write() -> None:
    from bct_jax.data import builder  # TFDS takes a second

    folder = builder.write(out, setting.name, splits, about)
    counts = ", ".join(f"{len(rows)} {k}" for k, rows in splits.items())
    print(f"wrote {folder}: {counts}")

  processes.first("data set", write)


def _export_adapter(
  runtime: Runtime,
  params: Path | None,
  out: Path,
  dtype: str | None,
  about: dict[str, Any],
) -> Path:
  if dtype is not None:
    raise ConfigError("--dtype: an adapter is written as it is kept, float32")
  if params is None or adapter_base(params) is not None:
    what = "the model has none" if params is None else (
      f"that of {params} is over an organism's weights, which no hub has"
    )  # fmt: skip
    raise ConfigError(
      f"--format=adapter: {what}; use --format=merged to write all weights"
    )
  weights = load_weights(runtime, params)
  if weights.lora is None:
    raise ConfigError(
      f"--format=adapter: {params} holds all params and no adapter; use "
      "--format=merged"
    )
  path = runtime.config.model.path
  return peft.export_adapter(
    out,
    weights,
    runtime.model.config,
    base=path if hub.is_id(path) else str(runtime.folder),
    about=about,
  )
