"""What accelerators can do, once: peaks, memories and links, for planning and for MFU.

Sources: Google Cloud's TPU pages (peak, HBM size and bandwidth); "How to Scale Your Model" (Austin
et al. 2025, chapter 2: one-way bandwidth of an ICI link, of the data-centre network a chip);
NVIDIA's data sheets (dense, not sparse, peaks; NVLink and network one way). All numbers are those
of one JAX device: a v4 or v5p chip is one (megacore), half a TPU7x chip is one.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of device.

    Attributes:
      name: as in a target; device_kinds: how JAX names it (prefixes).
      flops: dense bfloat16 FLOP/s.
      hbm: bytes; hbm_bandwidth: bytes/s.
      link: bytes/s one way of one link (a GPU: of all its NVLinks); axes: of the torus, two links
        each (a GPU: 0).
      network: bytes/s one way a device, between slices or hosts.
      clock: Hz of the cycles that the TPU compiler counts; 0: no such count.
      torus: extent that closes an axis to a ring, or a multiple of it; per_slice: largest slice.
      per_chip: devices a chip.
    """

    name: str
    device_kinds: tuple[str, ...]
    flops: float
    hbm: float
    hbm_bandwidth: float
    link: float
    axes: int
    network: float
    clock: float = 0.0
    torus: int = 0
    per_slice: int = 0
    per_chip: int = 1

    @property
    def megacore(self):
        """Whether the two cores of a chip are one device, a configuration of libtpu's own."""
        return self.name in ("v4", "v5p")

    @property
    def is_tpu(self):
        """Whether it is a TPU."""
        return self.axes > 0


GIB = 2**30

# A clock is peak / FLOPs a cycle: 2 cores x 4 MXUs x 128^2 x 2 (v4, v5p), half of it (v5e), 4 x
# 256^2 x 2 (v6e). Nobody publishes the TPU7x's MXUs; as many as a v6e's are assumed.
TPUS = (
    Chip("v4", ("TPU v4",), 275e12, 32 * GIB, 1228e9, 45e9, 3, 6.25e9, 1.05e9, 4, 4096),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"),
         197e12, 16 * GIB, 819e9, 45e9, 2, 3.125e9, 1.5e9, 16, 256),
    Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2765e9, 90e9, 3, 6.25e9, 1.75e9, 4, 6144),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"),
         918e12, 32 * GIB, 1640e9, 90e9, 2, 12.5e9, 1.75e9, 16, 256),
    Chip("tpu7x", ("TPU7x", "TPU 7x"),
         1153.5e12, 96 * GIB, 3690e9, 50e9, 3, 6.25e9, 2.2e9, 4, 9216, 2),
)  # fmt: skip
GPUS = (
    Chip("a100", ("NVIDIA A100",), 312e12, 80e9, 2039e9, 300e9, 0, 25e9),
    Chip("h100", ("NVIDIA H100",), 989e12, 80e9, 3350e9, 450e9, 0, 50e9),
    Chip("h200", ("NVIDIA H200",), 989e12, 141e9, 4800e9, 450e9, 0, 50e9),
    Chip("b200", ("NVIDIA B200",), 2250e12, 180e9, 7700e9, 900e9, 0, 50e9),
)
CHIPS = {chip.name: chip for chip in TPUS + GPUS}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls so, by the longest prefix; None where the table has none (a CPU)."""
    found = [
        (len(k), c) for c in CHIPS.values() for k in c.device_kinds if device_kind.startswith(k)
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def torus_bandwidth(chip: Chip, shape: tuple[int, ...], group: int) -> float:
    """Bytes/s at which each of `group` devices of a slice can send in a ring collective.

    A group takes as many axes, longest first, as make up its size; an axis that closes to a ring
    carries both ways, an open one half as much.
    """
    if not chip.is_tpu:
        return chip.link
    size, bandwidth = 1, 0.0
    for extent in sorted((n for n in shape if n > 1), reverse=True):
        if size >= group:
            break
        closed = extent % chip.torus == 0
        bandwidth += chip.link * (2 if closed else 1)
        size *= extent
    # Devices of one chip share its links.
    return (bandwidth or chip.link) / chip.per_chip
