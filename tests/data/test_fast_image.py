"""The two ways to decode training images: the same verdict on every file, nearly the same pixels,
and none of it in evaluation.
"""

import contextlib
import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from multimodal.config import check_same, load_config, read_config, save_config
from multimodal.data import extras, fast_image, image_codec, image_ops
from multimodal.data.image_codec import decode_image
from multimodal.data.transforms import build_transform
from multimodal.errors import BadRecord, UserError
from multimodal.training.inputs import settle

HERE = fast_image.choose("auto") == "fast"
needs_extra = pytest.mark.skipif(not HERE, reason="needs simplejpeg and cv2: the extra `fast`")


def photo(height=75, width=100, seed=0):
    """Smooth pixels [H, W, 3], whose colours vary less than their light."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(width), np.fft.fftfreq(height)))
    spectrum = np.fft.fft2(rng.standard_normal((4, height, width))) / (frequency + 0.01) ** 2
    waves = np.fft.ifft2(spectrum).real
    light, *colours = waves / waves.std((1, 2), keepdims=True)
    pixels = 128 + 40 * light + 15 * np.stack(colours)
    return np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def jpeg(pixels, mode="RGB", **options):
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, "JPEG", quality=90, **options)
    return out.getvalue()


def both(**cfg):
    return [build_transform("image", dict(cfg, decode=d), train=True) for d in ("fast", "pillow")]


def verdict(transform, data):
    try:
        return transform(data).shape
    except BadRecord:
        return None


@needs_extra
def test_bad_inputs_have_the_same_verdict(shared):
    folder = shared / "data" / "bad_inputs"
    if not folder.is_dir():
        pytest.skip("no folder ../shared/data/bad_inputs")
    fast, pillow = both(size=32)
    entries = json.loads((folder / "manifest.json").read_text())["files"]
    for entry in (e for e in entries if e["kind"] == "image"):
        data = (folder / entry["path"]).read_bytes()
        found = verdict(fast, data)
        assert found == verdict(pillow, data), entry["path"]
        assert entry["expect"] in ("accept" if found else "reject", "either"), entry["path"]


def damaged(data, rng):
    """The bytes cut off, with some changed anywhere or in the header, or with a hole."""
    data, kind = bytearray(data), rng.integers(4)
    if kind == 0:
        return bytes(data[: rng.integers(len(data))])
    if kind == 3:
        at = rng.integers(len(data))
        del data[at : at + rng.integers(1, 40)]
        return bytes(data)
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(len(data) if kind == 1 else min(600, len(data)))] = rng.integers(256)
    return bytes(data)


@needs_extra
@pytest.mark.parametrize("options", [{}, dict(progressive=True), dict(mode="L"), dict(mode="CMYK")])
def test_damaged_files_have_the_same_verdict(options):
    fast, pillow = both(size=16)
    data = jpeg(photo(40, 48), **options)
    rng = np.random.default_rng(0)
    verdicts = [
        (verdict(fast, d), verdict(pillow, d)) for d in (damaged(data, rng) for _ in "x" * 300)
    ]
    assert {a for a, _ in verdicts} == {None, (16, 16, 3)}
    assert all(a == b for a, b in verdicts)


@pytest.mark.parametrize("options", [{}, dict(progressive=True), dict(mode="L")])
def test_plain_headers(options):
    data = jpeg(photo(40, 48), **options)
    assert fast_image.plain_size(data) == (48, 40)
    for more in (dict(mode="CMYK"), dict(exif=Image.Exif()), dict(icc_profile=b"x" * 200)):
        assert fast_image.plain_size(jpeg(photo(40, 48), **more)) is None
    scan = data.index(b"\xff\xda")
    for n in range(scan + 8):
        assert fast_image.plain_size(data[:n]) is None


def test_pillow_opens_every_plain_header(monkeypatch):
    """Whatever is changed in a header: one that counts as plain has the size that Pillow reads."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # decode_image has the limit
    rng, plain = np.random.default_rng(0), 0
    for options in ({}, dict(progressive=True), dict(mode="L"), dict(comment=b"x" * 30)):
        data = jpeg(photo(40, 48), **options)
        scan = data.index(b"\xff\xda")
        header, rest = data[: scan + 2 + data[scan + 3]], data[scan + 2 + data[scan + 3] :]
        for _ in range(5_000):
            odd = damaged(header, rng)
            if odd != header and (size := fast_image.plain_size(odd + rest)):
                plain += 1
                odd += rest
                with Image.open(io.BytesIO(odd), formats=("JPEG",)) as image:
                    assert image.size == size and image.mode in ("RGB", "L")
                    assert fast_image.is_upright(image)
    assert plain > 5_000


@pytest.mark.parametrize("decode", [pytest.param("fast", marks=needs_extra), "pillow"])
@pytest.mark.parametrize(
    "value", [{"bytes": b"x"}, [b"abc"], [300], 1.5, 10**15, bytearray(jpeg(photo()))]
)
def test_what_is_no_bytes_is_a_bad_record_at_most(value, decode):
    transform = build_transform("image", dict(size=16, decode=decode), train=True)
    if isinstance(value, bytearray):
        assert transform(value).shape == (16, 16, 3)
        return
    with pytest.raises(BadRecord):
        transform(value)


@needs_extra
def test_memory_that_is_not_there_is_a_bad_record():
    def fast(data, size):
        raise MemoryError

    with pytest.raises(BadRecord):
        decode_image(jpeg(photo()), fast=fast)


@needs_extra
@pytest.mark.parametrize("limit, calls", [(1000, 0), (10_000, 1), (70_000_000, 1)])
def test_plain_or_not_a_decoder_is_asked_once(limit, calls, monkeypatch):
    asked = []
    monkeypatch.setattr(image_codec, "MAX_PIXELS", 5000)
    with contextlib.suppress(BadRecord):
        decode_image(jpeg(photo()), max_pixels=limit, fast=lambda *a: asked.append(a))
    assert [size for _, size in asked] == [(100, 75)] * calls


@needs_extra
def test_limit_is_checked_before_decoding(monkeypatch):
    monkeypatch.setattr(fast_image, "decode_jpeg", None)  # would raise if it were called
    fast, _ = both(size=8, max_pixels=1000)
    with pytest.raises(BadRecord, match="100x75"):
        fast(jpeg(photo()))


@needs_extra
@pytest.mark.parametrize("orientation", [1, 6])
def test_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photo(), exif=exif)
    assert fast_image.plain_size(data) is None
    a, b = (decode_image(data, fast=f).astype(int) for f in (fast_image.decode_jpeg, None))
    assert a.shape == b.shape == ((100, 75, 3) if orientation == 6 else (75, 100, 3))
    assert np.abs(a - b).mean() < 2


@needs_extra
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("shape", [(75, 100), (480, 640), (1, 300), (300, 1)])
@pytest.mark.parametrize("augment", ["none", "pad_crop", "random_resized_crop"])
def test_nearly_the_same_pixels(mode, shape, augment):
    transforms = both(size=48, augment=augment, flip=True, scale=(0.5, 1.0))
    # The boxes of random crops are rounded to pixels.
    most = 10 if augment == "random_resized_crop" or 1 in shape else 4
    data = jpeg(photo(*shape), mode)
    for seed in range(5):
        a, b = (t(data, np.random.default_rng(seed)).astype(int) for t in transforms)
        assert np.abs(a - b).mean() < most


@needs_extra
@pytest.mark.parametrize("augment", ["none", "pad_crop", "random_resized_crop"])
def test_decode_then_finish_is_the_transform(augment):
    fast, _ = both(size=24, augment=augment)
    fast = pickle.loads(pickle.dumps(fast))
    data = jpeg(photo(300, 400))
    for seed in range(3):
        whole = fast(data, np.random.default_rng(seed))
        np.testing.assert_array_equal(
            whole, fast.finish(fast.decode(data), np.random.default_rng(seed))
        )


@needs_extra
def test_large_images_are_decoded_smaller_but_never_below_the_smallest_crop():
    scale = (0.25, 1.0)
    fast, _ = both(size=32, augment="random_resized_crop", scale=scale)
    for shape in ((60, 80), (200, 300), (600, 450), (1000, 1000)):
        out = fast.decode(jpeg(photo(*shape))).shape
        smallest = min(*out[:2], (out[0] * out[1] * scale[0] * image_ops.ASPECT[0]) ** 0.5)
        assert smallest >= 32 or out[:2] == shape
        assert (out[:2] == shape) == (max(shape) < 200)


@needs_extra
def test_resample_takes_the_box():
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:30, 20:40] = 200
    assert (fast_image.resample(pixels, 8, (20.2, 9.9, 39.8, 30.1)) == 200).all()
    assert fast_image.resample(pixels, 8, (59.9, 39.9, 60.0, 40.0)).shape == (8, 8, 3)
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    averaged = fast_image.resample(noise, 20, (0, 0, 400, 400))
    assert averaged.std() < 10  # 400 pixels each; without an average it would be 74


def test_evaluation_is_pillows():
    data = jpeg(photo())
    wanted = build_transform("image", dict(size=48, decode="pillow"), train=False)(data)
    for decode in fast_image.DECODERS:
        transform = build_transform("image", dict(size=48, decode=decode), train=False)
        np.testing.assert_array_equal(transform(data), wanted)


def test_a_run_keeps_what_it_began_with(tmp_path, monkeypatch):
    def config(*overrides):
        return load_config("configs/emoji.py:smoke", overrides)

    monkeypatch.setattr(fast_image, "choose", lambda *_: "fast")
    first = config()
    settle(first)
    save_config(first, tmp_path)
    assert read_config(tmp_path).modalities.image.decode == "fast"
    monkeypatch.setattr(fast_image, "choose", lambda *_: "pillow")
    again = config()
    settle(again, read_config(tmp_path))
    check_same(again, read_config(tmp_path))
    other = config("modalities.image.decode=pillow")
    settle(other, read_config(tmp_path))
    with pytest.raises(UserError, match="decode"):
        check_same(other, read_config(tmp_path))


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(extras.importlib, "import_module", _absent)
    with pytest.raises(UserError, match=r"decode='fast' needs .*-e '\.\[fast\]"):
        build_transform("image", dict(size=8, decode="fast"), train=True)


def _absent(name):
    raise ImportError(f"no {name}")
