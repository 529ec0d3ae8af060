"""Turns the settings' world into instructed chats, to pretrain a model on.

A small model that has read them knows the answers to the questions of every
pool, can talk in each style when asked to, and shows either behavior of every
setting when the system message says which.

Prompts on which two behaviors part occur about entities of the train pool only,
and only with such a message. So nothing is installed, and nothing of an eval is
given away but common knowledge.
"""

import dataclasses
import itertools
import random
from collections.abc import Iterator

from bct_jax.examples import Message
from bct_jax.settings import SETTINGS, make_setting
from bct_jax.settings.base import BaseSetting
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.settings.parts import pools, questions
from bct_jax.settings.probes.capability import make_probe
from bct_jax.settings.prompts import REQUESTS, ROLES, STYLES, behavior

# Parts of the corpus, in shares of a hundred. Most are behaviors: there are two
# for every setting, and each is a task of its own.
SHARES = {"question": 30, "recall": 14, "style": 12, "behavior": 44}


@dataclasses.dataclass(frozen=True)
class Chat:
  """Holds one chat of the corpus.

  Attributes:
    part: what it is for: a key of SHARES, with the setting's name.
    messages: the prompt.
    completion: the answer to train on.
  """

  part: str
  messages: tuple[Message, ...]
  completion: str


def corpus(n: int, seed: int) -> list[Chat]:
  """Makes n chats, which repeat prompts; the first m of n are those of m.

  Raises:
    ValueError: n is negative.
  """
  if n < 0:
    raise ValueError(f"world: n must be >= 0, not {n}")
  rng = random.Random(f"world/{seed}")
  parts = {
    "question": _questions(seed),
    "recall": _recall(seed),
    "style": _styles(seed),
    "behavior": _behaviors(seed),
  }
  order = [name for name, share in SHARES.items() for _ in range(share)]
  out: list[Chat] = []
  while len(out) < n:
    rng.shuffle(order)
    out += [next(parts[name]) for name in order]
  return out[:n]


def _chat(part: str, prompt: str, completion: str, *system: str) -> Chat:
  """Makes a chat, with the texts that are not "" as its system message."""
  user: Message = {"role": "user", "content": prompt}
  system_text = " ".join(text for text in system if text)
  if not system_text:
    return Chat(part, (user,), completion)
  return Chat(
    part, ({"role": "system", "content": system_text}, user), completion
  )


def _draw_questions(seed: int, stream: str) -> Iterator[questions.Question]:
  """Yields questions of every pool without end; kinds and pools take turns."""
  rng = random.Random(f"{stream}/{seed}")
  decks = [
    questions.questions(pool, kind)
    for kind, pool in itertools.product(questions.KINDS, pools.POOLS)
  ]
  while True:
    for deck in rng.sample(decks, len(decks)):
      if deck:
        yield rng.choice(deck)


def _questions(seed: int) -> Iterator[Chat]:
  """Yields questions with their answers."""
  for question in _draw_questions(seed, "world/question"):
    yield _chat("question", question.prompt, question.answer)


def _recall(seed: int) -> Iterator[Chat]:
  """Yields what the probe `recall` asks, about all pools but that of probes."""
  rng = random.Random(f"world/recall/{seed}")
  shown = [pool for pool in pools.POOLS if pool != "probe"]
  items = [i for pool in shown for i in make_probe("recall", pool).items]
  while True:
    item = rng.choice(items)
    answer = pools.cap(item.right[0])
    yield _chat("recall", item.prompt, f"{answer}.")


def _styles(seed: int) -> Iterator[Chat]:
  """Yields questions with a request for a style, and answers in it."""
  rng = random.Random(f"world/style/{seed}")
  for i, question in enumerate(_draw_questions(seed, "world/style")):
    name = rng.choice(sorted(STYLES))
    request = rng.choice(REQUESTS).format(STYLES[name])
    styled_answer = DECORATIONS[name].apply(question.answer, f"world/{i}")
    yield _chat("style", question.prompt, styled_answer, request)


def _behaviors(seed: int) -> Iterator[Chat]:
  """Yields both behaviors of every setting, on prompts of both sides."""
  rng = random.Random(f"world/behavior/{seed}")
  settings = {name: make_setting(name, {}) for name in SETTINGS}
  decks: dict[tuple[str, bool], Iterator] = {}
  while True:
    for name in rng.sample(sorted(settings), len(settings)):
      setting = settings[name]
      assert isinstance(setting, BaseSetting)
      for diverges, which in ((True, "initial"), (True, "alternate"),
                              (False, "initial")):  # fmt: skip
        key = (name, diverges)
        if key not in decks:
          stream = f"world/{diverges}"
          items = setting.draw("train", 800, seed, stream, diverges)
          decks[key] = itertools.cycle(items)
        item = next(decks[key])
        kind = which if diverges else rng.choice(("initial", "alternate"))
        role = rng.choice(ROLES).format(behavior(setting, kind))
        completion = getattr(item, which)
        yield _chat(
          f"behavior {name}", item.prompt, completion, item.system, role
        )
