"""The collectives of a small model's update on a TPU slice, for test_topology.

python topology_worker.py SLICE FSDP TENSOR RANK FOLDER

Prints a JSON list of hlo.Collective. Libtpu stays loaded in a process that has
compiled with it, so this is one of its own.
"""

import dataclasses
import json
import sys
from pathlib import Path

from bct_jax.config import from_dict
from bct_jax.mesh import make_mesh
from bct_jax.runtime.programs import MeshModel
from bct_jax.runtime.runtime import make_decoder, read_architecture
from bct_jax.sizing import topology
from bct_jax.sizing.sizes import Work
from configs import llama3_1_8b

# Weights are large enough to be worth gathering beside other work.
ARCHITECTURE = """{"architectures": ["LlamaForCausalLM"],
"model_type": "llama", "vocab_size": 2048, "hidden_size": 1024,
"intermediate_size": 2048, "num_hidden_layers": 2, "num_attention_heads": 8,
"num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1e-5,
"rope_theta": 10000.0, "max_position_embeddings": 2048,
"tie_word_embeddings": false, "hidden_act": "silu", "attention_bias": false,
"mlp_bias": false}"""


def main(name: str, fsdp: int, tensor: int, rank: int, folder: Path):
  file = folder / "config.json"
  file.write_text(ARCHITECTURE)
  raw = llama3_1_8b.get_config()
  raw.mesh.data, raw.mesh.fsdp, raw.mesh.tensor = 1, fsdp, tensor
  raw.mesh.chip = topology.chip_of(name)
  raw.lora.rank = rank
  config = from_dict(raw.to_dict())
  mesh = make_mesh(1, fsdp, tensor, topology.devices_of(name))
  decoder = make_decoder(read_architecture(str(file)), config)
  model = MeshModel(config, decoder, mesh)
  work = Work(4 * fsdp, 1024, 1024, 1)
  arm = next(iter(config.arms.values()))
  program = topology.compile_train(model, arm, work)
  print(json.dumps([dataclasses.asdict(x) for x in program.collectives]))


if __name__ == "__main__":
  name, fsdp, tensor, rank, folder = sys.argv[1:]
  main(name, int(fsdp), int(tensor), int(rank), Path(folder))
