"""The `records` source on real sets; tests/data/sets.py has the arguments."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from multimodal.data.pipeline import Pipeline
from multimodal.data.sources import build_source
from multimodal.data.transforms import build_transforms
from tests.data import sets

AUDIO = dict(transform="audio", sample_rate=8000, seconds=1.0)
IMAGE = dict(transform="image", size=28)


@pytest.fixture
def load(shared):
    def build(name, kwargs, split):
        root = shared / "data" / name
        if not root.is_dir():
            pytest.skip(f"no folder ../shared/data/{name}")
        return build_source("records", split, dict(kwargs, root=str(root)))

    return build


def batch(source, modalities, size=8):
    return Pipeline(source, build_transforms(modalities, False), size, 0, train=False).batch(0)


def test_digits(load):
    train, val = (load("av_digits", sets.DIGITS, s) for s in ("train", "val"))
    assert (len(train), len(val)) == (30_000, 5000) and not train.report and not val.report
    got = batch(train, dict(image=IMAGE, audio=AUDIO))
    assert got["label"].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]  # as MNIST begins
    assert got["image"].shape == (8, 28, 28, 3) and got["audio"].shape == (8, 8000)
    assert (got["image"][..., :1] == got["image"]).all() and got["image"].max() > 200
    assert train.label_names == list("0123456789")
    copy = pickle.loads(pickle.dumps(val))
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(copy.__getitem__, range(0, 5000, 97)))
    for i, example in zip(range(0, 5000, 97), again, strict=True):
        assert example["audio"] == val[i]["audio"] and example["id"] == val[i]["id"]
        np.testing.assert_array_equal(example["image"], val[i]["image"])


def test_digits_match_their_recordings(load):
    kwargs = sets.DIGITS | dict(modalities=sets.DIGITS["modalities"] | dict(text="{audio_id}"))
    source = load("av_digits", kwargs, "val")
    for i in range(0, 5000, 101):
        assert source[i]["text"][0].startswith(str(source[i]["label"]))


def test_talking_face(load):
    pytest.importorskip("soundfile")
    train, val = (load("grid_s1", sets.GRID, s) for s in ("train", "val"))
    assert (len(train), len(val)) == (738, 100) and not train.report
    example = val[0]
    assert example["video"].shape == (25, 64, 64, 1) and example["video"].dtype == np.uint8
    assert example["text"] == ["bin blue at f three soon"]
    words = [train.targets[k][v] for k, v in example.items() if k.startswith("label_")]
    assert " ".join(words) == example["text"][0]
    towers = dict(
        video=dict(transform="video", frames=5, size=32, channels=1),
        audio=dict(AUDIO, seconds=3.0),
    )
    got = batch(val, towers)
    assert got["video"].shape == (8, 5, 32, 32, 1) and got["audio"].shape == (8, 24_000)
    assert got["video"].std() > 10 and 0.005 < got["audio"].std() < 1
    counts = {k: len(v) for k, v in train.targets.items()}
    assert list(counts.values()) == [4, 4, 4, 25, 10, 4]
    assert min(e for i in range(738) for k, e in train[i].items() if k.startswith("label")) >= 0


def test_films_of_a_talking_face(load):
    pytest.importorskip("av")
    film = dict(file="{id}.mp4", folder="mp4")
    values = dict(video=film, audio=film, text="{text}")
    source = load("grid_s1", sets.GRID | dict(modalities=values, max_missing_share=1.0), "train")
    assert len(source) == 40 and source.report["dropped"] == 698
    towers = dict(video=dict(transform="video", frames=25, size=64), audio=dict(AUDIO, seconds=3.0))
    got = batch(source, towers, 2)
    assert got["video"].shape == (2, 25, 64, 64, 3) and got["audio"].shape == (2, 24_000)
    # The sound of the film is that of the Ogg file, which was made from it.
    pytest.importorskip("soundfile")
    other = load("grid_s1", sets.GRID, "train")
    texts = {other[i]["text"][0]: i for i in range(50)}
    sound = build_transforms(dict(audio=dict(AUDIO, seconds=3.0)), False)["audio"]
    pair = got["audio"][0], sound(other[texts[source[0]["text"][0]]]["audio"])
    spectra = [np.abs(np.fft.rfft(x))[:6000] for x in pair]
    assert np.corrcoef(*spectra)[0, 1] > 0.8


def test_sounds_in_folds(load):
    pytest.importorskip("soundfile")
    sizes = [len(load("esc10", sets.ESC10, s)) for s in ("train1", "val1", "train")]
    assert sizes == [240, 80, 320]
    source = load("esc10", sets.ESC10, "val1")
    assert source.label_names[:2] == ["Dog bark", "Rain"] and len(source.label_names) == 10
    assert source[0]["text"] == ["a dog barking"]
    ids = {source[i]["label"]: source[i]["id"] for i in range(80)}
    assert len(set(ids.values())) == 10 and all(source[i]["id"] == ids[source[i]["label"]]
                                                for i in range(80))  # fmt: skip
    got = batch(source, dict(audio=dict(AUDIO, seconds=5.0)))
    assert got["audio"].shape == (8, 40_000) and np.isfinite(got["audio"]).all()


def test_six_pictures_a_sentence(load):
    train, val = (load("nlvr", sets.NLVR, s) for s in ("train", "val"))
    assert (len(train), len(val)) == (6 * 1769, 6 * 206)
    six = [val[i] for i in range(6)]
    assert len({e["id"] for e in six}) == len({e["label"] for e in six}) == 1
    assert all(e["image"].shape == (100, 400, 3) for e in six)
    assert len({e["image"].tobytes() for e in six}) > 1 and val[6]["id"] != val[0]["id"]
    assert val.label_names == ["false", "true"]
    share = np.mean([label["label"] for label in (val[i] for i in range(0, 1236, 6))])
    assert 0.4 < share < 0.7


def test_glyphs_in_styles(load):
    splits = {s: load("emoji", sets.EMOJI, s) for s in sets.EMOJI["splits"]}
    assert [len(s) for s in splits.values()] == [2 * 1268, 2 * 145, 1268, 145]
    seen = {e["id"]: e["text"] for e in (splits["train"][i] for i in range(2536))}
    style = {e["id"]: e["text"] for e in (splits["unseen_style"][i] for i in range(1268))}
    assert seen == style
    glyphs = {splits["unseen_glyph"][i]["id"] for i in range(290)}
    assert len(glyphs) == 145 and not glyphs & set(seen)
    assert splits["train"][0]["image"] != splits["train"][1]["image"]
    both = dict(text=dict(en=["{name.en}", "{keywords.en}"], hi="{name.hi}"))
    source = load("emoji", sets.EMOJI | dict(modalities=dict(text=both)), "unseen_both")
    assert source[0]["text_group"][-1] == "hi" and len(source[0]["text"]) > 3
