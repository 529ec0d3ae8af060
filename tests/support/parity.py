"""Comparisons with torch transformers, shared by the tests marked parity."""

import jax
import numpy as np
import pytest
from helpers import sampling

from bct_jax import mesh as meshes
from bct_jax.data.batches import Dataset
from bct_jax.models import decoder, partition
from bct_jax.models.config import from_hf
from bct_jax.models.huggingface.load import load_params
from bct_jax.models.huggingface.names import hf_names
from bct_jax.objectives import sft
from bct_jax.sample import sampler


def load(folder, mesh):
  """The model of a folder and its params on a mesh."""
  config = from_hf(folder)
  model = decoder.Decoder(config, attention="grouped")  # as it runs on CPU
  shapes = jax.eval_shape(model.init, jax.random.PRNGKey(0))
  rules = partition.rules(config, mesh.shape["tensor"])
  place = meshes.shardings(shapes, rules, mesh)
  return model, load_params(folder, config, shapes, place)


def load_torch(folder):
  import torch
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  # torch drops the gradient of the pad token's embedding, even where the token
  # is the trained end of a turn.
  model.get_input_embeddings().padding_idx = None
  return model


def logits_difference(mesh, model, params, reference, rows):
  """Largest difference of any logit: every row alone through torch, and in
  padded and packed batches through ours."""
  import torch

  ids = [str(i) for i in range(len(rows))]

  @jax.jit
  def forward(params, x):
    hidden = model.hidden(params, x.tokens, x.positions, x.segments)
    return model.logits(params, hidden)

  largest = 0.0
  for pack in (False, True):
    data = Dataset.make(ids, rows, 8, 0, 512, 1, pack, multiple=4)
    host = data.batch(0)
    assert pack == (host.segments.max() > 1)
    with jax.set_mesh(mesh):
      ours = meshes.to_host(forward(params, meshes.put_batch(host, mesh)))
    for b in range(host.tokens.shape[0]):
      for segment in range(1, host.segments[b].max() + 1):
        at = host.segments[b] == segment
        with torch.no_grad():
          theirs = reference(torch.tensor(host.tokens[b][at][None])).logits[0]
        assert np.isfinite(ours[b][at]).all()
        largest = max(largest, np.abs(ours[b][at] - theirs.numpy()).max())
  return largest


def check_gradients(mesh, model, params, reference, rows):
  """Loss and every parameter's gradient; returns the largest relative error."""
  import torch

  data = Dataset.make(
    [str(i) for i in range(len(rows))], rows, len(rows), 0, 512, 1, True, 4
  )
  with jax.set_mesh(mesh):
    batch = meshes.put_batch(data.batch(0), mesh)

    def mean(params):
      loss, _ = sft(params, batch, jax.random.PRNGKey(0), model)
      return loss.value()

    value, grads = jax.jit(jax.value_and_grad(mean))(params)
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
  theirs = torch_gradients(reference)
  ours = hf_tensors(grads, model.config)
  for name in saved_buffers(reference):
    assert not ours.pop(name).any(), f"{name} would be trained"
  assert set(ours) == set(theirs)
  largest = 0.0
  for name, grad in theirs.items():
    assert np.abs(grad).max() > 0, f"{name} has no gradient: nothing is tested"
    error = np.abs(ours[name] - grad).max() / np.abs(grad).max()
    assert error <= 1e-4, f"{name}: relative error {error:.1e}"
    largest = max(largest, error)
  return largest


def saved_buffers(reference):
  """What a checkpoint has besides parameters, by name."""
  saved = reference.state_dict()
  return {n: x for n, x in reference.named_buffers() if n in saved}


def torch_gradients(reference):
  """By the name in a checkpoint; experts, fused in memory, taken apart.

  Those of gpt-oss are fused in a checkpoint, too.
  """
  out = {}
  fused = reference.config.model_type == "gpt_oss"
  for name, parameter in reference.named_parameters():
    grad = parameter.grad.numpy()
    if fused:
      out[name] = grad
    elif name.endswith("experts.gate_up_proj"):
      for i, expert in enumerate(grad):
        gate, up = np.split(expert, 2)
        at = name.removesuffix("gate_up_proj") + f"{i}."
        out |= {f"{at}gate_proj.weight": gate, f"{at}up_proj.weight": up}
    elif name.endswith("experts.down_proj"):
      at = name.removesuffix("down_proj")
      out |= {f"{at}{i}.down_proj.weight": e for i, e in enumerate(grad)}
    else:
      out[name] = grad
  return out


def hf_tensors(tree, config):
  """A tree like the params by Hugging Face name, in the layout there."""
  names, out = hf_names(config), {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    ours, leaf = meshes.path_name(path), np.asarray(leaf)
    name, numbers = names[ours], config.layers_of(ours.removeprefix("layers/"))
    for at in np.ndindex(leaf.shape[: name.stacked]):
      x = leaf[at].T if name.transposed else leaf[at]
      there = (numbers[at[0]], *at[1:]) if at else ()
      out[name.template.format(*there)] = x
  return out


def greedy(mesh, model, params, prompts, new, stop_ids):
  """Token ids of our sampler."""
  shapes = jax.eval_shape(model.unstack, params)
  rules = partition.rules(model.config, mesh.shape["tensor"], decode=True)
  place = meshes.shardings(shapes, rules, mesh)
  with jax.set_mesh(mesh):
    flat = jax.jit(model.unstack, out_shardings=place)(params)
    config = sampling(max_new_tokens=new, batch_size=32)
    sample = sampler.make_sampler(model, config, stop_ids, mesh)
    return sample(flat, prompts, range(len(prompts)), 0)


def greedy_torch(reference, prompt, new, stop_ids):
  import torch

  out = reference.generate(
    torch.tensor([prompt]),
    attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
    max_new_tokens=new,
    do_sample=False,
    eos_token_id=sorted(stop_ids),
    pad_token_id=0,
  )
  return out[0, len(prompt) :].tolist()


def behind(reference, prompt, tokens):
  """By how much torch's score of each token is below the best one's."""
  import torch

  with torch.no_grad():
    scores = reference(torch.tensor([[*prompt, *tokens[:-1]]])).logits
  scores = scores[0, len(prompt) - 1 :]
  own = scores.gather(1, torch.tensor(tokens)[:, None])[:, 0]
  return (scores.max(-1).values - own).tolist()
