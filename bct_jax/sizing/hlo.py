"""Finds what a compiled program sends between devices, in its optimized HLO."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

_BYTES = {"pred": 1, "bf16": 2, "f16": 2}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(
  r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$"
)
_CALLED = re.compile(
  r"\b(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_MANY = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_ARRAY = re.compile(r"\b(pred|bf16|[fsu]\d+|f8\w+)\[([\d,]*)\]")
_KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
)
# Axes, the order of devices if it is another, and the axes of a group.
_MESH = re.compile(
  r"replica_groups=mesh\[([^\]]*)\]"
  r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_MIDDLE = "async_collective_fusion"


@dataclasses.dataclass(frozen=True)
class Collective:
  """Describes one collective of a program.

  Attributes:
    kind: such as all-gather.
    array: its largest array on a device, such as bf16[4096,512].
    size: bytes of that array.
    times: how often the program runs it.
    received: bytes that a device receives each time, sent around a ring.
    network: how many of these come from other hosts, at least: each host takes
      in once what it lacks, and its devices share the work.
    source: the operation it was made for.
  """

  kind: str
  array: str
  size: int
  times: int
  received: float
  network: float
  source: str


@dataclasses.dataclass(frozen=True)
class _Instruction:
  """Holds one line of HLO: name = type op(rest."""

  name: str
  type: str
  op: str
  rest: str


@dataclasses.dataclass
class ParsedHlo:
  """Holds the instructions of computations, and how often each runs."""

  computations: dict[str, list[_Instruction]]
  times: dict[str, int]
  owner: dict[str, str]  # of a fused computation: the one that it is fused in


def parse_hlo(text: str) -> ParsedHlo:
  """Reads `compiled.as_text()`.

  Raises:
    ValueError: the text has no entry.
  """
  computations: dict[str, list[_Instruction]] = {}
  entry, current = "", []
  for line in text.splitlines():
    if head := _HEAD.match(line):
      current = computations[head[2]] = []
      entry = head[2] if head[1] else entry
    elif instruction := _LINE.match(line):
      current.append(_Instruction(*instruction.groups()))
  if not entry:
    raise ValueError("the text of a compiled program has no ENTRY")
  times: dict[str, int] = defaultdict(int)
  owner: dict[str, str] = {}

  def visit(name: str, count: int, of: str) -> None:
    times[name] += count
    owner.setdefault(name, of)
    for x in computations[name]:
      callees = _CALLED.findall(x.rest)
      for group in _MANY.findall(x.rest):
        callees += re.findall(r"%?([\w.\-]+)", group)
      trips = _trips(x, computations) if x.op == "while" else 1
      for other in callees:
        if other in computations:
          is_fused = x.op not in ("while", "call", "conditional")
          visit(other, count * trips, of if is_fused else other)

  visit(entry, 1, entry)
  return ParsedHlo(computations, dict(times), owner)


def _trips(loop: _Instruction, computations) -> int:
  """Counts how often a loop runs, from XLA's count or from its condition."""
  if count := re.search(r"known_trip_count\D+(\d+)", loop.rest):
    return int(count[1])
  match = re.search(r"condition=%?([\w.\-]+)", loop.rest)
  condition = match[1] if match else ""
  todo, bounds = [condition], []
  while todo:
    for x in computations.get(todo.pop(), []):
      if x.op == "constant" and (n := re.match(r"(\d+)\)", x.rest)):
        bounds.append(int(n[1]))
      todo += _CALLED.findall(x.rest)
  # A loop of no fixed number, as the one over sampled tokens, counts once.
  if len(set(bounds)) != 1:
    return 1
  match = re.search(r"body=%?([\w.\-]+)", loop.rest)
  body = computations.get(match[1], []) if match else []
  return -(-bounds[0] // _stride(computations[condition], body))


def _stride(condition: list[_Instruction], body: list[_Instruction]) -> int:
  """Finds what a turn of a loop adds to its counter; 1 if it is not plain.

  A loop over the shards of other devices takes two of them in a turn.
  """
  in_condition, in_body = ({x.name: x for x in xs} for xs in (condition, body))
  test = next((x for x in condition if x.op == "compare"), None)
  counter = in_condition.get(_operands(test)[0]) if test else None
  place = re.search(r"index=(\d+)", counter.rest) if counter else None
  if place is None or not body or body[-1].op != "tuple":
    return 1
  name, total = _operands(body[-1])[int(place[1])], 0
  while (x := in_body.get(name)) is not None and x.op == "add":
    name, other = _operands(x)
    step = in_body.get(other)
    value = re.match(r"\d+", step.rest) if step else None
    if step is None or step.op != "constant" or value is None:
      return 1
    total += int(value[0])
  return total or 1


def _operands(x: _Instruction) -> list[str]:
  """Lists the names of an instruction's operands."""
  return re.findall(r"%([\w.\-]+)", x.rest.split("), ")[0])


def collectives(text: str, hosts: Sequence[int] = ()) -> list[Collective]:
  """Lists the collectives of a program, the largest traffic first.

  XLA spreads some collectives over several fused computations, to run beside
  other work. Such a collective has one channel and counts once; its middle
  parts, named async_collective_fusion, may be in a loop of that work and do not
  count. Collectives that are written in a shard_map all have JAX's channel 1,
  and count by their names.

  Args:
    text: the optimized HLO.
    hosts: the host of each device, in the order of the mesh; none if links join
      all devices.
  """
  program, out, seen = parse_hlo(text), [], set()
  for name, instructions in program.computations.items():
    if not program.times.get(name) or name.startswith(_MIDDLE):
      continue
    for x in instructions:
      kind = x.op.removesuffix("-start")
      if kind not in _KINDS:
        continue
      channel = re.search(r"channel_id=(\d+)", x.rest)
      number = channel[1] if channel else "1"
      key = (x.name if number == "1" else number, program.owner[name])
      if key in seen:
        continue
      seen.add(key)
      out.append(_collective(x, kind, program.times[name], hosts))
  return sorted(out, key=lambda c: -c.times * c.received)


def _collective(
  x: _Instruction, kind: str, times: int, hosts: Sequence[int]
) -> Collective:
  """Reads one collective and computes what a device receives by it."""
  arrays = [
    (f"{t}[{dims}]", _size(t, dims)) for t, dims in _ARRAY.findall(x.type)
  ]
  array, size = max(arrays, key=lambda a: a[1])
  if kind == "all-reduce" or x.op == "all-to-all":
    # Several arrays in one; of an all-to-all perhaps one for each device.
    total = sum(n for _, n in arrays)
  else:
    total = size
  n = _group(x.rest)
  share = (n - 1) / n
  received = {
    "all-gather": total * share,
    "all-reduce": 2 * total * share,
    # Its result is the part that a device keeps.
    "reduce-scatter": total * (n - 1),
    "collective-permute": float(total),
  }.get(kind, total * share)
  source = re.search(r'op_name="([^"]*)"', x.rest)
  network = received * _share_from_afar(x.rest, kind, hosts)
  return Collective(
    kind, array, size, times, received, network, source[1] if source else ""
  )


def _share_from_afar(rest: str, kind: str, hosts: Sequence[int]) -> float:
  """Returns which share of what a device receives comes from other hosts."""
  if len(set(hosts)) < 2:
    return 0.0
  if kind == "collective-permute":
    pairs = re.findall(r"\{(\d+),(\d+)\}", rest)
    return float(any(hosts[int(a)] != hosts[int(b)] for a, b in pairs))
  members = _members(rest)
  n, spanned = len(members), len({hosts[m] for m in members})
  if spanned < 2:
    return 0.0
  if kind.endswith("all-to-all"):
    return (n - n / spanned) / (n - 1)
  return (spanned - 1) / (n - 1)


def _members(rest: str) -> list[int]:
  """Lists the devices of the first group of a collective.

  Raises:
    ValueError: the groups are written in a way that is not known.
  """
  if mesh := _MESH.search(rest):
    axes = [(a, int(n)) for a, n in re.findall(r"'(\w+)'=(\d+)", mesh[1])]
    chosen = re.findall(r"'(\w+)'", mesh[4])
    sizes = [n for _, n in axes]
    ids = np.arange(math.prod(sizes))
    if mesh[2]:
      ids = ids.reshape([int(n) for n in mesh[2].split(",")])
    if mesh[3]:
      ids = ids.transpose([int(n) for n in mesh[3].split(",")])
    ids = ids.reshape(sizes)
    places = tuple(slice(None) if a in chosen else 0 for a, _ in axes)
    return np.ravel(ids[places]).tolist()
  iota = re.search(
    r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest
  )
  if iota:
    ids = np.arange(int(iota[1]) * int(iota[2]))
    ids = ids.reshape([int(n) for n in iota[3].split(",")])
    if iota[4]:
      ids = ids.transpose([int(n) for n in iota[4].split(",")])
    return ids.reshape(int(iota[1]), int(iota[2]))[0].tolist()
  if groups := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
    return [int(n) for n in groups[1].split(",")]
  raise ValueError(f"no groups of devices in: {rest:.200}")


def _size(dtype: str, dims: str) -> int:
  """Computes the bytes of an array."""
  width = _BYTES.get(dtype) or max(1, int(re.findall(r"\d+", dtype)[0]) // 8)
  return width * math.prod(int(d) for d in dims.split(",") if d)


def _group(rest: str) -> int:
  """Counts the devices of a group; 2 if the text does not say, as a
  permutation's does not."""
  if mesh := _MESH.search(rest):
    axes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    return math.prod(int(axes[a]) for a in re.findall(r"'(\w+)'", mesh[4])) or 1
  if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
    return int(iota[2])
  if groups := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
    return len(groups[1].split(","))
  return 2


def kernels(text: str) -> dict[str, int]:
  """Counts how often a program runs each kernel of its own kind.

  On TPU these are the kernels that XLA did not write, by the name that JAX gave
  them. On GPU they are those of libraries, by the name of the library's call
  (`__cublas$lt$matmul`), and those that XLA has Triton make
  (`__triton_nested_gemm_fusion`).
  """
  program, out = parse_hlo(text), defaultdict(int)
  for name, instructions in program.computations.items():
    times = program.times.get(name, 0)
    for x in instructions if times else ():
      if kernel := _kernel(x):
        out[kernel] += times
  return dict(out)


def _kernel(x: _Instruction) -> str:
  """Returns the kernel that an instruction runs, "" if it is none."""
  if x.op == "fusion":
    kind = re.search(
      r'"fusion_backend_config":\{"kind":"(__(?:triton|cudnn|cublas)[^"]*)"',
      x.rest,
    )
    return kind[1] if kind else ""
  target = re.search(r'custom_call_target="([^"]*)"', x.rest)
  if x.op != "custom-call" or target is None:
    return ""
  if target[1].startswith(("__cublas", "__cudnn")):
    return target[1]
  own = target[1] == "tpu_custom_call" or "cudnn" in target[1]
  return re.sub(r"[.\d]+$", "", x.name) if own else ""
