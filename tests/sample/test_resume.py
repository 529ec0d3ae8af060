"""Sampling that is killed and goes on."""

import json

import pytest

from bct_jax.sample.resume import sample_to_end
from bct_jax.types import Completion

PROMPTS = [[1, 2], [3], [4, 5, 6], [7]]


def fake(asked):
  """A sampler whose rows end in reverse order, noting what it was asked."""

  def sample(params, prompts, row_ids, seed, finished, skip, **more):
    assert list(row_ids) == [0, 1, 2, 3]
    out = [None] * len(prompts)
    for i in reversed(range(len(prompts))):
      if i not in skip:
        asked.append(i)
        out[i] = Completion((i, seed), (-0.1 * i, -1 / 3), i % 2 == 0)
        finished(i, out[i])
    return out

  return sample


def test_nothing_is_kept_without_a_file():
  asked = []
  out = sample_to_end(fake(asked), None, PROMPTS, 0, None, "x")
  assert [c.tokens for c in out] == [(0, 0), (1, 0), (2, 0), (3, 0)]
  assert asked == [3, 2, 1, 0]


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("torn", ["", '{"row": 2, "tok'])
def test_only_missing_rows_are_sampled(tmp_path, cut, torn):
  path = tmp_path / "rows.partial.jsonl"
  whole = sample_to_end(fake([]), None, PROMPTS, 5, path, "x")
  lines = path.read_text().splitlines(keepends=True)
  path.write_text("".join(lines[: 1 + cut]) + torn)
  asked, counts = [], []
  out = sample_to_end(
    fake(asked), None, PROMPTS, 5, path, "x", lambda *c: counts.append(c)
  )
  assert out == whole
  assert asked == [3, 2, 1, 0][cut:]
  rows, tokens = zip(*counts, strict=True)
  assert sum(rows) == 4
  assert sum(tokens) == sum(len(whole[i].tokens) for i in asked)
  assert path.read_text() == "".join(lines)


@pytest.mark.parametrize(
  "change", [{"seed": 6}, {"made_by": "y"}, {"prompts": PROMPTS[:3] + [[8]]}]
)
def test_a_file_of_something_else_is_begun_anew(tmp_path, change):
  path = tmp_path / "rows.partial.jsonl"
  given = {"prompts": PROMPTS, "seed": 5, "made_by": "x"}
  sample_to_end(fake([]), None, partial=path, **given)
  asked = []
  sample_to_end(fake(asked), None, partial=path, **{**given, **change})
  assert asked == [3, 2, 1, 0]
  assert len(path.read_text().splitlines()) == 5


@pytest.mark.parametrize(
  ("number", "change", "again"),
  [
    (2, lambda line: "{", [2]),
    (2, lambda line: line.replace("-0.2", "-0.3"), [2]),
    (4, lambda line: line.replace('"check"', '"other"'), [0]),
    (0, lambda line: line[:-2], [3, 2, 1, 0]),
  ],
)
def test_rows_of_a_changed_line_are_sampled_again(
  number, change, again, tmp_path, capsys
):
  path, asked = tmp_path / "rows.partial.jsonl", []
  whole = sample_to_end(fake([]), None, PROMPTS, 5, path, "x")
  lines = path.read_text().splitlines()
  assert json.loads(lines[0]).keys() == {"key"}
  before, lines[number] = lines[number], change(lines[number])
  assert lines[number] != before
  path.write_text("\n".join(lines) + "\n")
  assert not capsys.readouterr().err
  assert sample_to_end(fake(asked), None, PROMPTS, 5, path, "x") == whole
  assert asked == again
  said = f"rows.partial.jsonl: lines [{number + 1}] were changed"
  assert said in capsys.readouterr().err
