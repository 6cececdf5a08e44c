"""Optimised HLO text as computations and instructions, and how often its loops run."""

import dataclasses
import math
import re

BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^{}]*\})?")
HEAD = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s*\(.*\)\s*->.*\{\s*$")
ROW = re.compile(r"^\s+(ROOT\s+)?%?([\w.\-]+) = (.*)$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
BRANCHES = re.compile(r"(?:called_computations|branch_computations)=\{([^}]*)\}")


class UnknownTrips(ValueError):
    """How often a loop runs cannot be read from the text."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO: name = type opcode(operands), attributes."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool = False

    def arrays(self):
        """[(bytes, whether in HBM)] of the arrays of its type."""
        return arrays_of(self.type)

    def called(self):
        """Names of the computations that it calls, a loop's condition left out."""
        names = [
            n for n in CALLED.findall(self.attributes) if f"condition=%{n}" not in self.attributes
        ]
        for group in BRANCHES.findall(self.attributes):
            names += re.findall(r"%?([\w.\-]+)", group)
        return names

    def number(self, key):
        """The integer that stands as "key":"N" in its backend configuration, or 0."""
        found = re.search(rf'"{key}":"(\d+)"', self.attributes)
        return int(found.group(1)) if found else 0

    @property
    def op_name(self):
        """What of the traced program it comes from; '' where the compiler made it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""


def arrays_of(type_text):
    """[(bytes, whether in HBM)] of an HLO type's arrays; S(n) in a layout is another memory."""
    out = []
    for kind, dims, layout in ARRAY.findall(type_text):
        size = math.prod(int(d) for d in dims.split(",") if d)
        width = BYTES.get(kind, 1 if kind.startswith("f8") else 0)
        out.append((size * width, not re.search(r"S\([1-9]", layout)))
    return out


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, {instruction's name: Instruction} each, and the entry's name."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def trips(self, caller: str, loop: Instruction) -> int:
        """How often a while instruction of the computation `caller` runs its body.

        The compiler's own count where there is one; else the limit in the condition less what the
        counter starts at. Raises UnknownTrips.
        """
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if found:
            return int(found.group(1))
        condition = self.computations[
            re.search(r"condition=%?([\w.\-]+)", loop.attributes).group(1)
        ]
        test = next((i for i in condition.values() if i.is_root), None)
        if test is None or test.opcode != "compare" or "direction=LT" not in test.attributes:
            raise UnknownTrips(f"loop {loop.name}: its condition is no counter below a limit")
        start, limit = (self._value(caller, loop, condition, name) for name in test.operands)
        return max(0, limit - start)

    def _value(self, caller, loop, condition, name):
        """A constant of the condition, or what an element of the loop's state starts at."""
        i = condition[name]
        while i.opcode in ("copy", "bitcast", "convert"):
            i = condition[i.operands[0]]
        if i.opcode == "constant":
            return _constant(i)
        if i.opcode != "get-tuple-element":
            raise UnknownTrips(f"loop {loop.name}: its condition reads a {i.opcode}")
        rows = self.computations[caller]
        place = int(re.search(r"index=(\d+)", i.attributes).group(1))
        first = rows[loop.operands[0]]
        if first.opcode != "tuple":
            raise UnknownTrips(f"loop {loop.name}: it starts from a {first.opcode}")
        value = rows[first.operands[place]]
        while value.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
            value = rows[value.operands[0]]
        if value.opcode != "constant":
            raise UnknownTrips(f"loop {loop.name}: its counter or limit is a {value.opcode}")
        return _constant(value)


def _constant(instruction):
    found = re.match(r"-?\d+$", instruction.operands[0] if instruction.operands else "")
    if not found:
        raise UnknownTrips(f"{instruction.name} is no whole number")
    return int(found.group(0))


def parse(text: str) -> Program:
    """The Program of HLO text. Raises ValueError where it has no entry."""
    computations, entry, rows = {}, "", None
    for line in text.splitlines():
        head = HEAD.match(line) if not line.startswith(" ") else None
        if head:
            rows = computations[head.group(2)] = {}
            entry = head.group(2) if head.group(1) else entry
        elif line.startswith("}"):
            rows = None
        elif rows is not None and (row := ROW.match(line)):
            instruction = _instruction(*row.groups())
            rows[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation in the HLO text")
    return Program(computations, entry)


def _instruction(root, name, rest):
    type_text, rest = _split_type(rest)
    opcode, _, rest = rest.partition("(")
    inside, attributes = _until_closed(rest)
    if opcode == "constant":
        operands = (inside.strip(),)
    else:
        operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    if opcode == "parameter":
        operands = (inside.strip(),)
    return Instruction(name, type_text, opcode.strip(), operands, attributes, bool(root))


def _split_type(text):
    """'TYPE opcode(...)' -> (TYPE, the rest)."""
    if not text.startswith("("):
        kind, _, rest = text.partition(" ")
        return kind, rest
    inside, rest = _until_closed(text[1:])
    return f"({inside})", rest.lstrip()


def _until_closed(text):
    """(what stands before the bracket that closes an open one, what stands after it)."""
    depth = 1
    for found in re.finditer(r"[()]", text):
        depth += 1 if found.group(0) == "(" else -1
        if not depth:
            return text[: found.start()], text[found.end() :]
    return text, ""
