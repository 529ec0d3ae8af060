"""Losses and gradients of objectives against formulas written here in torch.

Ours runs packed batches on two devices; torch runs each completion alone,
through transformers' Llama, and knows nothing of segments, chunks or weights.
"""

import dataclasses

import jax
import numpy as np
import parity
import pytest
from cases import long_but
from helpers import make_mesh

from bct_jax import mesh as meshes
from bct_jax.data.batches import Dataset
from bct_jax.data.chat import Tokens
from bct_jax.experiment.training_rows import weight_tokens
from bct_jax.models import logprobs
from bct_jax.models.lora import Weights
from bct_jax.objectives import make_objective
from bct_jax.sample import score

pytestmark = pytest.mark.parity
VOCAB = 96
SLOW = pytest.mark.slow  # run in continuous integration


def save_llama(folder, seed):
  import torch
  import transformers

  torch.manual_seed(seed)
  config = transformers.LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
  )
  model = transformers.LlamaForCausalLM(config)
  with torch.no_grad():
    for p in model.parameters():
      p.copy_((p.ndim == 1) + torch.randn_like(p) * 0.2)
  model.save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """(ours, torch's) of the policy and of the reference, of other weights."""
  mesh, out = make_mesh(2, 1, 1), []
  for seed in (0, 1):
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder, seed)
    model, params = parity.load(folder, mesh)
    out.append((params, parity.load_torch(folder)))
  return mesh, model, *out


def make_rows(seed, prompts, sizes):
  """Prompts with random completions; weight 1 on those."""
  rng = np.random.default_rng(seed)
  out = []
  for prompt, n in zip(prompts, sizes, strict=True):
    rest = tuple(int(t) for t in rng.integers(3, VOCAB, n))
    weights = (0.0,) * len(prompt) + (1.0,) * n
    out.append(Tokens((*prompt, *rest), weights))
  return out


PROMPTS = [tuple(range(5, 5 + n)) for n in (3, 9, 4, 6, 12, 5)]
CHOSEN = make_rows(0, PROMPTS, (2, 11, 7, 1, 5, 19))
REJECTED = make_rows(1, PROMPTS, (6, 3, 9, 4, 1, 8))
OTHERS = make_rows(2, [p[1:] + (70, 71) for p in PROMPTS], (3, 3, 8, 2, 9, 4))
# The same completions after other prompts.
TAUGHT = [Tokens((80, 81, *r.ids), (0.0, 0.0, *r.weights)) for r in CHOSEN]
EXAMPLE_WEIGHTS = (1.0, 0.5, 2.0, 1.0, 3.0, 0.25)


def logps(model, row):
  """torch: log-probabilities over the vocabulary where a token is trained."""
  import torch

  ids = torch.tensor([row.ids])
  at = torch.tensor(row.weights[1:]) > 0
  return model(ids).logits.log_softmax(-1)[0, :-1][at], ids[0, 1:][at]


def token_logps(model, row):
  over, ids = logps(model, row)
  return over.gather(1, ids[:, None])[:, 0]


def margins(policy, reference):
  """h of Rafailov et al. 2023: the difference of the two log-ratios."""
  out = []
  for chosen, rejected in zip(CHOSEN, REJECTED, strict=True):
    h = 0.0
    for sign, row in ((1, chosen), (-1, rejected)):
      ratio = token_logps(policy, row) - token_logps(reference, row).detach()
      h = h + sign * ratio.sum()
    out.append(h)
  return out


def mean_dpo(policy, reference, beta):
  import torch

  values = [
    -torch.log(1 / (1 + torch.exp(-beta * h)))
    for h in margins(policy, reference)
  ]
  return sum(values) / len(values)


def mean_ipo(policy, reference, beta):
  values = [(h - 1 / (2 * beta)) ** 2 for h in margins(policy, reference)]
  return sum(values) / len(values)


def kls(policy, reference, mine, theirs, forward):
  """Of each completion, at each token: sum over all next tokens."""
  out = []
  for row, other in zip(mine, theirs, strict=True):
    p, q = logps(policy, row)[0], logps(reference, other)[0].detach()
    a, b = (q, p) if forward else (p, q)
    out.append((a.exp() * (a - b)).sum(-1))
  return out


def mean_sft(policy, reference):
  """Each completion's mean over its tokens, weighted by example."""
  del reference
  total = sum(
    w * -token_logps(policy, row).mean()
    for w, row in zip(EXAMPLE_WEIGHTS, CHOSEN, strict=True)
  )
  return total / sum(EXAMPLE_WEIGHTS)


def mean_kl(policy, reference, beta, forward, apart):
  """sft per token, and beta times the divergence per token, there or apart."""
  import torch

  nll = torch.cat([-token_logps(policy, row) for row in CHOSEN])
  rows = OTHERS if apart else CHOSEN
  found = kls(policy, reference, rows, rows, forward)
  if apart:  # an example's other prompt counts as its tokens do
    sizes = [int(sum(row.weights)) for row in CHOSEN]
    parts = zip(sizes, found, strict=True)
    kl = sum(n * x.mean() for n, x in parts) / sum(sizes)
  else:
    kl = torch.cat(found).mean()
  return nll.mean() + beta * kl


CASES = {
  "dpo": ("dpo", {"beta": 0.3}, lambda p, r: mean_dpo(p, r, 0.3)),
  "ipo": ("ipo", {"beta": 0.2}, lambda p, r: mean_ipo(p, r, 0.2)),
  "sft per example": ("sft", {}, mean_sft),
  "kl forward": (
    "kl_to_ref",
    {"beta": 0.7},
    lambda p, r: mean_kl(p, r, 0.7, True, False),
  ),
  "kl reverse": (
    "kl_to_ref",
    {"beta": 0.7, "direction": "reverse"},
    lambda p, r: mean_kl(p, r, 0.7, False, False),
  ),
  "kl on other prompts": (
    "kl_to_ref",
    {"beta": 0.7, "prompts": "install"},
    lambda p, r: mean_kl(p, r, 0.7, True, True),
  ),
  "self_distill": ("self_distill", {}, lambda p, r: mean_taught(p, r)),
}


def mean_taught(policy, reference):
  """The teacher sees the same completions after other prompts."""
  import torch

  return torch.cat(kls(policy, reference, CHOSEN, TAUGHT, True)).mean()


def our_batch(name, objective, mesh, model, reference):
  """Packed by the data code, with what the scorer gives the reference."""
  rows, views = CHOSEN, {}
  if name == "sft per example":
    rows = [
      weight_tokens(row, w, "example")
      for row, w in zip(CHOSEN, EXAMPLE_WEIGHTS, strict=True)
    ]
  if name in ("dpo", "ipo"):
    views = {"rejected": REJECTED}
  if name == "kl on other prompts":
    views["anchor"] = [
      weight_tokens(row, sum(e.weights), "example")
      for row, e in zip(OTHERS, CHOSEN, strict=True)
    ]
  if name == "self_distill":
    views["teacher"] = TAUGHT
  ids = [str(i) for i in range(len(rows))]
  data = Dataset.make(ids, rows, len(rows), 0, 128, 1, True, 4, views)
  if name in ("dpo", "ipo"):
    scorer = score.make_scorer(model, mesh)
    found = {}
    for view, part in {"": CHOSEN, **views}.items():
      cut = [row.weights.index(1.0) for row in part]
      scored = scorer(
        Weights(reference),
        [row.ids[:n] for row, n in zip(part, cut, strict=True)],
        [row.ids[n:] for row, n in zip(part, cut, strict=True)],
      )
      found[view] = tuple(sum(s.logprobs) for s in scored)
    data = dataclasses.replace(data, logprobs=found)
  host = data.batch(0)
  assert host.segments.max() > 1
  return meshes.put_batch(host, mesh)


@pytest.mark.parametrize(
  "case",
  long_but(["kl reverse"], list(CASES)),
)
def test_loss_and_gradients_equal_the_papers(case, models, monkeypatch):
  mesh, model, (params, torch_policy), (reference, torch_reference) = models
  monkeypatch.setattr(logprobs.in_chunks, "__defaults__", (3,))
  monkeypatch.setattr(logprobs.reference_kl, "__defaults__", (3,))
  name, options, formula = CASES[case]
  objective = make_objective(name, options)
  key = case if case in ("sft per example", "kl on other prompts") else name
  with jax.set_mesh(mesh):
    batch = our_batch(key, objective, mesh, model, reference)
    asks = getattr(objective, "uses_reference", False)
    rng = jax.random.PRNGKey(0)

    def mean(params, reference):
      more = {"reference": reference} if asks else {}
      return objective(params, batch, rng, model, **more)[0].value()

    value, grads = jax.jit(jax.value_and_grad(mean))(params, reference)
  torch_policy.zero_grad()
  loss = formula(torch_policy, torch_reference)
  loss.backward()
  assert float(value) == pytest.approx(float(loss.detach()), rel=1e-4)
  ours = parity.hf_tensors(grads, model.config)
  theirs = parity.torch_gradients(torch_policy)
  assert set(ours) == set(theirs)
  for tensor, grad in theirs.items():
    assert np.abs(grad).max() > 0, tensor
    error = np.abs(ours[tensor] - grad).max() / np.abs(grad).max()
    assert error <= 1e-4, f"{tensor}: relative error {error:.1e}"
