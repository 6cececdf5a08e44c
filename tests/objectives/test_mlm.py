"""Masked words: what is drawn in place of a token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multimodal.objectives.mlm import IGNORE, mask_tokens
from multimodal.training.setup import get_objectives
from multimodal.training.step import make_loss
from tests import laws
from tests.data.test_sentencepiece import DEFAULT, load

VOCAB = 12


def drawn(special, mask, words):
    """(masked ids, labels) of many examples whose tokens are all one word."""
    ids = jnp.full((64, 400), words[0])
    return mask_tokens(
        jax.random.key(0), ids, jnp.arange(64), vocab_size=VOCAB, mask_id=mask,
        keep_ids=(special[0], special[1]), rate=0.5, no_words=special,
    )  # fmt: skip


@pytest.mark.parametrize(
    "special", [(0, 1, 2, 3, 4), (7, 8, 9, 10, 11), (0, 5, 2, 11, 9), (0, 1, 2, 3, 11)]
)
def test_random_tokens_are_words_wherever_the_special_ones_are(special):
    mask, words = special[-1], sorted(set(range(VOCAB)) - set(special))
    ids, labels = map(np.asarray, drawn(special, mask, words))
    hit = labels != IGNORE
    assert 0.49 < hit.mean() < 0.51 and (labels[hit] == words[0]).all()
    assert 0.79 < (ids[hit] == mask).mean() < 0.81
    counts = np.bincount(ids[hit & (ids != mask)], minlength=VOCAB)
    assert set(np.flatnonzero(counts)) == set(words)
    each = 0.1 / len(words) * hit.sum()  # of the tokens that become a random one
    assert np.abs(counts[words[1:]] - each).max() < 5 * np.sqrt(each)


@pytest.mark.slow
def test_a_mask_token_with_the_last_id_gives_a_finite_loss(tmp_path):
    tokenizer = load(tmp_path, DEFAULT)
    assert tokenizer.mask == tokenizer.vocab_size - 1
    b = laws.Bench("mlm", {"rate": 0.9}, modalities={"text": {"vocab_size": tokenizer.vocab_size}})
    loss = jax.jit(make_loss(b.config, b.model, get_objectives(b.config, tokenizer)))
    batch = laws.tiny_batch()
    batch["text"] = batch["text"] % 15 + 5
    for step in range(3):
        state = b.state.replace(step=jnp.int32(step))
        assert laws.finite(loss(state.params, state, batch)[0])
