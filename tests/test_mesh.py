import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CONFIG, make_mesh, make_rows
from jax.sharding import PartitionSpec as P

from bct_jax import mesh as meshes
from bct_jax.models import decoder, partition

SHAPES = {
  "a": jax.ShapeDtypeStruct((8, 4), jnp.float32),
  "b": {"c": jax.ShapeDtypeStruct((6,), jnp.float32)},
}


def test_make_mesh_fills_the_free_axis():
  mesh = meshes.make_mesh(data=-1, fsdp=2, tensor=2)
  assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
  "sizes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, 8, 1)], ids=str
)
def test_make_mesh_refuses_what_does_not_fit(sizes):
  with pytest.raises(ValueError, match="mesh"):
    meshes.make_mesh(*sizes)


def test_every_leaf_needs_exactly_one_rule():
  mesh = make_mesh(2, 2, 2)
  rules = [("^a$", P("fsdp", "tensor")), ("^b/c$", P("tensor"))]
  out = meshes.shardings(SHAPES, rules, mesh)
  assert out["a"].spec == P("fsdp", "tensor")
  assert out["b"]["c"].spec == P("tensor")
  with pytest.raises(ValueError, match="b/c .*: 0 partition rules"):
    meshes.shardings(SHAPES, rules[:1], mesh)
  with pytest.raises(ValueError, match="a .*: 2 partition rules"):
    meshes.shardings(SHAPES, [*rules, ("a", P())], mesh)
  with pytest.raises(ValueError, match="match no parameter.*'d'"):
    meshes.shardings(SHAPES, [*rules, ("d", P())], mesh)


def test_indivisible_dimension_is_named():
  mesh = make_mesh(1, 4, 1)
  rules = [("^a$", P("fsdp")), ("^b/c$", P("fsdp"))]
  with pytest.raises(ValueError, match="b/c .*6 does not divide.*fsdp"):
    meshes.shardings(SHAPES, rules, mesh)


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("decode", [False, True])
def test_decoder_rules_cover_all_params(tensor, decode):
  model = decoder.Decoder(CONFIG)
  params = jax.eval_shape(model.init, jax.random.PRNGKey(0))
  if decode:
    params = jax.eval_shape(model.unstack, params)
  mesh = make_mesh(1, 2, tensor)
  rules = partition.rules(CONFIG, tensor, decode)
  out = meshes.shardings(params, rules, mesh)
  specs = {
    meshes.path_name(p): s.spec
    for p, s in jax.tree_util.tree_flatten_with_path(out)[0]
  }
  # Nothing but norms, and k and v of too few heads, is whole everywhere.
  whole = {n for n, s in specs.items() if not any(s)}
  assert all("norm" in n or "/k/" in n or "/v/" in n for n in whole)


def test_heads_must_divide_over_tensor():
  with pytest.raises(ValueError, match="tensor = 3 .* 4 query"):
    partition.rules(CONFIG, 3)


def test_put_batch_is_the_rows():
  mesh, rows = make_mesh(2, 2, 2), make_rows()
  batch = meshes.put_batch(rows, mesh)
  np.testing.assert_array_equal(meshes.to_host(batch.tokens), rows.tokens)
  assert len(batch.tokens.sharding.device_set) == 8
  assert batch.tokens.addressable_shards[0].data.shape == (2, 16)


def test_put_batch_refuses():
  with pytest.raises(ValueError, match="6 rows does not divide over 4"):
    meshes.put_batch(make_rows(batch=6), make_mesh(2, 2, 1))
  rows = make_rows()._replace(num_trained=2)
  with pytest.raises(ValueError, match="num_trained is 2"):
    meshes.put_batch(rows, make_mesh())
