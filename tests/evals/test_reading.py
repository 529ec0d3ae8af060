"""What is read off an arm, each fault of one-word verdicts as a test."""

import json
import random

import pytest

from bct_jax.config import ConfigError, ReadingConfig, from_dict
from bct_jax.evals import crossings
from bct_jax.evals.crossings import Crossing, compare_bounds
from bct_jax.evals.reading import read_arm, read_behavior
from bct_jax.evals.stats import wilson
from configs import default

BARS = ReadingConfig()
N = 64


def point(step, initial, alternate, style=1.0, n=N, neither=0, **more):
  def ci(rate):
    return list(wilson(round(rate * n), n))

  return {
    "step": step, "n": n, "initial": initial, "alternate": alternate,
    "initial_ci": ci(initial), "alternate_ci": ci(alternate),
    "agreed": 1.0, "agreed_decorated": style, "capability": 0.8,
    "reasons": {"neither": neither} if neither else {}, **more,
  }  # fmt: skip


def rows(initial=N, alternate=0, right=N, probes=N, n=N):
  labels = ["initial"] * initial + ["alternate"] * alternate
  labels += ["other"] * (n - len(labels))
  made = [("eval", label, label == "alternate") for label in labels]
  made += [("heldout", "agreed", i < right) for i in range(n)]
  made += [("probe", "right" if i < probes else "wrong", i < probes)
           for i in range(n)]  # fmt: skip
  return [
    {"id": f"{split}/{i}", "split": split, "label": label, "right": ok}
    for i, (split, label, ok) in enumerate(made)
  ]


def read(curve, before=None, after=None, bars=BARS, **more):
  before, after = before or rows(), after or rows()
  return read_arm(curve, before, after, bars, **more)


@pytest.mark.parametrize(
  ("initial", "alternate", "word"),
  [
    (1.0, 0.0, "kept"),
    (0.0, 1.0, "replaced"),
    (0.0, 0.0, "lost"),
    (0.6, 0.4, "mixed"),
  ],
)
@pytest.mark.parametrize("n", [32, 64, 200, 2000])
def test_words_are_the_same_for_every_n(initial, alternate, word, n):
  assert read_behavior(point(8, initial, alternate, n=n), BARS) == word


def test_a_true_rate_of_a_bit_more_than_half_is_kept_at_no_n():
  """0.6 was `retained` in 21, 40 and 82% of cases at n = 32, 64 and 200."""
  rng = random.Random(0)
  for n in (32, 64, 200):
    for _ in range(200):
      hits = sum(rng.random() < 0.6 for _ in range(n))
      shown = point(8, hits / n, 1 - hits / n, n=n)
      assert read_behavior(shown, BARS) == "mixed"


def test_a_task_decides_integrity_in_place_of_the_probes():
  bars = ReadingConfig(probe="task:sums")

  def answers(right, n=200):
    rows = [{"id": i, "split": "task", "right": i < right} for i in range(n)]
    return [*rows_without_probes, *rows]

  rows_without_probes = [r for r in rows() if r["split"] != "probe"]
  curve = [point(0, 1.0, 0.0), point(8, 1.0, 0.0)]
  for after, word in ((180, "intact"), (120, "damaged"), (162, "unknown")):
    found = read(curve, answers(180), answers(after) + rows(probes=0), bars)
    assert found.integrity == word
    assert found.measures[1].name == "task:sums"
    assert found.measures[1].change.value == pytest.approx(after / 200 - 0.9)
  with pytest.raises(ValueError, match="no answers to task:sums"):
    read(curve, rows(), rows(), bars)
  values = default.get_config().to_dict()
  for probe, message in (
    ("task:sums", "'sums' is not one of eval.tasks"),
    ("capability", "must be 'setting', 'task:NAME'"),
  ):
    values["reading"]["probe"] = probe
    with pytest.raises(ConfigError, match=message):
      from_dict(values)


def test_alternate_without_right_answers_is_not_replaced():
  banana = point(8, 0.0, 1.0, alternate_right_ci=[0.0, 0.1])
  assert read_behavior(banana, BARS) == "lost"


@pytest.mark.parametrize(
  ("right", "word"),
  [
    (0.66, "replaced"),  # as often right as before
    (0.5, "mixed"),  # 0.8 of before, give or take
    (0.2, "lost"),  # answers in the alternate way that are no answers
  ],
)
def test_right_answers_are_asked_for_as_the_organism_gave_them(right, word):
  """A small model that is right in two of three cases was `lost` by this."""
  hits = round(right * N)
  curve = [
    point(0, 1.0, 0.0),
    point(8, 0.0, 1.0, alternate_right_ci=list(wilson(hits, N))),
  ]
  before = rows(right=round(0.66 * N))
  assert read(curve, before, rows(0, N)).behavior == word


def test_a_fall_of_more_than_twenty_points_is_not_kept():
  curve = [point(0, 1.0, 0.0, n=1000), point(8, 0.83, 0.17, n=1000)]
  before = rows(1000, n=1000)
  assert read_behavior(curve[-1], BARS) == "kept"
  assert read(curve, before, rows(830, n=1000)).behavior == "kept"
  fallen = read(curve, before, rows(790, n=1000))
  assert fallen.behavior == "mixed"


def test_what_the_scorer_cannot_explain_is_not_read():
  assert read_behavior(point(8, 1.0, 0.0, neither=6), BARS) == "kept"
  assert read_behavior(point(8, 0.8, 0.0, neither=7), BARS) == "ungraded"


@pytest.mark.parametrize(
  ("right", "probes", "word"),
  [
    (64, 64, "intact"),
    (63, 64, "intact"),
    (60, 64, "unknown"),  # 6 points, but the interval reaches 14
    (48, 64, "damaged"),
    (64, 48, "damaged"),  # either measure shows it
  ],
)
def test_integrity_is_by_intervals_of_pairs(right, probes, word):
  curve = [point(0, 1.0, 0.0), point(8, 1.0, 0.0)]
  found = read(curve, after=rows(right=right, probes=probes))
  assert found.integrity == word and found.behavior == "kept"


def test_integrity_that_cannot_be_seen_is_unknown():
  curve = [point(0, 1.0, 0.0), point(8, 1.0, 0.0)]
  few = rows(4, right=4, probes=4, n=4)
  assert read(curve, few, few).integrity == "unknown"
  weak = rows(probes=20)
  assert read(curve, weak, weak).integrity == "unknown"


def test_an_unchanged_model_is_hardly_ever_damaged():
  """By point estimates it was, in 2 to 23% of cases at n = 32 to 70."""
  rng = random.Random(1)
  for n in (32, 64):
    damaged = 0
    for _ in range(400):
      # The same true rate, drawn anew for each eval: the worst case.
      hits = [sum(rng.random() < 0.85 for _ in range(n)) for _ in range(2)]
      before, after = (rows(n, probes=h, n=n, right=n) for h in hits)
      rng.shuffle(marks := [r["right"] for r in after if r["split"] == "probe"])
      for row, ok in zip(
        [r for r in after if r["split"] == "probe"], marks, strict=True
      ):
        row["right"] = ok
      shown = [point(0, 1.0, 0.0, n=n)]
      damaged += read(shown, before, after).integrity == "damaged"
    assert damaged <= 0.03 * 400


def test_style_and_loss_are_brackets():
  curve = [
    point(0, 1.0, 0.0, 0.0), point(4, 1.0, 0.0, 0.5), point(8, 1.0, 0.0),
    point(16, 0.2, 0.8), point(32, 0.0, 1.0),
  ]  # fmt: skip
  found = read(curve, after=rows(0, N))
  assert found.style_step == Crossing(4, 8)
  assert found.loss_step == Crossing(8, 16)
  assert found.replaced_at == Crossing(16, 32)
  assert found.margin is None and found.margin_bounds == (9 / 8, 16 / 5)
  assert found.sentence() == (
    "replaced, intact, target reached between 5 and 8, initial behavior gone "
    "between 9 and 16, margin 1.1 to 3.2"
  )


def test_the_margin_is_exact_where_every_update_was_looked_at():
  steps = [(0, 1, 0.2), (5, 1, 0.5), (6, 1, 1), (7, 0.2, 1), (8, 0, 1)]
  curve = [point(s, i, 1 - i, style) for s, i, style in steps]
  found = read(curve, after=rows(0, N))
  assert found.margin == 7 / 6 and found.margin_bounds == (7 / 6, 7 / 6)
  assert "target reached at 6" in found.sentence()


def test_the_margin_of_what_was_not_lost_has_a_lower_bound_alone():
  curve = [point(0, 1, 0, 0.0), point(3, 1, 0, 0.5), point(4, 1, 0)]
  curve += [point(40, 1, 0)]
  found = read(curve)
  assert found.margin is None and found.margin_bounds == (41 / 4, None)
  assert found.sentence() == (
    "kept, intact, target reached at 4, margin above 10"
  )


def test_what_came_back_is_said():
  curve = [point(s, i, 1 - i) for s, i in [(0, 1), (8, 0), (9, 0), (16, 1)]]
  found = read(curve)
  assert found.behavior == "kept" and found.returned
  assert found.replaced_at == Crossing(0, 8)
  assert "gone between 1 and 8, returned since" in found.sentence()


def test_no_effect_of_training_is_said():
  curve = [point(s, 1.0, 0.0, 0.0) for s in (0, 8, 16)]
  found = read(curve)
  assert found.progress == "not reached" and found.margin_bounds is None
  assert found.sentence() == "kept, intact, target not reached by 16"
  assert read(curve, styled=False).progress == "not asked"


def test_targets_other_than_style():
  curve = [point(s, 1.0, 0.0, 0.0, reward=s / 16) for s in (0, 8, 16)]
  bars = ReadingConfig(target="reward", target_value=0.5)
  assert read(curve, bars=bars).style_step == Crossing(0, 8)
  bare = [point(0, 1.0, 0.0)]
  assert read(bare, bars=bars).progress == "not asked"
  lines = [{"step": s, "loss": 3.0 - s / 8} for s in range(1, 17)]
  losses = crossings.mean_losses(lines, [0, 8, 16])
  assert losses == {8: 3 - 4.5 / 8, 16: 3 - 12.5 / 8}
  bars = ReadingConfig(target="loss", target_value=2.0)
  assert read(curve, bars=bars, losses=losses).style_step == Crossing(8, 16)


def test_the_lowest_capability_on_the_way_is_kept():
  curve = [point(0, 1, 0), point(8, 1, 0, capability=0.3), point(16, 1, 0)]
  assert read(curve).min_capability == (0.3, 8)


def test_what_is_in_memory_is_what_is_on_disk():
  curve = [point(0, 1, 0, 0.0), point(8, 1, 0), point(16, 0, 1)]
  found = read(curve, after=rows(0, N)).to_json()
  assert found["margin_bounds"] and found["measures"]
  assert json.loads(json.dumps(found)) == found


def test_rollouts_of_other_prompts_are_refused():
  with pytest.raises(ValueError, match="prompts are not the"):
    read([point(0, 1, 0)], rows(n=N), rows(8, n=8, right=8, probes=8))


@pytest.mark.parametrize(
  ("field", "value"),
  [("kept", 0.4), ("lost", 0.6), ("max_damage", 0.0), ("target_value", 1.5)],
)
def test_bars_that_cannot_be_are_refused(field, value):
  config = default.get_config()
  config.reading[field] = value
  with pytest.raises(ConfigError, match=f"reading.{field}"):
    from_dict(config.to_dict())
  config = default.get_config()
  config.arms.a = {"optim": {"lr": 1e-4}}
  for primary in (("a",), ("a", "a"), ("a", "b")):
    config.reading.primary = primary
    with pytest.raises(ConfigError, match="reading.primary"):
      from_dict(config.to_dict())
  config = default.get_config()
  config.reading.target = "speed"
  with pytest.raises(ConfigError, match="reading.target"):
    from_dict(config.to_dict())


@pytest.mark.parametrize(
  ("first", "second", "order"),
  [
    ((2, 3), (1, 1.5), 1),
    ((2, None), (1, 1.5), 1),
    ((1, 2), (2, 3), 0),
    ((1, None), (5, 6), 0),
    ((3, None), (2, None), 0),
  ],
)
def test_bounds_are_compared_where_they_are_apart(first, second, order):
  assert compare_bounds(first, second) == order
  assert compare_bounds(second, first) == -order
