"""What a compiled TPU program costs: the compiler's own cycles, bytes over HBM and over links.

libtpu writes its estimate, `estimated_cycles`, beside each operation of the optimised HLO. Loops
are multiplied out. Bytes follow from the types: what an operation outside of a fusion reads from
HBM and writes to it, where slices of a larger array count as slices.
"""

import dataclasses
import re

from multimodal.planning.exchanges import COLLECTIVES, Collective, Exchanges, Windows
from multimodal.planning.hlo import Program, UnknownTrips

# Move nothing: names, views, ends of what was counted at its start, and what is walked into.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "copy-done", "slice-done", "async-done",
    "async-update", "async-start", "send", "recv", "send-done", "recv-done", "opt-barrier",
    "custom-call", *(f"{c}-done" for c in COLLECTIVES),
}  # fmt: skip
VIEWS = ("bitcast", "copy", "convert", "reshape")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of the program over all its runs in a step."""

    name: str
    cycles: float
    bytes: float
    multiplies: bool  # whether it holds a matrix product or convolution


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """What one step costs one device.

    Attributes:
      cycles: of all operations; uncounted: operations with work but without an estimate.
      open_loops: loops without matrix products that run as often as the data say, counted once
        (ALBEF's negatives are fetched in rounds, nearly always one).
      bytes: read from and written to HBM.
      collectives: list of Collective, most bytes first; operations: list of Operation, most cycles
        first.
    """

    cycles: float
    bytes: float
    uncounted: int
    open_loops: int
    collectives: list[Collective]
    operations: list[Operation]


def cost_of(program: Program, devices: int, slices: int = 1) -> ProgramCost:
    """The ProgramCost of a parsed program for so many devices.

    Raises UnknownTrips for a loop with matrix products whose turns are not in the text.
    """
    walk = Walk(program, devices, slices)
    walk.computation(program.entry, 1)
    operations = [Operation(name, *value) for name, value in walk.found.items()]
    return ProgramCost(
        sum(o.cycles for o in operations),
        sum(o.bytes for o in operations),
        walk.uncounted,
        walk.open_loops,
        walk.exchanges.collectives(),
        sorted(operations, key=lambda o: -o.cycles),
    )


class Walk:
    """Sums over the computations that run, each as often as it does."""

    def __init__(self, program, devices, slices):
        self._program = program
        self.exchanges = Exchanges(program, devices, slices)
        self.found = {}  # label -> [cycles, bytes, whether it multiplies]
        self.uncounted = self.open_loops = 0
        self._cycles = 0.0  # of all that ran so far

    def computation(self, name, times):
        """Add a computation that runs `times` times."""
        rows = self._program.computations[name]
        windows = Windows(rows, self._program)
        for i in rows.values():
            before = self._cycles
            self.exchanges.add(i, rows, times)
            if i.opcode == "while":
                body = re.search(r"body=%?([\w.\-]+)", i.attributes).group(1)
                self.computation(body, times * self._trips(name, i, body))
            elif i.opcode in ("call", "conditional", "async-start"):
                for called in i.called():
                    self.computation(called, times)
            elif i.opcode not in FREE:
                self._add(i, rows, times)
            self.exchanges.ran_beside(windows.passed(i), self._cycles - before)

    def _trips(self, caller, loop, body):
        try:
            return self._program.trips(caller, loop)
        except UnknownTrips:
            if self._works(body):
                raise
            self.open_loops += 1
            return 1

    def _works(self, name):
        """Whether a computation, or one that it runs, holds a matrix product."""
        return any(
            self._multiplies(i)
            or "tpu_custom_call" in i.attributes  # a Pallas kernel
            or any(self._works(c) for c in i.called())
            for i in self._program.computations.get(name, {}).values()
        )

    def _add(self, i, rows, times):
        cycles, moved = i.number("estimated_cycles"), self._bytes(i, rows)
        multiplies = self._multiplies(i)
        if multiplies and not cycles:
            self.uncounted += 1
        entry = self.found.setdefault(label(i), [0.0, 0.0, False])
        self._cycles += cycles * times
        entry[0] += cycles * times
        entry[1] += moved * times
        entry[2] |= multiplies

    def _multiplies(self, i):
        if i.opcode in ("convolution", "dot"):
            return True
        if i.opcode != "fusion":
            return False
        return any(
            self._multiplies(j) for c in i.called() for j in self._program.computations[c].values()
        )

    def _bytes(self, i, rows):
        """Bytes that an instruction reads from HBM and writes to it."""
        if i.opcode in ("copy-start", "slice-start"):
            arrays = i.arrays()[:2]  # two ends of one transfer
            return min(n for n, _ in arrays) * sum(there for _, there in arrays)
        if i.opcode == "fusion":
            inner = self._program.computations[i.called()[0]]
            read = sum(
                self._read(inner, at, self._in_hbm(rows, name))
                for at, name in enumerate(i.operands)
            )
            return read + self._written(inner, i)
        if i.opcode in ("dynamic-slice", "slice", "gather"):
            return sum(n * (1 + self._first_in_hbm(i, rows)) for n, there in i.arrays() if there)
        if i.opcode == "dynamic-update-slice":
            return 2 * self._in_hbm(rows, i.operands[1])
        read = sum(self._in_hbm(rows, name) for name in i.operands)
        return read + sum(n for n, there in i.arrays() if there)

    def _first_in_hbm(self, i, rows):
        return any(there for _, there in rows[i.operands[0]].arrays()) if i.operands else False

    def _in_hbm(self, rows, name):
        return sum(n for n, there in rows[name].arrays() if there) if name in rows else 0

    def _read(self, inner, at, size):
        """Bytes of the fusion's operand number `at` that are read, of `size` in HBM."""
        if not size:
            return 0
        places = (i for i in inner.values() if i.opcode == "parameter" and i.operands[0] == str(at))
        parameter = next(places, None)
        if parameter is None:
            return size
        total, names = 0, [parameter.name]
        while names:
            name = names.pop()
            for user in (i for i in inner.values() if name in i.operands):
                if user.opcode in VIEWS and not user.is_root:
                    names.append(user.name)
                elif user.opcode in ("dynamic-slice", "slice", "gather"):
                    total += sum(n for n, _ in user.arrays())
                elif user.opcode == "fusion":
                    deeper = self._program.computations[user.called()[0]]
                    total += self._read(deeper, user.operands.index(name), size)
                elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
                    return size
        return min(total, size)

    def _written(self, inner, i):
        """Bytes that a fusion writes to HBM; into a larger array only the part that is new."""
        root = next(j for j in inner.values() if j.is_root)
        roots = [inner[n] for n in root.operands] if root.opcode == "tuple" else [root]
        arrays = i.arrays()
        if len(roots) != len(arrays):
            return sum(n for n, there in arrays if there)
        total = 0
        for r, (size, there) in zip(roots, arrays, strict=True):
            while r.opcode == "bitcast" and r.operands[0] in inner:
                r = inner[r.operands[0]]
            if r.opcode == "dynamic-update-slice":
                size = sum(n for n, _ in inner[r.operands[1]].arrays())
            total += size if there else 0
        return total


# Of the path that JAX gives an operation: what its transformations, loops and calls add.
SCAFFOLD = re.compile(
    r"(jit|jvp|transpose)\(.*|while|body|closed_call|checkpoint|rematted_computation|remat\d*"
    r"|shard_map|pjit|cond|branch\w*|.*<.*"
)


def label(i) -> str:
    """A short name of what an operation does: the pass, the module's path and the primitive."""
    name = i.op_name
    if not name:
        return f"(compiler) {i.opcode}"
    again, backward = "rematted_computation" in name, "transpose(" in name
    phase = "recompute" if again else "backward" if backward else "forward"
    parts = [p for p in name.split("/") if not SCAFFOLD.fullmatch(p)]
    tower = [p for p in parts if p.startswith("encoder_") and "." not in p][:1]
    return f"{phase} {'/'.join(dict.fromkeys([*tower, *parts[-3:]])) or i.opcode}"
