"""Holds training rows, and shows what is trained in them."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bct_jax.infra.formats import percent

if TYPE_CHECKING:
  from bct_jax.data.chat import Chat


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Holds one training row before padding.

  Attributes:
    ids: the prompt, the completion and the end-of-turn token.
    weights: how much the loss counts the prediction of each id.
  """

  ids: tuple[int, ...]
  weights: tuple[float, ...]


def mask_audit(chat: "Chat", rows: Sequence[Tokens], show: int = 3) -> str:
  """Renders rows as text, trained tokens as ⟦token⟧, others as they are.

  Args:
    chat: for its tokenizer.
    rows: of a data set.
    show: how many rows to render; the counts are of all.
  """
  num_trained = sum(w > 0 for r in rows for w in r.weights)
  num_real = sum(len(r.ids) for r in rows)
  longest = max(len(r.ids) for r in rows)
  lines = [
    f"{len(rows)} rows, {num_real} real tokens, {num_trained} trained "
    f"({percent(num_trained / num_real)}), "
    f"{len(rows) * longest - num_real} pad tokens if all are padded to "
    f"{longest}",
    f"end of turn: {chat.tokenizer.convert_ids_to_tokens(chat.end_of_turn)!r} "
    f"({chat.end_of_turn}), sampler stops at {sorted(chat.stop_ids)}",
    "",
  ]
  for i, row in enumerate(rows[:show]):
    parts = []
    for token_id, weight in zip(row.ids, row.weights, strict=True):
      text = chat.tokenizer.decode([token_id])
      parts.append(f"⟦{text}⟧" if weight > 0 else text)
    lines += [f"--- row {i}", "".join(parts), ""]
  return "\n".join(lines)
