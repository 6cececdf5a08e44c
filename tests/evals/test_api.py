"""multimodal.load and what it gives: the same numbers from every kind of input, clear errors."""

import operator
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import multimodal
from multimodal import api
from multimodal.config import save_config
from multimodal.data.tokenizer import train_tokenizer
from multimodal.errors import UserError
from tests.evals.conftest import FUSION, IMAGE, TEXT, match_logits, random_images

WORDS = ["red apple", "green pear", "a dog", "two cats", "blue sea"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run's folder but for its checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    config = ConfigDict(
        dict(
            modalities=dict(
                image=IMAGE | {"transform": "image"}, text=TEXT | {"transform": "text"}
            ),
            model=dict(
                embed_dim=8,
                fusion=FUSION,
                heads=("match",),
                temperature=dict(kind="none"),
                mlm_modality="text",
                dtype="float32",
            ),
        )
    )
    save_config(config, folder)
    train_tokenizer(WORDS, dict(vocab_size=50)).save(folder / "tokenizer.json")
    return folder


@pytest.fixture
def loaded(workdir, net, monkeypatch):
    monkeypatch.setattr(api, "_restore", lambda folder, step: (7, net.params, None))
    return multimodal.load(workdir)


def test_every_kind_of_image_gives_the_same_embedding(loaded, tmp_path):
    array = random_images(1)[0]
    image = Image.fromarray(array)
    file = tmp_path / "a.png"
    image.save(file)
    kinds = [str(file), file, file.read_bytes(), image, image.convert("RGBA"), array]
    found = loaded.embed_images(kinds)
    assert found.shape == (6, 8)
    np.testing.assert_allclose(found, np.repeat(found[:1], 6, 0), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(loaded.embed_images(file), found[:1], atol=1e-6)
    np.testing.assert_allclose(loaded.embed("image", kinds), found, atol=1e-6)


def test_grey_and_transparent_images(loaded):
    rgba = Image.fromarray(np.dstack([random_images(1)[0], np.zeros((16, 16), np.uint8)]))
    white = np.full((16, 16, 3), 255, np.uint8)
    found = loaded.embed_images([rgba, white, np.full((16, 16), 255, np.uint8)])
    np.testing.assert_allclose(found, np.repeat(found[1:2], 3, 0), atol=1e-6)


def test_similarity_and_match(loaded, net):
    images = list(random_images(5))
    np.testing.assert_allclose(
        loaded.similarity(images, WORDS[:3]),
        loaded.embed_images(images) @ loaded.embed_texts(WORDS[:3]).T,
        atol=1e-6,
    )
    found = loaded.match(images, WORDS)
    batch = {"image": np.stack(images), "text": loaded._inputs("text", WORDS)}
    logits = match_logits(net, batch).astype(np.float64)
    expected = np.exp(logits[:, 1]) / np.exp(logits).sum(1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(UserError, match="5 images, 2 texts"):
        loaded.match(images, WORDS[:2])
    without = api.Loaded(
        loaded.config, type(net)(net.model.clone(heads=()), net.params), None, 7, {}
    )
    with pytest.raises(UserError, match="no matching head"):
        without.match(images, WORDS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("/nowhere/a.png", "image 1 of 2: cannot read '/nowhere/a.png'"),
        (b"not an image", "image 1 of 2: "),
        (np.zeros((3, 16, 16), np.uint8), "channels come last"),
        (np.zeros((16, 16, 3), np.float32), "must be uint8"),
        ("a\0b", "cannot read"),
    ],
)
def test_bad_images(loaded, value, message):
    with pytest.raises(UserError, match=message):
        loaded.embed_images([random_images(1)[0], value])


def test_bad_texts_and_lists(loaded):
    with pytest.raises(UserError, match="text 1 of 2: a text must be a str, not int"):
        loaded.embed_texts(["a", 3])
    with pytest.raises(UserError, match="empty"):
        loaded.embed_texts([])
    with pytest.raises(UserError, match="no modality 'audio'"):
        loaded.embed("audio", [b""])
    assert loaded.embed_texts("red apple").shape == (1, 8), "one caption, not nine letters"


def test_folders_that_do_not_load(tmp_path, workdir, loaded):
    with pytest.raises(UserError, match="not a workdir"):
        multimodal.load(tmp_path)
    with pytest.raises(UserError, match="no teacher"):
        multimodal.load(workdir, ema=True)
    assert multimodal.load(workdir / "checkpoints" / "7").step == 7
    save_config(loaded.config, tmp_path)
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        multimodal.load(tmp_path)
    train_tokenizer([chr(c) * 2 for c in range(192, 400)], dict(vocab_size=400)).save(
        tmp_path / "tokenizer.json"
    )
    with pytest.raises(UserError, match="room for 50"):
        multimodal.load(tmp_path)


def test_importing_the_package_is_cheap():
    code = "import sys, multimodal; sys.exit(any(m in sys.modules for m in ('jax', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        operator.attrgetter("nothing")(multimodal)


def test_what_is_loaded_tells_itself_on_a_line(loaded):
    count = sum(x.size for x in jax.tree.leaves(loaded.params))
    assert repr(loaded) == f"Loaded(image + text, step 7, {count:,} parameters)"
