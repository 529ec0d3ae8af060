"""Signals: finish the step, save, exit 75; the second one ends at once."""

import os
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest
from runs import HANGS, ROOT, comparable, run, start_to_kill, wait_for

from bct_jax.infra import files, signals
from bct_jax.infra.signals import Preempted
from bct_jax.sample import resume
from bct_jax.train.loop import FitConfig, Lane, fit
from bct_jax.train.together import update_in_turn
from bct_jax.types import Completion, TrainState


def send(how=signal.SIGTERM):
  """A real signal to this process, which has been told of it on return."""
  os.kill(os.getpid(), how)
  end = time.monotonic() + 10
  while not signals.stop_requested():
    assert time.monotonic() < end
    time.sleep(0.001)


class Fit:
  """Runs fit for 4 steps, saves every 2, evals at 0 and 3; gets a signal."""

  def __init__(self, at):
    self.at, self.calls = at, []

  def note(self, call):
    self.calls.append(call)
    if call == self.at:
      send()
    if self.at == call and call.startswith("eval"):
      raise Preempted("while sampling")

  def step(self, state, frozen, batch, lr):
    self.note(f"update {int(state.step)}")
    return state.replace(step=state.step + 1), {"loss": jnp.float32(1)}

  def run(self, start=0):
    with signals.handle_signals():
      lane = Lane(
        TrainState(jnp.int32(start), {}, None, None),
        lambda t, state: ("rows", []),
        lambda t: 0.5,
        lambda t, state: None,
        lambda state: self.note(f"save {int(state.step)}"),
        lambda values: self.note(f"log {values['step']}"),
        FitConfig(4, (0, 3), 2),
      )
      fit(
        [lane],
        None,
        update_in_turn(self.step),
        lambda t, due: self.note(f"eval {t}"),
      )


@pytest.mark.parametrize(
  ("at", "last"),
  [
    # The step is finished and logged before it is saved.
    ("update 0", "update 0,log 1,save 1"),
    ("log 2", "log 2,save 2,update 2,log 3,save 3"),
    # What is due is saved once; the eval of that step is left for later.
    ("update 1", "update 1,log 1,log 2,save 2"),
    ("update 2", "update 2,log 3,save 3"),
    # In an eval the weights under evaluation are saved, unless they were.
    ("eval 3", "log 3,eval 3,save 3"),
    ("eval 0", "eval 0"),
    ("update 3", "update 3,log 4,save 4"),
  ],
)
def test_fit_saves_and_stops(at, last):
  fitted = Fit(at)
  with pytest.raises(Preempted):
    fitted.run()
  assert ",".join(fitted.calls).endswith(last)
  assert not signals.stop_requested()  # the next run starts afresh


def test_fit_stopped_at_once_saves_nothing_again():
  fitted = Fit("none")
  with signals.handle_signals():
    send()
    fitted.note = None
    with pytest.raises(Preempted, match="step 2 of 4"):
      lane = Lane(
        TrainState(jnp.int32(2), {}, None, None),
        *([None] * 5),
        FitConfig(4, (), 2),
      )
      fit([lane], None, *([None] * 2))


def test_sampling_keeps_what_has_ended(tmp_path):
  partial, done = tmp_path / "p.jsonl", []

  def sample(params, prompts, row_ids, seed, finished, skip, **more):
    for i in range(4):
      if i == 2 and i not in skip:
        send(signal.SIGINT)
      if i not in skip:
        finished(i, Completion((i,), (0.0,), True))
        done.append(i)
    return [
      None if i in skip else Completion((i,), (0.0,), True) for i in range(4)
    ]

  def go():
    return resume.sample_to_end(sample, None, [[1]] * 4, 0, partial, "x")

  with signals.handle_signals(), pytest.raises(Preempted):
    go()
  assert [r.get("row") for r in files.read_lines(partial)] == [None, 0, 1, 2]
  with signals.handle_signals():
    out = go()
  assert [c.tokens for c in out] == [(i,) for i in range(4)]
  assert done == [0, 1, 3]


def test_second_signal_ends_at_once_while_nothing_of_python_runs():
  """Nor do handlers of Python: a compilation takes minutes on a pod."""
  process = subprocess.Popen(
    [
      sys.executable,
      "-c",
      "import hashlib\nfrom bct_jax.infra import signals\n"
      "with signals.handle_signals():\n"
      "  print('ready', flush=True)\n"
      "  hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)",
    ],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout is not None and process.stderr is not None
  try:
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline().startswith("SIGTERM: stopping")
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=HANGS) == 128 + signal.SIGTERM
  finally:
    process.kill()
    process.communicate()


def stop_at(pattern, how, workdir, folder):
  process = start_to_kill(workdir, folder)
  wait_for(process, workdir, pattern)
  process.send_signal(how)
  _, err = process.communicate(timeout=HANGS)
  assert process.returncode == 75, err
  assert "Traceback" not in err
  assert f"{how.name}: stopping after this step" in err
  last = err.strip().splitlines()[-1]
  assert last.startswith("error: stopped ") and "goes on from here" in last


def test_a_stopped_run_is_saved(tiny_folder, tmp_path):
  begun = "organisms/*/metrics.jsonl"  # the first update is done
  stop_at(begun, signal.SIGTERM, tmp_path, tiny_folder)
  assert not (tmp_path / "result.json").exists()
  (metrics_file,) = tmp_path.glob(begun)
  (checkpoint,) = tmp_path.glob("organisms/*/checkpoints/*/params")
  done = files.read_lines(metrics_file)[-1]["step"]
  assert checkpoint.parent.name == str(done)


@pytest.mark.slow
def test_the_same_command_goes_on(finished, tiny_folder, tmp_path):
  """Stopped in the install, the gate and both arms, one after another."""
  workdir = tmp_path / "run"
  # Nothing near the end of the run, which the signal must find running.
  for pattern, how in (
    ("organisms/*/mask_audit.txt", signal.SIGTERM),
    ("organisms/*/checkpoints/4", signal.SIGINT),
    ("arms/low/evals.jsonl", signal.SIGINT),
    ("arms/high/weights.json", signal.SIGTERM),
  ):
    assert not list(workdir.glob(pattern))
    stop_at(pattern, how, workdir, tiny_folder)
  code, _, err = run(workdir, tiny_folder)
  assert code == 0, err
  assert comparable(workdir) == comparable(finished[0])
