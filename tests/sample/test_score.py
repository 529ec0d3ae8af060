"""Log-probabilities of given completions, against torch and the trainer."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from cases import long_but
from helpers import CONFIG, init_params, make_mesh, sampling

from bct_jax import mesh as meshes
from bct_jax.config import LoraConfig
from bct_jax.models import decoder, lora, partition
from bct_jax.models.lora import Weights
from bct_jax.sample import sampler
from bct_jax.sample.score import bucket, make_scorer

MODEL = decoder.Decoder(CONFIG)
RNG = np.random.default_rng(5)
PAIRS = [
  (RNG.integers(1, 96, p).tolist(), RNG.integers(1, 96, c).tolist())
  for p, c in [(1, 1), (20, 3), (3, 40), (7, 0), (90, 9), (1, 100), (12, 12)]
]
PROMPTS, COMPLETIONS = zip(*PAIRS, strict=True)
LORA = LoraConfig(rank=4, alpha=32.0, targets="_proj$", rslora=False)


def with_adapter(params):
  """Weights with an adapter that changes something."""
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    params,
  )
  adapter = lora.init_adapter(lora.abstract_adapter(shapes, CONFIG, LORA), 0)
  adapter = jax.tree.map(
    lambda x: x + 0.02 * np.cos(np.arange(x.size)).reshape(x.shape), adapter
  )
  return Weights(params, adapter, LORA)


@functools.cache
def reference(adapted):
  """Weights on one device, and whole forward passes of one padded row."""
  with jax.set_mesh(make_mesh()):
    params = init_params(MODEL, make_mesh())
    weights = with_adapter(params) if adapted else Weights(params)
    folded = lora.merge_adapter(weights)

  @jax.jit
  def forward(ids, length):
    at = np.arange(ids.shape[1])[None]
    hidden = MODEL.hidden(folded, ids, at, (at < length).astype(np.int32))
    return jax.nn.log_softmax(MODEL.logits(folded, hidden[0]))

  return weights, forward


def naive(prompt, completion, adapted=False):
  """Softmax of all positions, then those of the completion."""
  ids = [*prompt, *completion]
  padded = np.zeros((1, 256), np.int32)
  padded[0, : len(ids) - 1] = ids[:-1]
  logprobs = np.asarray(reference(adapted)[1](padded, len(ids) - 1))
  logprobs = logprobs[len(prompt) - 1 : len(ids) - 1]
  return logprobs[np.arange(len(completion)), completion], logprobs.argmax(-1)


@pytest.mark.parametrize(
  ("shape", "adapted"),
  long_but(
    [((2, 2, 2), True)],
    [((1, 1, 1), False), ((8, 1, 1), False), ((2, 2, 2), True)],
  ),
  ids=str,
)
def test_scores_are_those_of_whole_forwards(shape, adapted):
  mesh = make_mesh(*shape)
  with jax.set_mesh(mesh):
    params = init_params(MODEL, mesh)
    weights = with_adapter(params) if adapted else Weights(params)
    found = make_scorer(MODEL, mesh)(weights, PROMPTS, COMPLETIONS)
  for (prompt, completion), scored in zip(PAIRS, found, strict=True):
    want, best = naive(prompt, completion, adapted)
    np.testing.assert_allclose(scored.logprobs, want, atol=1e-5)
    assert scored.greedy == tuple(best == completion)


@pytest.mark.long
def test_what_the_sampler_draws_has_its_own_logprobs():
  """Greedy tokens are the greedy ones here too, and as likely."""
  mesh = make_mesh(2, 2, 2)
  with jax.set_mesh(mesh):
    params = init_params(MODEL, mesh)
    rules = partition.rules(CONFIG, mesh.shape["tensor"], decode=True)
    shapes = jax.eval_shape(MODEL.unstack, params)
    place = meshes.shardings(shapes, rules, mesh)
    flat = jax.jit(MODEL.unstack, out_shardings=place)(params)
    sample = sampler.make_sampler(MODEL, sampling(), frozenset({5}), mesh)
    out = sample(flat, PROMPTS, range(len(PROMPTS)), 0)
    found = make_scorer(MODEL, mesh)(
      Weights(params), PROMPTS, [c.tokens for c in out]
    )
  for completion, scored in zip(out, found, strict=True):
    np.testing.assert_allclose(scored.logprobs, completion.logprobs, atol=1e-4)
    assert all(scored.greedy)


def test_sets_of_like_sizes_share_a_program():
  """Also batches of one call, the last of which is not full."""
  mesh = make_mesh(2)
  counts, compiled, sets = [], [], []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: compiled.append(name)
  )

  def programs():
    return sum("backend_compile" in name for name in compiled)

  with jax.set_mesh(mesh):
    weights = Weights(init_params(MODEL, mesh))
    score = make_scorer(MODEL, mesh, tokens=256)
    before = programs()
    for seed in range(3):
      rng = np.random.default_rng(seed)
      prompts = [rng.integers(1, 96, 30 - i % 9).tolist() for i in range(40)]
      rest = [rng.integers(1, 96, 33 - i % 5).tolist() for i in range(40)]
      found = score(weights, prompts, rest, counts.append)
      sets.append((prompts, rest, found))
      assert sum(counts) == 40 * (seed + 1)
      if seed == 0:
        first = programs()
  assert first > before
  assert programs() == first
  for prompts, rest, found in sets:
    for i, scored in enumerate(found):
      want, _ = naive(prompts[i], rest[i])
      np.testing.assert_allclose(scored.logprobs, want, atol=1e-5)


@pytest.mark.parametrize(
  ("prompt", "completion"), [(0, 3), (200, 58), (1, 257)]
)
def test_what_does_not_fit_is_refused(prompt, completion):
  mesh = make_mesh()
  score = make_scorer(MODEL, mesh)
  with pytest.raises(ValueError, match=f"completion 1 has {completion} tokens"):
    score(None, [[1], [1] * prompt], [[2], [3] * completion])


def test_a_row_may_fill_the_context():
  mesh = make_mesh()
  prompt, rest = [3] * 200, RNG.integers(1, 96, 57).tolist()
  with jax.set_mesh(mesh):
    (found,) = make_scorer(MODEL, mesh)(reference(False)[0], [prompt], [rest])
  want, _ = naive(prompt, rest)
  np.testing.assert_allclose(found.logprobs, want, atol=1e-5)


def test_buckets_are_few_and_near():
  sizes = [bucket(n) for n in range(1, 8193)]
  assert len(set(sizes)) == 48
  assert all(n <= s < 1.25 * n + 1 for n, s in enumerate(sizes, 1))


@pytest.mark.parity
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 4, 1)], ids=str)
def test_scores_are_those_of_torch(tiny_folder, shape):
  import torch
  from parity import load, load_torch

  mesh = make_mesh(*shape)
  reference = load_torch(tiny_folder)
  prompts = [[1 + 3 * x % 250 for x in p] for p in PROMPTS]
  with jax.set_mesh(mesh):
    model, params = load(tiny_folder, mesh)
    found = make_scorer(model, mesh)(Weights(params), prompts, COMPLETIONS)
  for prompt, rest, scored in zip(prompts, COMPLETIONS, found, strict=True):
    if not rest:
      assert dataclasses.astuple(scored) == ((), ())
      continue
    with torch.no_grad():
      logits = reference(torch.tensor([[*prompt, *rest]])).logits[0]
    logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    want = logprobs.gather(1, torch.tensor(rest)[:, None])[:, 0]
    np.testing.assert_allclose(scored.logprobs, want.numpy(), atol=1e-4)
    assert scored.greedy == tuple(
      (logprobs.argmax(-1) == torch.tensor(rest)).tolist()
    )
