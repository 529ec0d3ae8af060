"""Train steps as workers of contenders.py: ours, transformers', Tunix's.

Each makes ready the task it is given, a dict of JSON values, and returns a
function that does all its updates and gives the loss of each. All train all
weights by AdamW, with the gradient clipped to a norm of 1.
"""

from pathlib import Path

from contenders import load_tunix

LR = 1e-5


def load_ours(task: dict):
  """The model of a folder as a run has it, and its params."""
  from bct_jax.infra import memory

  memory.keep_pages()  # as a run does, before JAX starts
  import jax

  from bct_jax import config as configs
  from bct_jax.mesh import make_mesh
  from bct_jax.models.config import from_hf
  from bct_jax.models.huggingface.load import load_params
  from bct_jax.runtime.programs import MeshModel
  from bct_jax.runtime.runtime import make_decoder
  from configs import default

  raw = default.get_config()
  raw.model.dtype = raw.model.param_dtype = task["dtype"]
  raw.model.update(task.get("options", {}))
  raw.arms.bench = {}
  config = configs.from_dict(raw.to_dict())
  folder, mesh = Path(task["model"]), make_mesh()
  model = MeshModel(config, make_decoder(from_hf(folder), config), mesh)
  place = jax.tree.map(lambda x: x.sharding, model.abstract_params)
  with jax.set_mesh(mesh):
    params = load_params(
      folder, model.model.config, model.abstract_params, place
    )
  return model, params


def ours(task: dict):
  """The step, optimizer, layout and mesh of a run."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from bct_jax.mesh import put_batch
  from bct_jax.models.lora import Weights
  from bct_jax.types import Rows

  dtypes = ("i4", "i4", "f4", "i4", "i4")
  batches = [
    Rows(*map(np.asarray, arrays, dtypes), num_trained)
    for *arrays, num_trained in task["rows"]
  ]
  model, params = load_ours(task)
  arm = model.config.arms["bench"]
  with jax.set_mesh(model.mesh):
    state = model.init_state(Weights(params), arm)
  del params
  step = model.step(arm)

  def run():
    nonlocal state
    losses = []
    with jax.set_mesh(model.mesh):
      for rows in batches:
        batch = put_batch(rows, model.mesh)
        state, metrics = step(state, None, batch, jnp.float32(LR))
        losses.append(metrics["loss"])
      jax.block_until_ready(state)
    return [float(x) for x in losses]

  return run


def torch(task: dict):
  """transformers, with torch's fused AdamW and its best attention here."""
  import torch as t
  import transformers

  device = task.get("device", "cpu")
  model = transformers.AutoModelForCausalLM.from_pretrained(
    task["model"],
    dtype=getattr(t, task["dtype"]),
    attn_implementation=task.get("attention", "sdpa"),
  ).to(device)
  model.train()
  model.config.use_cache = False
  # Else the pad token's embedding gets no gradient, though it ends all turns.
  model.get_input_embeddings().padding_idx = None
  if task.get("checkpointing"):
    model.gradient_checkpointing_enable()
  optimizer = t.optim.AdamW(
    model.parameters(), lr=LR, weight_decay=0.0, fused=True
  )
  forward = t.compile(model) if task.get("compile") else model
  packed = task["collation"] == "packed"

  def tensors(part):
    ids, weights = t.tensor(part["ids"]), t.tensor(part["weights"])
    out = {"input_ids": ids, "labels": t.where(weights > 0, ids, -100)}
    if packed:
      out["position_ids"] = t.tensor(part["positions"])
    # Padding on the right is behind all that is trained: without a mask the
    # fast path for causal attention is taken.
    return {k: v.to(device) for k, v in out.items()}

  batches = [
    ([tensors(part) for part in parts], trained)
    for parts, trained in zip(task["parts"], task["trained"], strict=True)
  ]

  def run():
    losses = []
    for parts, trained in batches:
      total = 0.0
      for part in parts:
        loss = forward(**part, num_items_in_batch=trained).loss
        loss.backward()
        total = total + loss.detach()
      t.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
      optimizer.step()
      optimizer.zero_grad(set_to_none=True)
      losses.append(total)
    return [float(x) for x in losses]

  return run


def tunix(task: dict):
  """The jitted step of Tunix's PeftTrainer, with its own loss."""
  import jax.numpy as jnp
  import numpy as np
  import optax
  from tunix.sft import peft_trainer

  _, mesh, model = load_tunix(task["model"], task["dtype"])
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(LR, weight_decay=0.0)
  )
  config = peft_trainer.TrainingConfig(eval_every_n_steps=1000, max_steps=1000)
  trainer = peft_trainer.PeftTrainer(model, optimizer, config)
  trainer = trainer.with_gen_model_input_fn(lambda x: x)

  def arrays(part):
    segments, positions = (
      np.array(part[k], np.int32) for k in ("segments", "positions")
    )
    seen = segments[:, :, None] == segments[:, None, :]
    seen &= positions[:, :, None] >= positions[:, None, :]
    return {
      "input_tokens": jnp.array(part["ids"], jnp.int32),
      "input_mask": jnp.array(part["weights"], jnp.float32),
      "positions": jnp.array(positions),
      "attention_mask": jnp.array(seen),
    }

  batches = [arrays(part) for (part,) in task["parts"]]
  with mesh:
    step, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)

  def run():
    with mesh:
      losses = [step(batch)[0] for batch in batches]
      return [float(x) for x in losses]

  return run


def jax_products(task: dict):
  """Matrix products of a size that suits all machines."""
  import jax
  import jax.numpy as jnp

  x = jnp.ones((task["size"],) * 2, task["dtype"])
  product = jax.jit(lambda x: x @ x)
  return lambda: product(x).block_until_ready() is None


def torch_products(task: dict):
  import torch as t

  x = t.ones((task["size"],) * 2, dtype=getattr(t, task["dtype"]))
  return lambda: (x @ x) is None


WORKERS = {f.__name__: f for f in (ours, torch, tunix)}
WORKERS |= {"jax-products": jax_products, "torch-products": torch_products}
