"""Collectives read from HLO text, by hand and from compiled programs."""

import re

import jax
import jax.numpy as jnp
import pytest
from cases import long_but
from helpers import CONFIG, make_mesh, make_rows, make_step, untied
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bct_jax.config import from_dict
from bct_jax.mesh import put_batch
from bct_jax.models.decoder import Decoder
from bct_jax.objectives.sft import sft
from bct_jax.runtime.programs import MeshModel
from bct_jax.sample.decode import Engine
from bct_jax.sizing import hlo
from configs import tiny

TEXT = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %r = f32[] add(%a, %b)
}

%fused (p: bf16[4,8]) -> bf16[16,8] {
  ROOT %ag = bf16[16,8]{1,0} all-gather(%p), channel_id=3, \
replica_groups=[4,4]<=[16], dimensions={0}
}

%again (p: bf16[4,8]) -> bf16[16,8] {
  ROOT %ag.1 = bf16[16,8]{1,0} all-gather(%p), channel_id=3, \
replica_groups=[4,4]<=[16], dimensions={0}
}

%body (c: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %x = bf16[16,8]{1,0} fusion(%p), kind=kLoop, calls=%fused
  %y = bf16[16,8]{1,0} fusion(%p), kind=kLoop, calls=%again
}

%cond (c: (s32[], bf16[4,8])) -> pred[] {
  %n = s32[]{:T(128)} constant(32)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[10]) -> f32[10] {
  %w = (s32[], bf16[4,8]{1,0}) while(%t), condition=%cond, body=%body
  ROOT %ar = f32[10]{0} all-reduce(%p), channel_id=1, \
replica_groups={{0,1},{2,3}}, to_apply=%add
}
"""


def test_what_a_loop_gathers_counts_for_each_turn_and_once_in_parts():
  gather, total = hlo.collectives(TEXT)
  assert (gather.kind, gather.array, gather.times) == (
    "all-gather",
    "bf16[16,8]",
    32,
  )
  assert gather.received == 16 * 8 * 2 * 3 / 4
  assert (total.kind, total.times, total.received) == ("all-reduce", 1, 40)


def test_collectives_of_a_shard_map_share_a_channel_and_count_each():
  more = """
  %first = f32[10]{0} all-reduce(%p), channel_id=1, \
replica_groups={{0,1},{2,3}}, to_apply=%add
  %sent = (f32[1,5]{1,0}, f32[1,5]{1,0}) all-to-all(%a, %b), channel_id=1, \
replica_groups={{0,1},{2,3}}
  ROOT %ar ="""
  found = hlo.collectives(TEXT.replace("\n  ROOT %ar =", more))
  received = [(x.kind, x.received) for x in found[1:]]
  assert received == [
    ("all-reduce", 40),
    ("all-reduce", 40),
    ("all-to-all", 20),
  ]


SHARDS = """HloModule m

%async_collective_fusion.2 (p: bf16[4,8]) -> bf16[16,8] {
  ROOT %ag = bf16[16,8]{1,0} all-gather(%p), channel_id=3, \
replica_groups=[4,4]<=[16], dimensions={0}
}

%start (p: bf16[4,8]) -> bf16[16,8] {
  ROOT %ag.1 = bf16[16,8]{1,0} all-gather(%p), channel_id=3, \
replica_groups=[4,4]<=[16], dimensions={0}
}

%body (c: (bf16[4,8], u32[])) -> (bf16[4,8], u32[]) {
  %one = u32[] constant(1)
  %c = (bf16[4,8]{1,0}, u32[]) parameter(0)
  %x = bf16[4,8]{1,0} get-tuple-element(%c), index=0
  %i = u32[] get-tuple-element(%c), index=1
  %y = bf16[4,8]{1,0} collective-permute(%x), channel_id=4, \
source_target_pairs={{0,1},{1,0}}
  %z = bf16[16,8]{1,0} fusion(%x), kind=kLoop, \
calls=%async_collective_fusion.2
  %next = u32[] add(%i, %one), metadata={op_name="f"}
  %after = u32[] add(%next, %one)
  ROOT %t = (bf16[4,8]{1,0}, u32[]) tuple(%y, %after)
}

%cond (c: (bf16[4,8], u32[])) -> pred[] {
  %c = (bf16[4,8]{1,0}, u32[]) parameter(0)
  %n = u32[] constant(7)
  %i = u32[] get-tuple-element(%c), index=1
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: bf16[4,8]) -> bf16[4,8] {
  %g = bf16[16,8]{1,0} fusion(%p), kind=kLoop, calls=%start
  ROOT %w = (bf16[4,8]{1,0}, u32[]) while(%t), condition=%cond, body=%body
}
"""


def test_turns_that_count_by_two_and_what_goes_on_beside_them():
  """A loop over shards, during which a gather that began before it runs."""
  found = [(x.kind, x.times) for x in hlo.collectives(SHARDS)]
  assert sorted(found) == [("all-gather", 1), ("collective-permute", 4)]


@pytest.mark.parametrize(
  ("groups", "share"),
  [
    ("mesh['data'=2,'fsdp'=4] {'data','fsdp'}", 1 / 7),  # all of two hosts
    ("mesh['data'=2,'fsdp'=4] {'fsdp'}", 0),  # of one
    ("mesh['data'=2,'fsdp'=4] {'data'}", 1),  # pairs, one of each host
    ("mesh['a'=1,'b'=8], device_ids=([4,2]T(1,0)) {'b'}", 1 / 7),
    ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", 1 / 3),  # 0 2 4 6
    ("[1,8]<=[8]", 1 / 7),
    ("[2,4]<=[8]", 0),
    ("[4,2]<=[2,4]T(1,0)", 1),
    ("{{0,1,2,3},{4,5,6,7}}", 0),
    ("{{0,4},{1,5},{2,6},{3,7}}", 1),
  ],
)
def test_what_comes_from_other_hosts(groups, share):
  """A host takes in half of an array once, by its four devices."""
  text = f"""HloModule m

ENTRY %main (p: bf16[4,8]) -> bf16[32,8] {{
  ROOT %ag = bf16[32,8]{{1,0}} all-gather(%p), channel_id=3, \
replica_groups={groups}, dimensions={{0}}
}}
"""
  (found,) = hlo.collectives(text, [0] * 4 + [1] * 4)
  assert found.network == pytest.approx(found.received * share)
  (alone,) = hlo.collectives(text)
  assert alone.network == 0 and alone.received == found.received


def test_kernels_of_gpus_are_named():
  text = """HloModule m

%f (p: f32[8]) -> f32[8] {
  ROOT %x = f32[8]{0} negate(%p)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %a = f32[8]{0} fusion(%p), kind=kCustom, calls=%f, \
backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}
  %b = f32[8]{0} fusion(%a), kind=kLoop, calls=%f
  %c = (f32[8]{0}) custom-call(%b), custom_call_target="__cublas$lt$matmul"
  %d = f32[8]{0} custom-call(%c), custom_call_target="Sharding"
  ROOT %cudnn-fmha.3 = f32[8]{0} custom-call(%d), \
custom_call_target="__cudnn$fmhaSoftmax"
}
"""
  assert hlo.kernels(text) == {
    "__triton_nested_gemm_fusion": 1,
    "__cublas$lt$matmul": 1,
    "__cudnn$fmhaSoftmax": 1,
  }


def test_text_without_a_program_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo.parse_hlo("HloModule m")


def test_a_scan_gathers_its_slices():
  mesh = make_mesh(1, 4, 1)
  place = NamedSharding(mesh, P(None, "fsdp"))
  w = jax.ShapeDtypeStruct((6, 8, 16), jnp.float32, sharding=place)

  def total(w):
    def body(x, w):
      w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
      return jnp.sin(x @ w), None

    return jax.lax.scan(body, jnp.ones((16, 8)) @ jnp.ones((8, 8)), w[..., :8])

  text = jax.jit(total).lower(w).compile().as_text()
  times = [x.times for x in hlo.collectives(text) if x.kind == "all-gather"]
  assert times in ([6], [1])  # XLA may gather all of them before


@pytest.mark.parametrize(
  ("axes", "tied"),
  long_but(
    [((2, 2, 2), True)],
    [(axes, tied) for axes in ((1, 8, 1), (2, 2, 2)) for tied in (True, False)],
  ),
)
def test_a_step_gathers_neither_batch_nor_embedding(axes, tied):
  """Nor sums the gradient of the embedding or the whole head over devices."""
  setup = make_step(
    sft, make_mesh(*axes), config=None if tied else untied(), remat="full"
  )
  with jax.set_mesh(setup.mesh):
    batch = put_batch(make_rows(), setup.mesh)
    compiled = setup.step.lower(
      setup.state, None, batch, jnp.float32(1e-3)
    ).compile()
  found = hlo.collectives(compiled.as_text())
  assert found
  for x in found:
    if x.kind == "all-gather":
      # All rows with their width, or the whole table of a tied embedding.
      shape = re.findall(r"\d+", x.array.split("[")[1])
      assert not {"8", "16", "32"} <= set(shape) or len(shape) < 3, x


def test_a_token_gathers_no_cache():
  """Two key/value heads, whole on each of four devices of the tensor axis."""
  mesh, slots = make_mesh(1, 2, 4), 48
  config = from_dict(tiny.get_config().to_dict())
  model = MeshModel(config, Decoder(CONFIG), mesh)
  engine = Engine(model.model, config.sampling, (), mesh)
  state = engine.abstract_state(slots)
  free = jax.ShapeDtypeStruct(
    (engine.batch_size,), jnp.bool_, sharding=engine.whole
  )
  count = jax.ShapeDtypeStruct((), jnp.int32, sharding=engine.whole)
  with jax.set_mesh(mesh):
    text = (
      engine.advance.lower(model.abstract_decode(), state, free, count, count)
      .compile()
      .as_text()
    )
  found = hlo.collectives(text)
  assert found
  assert not [x for x in found if str(slots) in x.array]
