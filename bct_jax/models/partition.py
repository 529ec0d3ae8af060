"""Decides how the params of a decoder are spread over the mesh."""

from jax.sharding import PartitionSpec as P

from bct_jax.mesh import Rules
from bct_jax.models.architecture import ModelConfig
from bct_jax.models.expert_exchange import Layout


def rules(
  config: ModelConfig,
  tensor: int,
  decode: bool = False,
  experts_fsdp: int | None = None,
) -> Rules:
  """Returns the partition rules of the params; see mesh.shardings.

  Experts and heads of linear layers are spread over tensor. There may be fewer
  key/value heads than tensor devices. For decoding, these heads are then whole
  on every device, as their cache is. For training, devices have parts of a head
  and exchange the outputs.

  Args:
    config: the architecture.
    tensor: number of devices on the tensor axis.
    decode: whether the params are `unstack`ed, for decoding. They are spread
      over tensor only: over fsdp they would be gathered again for every token.
    experts_fsdp: number of devices on the fsdp axis, if experts stay on theirs
      (`mesh.experts` is "tokens"); None if weights of experts are gathered.

  Raises:
    ValueError: heads or experts do not divide over the tensor axis.
  """
  c = config
  layout = expert_layout(c, tensor, experts_fsdp)
  _check_divides(c, tensor, layout is None)
  fsdp = None if decode else "fsdp"
  lead = () if decode else (None,)
  columns = P(*lead, fsdp, "tensor")
  at = r"^layers/.*"
  out = [(r"^embed$", P("tensor", fsdp)), (r"norm/scale$", P())]
  for mixer in c.mixers:
    if mixer != "deltanet":
      out += _head_rules(c.with_heads(mixer), mixer, tensor, decode)
  if c.layer_scalar:
    out.append((at + r"scalar$", P()))
  if c.num_experts:
    out += _expert_rules(c.expert_form, lead, fsdp, layout)
  else:
    out.append((at + r"mlp/(gate|up)/kernel$", columns))
    out.append((at + r"mlp/down/kernel$", P(*lead, "tensor", fsdp)))
  if c.delta:
    names = "qkvz|ba" if c.delta.fused else "qkv|z|b|a"
    out.append((at + rf"deltanet/({names})/kernel$", columns))
    out.append((at + r"deltanet/out/kernel$", P(*lead, "tensor", fsdp)))
    out.append((at + r"deltanet/conv$", P()))
    out.append((at + r"deltanet/(a_log|dt_bias)$", P(*lead, "tensor")))
  if c.shared_width:
    out.append((at + r"shared/(gate|up)/kernel$", columns))
    out.append((at + r"shared/down/kernel$", P(*lead, "tensor", fsdp)))
    out.append((at + r"shared/weight/kernel$", P(*lead, fsdp, None)))
  if c.mlp_bias:
    out.append((at + r"(gate|up)/bias$", P(*lead, "tensor")))
    out.append((at + r"down/bias$", P()))
  if not c.tied:
    out.append((r"^head$", P(fsdp, "tensor")))
  return out


def scale_rules(rules: Rules) -> Rules:
  """Returns the rules of the scales of int8 matrices, one for each column.

  Args:
    rules: for decoding, with those of the matrices.
  """
  return [
    (pattern.removesuffix("kernel$") + "kernel_scale$", P(*spec[-1:]))
    for pattern, spec in rules
    if pattern.endswith("/kernel$")
  ]


def expert_layout(
  config: ModelConfig, tensor: int, experts_fsdp: int | None
) -> Layout | None:
  """Returns where experts are that stay on their devices; else None.

  Args:
    config, tensor, experts_fsdp: see `rules`.

  Raises:
    ValueError: experts do not divide over the devices.
  """
  c = config
  if not c.num_experts or experts_fsdp is None:
    return None
  return Layout.make(c.num_experts, c.mlp_width, experts_fsdp, tensor)


def _check_divides(c: ModelConfig, tensor: int, gathered: bool) -> None:
  """Raises ValueError if heads or experts do not divide over tensor devices.

  Args:
    c: the architecture.
    tensor: number of devices.
    gathered: whether weights of experts are; else Layout.make checks them.
  """
  for heads in {c.with_heads(mixer).num_kv_heads for mixer in c.mixers}:
    if c.num_heads % tensor or (heads % tensor and tensor % heads):
      raise ValueError(
        f"mesh axis tensor = {tensor} does not fit {c.num_heads} query and "
        f"{heads} key/value heads: it must divide the first, and divide the "
        "second or be a multiple of it"
      )
  if gathered and c.num_experts % tensor:
    raise ValueError(
      f"mesh axis tensor = {tensor} does not divide {c.num_experts} experts"
    )
  if c.delta and c.delta.key_heads % tensor:
    raise ValueError(
      f"mesh axis tensor = {tensor} does not divide the {c.delta.key_heads} "
      "key heads of the linear layers"
    )


def _expert_rules(
  form: str,
  lead: tuple[None, ...],
  fsdp: str | None,
  layout: Layout | None,
) -> list[tuple[str, P]]:
  """Returns the rules of experts of a form and of their router.

  Args:
    form: expert_form of the config.
    lead: of the axis of layers, if there is one.
    fsdp: the axis that widths are spread over, if any.
    layout: where experts are that stay on their devices.
  """
  at = r"^layers/.*mlp/"
  # An adapter beside a kernel gives it a name of its own.
  out = [
    (at + name + "(/kernel)?$", P(*lead, *place))
    for name, place in expert_places(form, fsdp, layout).items()
  ]
  out.append((at + r"router$", P(*lead, fsdp, None)))
  if form == "clamped":
    out.append((at + r"router_bias$", P()))
  return out


def expert_places(
  form: str, fsdp: str | None, layout: Layout | None = None
) -> dict[str, P]:
  """Returns the partitions of the params of all experts [E, ...], by name.

  Args:
    form, fsdp, layout: see `_expert_rules`.
  """
  clamped = form == "clamped"
  firsts = ("gate_up",) if clamped else ("gate", "up")
  biases = ("gate_up_bias", "down_bias") if clamped else ()
  places = {name: P("tensor", fsdp, None) for name in firsts}
  places |= {"down": P("tensor", None, fsdp)}
  places |= {name: P("tensor") for name in biases}
  if layout is not None:
    places = {name: layout.spec(name) for name in places}
  return places


def _head_rules(
  c: ModelConfig, mixer: str, tensor: int, decode: bool
) -> list[tuple[str, P]]:
  """Returns the rules of attention.

  Args:
    c: with the heads of its layers.
    mixer: of these layers.
    tensor, decode: see `rules`.
  """
  parts = c.num_kv_heads * (1 if decode else c.head_dim)
  kv = "tensor" if parts % tensor == 0 else None
  fsdp = None if decode else "fsdp"
  lead = () if decode else (None,)
  at = rf"^layers.*/{mixer}/"
  out = [
    (at + r"q/kernel$", P(*lead, fsdp, "tensor")),
    (at + r"(k|v)/kernel$", P(*lead, fsdp, kv)),
    (at + r"o/kernel$", P(*lead, "tensor", fsdp)),
  ]
  if c.sinks:
    out.append((at + r"sinks$", P(*lead, "tensor")))
  if c.qkv_bias:
    out.append((at + r"q/bias$", P(*lead, "tensor")))
    out.append((at + r"(k|v)/bias$", P(*lead, kv)))
  if c.out_bias:
    out.append((at + r"o/bias$", P()))
  return out
