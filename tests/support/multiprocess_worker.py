"""One of several processes of test_multiprocess.py; prints JSON.

python multiprocess_worker.py RANK COUNT PORT FOLDER. With COUNT 1 it is the
reference: the same mesh in one process.
"""

import hashlib
import json
import os
import sys

RANK, COUNT, PORT = map(int, sys.argv[1:4])
FOLDER = sys.argv[4]
DEVICES = 4
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  f"--xla_force_host_platform_device_count={DEVICES // COUNT} "
  + os.environ["QUICK"]
)

import jax  # noqa: E402

if COUNT > 1:
  jax.distributed.initialize(
    f"127.0.0.1:{PORT}", num_processes=COUNT, process_id=RANK
  )

import numpy as np  # noqa: E402
from helpers import (  # noqa: E402
  CONFIG,
  init_params,
  make_rows,
  make_step,
  run_steps,
  sampling,
)

from bct_jax import mesh as meshes  # noqa: E402
from bct_jax.models import decoder, partition  # noqa: E402
from bct_jax.models.huggingface.export import export_hf  # noqa: E402
from bct_jax.models.huggingface.load import load_params  # noqa: E402
from bct_jax.objectives import sft  # noqa: E402
from bct_jax.sample import sampler  # noqa: E402
from bct_jax.train.checkpoint import Checkpoints  # noqa: E402


def sample(setup):
  place = meshes.shardings(
    jax.eval_shape(setup.model.unstack, setup.state.params),
    partition.rules(CONFIG, setup.mesh.shape["tensor"], decode=True),
    setup.mesh,
  )
  with jax.set_mesh(setup.mesh):
    params = jax.jit(setup.model.unstack, out_shardings=place)(
      setup.state.params
    )
    config = sampling(temperature=1.0, batch_size=4)
    run = sampler.make_sampler(setup.model, config, frozenset({5}), setup.mesh)
    prompts = [[3, 1, 4, 1, 5 + i, 9, 2] for i in range(6)]
    return [c.tokens for c in run(params, prompts, range(6), 0)]


def export_and_load(mesh, folder):
  """Hash of the exported weights, and whether they load as they were."""
  model = decoder.Decoder(CONFIG)
  params = init_params(model, mesh)
  os.makedirs(f"{folder}-source", exist_ok=True)
  with open(f"{folder}-source/config.json", "w") as f:
    json.dump({"model_type": "llama"}, f)
  with jax.set_mesh(mesh):
    export_hf(params, CONFIG, f"{folder}-source", folder, shard_bytes=20_000)
    place = jax.tree.map(lambda x: x.sharding, params)
    again = load_params(folder, CONFIG, params, place)
  same = jax.tree.map(
    lambda a, b: bool(np.array_equal(a, b)),
    meshes.to_host(again),
    meshes.to_host(params),
  )
  names = sorted(n for n in os.listdir(folder) if n.endswith(".safetensors"))
  digest = hashlib.sha256()
  for name in names:
    with open(os.path.join(folder, name), "rb") as f:
      digest.update(f.read())
  return [all(jax.tree.leaves(same)), len(names), digest.hexdigest()]


def main():
  # Rows are split over processes, and in the second mesh tensors are.
  out = []
  for shape in ((2, 2, 1), (1, 2, 2)):
    mesh = meshes.make_mesh(*shape)
    setup = make_step(sft, mesh, accum=2)
    batches = [make_rows(seed=s) for s in range(3)]
    metrics, _, setup.state = run_steps(setup, batches, fetch=False)
    folder = os.path.join(FOLDER, "x".join(map(str, shape)))
    with jax.set_mesh(mesh):
      checkpoints = Checkpoints(folder)
      checkpoints.save(setup.state, {})
      abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        setup.state,
      )
      restored = checkpoints.restore(abstract)
      checkpoints.close()
      same = jax.tree.map(
        lambda a, b: bool(np.array_equal(a, b)),
        meshes.to_host(restored.params),
        meshes.to_host(setup.state.params),
      )
    out.append(
      {
        "metrics": metrics,
        "samples": sample(setup),
        "exported": export_and_load(mesh, f"{folder}-hf"),
        "restored": all(jax.tree.leaves(same)),
      }
    )
  print(json.dumps(out))


if __name__ == "__main__":
  main()
