"""inspect_ai and lm-eval with models of ours, against their own backends."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import QUICK
from lm_tasks import KINDS, WORDS, write_tasks
from runs import HANGS

from bct_jax.config import ConfigError
from bct_jax.interop import local_model
from bct_jax.interop.local_model import Request
from bct_jax.interop.open_model import open_model
from bct_jax.types import Completion
from configs import tiny

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
ENV = {
  **os.environ,
  "JAX_PLATFORMS": "cpu",
  "XLA_FLAGS": "--xla_force_host_platform_device_count=2" + QUICK,
  "HF_HUB_OFFLINE": "1",
  "INSPECT_DISPLAY": "plain",
}


@pytest.fixture(scope="module")
def tiny_model(tiny_folder):
  return open_model(tiny_folder, batch_size=16)


def ask(model, text, count=1, **options):
  ids = model.runtime.chat.prompt([{"role": "user", "content": text}])
  return Request(tuple(ids), model.options(**options), count)


# --- the model, without either package ----------------------------------------


def test_a_native_organism_is_the_model_itself(tiny_folder, tmp_path):
  values = tiny.get_config().to_dict()
  values["model"]["path"] = str(tiny_folder)
  folder = tmp_path / "organisms" / "0123"
  folder.mkdir(parents=True)
  (folder / "provenance.json").write_text('{"kind": "native"}')
  (tmp_path / "config.json").write_text(json.dumps({"config": values}))
  model = open_model(folder)
  request = ask(model, "Hello?")
  same = open_model(tiny_folder).generate([request])
  assert model.generate([request]) == same
  with pytest.raises(ConfigError, match="arms/gone: no weights.json"):
    open_model(tmp_path / "arms" / "gone")


def test_samples_follow_from_the_question_and_how_often_it_was_asked(
  tiny_folder,
):
  texts = [f"{w}?" for w in WORDS]

  def sample(order, times):
    model = open_model(tiny_folder, batch_size=8)
    out = {}
    for _ in range(times):
      requests = [
        ask(model, texts[i], 2, temperature=1.0, max_new_tokens=12)
        for i in order
      ]
      for i, pair in zip(order, model.generate(requests), strict=True):
        out.setdefault(texts[i], []).extend(c.tokens for c in pair)
    return out

  once = sample(range(10), 1)
  again = sample([3, 1, 9, 0], 2)
  for text, tokens in again.items():
    assert tokens[:2] == once[text]
    assert len(set(tokens)) == 4
  # Not the same random numbers for every question either.
  first = [tokens[0][0] for tokens in once.values()]
  assert len(set(first)) > 5


def test_options_and_lengths_may_differ_within_a_batch(tiny_model):
  model = tiny_model
  options = [
    {"temperature": t, "max_new_tokens": n} for n in (3, 24) for t in (0.0, 1.0)
  ]
  requests = [ask(model, f"{w}?", **o) for o in options for w in WORDS[:3]]
  for request, (found,) in zip(requests, model.generate(requests), strict=True):
    assert 0 < len(found.tokens) <= request.sampling.max_new_tokens
  (whole,) = model.generate([requests[6]])[0]  # greedy, alone
  assert model.generate(requests[:7])[-1][0].tokens == whole.tokens
  text = model.text(whole)
  stop = next(c for c in text[3:] if text.index(c) > 2)
  (short,) = model.generate(
    [ask(model, f"{WORDS[0]}?", max_new_tokens=24, stop=(stop,))]
  )[0]
  assert short.stopped and len(short.tokens) < len(whole.tokens)
  assert model.text(short, [stop]) == text[: text.index(stop)]


def test_like_batches_share_their_programs(tiny_folder):
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: compiled.append(name)
  )
  model = open_model(tiny_folder, batch_size=16)
  rng = np.random.default_rng(0)

  def batch(count, low, high, start=()):
    prompts = [
      (*start, *rng.integers(8, 260, rng.integers(low, high)).tolist())
      for _ in range(count)
    ]
    limits = rng.integers(9, 11, count).tolist()
    return [
      Request(p, model.options(max_new_tokens=n))
      for p, n in zip(prompts, limits, strict=True)
    ]

  start = tuple(range(20, 45))
  model.generate(batch(9, 41, 48) + batch(1, 47, 48))
  model.generate(batch(9, 16, 23, start) + batch(1, 22, 23, start))
  before = sum("backend_compile" in name for name in compiled)
  assert before > 0
  for count in (1, 2, 7, 30):
    model.generate(batch(count, 41, 48))
    model.generate(batch(count + 1, 16, 23, start))
  after = sum("backend_compile" in name for name in compiled)
  assert after == before


def test_a_prompt_may_fill_the_context(tiny_model):
  model = tiny_model
  request = Request((9,) * 2045, model.options(max_new_tokens=3))
  (found,), _ = model.generate([request, ask(model, "Hi", max_new_tokens=16)])
  assert len(found.tokens) <= 3
  request = Request((9,) * 2040, model.options(max_new_tokens=9))
  with pytest.raises(ValueError, match="request 0: a prompt of 2040 tokens"):
    model.generate([request])


def test_impossible_options_are_named(tiny_folder, tiny_model):
  with pytest.raises(ConfigError, match=r"sampling.top_p = 2"):
    tiny_model.options(top_p=2.0)
  with pytest.raises(ConfigError, match="dtype = 'int8'"):
    open_model(tiny_folder, dtype="int8")
  with pytest.raises(ValueError, match="does not fit 8 devices"):
    open_model(tiny_folder, fsdp=3)
  with pytest.raises(ConfigError, match="x: not supported by bct_jax: a, b"):
    local_model.check_options({"b": 1, "c": None, "a": "y", "d": []}, "x")


def test_samplers_that_are_kept_are_bounded(tiny_model, monkeypatch):
  made = []

  def make(model, config, stop_ids, mesh):
    made.append(config)
    answer = Completion((5,), (-1.0,), True)
    return lambda params, prompts, *_, **__: [answer] * len(prompts)

  monkeypatch.setattr(local_model, "make_sampler", make)
  model = local_model.LocalModel(tiny_model.runtime, None)
  model._decode_params = None
  for _ in range(2):
    for k in range(local_model.KEPT):
      for seed, new in ((1, 9), (2, 10)):
        options = {"top_k": k, "seed": seed, "max_new_tokens": new}
        model.generate([ask(model, "Hi", **options)])
  assert len(made) == local_model.KEPT
  for k in (99, 0):
    model.generate([ask(model, "Hi", top_k=k, max_new_tokens=10)])
  assert len(made) == local_model.KEPT + 2


# --- lm-eval ------------------------------------------------------------------


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
  return write_tasks(tmp_path_factory.mktemp("tasks"))


def evaluate_with(model, tasks, kinds, **options):
  import lm_eval
  from lm_eval.tasks import TaskManager

  out = lm_eval.simple_evaluate(
    model=model,
    tasks=[f"colors_{k}" for k in kinds],
    task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    log_samples=True,
    bootstrap_iters=0,
    **options,
  )
  return {
    name: sorted(rows, key=lambda r: r["doc_id"])
    for name, rows in out["samples"].items()
  }, out["results"]


@pytest.fixture(scope="module")
def lm_eval_models(tiny_folder):
  pytest.importorskip("lm_eval")
  from lm_eval.models.huggingface import HFLM

  from bct_jax.interop.harness import BctJaxLM

  theirs = HFLM(pretrained=str(tiny_folder), device="cpu", dtype="float32")
  return BctJaxLM(str(tiny_folder)), theirs


@pytest.mark.parity
@pytest.mark.interop
@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_lm_eval_results_are_those_of_its_own_backend(
  lm_eval_models, tasks, chat
):
  """Every log-likelihood to 1e-4, every choice, every text."""
  options = {"apply_chat_template": True} if chat else {}
  kinds = [k for k in KINDS if not chat or k != "rolling"]
  (ours, rates), (theirs, wanted) = (
    evaluate_with(m, tasks, kinds, **options) for m in lm_eval_models
  )
  assert ours.keys() == theirs.keys() and len(ours) == len(kinds)
  for name, rows in ours.items():
    assert len(rows) == 10
    for a, b in zip(rows, theirs[name], strict=True):
      assert a["arguments"] == b["arguments"]
      if name == "colors_until":
        assert a["resps"] == b["resps"]
        continue
      x, y = (_numbers(r["resps"]) for r in (a, b))
      np.testing.assert_allclose(x, y, atol=1e-4)
  for name in rates:
    for metric, value in rates[name].items():
      if isinstance(value, float):
        assert value == pytest.approx(wanted[name][metric], rel=1e-5)


def _numbers(resps):
  """[[(log-likelihood, is greedy)], ...] as an array, whatever its depth."""
  out = []
  for x in resps:
    out.extend(_numbers(x) if isinstance(x, list | tuple) else [float(x)])
  return np.array(out)


@pytest.mark.interop
def test_lm_eval_finds_the_model_by_its_entry_point():
  registry = pytest.importorskip("lm_eval.api.registry")
  from bct_jax.interop import harness

  (point,) = metadata.entry_points(group="lm_eval.models", name="bct_jax")
  kept = registry.Registry("model")
  kept.register("bct_jax", target=point)
  assert kept.get("bct_jax") is harness.BctJaxLM
  harness.register()
  harness.register()
  assert registry.get_model("bct_jax") is harness.BctJaxLM


@pytest.mark.interop
def test_lm_eval_refuses_what_it_cannot_do(lm_eval_models, tiny_folder):
  ours, _ = lm_eval_models
  harness = type(ours)
  with pytest.raises(ConfigError, match="bct_jax: num_beams"):
    ours._request("Hi", {"until": [], "num_beams": 4})
  with pytest.raises(ConfigError, match="room for 1 in the 2048"):
    ours._loglikelihood_tokens([("", [9] * 2, [9] * 2048)])
  with pytest.raises(ConfigError, match="bct_jax: device"):
    harness(str(tiny_folder), device="mps")
  assert ours._request("Hi", {"do_sample": True, "temperature": 0.5}).sampling
  ours.truncate = True
  (cut,) = ours._loglikelihood_tokens([("", [9] * 5000, [10] * 3)])
  (whole,) = ours._loglikelihood_tokens([("", [9] * 2046, [10] * 3)])
  ours.truncate = False
  assert cut == whole


@pytest.mark.interop
@pytest.mark.slow
def test_lm_eval_from_the_command_line(tiny_folder, tasks, tmp_path):
  pytest.importorskip("lm_eval")
  done = subprocess.run(
    [
      sys.executable, "-m", "bct_jax.interop.harness", "--model", "bct_jax",
      "--model_args", f"path={tiny_folder},data=2,dtype=float32",
      "--tasks", "colors_choice", "--include_path", str(tasks),
      "--output_path", str(tmp_path / "out"),
    ],
    cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=HANGS,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "colors_choice" in done.stdout and "acc_norm" in done.stdout
  (results,) = (tmp_path / "out").rglob("results_*.json")
  config = json.loads(results.read_text())["config"]
  assert config["model_dtype"] == "float32" and len(config["model_hash"]) == 64


# --- inspect ------------------------------------------------------------------


def inspect_task(count=10, **options):
  from inspect_ai import Task
  from inspect_ai.dataset import MemoryDataset, Sample
  from inspect_ai.model import GenerateConfig
  from inspect_ai.scorer import includes
  from inspect_ai.solver import generate, system_message

  samples = [
    Sample(input=f"Say {w} {'please ' * (i % 4)}now.", target="e", id=w)
    for i, w in enumerate(WORDS[:count])
  ]
  return Task(
    dataset=MemoryDataset(samples),
    solver=[system_message("Answer briefly."), generate()],
    scorer=includes(),
    config=GenerateConfig(**options),
  )


def inspect_run(task, model, folder, **options):
  from inspect_ai import eval as inspect_eval

  (log,) = inspect_eval(
    task, model=model, log_dir=str(folder), display="none", **options
  )
  assert log.status == "success", log.error
  return log


def outputs(log):
  return {s.id: s.output for s in sorted(log.samples, key=lambda s: s.epoch)}


@pytest.fixture(scope="module")
def inspect_model(tiny_folder):
  pytest.importorskip("inspect_ai")
  from inspect_ai.model import get_model

  return get_model(f"bct_jax/{tiny_folder}", batch_size=16)


@pytest.mark.parity
@pytest.mark.interop
def test_inspect_answers_are_those_of_its_own_backend(
  inspect_model, tiny_folder, tmp_path
):
  """Same greedy text and scores; many requests to one call of the sampler."""
  from inspect_ai.model import get_model

  calls = []
  api = inspect_model.api
  real = api.model.generate
  api._collector._run = lambda requests: (
    calls.append(len(requests)) or real(requests)
  )
  options = {"max_tokens": 24, "temperature": 0.0}
  ours = inspect_run(inspect_task(**options), inspect_model, tmp_path / "a")
  theirs = inspect_run(
    inspect_task(max_tokens=24),
    get_model(
      f"hf/{tiny_folder}", device="cpu", do_sample=False, batch_size=10
    ),
    tmp_path / "b",
  )
  a, b = outputs(ours), outputs(theirs)
  assert {k: v.completion for k, v in a.items()} == {
    k: v.completion for k, v in b.items()
  }
  assert len({v.completion for v in a.values()}) == 10
  assert ours.results.scores[0].metrics == theirs.results.scores[0].metrics
  assert sum(calls) == 10 and max(calls) >= 5
  for output in a.values():
    assert output.stop_reason in ("stop", "max_tokens")
    assert output.usage.output_tokens <= 24 < output.usage.input_tokens


@pytest.mark.interop
def test_inspect_options(inspect_model, tmp_path):
  """Choices, seeds, stop strings, log-probs; epochs are other samples."""
  options = {"max_tokens": 16, "temperature": 1.0, "num_choices": 3}
  log = inspect_run(
    inspect_task(2, logprobs=True, top_k=40, **options),
    inspect_model, tmp_path, epochs=2,
  )  # fmt: skip
  texts = {}
  for sample in log.samples:
    choices = sample.output.choices
    assert len(choices) == 3
    for choice in choices:
      logprobs = [x.logprob for x in choice.logprobs.content]
      assert 0 < len(logprobs) <= 16 and max(logprobs) <= 0
      texts.setdefault(sample.id, []).append(choice.message.text)
  assert all(len(set(t)) == 6 for t in texts.values())
  log = inspect_run(
    inspect_task(3, max_tokens=24, temperature=0.0), inspect_model, tmp_path
  )
  whole = outputs(log)[WORDS[0]].completion
  stop = next(c for c in whole[3:] if c.strip() and whole.index(c) > 2)
  log = inspect_run(
    inspect_task(1, max_tokens=24, temperature=0.0, stop_seqs=[stop]),
    inspect_model, tmp_path,
  )  # fmt: skip
  cut = outputs(log)[WORDS[0]]
  assert cut.completion == whole[: whole.index(stop)]
  assert cut.stop_reason == "stop"


@pytest.mark.interop
@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"frequency_penalty": 0.5}, "not supported by bct_jax: frequency_penalty"),
    ({"num_choices": 2, "temperature": 0.0}, "num_choices = 2"),
    ({"top_p": 1.5}, "sampling.top_p = 1.5"),
  ],
  ids=str,
)
def test_inspect_options_that_do_nothing_are_errors(
  inspect_model, tmp_path, options, message
):
  from inspect_ai import eval as inspect_eval

  (log,) = inspect_eval(
    inspect_task(1, **options),
    model=inspect_model, log_dir=str(tmp_path), display="none",
  )  # fmt: skip
  assert log.status == "error" and message in log.error.message


@pytest.mark.interop
def test_inspect_messages(inspect_model):
  """A last assistant message is gone on with; pictures are refused."""
  import anyio
  from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageTool,
    ChatMessageUser,
    ContentText,
    GenerateConfig,
  )

  config = GenerateConfig(max_tokens=8, temperature=0.0)
  text = [ContentText(text="What is it?")]

  def generate(*messages):
    return anyio.run(
      inspect_model.api.generate, list(messages), [], "none", config
    )

  begun = generate(
    ChatMessageUser(content=text), ChatMessageAssistant(content="It is")
  )
  model = inspect_model.api.model
  chat = model.runtime.chat
  prompt, prefix = chat.prompt_and_prefix(
    [
      {"role": "user", "content": "What is it?"},
      {"role": "assistant", "content": "It is"},
    ]
  )
  request = Request((*prompt, *prefix), model.options(max_new_tokens=8))
  assert begun.completion == model.text(model.generate([request])[0][0])
  with pytest.raises(ValueError, match="a tool message"):
    generate(ChatMessageTool(content="4"))


@pytest.mark.interop
def test_inspect_waits_without_holding_up_the_loop():
  pytest.importorskip("inspect_ai")
  import anyio

  from bct_jax.interop.inspect_provider import _result

  done, later, never = Future(), Future(), Future()
  done.set_result(1)

  async def run():
    assert await _result(done) == 1
    with anyio.move_on_after(0.01) as scope:
      await _result(never)
    assert scope.cancelled_caught and never.cancelled()
    threading.Timer(0.05, later.set_exception, [KeyError("x")]).start()
    with pytest.raises(KeyError):
      await _result(later)

  for backend in ("asyncio", "trio") if find_spec("trio") else ("asyncio",):
    anyio.run(run, backend=backend)
    later, never = Future(), Future()


@pytest.mark.interop
@pytest.mark.slow
def test_inspect_from_the_command_line(tiny_folder, tmp_path):
  pytest.importorskip("inspect_ai")
  (tmp_path / "task.py").write_text(
    "from inspect_ai import Task, task\n"
    "from inspect_ai.dataset import Sample\n"
    "from inspect_ai.scorer import includes\n"
    "@task\n"
    "def letters():\n"
    "  return Task(dataset=[Sample(input='Hi', target='e')],\n"
    "              scorer=includes())\n"
  )
  done = subprocess.run(
    [
      str(Path(sys.executable).parent / "inspect"), "eval", "task.py",
      "--model", f"bct_jax/{tiny_folder}", "-M", "data=2",
      "--max-tokens", "8", "--log-format", "json", "--log-dir", "logs",
    ],
    cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=HANGS,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr
  (log,) = (tmp_path / "logs").glob("*.json")
  assert json.loads(log.read_text())["status"] == "success"
