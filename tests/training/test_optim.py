"""Rules by parameter path, schedules, and AdamW against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multimodal.errors import UserError
from multimodal.schedules import Schedule
from multimodal.training.optim import factors, make_optimizer
from tests import laws

PARAMS = {
    "encoder_image": {"kernel": np.ones((2, 3)), "bias": np.ones(3), "pos_embed": np.ones((4, 3))},
    "temperature": np.float32(2.0),
}


def test_corrected_rules_spare_what_is_not_a_matrix():
    c = laws.tiny_config()
    _, decay = factors(PARAMS, make_rules(c, "corrected"))
    assert decay == {
        "encoder_image": {"kernel": 1.0, "bias": 0.0, "pos_embed": 0.0},
        "temperature": 0.0,
    }


def test_original_rules_decay_positions_and_temperature():
    _, decay = factors(PARAMS, make_rules(laws.tiny_config(), "albef_original"))
    assert decay == {
        "encoder_image": {"kernel": 1.0, "bias": 0.0, "pos_embed": 1.0},
        "temperature": 1.0,
    }


def make_rules(config, mode):
    from multimodal.training.optim import RULES

    return RULES[mode]


def test_rule_that_matches_nothing_is_an_error():
    with pytest.raises(UserError, match="encoder_audio"):
        factors(PARAMS, ((r"encoder_audio/.*", 0.0, 0.0), (r".*", 1.0, 1.0)))


def test_parameter_without_rule_is_an_error():
    with pytest.raises(UserError, match="temperature"):
        factors(PARAMS, ((r"encoder_image/.*", 1.0, 1.0),))


def test_adamw_follows_its_formula_and_frozen_parameters_stay():
    c = laws.tiny_config()
    c.optim.lr = dict(schedule="constant", value=0.1)
    c.optim.update(b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.5, clip=0.0)
    c.optim.rules = ((r".*/bias", 0.0, 0.0), (r".*/kernel", 0.5, 1.0), (r".*", 1.0, 0.0))
    tx = make_optimizer(c, PARAMS)
    params, state = jax.tree.map(jnp.asarray, PARAMS), tx.init(PARAMS)
    m = v = 0.0
    expected = np.ones((2, 3))
    for t in range(1, 4):
        grads = jax.tree.map(lambda p, t=t: jnp.full_like(p, 0.3 * t), params)
        updates, state = tx.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        m, v = 0.8 * m + 0.2 * 0.3 * t, 0.9 * v + 0.1 * (0.3 * t) ** 2
        adam = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-3)
        expected = expected - 0.1 * 0.5 * (adam + 0.5 * expected)
    np.testing.assert_allclose(params["encoder_image"]["kernel"], expected, rtol=1e-5)
    np.testing.assert_array_equal(params["encoder_image"]["bias"], PARAMS["encoder_image"]["bias"])
    moments = sum(x.size for x in jax.tree.leaves(state) if hasattr(x, "shape") and x.shape == (3,))
    assert moments == 0, "a frozen parameter has moments"


def test_clipping_bounds_the_global_norm_of_trained_parameters_only():
    c = laws.tiny_config()
    c.optim.lr = dict(schedule="constant", value=1.0)
    c.optim.update(clip=1e-3, weight_decay=0.0, eps=1e6)  # so large an eps makes Adam linear
    c.optim.rules = ((r"temperature", 0.0, 0.0), (r".*", 1.0, 0.0))
    tx = make_optimizer(c, PARAMS)
    grads = jax.tree.map(jnp.ones_like, PARAMS) | {"temperature": jnp.float32(1e9)}
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    norm = np.sqrt(sum(float((u**2).sum()) for u in jax.tree.leaves(updates)))
    np.testing.assert_allclose(norm, 1e-3 / 1e6, rtol=1e-4)


@pytest.mark.parametrize(
    "step, value", [(0, 0.1), (9, 1.0), (10, 1.0), (55, 0.5), (100, 0.0), (999, 0.0)]
)
def test_cosine(step, value):
    s = Schedule.parse({"schedule": "cosine", "peak": 1.0, "warmup": 10}, 100)
    np.testing.assert_allclose(s(step), value, atol=1e-7)


@pytest.mark.parametrize(
    "spec, told",
    [
        ({"schedule": "cosin", "peak": 1.0}, r"lr\.schedule: .* \(did you mean cosine\?\)"),
        ({"schedule": "cosine", "peek": 1.0}, r"lr\.peek: .* \(did you mean peak\?\)"),
        ({"schedule": "cosine", "warmup": 5}, r"lr: the schedule 'cosine' needs peak"),
        ({"schedule": "cosine", "peak": "high"}, r"lr: the schedule 'cosine': "),
    ],
)
def test_schedules_say_what_is_wrong_and_where(spec, told):
    with pytest.raises(UserError, match=told):
        Schedule.parse(spec, 10, "lr")
