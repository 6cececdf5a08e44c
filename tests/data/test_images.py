"""Image decoding, each bad input by its manifest, and augmentation."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from multimodal.data.image_codec import decode_image
from multimodal.data.transforms import build_transform
from multimodal.errors import BadRecord, UserError


@pytest.fixture(scope="module")
def manifest(shared):
    folder = shared / "data" / "bad_inputs"
    if not folder.is_dir():
        pytest.skip("no folder ../shared/data/bad_inputs")
    files = json.loads((folder / "manifest.json").read_text())
    return folder, next(v for v in files.values() if isinstance(v, list))


def encode(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_bad_inputs_by_manifest(manifest, resize):
    folder, files = manifest
    transform = build_transform("image", dict(size=32, resize=resize), train=False)
    wrong = []
    for entry in (f for f in files if f["kind"] == "image"):
        try:
            out = transform((folder / entry["path"]).read_bytes())
            assert out.shape == (32, 32, 3) and out.dtype == np.uint8
            outcome = "accept"
        except BadRecord as e:
            assert "\n" not in str(e)
            outcome = "reject"
        if entry["expect"] not in (outcome, "either"):
            wrong.append((entry["path"], outcome))
    assert not wrong


def test_16_bit_grey_is_scaled():
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    out = decode_image(encode(Image.fromarray(ramp)))
    np.testing.assert_array_equal(out[..., 0].ravel(), np.arange(256))


def test_exif_orientation_is_applied_in_training_and_evaluation():
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(pixels), exif=exif)
    assert decode_image(data).shape == (16, 8, 3)
    both = [build_transform("image", dict(size=8), train)(data, None) for train in (True, False)]
    np.testing.assert_array_equal(*both)
    assert both[0][:4].min() > 200 and both[0][4:].max() < 55


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 20, 30)])
def test_transparency_lies_on_the_background(background):
    data = encode(Image.new("RGBA", (4, 4), (200, 0, 0, 0)))
    assert (decode_image(data, background) == background).all()


def test_pixel_limit_is_checked_before_decoding():
    data = encode(Image.new("L", (300, 300)))
    with pytest.raises(BadRecord, match="300x300"):
        decode_image(data, max_pixels=1000)
    assert decode_image(data, max_pixels=90_000).shape == (300, 300, 3)


def test_arrays_are_taken_as_they_are():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    np.testing.assert_array_equal(decode_image(pixels), pixels)
    assert decode_image(pixels[..., 0]).shape == (4, 4, 3)
    for bad in (pixels.astype(np.float32), pixels[None], pixels[:0]):
        with pytest.raises(BadRecord):
            decode_image(bad)


def test_crop_takes_the_centre():
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 200
    crop = build_transform("image", dict(size=8, resize="crop"), train=False)(pixels)
    assert (crop == 200).all()
    squash = build_transform("image", dict(size=8), train=False)(pixels)
    assert squash[:, 0].max() < 50


def test_wide_pictures_keep_their_shape():
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 200
    wide = build_transform("image", dict(size=(10, 30)), train=False)(pixels)
    assert wide.shape == (10, 30, 3)
    assert (wide[:, 13:17] == 200).all() and (wide[:, [2, 27]] == 0).all()
    tall = np.concatenate([pixels * 0, pixels, pixels * 0])  # 60 x 60: the middle third is cropped
    cropped = build_transform("image", dict(size=(10, 30), resize="crop"), train=False)(tall)
    assert cropped.shape == wide.shape  # Pillow mixes in a little of what lies beyond the box
    np.testing.assert_array_equal(cropped[2:-2], wide[2:-2])


@pytest.mark.parametrize("size", [(16, 48), (48, 16)])
@pytest.mark.parametrize("decode", ["pillow", "fast"])
def test_random_crops_have_the_ratio_of_the_size(size, decode):
    if decode == "fast":
        pytest.importorskip("cv2")
        pytest.importorskip("simplejpeg")
    cfg = dict(size=size, augment="random_resized_crop", decode=decode, scale=(0.1, 0.3))
    transform = build_transform("image", cfg, train=True)
    y, x = np.mgrid[:240, :240]
    pixels = np.stack([y, x, x], 2).astype(np.uint8)
    out = [transform(pixels, np.random.default_rng(s)).astype(float) for s in range(30)]
    assert {o.shape for o in out} == {(*size, 3)}
    # Pixels of the picture from one end to the other, down and across, against those of the result
    scales = [(np.ptp(o[..., 1]) / size[1]) / (np.ptp(o[..., 0]) / size[0]) for o in out]
    assert 0.6 < min(scales) < 0.9 and 1.1 < max(scales) < 1.6


@pytest.mark.parametrize("augment", ["none", "pad_crop", "random_resized_crop"])
def test_augmentation_is_a_function_of_the_rng(augment):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    transform = build_transform("image", dict(size=16, augment=augment, flip=True), train=True)
    draws = [transform(pixels, np.random.default_rng(s)) for s in range(20)]
    again = [transform(pixels, np.random.default_rng(s)) for s in range(20)]
    np.testing.assert_array_equal(draws, again)
    assert len({d.tobytes() for d in draws}) == (2 if augment == "none" else len(draws)) or (
        augment == "pad_crop" and len({d.tobytes() for d in draws}) > 5
    )


def test_evaluation_is_not_augmented():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    cfg = dict(size=16, augment="random_resized_crop", flip=True)
    plain = build_transform("image", dict(size=16), train=False)(pixels)
    for s in range(4):
        out = build_transform("image", cfg, train=False)(pixels, np.random.default_rng(s))
        np.testing.assert_array_equal(out, plain)


@pytest.mark.parametrize("cfg", [dict(augment="padcrop"), dict(resize="x"), dict(size=0)])
def test_bad_config(cfg):
    with pytest.raises(UserError):
        build_transform("image", {"size": 8, **cfg}, train=True)


def test_transform_by_import_path_and_unknown_name():
    path = "multimodal.data.transforms:ImageTransform"
    assert build_transform(path, dict(size=4), train=False).size == (4, 4)
    with pytest.raises(UserError, match="did you mean image"):
        build_transform("imgae", dict(size=4), train=False)
