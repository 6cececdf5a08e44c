"""A tiny random model of both towers, fusion and matching head, and data for it."""

import jax
import numpy as np
import pytest

from multimodal.evals.data import EvalData
from multimodal.nn.model import Model, Net
from tests import laws

IMAGE = dict(
    encoder="vit",
    size=16,
    patch=8,
    width=16,
    depth=1,
    heads=2,
    mlp_dim=32,
    proj=True,
    proj_bias=True,
)
TEXT = dict(
    encoder="text",
    vocab_size=50,
    max_length=8,
    width=16,
    depth=1,
    heads=2,
    mlp_dim=32,
    proj=True,
    proj_bias=True,
)
FUSION = dict(kind="cross_attention", width=16, depth=1, heads=2, mlp_dim=32)


def random_images(n, seed=0):
    """uint8 [n, 16, 16, 3], unlike each other also after pooling."""
    rng = np.random.default_rng(seed)
    shade = rng.integers(0, 200, (n, 2, 1, 2, 1, 3))
    noise = rng.integers(0, 56, (n, 2, 8, 2, 8, 3))
    return (shade + noise).reshape(n, 16, 16, 3).astype(np.uint8)


def random_texts(n, seed=0):
    """int32 [n, 8], of 2 to 8 tokens."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 50, (n, 8)).astype(np.int32)
    return np.where(np.arange(8) < rng.integers(2, 9, (n, 1)), ids, 0)


def match_logits(net, batch):
    """[B, 2] logits of the pairs of a batch, by one plain call."""

    def match(batch):
        out = net.encode(batch)
        return net.match(net.fuse(out["text"].tokens, out["image"].tokens))

    return np.asarray(jax.jit(match)(batch))


@pytest.fixture(scope="session")
def net():
    model = Model(dict(image=IMAGE, text=TEXT), 8, FUSION, ("match",), scaling=dict(kind="none"))
    batch = dict(image=random_images(2), text=random_texts(2))
    params = jax.tree.map(np.asarray, laws.initial(model, batch))
    # A head of the usual small start would leave all pairs nearly tied.
    params["match_head"]["kernel"] = params["match_head"]["kernel"] * 50
    return Net(model, params)


@pytest.fixture
def data():
    """13 images with three captions each, in two languages."""
    ids = np.arange(13) * 7
    return EvalData(
        "dev",
        dict(image=random_images(13), text=random_texts(39)),
        dict(image=ids, text=np.repeat(ids, 3)),
        dict(text=np.array(["en", "de", "en"] * 13)),
    )
