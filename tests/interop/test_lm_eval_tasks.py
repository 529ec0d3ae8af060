"""Tasks of lm-eval in the evals of a run."""

import importlib.util
import json
import shutil

import jax
import pytest
from lm_tasks import write_tasks
from workers import Cluster

from bct_jax.config import ConfigError, from_dict
from bct_jax.config.eval_steps import eval_steps
from bct_jax.experiment import run as experiment_run
from bct_jax.experiment.plan import make_plan
from bct_jax.infra import files, ledger, signals
from bct_jax.interop.lm_eval_tasks import FILE, Tasks
from bct_jax.modes.rescore import rescore
from bct_jax.report import write_report
from bct_jax.report.tables import load_results
from bct_jax.runtime.weights import load_weights
from configs import tiny

pytestmark = [pytest.mark.interop, pytest.mark.long]
NAMES = ("colors_choice", "colors_rolling", "colors_until")
STEPS = 3


@pytest.fixture(scope="module")
def task_path(tmp_path_factory):
  pytest.importorskip("lm_eval")
  folder = write_tasks(tmp_path_factory.mktemp("tasks"))
  for kind in ("choice", "rolling"):
    with open(folder / f"{kind}.yaml", "a") as f:
      f.write("tag: hues\n")
  (folder / "group.yaml").write_text(
    "group: paints\ntask: [colors_choice]\n"
    "aggregate_metric_list: [{metric: acc}]\n"
  )
  text = (folder / "until.yaml").read_text()
  (folder / "gone.yaml").write_text(
    text.replace("rows.json", "gone.json").replace("_until", "_gone")
  )
  return folder


def make_values(model, folder, **changes):
  """A config whose arms save nothing on the way but before tasks."""
  values = tiny.get_config().to_dict()
  values["model"]["path"] = str(model)
  values["organism"]["kind"] = "native"
  for run in (values["organism"], values):
    run["train"] |= {"steps": STEPS, "checkpoint_every": 100}
  values["optim"]["lr"] = 1e-2
  values["arms"] = {"full": {}}
  for name in ("num_eval", "num_heldout", "num_probe"):
    values["eval"][name] = 4
  values["eval"] |= {"tasks": NAMES, "task_steps": (1,), "steps": ()}
  values["eval"] |= {"task_path": str(folder), "task_limit": 7, **changes}
  return values


def run(values, workdir):
  plan = make_plan(from_dict(values))
  files.write_json(workdir / "config.json", {"config": values, "overrides": {}})
  if not (workdir / "env.json").exists():
    files.write_json(workdir / "env.json", {})
  return experiment_run.run(plan, workdir)


def evals(workdir, arm="full"):
  return files.read_lines(workdir / "arms" / arm / "evals.jsonl")


def asked_of(monkeypatch, fail=None):
  """Names of the tasks that are run from here on; `fail` is one that ends
  the run when it is reached for the second time."""
  names, real = [], Tasks._results

  def results(self, name, weights, title):
    names.append(name)
    if names.count(fail) == 2:
      raise signals.Preempted("by the test")
    return real(self, name, weights, title)

  monkeypatch.setattr(Tasks, "_results", results)
  return names


@pytest.fixture(scope="module")
def done(tiny_folder, task_path, tmp_path_factory):
  """A finished run: its values and directory, and which tasks were run."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  values = make_values(tiny_folder, task_path)
  values["reading"]["probe"] = "task:colors_choice:acc"
  values["arms"]["adapter"] = {
    "lora": {"rank": 4},
    "optim": {"ema_decay": 0.7},
  }
  with pytest.MonkeyPatch.context() as patch:
    names = asked_of(patch)
    run(values, workdir)
  return values, workdir, names


def assert_of_lm_eval(tasks, folder, task_path):
  """Scores are what lm-eval's own entry gives of a folder, loaded anew."""
  import lm_eval
  from lm_eval.tasks import TaskManager

  from bct_jax.interop.harness import BctJaxLM

  manager = TaskManager(include_path=str(task_path), include_defaults=False)
  results = lm_eval.simple_evaluate(
    model=BctJaxLM(str(folder)),
    tasks=list(NAMES),
    task_manager=manager,
    limit=7,
    bootstrap_iters=1000,
  )["results"]
  assert tuple(tasks) == NAMES
  for name, found in tasks.items():
    wanted = {k.removesuffix(",none"): v for k, v in results[name].items()}
    assert set(found) - {"n"} == {
      k.removesuffix(",none") for k in results[name] if "," in k
    }
    assert found["n"] == 7
    for metric in set(found) - {"n"}:
      if found[metric] is None:
        assert wanted[metric] == "N/A"
      else:
        assert found[metric] == pytest.approx(wanted[metric], rel=1e-5)


def test_scores_are_those_of_lm_eval_on_the_folders(
  done, task_path, monkeypatch
):
  """Of the organism, all weights, and the average of an adapter."""
  monkeypatch.setenv("DISABLE_MULTIPROC", "1")
  _, workdir, names = done
  # The organism's once, those of an arm at step 1 and at the last one.
  assert names == [*NAMES] * 5
  (organism,) = (workdir / "organisms").iterdir()
  full, adapter = evals(workdir), evals(workdir, "adapter")
  assert full[0]["tasks"] == adapter[0]["tasks"]
  for line, folder in (
    (full[0], organism),
    (full[-1], workdir / "arms" / "full"),
    (adapter[-1], workdir / "arms" / "adapter"),
  ):
    assert_of_lm_eval(line["tasks"], folder, task_path)
  assert [x["step"] for x in full] == [0, 1, STEPS]
  bits = [x["tasks"]["colors_rolling"]["bits_per_byte"] for x in full]
  assert len({*bits}) == 3
  assert set(full[0]["tasks"]["colors_choice"]) == {
    *("acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "n")
  }


def test_a_task_decides_integrity(done, tmp_path):
  _, workdir, _ = done
  for name in ("full", "adapter"):
    first, *_, last = (
      line["tasks"]["colors_choice"]["acc"] for line in evals(workdir, name)
    )
    result = files.read_json(workdir / "arms" / name / "done.json")
    right, task = result["reading"]["measures"]
    assert (right["name"], task["name"]) == ("right", "task:colors_choice:acc")
    assert task["n"] == 7 and task["before"] == pytest.approx(first)
    assert task["change"] == pytest.approx(last - first)
  copy = shutil.copytree(workdir, tmp_path / "run")
  sentence = result["reading"]["sentence"]
  said = [x["reading"] for x in rescore(copy) if "reading" in x]
  assert {"before": sentence, "after": sentence} in said and len(said) == 2
  (copy / "arms" / "adapter" / FILE).unlink()
  with pytest.raises(ValueError, match="no answers of step 3 to reading.probe"):
    list(rescore(copy))


@pytest.mark.parametrize(
  ("probe", "message"),
  [
    (
      "task:colors_choice",
      "'task:colors_choice:acc', 'task:colors_choice:acc_",
    ),
    ("task:colors_choice:f1", "must name a metric of right answers"),
    ("task:colors_rolling", "there are none"),
  ],
)
def test_a_metric_that_cannot_decide_is_said_before_training(
  tiny_folder, task_path, tmp_path, probe, message
):
  values = make_values(tiny_folder, task_path)
  values["reading"]["probe"] = probe
  with pytest.raises(ValueError, match=message):
    run(values, tmp_path)
  assert not (tmp_path / "organisms").exists()


def test_what_was_written_is_not_run_again(done, tmp_path, monkeypatch):
  values, workdir, _ = done
  copy = shutil.copytree(workdir, tmp_path / "run")
  arm = copy / "arms" / "full"
  lines = evals(copy)
  files.write_lines(arm / "evals.jsonl", lines[:-1])
  # A kill leaves less than this, and the ledger would find a damage.
  for file in (copy / "result.json", arm / "done.json", arm / ledger.NAME):
    file.unlink()
  names = asked_of(monkeypatch)
  run(values, copy)
  assert names == [] and evals(copy) == lines
  # The organism is of a run that no task decides.
  (made,) = (copy / "organisms").glob(f"*/{FILE}")
  first, *rest = files.read_lines(made)
  del first["metric"], first["right"]
  with ledger.tracking(made.parent):
    files.write_lines(made, [first, *rest])
  # One task of the last step is lost, the next half a line.
  text = (arm / FILE).read_text().splitlines(keepends=True)
  (arm / FILE).write_text("".join(text[:-2]) + text[-2][:30])
  files.write_lines(arm / "evals.jsonl", lines[:-1])
  for file in (arm / "done.json", arm / ledger.NAME):
    file.unlink()
  run(values, copy)
  assert names == [*NAMES] and evals(copy) == lines


@pytest.mark.slow
def test_a_kill_among_tasks_trains_nothing_again(
  done, tiny_folder, task_path, tmp_path, monkeypatch
):
  """States are saved before tasks, though no checkpoint is due."""
  whole, values = done[1], make_values(tiny_folder, task_path)
  with monkeypatch.context() as patch:
    names = asked_of(patch, NAMES[1])
    with pytest.raises(signals.Preempted):
      run(values, tmp_path)
    assert names == [*NAMES, *NAMES[:2]]
  arm = tmp_path / "arms" / "full"
  assert [p.name for p in (arm / "checkpoints").iterdir()] == ["1"]
  assert [x["step"] for x in evals(tmp_path)] == [0]
  first = files.read_lines(arm / "metrics.jsonl")
  names = asked_of(monkeypatch)
  run(values, tmp_path)
  assert names == [*NAMES[1:], *NAMES]
  assert evals(tmp_path) == evals(whole)
  assert files.read_lines(arm / "metrics.jsonl")[:1] == first


@pytest.mark.slow
def test_organism_of_an_adapter_that_arms_go_on_with(
  tiny_folder, task_path, tmp_path, monkeypatch
):
  """Also a reversal, which begins with the scores of its arm."""
  monkeypatch.setenv("DISABLE_MULTIPROC", "1")
  values = make_values(tiny_folder, task_path, task_steps=())
  values["lora"]["rank"] = values["organism"]["lora"]["rank"] = 4
  values["organism"] |= {"kind": "sft", "merge_lora": False}
  values["organism"]["optim"]["lr"] = 1e-2
  values["controls"] = ("reversal",)
  run(values, tmp_path)
  (organism,) = (tmp_path / "organisms").iterdir()
  full, back = evals(tmp_path), evals(tmp_path, "full.reversal")
  assert [x["step"] for x in full] == [0, STEPS]
  assert back[0]["tasks"] == full[-1]["tasks"] != full[0]["tasks"]
  assert_of_lm_eval(full[0]["tasks"], organism, task_path)


def test_tables_and_report_have_the_scores(done, tmp_path):
  _, workdir, _ = done
  rows = load_results([workdir])
  key = "tasks.colors_choice.acc"
  for row, line in zip(
    rows, evals(workdir, "full") + evals(workdir, "adapter"), strict=True
  ):
    assert row[key] == line["tasks"]["colors_choice"]["acc"]
  page = write_report([workdir], tmp_path / "report.html").read_text()
  assert "colors_rolling bits_per_byte" in page and "±" in page


def test_groups_are_told_as_a_whole_and_tags_by_task(
  tiny_folder, task_path, tmp_path
):
  values = make_values(
    tiny_folder, task_path, tasks=("paints", "hues"), task_limit=2
  )
  plan, path = make_plan(from_dict(values)), tmp_path / FILE
  with jax.set_mesh(plan.runtime.mesh):
    plan.tasks.run(lambda: load_weights(plan.runtime, None), path, 0, "model")
  found = plan.tasks.read(path, 0)
  assert set(found) == {"paints", "colors_choice", "colors_rolling"}
  assert found["paints"]["acc"] == found["colors_choice"]["acc"]
  assert {x["n"] for x in found.values()} == {2}
  with pytest.raises(ValueError, match="no line of step 7 and task paints"):
    plan.tasks.read(path, 7)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"tasks": ("colors_choise",)}, r"'colors_choise' .*near: colors_choice"),
    ({"tasks": ("hellaswg",)}, "'hellaswg' is no task .*near: hellaswag"),
    ({"task_path": "/nowhere"}, "eval.task_path = '/nowhere': no such folder"),
    ({"tasks": NAMES * 2}, "eval.tasks = .*must be names each once"),
    ({"task_steps": (-1,)}, r"eval.task_steps = \(-1,\): must be not negative"),
    ({"task_limit": -1}, "eval.task_limit = -1: must be 0"),
  ],
  ids=str,
)
def test_what_cannot_be_is_said_before_a_plan_is_made(
  tiny_folder, task_path, changes, message
):
  values = make_values(tiny_folder, task_path, **changes)
  with pytest.raises(ConfigError, match=message):
    make_plan(from_dict(values))


def test_data_that_is_not_there_is_said_before_training(
  tiny_folder, task_path, tmp_path
):
  values = make_values(tiny_folder, task_path, tasks=("colors_gone",))
  with pytest.raises(ValueError, match="'colors_gone' cannot be loaded: .*"):
    run(values, tmp_path)
  assert not (tmp_path / "organisms").exists()


def test_without_lm_eval_the_extra_is_named(
  tiny_folder, task_path, monkeypatch
):
  real = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name, *more: None if name == "lm_eval" else real(name, *more),
  )
  values = make_values(tiny_folder, task_path)
  with pytest.raises(ConfigError, match=r"install 'bct_jax\[eval\]'"):
    make_plan(from_dict(values))


def test_runs_from_before_have_the_same_hash_and_can_be_read(tiny_folder):
  """Also the hash does not depend on tasks, which decide no rollout."""
  values = make_values(tiny_folder, "/tasks")
  old = json.loads(json.dumps(values))
  for name in [k for k in old["eval"] if k.startswith("task")]:
    del old["eval"][name]
  a, b = (from_dict(x).eval for x in (values, old))
  assert b.tasks == () and b.task_path is None
  assert a.facts() == b.facts()
  # Nor on what decides none where it is at its default.
  assert set(b.facts()) <= set(old["eval"]) - {"gradients", "refine"}
  assert "num_eval" in b.facts()
  assert eval_steps((1,), STEPS) == (0, 1, STEPS)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_give_what_one_gives(
  done, tiny_folder, task_path, tmp_path
):
  flags = [
    f"--workdir={tmp_path / 'run'}",
    f"--config.model.path={tiny_folder}",
    f"--config.eval.tasks={NAMES!r}",
    f"--config.eval.task_path={task_path}",
    "--config.eval.task_limit=7",
    "--config.organism.kind=native",
    "--config.arms.high.train.accum=1",
  ]
  # lm-eval wants torch, which forked processes do not have.
  ends = Cluster.start(2, *flags, timeout=120, real=True).end()
  assert [code for code, *_ in ends] == [0, 0], ends
  lines = evals(tmp_path / "run", "low")
  assert [x["step"] for x in lines if "tasks" in x] == [0, 4]
  arm = tmp_path / "run" / "arms" / "low"
  assert_of_lm_eval(lines[-1]["tasks"], arm, task_path)
