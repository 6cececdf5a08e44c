"""The joint fusion: golden values, the formula of cross-attention, every stage and operator."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from multimodal.nn import operators
from multimodal.nn.joint import STAGES, CrossAttention
from multimodal.nn.layers import Tokens
from multimodal.nn.model import Net, build_model
from tests import laws

OPERATORS = [*operators.OPERATORS, "attention"]
CELLS = [(s, o) for s in STAGES for o in ("concat", "attention", "tensor")]


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden" / "fusion" / "fusions.npz")


def test_golden_products(golden):
    a, b, c = (golden[k] for k in "abc")
    assert np.abs(operators.outer_product([a, b]) - golden["tensor_fusion_2"]).max() < 1e-6
    assert np.abs(operators.outer_product([a, b, c]) - golden["tensor_fusion_3"]).max() < 1e-6
    factors = [golden[f"lrtf.factor{i}"] for i in range(3)]
    ours = operators.low_rank_product([a, b, c], factors, golden["lrtf.w"][0], golden["lrtf.b"][0])
    np.testing.assert_allclose(ours, golden["lrtf"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.concatenate([a, b, c], -1), golden["concat"])


@pytest.mark.parametrize("form", ["matrix", "vector", "scalar", "matrix3D"])
def test_golden_multiplicative_interactions(golden, form):
    w, u, v, b = (golden[f"mi_{form}.{k}"] for k in "WUVb")
    wanted = golden[f"mi_{form}"]
    if form == "matrix3D":  # two output axes in one
        w, u, v, b = (x.reshape(*x.shape[:-2], -1) for x in (w, u, v, b))
        wanted = wanted.reshape(len(wanted), -1)
    ours = operators.multiplicative(golden["a"], golden["b"], w, u, v, b)
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)


def test_golden_gate(golden):
    b, (q, wanted) = golden["b"], (golden[k].reshape(6, 3, 4) for k in ("nlgate.q", "nlgate"))
    k, v = (b @ golden[f"nlgate.{n}.weight"].T + golden[f"nlgate.{n}.bias"] for n in ("kli", "vli"))
    ours = operators.softmax_gate(q, k.reshape(6, 4, 2), v.reshape(6, 2, 4))
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)


def test_cross_attention_is_the_formula():
    """softmax(Q K^T / sqrt(d)) V by hand, LayerNorm(O + H_t); masked context counts for nothing."""
    rng = np.random.default_rng(0)
    ht, hv = rng.standard_normal((2, 3, 8)), rng.standard_normal((2, 5, 8))
    mask = np.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    with jax.enable_x64(True):
        module = CrossAttention(8, 1, dtype="float64")
        x, context = Tokens(jnp.array(ht), jnp.ones((2, 3), bool)), Tokens(jnp.array(hv), mask)
        variables = module.init(jax.random.key(0), x, context)
        out = np.asarray(module.apply(variables, x, context).x)
    p = variables["params"]
    wq, wk, wv = (np.asarray(p[n]["kernel"], np.float64)[:, 0] for n in ("query", "key", "value"))
    scores = (ht[0] @ wq) @ (hv[0, :3] @ wk).T / np.sqrt(8)
    a = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    for i, o in enumerate([a @ (hv[0, :3] @ wv), np.zeros((3, 8))]):
        y = o + ht[i]
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(out[i], y, rtol=1e-6, atol=1e-9)


def config(stage, operator, modalities=("image", "text"), **fusion):
    c = laws.tiny_config("classification")
    c.model.classifiers = {"one": dict(of="joint", classes=3, target="label", multi=False)}
    c.model.heads = ("retrieve",)
    for tower in c.modalities.values():
        tower.depth = 2  # hybrid: one apart, one together
    if "image2" in modalities:
        c.modalities.image2 = common.image_tower(**c.modalities.image.to_dict())
    for m in set(c.modalities) - set(modalities):
        del c.modalities[m]
    c.model.fusion.update(stage=stage, operator=operator, inner=4, **fusion)
    return c


@functools.cache
def built(stage, operator, modalities=("image", "text"), **fusion):
    """(h_m of a batch, the Net, its number of parameters); parameters larger than at the start."""
    model = build_model(config(stage, operator, modalities, **fusion))
    params = laws.initial(model, batch(modalities))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape, np.float32), params)
    net = Net(model, params)
    run = jax.jit(lambda b: net.encode(b)["joint"].pooled)

    def joint(b):  # presences always given: one shape, one compilation
        there = {f"{m}_present": np.ones(8, bool) for m in modalities}
        return np.asarray(run(there | b))

    return joint, net, sum(p.size for p in jax.tree.leaves(params))


def batch(modalities=("image", "text"), seed=0, **present):
    b = laws.tiny_batch(seed=seed)
    b["image2"] = b["image"][::-1].copy()
    found = {k: b[k] for k in (*modalities, "index")}
    return found | {f"{m}_present": np.array(p) for m, p in present.items()}


CASES = [  # the grid's nine cells; the further operators early and hybrid with --slow
    pytest.param(s, o, marks=() if (s, o) in CELLS or s == "late" else pytest.mark.slow)
    for s in STAGES
    for o in OPERATORS
]


@pytest.mark.parametrize("stage, operator", CASES)
def test_both_modalities_count_and_a_missing_one_does_not(stage, operator):
    joint, _, _ = built(stage, operator)
    b, other = batch(), batch(seed=5)
    h = joint(b)
    assert h.shape == (8, 16) and np.isfinite(h).all()
    for m in ("image", "text"):
        assert np.abs(joint(b | {m: other[m]}) - h).max() > 1e-4, m
        gone = {f"{m}_present": np.arange(8) != 2}
        one, two = (joint(b | gone | {m: x[m]}) for x in (b, other))
        np.testing.assert_allclose(one[2], two[2], rtol=1e-5, atol=1e-6)
        assert np.abs(one[2] - h[2]).max() > 1e-4
        np.testing.assert_allclose(one[:2], h[:2], rtol=1e-5, atol=1e-6)
    nothing = {f"{m}_present": np.zeros(8, bool) for m in ("image", "text")}
    assert np.isfinite(joint(b | nothing)).all()


@pytest.mark.parametrize("stage, operator", [("early", "attention"), ("late", "tensor")])
@pytest.mark.parametrize("modalities", [("image",), ("image", "text", "image2")])
def test_any_number_of_modalities(stage, operator, modalities):
    joint, _, _ = built(stage, operator, modalities)
    assert joint(batch(modalities)).shape == (8, 16)


def test_cells_have_comparable_sizes():
    sizes = {cell: built(*cell)[2] for cell in CELLS}
    assert max(sizes.values()) < 1.4 * min(sizes.values()), sizes


@pytest.mark.parametrize(
    "stage, operator, fusion",
    [
        ("hybrid", "concat", {"bottleneck": 2}),
        ("hybrid", "attention", {"query": "text"}),
        ("late", "multiplicative", {"form": "matrix"}),
        ("late", "multiplicative", {"form": "scalar"}),
    ],
)
def test_options(stage, operator, fusion):
    joint, _, _ = built(stage, operator, **fusion)
    b, other = batch(), batch(seed=5)
    h = joint(b)
    for m in ("image", "text"):
        assert np.abs(joint(b | {m: other[m]}) - h).max() > 1e-4, m


def test_a_standin_is_learned():
    """With stand-ins, what is missing is a parameter, not an absence."""
    _, net, _ = built("late", "concat", standin=True)
    gone = batch() | {"image_present": np.zeros(8, bool)}

    def loss(params):
        return Net(net.model, params).encode(gone)["joint"].pooled[:, :3].sum()

    grads = jax.jit(jax.grad(loss))(net.params)
    assert np.abs(grads["fuser"]["standin_image"]).max() > 0
    assert np.abs(grads["fuser"]["standin_text"]).max() == 0
    assert not any(np.abs(g).max() for g in jax.tree.leaves(grads["encoder_image"]))


@pytest.mark.slow
@pytest.mark.parametrize("fusion", [{"operator": "attention"}, {"bottleneck": 2}])
def test_scan_and_remat_change_nothing(fusion):
    """Both layers in one scanned body, and recomputed: the same h_m and gradients."""
    fusion = {"operator": "concat", "stage": "early"} | fusion
    towers = {m: {"depth": 2} for m in ("image", "text")}

    def build(**changes):
        c = config(**fusion, **changes)
        for m, tower in towers.items():
            c.modalities[m].update(tower)
        return Net(build_model(c), {})

    def value(net, params):
        h = Net(net.model, params).encode(batch(image_present=np.arange(8) > 1))["joint"].pooled
        return (h**3).sum()

    plain = build()
    params = laws.initial(plain.model, batch())
    name = "attend" if fusion["operator"] == "attention" else "bottleneck"
    fuser = dict(params["fuser"])
    layers = [fuser.pop(f"{name}_{i}") for i in range(2)]
    stacked = {**fuser, f"{name}s": jax.tree.map(lambda *x: jnp.stack(x), *layers)}
    wanted = jax.jit(jax.value_and_grad(functools.partial(value, plain)))(params)
    again = jax.jit(jax.value_and_grad(functools.partial(value, build(remat="full"))))(params)
    assert laws.worst(again, wanted) < 1e-5
    scanned = build(scan=True, remat="dots")
    found = jax.jit(jax.value_and_grad(functools.partial(value, scanned)))(
        params | {"fuser": stacked}
    )
    assert laws.worst(found[0], wanted[0]) < 1e-5
    ours, theirs = found[1]["fuser"][f"{name}s"], wanted[1]["fuser"]
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], ours)
        assert laws.worst(one, theirs[f"{name}_{i}"]) < 1e-5


def test_cross_attention_drops_out():
    """Both rates act where there are keys, each example by its own, and not without."""
    rng = np.random.default_rng(0)
    x = jnp.array(rng.standard_normal((4, 3, 8), np.float32))
    tokens = Tokens(x, jnp.ones((4, 3), bool))
    keyed = tokens.replace(keys=jax.random.split(jax.random.key(1), 4))
    variables = CrossAttention(8, 2).init(jax.random.key(0), tokens, tokens)
    clean = CrossAttention(8, 2).apply(variables, keyed, tokens).x
    for rates in ({"dropout": 0.5}, {"attention_dropout": 0.5}):
        module = CrossAttention(8, 2, **rates)
        np.testing.assert_array_equal(module.apply(variables, tokens, tokens).x, clean)
        dropped = module.apply(variables, keyed, tokens).x
        assert np.abs(dropped - clean).max() > 0.01, rates
        turned = jax.tree.map(lambda v: v[::-1], (keyed, tokens))
        np.testing.assert_allclose(module.apply(variables, *turned).x, dropped[::-1], atol=1e-6)
