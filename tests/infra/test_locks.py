"""Waits for what another process makes."""

import errno
import fcntl

import filelock
import pytest

from bct_jax.config import ConfigError
from bct_jax.experiment.rundir import hold_lock
from bct_jax.infra import locks, signals


def test_a_signal_ends_a_wait(tmp_path, monkeypatch):
  path, said = tmp_path / ".lock", []
  with filelock.FileLock(path):
    monkeypatch.setattr(signals, "stop_requested", lambda: len(said) > 0)
    with pytest.raises(signals.Preempted, match="while another makes a model"):
      with locks.wait_for_lock(path, "a model", said.append):
        pass
  assert said == ["waiting for another process that is making a model"]
  with locks.wait_for_lock(path, "a model", said.append):
    with pytest.raises(filelock.Timeout):
      filelock.FileLock(path).acquire(timeout=0)
  filelock.FileLock(path).acquire(timeout=0)
  assert len(said) == 1


def test_a_file_system_without_locks_is_no_other_run(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", refuse)
  with pytest.raises(ConfigError, match="has no locks .*No locks available"):
    with hold_lock(tmp_path):
      pass
