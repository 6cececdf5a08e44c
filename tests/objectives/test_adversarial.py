"""The adversarial game on toys with known answers, its losses, its turns, its detection of
collapse.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multimodal.nn.critics import Perceptron, spectral_norm
from multimodal.objectives import adversarial, alignment
from multimodal.training.loop import warn_of_collapse
from multimodal.training.optim import make_optimizer, on_turn
from multimodal.training.step import make_step
from tests import laws

SIZE = 512


class Toy:
    """Just enough of a Net: real features are given, h_m and the decoder are a bias and a matrix,
    the discriminator is quadratic, which is what two Gaussians need.
    """

    def __init__(self, params):
        self.params = params
        heads = ("discriminator", "decoder")
        self.model = types.SimpleNamespace(modalities={"a": {}, "b": {}}, noise_dim=2, heads=heads)

    @property
    def frozen(self):
        return Toy(jax.lax.stop_gradient(self.params))

    def decode(self, joint):
        d = self.params["decoder"]
        return joint[:, -2:] @ d["kernel"] + d["bias"]

    def discriminate(self, x):
        d = self.params["discriminator"]
        return jnp.einsum("bi,ij,bj->b", x, d["square"], x) + x @ d["linear"] + d["bias"]


def toy_params():
    return {
        "decoder": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)},
        "discriminator": {
            "square": jnp.zeros((2, 2)),
            "linear": jnp.zeros(2),
            "bias": jnp.zeros(()),
        },
    }


def real_batch(rng):
    """Features of two modalities: Gaussian, means 1 and -0.5, deviations 1 and 0.5."""
    x = jax.random.normal(rng, (SIZE, 2)) * jnp.array([1.0, 0.5]) + jnp.array([1.0, -0.5])
    everywhere = jnp.ones(SIZE, bool)

    def encoded(v):
        return types.SimpleNamespace(pooled=v, present=everywhere)

    h = jnp.zeros((SIZE, 0))
    return {"a": encoded(x[:, :1]), "b": encoded(x[:, 1:]), "joint": encoded(h)}


def play(steps, critic_steps, lr, train_generator=True, **penalties):
    params = toy_params()
    label = {k: jax.tree.map(lambda _, k=k: k, v) for k, v in params.items()}
    cycle = critic_steps + 1
    tx = optax.partition(
        {
            "discriminator": on_turn(optax.adam(lr, 0.5), lambda n: n % cycle < critic_steps),
            "decoder": on_turn(optax.adam(lr, 0.5), lambda n: n % cycle == critic_steps),
        },
        label,
    )
    if not train_generator:
        tx = optax.partition(
            {"discriminator": optax.adam(lr, 0.5), "decoder": optax.set_to_zero()}, label
        )

    @jax.jit
    def step(carry, i):
        params, opt, mean = carry
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), i), 3)

        def loss(p):
            net, out = Toy(p), real_batch(keys[0])
            g, _ = adversarial.generator(net, out, {}, keys[1])
            d, _ = adversarial.discriminator(net, out, {}, keys[2], **penalties)
            return g + d

        updates, opt = tx.update(jax.grad(loss)(params), opt, params)
        params = optax.apply_updates(params, updates)
        # Games circle around their solution: what is judged is the mean of the way.
        mean = jax.tree.map(lambda m, p: 0.99 * m + 0.01 * p, mean, params)
        return (params, opt, mean), None

    carry = (params, tx.init(params), params)
    return jax.lax.scan(step, carry, jnp.arange(steps))[0][2]


def test_the_critic_reaches_its_optimum():
    """log D / (1 - D) = log p_real - log p_fake, of N((1, -0.5), diag(1, 0.25)) and N(0, I)."""
    d = play(3000, 1, 0.01, train_generator=False)["discriminator"]
    square = (np.array(d["square"]) + np.array(d["square"]).T) / 2
    np.testing.assert_allclose(square, np.diag([0, -1.5]), atol=0.12)
    np.testing.assert_allclose(d["linear"], [1, -2], atol=0.12)
    wanted = -0.5 * (1 + 1) - np.log(0.5)
    np.testing.assert_allclose(d["bias"], wanted, atol=0.12)


def test_the_generator_matches_the_moments():
    p = play(4000, 2, 0.01, r1=0.2)["decoder"]
    np.testing.assert_allclose(p["bias"], [1, -0.5], atol=0.1)
    covariance = np.array(p["kernel"]).T @ np.array(p["kernel"])
    np.testing.assert_allclose(covariance, np.diag([1, 0.25]), atol=0.15)


def test_losses_are_the_formulas():
    real, fake = jnp.array([0.3, -2.0]), jnp.array([1.5, -0.2])
    d = lambda f: 1 / (1 + np.exp(-f))  # noqa: E731
    r, g = adversarial.discriminator_losses("bce", real, fake)
    np.testing.assert_allclose(r + g, -np.log(d(real)) - np.log(1 - d(fake)), rtol=1e-6)
    np.testing.assert_allclose(adversarial.generator_losses("bce", fake), -np.log(d(fake)), 1e-6)
    r, g = adversarial.discriminator_losses("hinge", real, fake)
    np.testing.assert_allclose(r + g, np.maximum(0, 1 - real) + np.maximum(0, 1 + fake))
    r, g = adversarial.discriminator_losses("wasserstein", real, fake)
    np.testing.assert_allclose(r + g, fake - real)


def test_slopes_of_penalties_are_gradient_norms():
    toy = Toy(toy_params())
    toy.params["discriminator"]["linear"] = jnp.array([3.0, 4.0])
    np.testing.assert_allclose(adversarial._slopes(toy, jnp.ones((5, 2))), 5.0, rtol=1e-6)


def test_collapse_is_noticed():
    rng = np.random.default_rng(0)
    there = jnp.ones(64, bool)
    healthy = adversarial.collapse(jnp.array(rng.standard_normal((64, 8))), there)
    point = adversarial.collapse(jnp.ones((64, 8)), there)
    line = adversarial.collapse(jnp.array(rng.standard_normal((64, 1)) * np.ones((1, 8))), there)
    assert [float(m["collapsed"]) for m in (healthy, point, line)] == [0, 1, 1]
    assert 7 < healthy["rank"] <= 8 and line["rank"] < 1.01 and point["spread"] < 1e-6


def test_spectral_norm():
    w = jnp.array(np.random.default_rng(0).standard_normal((20, 7)), jnp.float32)
    exact = np.linalg.norm(w, 2)
    assert exact * 0.97 < spectral_norm(w) <= exact * 1.0001
    critic = Perceptron(1, 16, 2, spectral=True)
    x = jax.random.normal(jax.random.key(1), (40, 7))
    params = critic.init(jax.random.key(0), x)
    slopes = jax.vmap(jax.grad(lambda v: critic.apply(params, v)[0]))(x)
    assert jnp.linalg.norm(slopes, axis=1).max() < 1.1, "each layer is 1-Lipschitz"


def game(critic_steps):
    objectives = {"classification": {}, "generator": {}, "discriminator": {}}
    b = laws.Bench("generator", objectives=objectives)
    b.config.optim.critic.steps = critic_steps
    b.tx = make_optimizer(b.config, b.state.params)
    step = jax.jit(make_step(b.config, b.model, b.goals, b.tx))
    return b, step


@pytest.mark.slow
def test_players_take_turns():
    """Two steps of the critic, one of all the rest; Adam's moments rest as well."""
    b, step = game(2)
    state = b.state.replace(opt=b.tx.init(b.state.params))
    seen = []
    for i in range(6):
        new, metrics = step(state, laws.tiny_batch(seed=i))
        moved = {
            name: any(
                (x != y).any() for x, y in zip(*map(jax.tree.leaves, (t, state.params[name])))
            )
            for name, t in new.params.items()
        }
        seen.append((moved["discriminator"], moved["fuser"], moved["encoder_image"]))
        state = new
    assert seen == [(True, False, False)] * 2 + [(False, True, True)] + seen[:3]
    assert metrics["train/grad_norm_critic"] > 0 and metrics["train/grad_norm_main"] > 0


@pytest.mark.slow
def test_one_gradient_is_both_players():
    """The gradient of the sum is each player's own."""
    both, _ = game(0)
    alone = [laws.Bench(n)(laws.tiny_batch())[1] for n in ("generator", "discriminator")]
    one = laws.Bench("generator", objectives={"generator": {}, "discriminator": {}})
    total = one(laws.tiny_batch())[1]
    assert laws.worst(jax.tree.map(jnp.add, *alone), total) < 1e-5
    assert both.config.optim.critic.steps == 0


@pytest.mark.parametrize("target", ["uniform", "reverse"])
def test_alignment_closes_a_gap(target):
    """Two clouds a distance apart, moved by the confusion objective, end up together."""
    critic = Perceptron(2, 32, 1)
    rng = np.random.default_rng(0)
    clouds = {m: rng.standard_normal((64, 4)) for m in "ab"}
    params = {
        "critic": critic.init(jax.random.key(0), jnp.ones((1, 4))),
        "shift": {"a": jnp.full(4, 1.0), "b": jnp.full(4, -1.0)},
    }

    class Net:
        model = types.SimpleNamespace(modalities={"a": {}, "b": {}})

        def __init__(self, params):
            self.params = params

        def criticise(self, x):
            return critic.apply(self.params, x)

        frozen = property(lambda self: Net(jax.lax.stop_gradient(self.params)))

    def loss(p):
        net = Net(p["critic"])
        out = {
            m: types.SimpleNamespace(embed=clouds[m] + p["shift"][m], present=jnp.ones(64, bool))
            for m in "ab"
        }
        d, _ = alignment.modality_critic(net, out, {}, None)
        g, _ = alignment.modality_confusion(net, out, {}, None, target=target)
        return d + g

    tx = optax.adam(0.02, 0.5)
    state = params, tx.init(params)

    def step(state, _):
        params, opt = state
        updates, opt = tx.update(jax.grad(loss)(params), opt)
        return (optax.apply_updates(params, updates), opt), None

    (end, _), _ = jax.lax.scan(step, state, None, 500)
    assert jnp.linalg.norm(end["shift"]["a"] - end["shift"]["b"]) < 1.0  # from 4.0


@pytest.mark.slow
def test_the_generator_has_an_average():
    """config.ema keeps an exponential moving average of the generator, fusion and towers alike."""
    b = laws.Bench("generator", ema={"decay": 0.75})
    one, _ = b.step(b.state, laws.tiny_batch())
    two, _ = b.step(one, laws.tiny_batch(seed=1))
    expected = jax.tree.map(lambda e, p: 0.75 * e + 0.25 * p, one.ema, one.params)
    for part in ("fuser", "encoder_image"):
        assert laws.worst(two.ema[part], expected[part]) < 1e-6
        assert laws.worst(two.ema[part], two.params[part]) > 1e-4


def test_a_collapse_is_told_in_the_log(caplog):
    row = {"generator/collapsed": 1.0, "generator/spread": 1e-5, "generator/rank": 1.0}
    warn_of_collapse(7, row)
    assert "step 7: the representations of generator have collapsed" in caplog.text
    caplog.clear()
    warn_of_collapse(8, row | {"generator/collapsed": 0.0})
    assert not caplog.text
