"""Steps that must not count: found on the device, where the state of before is still at hand."""

import logging

import jax
import jax.numpy as jnp

from multimodal.errors import Unhealthy, UserError

log = logging.getLogger(__name__)
DECAY = 0.98  # of the mean of gradient norms
WARM = 100  # steps that count before a spike can be told


def new_health():
    """Scalars of the state: steps left out in all and in a row, steps that counted, and the mean of
    their gradients' norms.
    """
    zero = jnp.zeros((), jnp.int32)
    return {"skipped": zero, "in_row": zero, "counted": zero, "norm": jnp.zeros(())}


def judge(health, loss, norm, spike=0.0):
    """(whether a step counts, the new health).

    It does not where loss or gradient norm is not finite, and, with spike > 0, where the norm is
    more than `spike` times the mean of those before, once there are WARM of them.
    """
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    if spike:
        mean = health["norm"] / (1 - DECAY ** jnp.maximum(health["counted"], 1))
        good &= (norm <= spike * mean) | (health["counted"] < WARM)
    left = 1 - good.astype(jnp.int32)
    norm = jnp.where(good, norm, 0).astype(jnp.float32)
    new = {
        "skipped": health["skipped"] + left,
        "in_row": (health["in_row"] + 1) * left,
        "counted": health["counted"] + good,
        "norm": jnp.where(good, DECAY * health["norm"] + (1 - DECAY) * norm, health["norm"]),
    }
    return good, new


def choose(good, new, old):
    """The pytree `new` where a step counts, else `old`."""
    return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)


class Watch:
    """Tells of steps that were left out, and ends the run where they are too many in a row."""

    def __init__(self, most):
        self._most, self._told = most, None

    def look(self, step, row):
        """Look at a row of metrics.

        Raises UserError, not Unhealthy: the same command would do these steps again and end here
        again, so that it takes a person, and launchers must not start it anew.
        """
        total, in_row = int(row["train/skipped"]), int(row["train/skipped_in_row"])
        parts = ", ".join(f"{k} {v:.3g}" for k, v in row.items() if k.endswith("/loss"))
        if in_row > self._most:
            raise UserError(
                f"step {step}: {in_row} steps in a row were left out, more than "
                f"config.skip.most = {self._most}: loss or gradient is not finite or a spike "
                f"(gradient norm {row['train/grad_norm']:.3g}; {parts}). Lower the learning rate, "
                "clip gradients (config.optim.clip), or look at the data of these steps"
            )
        if self._told is not None and total > self._told:
            log.warning(
                "up to step %d: %d steps left out since the last line, %d in all: loss or gradient "
                "not finite, or a spike (config.skip)",
                step,
                total - self._told,
                total,
            )
        self._told = total


def warn_of_collapse(step, row):
    """Say in the log where an adversarial game's representations have become one point or line."""
    for key in [k for k in row if k.endswith("/collapsed") and row[k]]:
        name = key.removesuffix("/collapsed")
        log.warning(
            "step %d: the representations of %s have collapsed (spread %.2g, effective rank %.2g): "
            "lower its weight, or give the critic more steps (config.optim.critic.steps) or a "
            "penalty (r1)",
            step,
            name,
            row[f"{name}/spread"],
            row[f"{name}/rank"],
        )


def check_replicas(step, state):
    """Raise Unhealthy where devices that should hold the same hold something else."""
    from multimodal.training.fingerprint import diverged

    if wrong := diverged(state):
        raise Unhealthy(
            f"step {step}: {len(wrong)} arrays differ between devices that should hold the same, "
            f"such as {wrong[0]}: a device computes or stores wrongly. Nothing of it was saved; "
            "find the device, then start again from the last checkpoint"
        )
