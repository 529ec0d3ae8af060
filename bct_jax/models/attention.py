"""Computes attention in several forms, and chooses the form of a run.

All of them compute softmax(q k' / sqrt(H)) v (Vaswani et al. 2017, arXiv
1706.03762), where a group of query heads shares a key/value head (Ainslie et
al. 2023, arXiv 2305.13245).

* xla: jax.nn.dot_product_attention as XLA compiles it.
* grouped: for CPU. The queries of a group lie behind each other, with one
  product for each key/value head. Its forward pass takes 0.57 of the time of
  the former at 256 tokens. A program for TPU takes more memory with it.
* cudnn: NVIDIA's fused kernel, through the same function of JAX.
* splash: JAX's Pallas kernel for TPU. Scores never exist in memory (Dao et al.
  2022, arXiv 2205.14135). Blocks of keys that no query may see are left out;
  see splash.py.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bct_jax.mesh import ROWS, axis_size, constrain
from bct_jax.models.architecture import ModelConfig
from bct_jax.models.modules import quantize


class Prefix(NamedTuple):
  """Holds keys and values that rows begin with, [B or 1, S, K, H] each."""

  keys: jax.Array
  values: jax.Array


class Slots(NamedTuple):
  """Holds the past keys and values of each row, for one new token per row.

  The order of axes is the one that the two products read: scores sum over H,
  outputs sum over S. XLA copies arrays of another order at every token. In int8
  each key and each value has a scale, the largest of its H magnitudes over 127.
  """

  keys: jax.Array  # [B, K, H, S]
  values: jax.Array  # [B, K, S, H]
  key_scale: jax.Array | None = None  # [B, K, S] float32, with int8
  value_scale: jax.Array | None = None  # [B, K, S] float32, with int8


# The axis of the positions S in each array of Slots.
POSITIONS = (3, 2, 2, 2)


def as_slots(k: jax.Array, v: jax.Array, dtype: Any) -> Slots:
  """Brings keys and values [B, T, K, H] to the layout and dtype of Slots."""
  k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
  if dtype != jnp.int8:
    return Slots(k.astype(dtype), v.astype(dtype))
  k, key_scale = quantize(k, 2)
  v, value_scale = quantize(v, 3)
  return Slots(k, v, key_scale, value_scale)


def choose_form(
  option: str,
  config: ModelConfig,
  dtype: Any,
  platform: str,
) -> tuple[str, str]:
  """Chooses the form that whole rows are run with.

  Args:
    option: model.attention of the config.
    config: the architecture.
    dtype: of queries, keys and values.
    platform: tpu, gpu or cpu.

  Returns:
    The name of the form, and the reason for it.

  Raises:
    ValueError: the option names a form that does not apply here.
  """
  plain = "grouped" if platform == "cpu" else "xla"
  if option == "xla":
    return plain, "model.attention"
  best = {"tpu": "splash", "gpu": "cudnn"}.get(platform)
  name = best if option == "auto" else option
  if name is None:
    return plain, "there is no kernel for CPU"
  obstacle = (
    _splash_obstacle(config, platform)
    if name == "splash"
    else _cudnn_obstacle(config, dtype, platform)
  )
  if not obstacle:
    return name, f"for {platform}" if option == "auto" else "model.attention"
  if option == "auto":
    return plain, f"{name} does not apply: {obstacle}"
  raise ValueError(
    f"model.attention = {option!r} does not apply: {obstacle}; "
    "set it to 'auto' or 'xla'"
  )


def _splash_obstacle(config: ModelConfig, platform: str) -> str:
  """Says why splash attention does not apply, "" if it does."""
  if platform != "tpu":
    return f"it is for TPU, this is {platform}"
  if config.sinks:
    return "this model has attention sinks"
  kinds = {(layer.mixer, layer.window) for layer in config.attending}
  if len(kinds) > len({mixer for mixer, _ in kinds}):
    return "layers of this model differ in nothing but their windows"
  return ""


def _cudnn_obstacle(config: ModelConfig, dtype: Any, platform: str) -> str:
  """Says why cuDNN's attention does not apply, "" if it does."""
  if platform != "gpu":
    return f"it is for NVIDIA GPUs, this is {platform}"
  if jnp.dtype(dtype) != jnp.bfloat16:
    return f"it computes in bfloat16, model.dtype is {jnp.dtype(dtype).name}"
  if config.attn_softcap is not None:
    return "this model bounds its scores"
  if config.sinks:
    return "this model has attention sinks"
  for layer in config.attending:
    width = config.with_heads(layer.mixer).head_dim
    if width % 8 or width > 128:
      return f"heads of {width}, not a multiple of 8 up to 128"
  return ""


def _jax_form(attention: str) -> Any:
  """Returns the name that JAX has for a form."""
  return "cudnn" if attention == "cudnn" else "xla"


def attend(
  q: jax.Array,  # [B, T, N, H]
  keys: jax.Array,  # [B, S, K, H]
  values: jax.Array,  # [B, S, K, H]
  mask: jax.Array,  # [B, 1, T, S]
  scale: float,
  softcap: float | None,
  attention: str,
  sinks: jax.Array | None = None,  # [N]
) -> jax.Array:  # [B, T, N, H]
  """Computes grouped-query attention over whole rows.

  Args:
    q, keys, values: the keys may be more than the queries, with a prefix.
    mask: which keys a query sees.
    scale: of the scores.
    softcap: bound of the scores, see `_attend`; JAX's function has none.
    attention: the form: xla, cudnn or grouped.
    sinks: see `_attend`; JAX's function has none.
  """
  if attention != "grouped" and softcap is None and sinks is None:
    return jax.nn.dot_product_attention(
      q,
      keys,
      values,
      mask=mask,
      scale=scale,
      implementation=_jax_form(attention),
    )
  rows, length, heads, width = q.shape
  kv_heads = keys.shape[2]
  q = q.reshape(rows, length, kv_heads, -1, width).transpose(0, 2, 3, 1, 4)
  keys, values = keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3)
  y = _attend(
    q.reshape(rows, kv_heads, -1, width),
    keys,
    values,
    jnp.tile(mask, (1, 1, heads // kv_heads, 1)),
    scale,
    softcap,
    None
    if sinks is None
    else jnp.repeat(sinks.reshape(kv_heads, -1), length, axis=1),
  )
  y = y.reshape(rows, kv_heads, -1, length, width)
  return y.transpose(0, 3, 1, 2, 4).reshape(rows, length, heads, width)


def attend_slots(
  q: jax.Array,  # [B, 1, N, H]
  slots: Slots,
  mask: jax.Array,  # [B, 1, 1, S]
  scale: float,
  softcap: float | None,
  sinks: jax.Array | None = None,  # [N]
) -> jax.Array:  # [B, 1, N, H]
  """Computes grouped-query attention of one new token per row."""
  rows, _, heads, width = q.shape
  q = q.reshape(rows, slots.keys.shape[1], -1, width)
  y = _attend(
    q,
    slots.keys.astype(q.dtype),
    slots.values.astype(q.dtype),
    mask,
    scale,
    softcap,
    None if sinks is None else sinks.reshape(slots.keys.shape[1], -1),
    slots.key_scale,
    slots.value_scale,
  )
  return y.reshape(rows, 1, heads, width)


def _attend(
  q: jax.Array,  # [B, K, M, H]
  keys: jax.Array,  # [B, K, H, S]
  values: jax.Array,  # [B, K, S, H]
  mask: jax.Array,  # [B, 1, M or 1, S]
  scale: float,
  softcap: float | None,
  sinks: jax.Array | None = None,  # [K, M]
  key_scale: jax.Array | None = None,  # [B, K, S]
  value_scale: jax.Array | None = None,  # [B, K, S]
) -> jax.Array:  # [B, K, M, H]
  """Computes attention with M queries per key/value head.

  The softmax is in float32. Its sum divides the output [..., H] instead of the
  weights [..., S], of which there are more.

  Args:
    q, keys, values: as the products read them.
    mask: which keys a query sees.
    scale: of the scores.
    softcap: bounds the scores as cap * tanh(scores / cap) (Gemma 2, arXiv
      2408.00118); None is off.
    sinks: a score for each query that takes its share of the softmax and stands
      for no value (Xiao et al. 2023, arXiv 2309.17453; gpt-oss).
    key_scale, value_scale: of keys and values in int8.
  """
  scores = scale * jnp.einsum(
    "bkmh,bkhs->bkms", q, keys, preferred_element_type=jnp.float32
  )
  if key_scale is not None:
    scores *= key_scale[:, :, None]
  if softcap is not None:
    scores = softcap * jnp.tanh(scores / softcap)
  scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
  highest = jnp.max(scores, axis=-1, keepdims=True)
  if sinks is not None:
    sinks = sinks.astype(jnp.float32)[..., None]  # [K, M, 1]
    highest = jnp.maximum(highest, sinks)
  highest = jax.lax.stop_gradient(highest)
  weights = jnp.exp(scores - highest)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  if sinks is not None:
    total += jnp.exp(sinks - highest)
  if value_scale is not None:
    weights *= value_scale[:, :, None]
  y = jnp.einsum(
    "bkms,bksh->bkmh",
    weights.astype(values.dtype),
    values,
    preferred_element_type=jnp.float32,
  )
  return (y / total).astype(values.dtype)


def put_in_slots(
  slots: Slots,
  k: jax.Array,  # [B, 1, K, H]
  v: jax.Array,  # [B, 1, K, H]
  at: jax.Array,  # [B]
) -> Slots:
  """Writes one more position of every row, each row at its own.

  Returns:
    The new slots.
  """
  # Heads stay as they are spread over tensor, or whole where they do not
  # divide. Without the constraint XLA spreads them as the products want them,
  # and then gathers all slots again.
  heads = "tensor" if k.shape[2] % axis_size("tensor") == 0 else None

  def put(old, new, axis) -> Any:
    def put_in_row(old, new, at):  # without the axis of rows
      starts = [at if i == axis else 0 for i in range(1, new.ndim + 1)]
      return jax.lax.dynamic_update_slice(old, new, starts)

    if old is None:
      return None
    return constrain(jax.vmap(put_in_row)(old, new, at), ROWS, heads)

  new = as_slots(k, v, slots.keys.dtype)
  return Slots(*map(put, slots, new, POSITIONS))
