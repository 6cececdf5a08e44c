"""Targets of a plan: 'tpu:v5e:16x16@2', 'gpu:h100:8x8', 'cpu'."""

import dataclasses
import math
import re

from multimodal.chips import CHIPS, GPUS, TPUS, Chip
from multimodal.errors import UserError
from multimodal.registry import nearest

KNOWN = (
    f"tpu:CHIP:SHAPE[@SLICES] with CHIP {', '.join(c.name for c in TPUS)} (tpu:v5e:16x16, "
    f"tpu:v5p:8x8x8, tpu:v5e:16x16@2), gpu:CHIP:HOSTSxGPUS with CHIP "
    f"{', '.join(c.name for c in GPUS)} (gpu:h100:8x8), and cpu"
)


@dataclasses.dataclass(frozen=True)
class Target:
    """Machines to plan for.

    Attributes:
      name: as given, normalised.
      platform: 'tpu' | 'gpu' | 'cpu'; chip: None for a CPU.
      shape: chips of a slice along its axes (a GPU: hosts, GPUs a host).
      slices: TPU slices, joined by the data-centre network.
    """

    name: str
    platform: str
    chip: Chip | None
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def devices(self) -> int:
        """JAX devices in all."""
        return math.prod(self.shape) * self.slices * (self.chip.per_chip if self.chip else 1)

    @property
    def near(self) -> int:
        """Devices that fast links join: those of a slice, or of a GPU host."""
        return self.shape[1] if self.platform == "gpu" else self.devices // self.slices

    @property
    def topology(self) -> str:
        """libtpu's name of one slice."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"


def parse_target(text: str) -> Target:
    """The Target of its text. Raises UserError that names the known ones."""
    text = text.strip().lower()
    if text == "cpu":
        return Target("cpu", "cpu", None, (1,))
    match = re.fullmatch(r"(tpu|gpu):([a-z0-9]+):(\d{1,6}(?:x\d{1,6})*)(?:@(\d{1,6}))?", text, re.A)
    if not match:
        raise UserError(f"--plan: {text!r} is no target; known: {KNOWN}")
    platform, name, shape, slices = match.groups()
    name = {"v7x": "tpu7x", "7x": "tpu7x"}.get(name, name) if platform == "tpu" else name
    of_platform = [c.name for c in (TPUS if platform == "tpu" else GPUS)]
    if name not in of_platform:
        raise UserError(
            f"--plan: no {platform} {name!r}{nearest(name, of_platform)}; known: {KNOWN}"
        )
    shape, slices = tuple(map(int, shape.split("x"))), int(slices or 1)
    chip = CHIPS[name]
    _check(text, chip, shape, slices)
    tail = f"@{slices}" if slices > 1 else ""
    full = f"{platform}:{name}:{'x'.join(map(str, shape))}{tail}"
    return Target(full, platform, chip, shape, slices)


def _check(text, chip, shape, slices):
    """Raise UserError for a shape that the chip does not come in."""
    axes = chip.axes if chip.is_tpu else 2
    if len(shape) != axes or min(shape) < 1 or slices < 1:
        wanted = f"{axes} axes" if chip.is_tpu else "hosts x GPUs a host"
        wanted += ", each 1 or more"
        raise UserError(f"--plan: {text!r}: a {chip.name} has {wanted}; known: {KNOWN}")
    if not chip.is_tpu and slices > 1:
        raise UserError(f"--plan: {text!r}: only TPUs have slices; give hosts x GPUs a host")
    if chip.is_tpu and math.prod(shape) > chip.per_slice:
        raise UserError(
            f"--plan: {text!r}: {math.prod(shape)} chips, but a slice of {chip.name} has at most "
            f"{chip.per_slice}; for more give slices, tpu:{chip.name}:SHAPE@SLICES"
        )
