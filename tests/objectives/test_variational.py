"""The evidence lower bound: MultiBench's value, the bound itself, and learning on a toy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multimodal.objectives.variational import kl_to_normal, negative_elbo
from multimodal.training.validate import validate
from tests import laws


def test_golden_elbo(shared):
    """Recorded with the Kullback-Leibler term averaged over 3 dimensions and annealing 1.5."""
    g = np.load(shared / "golden" / "fusion" / "fusions.npz")
    ours = negative_elbo(g["x"], g["r"], g["mu"], g["lv"], beta=1.5 / 3).mean()
    np.testing.assert_allclose(ours, g["elbo"], rtol=1e-5)


def test_divergence_is_the_expected_log_ratio():
    """KL(q | N(0, I)) = E_q[log q - log p], by Monte Carlo; zero for the prior itself."""
    mu, log_var = jnp.array([[0.5, -1.0]]), jnp.array([[0.3, -0.7]])
    z = mu + jnp.exp(log_var / 2) * jax.random.normal(jax.random.key(0), (200_000, 2))
    log_q = -0.5 * ((z - mu) ** 2 / jnp.exp(log_var) + log_var).sum(-1)
    log_p = -0.5 * (z**2).sum(-1)
    assert kl_to_normal(mu, log_var)[0] == pytest.approx(float((log_q - log_p).mean()), rel=0.01)
    assert kl_to_normal(jnp.zeros((1, 2)), jnp.zeros((1, 2)))[0] == 0


@pytest.mark.slow
def test_it_learns_to_reconstruct_and_needs_room_for_noise():
    b = laws.Bench("elbo", optim={"lr": {"peak": 3e-2, "warmup": 0}}, steps=200)
    state, batch = b.state, laws.tiny_batch()
    errors = []
    for _ in range(30):
        state, metrics = b.step(state, batch)
        errors.append(float(metrics["elbo/reconstruction"]))
    assert errors[-1] < 0.5 * errors[0], errors
    wide = laws.tiny_config("elbo")
    wide.model.fusion.width = 32  # all that both towers have
    with pytest.raises(Exception, match="no room for noise"):
        validate(wide)
