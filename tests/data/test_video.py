"""Video: arrays and files, limits, bad inputs by their manifest, augmentation."""

import io
import struct
import sys

import numpy as np
import pytest

from multimodal.data.audio_codec import decode_audio
from multimodal.data.transforms import build_transform
from multimodal.data.video_codec import decode_video, even_frames
from multimodal.errors import BadRecord, UserError
from tests.data.media import by_manifest


def transform(train=False, **cfg):
    return build_transform("video", dict(frames=4, size=16, channels=3) | cfg, train)


def film(frames, kind="mp4", rate=10, tone=False):
    """An encoded video of uint8 [T, H, W, 3]; MJPEG or MPEG-4, which every FFmpeg writes."""
    av = pytest.importorskip("av")
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as file:
        track = file.add_stream("mpeg4", rate=rate)
        track.width, track.height, track.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        track.bit_rate = 4_000_000
        if tone:
            sound = file.add_stream("aac", rate=16_000, layout="mono")
            wave = np.sin(2 * np.pi * 500 * np.arange(16_000) / 16_000).astype(np.float32)
        for pixels in frames:
            file.mux(track.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(track.encode())
        if tone:
            frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
            frame.sample_rate = 16_000
            file.mux([*sound.encode(frame), *sound.encode()])
    return out.getvalue()


def steps(count=12, height=32, width=48):
    """Frame t is grey of 20 * t."""
    return np.broadcast_to(
        (20 * np.arange(count, dtype=np.uint8))[:, None, None, None], (count, height, width, 3)
    ).copy()


def test_bad_inputs_by_manifest(shared):
    pytest.importorskip("av")
    found = by_manifest(shared, "video", transform())
    assert len(found) == 7
    assert all(
        x is None or (x.shape, x.dtype) == ((4, 16, 16, 3), np.uint8) for x in found.values()
    )
    folder = shared / "data" / "bad_inputs" / "video"
    sound = decode_audio((folder / "ok.mp4").read_bytes(), 16_000)
    assert 45_000 < len(sound) < 50_000 and 0.01 < np.abs(sound).max() <= 1
    with pytest.raises(BadRecord, match="no audio stream"):
        decode_audio((folder / "no_audio.mp4").read_bytes(), 16_000)


def test_frames_are_taken_evenly():
    assert even_frames(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert even_frames(12, 4).tolist() == [1, 4, 7, 10]
    assert even_frames(2, 4).tolist() == [0, 0, 1, 1] and even_frames(1, 3).tolist() == [0, 0, 0]
    np.testing.assert_array_equal(transform()(steps())[:, 0, 0, 0], [20, 80, 140, 200])


def test_metadata_need_not_be_utf8():
    data = film(steps())
    assert data.count(b"Lavf") == 1
    np.testing.assert_array_equal(
        transform()(data.replace(b"Lavf", b"\xff\xfe\x80f")), transform()(data)
    )


@pytest.mark.parametrize("kind", ["mp4", "mov", "matroska", "avi"])
def test_files(kind):
    out = transform()(film(steps(), kind))
    np.testing.assert_allclose(out.mean((1, 2, 3)), [20, 80, 140, 200], atol=6)
    grey = transform(channels=1)(film(steps(), kind))
    assert grey.shape == (4, 16, 16, 1)
    np.testing.assert_allclose(grey.mean((1, 2, 3)), [20, 80, 140, 200], atol=6)


def test_display_matrix_turns_the_frames():
    frames = np.zeros((4, 32, 48, 3), np.uint8)
    frames[:, :, :24] = 255
    data = film(frames)
    upright, one = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 2**30), 65536
    turned = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 2**30)  # clockwise, as telephones do
    at = data.index(upright, data.index(b"tkhd"))
    data = data[:at] + turned + data[at + len(upright) :]
    (frame,) = decode_video(data, 1)
    assert frame.shape == (48, 32, 3) and frame[:20].min() > 200 and frame[-20:].max() < 50


def test_sound_of_a_film():
    data = film(steps(10), tone=True)
    wave = decode_audio(data, 8000)
    assert 7500 < len(wave) < 9000
    assert abs(np.argmax(np.abs(np.fft.rfft(wave[:8000]))) - 500) < 5
    assert len(decode_audio(data, 8000, seconds=0.25)) < 4000
    with pytest.raises(BadRecord, match="max_seconds"):
        decode_audio(data, 8000, max_seconds=0.5)


def test_limits():
    data = film(steps())
    with pytest.raises(BadRecord, match="48x32"):
        transform(max_pixels=1000)(data)
    with pytest.raises(BadRecord, match="max_frames"):
        transform(max_frames=11)(data)
    assert transform(max_frames=12, max_pixels=48 * 32)(data).any()


@pytest.mark.parametrize("bad", [
    b"", b"no film", b"\xff\xd8\xff\xe0 JFIF", b"#EXTM3U\nfile:///secret\n",
    b"ffconcat version 1.0\nfile 'secret'\n", np.zeros((0, 4, 4, 3), np.uint8),
    np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 4, 4, 2), np.uint8), np.zeros(4, np.uint8),
])  # fmt: skip
def test_what_is_no_video(bad):
    with pytest.raises(BadRecord) as e:
        transform()(bad)
    assert "\n" not in str(e.value)


def test_cut_and_damaged_files():
    data, rng = film(steps(), "mp4"), np.random.default_rng(0)
    for _ in range(25):
        damaged = bytearray(data)
        for _ in range(4):
            damaged[int(rng.integers(len(data)))] = int(rng.integers(256))
        try:
            assert transform()(bytes(damaged)).shape == (4, 16, 16, 3)
        except BadRecord:
            continue
    with pytest.raises(BadRecord):
        transform()(data[: len(data) // 2])


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[video\]'") as e:
        transform()(bytes(4) + b"ftypmp42" + bytes(40))
    assert not isinstance(e.value, BadRecord)
    assert transform()(steps()).any()


def test_grey_arrays_and_resize():
    clip = np.random.default_rng(0).integers(0, 256, (6, 16, 16), np.uint8)
    out = transform(frames=6, channels=1)(clip)
    np.testing.assert_array_equal(out[..., 0], clip)
    np.testing.assert_array_equal(transform(frames=6)(clip[..., None])[..., 2], clip)
    wide = np.zeros((2, 8, 24, 3), np.uint8)
    wide[:, :, 8:16] = 200
    assert (transform(size=8, resize="crop")(wide) == 200).all()


def test_augmentation_moves_all_frames_alike():
    clip = np.broadcast_to(steps()[:1] + np.arange(48, dtype=np.uint8)[:, None], (5, 32, 48, 3))
    cfg = dict(augment="shift", flip=True, size=32, frames=5)
    t = transform(train=True, **cfg)
    draws = [t(clip.copy(), np.random.default_rng(s)) for s in range(20)]
    again = [t.finish(t.decode(clip.copy()), np.random.default_rng(s)) for s in range(20)]
    np.testing.assert_array_equal(draws, again)
    assert len({d.tobytes() for d in draws}) > 8
    assert all((d == d[:1]).all() for d in draws)
    np.testing.assert_array_equal(
        transform(**cfg)(clip.copy(), np.random.default_rng(0)), t(clip.copy())
    )


def test_bad_config():
    for cfg in (dict(augment="shfit"), dict(frames=0), dict(channels=2), dict(resize="x")):
        with pytest.raises(UserError):
            transform(**cfg)
