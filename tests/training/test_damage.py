"""Damaged checkpoints: whatever bit is flipped, wherever a file ends, no wrong state comes back."""

import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multimodal.errors import UserError
from multimodal.training.checkpoint import Checkpoints, restore_params
from multimodal.training.health import new_health
from multimodal.training.step import State

STEPS = (1, 2, 3)


def state_of(step):
    """Arrays large enough that most bytes of a checkpoint are theirs, one of them sparse."""
    rng = np.random.default_rng(step)
    params = {
        "w": jnp.asarray(rng.normal(size=(64, 96)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=(300,)), jnp.bfloat16),
        "zeros": jnp.zeros((32, 32)),
    }
    ema, opt = jax.tree.map(lambda x: x * 2, params), (jnp.ones(7), jnp.int32(step))
    rng = jnp.asarray([step, 7], jnp.uint32)
    return State(jnp.int32(step), params, ema, opt, None, new_health(), rng)


def same(a, b):
    return all(
        np.array_equal(np.asarray(x).view(np.uint8), np.asarray(y).view(np.uint8))
        if np.ndim(x)
        else x == y
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(workdir)
    for step in STEPS:
        checkpoints.save(state_of(step), {"data": {"seed": 0}})
    checkpoints.close()
    return workdir


def damage(path, rng):
    """Flip a bit of a file, or cut it off somewhere."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content)) if content else 0
    if not content:
        content = b"x"
    elif rng.random() < 0.25:
        content = content[:place]
    else:
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def restored(workdir):
    """(step, state) that a run would go on from; None where it refuses."""
    checkpoints = Checkpoints(workdir)
    try:
        state, meta = checkpoints.restore(state_of(0))
        return meta["step"], state
    except UserError:
        return None
    finally:
        checkpoints.close()


def fuzz(saved, folder, count, seed):
    """Damage the newest checkpoint so often; returns (fallen back, refused by eval, in all)."""
    rng, fallen, refused = random.Random(seed), 0, 0
    files = [p.relative_to(saved) for p in (saved / "checkpoints" / "3").rglob("*") if p.is_file()]
    large = [p for p in files if (saved / p).stat().st_size > 5000]
    for _ in range(count):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved, folder)
        damage(folder / rng.choice(files if rng.random() < 0.5 else large), rng)
        try:
            step, params, ema = restore_params(folder, 3)
            assert step == 3 and same((params, ema), (state_of(3).params, state_of(3).ema))
        except UserError:
            refused += 1
        step, state = restored(folder)
        assert step in (2, 3) and same(state, state_of(step)), "a wrong state came back"
        fallen += step == 2
        assert (folder / "damaged" / "3").exists() == (step == 2)
    return fallen, refused


def test_no_wrong_state_comes_back(saved, tmp_path):
    fallen, refused = fuzz(saved, tmp_path / "copy", 12, seed=0)
    assert fallen >= 4 and refused >= 4  # the damage was felt


@pytest.mark.slow
def test_no_wrong_state_comes_back_of_two_hundred(saved, tmp_path):
    fallen, _ = fuzz(saved, tmp_path / "copy", 200, seed=1)
    assert fallen >= 80


def test_where_nothing_verifies_nothing_is_moved(saved, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    for step in STEPS:
        damage(folder / "checkpoints" / str(step) / "meta" / "metadata", random.Random(step))
    checkpoints = Checkpoints(folder)
    with pytest.raises(UserError, match="no checkpoint verifies"):
        checkpoints.restore(state_of(0))
    checkpoints.close()
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["1", "2", "3"]


def test_another_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    from multimodal.training.checkpoint import tokenizer_digest

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_of(1), {"tokenizer": tokenizer_digest(tmp_path)})
    checkpoints.close()
    restore_params(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{ }")
    with pytest.raises(UserError, match="not the tokenizer"):
        restore_params(tmp_path)
