"""What a compiled TPU program sends between devices, and what it computes meanwhile."""

import collections
import dataclasses
import math
import re

from multimodal.planning.hlo import arrays_of

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Exchanges of one kind between devices.

    Attributes:
      kind: one of COLLECTIVES, or 'between slices'; group: devices that take part in one.
      bytes: what each device sends in a step, by a ring; count: how often in a step.
      stride: how far apart the devices of a group are, in the order of all.
      beside: cycles of the operations that run in a step while these exchanges are under way; 0
        where the program waits for them.
    """

    kind: str
    group: int
    bytes: float
    count: int
    beside: float = 0.0
    stride: int = 1


def merged(found: list[Collective]) -> list[Collective]:
    """One Collective of each kind and group, most bytes first."""
    sums = collections.defaultdict(lambda: [0.0, 0, 0.0])
    for c in found:
        for at, value in enumerate((c.bytes, c.count, c.beside)):
            sums[c.kind, c.group][at] += value
    return sorted((Collective(*k, *v) for k, v in sums.items()), key=lambda c: -c.bytes)


class Windows:
    """When the exchanges of one computation that run beside operations are under way.

    The compiler writes them as a pair OPCODE-start and OPCODE-done, or cuts them into pieces within
    fusions, which share a channel; rows stand in the order in which they run.
    """

    def __init__(self, rows, program):
        self._first, self._last, self._open = {}, {}, []
        for i in rows.values():
            ends = i.opcode.endswith("-done") and i.operands[0] in rows
            within = [rows[i.operands[0]]] if ends else _inside(i, program)
            keys = [key for key in map(key_of, within) if key]
            for key in keys:
                self._first.setdefault(key, i.name)
                self._last[key] = i.name

    def passed(self, i) -> list:
        """The keys of the exchanges that were under way while a row ran, the next one in order."""
        self._open = [key for key in self._open if self._last[key] != i.name]
        beside = list(self._open)
        self._open += [k for k, name in self._first.items() if name == i.name != self._last[k]]
        return beside


def key_of(i):
    """What tells an exchange that runs beside operations from all others; None: it does not."""
    channel = re.search(r"channel_id=(\d+)", i.attributes)
    if i.opcode.removesuffix("-start") not in COLLECTIVES:
        return None
    if i.opcode.endswith("-start"):
        return channel.group(1) if channel else i.name
    return channel.group(1) if channel and "chain_id" in i.attributes else None


def _inside(i, program):
    """An instruction, or those of the fusion that it is."""
    if i.opcode != "fusion":
        return [i]
    return [j for c in i.called() for j in program.computations[c].values()]


class Exchanges:
    """The exchanges of a program, added up while it is walked through."""

    def __init__(self, program, devices, slices):
        self._program, self._devices, self._slices = program, devices, slices
        # (kind, group, key_of) -> [bytes, count]; key_of -> cycles
        self._sent = collections.defaultdict(lambda: [0.0, 0])
        self._beside = collections.defaultdict(float)
        self._begun = set()

    def collectives(self) -> list[Collective]:
        """What was found: those that the program waits for together, the others one by one."""
        found = [
            Collective(kind, group, *sent, self._beside[key] if key else 0.0)
            for (kind, group, key), sent in self._sent.items()
        ]
        return sorted(found, key=lambda c: -c.bytes)

    def ran_beside(self, keys, cycles):
        """Add cycles of operations to the exchanges beside them, which share the links."""
        for key in keys:
            self._beside[key] += cycles / len(keys)

    def add(self, i, rows, times):
        """Add what an instruction, or the fusion that it is, sends to other devices."""
        if i.opcode == "fusion":
            for called in i.called():
                inner = self._program.computations[called]
                for j in inner.values():
                    self.add(j, inner, times)
            return
        kind = i.opcode.removesuffix("-start")
        if i.opcode == "send" and "megascale" in i.attributes:
            self._between_slices(i, times)
        if kind not in COLLECTIVES or self._goes_on(i):
            return
        group = group_size(i.attributes, self._devices)
        if group < 2:
            return
        # all-reduce-scatter: how the TPU compiler writes a reduce-scatter inside a fusion
        if kind == "all-reduce" and _is_sliced(i, rows):
            kind = "reduce-scatter"
        operand = sum(n for name in i.operands if name in rows for n, _ in rows[name].arrays())
        result = sum(n for n, _ in arrays_of(i.type)) if "-start" not in i.opcode else 0
        sent = ring_bytes(kind, group, operand, max(result, operand))
        self._count(kind, group, key_of(i), sent, times)

    def _count(self, kind, group, key, sent, times):
        entry = self._sent[kind, group, key]
        entry[0] += sent * times
        entry[1] += times

    def _goes_on(self, i):
        """Whether it is a further piece of an exchange that was counted, even of another loop."""
        if "chain_id" not in i.attributes or not (key := key_of(i)):
            return False
        again = key in self._begun
        self._begun.add(key)
        return again

    def _between_slices(self, i, times):
        """A transfer over the data-centre network: a ring's share of an array, twice to reduce."""
        size = i.arrays()[0][0]
        hops = 2 if "reduce_operation" in i.attributes else 1
        sent = hops * size * (self._slices - 1) / self._slices
        self._count("between slices", self._slices, None, sent, times)


def _is_sliced(i, rows):
    """Whether an all-reduce's result, or an array of its tuple, is sliced."""
    users = [j for j in rows.values() if i.name in j.operands]
    if users and all(j.opcode == "get-tuple-element" for j in users):
        names = {j.name for j in users}
        users = [j for j in rows.values() if names & set(j.operands)]
    return any(j.opcode == "dynamic-slice" for j in users)


def group_size(attributes: str, devices: int) -> int:
    """How many devices take part in one collective, from its replica_groups; all without any."""
    if "source_target_pairs=" in attributes:
        return 2
    found = re.search(r"replica_groups=\[\d+,(\d+)\]", attributes)
    if found:
        return int(found.group(1))
    # The devices' order may stand between the mesh and its axes: device_ids=([16,16]T(1,0)).
    found = re.search(r"replica_groups=mesh\[([^\]]*)\][^{}]*\{([^}]*)\}", attributes)
    if found:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found.group(1)))
        return math.prod(int(sizes[a]) for a in re.findall(r"'(\w+)'", found.group(2)))
    found = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    return len(found.group(1).split(",")) if found else devices


def ring_bytes(kind: str, group: int, operand: float, result: float) -> float:
    """Bytes that each device of a group sends in a collective, by a ring."""
    share = (group - 1) / group
    return {
        "all-gather": result * share,
        "all-reduce": 2 * operand * share,
        "reduce-scatter": operand * share,
        "all-to-all": operand * share,
        "collective-permute": operand,
    }[kind]
