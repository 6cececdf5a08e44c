import io

import numpy as np
import pytest
from PIL import Image

from multimodal.data.array_source import ArraySource
from multimodal.data.sources import build_source
from multimodal.data.tokenizer import train_tokenizer

CAPTIONS = ["a red dog", "ein roter Hund", "un chien rouge", "红色的狗", "كلب أحمر", "빨간 개"]


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(CAPTIONS * 3, {"vocab_size": 200})


@pytest.fixture(scope="session")
def noise():
    """23 random images with two captions each."""
    rng = np.random.default_rng(0)
    images = [png(rng.integers(0, 256, (20, 17, 3), np.uint8)) for _ in range(23)]
    texts = [[f"a red dog {i}", f"ein Hund {i}"] for i in range(23)]
    return ArraySource("train", image=images, text=texts)


@pytest.fixture(scope="session")
def emoji_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("emoji"))


@pytest.fixture(scope="session")
def emoji_source(emoji_dir):
    def build(split):
        return build_source("tfds", split, dict(name="emoji_names", data_dir=emoji_dir))

    return build
