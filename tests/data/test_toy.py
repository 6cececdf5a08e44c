"""The toy set: every modality shows the class, and needs no files."""

import pickle

import numpy as np
import pytest

from multimodal.data.pipeline import Pipeline
from multimodal.data.sources import build_source
from multimodal.data.transforms import build_transform, build_transforms
from multimodal.errors import UserError

TOWERS = {
    "image": dict(transform="image", size=16),
    "audio": dict(transform="audio", sample_rate=8000, seconds=0.25),
    "video": dict(transform="video", frames=4, size=16, channels=1),
    "text": dict(transform="text", max_length=8),
}


def features(source, m):
    """[N, D] what a class looks like, without where and how loud."""
    towers = {"image": dict(size=16), "audio": dict(sample_rate=8000, seconds=0.5),
              "video": dict(frames=8, size=24, channels=1)}  # fmt: skip
    values = [build_transform(m, towers[m], False)(source[i][m]) for i in range(len(source))]
    values = np.stack(values).astype(np.float32)
    if m == "audio":
        return np.log(np.abs(np.fft.rfft(values)).reshape(len(values), -1)[:, :2000] + 1)
    if m == "video":  # The spectrum over time and space does not see where the bar starts.
        return np.log(np.abs(np.fft.fftn(values[..., 0], axes=(1, 2, 3))) + 1).reshape(
            len(values), -1
        )
    return values.reshape(len(values), -1)


@pytest.mark.parametrize("m", ["image", "audio", "video"])
def test_each_modality_tells_the_class(m):
    train, val = (build_source("toy", s, dict(examples=80)) for s in ("train", "val"))
    known, asked = features(train, m), features(val, m)
    nearest = ((asked[:, None] - known[None]) ** 2).sum(-1).argmin(1) % 8
    assert (nearest == np.arange(80) % 8).mean() > 0.9


def test_examples_are_their_own():
    train, val, other = (
        build_source("toy", split, dict(examples=24, seed=seed, encoded=False))
        for split, seed in (("train", 0), ("val", 0), ("train", 1))
    )
    sounds = [s[i]["audio"][0].tobytes() for s in (train, val, other) for i in range(24)]
    assert len(set(sounds)) == 72
    again = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(again[5]["image"], train[5]["image"])
    assert train[5]["label"] == train[5]["id"] == 5 and train[13]["id"] == 5
    assert train.label_names[5] == "green cross" and "a green cross" in train[5]["text"][1]
    assert len(list(train)) == 24


def test_all_modalities_in_one_batch(tokenizer):
    source = build_source("toy", "train", dict(optional=("audio", "text"), missing=0.5))
    transforms = build_transforms(TOWERS, True, tokenizer)
    batch = Pipeline(source, transforms, 64, 0).batch(0)
    assert {m: v.shape[1:] for m, v in batch.items() if m in TOWERS} == {
        "image": (16, 16, 3), "audio": (2000,), "video": (4, 16, 16, 1), "text": (8,)
    }  # fmt: skip
    lacking = ~batch["audio_present"] | ~batch["text_present"]
    assert 10 < lacking.sum() < 54 and (batch["audio_present"] | batch["text_present"]).all()
    assert not batch["audio"][~batch["audio_present"]].any()


def test_encodings_agree_and_modalities_are_independent():
    kwargs = dict(examples=8)
    coded, plain = (build_source("toy", "a", kwargs | dict(encoded=e)) for e in (True, False))
    for m in ("image", "audio"):
        t = build_transform(m, TOWERS[m], False)
        np.testing.assert_allclose(t(coded[3][m]), t(plain[3][m]), atol=1e-4)
    alone = build_source("toy", "a", kwargs | dict(modalities=("video",)))
    assert set(alone[3]) == {"id", "label", "video"}
    np.testing.assert_array_equal(alone[3]["video"], plain[3]["video"])


def test_wrong_modality():
    with pytest.raises(UserError, match="did you mean image"):
        build_source("toy", "train", dict(modalities=("imgae",)))
