"""Embedding and pair scoring: every row once, whatever the batch size and the number of devices."""

import dataclasses

import jax
import numpy as np
import pytest

from multimodal.errors import UserError
from multimodal.evals.embed import TokenStore, embed, map_rows, match_pairs
from multimodal.training.sharding import make_mesh
from tests.evals.conftest import match_logits, random_images, random_texts


def _count(net, batch):
    return batch["row"]


@pytest.fixture(scope="module")
def direct(net):
    """Embeddings of 13 images by one plain call."""
    encode = jax.jit(lambda images: net.encode({"image": images})["image"].embed)
    return np.asarray(encode(random_images(13)))


@pytest.mark.parametrize("batch_size", [3, 7, 64])
def test_embeddings_do_not_depend_on_batch_size(net, direct, batch_size):
    found = embed(net, "image", random_images(13), batch_size)
    assert found.shape == (13, 8)
    np.testing.assert_allclose(found, direct, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (2, 4)])
def test_embeddings_do_not_depend_on_the_mesh(net, direct, shape):
    devices = jax.devices()[: shape[0] * shape[1]]
    assert len(devices) == shape[0] * shape[1], "tests run on 8 virtual devices"
    mesh = make_mesh(*shape, devices=devices)
    for batch_size in (3, 64):
        found = embed(net, "image", random_images(13), batch_size, mesh)
        assert found.shape == (13, 8)
        np.testing.assert_allclose(found, direct, atol=1e-5)


@pytest.mark.parametrize(("count", "batch_size"), [(1, 64), (5, 5), (13, 3), (64, 7), (65, 64)])
def test_every_row_goes_through_once(net, count, batch_size):
    mesh = make_mesh(2, 4)
    for m in (None, mesh):
        found = map_rows(_count, net, lambda i: {"row": i.astype(np.int32)}, count, batch_size, m)
        np.testing.assert_array_equal(found, np.arange(count))


def test_dropout_and_teacher_of_a_training_net_play_no_part(net, direct):
    training = dataclasses.replace(net, rng=jax.random.key(1), chunks=2)
    np.testing.assert_allclose(embed(training, "image", random_images(13)), direct, atol=1e-5)


def test_list_of_arrays(net, direct):
    np.testing.assert_allclose(embed(net, "image", list(random_images(13))), direct, atol=1e-5)


def test_no_rows_and_unknown_modality(net):
    with pytest.raises(UserError, match="nothing to embed"):
        embed(net, "image", random_images(13)[:0])
    with pytest.raises(UserError, match="did you mean image"):
        embed(net, "imgae", random_images(13))


@pytest.mark.parametrize("max_bytes", [2**30, 4000, 1])
def test_pair_scores_do_not_depend_on_what_is_held(net, max_bytes):
    images, texts = random_images(5), random_texts(6)
    q, c = np.divmod(np.arange(30), 5)
    expected = match_logits(net, {"image": images[c], "text": texts[q]})
    query = TokenStore(net, "text", texts, 4, max_bytes=max_bytes)
    context = TokenStore(net, "image", images, 4, max_bytes=max_bytes)
    found = match_pairs(net, query, context, q, c, 4)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    found = match_pairs(net, query, context, q, c, 4, make_mesh(8, 1))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_model_without_matching_head(net):
    without = dataclasses.replace(net, model=net.model.clone(heads=()))
    with pytest.raises(UserError, match="no matching head"):
        match_pairs(without, None, None, np.arange(2), np.arange(2))
