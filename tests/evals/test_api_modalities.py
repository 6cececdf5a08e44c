"""multimodal.load on a model of sound, video and text with a joint representation."""

import io
import wave

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common, towers
from multimodal import api
from multimodal.data.builders.toy import ToySource
from multimodal.data.tokenizer import train_tokenizer
from multimodal.data.video_codec import decode_video
from multimodal.errors import UserError
from multimodal.evals.run import run_evals
from multimodal.nn.model import Net, build_model
from tests import laws

SIZES = dict(width=16, heads=2, mlp_dim=32, depth=1)


@pytest.fixture(scope="module")
def loaded():
    """A tiny random model of three modalities, three classifiers."""
    c = common.base()
    c.modalities.audio = towers.audio_tower(
        sample_rate=4000, seconds=0.25, mels=16, window=200, hop=80, fft=256, **SIZES
    )
    c.modalities.video = towers.video_tower(frames=4, size=16, patch=8, **SIZES)
    c.modalities.text = towers.text_tower(vocab_size=60, max_length=8, **SIZES)
    c.model.embed_dim, c.model.heads = 8, ("retrieve",)
    c.model.fusion.update(kind="joint", **SIZES)
    c.model.classifiers = {
        "both": dict(of="joint", classes=8, target="label", multi=False),
        "heard": dict(of="audio", classes=8, target="label", multi=False),
        "tags": dict(of="joint", classes=3, target="label_tags", multi=True),
    }
    tokenizer = train_tokenizer(["red disc blue square"], dict(vocab_size=60))
    model = build_model(ConfigDict(c.to_dict()))
    net = api.Loaded(c, Net(model, None), tokenizer, 1, {})
    batch = {m: t.empty()[None].repeat(2, 0) for m, t in net.transforms.items()}
    params = jax.tree.map(np.asarray, laws.initial(model, batch))
    return api.Loaded(c, Net(model, params), tokenizer, 1, params)


def tone(hertz, rate=4000):
    wave = 30_000 * np.sin(np.arange(rate // 4) * 2 * np.pi * hertz / rate)
    return (wave.round() / 32_768).astype(np.float32)


def wav(samples, rate=4000):
    out = io.BytesIO()
    with wave.open(out, "wb") as f:
        f.setparams((1, 2, rate, 0, "NONE", ""))
        f.writeframes((samples * 32_768).astype("<i2").tobytes())
    return out.getvalue()


def film(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (6, 16, 16, 3), np.uint8)


def test_every_kind_of_sound_gives_the_same_embedding(loaded, tmp_path):
    sound = tone(300)
    file = tmp_path / "a.wav"
    file.write_bytes(wav(sound))
    found = loaded.embed_audio([str(file), file, file.read_bytes(), sound, (sound, 4000)])
    np.testing.assert_allclose(found, np.repeat(found[:1], 5, 0), atol=1e-5)
    for one in (file, wav(sound), sound, (sound, 4000), sound[None]):
        assert loaded.embed_audio(one).shape == (1, 8)
    with pytest.raises(UserError, match=r"audio 1 of 2: cannot read 'no\.wav'"):
        loaded.embed_audio([sound, "no.wav"])
    with pytest.raises(UserError, match="audio 0 of 1: sound is no WAV"):
        loaded.embed_audio(b"RIFFs and raffs")
    with pytest.raises(UserError, match="must be a path, bytes or an array, not int"):
        loaded.embed_audio([3])


def test_videos_as_arrays(loaded):
    found = loaded.embed_video([film(0), film(1)])
    assert found.shape == (2, 8)
    np.testing.assert_allclose(loaded.embed_video(film(0)), found[:1], atol=1e-5)
    with pytest.raises(UserError, match="video 0 of 1"):
        loaded.embed_video([np.zeros((2, 16, 16, 3))])
    both = loaded.similarity([film(0), film(1)], [tone(300)], ("video", "audio"))
    np.testing.assert_allclose(both[:, 0], found @ loaded.embed_audio([tone(300)])[0], atol=1e-5)


def test_a_real_film(loaded, shared):
    """An MP4 by path and as bytes is its decoded frames."""
    pytest.importorskip("av")
    file = sorted((shared / "data/grid_s1/mp4").glob("*.mp4"))[0]
    found = loaded.embed_video([file, file.read_bytes()])
    frames = loaded.net.model.modalities["video"]["frames"]
    decoded = np.stack(decode_video(file.read_bytes(), frames))
    assert len(decoded) == frames and decoded.std() > 10
    np.testing.assert_allclose(found, np.repeat(loaded.embed_video(decoded), 2, 0), atol=1e-5)


def test_classify_with_any_subset(loaded):
    sounds, films, words = [tone(200), tone(900)], [film(0), film(1)], ["red disc", "blue square"]
    found = loaded.classify(audio=sounds, video=films, text=words)
    assert found.keys() == {"both", "heard", "tags"}
    assert found["both"].shape == (2, 8) and found["tags"].shape == (2, 3)
    np.testing.assert_allclose(found["both"].sum(1), 1, atol=1e-5)
    assert not np.allclose(found["tags"].sum(1), 1)
    part = loaded.classify(audio=[sounds[0], None], video=films)
    assert not np.allclose(part["both"][0], found["both"][0], atol=1e-6), "no text"
    assert np.isnan(part["heard"][1]).all()
    np.testing.assert_allclose(part["heard"][0], found["heard"][0], atol=1e-5)
    without = loaded.classify(video=films)
    assert without.keys() == {"both", "tags"}
    np.testing.assert_allclose(without["both"][1], part["both"][1], atol=1e-5)
    joint = loaded.embed_joint(audio=sounds)
    np.testing.assert_allclose(np.linalg.norm(joint, axis=1), 1, atol=1e-5)


def test_what_classify_cannot_do(loaded):
    for given, message in (
        ({}, "there are none"),
        ({"audio": [tone(200)], "text": ["a", "b"]}, "1 of audio, 2 of text"),
        ({"audio": []}, "0 of audio"),
        ({"sound": [tone(200)]}, "no modality 'sound'"),
    ):
        with pytest.raises(UserError, match=message):
            loaded.classify(**given)
    with pytest.raises(UserError, match="no matching head"):
        loaded.match([film(0)], ["red"], ("video", "text"))
    bare = api.Loaded(loaded.config, Net(loaded.net.model.clone(classifiers=None), {}), None, 1, {})
    with pytest.raises(UserError, match="no classifiers"):
        bare.classify(audio=[tone(200)])


class Tagged(ToySource):
    """The toy set with several labels at once, and sounds that some examples lack."""

    def __init__(self, split):
        small = dict(examples=24, size=16, frames=4, sample_rate=4000, seconds=0.25)
        super().__init__(
            split, ("audio", "video", "text"), **small, optional=("audio",), missing=0.2
        )

    def __getitem__(self, i):
        return super().__getitem__(i) | {"label_tags": np.array([i & 1, i & 2, 1], bool) * 1}


def test_all_evaluators_on_a_real_model(loaded):
    c = ConfigDict(loaded.config.to_dict())
    c.data.source = f"{__name__}:Tagged"
    c.data.eval_splits, c.eval.train_examples, c.eval.batch_size = ("dev",), 24, 16
    c.eval.noise_levels, c.eval.classify = (0.0, 1.0), "audio"
    names = ("retrieval", "zeroshot", "classification", "robustness", "gap", "probe", "cca")
    c.eval.pairs = (("audio", "text"), ("joint", "text"))
    found = run_evals(loaded.net, c, loaded.tokenizer, names)
    assert all(np.isfinite(v) for v in found.values())
    heard = found["dev/classify/heard/count"]
    assert heard < found["dev/classify/both/count"] == 24
    assert found["dev/robustness/both/count"] == heard == found["dev/zeroshot/count"]
    assert len([k for k in found if "robustness/both/subset" in k]) == 7
    assert (
        found["dev/robustness/both/noise/all/0"]
        == (found["dev/robustness/both/subset/audio+text+video"])
    )
    for key in ("gap/audio_text/probe", "cca/text_video/correlation", "joint_to_text/r1",
                "probe/joint/label/accuracy", "classify/tags/f1_micro"):  # fmt: skip
        assert f"dev/{key}" in found
