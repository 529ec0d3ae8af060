"""The contract of every registered objective, whatever it asks of the data.

A new entry of OBJECTIVES is tested here by itself: its batches are made by the
code that makes those of runs, from random rows.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from helpers import CONFIG, init_params, make_mesh, make_step, run_steps

from bct_jax.config import ConfigError
from bct_jax.data.batches import Dataset
from bct_jax.data.chat import Tokens
from bct_jax.experiment.rollout_rows import make_rows
from bct_jax.mesh import put_batch
from bct_jax.models import logprobs
from bct_jax.models.decoder import Decoder
from bct_jax.objectives import (
  OBJECTIVES,
  PolicyGradient,
  data_needs,
  make_objective,
)
from bct_jax.types import Rows

# Options whose code is another than that of the defaults.
MORE = [
  ("kl_to_ref", {"direction": "reverse"}),
  ("kl_to_ref", {"prompts": "install"}),
  ("policy_gradient", {"kl_coef": 0.2, "clip": 0.2}),
]
CASES = [
  *((name, {}) for name in sorted(OBJECTIVES)),
  *MORE,
]
MODEL = Decoder(dataclasses.replace(CONFIG, layers=CONFIG.layers[:1]))
ROWS = 4


def random_rows(rng, counts, width) -> list[Tokens]:
  """A prompt of 1 to `width` tokens and so many trained ones, each."""
  out = []
  for count in counts:
    prompt = int(rng.integers(1, width))
    ids = rng.integers(0, CONFIG.vocab_size, prompt + count)
    weights = (0.0,) * prompt + (1.0,) * count
    out.append(Tokens(tuple(map(int, ids)), weights))
  return out


def contract_rows(objective) -> Rows:
  """A packed batch of eight rows with all that the objective asks for.

  A view has as many trained tokens as the example: what some objectives need,
  and none may mind.
  """
  rng = np.random.default_rng(0)
  counts = [int(n) for n in rng.integers(1, 9, 12)]
  asked = data_needs(objective)
  if isinstance(objective, PolicyGradient):
    return rollout_rows(objective, random_rows(rng, counts, 7))
  views = {name: random_rows(rng, counts, 7) for name in asked.extra_rows}
  rows = random_rows(rng, counts, 7)
  ids = [str(i) for i in range(len(rows))]
  data = Dataset.make(ids, rows, 12, 0, 16, 1, True, 2 * ROWS, views)
  if asked.scored:
    drawn = {
      view: tuple(map(float, -rng.uniform(1, 30, 12))) for view in ("", *views)
    }
    data = dataclasses.replace(data, logprobs=drawn)
  return data.batch(0)


def rollout_rows(objective, examples) -> Rows:
  """The same of completions of groups of four, with rewards."""
  rng = np.random.default_rng(1)
  prompts, rollouts = [], []
  for example in examples:
    at = example.weights.index(1.0)
    drawn = example.ids[at:]
    prompts.append(example.ids[:at])
    rollouts.append(
      {
        "reward": rng.uniform(),
        "tokens": drawn,
        "logprobs": list(-rng.uniform(4, 5, len(drawn))),
        "reference_logprobs": list(-rng.uniform(4, 5, len(drawn))),
      }
    )
  ids = [str(i) for i in range(len(examples))]
  data = Dataset.make(ids, examples, 12, 0, 16, 1, True, 2 * ROWS)
  return make_rows(data, prompts, rollouts, objective, 2 * ROWS)


def each_array(rows: Rows, change) -> Rows:
  """Rows with every array changed, those of views too."""

  def one(value):
    if isinstance(value, Rows):
      return each_array(value, change)
    return change(value) if isinstance(value, np.ndarray) else value

  return Rows(
    *(one(v) for v in rows[:-1]),
    extras={name: one(v) for name, v in rows.extras.items()},
  )


def take(rows: Rows, index) -> Rows:
  return each_array(rows, lambda x: x[index])


def masked(rows: Rows, index) -> Rows:
  """Weight 0 in some rows, and in those of the views."""

  def one(r):
    weights = r.weights.copy()
    weights[index] = 0
    extras = {
      name: one(x) if isinstance(x, Rows) else x for name, x in r.extras.items()
    }
    return r._replace(weights=weights, extras=extras)

  return one(rows)


@functools.cache
def params(seed):
  return init_params(MODEL, make_mesh(), seed)


@pytest.fixture(
  scope="module",
  params=[
    case
    if case in (("sft", {}), ("dpo", {}))
    else pytest.param(case, marks=pytest.mark.long)
    for case in CASES
  ],
  ids=lambda c: "-".join([c[0], *map(str, c[1].values())]),
)
def case(request):
  objective, mesh = make_objective(*request.param), make_mesh()

  @jax.jit
  def sums(params, reference, batch):
    more = (
      {"reference": reference} if data_needs(objective).uses_reference else {}
    )

    def total(params):
      key = jax.random.PRNGKey(0)
      loss, metrics = objective(params, batch, key, MODEL, **more)
      return loss.total, (loss, metrics)

    grads, aux = jax.grad(total, has_aux=True)(params)
    return (grads, *aux)

  def call(rows, seed=0):
    batch = put_batch(rows, mesh)
    return jax.tree.map(np.asarray, sums(params(seed), params(2), batch))

  rows = contract_rows(objective)
  assert rows.segments.max() > 1 and len(rows.weights) == 2 * ROWS
  assert (rows.weights.sum(axis=1) > 0).sum() > ROWS
  return call, rows


def assert_close(a, b):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, y, rtol=2e-4, atol=2e-4 * max(1, np.abs(y).max())
    ),
    a,
    b,
  )


def test_adds_over_a_split_batch_in_any_order(case):
  call, rows = case
  order = np.random.default_rng(1).permutation(2 * ROWS)
  parts = [call(take(rows, order[:ROWS])), call(take(rows, order[ROWS:]))]
  whole = call(rows)
  assert max(np.abs(g).max() for g in jax.tree.leaves(whole[0])) > 1e-3
  assert_close(whole, jax.tree.map(np.add, *parts))
  assert_close(whole, call(take(rows, order)))


def test_ignores_rows_without_weight(case):
  call, rows = case
  hidden = masked(rows, slice(ROWS, None))
  assert_close(call(hidden), call(take(hidden, slice(0, ROWS))))


def test_is_finite_on_a_masked_batch(case):
  call, rows = case
  grads, loss, metrics = call(masked(rows, slice(None)))
  assert float(loss.weight) == 0 and float(loss.total) == 0
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((grads, metrics)))


def test_its_weights_do_not_depend_on_the_params(case):
  call, rows = case
  (_, a, more_a), (_, b, more_b) = call(rows), call(rows, seed=1)
  assert float(a.weight) == float(b.weight) > 0
  assert {k: float(m.weight) for k, m in more_a.items()} == {
    k: float(m.weight) for k, m in more_b.items()
  }
  assert float(a.total) != float(b.total)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_depends_neither_on_mesh_nor_accumulation(name):
  objective = make_objective(name, {})
  rows = contract_rows(objective)
  setups = [
    make_step(objective, mesh, accum, MODEL.config)
    for mesh, accum in ((make_mesh(), 1), (make_mesh(2, 2, 2), 2))
  ]
  one, other = (run_steps(setup, [rows]) for setup in setups)
  for key, value in one[0][0].items():
    assert other[0][0][key] == pytest.approx(value, rel=2e-4, abs=1e-6), key
  # Adam's first update is a sign, which rounding may turn where it is tiny.
  moved = jax.tree.map(
    lambda a, b: np.mean(np.abs(a - b) > 2e-5), one[1], other[1]
  )
  assert max(jax.tree.leaves(moved)) < 0.01


def shapes(jaxpr):
  """Of every array that a program makes, also within loops."""
  for eqn in jaxpr.eqns:
    for var in eqn.outvars:
      yield getattr(var.aval, "shape", ())
    for value in jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from shapes(inner)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_never_has_the_vocabulary_of_a_whole_batch(name, monkeypatch):
  """Also not of all trained positions: of CHUNK of each row, one at a time."""
  for function in (
    logprobs.in_chunks,
    logprobs.at_trained,
    logprobs.row_logprobs,
    logprobs.token_logprobs,
  ):
    monkeypatch.setattr(function, "__defaults__", (2,))
  monkeypatch.setattr(logprobs.reference_kl, "__defaults__", (2,))
  objective, mesh = make_objective(name, {}), make_mesh()
  rows = contract_rows(objective)
  assert rows.num_trained >= 8

  def total(params, reference, batch):
    more = (
      {"reference": reference} if data_needs(objective).uses_reference else {}
    )
    key = jax.random.PRNGKey(0)
    return objective(params, batch, key, MODEL, **more)[0].total

  program = jax.make_jaxpr(jax.grad(total))(
    params(0), params(0), put_batch(rows, mesh)
  )
  seen = [s for s in shapes(program.jaxpr) if s and s[-1] == CONFIG.vocab_size]
  assert (2 * ROWS, 2, CONFIG.vocab_size) in seen
  assert max(np.prod(s) for s in seen) <= max(
    2 * ROWS * 2 * CONFIG.vocab_size, CONFIG.width * CONFIG.vocab_size
  )


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("dpp", {}, r"train\.objective = 'dpp'.*did you mean 'dpo'"),
    ("sft", {"beta": 1.0}, r"train\.options\.beta: unknown; .* sft are \[\]"),
    ("dpo", {"bet": 1.0}, r"options\.bet: unknown \(did you mean 'beta'\?\)"),
    ("dpo", {"beta": "x"}, r"options\.beta: float is needed, found 'x'"),
    ("dpo", {"beta": 0}, r"options\.beta = 0: must be positive"),
    ("dpo", {"rejected": "shufled"}, r"rejected = 'shufled'.*'shuffled'"),
    ("kl_to_ref", {"direction": "up"}, r"direction = 'up': must be one of"),
    ("kl_to_ref", {"prompts": "evals"}, r"prompts = 'evals': must be 'train'"),
  ],
)
def test_wrong_options_are_named(name, options, message):
  with pytest.raises(ConfigError, match=message):
    make_objective(name, options)


def test_equal_options_are_one_objective():
  """So that arms that differ in nothing else share a compiled step."""
  a, b = (make_objective("dpo", {"beta": 0.2}) for _ in range(2))
  assert a == b and hash(a) == hash(b)
  assert a != make_objective("dpo", {}) and a != make_objective("ipo", {})
