"""The noise ladder: nothing at 0, monotone, no content at 1; and the `noise` of every tower."""

import pickle

import numpy as np
import pytest

from multimodal.data import corrupt
from multimodal.data.transforms import build_transform
from multimodal.errors import UserError

LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
RNG = np.random.default_rng(0)
INPUTS = {
    "image": RNG.integers(0, 256, (16, 16, 3), np.uint8) // 2,
    "video": RNG.integers(0, 256, (4, 16, 16, 1), np.uint8) // 2,
    "audio": (0.2 * RNG.standard_normal(4000)).astype(np.float32),
    "text": np.array([2, *RNG.integers(5, 90, 200), 3, *[0] * 20], np.int32),
}
SPECIAL = dict(pad=0, unk=1, cls=2, sep=3, mask=4)
CONTEXT = {"text": dict(vocab_size=90, special_ids=SPECIAL)}


def corrupted(kind, level, seed=0, x=None):
    x = INPUTS[kind] if x is None else x
    rng = np.random.default_rng(seed)
    return corrupt.corrupt(kind, x, level, rng, **CONTEXT.get(kind, {}))


def distance(kind, a, b):
    if kind == "text":
        return float((a != b).mean())
    return float(np.abs(a.astype(np.float64) - b).mean())


def test_every_kind_has_a_law_here():
    assert set(corrupt.CORRUPTIONS) == set(INPUTS)


@pytest.mark.parametrize("kind", INPUTS)
def test_ladder(kind):
    x = INPUTS[kind]
    before = x.copy()
    outs = [corrupted(kind, level) for level in LEVELS]
    assert outs[0] is x
    np.testing.assert_array_equal(x, before)
    assert all(o.shape == x.shape and o.dtype == x.dtype for o in outs)
    distances = [distance(kind, o, x) for o in outs]
    assert all(a < b for a, b in zip(distances, distances[1:])), distances
    np.testing.assert_array_equal(outs[3], corrupted(kind, 0.5))
    assert (outs[3] != corrupted(kind, 0.5, seed=1)).any()


@pytest.mark.parametrize("kind", ["image", "video", "audio"])
def test_level_1_does_not_depend_on_the_content(kind):
    flipped = INPUTS[kind][::-1].copy()
    np.testing.assert_allclose(corrupted(kind, 1.0), corrupted(kind, 1.0, x=flipped), rtol=1e-6)


def test_noise_of_pixels_is_uniform():
    noise = corrupted("image", 1.0, x=np.zeros((128, 128, 3), np.uint8))
    counts = np.bincount(noise.ravel(), minlength=256)
    assert counts.min() > 100 and counts.max() < 300


def test_sound_keeps_its_loudness_and_silence_is_finite():
    x = INPUTS["audio"]
    for level in LEVELS:
        assert abs(corrupted("audio", level).std() / x.std() - 1) < 0.05
        silence = corrupted("audio", level, x=np.zeros(500, np.float32))
        assert np.isfinite(silence).all() and np.abs(silence).max() < 1e-3
    noise = corrupted("audio", 1.0)
    assert abs(np.corrcoef(noise, x)[0, 1]) < 0.05


def test_special_tokens_stay_and_none_is_drawn():
    x, out = INPUTS["text"], corrupted("text", 1.0)
    words = slice(1, 201)
    assert out[0] == 2 and out[201] == 3 and not out[202:].any()
    assert not np.isin(out[words], list(SPECIAL.values())).any() and out.max() < 90
    assert (out[words] != x[words]).mean() > 0.9
    half = (corrupted("text", 0.5)[words] != x[words]).mean()
    assert 0.35 < half < 0.65


def test_text_without_separator_with_nothing_and_with_default_ids():
    bare = np.array([2, 7, 8, 9, 0, 0], np.int32)
    ends = {int(corrupted("text", 1.0, seed, bare)[3]) for seed in range(9)}
    assert len(ends) > 3 and corrupted("text", 1.0, x=bare)[0] == 2
    assert not corrupted("text", 1.0, x=np.zeros(4, np.int32)).any()
    rng = np.random.default_rng(0)
    out = corrupt.corrupt("text", bare, 1.0, rng, vocab_size=50)
    assert not out[4:].any() and (out[:4] > 0).all()


def test_wrong_arguments():
    with pytest.raises(UserError, match="did you mean image"):
        corrupt.corrupt("imgae", INPUTS["image"], 0.5, RNG)
    for level in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="noise level"):
            corrupt.corrupt("image", INPUTS["image"], level, RNG)
    with pytest.raises(UserError, match="uint8"):
        corrupt.corrupt("image", np.zeros((2, 2, 3), np.float32), 0.5, RNG)
    with pytest.raises(UserError, match="no words"):
        corrupt.corrupt("text", INPUTS["text"], 0.5, RNG, vocab_size=5, special_ids=SPECIAL)


CFG = {
    "image": dict(size=16),
    "video": dict(frames=4, size=16, channels=1),
    "audio": dict(sample_rate=8000, seconds=0.5),
    "text": dict(max_length=9),
}
RAW = {**INPUTS, "text": ["a red dog"]}


@pytest.mark.parametrize("kind", CFG)
def test_noise_of_a_tower(kind, tokenizer):
    def build(noise, train):
        return build_transform(kind, CFG[kind] | dict(noise=noise), train, tokenizer)

    for train in (True, False):
        clean, noisy = build(0.0, train), build(0.7, train)
        rngs = [np.random.default_rng(3) for _ in range(4)]
        plain = build_transform(kind, CFG[kind], train, tokenizer)(RAW[kind], rngs[0])
        np.testing.assert_array_equal(clean(RAW[kind], rngs[1]), plain)
        out = noisy(RAW[kind], rngs[2])
        assert (out != plain).any() and out.shape == plain.shape and out.dtype == plain.dtype
        np.testing.assert_array_equal(noisy.finish(noisy.decode(RAW[kind]), rngs[3]), out)
        np.testing.assert_array_equal(noisy.empty(), plain * 0)
        copy = pickle.loads(pickle.dumps(noisy))
        np.testing.assert_array_equal(copy(RAW[kind]), noisy(RAW[kind]))
    evaluated = [noisy(RAW[kind], rng) for rng in (None, RNG, None)]
    np.testing.assert_array_equal(evaluated[0], evaluated[1])
    np.testing.assert_array_equal(evaluated[0], evaluated[2])


def test_noise_of_training_changes_by_visit_and_bad_levels_are_refused():
    noisy = build_transform("image", dict(size=16, noise=0.5), train=True)
    draws = {noisy(RAW["image"], np.random.default_rng(s)).tobytes() for s in range(5)}
    assert len(draws) == 5
    with pytest.raises(UserError, match="noise level"):
        build_transform("image", dict(size=16, noise=2), train=True)
    path = "multimodal.data.transforms:ImageTransform"
    with pytest.raises(UserError, match="no corruption"):
        build_transform(path, dict(size=16, noise=0.5), train=True)
