"""Batches: a pure function of the step, packed without loss."""

import subprocess
import sys

import numpy as np
import pytest

from bct_jax.data.batches import Dataset
from bct_jax.data.chat import Tokens


def tokens(prompt: int, answer: int, start: int = 0) -> Tokens:
  n = prompt + answer
  return Tokens(
    tuple(range(start, start + n)), (0.0,) * prompt + (1.0,) * answer
  )


def make(count=23, size=4, pack=False, seed=0, steps=30, multiple=1, **kwargs):
  rng = np.random.default_rng(1)
  rows = [
    tokens(int(rng.integers(3, 20)), int(rng.integers(1, 9)), 100 * i)
    for i in range(count)
  ]
  return Dataset.make(
    [f"e{i}" for i in range(count)],
    rows,
    size,
    seed,
    kwargs.get("max_length", 64),
    steps,
    pack,
    multiple,
  )


def test_every_epoch_has_every_example_once():
  data = make()
  seen = np.concatenate([data.indices(t) for t in range(23)])  # 4 epochs
  for epoch in range(4):
    part = seen[epoch * 23 : (epoch + 1) * 23]
    assert sorted(part) == list(range(23))
  assert list(seen[:23]) != list(seen[23:46])


def test_order_is_the_same_in_another_process():
  code = (
    "import sys; sys.path.insert(0, 'tests/data')\n"
    "from test_batches import make\n"
    "print([list(map(int, make().indices(t))) for t in (0, 7, 20)])"
  )
  env = {"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)}
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, env=env
  )
  ours = [list(map(int, make().indices(t))) for t in (0, 7, 20)]
  assert done.stdout.strip() == str(ours), done.stderr


def test_seed_changes_the_order():
  assert list(make(seed=0).indices(0)) != list(make(seed=1).indices(0))


@pytest.mark.parametrize("pack", [False, True])
def test_every_position_predicts_the_next_token_of_its_own_example(pack):
  data = make(pack=pack)
  for step in range(30):
    rows = data.batch(step)
    wanted = [data.examples[i] for i in data.indices(step)]
    assert rows.weights.sum() == sum(sum(e.weights) for e in wanted)
    assert data.counts(step) == {
      "tokens": (rows.segments > 0).sum(),
      "trained_tokens": (rows.weights > 0).sum(),
    }
    found = []
    for b in range(rows.tokens.shape[0]):
      for segment in range(1, rows.segments[b].max() + 1):
        at = rows.segments[b] == segment
        ids = (*rows.tokens[b][at], rows.targets[b][at][-1])
        # Within an example the ids count up by one, so targets must too.
        np.testing.assert_array_equal(
          rows.targets[b][at], rows.tokens[b][at] + 1
        )
        np.testing.assert_array_equal(
          rows.positions[b][at], np.arange(at.sum())
        )
        found.append((ids, (0.0, *rows.weights[b][at])))
    assert sorted(found) == sorted((e.ids, e.weights) for e in wanted)
    assert (rows.weights[rows.segments == 0] == 0).all()
    assert ((rows.weights > 0).sum(axis=1) <= rows.num_trained).all()


def test_padding_gives_one_example_per_row():
  data = make()
  for step in range(30):
    rows = data.batch(step)
    assert rows.tokens.shape[0] == 4
    assert rows.segments.max() == 1


def test_packing_needs_fewer_positions():
  padded, packed = make(size=8).layout, make(size=8, pack=True).layout
  assert packed.rows * packed.length < 0.9 * padded.rows * padded.length


def test_packing_counts_what_attention_costs():
  """Of ten examples of 100 positions: five rows of 200 hold no padding, and
  cost more than ten of 104."""
  rows = [tokens(90, 11) for _ in range(10)]
  names = [f"e{i}" for i in range(10)]
  layout = Dataset.make(names, rows, 10, 0, 512, 1, True).layout
  assert (layout.rows, layout.length) == (10, 104)
  short = [tokens(9, 2) for _ in range(10)]  # of 10 positions, 16 alone
  layout = Dataset.make(names, short, 10, 0, 512, 1, True).layout
  assert layout.rows * layout.length < 10 * 16


def test_rows_are_a_multiple_of_the_devices():
  assert make(size=8, pack=True, multiple=4).layout.rows % 4 == 0
  with pytest.raises(ValueError, match="batch_size 4 .* 3 parts"):
    make(multiple=3)


def test_too_long_is_refused_and_not_cut():
  with pytest.raises(ValueError, match="example e.* has .* max_length is 10"):
    make(max_length=10)


def test_nothing_to_train_is_refused():
  with pytest.raises(ValueError, match="example b has no trained token"):
    Dataset.make(["a", "b"], [tokens(3, 2), tokens(3, 0)], 1, 0, 64, 1)


def test_fewer_examples_than_a_batch_are_refused():
  with pytest.raises(ValueError, match="3 examples, but a batch needs 4"):
    make(count=3)


def test_hash_sees_tokens_weights_and_names():
  base = Dataset.make(["a"], [tokens(3, 2)], 1, 0, 64, 1).hash
  for ids, row in (
    (["b"], tokens(3, 2)),
    (["a"], tokens(2, 3)),
    (["a"], tokens(3, 2, 1)),
  ):
    assert Dataset.make(ids, [row], 1, 0, 64, 1).hash != base
