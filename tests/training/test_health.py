"""Steps that must not count leave the state as it was; too many in a row end the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multimodal.errors import UserError
from multimodal.training.health import WARM, Watch, judge, new_health
from tests import laws


def test_a_step_with_nan_changes_nothing_but_its_number():
    b = laws.Bench("contrastive", {"momentum": True, "alpha": 0.4})
    batch = laws.tiny_batch()
    image = np.array(batch["image"], np.float32) / 255
    good, bad = batch | {"image": image}, batch | {"image": np.where(image > 2, 0, np.nan)}
    state, _ = b.step(b.state, good)
    after, metrics = b.step(state, bad)
    for part in ("params", "ema", "opt", "queue", "rng"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, part), getattr(state, part))
    assert int(after.step) == int(state.step) + 1
    assert int(metrics["train/skipped"]) == int(metrics["train/skipped_in_row"]) == 1
    assert not np.isfinite(metrics["train/grad_norm"])
    last, metrics = b.step(after, good)
    assert int(metrics["train/skipped"]) == 1 and int(metrics["train/skipped_in_row"]) == 0
    assert laws.worst(last.params, after.params) > 0


def test_a_spike_is_told_from_the_norms_before():
    health, one = new_health(), jnp.float32(1)
    good, _ = judge(health, one, jnp.float32(1e6), spike=10.0)
    assert good  # nothing to compare with yet
    for _ in range(WARM):
        good, health = judge(health, one, one, spike=10.0)
        assert good
    assert judge(health, one, jnp.float32(9.0), spike=10.0)[0]
    good, after = judge(health, one, jnp.float32(11.0), spike=10.0)
    assert not good and after["norm"] == health["norm"] and after["skipped"] == 1
    assert judge(health, one, jnp.float32(11.0), spike=0.0)[0]


def test_the_watch_tells_and_ends(caplog):
    watch, row = Watch(2), {"train/grad_norm": np.nan, "itm/loss": np.nan}
    for step, (total, in_row) in enumerate([(0, 0), (2, 2), (2, 0), (3, 1)]):
        watch.look(step, row | {"train/skipped": total, "train/skipped_in_row": in_row})
    assert [r.args[1] for r in caplog.records] == [2, 1]
    with pytest.raises(UserError, match="step 9: 3 steps in a row .* config.skip.most = 2.*itm"):
        watch.look(9, row | {"train/skipped": 6, "train/skipped_in_row": 3})
