"""Computes bytes per device and tokens per second of a run from shapes alone.

Nothing is allocated and no device is needed: params and optimizer state are
shapes with the shardings that a run gives them, on a mesh that may be abstract.
Weights, gradients, optimizer state, the decoder's copy of the weights, the KV
cache and the states of linear layers are exact; activations are an estimate,
see `activation_bytes`.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bct_jax.mesh import path_name
from bct_jax.models.architecture import ModelConfig
from bct_jax.models.decoder import REMAT, Decoder
from bct_jax.models.deltanet import empty_state
from bct_jax.models.expert_exchange import Layout
from bct_jax.models.layers import Block
from bct_jax.models.logprobs import CHUNK, LOGITS
from bct_jax.models.partition import expert_layout
from bct_jax.models.splash import Segments
from bct_jax.types import PyTree

Axes = Mapping[str, int]  # devices on each axis of the mesh
# Kernels of experts, by name.
EXPERTS = re.compile(r"^layers/mlp/(gate|up|gate_up|down)(_bias|/lora_[ab])?$")


@dataclasses.dataclass(frozen=True)
class Work:
  """Says what one update runs on.

  Attributes:
    rows: of the global batch.
    length: positions of a row.
    num_trained: positions of a row that go through the head.
    accum: microbatches.
  """

  rows: int
  length: int
  num_trained: int
  accum: int


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Holds bytes on one device. Training and sampling take turns."""

  weights: int
  gradients: int
  optimizer: int
  activations: int
  decode_weights: int
  cache: int
  average: int = 0  # of the params, if one is kept
  states: int = 0  # of linear layers, of all rows

  @property
  def state(self) -> int:
    """Returns what stays on the device between steps."""
    return self.weights + self.optimizer + self.average

  @property
  def training(self) -> int:
    """Returns the most that a train step holds."""
    return self.state + self.gradients + self.activations

  @property
  def sampling(self) -> int:
    """Returns what sampling holds, without the working set of the prefill.

    The state stays on the device meanwhile.
    """
    return self.state + self.decode_weights + self.cache + self.states


# --- exact --------------------------------------------------------------------


def device_bytes(tree: PyTree) -> int:
  """Adds up the bytes of one device's shards of a tree of shapes."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def num_params(tree: PyTree) -> int:
  """Counts the elements of all arrays."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def active_params(config: ModelConfig, tree: PyTree, embed: bool = True) -> int:
  """Counts the parameters that one token meets: of experts, only its own.

  Args:
    config: the architecture.
    tree: params as in Decoder.init, or some of them.
    embed: whether an embedding table counts that is not the head too: it is a
      look-up, not a product.
  """

  def one(path: Any, x: Any) -> int:
    name, size = path_name(path), math.prod(x.shape)
    if name == "embed" and not config.tied and not embed:
      return 0
    if config.num_experts and EXPERTS.match(name):
      return size * config.experts_per_token // config.num_experts
    return size

  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return sum(one(path, x) for path, x in leaves)


def gradient_bytes(trained: PyTree, accum: int) -> int:
  """Computes the bytes of gradients; with microbatches, also of their sum."""
  return device_bytes(trained) * (1 if accum == 1 else 2)


def pushes_bytes(trained: PyTree) -> int:
  """Computes the bytes of what gradients.make_measure holds: four float32
  trees."""
  return device_bytes(
    jax.tree.map(lambda x: x.update(dtype=jnp.float32), [trained] * 4)
  )


def cache_bytes(
  config: ModelConfig, dtype: Any, axes: Axes, rows: int, slots: int
) -> int:
  """Computes the bytes of keys and values on one device.

  They are the sum over layers with attention of rows per device x slots x
  key/value heads per device x 2 x bytes of each, which are head_dim x those of
  the dtype, and 4 more in int8 for a scale.
  Heads are spread over tensor where they divide, and whole on every device
  where they do not.
  """
  tensor = axes["tensor"]
  rows = -(-rows // (axes["data"] * axes["fsdp"]))
  total = 0
  for layer in config.attending:
    c = config.with_heads(layer.mixer)
    heads = c.num_kv_heads
    heads = heads // tensor if heads % tensor == 0 else heads
    each = c.head_dim * jnp.dtype(dtype).itemsize
    each += 4 if dtype == jnp.int8 else 0
    total += rows * slots * heads * 2 * each
  return total


def state_bytes(config: ModelConfig, dtype: Any, axes: Axes, rows: int) -> int:
  """Computes the bytes of the states of linear layers on one device.

  Each has, whatever the length of the rows, value heads x key width x value
  width numbers in float32, and the newest inputs of its convolution in `dtype`.
  Heads are spread over tensor.
  """
  if config.delta is None:
    return 0
  rows = -(-rows // (axes["data"] * axes["fsdp"]))
  net = local_config(config, axes["tensor"]).delta
  assert net is not None
  state = jax.eval_shape(lambda: empty_state(net, rows, dtype))
  each = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  return (config.num_layers - len(config.attending)) * each


# --- activations --------------------------------------------------------------


def activation_bytes(model: Decoder, axes: Axes, work: Work) -> int:
  """Estimates the bytes of a train step besides state and gradients.

    layers x saved + max(rest of a block, head) + embedding

  * saved: what the backward pass of one block keeps under the remat policy,
    found by tracing the block at the sizes of one device: for "full" the input
    [b, T, D], for "dots" also the matrix products, for "none" everything.
  * rest of a block: what "none" would keep of one block, less what is saved
    already. It exists while the block's backward pass runs, and holds the
    block's weights in the compute dtype. Splash attention keeps no scores. The
    gradients of all this are not counted: XLA fuses about as much away.
  * head: the head's table in the compute dtype and its gradient (2 x V x D /
    tensor), and a chunk of logits, their softmax and their gradient in float32
    (3 x b x min(R, CHUNK) x V / tensor). Where rows are spread the tables are
    too, over fsdp, and the chunk has LOGITS of them at most.
  * embedding: its table in the compute dtype, spread as the head's; where the
    head shares it, this is the gradient of the look-up.

  b is the rows of a microbatch on one device. XLA shares and fuses buffers in
  ways this does not follow. Against its memory analysis of compiled train steps
  it is within a factor 1.25 for small dense models on CPU
  (tests/sizing/test_sizes.py), and 0.88 to 1.29 of it for TPU v5e, v5p and v6e:
  Llama 3 of 8B and 70B and Qwen2.5-7B, seven cases. For Gemma 3 12B, whose
  attention is XLA's, it is 1.54. On CPU, where a ragged product becomes a dense
  one, a mixture of experts takes up to 2.5 times this. It was not held against
  a GPU.
  """
  config, tensor = model.config, axes["tensor"]
  shards = axes["data"] * axes["fsdp"]
  rows = -(-work.rows // (shards * work.accum))
  fsdp = axes["fsdp"] if model.experts == "tokens" else None
  block = local_config(config, tensor, expert_layout(config, tensor, fsdp))
  plain = "grouped" if model.attention == "grouped" else "xla"
  scores = model.attention != "splash"
  saved, rests = 0, [0]
  for mixer in config.mixers:
    layer = Block(block, model.dtype, plain, mixer, model.experts)
    kept = block_bytes(layer, model.remat, rows, work.length, scores)
    # Experts that tokens are sent to run anew in the backward pass, always.
    layer = layer.clone(experts="weights")
    without_remat = block_bytes(layer, "none", rows, work.length, scores)
    saved += kept * sum(x.mixer == mixer for x in config.layers)
    rests.append(without_remat - kept)
  vocab = config.vocab_size // tensor
  table = vocab * config.width * jnp.dtype(model.dtype).itemsize
  if shards == 1:
    logits = rows * min(work.num_trained, CHUNK) * vocab
  else:
    logits = min(LOGITS, rows * work.num_trained * vocab)
    table //= axes["fsdp"]
  head = 2 * table + 3 * 4 * logits
  return saved + max(*rests, head) + table


def local_config(
  config: ModelConfig, tensor: int, layout: Layout | None = None
) -> ModelConfig:
  """Returns the architecture of the block that one device of `tensor` runs.

  Each device runs all rows of a token's experts, masked where another device
  holds the expert, so experts_per_token stays. With a layout it runs a round of
  its column's.
  """
  experts, per_token = config.num_experts, config.experts_per_token
  mlp_width = config.mlp_width // (1 if experts else tensor)
  if layout is not None:
    per_token = -(-per_token // layout.columns)
    experts = max(layout.local, per_token)
    mlp_width //= 1 if layout.whole else tensor
  elif experts:
    experts = max(experts // tensor, per_token)
  return dataclasses.replace(
    config,
    num_heads=config.num_heads // tensor,
    num_kv_heads=max(1, config.num_kv_heads // tensor),
    mlp_width=mlp_width,
    num_experts=experts,
    experts_per_token=per_token,
    shared_width=config.shared_width // tensor,
    delta=config.delta
    and dataclasses.replace(
      config.delta,
      key_heads=config.delta.key_heads // tensor,
      value_heads=config.delta.value_heads // tensor,
    ),
    global_attn=config.global_attn
    and dataclasses.replace(
      config.global_attn,
      num_kv_heads=max(1, config.global_attn.num_kv_heads // tensor),
    ),
  )


def block_bytes(
  block: Block, remat: str, rows: int, length: int, scores: bool = True
) -> int:
  """Computes the bytes that a block's forward pass keeps for the backward pass.

  The params themselves, the mask and the rotary angles are not counted: they
  are there once, not for every layer. Without `scores`, arrays over queries and
  keys are not counted either.
  """
  config, shape = block.config, jax.ShapeDtypeStruct
  x = shape((rows, length, config.width), block.dtype)
  turning = config.with_heads(block.mixer).head_dim // 2
  angles = (shape((rows, length, turning), jnp.float32),) * 2
  mask: Any = shape((rows, 1, length, length), jnp.bool_)
  if block.mixer == "deltanet":
    mask = Segments(shape((rows, length), jnp.int32))
  params = jax.eval_shape(block.init, jax.random.PRNGKey(0), x, angles, mask)

  def residuals(params, x, angles, mask):
    def run(params, x):
      return block.apply(params, x, angles, mask)[0]

    if remat != "none":
      run = jax.checkpoint(run, policy=REMAT[remat], prevent_cse=False)
    # The backward function is a pytree of the arrays it was made with.
    backward = jax.tree.leaves(jax.vjp(run, params, x)[1])
    inputs = {id(a) for a in jax.tree.leaves((params, angles, mask))}
    return [
      a for i, a in {id(a): a for a in backward}.items() if i not in inputs
    ]

  arrays = jax.eval_shape(residuals, params, x, angles, mask)
  return sum(
    math.prod(a.shape) * a.dtype.itemsize
    for a in arrays
    if scores or a.ndim < 4 or a.shape[-2:] != (length, length)
  )


# --- speed --------------------------------------------------------------------


def flops_per_token(
  config: ModelConfig, length: int, trained: PyTree, frozen: PyTree = None
) -> float:
  """Counts the model FLOPs of one position of a training row, as for MFU.

    6 N + 12 x sum over layers of d m (1 - m / 2T) + 18 s,  m = min(T, window)

  N: active params of the matrix products (see active_params), d = query heads
  x head_dim, T = positions of a row. Without windows this is 6 N + 6 L T d:
  the count of PaLM (Chowdhery et al. 2022, arXiv 2204.02311, appendix B) with
  half its attention, as a causal query meets T / 2 keys in the mean. A linear
  layer has no keys to meet; each of its s numbers in memories, value heads x
  key width x value width, is read twice and written once. Frozen
  params have no gradient of their own and count 4 N. Recomputation under a
  remat policy is not counted, and the head as if all positions were trained.
  """
  products = 6 * active_params(config, trained, embed=False)
  products += 4 * active_params(config, frozen, embed=False)
  for layer in config.attending:
    m = length if layer.window is None else min(length, layer.window)
    d = config.num_heads * config.with_heads(layer.mixer).head_dim
    products += 12 * d * m * (1 - m / (2 * length))
  return products + 18 * memory_size(config)


def memory_size(config: ModelConfig) -> int:
  """Counts the numbers in the memories of all linear layers, for one row."""
  net = config.delta
  if net is None:
    return 0
  linear = config.num_layers - len(config.attending)
  return linear * net.value_heads * net.key_dim * net.value_dim


def tokens_per_second(
  flops: float, peak: float, devices: int, share: float = 0.4
) -> float:
  """Computes share x devices x peak / FLOPs per token."""
  return share * devices * peak / flops
