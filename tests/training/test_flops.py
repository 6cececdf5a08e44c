"""Model FLOPs: equal to XLA's count where that counts all, and to what is published."""

import jax
import pytest

from multimodal.chips import CHIPS, chip_of, torus_bandwidth
from multimodal.config import load_config
from multimodal.training import flops, setup
from multimodal.training.sharding import make_mesh
from multimodal.training.step import lower_step, make_step

WIDE = dict(width=384, heads=6, mlp_dim=1536, depth=2)


def small(spec, **changes):
    """A config of matrices large enough that element-wise work is little beside them."""
    c = load_config(spec)
    with c.unlocked():
        c.batch_size, c.model.dtype = 16, "float32"
        c.modalities.image.update(WIDE, size=64, patch=8, scan=False)
        c.modalities.text.update(WIDE, vocab_size=512, max_length=24, scan=False)
        c.model.fusion.update(WIDE, depth=1, scan=False)
        c.queue.size = 64 if c.queue.size else 0
        for key, value in changes.items():
            node, last = c, key.split("__")
            for part in last[:-1]:
                node = node[part]
            node[last[-1]] = value
    return c


def xla_count(c):
    """What XLA counts before it optimises: loop bodies once."""
    mesh = make_mesh(devices=jax.devices()[:1])
    model, tx, state = setup.state_shapes(c, mesh)
    step = make_step(c, model, setup.get_objectives(c, None), tx)
    with jax.set_mesh(mesh):
        lowered = lower_step(step, state, setup.batch_shapes(c, mesh))
    return lowered.cost_analysis()["flops"]


@pytest.mark.parametrize("spec", ["configs/clip.py", "configs/clip.py:b32,siglip"])
def test_count_is_xlas_of_an_unrolled_step(spec):
    c = small(spec)
    assert flops.of_step(c) == pytest.approx(xla_count(c), rel=0.04)


@pytest.mark.slow
def test_count_is_xlas_with_a_teacher_matching_and_masked_words():
    off = dict(dropout=0.0, attention_dropout=0.0)
    c = small("configs/albef.py")
    with c.unlocked():
        c.modalities.text.update(off)
        c.model.fusion.update(off)
    assert flops.of_step(c) == pytest.approx(xla_count(c), rel=0.05)


def test_loops_and_recomputation_change_nothing():
    plain = flops.of_step(small("configs/clip.py"))
    for change in (
        {"modalities__image__scan": True, "modalities__text__scan": True},
        {"modalities__image__remat": "full", "modalities__text__remat": "dots"},
        {"micro_batches": 4},
    ):
        assert flops.of_step(small("configs/clip.py", **change)) == plain, change


def test_kernels_change_nothing():
    given = dict(modalities__text__max_length=64, model__dtype="bfloat16")
    counts = {
        kernel: flops.of_step(small("configs/clip.py", **given, model__attention_kernel=kernel))
        for kernel in ("xla", "bfloat16", "auto")
    }
    assert len(set(counts.values())) == 1, counts


# Forward GFLOP a pair, OpenCLIP's docs/model_profile.csv.
@pytest.mark.parametrize("size, forward", [("b32", 14.78), ("l14", 175.33), ("g14", 581.15)])
def test_count_is_the_published_one(size, forward):
    c = load_config(f"configs/clip.py:{size}", ["batch_size=8"])
    assert flops.of_step(c) / 8 == pytest.approx(3e9 * forward, rel=0.01)


def test_chips_are_known_by_jaxs_names():
    names = {"TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e", "TPU7x": "tpu7x"}
    names |= {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200"}
    assert {kind: chip_of(kind).name for kind in names} == names
    assert chip_of("cpu") is None


def test_a_ring_uses_the_axes_that_its_group_spans():
    v5e = CHIPS["v5e"]
    assert torus_bandwidth(v5e, (16, 16), 256) == 4 * v5e.link
    assert torus_bandwidth(v5e, (16, 16), 16) == 2 * v5e.link
    assert torus_bandwidth(v5e, (4, 4), 16) == 2 * v5e.link  # open axes: half
