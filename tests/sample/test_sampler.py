"""The sampler: independent of batch, packing, order and mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
  CONFIG,
  LORA,
  init_params,
  make_mesh,
  random_adapter,
  rules_of,
  sampling,
)

from bct_jax import mesh as meshes
from bct_jax.config import LoraConfig
from bct_jax.models import decoder, lora
from bct_jax.models.lora import Weights
from bct_jax.sample import sampler
from bct_jax.sample.decode import Engine
from bct_jax.sample.prompt_packing import common_prefix

MODEL = decoder.Decoder(CONFIG)
RNG = np.random.default_rng(3)
START = list(range(10, 29))  # a shared beginning, like a system message
PROMPTS = [
  START + list(map(int, RNG.integers(1, 96, n)))
  for n in (1, 3, 9, 4, 17, 2, 30, 8, 5, 6)
]


def run(
  prompts=PROMPTS,
  mesh=None,
  temperature=1.0,
  batch_size=4,
  prefill=8,
  new=12,
  ids=None,
  seed=0,
  stops=(5, 6, 7),
  model=MODEL,
):
  mesh = mesh or make_mesh()
  params, sample = make(
    mesh, temperature, batch_size, prefill, new, stops, model
  )
  with jax.set_mesh(mesh):
    return sample(params, prompts, ids or range(len(prompts)), seed)


@functools.cache
def make(mesh, temperature, batch_size, prefill, new, stops, model=MODEL):
  """Params on the mesh and a sampler, which keeps what it compiled."""
  with jax.set_mesh(mesh):
    params = init_params(model, mesh)
    shapes = jax.eval_shape(model.unstack, params)
    place = meshes.shardings(shapes, rules_of(model, mesh, True), mesh)
    params = jax.jit(model.unstack, out_shardings=place)(params)
  config = sampling(
    temperature=temperature,
    max_new_tokens=new,
    batch_size=batch_size,
    prefill_tokens=prefill,
  )
  stop_ids = frozenset(stops)
  return params, sampler.make_sampler(model, config, stop_ids, mesh)


@functools.cache
def whole_forward(model):
  """Compiles (ids [1, 64], length) -> logits of what follows."""
  params = init_params(model, make_mesh())

  @jax.jit
  def forward(ids, length):
    at = jnp.arange(64)[None]
    hidden = model.hidden(params, ids, at, (at < length).astype(jnp.int32))
    return model.logits(params, hidden[0, length - 1])

  return forward


def last_logits(ids, model=MODEL) -> np.ndarray:
  padded = np.zeros((1, 64), np.int32)
  padded[0, : len(ids)] = ids
  return np.asarray(whole_forward(model)(padded, len(ids)))


@pytest.fixture(scope="module")
def reference():
  return run()


def assert_same(a, b):
  for x, y in zip(a, b, strict=True):
    assert x.tokens == y.tokens and x.stopped == y.stopped
    np.testing.assert_allclose(x.logprobs, y.logprobs, atol=1e-4)


@pytest.mark.parametrize(
  "change",
  [
    pytest.param({"batch_size": 3}, marks=pytest.mark.long),
    pytest.param({"batch_size": 16}, marks=pytest.mark.long),
    pytest.param({"prefill": 64}, marks=pytest.mark.long),
    pytest.param({"mesh": (8, 1, 1)}, marks=pytest.mark.long),
    {"mesh": (2, 2, 2)},
  ],
  ids=str,
)
def test_samples_do_not_depend_on_batch_prefill_or_mesh(change, reference):
  if "mesh" in change:
    change = {"mesh": make_mesh(*change["mesh"])}
  assert_same(run(**change), reference)


def test_samples_do_not_depend_on_order_or_neighbours(reference):
  order = [7, 2, 9, 0]
  out = run(prompts=[PROMPTS[i] for i in order], ids=order)
  assert_same(out, [reference[i] for i in order])
  # Without the shared beginning nothing is run once for all.
  mixed = run(prompts=[PROMPTS[4], [40, 41]], ids=[4, 11])
  assert_same(mixed[:1], [reference[4]])


def test_seed_and_row_id_do_change_samples(reference):
  assert [c.tokens for c in run(seed=1)] != [c.tokens for c in reference]
  ids = [i + 100 for i in range(len(PROMPTS))]
  assert [c.tokens for c in run(ids=ids)] != [c.tokens for c in reference]


def test_greedy_is_the_argmax_of_whole_forwards():
  check_greedy(run(temperature=0.0, stops=(95,)), MODEL)


def check_greedy(out, model):
  for prompt, completion in zip(PROMPTS, out, strict=True):
    ids = list(prompt)
    for token, logprob in zip(
      completion.tokens, completion.logprobs, strict=True
    ):
      logits = last_logits(ids, model)
      assert token == int(np.argmax(logits))
      want = float(jax.nn.log_softmax(logits)[token])
      assert logprob == pytest.approx(want, abs=1e-4)
      ids.append(token)


def test_every_stop_id_ends_a_row_and_nothing_follows(reference):
  ends = set()
  for c in reference:
    inside, last = c.tokens[:-1], c.tokens[-1]
    assert not set(inside) & {5, 6, 7}
    assert c.stopped == (last in (5, 6, 7))
    assert c.stopped or len(c.tokens) == 12
    assert len(c.tokens) == len(c.logprobs)
    ends.add(last)
  # Any token can be made a stop: the first one sampled ends the row at once.
  first = reference[0].tokens[0]
  again = run(stops=(first,))
  assert again[0].tokens == (first,) and again[0].stopped


def sample_all(prompts, slots=4, **arguments):
  params, sample = make(make_mesh(), 1.0, slots, 32, 12, (5, 6, 7))
  ids = arguments.pop("ids", range(len(prompts)))
  with jax.set_mesh(make_mesh()):
    return sample(params, prompts, ids, 0, **arguments)


def test_samples_of_one_prompt_share_its_prefill(monkeypatch):
  """Three samples each, thirty rows in all, through four slots."""
  prompts = [p for p in PROMPTS for _ in range(3)]
  packed = []
  run_prompts = sampler._SamplerRun._pack_tokens

  def counted(self, batch):
    packed.append({*batch.first})
    return run_prompts(self, batch)

  monkeypatch.setattr(sampler._SamplerRun, "_pack_tokens", counted)
  ids = [100 * (i % 3) + i // 3 for i in range(30)]
  out = sample_all(prompts, ids=ids)
  assert sum(map(len, packed)) == 10
  packed.clear()
  wide = sample_all(prompts, slots=16, ids=ids)
  assert sum(map(len, packed)) == 10
  assert_same(wide, out)
  for sample in range(3):
    same = sample_all(PROMPTS, ids=[100 * sample + i for i in range(10)])
    assert_same(out[sample::3], same)
  assert len({c.tokens for c in out}) > 20


def test_rows_may_have_limits_of_their_own(reference):
  limits = [1 + i % 5 for i in range(10)]
  out = sample_all(PROMPTS, limits=limits)
  for short, whole, limit in zip(out, reference, limits, strict=True):
    assert short.tokens == whole.tokens[:limit]
    assert short.stopped == (whole.stopped and len(whole.tokens) <= limit)
  with pytest.raises(ValueError, match="row 3 may have 13 new tokens"):
    sample_all(PROMPTS, limits=[12, 12, 12, 13, 1, 1, 1, 1, 1, 1])


def test_skipped_rows_change_no_bit_of_the_others():
  seen = {}
  whole = sample_all(PROMPTS, finished=seen.__setitem__)
  assert [seen[i] for i in range(10)] == whole
  for skip in ({0}, {1, 4, 6, 8}, set(range(9)), set(range(10))):
    some = sample_all(PROMPTS, skip=skip)
    for i, (a, b) in enumerate(zip(some, whole, strict=True)):
      assert a is None if i in skip else a == b


def test_a_row_can_be_ended_by_its_tokens(reference):
  def third(tokens):
    return 3 if len(tokens) >= 3 else None

  out = sample_all(PROMPTS, find_stop=third)
  for ended, whole in zip(out, reference, strict=True):
    assert ended.tokens == whole.tokens[:3]
    assert ended.stopped == (whole.stopped or len(whole.tokens) >= 3)


def test_one_set_of_prompts_compiles_five_programs(monkeypatch, capsys):
  engines = []
  start = sampler.Engine.__init__

  def kept(self, *arguments):
    start(self, *arguments)
    engines.append(self)

  monkeypatch.setattr(sampler.Engine, "__init__", kept)
  make.cache_clear()
  for seed in (0, 1):
    run(seed=seed)
  params, sample = make(make_mesh(), 1.0, 4, 8, 12, (5, 6, 7), MODEL)
  with jax.set_mesh(make_mesh()):
    sample(jax.tree.map(lambda x: x * 2, params), PROMPTS, range(10), 0)
  (engine,) = engines
  for name in ("start", "prefix", "prefill", "admit", "advance"):
    assert getattr(engine, name)._cache_size() == 1, name
  assert engine.num_programs() == 5
  (line,) = capsys.readouterr().err.splitlines()
  assert line == "sampler: 5 new programs for rows of 64 positions"


def test_slots_shrink_at_the_end_and_no_bit_changes(monkeypatch):
  prompts = [p for p in PROMPTS for _ in range(20)]
  shrink = sampler._SamplerRun._shrink  # pyright: ignore[reportPrivateUsage]
  seen = []

  def watched(self, state, held, sizes):
    state, held = shrink(self, state, held, sizes)
    assert len(state.live) == len(held)
    seen.append(len(held))
    return state, held

  monkeypatch.setattr(sampler._SamplerRun, "_shrink", watched)
  own = Engine.sizes

  def all_rows(sizes, **options):
    seen.clear()
    monkeypatch.setattr(Engine, "sizes", sizes)
    params, sample = make(make_mesh(), 1.0, 200, 64, 40, (5, 6, 7))
    with jax.set_mesh(make_mesh()):
      return sample(params, prompts, range(len(prompts)), 0, **options)

  whole = all_rows(lambda *_: ())
  assert set(seen) == {200}
  # Whether or not bits stay the same.
  assert_same(all_rows(lambda *_: (128, 64)), whole)
  assert min(seen) == 64
  found = []
  assert all_rows(lambda *a: found.append(own(*a)) or found[-1]) == whole
  assert min(seen) == min(found[0], default=200)
  done = {i for i in range(len(prompts)) if i % 3}
  rest = all_rows(own, skip=done)  # as after a kill: fewer rows from the start
  assert [rest[i] for i in range(0, len(prompts), 3)] == whole[::3]


def test_sizes_of_other_bits_are_left_out(monkeypatch):
  params, _ = make(make_mesh(), 1.0, 140, 64, 12, (5, 6, 7))
  with jax.set_mesh(make_mesh()):
    engine = Engine(MODEL, sampling(batch_size=140), (5,), make_mesh())
    bits = engine._bits  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(
      engine, "_bits", lambda *a: bits(*a) ^ np.uint32(a[-1] == 64)
    )
    assert engine.sizes(params, 40) == ()
    mesh = make_mesh(8, 1, 1)
    many = Engine(MODEL, sampling(batch_size=144), (5,), mesh)
    assert many.sizes(params, 40) == ()


def test_logprobs_are_untempered():
  hot = run(temperature=5.0)[0]
  cold = run(temperature=0.0, stops=(95,))[0]  # as the greedy test has it
  assert hot.logprobs[0] <= cold.logprobs[0]
  logprobs = jax.nn.log_softmax(last_logits(PROMPTS[0]))
  assert hot.logprobs[0] == pytest.approx(
    float(logprobs[hot.tokens[0]]), abs=1e-4
  )


def test_temperature_samples_the_softmax():
  """Frequencies of the first token over many rows against the softmax."""
  count = 600
  out = run([PROMPTS[0]] * count, batch_size=100, new=1, temperature=2.0)
  want = np.asarray(jax.nn.softmax(last_logits(PROMPTS[0]) / 2))
  found = np.bincount([c.tokens[0] for c in out], minlength=96) / count
  spread = np.sqrt(want * (1 - want) / count) + 1e-3
  assert (np.abs(found - want) < 5 * spread).all()


@pytest.mark.parametrize("length", [0, 250])
def test_prompt_that_leaves_no_room_is_refused(length):
  with pytest.raises(ValueError, match=f"prompt 1 has {length} tokens.*256"):
    run(prompts=[PROMPTS[0], [1] * length])


@pytest.mark.parametrize(
  ("prompts", "shared"),
  [
    ([[1] * 20, [1] * 20], 19),
    ([[1] * 9, [1] * 30], 8),
    ([[1] * 10 + [2], [1] * 10 + [3]], 10),
    ([[2], [1] * 30], 0),
    ([list(range(40))], 39),
  ],
)
def test_common_prefix_leaves_each_prompt_a_token(prompts, shared):
  assert common_prefix(prompts) == shared


@pytest.mark.long
def test_arms_are_sampled_together_as_apart():
  """Adapters of two ranks and none over one base, in one batch."""
  mesh = make_mesh(2, 1, 2)
  configs = [None, LORA, LoraConfig(2, 3.0, "self_attn", True)]
  _, sample = make(mesh, 1.0, 4, 8, 12, (5, 6, 7))
  with jax.set_mesh(mesh):
    params = init_params(MODEL, mesh)
    arms = [
      Weights(params)
      if config is None
      else Weights(params, random_adapter(params, CONFIG, config), config)
      for config in configs
    ]
    apart = [
      sample(MODEL.unstack(lora.attach_adapter(arm)), PROMPTS, range(10), 0)
      for arm in arms
    ]
    assert len({c.tokens for out in apart for c in out}) > 25
    which = [(i + i // 3) % 3 for i in range(30)]
    prompts = [PROMPTS[i // 3] for i in range(30)]
    together = sample(
      MODEL.unstack(lora.attach_adapters(arms)),
      prompts,
      [i // 3 for i in range(30)],
      0,
      arms=which,
    )
  assert_same(together, [apart[a][i // 3] for i, a in enumerate(which)])
