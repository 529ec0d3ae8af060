"""Models whose layers differ in what their slots carry, sampled and scored:
states of linear layers, and keys of two shapes."""

import functools

import jax
import numpy as np
import pytest
from helpers import HYBRID, TWO_SHAPES, init_params, make_mesh
from test_sampler import PROMPTS, assert_same, check_greedy, run

from bct_jax.models.decoder import Decoder
from bct_jax.models.lora import Weights
from bct_jax.sample.score import make_scorer

# The slots themselves are test_sampler's.
pytestmark = pytest.mark.long

MODELS = {"linear": Decoder(HYBRID), "two shapes": Decoder(TWO_SHAPES)}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
  return MODELS[request.param]


@pytest.fixture
def sample(model):
  return functools.partial(run, model=model)


@pytest.fixture(scope="module")
def reference(model):
  """Ten prompts with a shared beginning, in four slots that are refilled."""
  return run(model=model)


@pytest.mark.parametrize(
  "change",
  [
    {"batch_size": 3},
    {"prefill": 64},
    pytest.param({"mesh": (2, 2, 2)}, marks=pytest.mark.core),
  ],
  ids=str,
)
def test_samples_do_not_depend_on_batch_prefill_or_mesh(
  change, sample, reference
):
  if "mesh" in change:
    change = {"mesh": make_mesh(*change["mesh"])}
  assert_same(sample(**change), reference)


def test_samples_do_not_depend_on_order_neighbours_or_what_is_shared(
  sample, reference
):
  order = [7, 2, 9, 0]
  again = PROMPTS[7]  # run once, and sampled twice
  out = sample(prompts=[*(PROMPTS[i] for i in order), again], ids=[*order, 77])
  assert_same(out[:4], [reference[i] for i in order])
  assert out[4].tokens != out[0].tokens
  # Without the shared beginning, and with one shorter than the convolution.
  for other in ([40, 41], [*PROMPTS[4][:1], 40]):
    mixed = sample(prompts=[PROMPTS[4], other], ids=[4, 11])
    assert_same(mixed[:1], [reference[4]])


def test_greedy_is_the_argmax_of_whole_forwards(model, sample):
  check_greedy(sample(temperature=0.0, stops=(95,)), model)


def test_scores_are_those_of_the_sampler(model, reference):
  """Prompts and completions of several rows are packed into one."""
  mesh = make_mesh()
  with jax.set_mesh(mesh):
    score = make_scorer(model, mesh, tokens=256)
    weights = Weights(init_params(model, mesh))
    scored = score(weights, PROMPTS, [c.tokens for c in reference])
  for ours, theirs in zip(scored, reference, strict=True):
    np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)
