"""The mesh, the layout rule, and batches that do not divide."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from multimodal.config import load_config
from multimodal.errors import UserError
from multimodal.training import setup
from multimodal.training.sharding import check_batch, make_mesh, state_shardings, to_global
from multimodal.training.step import lower_step, make_step


def specs(tree, mesh, rules=()):
    return jax.tree.map(lambda s: s.spec, state_shardings(tree, mesh, rules))


def test_rule_takes_the_largest_axis_that_divides():
    tree = {
        "wide": jnp.zeros((130, 512)),
        "odd": jnp.zeros((129, 131)),
        "small": jnp.zeros((8, 8)),
        "scalar": jnp.zeros(()),
    }
    assert specs(tree, make_mesh(2, 4)) == {
        "wide": P(None, "fsdp"),
        "odd": P(),
        "small": P(),
        "scalar": P(),
    }


def test_attention_is_split_by_heads_where_they_divide():
    heads, few = jnp.zeros((2, 512, 8, 64)), jnp.zeros((512, 6, 64))
    tree = {"blocks": {"attention": {k: {"kernel": heads} for k in ("query", "out")}}}
    tree |= {"block_0": {"attention": {"key": {"kernel": few}, "value": {"kernel": heads[0]}}}}
    found = specs(tree, make_mesh(2, 4))
    assert found == {
        "blocks": {
            "attention": {
                "query": {"kernel": P(None, None, "fsdp")},
                "out": {"kernel": P(None, "fsdp")},
            }
        },
        "block_0": {
            "attention": {
                "key": {"kernel": P("fsdp")},
                "value": {"kernel": P(None, "fsdp")},
            }
        },
    }


def test_a_regex_overrides_the_rule():
    tree = {"a": {"kernel": jnp.zeros((512, 512))}, "b": {"kernel": jnp.zeros((512, 512))}}
    found = specs(tree, make_mesh(2, 4), ((r"a/.*", ("data", "fsdp")),))
    assert found == {"a": {"kernel": P("data", "fsdp")}, "b": {"kernel": P("fsdp")}}


@pytest.mark.parametrize("data, fsdp", [(-1, 3), (3, 2), (0, 8), (-1, 0)])
def test_mesh_that_does_not_make_the_devices(data, fsdp):
    with pytest.raises(UserError, match="8 devices"):
        make_mesh(data, fsdp)


def test_batch_that_does_not_divide_names_one_that_does():
    with pytest.raises(UserError, match="nearest size that does is 96"):
        check_batch(100, make_mesh(2, 4), micro_batches=4)
    check_batch(96, make_mesh(2, 4), micro_batches=4)


def test_global_batch_is_the_batch():
    mesh = make_mesh(2, 4)
    batch = {"x": np.arange(48).reshape(16, 3)}
    placed = to_global(batch, mesh)["x"]
    assert len(placed.addressable_shards) == 8 and placed.addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(placed, batch["x"])


@pytest.mark.slow
def test_albef_sends_no_tokens_but_those_of_negatives():
    """Under FSDP, too: whole examples stay where they are, so that nothing else is [B, L, 32]."""
    tower = dict(width=32, heads=4, mlp_dim=64, depth=2)
    stacks = ("modalities.image", "modalities.text", "model.fusion")
    small = [f"{s}.{k}={v}" for s in stacks for k, v in tower.items()]
    small += ["modalities.image.size=32", "modalities.text.vocab_size=512", "queue.size=0"]
    c = load_config("configs/albef.py", [*small, "batch_size=88", "mesh.fsdp=4"])
    mesh = make_mesh(2, 4)
    with jax.set_mesh(mesh):
        model, tx, state = setup.state_shapes(c, mesh)
        step = make_step(c, model, setup.get_objectives(c, None), tx)
        text = lower_step(step, state, setup.batch_shapes(c, mesh)).compile().as_text()
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    sent = {
        kind
        for result, kind in re.findall(rf"= ([^=]*?) ({kinds})(?:-start)?\(", text)
        if re.search(r"\[\d+,(5|25),32\]", result)
    }
    assert sent <= {"all-to-all"}
